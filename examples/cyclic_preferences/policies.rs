//! Policies of a world: GPO, which plays against itself on a fitted model's scores, and the offline losses on the labelled pairs.

use anyhow::{Context, Result};
use ndarray::Array1;
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseTable, RewardScores,
    loss::{Dpo, Gpo, RewardDistillation, scores_against},
    population::SelfPlay,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    Size,
    models::{Model, TEMPERATURE},
    support::network::{Mlp, descend, indices, matrix, numbers, vector},
    world::{CANDIDATES, FEATURES, Game, Judged, World},
};

const HIDDEN: i64 = 16;
/// Learning rate of every policy.
const RATE: f64 = 0.02;
/// Responses sampled for each prompt in a round of self-play.
const SAMPLES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Method {
    /// GPO on the general model of two blocks.
    Gpo,
    /// The same on the scores of Bradley–Terry: r(y) − E r.
    GpoOnRewards,
    /// d-DPO from the Bradley–Terry model.
    Distillation,
    Dpo,
}

impl Method {
    pub const ALL: [Self; 4] = [Self::Gpo, Self::GpoOnRewards, Self::Distillation, Self::Dpo];

    /// The model whose scores it reads.
    pub fn model(self) -> Option<Model> {
        match self {
            Self::Gpo => Some(Model::General(2)),
            Self::GpoOnRewards | Self::Distillation => Some(Model::BradleyTerry),
            Self::Dpo => None,
        }
    }
}

/// One policy to tune.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub game: Game,
    pub seed: u64,
    pub method: Method,
    pub beta: f64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub game: Game,
    pub seed: u64,
    pub method: Method,
    pub beta: f64,
    /// The last policy and the mean of all, from the reference on, after each round; an offline method has one round, whose mean is the
    /// policy.
    pub rounds: Vec<[Judged; 2]>,
}

impl Outcome {
    /// Index 0: the last policy; 1: the mean.
    pub fn end(&self, iterate: usize) -> Option<Judged> {
        self.rounds.last().map(|round| round[iterate])
    }
}

/// Tunes and judges. `table` is the fitted model's, of the training prompts.
pub fn run(job: Job, table: Option<&[f64]>, size: &Size) -> Result<Outcome> {
    let Job { game, seed, method, beta } = job;
    let world = World::new(game, seed, size);
    let policy = Policy::new(&world)?;
    let table = table.context("the method reads a model's scores");
    let rounds = match method {
        Method::Gpo | Method::GpoOnRewards => policy.play(&world, table?, beta, size)?,
        Method::Distillation => {
            let margins = margins(&world, table?);
            policy.follow(&world, &RewardDistillation::new(beta)?, Some(&margins), size)?
        }
        Method::Dpo => policy.follow(&world, &Dpo::new(beta)?, None, size)?,
    };
    Ok(Outcome { game, seed, method, beta, rounds })
}

/// Where exact self-play on the true scores goes from the reference in as many rounds: what GPO would do without a model, samples or a
/// network.
pub fn exact(world: &World, beta: f64, rounds: usize) -> Result<[Judged; 2]> {
    let shares = world.test.shares(&world.test.reference(), world.kinds())?;
    let start = shares.iter().fold(Array1::<f64>::zeros(world.kinds()), |sum, share| sum + share) / shares.len() as f64;
    let mut play = SelfPlay::new(&world.scores * TEMPERATURE, start, beta)?;
    (0..rounds).for_each(|_| play.step());
    Ok([world.judge(&[play.policy()])?, world.judge(&[play.average()])?])
}

/// log π = log-softmax over the candidates of log π_ref + network: it starts at the reference.
struct Policy {
    network: Mlp,
    /// Features and log π_ref.
    train: [Tensor; 2],
    test: [Tensor; 2],
}

impl Policy {
    fn new(world: &World) -> Result<Self> {
        Ok(Self {
            network: Mlp::new(FEATURES, HIDDEN, 1, world.seed)?,
            train: [world.train.features(), world.train.reference()],
            test: [world.test.features(), world.test.reference()],
        })
    }

    /// log π, `[prompts, candidates]`.
    fn logps(&self, [features, reference]: &[Tensor; 2]) -> Tensor {
        let logits = self.network.forward(features).view([-1, CANDIDATES as i64]);
        (reference + logits).log_softmax(-1, Kind::Float)
    }

