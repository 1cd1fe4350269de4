//! Uncertainty-penalised DPO (Houliston et al. 2024, arXiv 2410.20187) in small: does a family's disagreement know which labels are
//! wrong, and does DPO that trusts uncertain pairs less get more gold reward, overall and where the members disagree?
//!
//!     cargo run --release --example uncertainty [-- --seeds N] [--quick] [--out FOLDER]
//!
//! A prompt has 12 candidate responses of two kinds; three of them are of a kind that the reference gives with probability .1, and
//! nothing learned on one kind says anything of the other. The gold reward is a random smooth function of a response's traits, of
//! its own for each kind, 2 nats wide. Each of 400 prompts has one pair of draws of the reference, labelled by Bradley–Terry and
//! then flipped at a rate that depends on the kind: most where data are scarce (the claim's setting), everywhere alike, or most
//! where data are plentiful; one label in ten in all. Six reward models on resamples of the pairs are the family; their scores,
//! centred by each member's mean under π_ref, give the uncertainty.
//!
//! DPO, the three forms of the penalty and three controls (the same weights dealt to pairs at random, weights from the annotators'
//! true noise, cDPO) each get nine settings and the same 60 steps over all pairs. Settings are chosen by gold reward on
//! worlds of their own seeds. The judge is the gold reward on 300 other prompts.

mod family;
mod methods;
mod policy;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod world;

use anyhow::{Context, Result};
use clap::Parser;

use family::{Check, Family};
use methods::{Method, Setting};
use policy::Outcome;
use report::{Results, Row, Setup};
use support::{chart, trial::Trial};
use world::{NOISES, World};

/// Tuning has its own worlds, pairs and labels.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    prompts: usize,
    held_out: usize,
    members: u64,
    reward_steps: usize,
    steps: usize,
    tuning_seeds: u64,
}

const FULL: Size = Size { prompts: 400, held_out: 300, members: 6, reward_steps: 60, steps: 60, tuning_seeds: 3 };
const QUICK: Size = Size { prompts: 80, held_out: 60, members: 3, reward_steps: 5, steps: 5, tuning_seeds: 1 };

/// Uncertainty-penalised DPO: penalties on what a family of reward models disagrees on.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

/// A world and its family.
struct Evidence {
    noise: usize,
    seed: u64,
    world: World,
    family: Family,
}

impl Evidence {
    fn gather(noise: usize, seed: u64, size: &Size) -> Result<Self> {
        let world = World::new(NOISES[noise], size.prompts, size.held_out, seed);
        let family = Family::learn(&world, size, seed)?;
        Ok(Self { noise, seed, world, family })
    }
}

/// One policy to train.
#[derive(Debug, Clone, Copy)]
struct Job {
    noise: usize,
    method: Method,
    setting: Setting,
    seed: u64,
}

impl Job {
    fn run(&self, evidence: &[Evidence], steps: usize) -> Result<Outcome> {
        let found = evidence.iter().find(|e| (e.noise, e.seed) == (self.noise, self.seed));
        let Evidence { world, family, .. } = found.context("every job has its world")?;
        let (loss, scores) = (self.method.loss(self.setting)?, self.method.scores(world, family, self.seed)?);
        let network = policy::train(&world.training, &scores, &*loss, steps, self.seed)?;
        policy::judge(&world.held_out, family, &network)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (size, seeds) = (args.trial.size(FULL, QUICK), args.trial.seeds(8));
    let tuning: Vec<u64> = (1..=size.tuning_seeds).map(|seed| TUNING_SEED + seed).collect();
    let mut worlds = vec![];
    for noise in 0..NOISES.len() {
        worlds.extend(tuning.iter().chain(&seeds).map(|&seed| (noise, seed)));
    }
    let evidence = args.trial.run(&worlds, |&(noise, seed)| Evidence::gather(noise, seed, &size))?;
    let run = |jobs: &[Job]| args.trial.run(jobs, |job| job.run(&evidence, size.steps));

    let candidates = jobs(&tuning, |_, method| Ok(method.settings()))?;
    let tried = run(&candidates)?;
    let best = |noise: usize, method: Method| chosen(&candidates, &tried, noise, method);
    let finals = jobs(&seeds, |noise, method| Ok(vec![best(noise, method)?]))?;
    let outcomes = run(&finals)?;

    let mut setups = vec![];
    for (noise, named) in NOISES.into_iter().enumerate() {
        let here = evidence.iter().filter(|e| e.noise == noise && seeds.contains(&e.seed));
        let checks = here.map(|e| Check::new(&e.world, &e.family)).collect::<Result<_>>()?;
        let row = |method: Method| -> Result<Row> {
            let of = finals.iter().zip(&outcomes).filter(|(job, _)| job.noise == noise && job.method == method);
            let outcomes = of.map(|(_, outcome)| *outcome).collect();
            Ok(Row { method, name: method.name(), setting: best(noise, method)?, outcomes })
        };
        let rows = Method::ALL.into_iter().map(row).collect::<Result<_>>()?;
        setups.push(Setup { noise: named, checks, rows });
    }
    let results = Results { seeds, setups };
    args.trial.finish("uncertainty", &results.table(), &results, |path| chart::draw(path, &results.panels()))
}

/// Every noise and method, at these settings and seeds.
fn jobs(seeds: &[u64], settings: impl Fn(usize, Method) -> Result<Vec<Setting>>) -> Result<Vec<Job>> {
    let mut jobs = vec![];
    for noise in 0..NOISES.len() {
        for method in Method::ALL {
            for setting in settings(noise, method)? {
                jobs.extend(seeds.iter().map(|&seed| Job { noise, method, setting, seed }));
            }
        }
    }
    Ok(jobs)
}

/// The setting of largest gold reward over the tuning worlds.
fn chosen(jobs: &[Job], outcomes: &[Outcome], noise: usize, method: Method) -> Result<Setting> {
    let total = |setting: &Setting| -> f64 {
        let mine = |job: &Job| job.noise == noise && job.method == method && job.setting == *setting;
        jobs.iter().zip(outcomes).filter(|(job, _)| mine(job)).map(|(_, outcome)| outcome.overall).sum()
    };
    let best = method.settings().into_iter().max_by(|a, b| total(a).total_cmp(&total(b)));
    best.context("every method has settings")
}
