//! Tunes a copy of the pretrained model back through the last steps of its own chains, and judges it on the way.

use anyhow::Result;
use prefopt::diffusion::{ConservativeObjective, ReverseStep};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    methods::{Learned, Method},
    support::{
        diffusion::{Denoiser, gaussian, sampling},
        network::{descend, numbers},
    },
    world::{World, everywhere, gold},
};

/// The last steps of the chain, those that the gradient goes through.
const LAST: usize = 16;

/// The budget, the same for every method.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    pub steps: usize,
    pub batch: usize,
    pub rate: f64,
    /// Steps between two judgements.
    pub every: usize,
    /// Samples in each.
    pub judged: usize,
}

/// A policy at one step of its tuning, as means over its own samples.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    pub step: usize,
    /// r̂, whatever was optimised.
    pub learned: f64,
    pub gold: f64,
    /// Divergence of the chain to the pretrained model's, nats.
    pub divergence: f64,
}

/// A method in one world.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub method: Method,
    pub seed: u64,
    /// From the pretrained model on.
    pub path: Vec<Point>,
    /// Share of the pretrained model's samples with |r̂ − r| ≤ ĝ: the theorem's premise.
    pub covered: f64,
    /// x₁ and x₂ of samples before and after.
    #[serde(skip)]
    pub shown: [Vec<[f64; 2]>; 2],
}

struct Pair {
    policy: Denoiser,
    pretrained: Denoiser,
}

/// Every method of a seed draws from the same random numbers.
pub fn tune(world: &World, method: Method, tuning: Tuning) -> Result<Outcome> {
    let models = Pair { policy: world.denoiser()?, pretrained: world.denoiser()? };
    for weight in models.pretrained.parameters() {
        let _ = weight.set_requires_grad(false);
    }
    let learned = Learned::new(world, method.penalty)?;
    let objective = ConservativeObjective::new(method.kl_weight, LAST)?;
    let judge = |step: usize| -> Result<(Point, Tensor)> {
        let _no_grad = tch::no_grad_guard();
        let mut rng = ChaCha8Rng::seed_from_u64(world.seed.wrapping_add(1 << 40));
        let (sample, steps) = models.roll(tuning.judged, &mut rng);
        let mean = |values: &Tensor| values.mean(Kind::Double).double_value(&[]);
        let golds = golds(&sample)?;
        let point = Point {
            step,
            learned: mean(&learned.score(&sample)),
            gold: golds.iter().sum::<f64>() / golds.len() as f64,
            divergence: mean(&objective.divergence(&steps)?),
        };
        Ok((point, sample))
    };

    let (mut rng, mut path) = (ChaCha8Rng::seed_from_u64(world.seed.wrapping_add(2 << 40)), Vec::new());
    let (_, before) = judge(0)?;
    descend(models.policy.parameters(), tuning.steps, tuning.rate, |step| {
        if step.is_multiple_of(tuning.every) {
            path.push(judge(step)?.0);
        }
        let (sample, steps) = models.roll(tuning.batch, &mut rng);
        Ok(objective.mean(&learned.conservative(&sample)?, &steps)?)
    })?;
    let (point, after) = judge(tuning.steps)?;
    path.push(point);
    let covered = covered(&learned, &before)?;
    Ok(Outcome { method, seed: world.seed, path, covered, shown: [shown(&before)?, shown(&after)?] })
}

impl Pair {
    /// Samples of the tuned model, `[n, 2]`, and their last steps. The pretrained model takes the steps before, so that the divergence
    /// is the chain's.
    fn roll(&self, n: usize, rng: &mut ChaCha8Rng) -> (Tensor, Vec<ReverseStep>) {
        let condition = everywhere(n);
        let predict = |x: &Tensor, t: usize| {
            let model = if t <= LAST { &self.policy } else { &self.pretrained };
            model.bounded_noise(x, t, &condition)
        };
        let start = gaussian(n, 2, rng);
        let chain = sampling::chain(self.policy.schedule(), predict, start, LAST, rng);
        let steps = chain.steps.into_iter().map(|step| ReverseStep {
            pretrained_mean: self.pretrained.mean(&step.x, step.t, &condition),
            policy_mean: step.mean,
            sigma: step.sigma,
        });
        (chain.sample, steps.collect())
    }
}

fn golds(sample: &Tensor) -> Result<Vec<f64>> {
    Ok(numbers(sample)?.chunks_exact(2).map(|point| gold(point[0])).collect())
}

fn covered(learned: &Learned, sample: &Tensor) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let (scores, lowered) = (numbers(&learned.score(sample))?, numbers(&learned.conservative(sample)?)?);
    let golds = golds(sample)?;
    let within = (0..golds.len()).filter(|&i| (scores[i] - golds[i]).abs() <= scores[i] - lowered[i]).count();
    Ok(within as f64 / golds.len() as f64)
}

/// The first 250.
fn shown(sample: &Tensor) -> Result<Vec<[f64; 2]>> {
    Ok(numbers(sample)?.chunks_exact(2).take(250).map(|point| [point[0], point[1]]).collect())
}
