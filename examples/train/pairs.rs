//! The pairs of a run in tokens, those to train on and those that are held out.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use prefopt::{
    data::{
        BadLines, Column, DataError, Limits, LongPrompt, PairDataset, Policy, PreferenceReader, Record, Report,
        TextTokenizer, Tie, tokenize,
    },
    lm::ModelConfig,
};

use crate::{flags::DataFlags, loss::LossSpec, models};

pub struct Split {
    pub train: PairDataset,
    pub held_out: Option<PairDataset>,
}

/// Reads the files with the model's tokenizer, and says what became of them. A share of the prompts is held out where
/// there are no pairs for it. All pairs have a weight, which is not 0, or none has.
pub fn read(flags: &DataFlags, held_out: f64, model: &Path, config: &ModelConfig) -> Result<Split> {
    let tokenizer = models::tokenizer(model)?;
    tokenizer.fits(config.vocab() as usize).map_err(|error| anyhow!("{}: {error}", model.display()))?;
    ensure!(
        !flags.chat || tokenizer.template().is_some(),
        "--chat needs a chat template, and {} has neither chat_template.jinja nor `chat_template` in tokenizer_config.json",
        model.display()
    );
    let context = context(flags, config);
    let source = Source { flags, model, tokenizer, context, limits: limits(flags, context)? };
    let all = source.pairs(&flags.data)?;
    if !flags.eval_data.is_empty() {
        let held_out = source.pairs(&flags.eval_data)?;
        let [with, without] = match [&all, &held_out].map(|pairs| pairs.column(Column::Weight).is_ok()) {
            [true, false] => ["--data", "--eval-data"],
            [false, true] => ["--eval-data", "--data"],
            _ => return Ok(Split { train: all, held_out: Some(held_out) }),
        };
        bail!("the pairs of {with} have a `weight`, and those of {without} have none: give it to all pairs or to none");
    }
    if held_out == 0.0 {
        return Ok(Split { train: all, held_out: None });
    }
    let parts = all.split(held_out, flags.split_seed).map_err(|error| match error {
        DataError::NoPairs(part) => anyhow!(
            "--held-out {held_out} leaves no pair in {part}: there are {} pairs, and all of a prompt are on one side; give --held-out 0 or --eval-data",
            all.len()
        ),
        error => anyhow!("--held-out: {error}"),
    });
    let [train, held_out] = parts?;
    eprintln!("{} pairs to train on, {} held out", train.len(), held_out.len());
    Ok(Split { train, held_out: Some(held_out) })
}

/// Tokens of the longest prompt and response together: no more than the model reads.
fn context(flags: &DataFlags, config: &ModelConfig) -> usize {
    let context = usize::try_from(config.context()).unwrap_or(usize::MAX);
    if context < flags.max_length {
        eprintln!("--max-length {} is cut to the model's context of {context} tokens", flags.max_length);
    }
    flags.max_length.min(context)
}

fn limits(flags: &DataFlags, context: usize) -> Result<Limits> {
    let mut limits = Limits::new(context).map_err(|error| anyhow!("--max-length {context}: {error}"))?;
    if let Some(tokens) = flags.max_prompt {
        limits = limits.with_longest_prompt(tokens).map_err(|error| anyhow!("--max-prompt {tokens}: {error}"))?;
    }
    if let Some(tokens) = flags.max_response {
        limits = limits.with_longest_response(tokens).map_err(|error| anyhow!("--max-response {tokens}: {error}"))?;
    }
    Ok(limits)
}

/// What all files are read with.
struct Source<'a> {
    flags: &'a DataFlags,
    model: &'a Path,
    tokenizer: TextTokenizer,
    context: usize,
    limits: Limits,
}

impl Source<'_> {
    fn pairs(&self, files: &[PathBuf]) -> Result<PairDataset> {
        let flags = self.flags;
        let readers = files.iter().map(PreferenceReader::open).collect::<Result<Vec<_>, _>>();
        let readers = readers.map_err(|error| anyhow!("{error}"))?;
        let records = readers.into_iter().flatten().take(flags.limit.unwrap_or(usize::MAX));
        let records = records.map(|record| if flags.chat { record.map(Record::into_conversation) } else { record });
        let policy = Policy {
            long_prompt: if flags.keep_end { LongPrompt::KeepEnd } else { LongPrompt::Drop },
            tie: if flags.drop_ties { Tie::Drop } else { Tie::Keep },
            ..Policy::default()
        };
        let bad_lines = match BadLines::default() {
            BadLines::Refuse { listed } if flags.skip_bad => BadLines::Skip { listed },
            refused => refused,
        };
        let (mut weighed, mut unweighed) = (false, None);
        let records = records.inspect(|record| match record {
            Ok(record) if record.number(Column::Weight).is_some() => weighed = true,
            Ok(record) if unweighed.is_none() => unweighed = Some(record.origin.to_string()),
            _ => {}
        });
        let names = names(files);
        let tokenized = tokenize(records, &self.tokenizer, self.limits, policy, bad_lines);
        let tokenized = tokenized.map_err(|error| match error {
            DataError::Broken(faults) => anyhow!("{faults}; --skip-bad leaves them out"),
            DataError::NoTemplate => anyhow!("{}: {error}", self.model.display()),
            error => anyhow!("{error}"),
        })?;
        if tokenized.pairs.is_empty() {
            return Err(self.nothing_left(&names, &tokenized.report));
        }
        if let (true, Some(place)) = (weighed, unweighed) {
            bail!("{place} has no `weight`, and other pairs have one: give it to all pairs or to none");
        }
        eprintln!("{names}: {}", tokenized.report);
        counted(tokenized.pairs, &names)
    }

    /// Why no pair is left.
    fn nothing_left(&self, names: &str, report: &Report) -> anyhow::Error {
        let dropped = report.dropped;
        match (dropped.total(), report.skipped.total()) {
            (0, 0) => anyhow!("there is no record in {names}"),
            (all, 0) if dropped.long_prompt == all => anyhow!(
                "every prompt of {names} {}: raise the limit, or keep the prompts' ends with --keep-end",
                self.limit_of_prompts()
            ),
            _ => anyhow!("no pair of {names} is left: {report}"),
        }
    }

    fn limit_of_prompts(&self) -> String {
        match self.flags.max_prompt {
            Some(tokens) if tokens < self.context => format!("is longer than --max-prompt {tokens}"),
            _ => format!("fills the context of {} tokens and leaves no room for a response", self.context),
        }
    }
}

/// Those that count for something: a batch of others would have no mean.
fn counted(pairs: PairDataset, names: &str) -> Result<PairDataset> {
    let weights = pairs.column(Column::Weight).map(<[f64]>::to_vec).unwrap_or_default();
    let counted: Vec<usize> = (0..weights.len()).filter(|&pair| weights[pair] > 0.0).collect();
    let others = weights.len() - counted.len();
    if others == 0 {
        return Ok(pairs);
    }
    ensure!(!counted.is_empty(), "every pair of {names} has the weight 0");
    eprintln!("{names}: pairs left out for their weight of 0: {others}");
    pairs.select(&counted).map_err(|error| anyhow!("{error}"))
}

/// Refuses pairs with weights to a loss that puts a pair's term beside another's, by rank.
pub fn fit(pairs: &PairDataset, loss: &LossSpec) -> Result<()> {
    ensure!(
        !loss.ranks() || pairs.column(Column::Weight).is_err(),
        "--loss {loss} couples the sorted pairs of a batch, where a pair's `weight` would fall on another: leave it out of the data"
    );
    Ok(())
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
