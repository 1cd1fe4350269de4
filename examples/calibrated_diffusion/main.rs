//! CaPO in small: do several rewards of different scale improve together under calibrated rewards, where their raw sum trades one
//! off for another?
//!
//!     cargo run --release --example calibrated_diffusion [-- --seeds N] [-- --quick]
//!
//! Setting:
//! - Data: three conditions, each a ring of six normal modes in the plane and one in its middle. A diffusion model (ε-prediction,
//!   an MLP, 50 steps of a cosine schedule) learns them.
//! - Three judges: minus the distance to a judge's favourite place, times 10, 1 and .3. The places lie on three sides of the
//!   ring: what pleases one judge displeases two, and the middle is a compromise.
//! - Pairs: 16 samples of the pretrained model for each of 192 prompts; by raw sum, standardised sum (a control), calibrated sum
//!   with T = 1 in units of reward and with T = 1 deviation of the judge, and from the Pareto frontier.
//! - Tuning: from the pretrained model by distillation of the score that made the pairs (CaPO's loss, where that is calibrated),
//!   equal budgets; the calibrated pairs also by DPO, IPO and e-DPO through the same denoising log-probabilities. Scores have
//!   unit deviation, so that one grid of β serves all; β by the mean gain over the judges, on seeds that are not the test's.
//! - Judged: each reward's gain over the pretrained model in its standard deviations there, and log p(sample) under the data.
//! - Beside it, one seed and one β: images of 8 × 8 with two rewards, brightness (× 20) and symmetry, drawn before and after.
//!
//! Source: Lee et al. 2025, "Calibrated Multi-Preference Optimization for Aligning Diffusion Models".

mod figure;
mod gallery;
mod methods;
mod pool;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod tuning;
mod world;

use anyhow::Result;
use clap::Parser;

use gallery::Gallery;
use methods::Method;
use report::{Outcome, Results};
use support::{diffusion::Fit, trial::Trial};
use tuning::Tuning;
use world::World;

/// β of every loss (τ of IPO).
const BETAS: [f64; 4] = [4.0, 8.0, 16.0, 32.0];
/// Tuning has its own data, pretrained models and pairs.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Points that the pretrained model sees.
    pub data: usize,
    pub pretraining: Fit,
    pub prompts: usize,
    pub tuning: Tuning,
    /// Samples that a model is judged on.
    pub judged: usize,
    /// Worlds that β is chosen on.
    pub tuning_worlds: u64,
    pub images: Fit,
}

const FULL: Size = Size {
    data: 4096,
    pretraining: Fit { steps: 2500, batch: 256, rate: 3e-3 },
    prompts: 192,
    tuning: Tuning { steps: 300, pairs: 96, rate: 1e-3 },
    judged: 1800,
    tuning_worlds: 2,
    images: Fit { steps: 3000, batch: 128, rate: 2e-3 },
};

const QUICK: Size = Size {
    data: 512,
    pretraining: Fit { steps: 100, batch: 128, rate: 3e-3 },
    prompts: 24,
    tuning: Tuning { steps: 10, pairs: 16, rate: 1e-3 },
    judged: 90,
    tuning_worlds: 1,
    images: Fit { steps: 40, batch: 64, rate: 2e-3 },
};

/// Calibrated rewards and Pareto fronts for a diffusion model with competing judges.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

/// One model to tune.
struct Job<'a> {
    world: &'a World,
    method: Method,
    beta: f64,
}

fn main() -> Result<()> {
    let trial = Args::parse().trial;
    tch::set_num_threads(1);
    let size = trial.size(FULL, QUICK);
    let betas = trial.size(&BETAS[..], &BETAS[1..2]);
    let tests = trial.seeds(6);
    let own: Vec<u64> = (0..size.tuning_worlds).map(|i| TUNING_SEED + i).collect();
    let seeds = [own.as_slice(), tests.as_slice()].concat();
    let (worlds, gallery) = rayon::join(|| trial.run(&seeds, |&seed| World::new(seed, &size)), || Gallery::new(&size));
    let (worlds, mut gallery) = (worlds?, gallery?);
    let (own, tests) = worlds.split_at(own.len());

    let all = |_: Method| betas.to_vec();
    let tried = trial.run(&jobs(own, all), |job| run(job, &size))?;
    let chosen = report::best(&tried, betas);
    let of_method = |method: Method| if method.selects() { betas.to_vec() } else { vec![chosen[method.name()]] };
    let outcomes = trial.run(&jobs(tests, of_method), |job| run(job, &size))?;
    gallery.tune(&trial, &size)?;

    let results = Results::new(betas, chosen, tests, outcomes, gallery);
    trial.finish("calibrated_diffusion", &results.table(), &results, |path| figure::draw(&results, path))
}

fn jobs(worlds: &[World], betas: impl Fn(Method) -> Vec<f64>) -> Vec<Job<'_>> {
    let mut jobs = Vec::new();
    for world in worlds {
        for method in Method::ALL {
            jobs.extend(betas(method).into_iter().map(|beta| Job { world, method, beta }));
        }
    }
    jobs
}

fn run(job: &Job, size: &Size) -> Result<Outcome> {
    let &Job { world, method, beta } = job;
    let tuned = tuning::tune(&world.pretrained, &world.pool, method, beta, size.tuning, world.seed)?;
    let after = world::judge(&tuned, size.judged, world.seed)?;
    Ok(Outcome {
        method,
        seed: world.seed,
        beta,
        gains: world.before.marks.gains(&after.marks),
        density: after.density - world.before.density,
        shown: after.shown,
    })
}
