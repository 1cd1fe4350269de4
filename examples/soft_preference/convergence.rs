//! Part 1: a table of responses under Bradley–Terry labels, and how far the policy is from softmax(r/α) as it trains.

use anyhow::Result;
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss,
    domain::MassPower,
    loss::{Dpo, PairWeight, Spo},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::support::network::{descend, indices, normal};

const RESPONSES: usize = 8;
/// Labels drawn in a step.
const LABELS: usize = 64;
const RATE: f64 = 0.05;
/// Steps between two points of a curve.
pub const EVERY: usize = 10;
/// SPO's α, and DPO's β beside it.
pub const ALPHAS: [f64; 2] = [0.5, 2.0];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Objective {
    Spo,
    /// μ = π(y_w) + π(y_l).
    SpoMass,
    Dpo,
}

impl Objective {
    fn loss(self, alpha: f64) -> prefopt::Result<Box<dyn PreferenceLoss>> {
        Ok(match self {
            Self::Spo => Box::new(Spo::new(alpha)?),
            Self::SpoMass => {
                Box::new(Spo::new(alpha)?.with_pair_weight(PairWeight::Mass { power: MassPower::new(1.0)? }))
            }
            Self::Dpo => Box::new(Dpo::new(alpha)?),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Labels {
    /// Every pair in both orders, in the shares in which it would be labelled so.
    Exact,
    /// New pairs with one label each in every step.
    Drawn,
}

/// One curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Line {
    pub name: &'static str,
    pub objective: Objective,
    pub labels: Labels,
}

pub const LINES: [Line; 5] = [
    Line { name: "SPO, exact labels", objective: Objective::Spo, labels: Labels::Exact },
    Line { name: "SPO by mass, exact labels", objective: Objective::SpoMass, labels: Labels::Exact },
    Line { name: "SPO, drawn labels", objective: Objective::Spo, labels: Labels::Drawn },
    Line { name: "SPO by mass, drawn labels", objective: Objective::SpoMass, labels: Labels::Drawn },
    Line { name: "DPO, exact labels", objective: Objective::Dpo, labels: Labels::Exact },
];

#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub line: Line,
    pub alpha: f64,
    pub seed: u64,
}

/// Total variation to softmax(r/α) at step 0 and after every [`EVERY`] steps.
pub fn curve(job: &Job, steps: usize) -> Result<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(job.seed);
    let rewards = normal(&mut rng, RESPONSES);
    let aim = (Tensor::from_slice(&rewards) / job.alpha).softmax(-1, Kind::Double);
    let reference = Tensor::from_slice(&normal(&mut rng, RESPONSES)).log_softmax(-1, Kind::Double);
    let logits = reference.copy().set_requires_grad(true);
    let distance = || {
        let _no_grad = tch::no_grad_guard();
        0.5 * (logits.softmax(-1, Kind::Double) - &aim).abs().sum(Kind::Double).double_value(&[])
    };
    let loss = job.line.objective.loss(job.alpha)?;
    let mut curve = Vec::new();
    descend(vec![logits.shallow_clone()], steps, RATE, |step| {
        if step.is_multiple_of(EVERY) {
            curve.push(distance());
        }
        let pairs = match job.line.labels {
            Labels::Exact => Pairs::every(&rewards),
            Labels::Drawn => Pairs::drawn(&rewards, &mut rng),
        };
        Ok(loss.mean(&pairs.batch(&logits.log_softmax(-1, Kind::Double), &reference)?)?)
    })?;
    curve.push(distance());
    Ok(curve)
}

/// Indices of responses, and what each pair counts for.
#[derive(Debug, Default)]
struct Pairs {
    chosen: Vec<usize>,
    rejected: Vec<usize>,
    weights: Vec<f64>,
}

impl Pairs {
    fn push(&mut self, chosen: usize, rejected: usize, weight: f64) {
        self.chosen.push(chosen);
        self.rejected.push(rejected);
        self.weights.push(weight);
    }

    fn every(rewards: &[f64]) -> Self {
        let mut pairs = Self::default();
        for a in 0..RESPONSES {
            for b in (0..RESPONSES).filter(|&b| b != a) {
                pairs.push(a, b, preferred(rewards, a, b));
            }
        }
        pairs
    }

    fn drawn(rewards: &[f64], rng: &mut ChaCha8Rng) -> Self {
        let mut pairs = Self::default();
        for _ in 0..LABELS {
            let a = rng.random_range(0..RESPONSES);
            let b = (a + rng.random_range(1..RESPONSES)) % RESPONSES;
            let (chosen, rejected) = if rng.random::<f64>() < preferred(rewards, a, b) { (a, b) } else { (b, a) };
            pairs.push(chosen, rejected, 1.0);
        }
        pairs
    }

    fn batch(&self, policy: &Tensor, reference: &Tensor) -> prefopt::Result<PreferenceBatch> {
        let (chosen, rejected) = (indices(&self.chosen), indices(&self.rejected));
        let of = |table: &Tensor, side: &Tensor| table.index_select(0, side);
        let logps = PairLogps::new(
            of(policy, &chosen),
            of(policy, &rejected),
            of(reference, &chosen),
            of(reference, &rejected),
        )?;
        PreferenceBatch::new(logps).with_weights(Tensor::from_slice(&self.weights))
    }
}

/// Bradley–Terry: σ(r_a − r_b).
fn preferred(rewards: &[f64], a: usize, b: usize) -> f64 {
    1.0 / (1.0 + (rewards[b] - rewards[a]).exp())
}
