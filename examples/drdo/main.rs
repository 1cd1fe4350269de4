//! DRDO of Nath et al. 2024 against DPO and e-DPO in small: near-indifferent annotators, and outputs that nobody has judged.
//!
//!     cargo run --release --example drdo -- [--seeds N] [--quick]
//!
//! A policy writes three tokens out of six, one after the other, so that expected rewards over all 216 strings are exact. A token's merit
//! depends on the prompt; a string's gold reward is the mean merit, in [-1, 1], but -2 if it repeats a token. The reference avoids
//! repetition (0.2 % of its strings) and is indifferent otherwise. Pairs are drawn from it and never show a repetition, so no reward model
//! hears of it. The better string wins with probability σ(Δgold), little more often than not. A policy is the reference's logits plus a
//! small network. All are trained by one optimiser for the same steps: DPO; e-DPO on a family of reward models of bootstrapped pairs; DRDO
//! on an oracle with the language-modelling term, its student head on the policy's last hidden state; and two controls, DRDO as printed and
//! the likelihood of the chosen response alone. Each is shown at its defaults over budgets, over its number (β, α), and tuned on worlds of
//! their own; the defaults also with decisive annotators.
//!
//! Source: Nath et al. 2024, "Simultaneous Reward Distillation and Preference Learning", arXiv 2410.08458.

mod methods;
mod models;
mod policy;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod world;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use methods::{DEFAULT, Method};
use models::Models;
use policy::Judged;
use report::Results;
use support::{chart, trial::Trial};
use world::World;

/// Annotators of the claim: σ(Δgold), near ½.
const INDIFFERENT: f64 = 1.0;
/// Annotators of the control, who see what differs.
const DECISIVE: f64 = 10.0;
/// Worlds on which numbers and budgets are chosen: none of the test's.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything.
pub struct Size {
    /// Prompts of the pairs.
    pub prompts: usize,
    pub pairs: usize,
    /// Prompts that a policy is judged on.
    pub judged: usize,
    /// Steps of each reward model.
    pub reward_steps: usize,
    /// Steps after which a policy is judged.
    pub budgets: &'static [usize],
}

const FULL: Size =
    Size { prompts: 16, pairs: 640, judged: 64, reward_steps: 80, budgets: &[25, 50, 100, 200, 400, 800] };
const QUICK: Size = Size { prompts: 4, pairs: 32, judged: 8, reward_steps: 5, budgets: &[5, 10] };

/// DRDO against DPO and e-DPO, with near-indifferent annotators and unseen bad outputs.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

/// What a world is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    Tuning,
    Test,
    /// The test's worlds with annotators who are sure.
    Decisive,
}

impl Use {
    fn sharpness(self) -> f64 {
        if self == Self::Decisive { DECISIVE } else { INDIFFERENT }
    }
}

/// A world and the reward models of its pairs.
pub struct Setting {
    pub purpose: Use,
    pub world: World,
    pub models: Models,
}

/// One policy to train.
struct Job {
    setting: usize,
    method: Method,
    /// Index into the method's numbers.
    number: usize,
}

/// One trained policy.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub purpose: Use,
    pub seed: u64,
    pub method: Method,
    pub number: usize,
    /// After each budget.
    pub judged: Vec<Judged>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let trial = &args.trial;
    let size = trial.size(FULL, QUICK);
    let tests = trial.seeds(5);
    let tuning = (0..trial.size(3, 1)).map(|i| (Use::Tuning, TUNING_SEED + i));
    let test =
        [Use::Test, Use::Decisive].into_iter().flat_map(|purpose| tests.iter().map(move |&seed| (purpose, seed)));
    let worlds: Vec<(Use, u64)> = tuning.chain(test).collect();
    let settings = trial.run(&worlds, |&(purpose, seed)| {
        let world = World::new(seed, purpose.sharpness(), &size)?;
        let models = Models::train(&world, &size)?;
        Ok(Setting { purpose, world, models })
    })?;

    let mut jobs = Vec::new();
    for (index, setting) in settings.iter().enumerate() {
        for method in Method::ALL {
            let numbers = match setting.purpose {
                Use::Decisive => DEFAULT..DEFAULT + 1,
                Use::Tuning if !method.is_tuned() => continue,
                Use::Tuning | Use::Test => method.numbers(),
            };
            jobs.extend(numbers.map(|number| Job { setting: index, method, number }));
        }
    }
    let outcomes = trial.run(&jobs, |job| {
        let setting = &settings[job.setting];
        let judged = policy::train(setting, job.method, job.number, size.budgets)?;
        Ok(Outcome {
            purpose: setting.purpose,
            seed: setting.world.seed,
            method: job.method,
            number: job.number,
            judged,
        })
    })?;

    let results = Results::new(&settings, outcomes, size.budgets);
    trial.finish("drdo", &results.table(), &results, |path| chart::draw(path, &results.panels()))
}
