//! prefopt beside what its users would otherwise run, in one process or turn by turn, and beside the machine's own limit.
//!
//!     cargo bench --bench side_by_side -- [op|losses|pairs|optimiser|checkpoint ...] [--pairs-file LENGTHS] [--json FILE]
//!
//! With `PREFOPT_PEER_PYTHON` naming a Python that has the packages of benches/peers/requirements.txt (`cargo xtask bench --peers` sees
//! to both), the Python systems run between ours. Every figure is a time in seconds or a ratio of two of the same run.

mod checkpointing;
#[allow(dead_code)] // sampling has no part here
#[path = "../../examples/support/gpt.rs"]
mod gpt;
mod losses;
mod measure;
mod op;
mod optimiser;
mod packing;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use measure::{Common, Table};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Op,
    Losses,
    Pairs,
    Optimiser,
    Checkpoint,
}

/// Times side by side.
#[derive(Parser)]
struct Args {
    /// Which parts to run [default: all]
    parts: Vec<Part>,
    /// Lengths of real pairs, a line each: prompt, chosen, rejected, in tokens
    #[arg(long)]
    pairs_file: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

fn main() -> Result<()> {
    let args = Args::parse();
    args.common.begin()?;
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut table = Table::default();
    if wanted(Part::Op) {
        op::run(&mut table)?;
    }
    if wanted(Part::Losses) {
        losses::run(&mut table)?;
    }
    if wanted(Part::Pairs) {
        packing::run(&mut table, args.pairs_file.as_deref())?;
    }
    if wanted(Part::Optimiser) {
        optimiser::run(&mut table)?;
    }
    if wanted(Part::Checkpoint) {
        checkpointing::run(&mut table)?;
    }
    args.common.write(&table)
}
