//! A batch as plain numbers, from which the crate's batch and the oracle's values are both made.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, PreferenceBatch, ResponseLengths, ResponseTable, Result, RewardScores,
    tch::{Device, Kind, Tensor},
};

use crate::oracle;

/// Responses in each row of the two tables.
const RESPONSES: usize = 3;

/// Numbers are multiples of 1/64, so that differences of log-probabilities are exact in f32 too and a test sees the loss's own error.
const QUANTUM: f64 = 64.0;

#[derive(Debug, Clone)]
pub struct Columns {
    pub chosen: Vec<f64>,
    pub rejected: Vec<f64>,
    pub ref_chosen: Vec<f64>,
    pub ref_rejected: Vec<f64>,
    /// `[members][batch]`.
    pub chosen_scores: Vec<Vec<f64>>,
    pub rejected_scores: Vec<Vec<f64>>,
    pub soft_labels: Vec<f64>,
    /// Σ w x / Σ w is used throughout, so that all ones is the case without weights.
    pub weights: Vec<f64>,
    /// `[batch][responses]`, policy then reference.
    pub samples: [Vec<Vec<f64>>; 2],
    pub all: [Vec<Vec<f64>>; 2],
    /// Scores of the policy's own reward head, chosen then rejected.
    pub student: [Vec<f64>; 2],
    /// Samples of the policy, `[batch][responses]`, policy then reference.
    pub own: [Vec<Vec<f64>>; 2],
    /// Tokens of the chosen and the rejected responses.
    pub lengths: [Vec<i64>; 2],
}

/// The crate's batch, and the leaves it was made of.
pub struct Built {
    pub batch: PreferenceBatch,
    /// In the order of [`Columns::policy`].
    pub policy: Vec<Tensor>,
    /// Everything that must stay without a gradient, by name.
    pub data: Vec<(&'static str, Tensor)>,
}

impl Columns {
    pub fn random(batch: usize, members: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |low: i32, high: i32, n: usize| -> Vec<f64> {
            (0..n).map(|_| f64::from(rng.random_range(low..high)) / QUANTUM).collect()
        };
        let mut table = |n: usize| [0, 1].map(|_| (0..n).map(|_| draw(-256, -8, RESPONSES)).collect::<Vec<_>>());
        let (samples, all) = (table(batch), table(batch));
        let mut scores = || (0..members).map(|_| draw(-192, 192, batch)).collect();
        let (chosen_scores, rejected_scores) = (scores(), scores());
        let [chosen, rejected, ref_chosen, ref_rejected] = [(); 4].map(|()| draw(-1280, -640, batch));
        let (soft_labels, weights) = (draw(0, 65, batch), draw(16, 128, batch));
        let student = [(); 2].map(|()| draw(-192, 192, batch));
        let own = [(); 2].map(|()| (0..batch).map(|_| draw(-256, -8, RESPONSES)).collect());
        // Powers of two: the quotients stay exact in f32.
        let lengths = [(); 2].map(|()| (0..batch).map(|_| 1 << rng.random_range(0..4)).collect());
        Self {
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            chosen_scores,
            rejected_scores,
            soft_labels,
            weights,
            samples,
            all,
            student,
            own,
            lengths,
        }
    }

    pub fn unweighted(self) -> Self {
        Self { weights: vec![1.0; self.chosen.len()], ..self }
    }

    /// With these log-ratio margins h, put into the chosen response.
    pub fn with_margins(self, margins: &[f64]) -> Self {
        let chosen = (0..margins.len())
            .map(|i| margins[i] + self.ref_chosen[i] + self.rejected[i] - self.ref_rejected[i])
            .collect();
        Self { chosen, ..self }
    }

    /// With the policy equal to the reference.
    pub fn at_reference(self) -> Self {
        Self {
            chosen: self.ref_chosen.clone(),
            rejected: self.ref_rejected.clone(),
            samples: [self.samples[1].clone(), self.samples[1].clone()],
            all: [self.all[1].clone(), self.all[1].clone()],
            own: [self.own[1].clone(), self.own[1].clone()],
            ..self
        }
    }

