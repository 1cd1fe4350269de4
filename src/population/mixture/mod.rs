//! Types of annotators: a mixture of policies over annotators.

mod agreement;
mod em;
mod responsibilities;
mod start;

use std::num::NonZeroUsize;

pub use agreement::adjusted_rand_index;
pub use em::{AnnotatorMixture, Assignment, Fit, held_out_log_likelihood};
pub use responsibilities::{PairWeights, Responsibilities};
pub use start::KMeans;

use crate::{Error, Result};

/// A number of things of which there has to be one.
pub(super) fn at_least_one(parameter: &'static str, number: usize) -> Result<NonZeroUsize> {
    NonZeroUsize::new(number).ok_or(Error::Domain { parameter, domain: "at least 1", value: 0.0 })
}

/// Softmax of log-weights in place; returns the logarithm of their sum.
pub(super) fn softmax(row: &mut [f64]) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|l| *l = (*l - top).exp());
    let total: f64 = row.iter().sum();
    row.iter_mut().for_each(|l| *l /= total);
    top + total.ln()
}
