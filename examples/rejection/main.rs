//! Rejection by density ratios (Soen et al. 2024) in small: does it beat Chow's rule under label noise, and does
//! abstaining on doubtful preference labels make a better policy?
//!
//!     cargo run --release --example rejection [-- --quick] [-- --seeds N]
//!
//! First, a classifier: six classes of three Gaussian clouds each in six dimensions, a small network, labels of
//! training and held-out rows flipped to another class at 0 or 25 %. Its temperature is fitted on the held-out rows.
//! Rules that accept 80 % are compared on **one** model by the clean test labels: density ratios of the entropy (KL,
//! several α), of 1 − max p, Chow's rule (calibrated 1 − max p) and a confidence threshold (the same at T = 1).
//!
//! Second, preference labels: bandits with 8 candidate responses a prompt, a nonlinear gold reward, Bradley–Terry
//! labels of which 25 % are flipped. Reward models are trained on one half of the prompts and judge the labels of the
//! other, so none judges what it was trained on (cross-fitting). 80 % of the pairs are kept by the loss of the given
//! label or by entropy, or all are weighted, before DPO; controls are DPO on all labels, cDPO told the true flip rate,
//! and distillation of the same judges. β of each method is chosen from one grid, and the judges' training time by
//! their held-out loss, on worlds that are not the test's. Every method has the same number of steps.
//!
//! Source: Soen, Husain, Schulz and Nguyen 2024, "Rejection via Learning Density Ratios", arXiv 2405.18686. The use on
//! preference labels is not theirs.

mod classify;
mod policies;
mod preferences;
mod report;
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context, Result};
use clap::Parser;

use policies::{BETAS, Method};
use preferences::Setting;
use report::Results;
use support::{chart, trial::Trial};

/// Share that every rule accepts.
pub const COVERAGE: f64 = 0.8;
/// Share of labels that are wrong, in the classifier's data.
pub const NOISES: [f64; 2] = [0.0, 0.25];
/// Steps of training for a reward model, one of which is chosen.
const REWARD_STEPS: [usize; 4] = [15, 30, 60, 120];
/// Tuning has worlds of its own.
const TUNING_SEED: u64 = 1_000_000;

/// Rejection by density ratios, of predictions and of preference labels.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

/// Reward models and labels of one world, to be made.
struct World {
    seed: u64,
    reward_steps: usize,
}

fn main() -> Result<()> {
    let trial = Args::parse().trial;
    let seeds = trial.seeds(8);

    let size = trial.size(classify::FULL, classify::QUICK);
    let jobs: Vec<_> = NOISES.iter().flat_map(|&noise| seeds.iter().map(move |&seed| (noise, seed))).collect();
    let classified = trial.run(&jobs, |&(noise, seed)| classify::run(noise, seed, &size))?;

    let size = trial.size(preferences::FULL, preferences::QUICK);
    let make = |world: &World| Setting::new(world.seed, world.reward_steps, &size);
    let tuning_seeds = || (0..trial.size(3, 1)).map(|seed| TUNING_SEED + seed);
    let worlds: Vec<World> = REWARD_STEPS
        .iter()
        .flat_map(|&reward_steps| tuning_seeds().map(move |seed| World { seed, reward_steps }))
        .collect();
    let mut judged = trial.run(&worlds, make)?;
    let reward_steps = least_loss(&judged)?;
    judged.retain(|setting| setting.reward_steps == reward_steps);

    let outcomes = tuned(&trial, &judged, &size)?;
    let chosen = Method::ALL.map(|method| best_beta(method, &outcomes));

    let worlds: Vec<World> = seeds.iter().map(|&seed| World { seed, reward_steps }).collect();
    let settings = trial.run(&worlds, make)?;
    let outcomes = tuned(&trial, &settings, &size)?;

    let results = Results::new(classified, reward_steps, &settings, chosen.to_vec(), outcomes)?;
    trial.finish("rejection", &results.table(), &results, |path| chart::draw(path, &results.panels()))
}

/// Every method with every β in every world.
fn tuned(trial: &Trial, settings: &[Setting], size: &preferences::Size) -> Result<Vec<policies::Outcome>> {
    let mut jobs = Vec::new();
    for setting in settings {
        jobs.extend(Method::ALL.iter().flat_map(|&method| BETAS.map(|beta| (setting, method, beta))));
    }
    trial.run(&jobs, |&(setting, method, beta)| policies::run(setting, method, beta, size.policy_steps))
}

/// The training time after which the judges' loss on the other half's (noisy) labels is least: no gold is looked at.
fn least_loss(judged: &[Setting]) -> Result<usize> {
    let mean = |steps: usize| {
        let losses: Vec<f64> = judged.iter().filter(|s| s.reward_steps == steps).map(|s| s.held_out_loss).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let best = REWARD_STEPS.into_iter().min_by(|&a, &b| mean(a).total_cmp(&mean(b)));
    best.context("there is no training time to choose from")
}

/// The β of largest mean gold reward.
fn best_beta(method: Method, outcomes: &[policies::Outcome]) -> (Method, f64) {
    let mean = |beta: f64| {
        let of: Vec<f64> = outcomes.iter().filter(|o| o.method == method && o.beta == beta).map(|o| o.gold).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    let best = BETAS.into_iter().max_by(|&a, &b| mean(a).total_cmp(&mean(b)));
    (method, best.unwrap_or(BETAS[0]))
}
