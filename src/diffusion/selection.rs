use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};
use rand::{Rng, seq::IndexedRandom};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{REWARDS, checked, lower_front, upper_front};
use crate::Result;

/// Two samples of one prompt, by their indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplePair {
    /// The better one, y_w.
    pub chosen: usize,
    /// The other, y_l.
    pub rejected: usize,
}

/// The sample of largest and the one of smallest score of each prompt, from one score a sample, `[prompts, samples]`: a reward, a
/// [`weighted_sum`](super::weighted_sum) or a calibrated average. Of equal scores the first; `None` where all are equal.
///
/// # Errors
/// [`Empty`](crate::Error::Empty); [`Element`](crate::Error::Element) for a score that is not finite.
pub fn extremes(scores: ArrayView2<f64>) -> Result<Vec<Option<SamplePair>>> {
    checked(scores.insert_axis(Axis(0)), "[prompts, samples]")?;
    let pair = |scores: ArrayView1<f64>| {
        let first = |better: fn(&f64, &f64) -> bool| {
            (1..scores.len()).fold(0, |best, i| if better(&scores[i], &scores[best]) { i } else { best })
        };
        let (chosen, rejected) = (first(f64::gt), first(f64::lt));
        (scores[chosen] > scores[rejected]).then_some(SamplePair { chosen, rejected })
    };
    Ok(scores.outer_iter().map(pair).collect())
}

/// Frontier-based selection: chosen samples from the upper Pareto front of a prompt's samples, rejected ones from the lower
/// front, those on both left out.
///
/// Fronts of raw and of calibrated rewards are the same. With one reward and without ties: {argmax} and {argmin}. A drawn pair
/// need not rank alike under every reward, nor under their average: distillation takes the sign from the scores, a loss of labels
/// trusts the pair.
///
/// Source: Lee et al. 2025 (CaPO), frontier-based pair selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontier {
    chosen: Vec<usize>,
    rejected: Vec<usize>,
}

impl Frontier {
    /// Of one prompt, from rewards `[samples, models]`.
    ///
    /// # Errors
    /// [`Empty`](crate::Error::Empty); [`Element`](crate::Error::Element) for a reward that is not finite.
    pub fn new(rewards: ArrayView2<f64>) -> Result<Self> {
        let (upper, lower) = (upper_front(rewards)?, lower_front(rewards)?);
        let without = |front: &[usize], other: &[usize]| {
            front.iter().copied().filter(|sample| other.binary_search(sample).is_err()).collect()
        };
        Ok(Self { chosen: without(&upper, &lower), rejected: without(&lower, &upper) })
    }

    /// Of each prompt, from rewards `[models, prompts, samples]`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_prompts(rewards: ArrayView3<f64>) -> Result<Vec<Self>> {
        checked(rewards, REWARDS)?;
        let prompts = 0..rewards.len_of(Axis(1));
        prompts.into_par_iter().map(|p| Self::new(rewards.index_axis(Axis(1), p).reversed_axes())).collect()
    }

    /// Samples that a chosen one is drawn from, rising.
    pub fn chosen(&self) -> &[usize] {
        &self.chosen
    }

    /// Samples that a rejected one is drawn from, rising.
    pub fn rejected(&self) -> &[usize] {
        &self.rejected
    }

    /// A pair at random, both sides independent and uniform; `None` where a side is empty. The paper draws anew in every step.
    pub fn draw<R: Rng + ?Sized>(&self, rng: &mut R) -> Option<SamplePair> {
        Some(SamplePair { chosen: *self.chosen.choose(rng)?, rejected: *self.rejected.choose(rng)? })
    }
}
