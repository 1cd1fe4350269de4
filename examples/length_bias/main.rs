//! The length-bias experiment of Fisch et al. 2024 in small: does distillation from a pessimistic family of reward models
//! withstand annotators who like long, or short, answers?
//!
//!     cargo xtask demo [--seeds N] [--quick] [--device cuda]
//!
//! A small GPT continues openings of short stories. An annotator prefers the more cheerful of two continuations, and the pairs are
//! resampled so that the preferred one is the longer with probability ρ. For each ρ a reward model is learned, and policies are
//! tuned by each method from the same reference with the same budget. The judge is the cheerfulness of each policy's own samples.

mod family;
mod figure;
mod methods;
mod policy;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod tensors;
mod world;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::ProgressBar;
use rayon::prelude::*;
use tch::Device;

use methods::Method;
use policy::{Job, Openings, Outcome, Setting};
use report::Results;
use support::{
    progress,
    stories::{self, ASSETS},
};
use world::World;

/// Probabilities that the preferred response is the longer one.
const RHOS: [f64; 5] = [0.2, 0.35, 0.5, 0.65, 0.8];
/// Every method is tuned over the same β (τ for IPO).
const BETAS: [f64; 4] = [0.05, 0.1, 0.2, 0.4];
/// What the progress bar counts.
const UNIT: &str = "models";
/// Tuning has its own data, pairs and labels.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything.
pub struct Size {
    /// Openings from which pairs are sampled.
    pub pool: usize,
    /// Pairs for each ρ.
    pub pairs: usize,
    pub epochs: usize,
    pub reward_epochs: usize,
    /// Openings that a policy is judged on.
    pub judged: usize,
}

const FULL: Size = Size { pool: 2800, pairs: 800, epochs: 1, reward_epochs: 3, judged: 192 };
const QUICK: Size = Size { pool: 320, pairs: 64, epochs: 1, reward_epochs: 1, judged: 16 };

/// The length-bias experiment: robust preference optimization against biased annotators.
#[derive(Parser)]
struct Args {
    /// Independent repetitions: data, labels, reward models and policies
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// A small form of everything, under a minute: checks that it runs, shows nothing
    #[arg(long)]
    quick: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = support::device)]
    device: Device,
    /// Folder of table.txt, results.json, samples.txt, length_bias.png and .svg
    #[arg(long, default_value = "runs/length_bias")]
    out: PathBuf,
    /// Weight γ of the forward divergence in p-DPO, dp-DPO and e-DPO
    #[arg(long, default_value_t = 0.01)]
    gamma: f64,
    /// One β (τ for IPO) for every method, in place of the chosen ones
    #[arg(long, conflicts_with = "tune")]
    beta: Option<f64>,
    /// Passes over the pairs for each policy [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    epochs: Option<u16>,
    /// Passes over the pairs for each reward model [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    reward_epochs: Option<u16>,
    /// Some of the methods, by their names in the table and separated by semicolons [default: all]
    #[arg(long, value_delimiter = ';', value_parser = method)]
    methods: Vec<Method>,
    /// Choose β for every method on openings that are not the test's, and write betas.json instead of the table
    #[arg(long)]
    tune: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    let mut size = if args.quick { QUICK } else { FULL };
    size.epochs = args.epochs.map_or(size.epochs, usize::from);
    size.reward_epochs = args.reward_epochs.map_or(size.reward_epochs, usize::from);
    // Small products gain nothing from two threads; two policies at a time do.
    tch::set_num_threads(1);
    eprintln!("{}", prefopt::matmul::choose()?);
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    if args.tune {
        return tune(&args, &size);
    }
    let betas = betas()?;
    let all =
        jobs(args.gamma, |method| vec![args.beta.unwrap_or(betas[method.name()])], &[0, 1, 2, 3, 4], Openings::Test);
    let wanted = |job: &Job| args.methods.is_empty() || args.methods.contains(&job.method);
    let jobs: Vec<Job> = all.into_iter().filter(wanted).collect();
    let runs = args.seeds as usize * (RHOS.len() + jobs.len());
    let bar = progress(runs as u64)?;
    let mut results = Results::new(&RHOS, args.seeds);
    for seed in 1..=args.seeds {
        let setting = setting(seed, &size, args.device, &bar)?;
        results.add(&setting, args.device, tuned(&setting, &jobs, &size, args.device, &bar)?)?;
    }
    bar.finish_and_clear();
    let table = results.table();
    println!("{table}\n{}", results.samples());
    support::write(&args.out.join("table.txt"), &table)?;
    support::write(&args.out.join("samples.txt"), results.samples())?;
    support::write(&args.out.join("results.json"), serde_json::to_string_pretty(&results)?)?;
    figure::draw(&results, &args.out.join("length_bias"))?;
    println!(
        "{} s; table, samples, results.json and pictures are in {}",
        start.elapsed().as_secs(),
        args.out.display()
    );
    Ok(())
}

