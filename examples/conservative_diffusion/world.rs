//! One seed: the pretrained model, the scored points and the networks that learned from them, as plain numbers that threads can share.

use anyhow::Result;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Size,
    reward::{RewardNetwork, Weights},
    support::{
        diffusion::{
            Denoiser, Form, Output,
            data::Rings,
            one_hot,
            schedule::{Schedule, Variance},
        },
        network::{indices, matrix, normal, vector},
    },
};

/// T of the schedule.
const STEPS: usize = 20;
const RINGS: Rings = Rings { conditions: 1, modes: 6, radius: 1.2, deviation: 0.2 };
const FORM: Form = Form { dims: 2, conditions: 1, hidden: 64, output: Output::Noise, bound: 3.0 };
/// No point with x₁ beyond it is scored, and the true reward leaves x₁ there.
const EDGE: f64 = 0.8;
/// How far beyond it the true reward has fallen by 1 − 1/e of the way to −1.
const FALL: f64 = 0.4;
/// Standard deviation of a score about the true reward.
const NOISE: f64 = 0.1;

/// The true reward at x₁: x₁ up to the edge, with a peak of .82 at .84, then down to −1.
pub fn gold(x: f64) -> f64 {
    let fallen = 1.0 - (-((x - EDGE).max(0.0) / FALL).powi(2)).exp();
    x * (1.0 - fallen) - fallen
}

#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pretrained: Weights,
    /// The network that is fitted on all scored points: r̂.
    pub reward: Weights,
    /// Networks on resamples.
    pub heads: Vec<Weights>,
    /// `[scored, 2]`, flattened.
    pub scored: Vec<f64>,
}

impl World {
    pub fn new(seed: u64, size: &Size) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let model = Denoiser::new(FORM, schedule()?, seed)?;
        let (points, condition) = (matrix(&RINGS.draw(&vec![0; size.data], &mut rng), 2), everywhere(size.data));
        model.fit(&points, &condition, size.pretraining, &mut rng)?;

        let scored = flank(size.scored, &mut rng);
        let noise = normal(&mut rng, size.scored);
        let scores: Vec<f64> = scored.chunks_exact(2).zip(noise).map(|(p, z)| gold(p[0]) + NOISE * z).collect();
        let (points, scores) = (matrix(&scored, 2), vector(&scores));
        let reward = RewardNetwork::fit(&points, &scores, size.reward_steps, seed)?;
        let heads = (1..=size.heads as u64).map(|head| {
            let drawn: Vec<usize> = (0..size.scored).map(|_| rng.random_range(0..size.scored)).collect();
            let rows = indices(&drawn);
            let (points, scores) = (points.index_select(0, &rows), scores.index_select(0, &rows));
            RewardNetwork::fit(&points, &scores, size.reward_steps, seed.wrapping_add(head << 32))
        });
        let heads = heads.collect::<Result<_>>()?;
        Ok(Self { seed, pretrained: model.weights()?, reward, heads, scored })
    }

    /// A copy of the pretrained model.
    pub fn denoiser(&self) -> Result<Denoiser> {
        Denoiser::with_weights(FORM, schedule()?, &self.pretrained)
    }
}

/// The one condition that there is, `[n, 1]`.
pub fn everywhere(n: usize) -> tch::Tensor {
    one_hot(&vec![0; n], 1)
}

/// With noise in every reverse step, for the chains' divergence to be finite.
fn schedule() -> Result<Schedule> {
    Ok(Schedule::cosine(STEPS)?.with_variance(Variance::Forward))
}

/// Points of the ring on the near side of the edge, `[n, 2]` flattened.
fn flank(n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut points = Vec::with_capacity(2 * n);
    while points.len() < 2 * n {
        let drawn = RINGS.draw(&[0; 64], rng);
        points.extend(drawn.chunks_exact(2).filter(|point| point[0] < EDGE).flatten());
    }
    points.truncate(2 * n);
    points
}
