use serde::{Deserialize, Serialize};

use crate::{
    Result,
    domain::{Observation, PartWeight, Retention},
};

/// A weighted mean of numbers that come batch by batch, without tensors: BCO's reward shift δ, or a baseline for KTO.
///
/// S ← ρS + w·x, W ← ρW + w, mean S/W. ρ = 1 is the mean of all since the last reset; ρ < 1 a moving average, of about 1/(1 − ρ) batches of equal
/// weight, without a bias towards 0 at its start.
///
/// Source: ρ = 1 as in Jung et al. 2024 (BCO). [`BcoPair`](crate::loss::BcoPair) shows it at work.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningMean {
    sum: f64,
    weight: f64,
    retention: Retention,
}

impl RunningMean {
    /// Of all, and has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { sum: 0.0, weight: 0.0, retention: Retention::default() }
    }

    /// With the share ρ of what was seen that one further batch leaves.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless it is above 0 and at most 1.
    pub fn with_retention(self, retention: f64) -> Result<Self> {
        Ok(Self { retention: Retention::new(retention)?, ..self })
    }

    /// Adds a number and returns the mean with it.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a number that is not finite, or a weight that is not positive and finite: nothing is added.
    pub fn observe(&mut self, value: f64, weight: f64) -> Result<f64> {
        let (value, weight, kept) =
            (Observation::new(value)?.get(), PartWeight::new(weight)?.get(), self.retention.get());
        (self.sum, self.weight) = (kept * self.sum + weight * value, kept * self.weight + weight);
        Ok(self.sum / self.weight)
    }

    /// The mean so far; `None` before the first number.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// Forgets the numbers.
    pub fn reset(&mut self) {
        (self.sum, self.weight) = (0.0, 0.0);
    }
}

impl Default for RunningMean {
    fn default() -> Self {
        Self::new()
    }
}
