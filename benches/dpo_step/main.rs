//! DPO on a real model and real pairs, beside TRL and beside a careful PyTorch loop: seconds a step, peak memory, the first losses.
//!
//!     cargo bench --features lm,data --bench dpo_step -- MODEL PAIRS [--pairs 12] [--batch 4] [--max-length 384] [--members 5] [--json FILE]
//!
//! All take the pairs in the order of the file, `batch` to a step, in f32, with AdamW at 1e-6 and gradients clipped to 1. With `PREFOPT_PEER_PYTHON` naming
//! a Python that has the packages of benches/peers/requirements.txt, benches/peers/dpo_step.py runs the others, each in a process of its own.

#[allow(dead_code)] // races and products have no part here
#[path = "../side_by_side/measure.rs"]
mod measure;
mod ours;
mod peers;

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::Result;
use clap::Parser;

/// Times a step of DPO.
#[derive(Parser)]
pub struct Args {
    /// Folder of the model, in Hugging Face's format
    model: PathBuf,
    /// File of pairs
    pairs_file: PathBuf,
    /// The first so many pairs
    #[arg(long, default_value = "12")]
    pairs: NonZeroUsize,
    /// Pairs of a step
    #[arg(long, default_value = "4")]
    batch: NonZeroUsize,
    /// Longest prompt and response together, in tokens
    #[arg(long, default_value_t = 384)]
    max_length: usize,
    /// Reward models of e-DPO, whose scores are in a cache
    #[arg(long, default_value_t = 5)]
    members: usize,
    /// Leave the Python systems out
    #[arg(long)]
    alone: bool,
    #[command(flatten)]
    common: measure::Common,
}

fn main() -> Result<()> {
    let args = Args::parse();
    args.common.begin()?;
    let ours = ours::run(&args)?;
    let peers = if args.alone { Vec::new() } else { peers::run(&args, &ours)? };
    let figures: Vec<_> = std::iter::once(ours).chain(peers).collect();
    args.common.write(&figures)
}