    fn shares(&self, world: &World) -> Result<Vec<Array1<f64>>> {
        let _no_grad = tch::no_grad_guard();
        world.test.shares(&self.logps(&self.test), world.kinds())
    }

    /// Rounds of GPO: sample the policy, score the samples against each other, regress.
    fn play(&self, world: &World, table: &[f64], beta: f64, size: &Size) -> Result<Vec<[Judged; 2]>> {
        let (candidates, samples) = (CANDIDATES as i64, SAMPLES as i64);
        let table = matrix(table, candidates).view([-1, candidates, candidates]);
        let mut rng = ChaCha8Rng::seed_from_u64(world.seed);
        let loss = Gpo::new(beta)?;
        let mut sum = self.shares(world)?;
        let mut rounds = Vec::new();
        for round in 1..=size.rounds {
            let current = {
                let _no_grad = tch::no_grad_guard();
                self.logps(&self.train)
            };
            let drawn = draw(&current, &mut rng)?;
            let rows = table.gather(1, &drawn.unsqueeze(2).expand([-1, samples, candidates], false), false);
            let pairs = rows.gather(2, &drawn.unsqueeze(1).expand([-1, samples, samples], false), false);
            let (scores, before) = (scores_against(&pairs)?, current.gather(1, &drawn, false));
            descend(self.network.parameters(), size.round_steps, RATE, |_| {
                let now = self.logps(&self.train).gather(1, &drawn, false);
                Ok(loss.mean(&ResponseTable::new(now, before.shallow_clone())?, &scores)?)
            })?;
            let shares = self.shares(world)?;
            sum.iter_mut().zip(&shares).for_each(|(sum, share)| *sum += share);
            let mean: Vec<Array1<f64>> = sum.iter().map(|sum| sum / (round + 1) as f64).collect();
            rounds.push([world.judge(&shares)?, world.judge(&mean)?]);
        }
        Ok(rounds)
    }

    /// As many steps on the labelled pairs.
    fn follow(
        &self,
        world: &World,
        loss: &dyn PreferenceLoss,
        margins: Option<&[f64]>,
        size: &Size,
    ) -> Result<Vec<[Judged; 2]>> {
        let (chosen, rejected) = (indices(&world.pairs.chosen), indices(&world.pairs.rejected));
        let of = |logps: &Tensor| {
            let flat = logps.flatten(0, -1);
            (flat.index_select(0, &chosen), flat.index_select(0, &rejected))
        };
        let (ref_chosen, ref_rejected) = of(&self.train[1]);
        descend(self.network.parameters(), size.rounds * size.round_steps, RATE, |_| {
            let (chosen, rejected) = of(&self.logps(&self.train));
            let logps = PairLogps::new(chosen, rejected, ref_chosen.shallow_clone(), ref_rejected.shallow_clone())?;
            let mut batch = PreferenceBatch::new(logps);
            if let Some(margins) = margins {
                let margins = vector(margins);
                batch = batch.with_rewards(RewardScores::single(&margins, &margins.zeros_like())?)?;
            }
            Ok(loss.mean(&batch)?)
        })?;
        let judged = world.judge(&self.shares(world)?)?;
        Ok(vec![[judged; 2]])
    }
}

/// Δr of each labelled pair, log-odds: a candidate's row of the table holds its scores against the candidates of its own prompt.
fn margins(world: &World, table: &[f64]) -> Vec<f64> {
    let pairs = world.pairs.chosen.iter().zip(&world.pairs.rejected);
    pairs.map(|(&chosen, &rejected)| table[chosen * CANDIDATES + rejected % CANDIDATES] / TEMPERATURE).collect()
}

/// Samples of each prompt's policy, `[prompts, SAMPLES]`, from log π, `[prompts, candidates]`.
fn draw(logps: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let mut drawn = Vec::new();
    for logps in numbers(logps)?.chunks(CANDIDATES) {
        for _ in 0..SAMPLES {
            let mut left: f64 = rng.random();
            let found = logps.iter().position(|logp| {
                left -= logp.exp();
                left < 0.0
            });
            drawn.push(found.unwrap_or(CANDIDATES - 1));
        }
    }
    Ok(indices(&drawn).view([-1, SAMPLES as i64]))
}
