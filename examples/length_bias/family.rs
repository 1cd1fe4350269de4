//! The family of reward models: one for each length bias, each a copy of the reference with a scalar head.

use anyhow::Result;
use prefopt::{
    PairLogps, RewardScores,
    reward::{BradleyTerry, RewardBatch, RewardScorer, ScalarHead},
    train::{AdamW, AdamWConfig, Descent, RewardTrainer, Trainer, Warmup},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::{
    Size,
    support::stories::{self, ASSETS},
    tensors,
    world::{Pair, World},
};

const BATCH: usize = 32;
const LEARNING_RATE: f64 = 5e-4;

/// How good a reward model is, on pairs that it has not seen.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// Agreement with the annotator's labels.
    pub label_accuracy: f64,
    /// Agreement with the sign of the gold margin, ties of gold left out.
    pub gold_accuracy: f64,
    /// Standard deviation of its margins, units of reward.
    pub margin_std: f64,
    /// Correlation of its margin with the difference of lengths.
    pub length_correlation: f64,
}

/// One trained reward model: its margins of all pairs of the world, and its quality.
pub struct Member {
    pub chosen: Vec<f32>,
    pub rejected: Vec<f32>,
    pub quality: Quality,
}

/// Trains a reward model on some of the pairs and scores all of them.
pub fn train(world: &World, data: &[usize], size: &Size, seed: u64, device: Device) -> Result<Member> {
    tch::manual_seed(seed as i64);
    let (store, gpt) = stories::load(ASSETS.as_ref(), device)?;
    let head = ScalarHead::new(&(store.root() / "reward"), gpt.config.width);
    let scores = |pairs: &[&Pair]| -> prefopt::Result<RewardScores> {
        let [chosen, rejected] = tensors::last_hidden(&gpt, &tensors::row(pairs.iter().copied(), false, device)?)?;
        head.pair_scores(&chosen, &rejected)
    };
    let steps = (size.reward_epochs * data.len() / BATCH) as u64;
    let optimizer = AdamW::new(store.trainable_variables(), AdamWConfig::new((0.9, 0.999), 1e-8, 0.05)?)?;
    let descent = Descent::new(optimizer, LEARNING_RATE)?.with_schedule(Warmup::new(5).then_cosine(steps.max(6) + 1)?);
    let forward = |batch: &Vec<&Pair>| Ok(RewardBatch::new(scores(batch)?));
    let mut trainer = RewardTrainer::new(BradleyTerry::new(0.001)?, forward, descent);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order = data.to_vec();
    for _ in 0..size.reward_epochs {
        order.shuffle(&mut rng);
        let batches = order.chunks_exact(BATCH).map(|b| b.iter().map(|&i| &world.pairs[i]).collect());
        trainer.fit(batches, &mut [])?;
    }

    let _no_grad = tch::no_grad_guard();
    let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
    for chunk in world.pairs.chunks(256) {
        let scores = scores(&chunk.iter().collect::<Vec<_>>())?;
        chosen.extend(Vec::<f32>::try_from(scores.chosen().flatten(0, -1))?);
        rejected.extend(Vec::<f32>::try_from(scores.rejected().flatten(0, -1))?);
    }
    let quality = quality(world, &chosen, &rejected);
    Ok(Member { chosen, rejected, quality })
}

fn quality(world: &World, chosen: &[f32], rejected: &[f32]) -> Quality {
    let margins: Vec<(f64, &Pair)> =
        world.held_out.iter().map(|&i| (f64::from(chosen[i] - rejected[i]), &world.pairs[i])).collect();
    let share = |hits: &[bool]| hits.iter().filter(|&&hit| hit).count() as f64 / hits.len().max(1) as f64;
    let labels: Vec<bool> = margins.iter().map(|(m, _)| *m > 0.0).collect();
    let golds: Vec<bool> =
        margins.iter().filter(|(_, p)| p.gold_margin != 0.0).map(|(m, p)| m * p.gold_margin > 0.0).collect();
    let lengths: Vec<f64> = margins.iter().map(|(_, p)| p.chosen.len() as f64 - p.rejected.len() as f64).collect();
    let margins: Vec<f64> = margins.into_iter().map(|(m, _)| m).collect();
    Quality {
        label_accuracy: share(&labels),
        gold_accuracy: share(&golds),
        margin_std: moment(&margins, &margins).sqrt(),
        length_correlation: moment(&margins, &lengths)
            / (moment(&margins, &margins) * moment(&lengths, &lengths)).sqrt(),
    }
}

/// Population covariance.
fn moment(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    a.iter().zip(b).map(|(x, y)| (x - mean_a) * (y - mean_b)).sum::<f64>() / n
}

/// The family's scores of all pairs of the world, `[members, pairs]`.
pub fn scores(members: &[&Member], device: Device) -> prefopt::Result<RewardScores> {
    let stack = |side: fn(&Member) -> &Vec<f32>| {
        let rows: Vec<Tensor> = members.iter().map(|m| Tensor::from_slice(side(m))).collect();
        Tensor::stack(&rows, 0).to(device)
    };
    RewardScores::new(stack(|m| &m.chosen), stack(|m| &m.rejected))
}

/// Log-probabilities of all pairs of the world under the reference, computed once: chosen, rejected, third sample.
pub fn reference_logps(world: &World, device: Device) -> Result<[Vec<f32>; 3]> {
    let _no_grad = tch::no_grad_guard();
    let (_store, gpt) = stories::load(ASSETS.as_ref(), device)?;
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    for chunk in world.pairs.chunks(256) {
        let logps = tensors::logps(&gpt, &tensors::row(chunk, true, device)?, true)?;
        for (column, logps) in columns.iter_mut().zip(logps) {
            column.extend(Vec::<f32>::try_from(logps.to_kind(Kind::Float))?);
        }
    }
    Ok(columns)
}

/// Policy log-probabilities against the cached reference.
pub fn against(
    reference: &[Vec<f32>; 3],
    pairs: &[usize],
    chosen: Tensor,
    rejected: Tensor,
) -> prefopt::Result<PairLogps> {
    let device = chosen.device();
    PairLogps::new(chosen, rejected, column(&reference[0], pairs, device), column(&reference[1], pairs, device))
}

/// Some rows of a cached column, `[pairs]`.
pub fn column(values: &[f32], pairs: &[usize], device: Device) -> Tensor {
    Tensor::from_slice(&pairs.iter().map(|&i| values[i]).collect::<Vec<_>>()).to(device)
}
