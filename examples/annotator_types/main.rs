//! The claim of Chidambaram, Seetharaman and Syrgkanis 2024, "Direct preference optimization with unobserved preference heterogeneity", in small:
//! are latent types of annotators recovered from their votes by EM-DPO, and does a min-max regret mixture of the types' policies serve the
//! worst-off type better than one DPO policy?
//!
//!     cargo run --release --example annotator_types [-- --seeds N --quick]
//!     cargo run --release --example annotator_types -- --votes ../shared/preferences/pandalm_human3.jsonl
//!     cargo run --release --example annotator_types -- --large
//!
//! 48 prompts with 16 candidate responses each, described by numbers; 360 pairs of them; 240 annotators of three types (50, 30 and 20 %) with 4, 16 or
//! 32 votes each, drawn by Bradley–Terry from their type's reward. Two worlds: in one the types *oppose* each other (what one likes
//! another dislikes, linearly), in the other each has an ideal response and there are *compromises* between the three. A policy is a small network that
//! scores candidates; the reference is uniform. EM starts at k-means on each annotator's mean preferred feature, trains every type's policy
//! from the reference in each round, and the number of types, 1 to 4, is chosen by held-out votes. The regret of a type is its best candidate's
//! reward less what a policy's answer gives it, on new prompts; what is reported is the worst-off type's. β is tuned for the one DPO policy and
//! for the mixtures alike, on seeds that are not reported. `--votes` describes the annotators of a file of real votes instead, `--large` times
//! one E-step of 100,000 annotators.

mod ballots;
mod large;
mod learner;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use learner::{Outcome, run};
use report::Results;
use support::{chart, trial::Trial};
use world::{Size, Taste};

/// Votes of each annotator.
const VOTES: [usize; 3] = [4, 16, 32];
/// Where β is tuned, and what the closing sentences are about.
const MAIN: usize = 16;
/// The same for every method.
const BETAS: [f64; 3] = [0.25, 0.5, 1.0];
/// Tuning has its own prompts, annotators and votes.
const TUNING_SEED: u64 = 1_000_000;

const FULL: Size = Size { prompts: 48, new_prompts: 100, pairs: 360, annotators: 240, steps: 50, rounds: 5, most: 4 };
const QUICK: Size = Size { prompts: 12, new_prompts: 12, pairs: 60, annotators: 40, steps: 10, rounds: 2, most: 3 };

/// Annotator types: EM-DPO and min-max regret against one DPO policy.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
    /// Describe the annotators of a JSON Lines file of votes, and do nothing else
    #[arg(long)]
    votes: Option<PathBuf>,
    /// Time one E-step of 100,000 annotators with 20 votes each, and do nothing else
    #[arg(long, conflicts_with = "votes")]
    large: bool,
}

/// β of the one policy and of everything that EM-DPO makes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Betas {
    pub one: f64,
    pub mixture: f64,
}

/// One world, and what is learned in it.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub taste: Taste,
    pub votes: usize,
    pub seed: u64,
    pub betas: Betas,
}

fn main() -> Result<()> {
    let Args { trial, votes, large } = Args::parse();
    if let Some(path) = votes {
        println!("{}", ballots::describe(&path)?);
        return Ok(());
    }
    if large {
        println!("{}", large::time()?);
        return Ok(());
    }
    let size = trial.size(FULL, QUICK);
    let tuned = tune(&trial, &size)?;
    let mut jobs = Vec::new();
    for (taste, betas) in Taste::ALL.into_iter().zip(tuned) {
        for votes in VOTES {
            jobs.extend(trial.seeds(6).into_iter().map(|seed| Job { taste, votes, seed, betas }));
        }
    }
    let results = Results { betas: tuned, outcomes: trial.run(&jobs, |job| run(job, &size))? };
    trial.finish("annotator_types", &results.table(), &results, |path| chart::draw(path, &results.panels()))
}

/// β of each world, by the worst-off type's mean regret.
fn tune(trial: &Trial, size: &Size) -> Result<[Betas; 2]> {
    let seeds = trial.size(3, 1);
    let grid = trial.size(&BETAS[..], &BETAS[1..2]);
    let mut jobs = Vec::new();
    for taste in Taste::ALL {
        for &beta in grid {
            let job = |seed: u64| Job {
                taste,
                votes: MAIN,
                seed: TUNING_SEED + seed,
                betas: Betas { one: beta, mixture: beta },
            };
            jobs.extend((0..seeds).map(job));
        }
    }
    let outcomes = trial.run(&jobs, |job| run(job, size))?;
    let best = |taste: Taste, regret: fn(&Outcome) -> f64| {
        let mean =
            |beta: f64| outcomes.iter().filter(|o| o.taste == taste && o.betas.one == beta).map(regret).sum::<f64>();
        grid.iter().copied().min_by(|&a, &b| mean(a).total_cmp(&mean(b))).unwrap_or(BETAS[0])
    };
    let of = |taste| Betas { one: best(taste, Outcome::one_policy), mixture: best(taste, Outcome::min_max) };
    Ok(Taste::ALL.map(of))
}