    /// With rewards whose margins are these, `[members][batch]`.
    pub fn with_reward_margins(self, margins: &[Vec<f64>]) -> Self {
        Self {
            chosen_scores: margins.to_vec(),
            rejected_scores: margins.iter().map(|m| vec![0.0; m.len()]).collect(),
            ..self
        }
    }

    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// h of each pair.
    pub fn h(&self) -> Vec<f64> {
        let log_ratio = |i: usize| (self.chosen[i] - self.ref_chosen[i]) - (self.rejected[i] - self.ref_rejected[i]);
        (0..self.len()).map(log_ratio).collect()
    }

    /// Δr, `[members][batch]`.
    pub fn reward_margins(&self) -> Vec<Vec<f64>> {
        let pairs = self.chosen_scores.iter().zip(&self.rejected_scores);
        pairs.map(|(c, r)| c.iter().zip(r).map(|(c, r)| c - r).collect()).collect()
    }

    /// Mean under the pair weights.
    pub fn mean(&self, values: &[f64]) -> f64 {
        oracle::weighted_mean(values, &self.weights)
    }

    /// Every number that the policy gives.
    pub fn policy(&mut self) -> Vec<&mut f64> {
        let tables = self.samples[0].iter_mut().chain(&mut self.all[0]).flatten();
        let [student_chosen, student_rejected] = &mut self.student;
        let own = student_chosen.iter_mut().chain(student_rejected).chain(self.own[0].iter_mut().flatten());
        self.chosen.iter_mut().chain(&mut self.rejected).chain(tables).chain(own).collect()
    }

    pub fn batch(&self) -> PreferenceBatch {
        self.build(Kind::Double, Device::Cpu).expect("random columns fit together").batch
    }

    /// Every leaf asks for a gradient, those of the reference and the rewards too: only the policy's may receive one.
    pub fn build(&self, kind: Kind, device: Device) -> Result<Built> {
        let leaf = |tensor: Tensor| tensor.to_kind(kind).to_device(device).set_requires_grad(true);
        let vector = |values: &[f64]| leaf(Tensor::from_slice(values));
        let matrix = |rows: &[Vec<f64>]| leaf(Tensor::from_slice2(rows));
        let policy = vec![
            vector(&self.chosen),
            vector(&self.rejected),
            matrix(&self.samples[0]),
            matrix(&self.all[0]),
            vector(&self.student[0]),
            vector(&self.student[1]),
            matrix(&self.own[0]),
        ];
        let data = vec![
            ("ref_chosen", vector(&self.ref_chosen)),
            ("ref_rejected", vector(&self.ref_rejected)),
            ("chosen_scores", matrix(&self.chosen_scores)),
            ("rejected_scores", matrix(&self.rejected_scores)),
            ("soft_labels", vector(&self.soft_labels)),
            ("weights", vector(&self.weights)),
            ("sampled reference", matrix(&self.samples[1])),
            ("whole reference", matrix(&self.all[1])),
            ("reference of own samples", matrix(&self.own[1])),
        ];
        let [chosen_lengths, rejected_lengths] =
            self.lengths.each_ref().map(|l| Tensor::from_slice(l).to_device(device));
        let (p, d) = (|i: usize| policy[i].shallow_clone(), |i: usize| data[i].1.shallow_clone());
        let batch = PreferenceBatch::new(PairLogps::new(p(0), p(1), d(0), d(1))?)
            .with_rewards(RewardScores::new(d(2), d(3))?)?
            .with_soft_labels(d(4))?
            .with_weights(d(5))?
            .with_reference_samples(ResponseTable::new(p(2), d(6))?)?
            .with_all_responses(ResponseTable::new(p(3), d(7))?)?
            .with_student_scores(RewardScores::single(&p(4), &p(5))?)?
            .with_policy_samples(ResponseTable::new(p(6), d(8))?)?
            .with_lengths(ResponseLengths::new(chosen_lengths, rejected_lengths)?)?;
        Ok(Built { batch, policy, data })
    }
}

/// Weighted batches of 1 to 6 pairs with families of these sizes.
pub fn columns(members: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Columns> {
    (1..7_usize, members, any::<u64>()).prop_map(|(batch, members, seed)| Columns::random(batch, members, seed))
}
