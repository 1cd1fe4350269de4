//! What a crowd thinks, not what it thinks on average: the distributional preference reward model of Li et al. 2024 in
//! small.
//!
//!     cargo run --release --example distributional [-- --quick] [--seeds N]
//!
//! Items have four features. The crowd that grades an item from 0 to 5 consists of two camps, one that dislikes it and
//! one that likes it: the share of the camps and what each thinks depend on the features. Of every training item 1, 2, 5,
//! 10, 20 or 50 votes are known; its label is the posterior mean of a Dirichlet–categorical model, whose prior is the
//! shares of all votes and weighs one vote. Heads on the same small network, with the same budget and the same grid of
//! learning rates, predict the distribution of items that they have not seen:
//!
//! - a softmax over the categories, trained by optimal transport, by the squared difference of the CDFs, or by cross-entropy,
//! - an ordered logit, P(vote ≤ d) = σ(θ_d − s): one score an item and thresholds that all items share, by its likelihood,
//! - transport and cross-entropy on the raw shares of votes in place of the posterior mean.
//!
//! Judged by the 1-Wasserstein distance of prediction and truth. The learning rate of each method at each number of votes
//! is chosen in worlds (tuning seeds) that the table does not know.
//!
//! Claim: transport comes nearer to the population than the ordered logit, whose one score cannot say how divided a crowd is.
//!
//! Source: Li et al. 2024, "Aligning crowd feedback via distributional preference reward modeling", arXiv 2402.09764.

mod heads;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::Parser;

use heads::{Job, Method, Outcome};
use report::Results;
use support::{chart, trial::Trial};

/// Votes for each training item.
const VOTES: &[usize] = &[1, 2, 5, 10, 20, 50];
const QUICK_VOTES: &[usize] = &[2, 10];
const RATES: [f64; 4] = [0.001, 0.003, 0.01, 0.03];
/// Tuning has its own worlds, items and votes.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Items with votes.
    pub items: usize,
    /// Items that heads are judged on.
    pub held_out: usize,
    pub steps: usize,
}

const FULL: Size = Size { items: 256, held_out: 400, steps: 200 };
const QUICK: Size = Size { items: 64, held_out: 64, steps: 30 };

/// Distributions over ordered categories from a few votes: transport, cross-entropy and an ordered logit.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

fn main() -> Result<()> {
    let Args { trial } = Args::parse();
    let size = trial.size(FULL, QUICK);
    let votes = trial.size(VOTES, QUICK_VOTES);
    let rates = tuned(&trial, size, votes)?;
    let mut jobs = Vec::new();
    for seed in trial.seeds(6) {
        jobs.extend(rates.iter().map(|(&(method, votes), &rate)| Job { method, votes, rate, seed }));
    }
    let outcomes = trial.run(&jobs, |job| heads::run(job, size))?;
    let results = Results::new(votes, outcomes, world::shown(jobs[0].seed, size));
    trial.finish("distributional", &results.table(), &results, |path| chart::draw(path, &results.panels()))
}

/// The learning rate of smallest mean distance over the tuning seeds, for each method and number of votes.
fn tuned(trial: &Trial, size: Size, votes: &[usize]) -> Result<BTreeMap<(Method, usize), f64>> {
    let mut jobs = Vec::new();
    for seed in (TUNING_SEED..).take(trial.size(2, 1)) {
        for method in Method::ALL {
            for &votes in votes {
                jobs.extend(RATES.map(|rate| Job { method, votes, rate, seed }));
            }
        }
    }
    let outcomes = trial.run(&jobs, |job| heads::run(job, size))?;
    let distance = |method: Method, votes: usize, rate: f64| -> f64 {
        let of = |outcome: &&Outcome| (outcome.method, outcome.votes, outcome.rate) == (method, votes, rate);
        outcomes.iter().filter(of).map(|outcome| outcome.distance).sum()
    };
    let mut rates = BTreeMap::new();
    for method in Method::ALL {
        for &votes in votes {
            let best =
                RATES.into_iter().min_by(|&a, &b| distance(method, votes, a).total_cmp(&distance(method, votes, b)));
            rates.insert((method, votes), best.context("the grid of learning rates is empty")?);
        }
    }
    Ok(rates)
}