fn method(name: &str) -> Result<Method> {
    let names = || Method::ALL.map(Method::name).join("; ");
    let found = Method::ALL.into_iter().find(|method| method.name() == name);
    found.with_context(|| format!("there is no method {name:?}, only {}", names()))
}

fn progress(runs: u64) -> Result<ProgressBar> {
    progress::bar(runs, UNIT)
}

fn done(bar: &ProgressBar) {
    progress::done(bar, UNIT);
}

/// β of each method, chosen by `--tune`.
fn betas() -> Result<BTreeMap<String, f64>> {
    let path = format!("{ASSETS}/betas.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let betas: BTreeMap<String, f64> = serde_json::from_str(&text).with_context(|| format!("cannot read {path}"))?;
    for method in Method::ALL {
        betas.get(method.name()).with_context(|| format!("{path} has no beta for {}", method.name()))?;
    }
    Ok(betas)
}

fn jobs(gamma: f64, betas: impl Fn(Method) -> Vec<f64>, biases: &[usize], judged_on: Openings) -> Vec<Job> {
    let mut jobs = Vec::new();
    for method in Method::ALL {
        // The pooled data do not depend on ρ: one policy serves all.
        let biases = if method == Method::Pooled { &biases[..1] } else { biases };
        for &bias in biases {
            jobs.extend(betas(method).into_iter().map(|beta| Job { method, bias, beta, gamma, judged_on }));
        }
    }
    jobs
}

fn setting(seed: u64, size: &Size, device: Device, bar: &ProgressBar) -> Result<Setting> {
    bar.set_message(format!("seed {seed}: sampling pairs"));
    bar.tick();
    let (_store, reference) = stories::load(ASSETS.as_ref(), device)?;
    let world = World::new(&reference, &RHOS, size, seed, device)?;
    let reference = family::reference_logps(&world, device)?;
    bar.set_message(format!("seed {seed}: reward models"));
    // Each member has its own data; the head starts at 0, so nothing else differs.
    let members = (0..RHOS.len()).into_par_iter().map(|i| {
        tch::set_num_threads(1);
        let member = family::train(&world, &world.biased[i], size, seed, device);
        done(bar);
        member
    });
    let members = members.collect::<Result<_>>()?;
    Ok(Setting { world, members, reference, seed })
}

fn tuned(setting: &Setting, jobs: &[Job], size: &Size, device: Device, bar: &ProgressBar) -> Result<Vec<Outcome>> {
    bar.set_message(format!("seed {}: policies", setting.seed));
    let outcomes = jobs.par_iter().map(|&job| {
        tch::set_num_threads(1);
        let outcome = policy::run(setting, job, size, device);
        done(bar);
        outcome
    });
    outcomes.collect()
}

/// β of largest mean gold reward over the two most biased data sets, on the openings for tuning.
fn tune(args: &Args, size: &Size) -> Result<()> {
    let jobs = jobs(args.gamma, |_| BETAS.to_vec(), &[0, RHOS.len() - 1], Openings::Tuning);
    let bar = progress((args.seeds as usize * (RHOS.len() + jobs.len())) as u64)?;
    let mut gold: BTreeMap<(Method, usize), Vec<f64>> = BTreeMap::new();
    for seed in 0..args.seeds {
        let setting = setting(TUNING_SEED + seed, size, args.device, &bar)?;
        for outcome in tuned(&setting, &jobs, size, args.device, &bar)? {
            let index = BETAS.iter().position(|&beta| beta == outcome.beta).context("a beta outside the grid")?;
            gold.entry((outcome.method, index)).or_default().push(outcome.gold);
        }
    }
    bar.finish_and_clear();
    let mut betas = BTreeMap::new();
    for method in Method::ALL {
        let mean = |index| gold[&(method, index)].iter().sum::<f64>() / gold[&(method, index)].len() as f64;
        let means: Vec<f64> = (0..BETAS.len()).map(mean).collect();
        let best = (0..BETAS.len()).max_by(|&a, &b| means[a].total_cmp(&means[b])).unwrap_or_default();
        println!("{:24} {}", method.name(), means.iter().map(|m| format!("{m:8.3}")).collect::<String>());
        betas.insert(method.name(), BETAS[best]);
    }
    println!("{:24} {}", "beta", BETAS.map(|b| format!("{b:8}")).concat());
    let path = args.out.join("betas.json");
    support::write(&path, serde_json::to_string_pretty(&betas)? + "\n")?;
    println!("chosen in {}", path.display());
    Ok(())
}
