use rayon::prelude::*;

use super::{
    BadLine, BadLines, DataError, Dropped, EmptyResponse, Limits, LongPrompt, LongResponse, PairDataset, Policy,
    Reason, Record, Report, Result, SplitPair, TextTokenizer, Texts, Tie,
};

/// Records in memory at a time: enough for every core, little beside the tokens.
const CHUNK: usize = 1024;

/// Pairs in tokens, and what became of the records.
#[derive(Debug)]
pub struct Tokenized {
    /// The pairs kept, in the order of the records.
    pub pairs: PairDataset,
    /// What was dropped, cut and skipped.
    pub report: Report,
}

/// Records to tokens, on all cores, in order; the text of a thousand records is in memory at a time.
///
/// Each response goes on from the longest token prefix that it, the other one and the prompt alone have in common
/// ([`TextTokenizer::split`]).
///
/// # Errors
/// [`Broken`](DataError::Broken) with all broken lines of all files where they are [refused](BadLines::Refuse): also
/// those that the chat template or the tokenizer refuses. Whatever else the records bring, at once;
/// [`NoTemplate`](DataError::NoTemplate) for conversations without one.
pub fn tokenize<I>(
    records: I,
    tokenizer: &TextTokenizer,
    limits: Limits,
    policy: Policy,
    bad_lines: BadLines,
) -> Result<Tokenized>
where
    I: IntoIterator<Item = Result<Record>>,
{
    let (BadLines::Refuse { listed } | BadLines::Skip { listed }) = bad_lines;
    let (mut records, mut pairs, mut report) = (records.into_iter(), PairDataset::default(), Report::default());
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            match records.next() {
                Some(Ok(record)) => chunk.push(record),
                Some(Err(DataError::Line(line))) => report.skipped.push(line, listed),
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        if chunk.is_empty() {
            break;
        }
        let conversation = |record: &Record| matches!(record.texts, Texts::Conversation { .. });
        if tokenizer.template().is_none() && chunk.iter().any(conversation) {
            return Err(DataError::NoTemplate);
        }
        let outcomes: Vec<_> = chunk.par_iter().map(|record| outcome(record, tokenizer, limits, policy)).collect();
        for (record, outcome) in chunk.into_iter().zip(outcomes) {
            match outcome {
                Ok(Outcome::Kept { split, cut }) => {
                    let record = if cut { record.without_reference() } else { record };
                    pairs.push_record(&split, &record)?;
                    report.kept += 1;
                    report.cut += u64::from(cut);
                    report.moved += u64::from(split.moved > 0);
                }
                Ok(Outcome::Dropped(count)) => *count(&mut report.dropped) += 1,
                Err(reason) => report.skipped.push(BadLine { origin: record.origin, reason }, listed),
            }
        }
    }
    if matches!(bad_lines, BadLines::Refuse { .. }) && report.skipped.total() > 0 {
        return Err(DataError::Broken(report.skipped));
    }
    pairs.shrink();
    Ok(Tokenized { pairs, report })
}

/// The count that a pair is dropped to.
type Count = fn(&mut Dropped) -> &mut u64;

enum Outcome {
    Kept { split: SplitPair, cut: bool },
    Dropped(Count),
}

fn outcome(
    record: &Record,
    tokenizer: &TextTokenizer,
    limits: Limits,
    policy: Policy,
) -> std::result::Result<Outcome, Reason> {
    if policy.tie == Tie::Drop && record.label == 0.5 {
        return Ok(Outcome::Dropped(|dropped| &mut dropped.tied));
    }
    let (same, empty) = match &record.texts {
        Texts::Plain { chosen, rejected, .. } => {
            (chosen == rejected, chosen.trim().is_empty() || rejected.trim().is_empty())
        }
        Texts::Conversation { chosen, rejected, .. } => {
            (chosen == rejected, [chosen, rejected].iter().any(|reply| reply.iter().all(|message| message.is_silent())))
        }
    };
    if same {
        return Ok(Outcome::Dropped(|dropped| &mut dropped.identical));
    }
    if empty && policy.empty_response == EmptyResponse::Drop {
        return Ok(Outcome::Dropped(|dropped| &mut dropped.empty_response));
    }
    let mut split = tokenizer.split(record)?;
    Ok(match fit(&mut split, tokenizer.begin(), limits, policy) {
        Ok(cut) => Outcome::Kept { split, cut },
        Err(dropped) => Outcome::Dropped(dropped),
    })
}

/// Cuts a pair to its limits, and says whether it did, or which count it is dropped to.
fn fit(pair: &mut SplitPair, begin: Option<u32>, limits: Limits, policy: Policy) -> std::result::Result<bool, Count> {
    if pair.prompt.is_empty() {
        return Err(|dropped| &mut dropped.empty_prompt);
    }
    let longest = limits.longest_prompt.unwrap_or(usize::MAX).min(limits.context - 1);
    let mut cut = pair.prompt.len() > longest;
    if cut {
        match policy.long_prompt {
            LongPrompt::Drop => return Err(|dropped| &mut dropped.long_prompt),
            LongPrompt::KeepEnd => {
                let head = usize::from(begin == pair.prompt.first().copied());
                pair.prompt.drain(head..pair.prompt.len() - (longest - head));
            }
        }
    }
    let most = limits.longest_response.unwrap_or(usize::MAX).min(limits.context - pair.prompt.len());
    for response in [&mut pair.chosen, &mut pair.rejected] {
        if response.len() > most {
            if policy.long_response == LongResponse::Drop {
                return Err(|dropped| &mut dropped.long_response);
            }
            response.truncate(most);
            cut = true;
        }
    }
    if pair.chosen.is_empty() || pair.rejected.is_empty() {
        return Err(|dropped| &mut dropped.empty_response);
    }
    if pair.chosen == pair.rejected {
        return Err(|dropped| &mut dropped.identical);
    }
    Ok(cut)
}
