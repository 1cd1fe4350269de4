//! Soft preference optimization (Sharifnassab et al. 2024) in small: does it end at softmax(r/α), and does it stay near the reference
//! where there are no pairs?
//!
//!     cargo run --release --example soft_preference [-- --quick]
//!
//! Part 1. One prompt, eight responses, Bradley–Terry labels of a reward r: a table of logits that starts at a reference is trained by the
//! contrastive term alone (λ = 0), with equal weights and by mass, on the exact shares of labels and on drawn ones. DPO with β = α beside it.
//!
//! Part 2. A prompt and a response are four numbers each; gold reward and reference are smooth random functions of both, and there are 16
//! responses to a prompt. 64 training prompts lie in one region and have eight labelled pairs each; the shifted prompts lie in another. A
//! policy is the reference plus a network that all prompts share, so what it learns in one region moves it in the other. Compared are DPO
//! and SPO without a divergence, with λ·KL(π ‖ π_ref) at the pairs' prompts, and with it at unlabelled prompts of both regions ("wide"),
//! exactly and from eight on-policy samples a prompt that are drawn anew every ten steps. Every family has a grid of twelve points and the
//! same number of steps. Two choices are made on seeds of their own: the most gain in gold reward, and the least drift, that is KL on
//! shifted prompts, among points that keep 90 % of the best gain. The table is of other seeds, with other rewards, prompts and labels.
//!
//! Source: Sharifnassab, Salehkaleybar, Ghiassian, Kanoria and Schuurmans 2024, "Soft Preference Optimization: Aligning Language Models to
//! Expert Distributions", arXiv 2405.00747; a bandit stands for their language models.

mod convergence;
mod policy;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod tuning;
mod world;

use anyhow::Result;
use clap::Parser;

use report::{Curve, Report, entries};
use support::{chart, trial::Trial};
use tuning::Tuned;

/// Tuning has its own rewards, prompts and labels.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything in part 2.
pub struct Size {
    pub prompts: usize,
    /// Labelled pairs of each training prompt.
    pub pairs: usize,
    pub unlabelled: usize,
    /// Prompts of each region that a policy is judged on.
    pub judged: usize,
    pub steps: usize,
    /// Steps for which on-policy samples are kept.
    pub refresh: usize,
}

/// Soft preference optimization: where it ends, and what keeps it near the reference.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
    /// Steps for which on-policy samples are kept
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    refresh: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let trial = &args.trial;
    let size = Size {
        prompts: trial.size(64, 16),
        pairs: 8,
        unlabelled: trial.size(64, 16),
        judged: trial.size(128, 16),
        steps: trial.size(150, 20),
        refresh: args.refresh as usize,
    };
    let seeds = trial.seeds(8);
    let report = Report {
        curves: curves(trial, &seeds, trial.size(400, 40))?,
        tuned: tune(trial, &size)?,
        rows: Vec::new(),
        refresh: size.refresh,
    };
    let report = judge(trial, &size, &seeds, report)?;
    let table = report.table()?;
    trial.finish("soft_preference", &table, &report, |path| chart::draw(path, &report.panels()))
}

fn curves(trial: &Trial, seeds: &[u64], steps: usize) -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    for alpha in convergence::ALPHAS {
        for line in convergence::LINES {
            let jobs: Vec<_> = seeds.iter().map(|&seed| convergence::Job { line, alpha, seed }).collect();
            let distances = trial.run(&jobs, |job| convergence::curve(job, steps))?;
            curves.push(Curve { line, alpha, distances });
        }
    }
    Ok(curves)
}

/// Every point of every grid, with its means over the tuning seeds.
fn tune(trial: &Trial, size: &Size) -> Result<Vec<Tuned>> {
    let settings = tuning::grids(trial.size(1, 6));
    let seeds: Vec<u64> = (0..trial.size(3, 1)).map(|seed| TUNING_SEED + seed).collect();
    let jobs: Vec<_> =
        settings.iter().flat_map(|&setting| seeds.iter().map(move |&seed| policy::Job { setting, seed })).collect();
    let outcomes = trial.run(&jobs, |job| policy::train(job, size))?;
    Ok(settings.iter().zip(outcomes.chunks(seeds.len())).map(|(&setting, o)| Tuned::new(setting, o)).collect())
}

/// The chosen points on the test seeds.
fn judge(trial: &Trial, size: &Size, seeds: &[u64], report: Report) -> Result<Report> {
    let rows = entries().into_iter().map(|entry| entry.row(&report.tuned)).collect::<Result<Vec<_>>>()?;
    let jobs: Vec<_> =
        rows.iter().flat_map(|row| seeds.iter().map(move |&seed| policy::Job { setting: row.setting, seed })).collect();
    let outcomes = trial.run(&jobs, |job| policy::train(job, size))?;
    let judged = rows.into_iter().zip(outcomes.chunks(seeds.len()));
    let rows = judged.map(|(row, outcomes)| report::Row { outcomes: outcomes.to_vec(), ..row }).collect();
    Ok(Report { rows, ..report })
}
