//! Preferences that run in circles: what a score cannot rank, a preference embedding can, and where self-play on it goes.
//!
//!     cargo run --release --example cyclic_preferences [-- --seeds N] [--quick] [--out FOLDER]
//!
//! Responses are of 3 to 7 kinds, and a kind beats another at true log-odds: cycles, a random tournament, a game with a Condorcet winner
//! who is not the Borda winner, and a transitive one where Bradley–Terry holds. A prompt has 8 candidates, seen as 6 noisy numbers of their
//! kind and 2 of the prompt that say nothing. Labels are drawn at the true odds for 30 pairs of each of 80 prompts.
//!
//! Bradley–Terry and general preference models (k = 1, 2, 3 blocks, unit embeddings, τ = .1) are fitted to the same labels by the same
//! steps on the same trunk, and compared on held-out prompts. From a reference that favours one kind a policy plays GPO on the model of two
//! blocks: 48 rounds of 16 samples and 10 steps. Its rivals get as many steps: GPO on the scores of Bradley–Terry, d-DPO from them, DPO on
//! the labels. The game is that of scores, as in the paper: exploitability is max_y E s(y≻π) in log-odds, and a Nash mixture is one of
//! exploitability 0.
//!
//! Learning rates (by log-loss, over all games) and β (by exploitability, for each game and each row of the table) are chosen from grids
//! that all methods share, on two seeds that are not the table's. GPO is judged by its last iterate and by the mean of all, each with its
//! own β.
//!
//! Source: Zhang et al. 2024, "Beyond Bradley–Terry models: a general preference model for language model alignment".

mod models;
mod policies;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::Parser;

use models::{Fitted, Model};
use policies::{Method, Outcome};
use report::{ROWS, Results, Row};
use support::trial::Trial;
use world::{Game, World};

/// Learning rates of every preference model.
const RATES: [f64; 2] = [0.01, 0.03];
/// β of every policy: units of s = .1 log-odds a nat for GPO, log-odds a nat for the others.
const BETAS: [f64; 4] = [0.1, 0.2, 0.4, 0.8];
/// Tuning has its own games, prompts and labels.
const TUNING_SEED: u64 = 1_000_000;

/// How much of everything.
#[derive(Debug)]
pub struct Size {
    pub prompts: usize,
    /// Labelled pairs of each prompt.
    pub pairs: usize,
    pub reward_steps: usize,
    pub rounds: usize,
    pub round_steps: usize,
}

const FULL: Size = Size { prompts: 80, pairs: 30, reward_steps: 150, rounds: 48, round_steps: 10 };
const QUICK: Size = Size { prompts: 12, pairs: 12, reward_steps: 40, rounds: 4, round_steps: 4 };

/// Tables of the chosen models, by game, seed and model.
type Tables = BTreeMap<(Game, u64, Model), Vec<f64>>;
/// β of each row of the table in each game.
pub type Betas = BTreeMap<(Game, Row), f64>;

/// Cyclic preferences: general preference models and self-play against Bradley–Terry.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    trial: Trial,
}

fn main() -> Result<()> {
    let Args { trial } = Args::parse();
    let size = trial.size(FULL, QUICK);
    let seeds = trial.seeds(6);
    let tuning: Vec<u64> = (0..trial.size(2, 1)).map(|seed| TUNING_SEED + seed).collect();

    let tried = fit(&trial, &tuning, |_| RATES.to_vec(), &size)?;
    let rates = rates(&tried)?;
    let fitted = fit(&trial, &seeds, |model| vec![rates[&model]], &size)?;
    let chosen = tried.into_iter().filter(|fit| fit.rate == rates[&fit.model]).chain(fitted.clone());
    let tables: Tables = chosen.map(|fit| ((fit.game, fit.seed, fit.model), fit.table)).collect();

    let tried = tune(&trial, &tuning, |_, _| BETAS.to_vec(), &tables, &size)?;
    let betas = betas(&tried)?;
    let outcomes = tune(&trial, &seeds, |game, method| of_method(&betas, game, method), &tables, &size)?;

    let results = Results::new(&seeds, fitted, outcomes, &betas, &size)?;
    trial.finish("cyclic_preferences", &results.table(), &results, |path| support::chart::draw(path, &results.panels()))
}

fn fit(trial: &Trial, seeds: &[u64], rates: impl Fn(Model) -> Vec<f64>, size: &Size) -> Result<Vec<Fitted>> {
    let mut jobs = Vec::new();
    for game in Game::ALL {
        for &seed in seeds {
            for model in Model::ALL {
                jobs.extend(rates(model).into_iter().map(|rate| models::Job { game, seed, model, rate }));
            }
        }
    }
    trial.run(&jobs, |&job| models::run(job, size))
}

fn tune(
    trial: &Trial,
    seeds: &[u64],
    betas: impl Fn(Game, Method) -> Vec<f64>,
    tables: &Tables,
    size: &Size,
) -> Result<Vec<Outcome>> {
    let mut jobs = Vec::new();
    for game in Game::PLAYED {
        for &seed in seeds {
            for method in Method::ALL {
                jobs.extend(betas(game, method).into_iter().map(|beta| policies::Job { game, seed, method, beta }));
            }
        }
    }
    trial.run(&jobs, |&job| {
        let table = job.method.model().and_then(|model| tables.get(&(job.game, job.seed, model)));
        policies::run(job, table.map(Vec::as_slice), size)
    })
}

/// The learning rate of smallest mean log-loss on held-out prompts, for each model.
fn rates(tried: &[Fitted]) -> Result<BTreeMap<Model, f64>> {
    let choose = |model: Model| -> Result<(Model, f64)> {
        let loss = |rate: f64| mean(tried.iter().filter(|f| f.model == model && f.rate == rate).map(|f| f.log_loss));
        Ok((model, least(&RATES, loss).context("no learning rate gave a finite loss")?))
    };
    Model::ALL.into_iter().map(choose).collect()
}

/// The β of smallest mean exploitability, for each row of the table in each game.
fn betas(tried: &[Outcome]) -> Result<Betas> {
    let mut betas = Betas::new();
    for game in Game::PLAYED {
        for row in ROWS {
            let gain = |beta: f64| {
                let of = tried.iter().filter(|o| o.game == game && o.method == row.method && o.beta == beta);
                mean(of.filter_map(|outcome| outcome.end(row.iterate)).map(|judged| judged.exploitability))
            };
            betas.insert((game, row), least(&BETAS, gain).context("no beta gave a finite exploitability")?);
        }
    }
    Ok(betas)
}

/// What a method has to run at, for all its rows.
fn of_method(betas: &Betas, game: Game, method: Method) -> Vec<f64> {
    let rows = ROWS.iter().filter(|row| row.method == method);
    let mut found: Vec<f64> = rows.map(|&row| betas[&(game, row)]).collect();
    found.sort_by(f64::total_cmp);
    found.dedup();
    found
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// The grid point of smallest value.
fn least(grid: &[f64], value: impl Fn(f64) -> f64) -> Option<f64> {
    let values = grid.iter().map(|&point| (point, value(point))).filter(|(_, value)| value.is_finite());
    values.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(point, _)| point)
}

/// Worlds of a game, for what needs no network.
fn worlds(game: Game, seeds: &[u64], size: &Size) -> impl Iterator<Item = World> {
    seeds.iter().map(move |&seed| World::new(game, seed, size))
}
