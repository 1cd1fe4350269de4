//! Planted faults against the alarm that catches each, and how often alarms are false.
//!
//!     cargo run --release --example planted_faults -- [--seeds N] [--quick]
//!
//! The story GPT is tuned for 80 steps of 8 pairs by DPO, and once by d-DPO, at settings that work; in other runs one thing is wrong: the
//! mask, the columns, the reference, the learning rate, the labels, the data. All are watched by the same thresholds, the library's
//! defaults. Pairs are the reference's own continuations, labelled by Bradley–Terry on the gold reward. Besides the training batches a run
//! has what a careful user has: scores of three reward models (here the gold reward through noise), 160 held-out pairs measured every 20
//! steps, and 48 samples of the policy every 40. A healthy run that raises an alarm is a false alarm; a fault counts as caught if the first
//! alarm is one that names it, or if a typed error refuses it. What nothing can show is in the table too.
//!
//! Source: what users of other systems report, and Fisch et al. 2024, Razin et al. 2024 and Pal et al. 2024 on how DPO degenerates;
//! docs/alarms.md has the signals, thresholds and remedies.

mod figure;
mod plants;
mod report;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod world;

use anyhow::Result;
use clap::Parser;

use plants::Plant;
use report::Results;
use support::trial::Trial;
use world::World;

/// How much of everything.
pub struct Size {
    pub training: usize,
    pub held_out: usize,
    /// Openings from which the policy is sampled.
    pub prompts: usize,
    pub steps: usize,
    /// Steps between two evaluations; samples are drawn at every second one.
    pub every: usize,
}

const FULL: Size = Size { training: 320, held_out: 160, prompts: 48, steps: 80, every: 20 };
const QUICK: Size = Size { training: 32, held_out: 16, prompts: 4, steps: 6, every: 3 };

/// Planted faults, and the alarms that they raise.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (trial, size) = (&args.trial, args.trial.size(FULL, QUICK));
    let seeds = trial.seeds(8);
    let worlds = trial.run(&seeds, |&seed| World::new(&size, seed))?;
    // The rate of false alarms needs more runs than a fault that is there in all of them.
    let faulty = &worlds[..worlds.len().div_ceil(2)];
    let mut jobs = Vec::new();
    for plant in Plant::ALL {
        let worlds = if plant.is_healthy() { &worlds[..] } else { faulty };
        jobs.extend(worlds.iter().map(|world| (plant, world)));
    }
    let outcomes = trial.run(&jobs, |(plant, world)| run::run(world, *plant, &size))?;
    let results = Results { steps: size.steps, seeds, outcomes };
    trial.finish("planted_faults", &results.table(), &results, |path| figure::draw(&results, path))
}
