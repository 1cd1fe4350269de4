//! A family's batch in plain numbers, beside the crate's.

use prefopt::{Result, RewardScores, reward::RewardBatch, tch::Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{columns::Columns, oracle};

pub const MEMBERS: usize = 3;
pub const PAIRS: usize = 6;

/// A batch in plain numbers, a family's scores and the columns beside them.
#[derive(Clone)]
pub struct Case {
    /// `[members][pairs]`: of the chosen, then of the rejected responses.
    pub scores: [Vec<Vec<f64>>; 2],
    pub margin: Option<Vec<f64>>,
    pub labels: Option<Vec<f64>>,
    /// `[members][pairs]`.
    pub weights: Option<Vec<Vec<f64>>>,
}

/// The crate's batch, and the leaves it was made of.
pub struct Built {
    pub batch: RewardBatch,
    pub scores: [Tensor; 2],
    /// What must stay without a gradient.
    pub data: Vec<Tensor>,
}

impl Case {
    /// Scores alone.
    pub fn bare(seed: u64) -> Self {
        let columns = Columns::random(PAIRS, MEMBERS, seed);
        let scores = [columns.chosen_scores, columns.rejected_scores];
        Self { scores, margin: None, labels: None, weights: None }
    }

    /// With every column; weights are counts from 0 to 3.
    pub fn whole(seed: u64) -> Self {
        let (bare, columns) = (Self::bare(seed), Columns::random(PAIRS, MEMBERS, seed));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut count = || f64::from(rng.random_range(0..4_i32));
        let weights = (0..MEMBERS).map(|_| (0..PAIRS).map(|_| count()).collect()).collect();
        Self {
            margin: Some(columns.student[0].clone()),
            labels: Some(columns.soft_labels),
            weights: Some(weights),
            ..bare
        }
    }

    /// With every column; no member drew the fourth pair.
    pub fn partly_drawn(seed: u64) -> Self {
        let mut case = Self::whole(seed);
        case.weights.iter_mut().flatten().for_each(|weights| weights[3] = 0.0);
        case
    }

    /// Each subset of the columns.
    pub fn each(seed: u64) -> Vec<Self> {
        let of = |subset: u8| {
            let Self { scores, margin, labels, weights } = Self::whole(seed);
            let has = |bit: u8| subset & bit != 0;
            Self {
                scores,
                margin: margin.filter(|_| has(1)),
                labels: labels.filter(|_| has(2)),
                weights: weights.filter(|_| has(4)),
            }
        };
        (0..8).map(of).collect()
    }

    pub fn build(&self) -> Result<Built> {
        let leaf = |tensor: Tensor| tensor.set_requires_grad(true);
        let scores = self.scores.each_ref().map(|scores| leaf(Tensor::from_slice2(scores)));
        let [chosen, rejected] = scores.each_ref().map(Tensor::shallow_clone);
        let (mut batch, mut data) = (RewardBatch::new(RewardScores::new(chosen, rejected)?), vec![]);
        let mut kept = |tensor: Tensor| {
            data.push(tensor.shallow_clone());
            tensor
        };
        if let Some(margin) = &self.margin {
            batch = batch.with_margin(kept(leaf(Tensor::from_slice(margin))))?;
        }
        if let Some(labels) = &self.labels {
            batch = batch.with_soft_labels(kept(leaf(Tensor::from_slice(labels))))?;
        }
        if let Some(weights) = &self.weights {
            batch = batch.with_member_weights(kept(leaf(Tensor::from_slice2(weights))))?;
        }
        Ok(Built { batch, scores, data })
    }

    pub fn losses(&self, centring: f64) -> Vec<f64> {
        let of = |member: usize, pair: usize| {
            let [chosen, rejected] = self.scores.each_ref().map(|scores| scores[member][pair]);
            let logit = chosen - rejected - self.margin.as_ref().map_or(0.0, |margin| margin[pair]);
            let label = self.labels.as_ref().map_or(1.0, |labels| labels[pair]);
            let weight = self.weights.as_ref().map_or(1.0, |weights| weights[member][pair]);
            weight * (oracle::matching(label, 1.0 - label, logit) + centring * (chosen + rejected).powi(2))
        };
        (0..PAIRS).map(|pair| oracle::mean((0..MEMBERS).map(|member| of(member, pair)))).collect()
    }

    pub fn mean(&self, centring: f64) -> f64 {
        oracle::mean(self.losses(centring).into_iter())
    }

    /// (f(x + δ) − f(x − δ)) / 2δ of the mean, at each score.
    pub fn central_differences(&self, centring: f64) -> Vec<f64> {
        const STEP: f64 = 1e-5;
        let at = |index: usize, step: f64| {
            let mut moved = self.clone();
            *moved.scores.iter_mut().flatten().flatten().nth(index).expect("a score") += step;
            moved.mean(centring)
        };
        (0..2 * MEMBERS * PAIRS).map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)).collect()
    }
}
