//! The pairs of a run in tokens, those to train on and those that are held out.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use prefopt::{
    data::{
        BadLines, DataError, Limits, LongPrompt, PairDataset, Policy, PreferenceReader, Record, Report, TextTokenizer,
        Tie, tokenize,
    },
    lm::ModelConfig,
};

use crate::{flags::DataFlags, models};

pub struct Split {
    pub train: PairDataset,
    pub held_out: Option<PairDataset>,
}

/// Reads the files with the model's tokenizer, and says what became of them.
pub fn read(flags: &DataFlags, model: &Path, config: &ModelConfig) -> Result<Split> {
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
        return Ok(Split { train: all, held_out: Some(source.pairs(&flags.eval_data)?) });
    }
    if flags.held_out == 0.0 {
        return Ok(Split { train: all, held_out: None });
    }
    let parts = all.split(flags.held_out, flags.split_seed).map_err(|error| match error {
        DataError::NoPairs(part) => anyhow!(
            "--held-out {} leaves no pair in {part}: there are {} pairs, and all of a prompt are on one side; give --held-out 0 or --eval-data",
            flags.held_out,
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
        eprintln!("{names}: {}", tokenized.report);
        Ok(tokenized.pairs)
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

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
