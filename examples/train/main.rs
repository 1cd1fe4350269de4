//! Tunes Hugging Face decoders on human preferences by any loss of the library, and the reward models that losses read.
//!
//!     cargo run --release --features lm,data,run --example train -- COMMAND --FLAG VALUE …
//!
//!     --quick                              every command on a tiny model: checks that they run, seconds
//!     --losses                             the losses by name, with their keys and defaults
//!     sft    --model M --data pairs.jsonl --out runs/sft
//!     reward --model runs/sft/model --data pairs.jsonl --members 3 --out runs/reward
//!     score  --model runs/sft/model --data pairs.jsonl --rewards runs/reward --cache runs/cache
//!     policy --model runs/sft/model --data pairs.jsonl --out runs/dpo
//!     policy --model runs/sft/model --data pairs.jsonl --rewards runs/reward --cache runs/cache --out runs/edpo \
//!            --loss 'e-dpo:minimum=hull + 0.001*forward-kl'
//!     sample --model runs/dpo/model --prompt 'Once upon a time'
//!     eval   --model runs/dpo/model --reference runs/sft/model --data other.jsonl
//!     policy --config flags.toml --seed 1  a TOML file has the same flags as keys
//!
//! A model is a folder in Hugging Face's format; pairs are JSON Lines with `prompt`, `chosen` and `rejected`. Training
//! holds a tenth of the prompts out (--held-out, --eval-data), `eval` judges all pairs of its files. A run's folder
//! holds checkpoints, logs (JSON Lines, TensorBoard), a summary, a picture and the model. Ctrl-C finishes the step and
//! saves; the same command again goes on, bit for bit on a CPU. A wrong input is one sentence on standard error and a
//! non-zero exit.

mod columns;
mod config;
mod eval;
mod flags;
mod loss;
mod models;
mod nearest;
mod pairs;
mod picture;
mod policy;
mod quick;
mod reward;
mod run;
mod sample;
mod score;
mod sft;
#[path = "../support/mod.rs"]
mod support;
mod tail;
mod tiny;
mod trainers;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Error, Result};
use clap::Parser;

use flags::{Cli, Command};

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", sentence(&told(&error)));
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<ExitCode> {
    let cli = Cli::parse_from(config::arguments()?);
    if cli.losses {
        io::stdout().write_all(loss::listing().as_bytes()).context("cannot write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    if cli.quick {
        return quick::run(&cli.out.unwrap_or_else(|| PathBuf::from("runs/train")));
    }
    cli.command.context("no command: see --help")?.run()
}

impl Command {
    pub fn run(&self) -> Result<ExitCode> {
        match self {
            Self::Sft(flags) => sft::run(flags),
            Self::Reward(flags) => reward::run(flags),
            Self::Score(flags) => score::run(flags),
            Self::Policy(flags) => policy::run(flags),
            Self::Sample(flags) => sample::run(flags),
            Self::Eval(flags) => eval::run(flags),
        }
    }
}

/// With its causes, but for those that the text before them has already: an error of the library shows its source, and
/// returns it too.
fn told(error: &Error) -> String {
    error.chain().fold(String::new(), |text, cause| match cause.to_string() {
        cause if text.is_empty() => cause,
        cause if text.contains(&cause) => text,
        cause => format!("{text}: {cause}"),
    })
}

/// In one line, and without the stack that libtorch appends to what it says.
fn sentence(text: &str) -> String {
    let said = text.split("\nException raised from").next().unwrap_or(text);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow!("no such file").context("cannot read a.json: no such file").context("the run");
        assert_eq!(told(&error), "the run: cannot read a.json: no such file");
        assert_eq!(told(&anyhow!("alone")), "alone");
    }
}
