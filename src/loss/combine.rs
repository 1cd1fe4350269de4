use std::{any::type_name, fmt};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result, domain::Weight, pairs::check::Named};

/// `loss` + `weight` · `term`: see [`PreferenceLoss::plus`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plus<L, T> {
    loss: L,
    weight: f64,
    term: T,
}

impl<L, T> Plus<L, T> {
    pub(super) fn new(loss: L, weight: f64, term: T) -> Self {
        Self { loss, weight, term }
    }
}

impl<L: PreferenceLoss, T: PreferenceLoss> PreferenceLoss for Plus<L, T> {
    /// The weight is checked here, since `plus` chains and so cannot fail.
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let weight = Weight::new(self.weight)?.get();
        Ok(self.loss.per_pair(batch)? + self.term.per_pair(batch)? * weight)
    }

    fn is_coupled(&self) -> bool {
        self.loss.is_coupled() || self.term.is_coupled()
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        Ok(Box::new(Plus::new(self.loss.settled(whole)?, self.weight, self.term.settled(whole)?)))
    }
}

/// `loss` with each pair scaled by `weight(batch)`: see [`PreferenceLoss::weighted_by`].
#[derive(Clone, Copy)]
pub struct WeightedBy<L, F> {
    loss: L,
    weight: F,
}

impl<L, F> WeightedBy<L, F> {
    pub(super) fn new(loss: L, weight: F) -> Self {
        Self { loss, weight }
    }
}

impl<L: fmt::Debug, F> fmt::Debug for WeightedBy<L, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightedBy").field("loss", &self.loss).field("weight", &type_name::<F>()).finish()
    }
}

impl<L: PreferenceLoss, F: Fn(&PreferenceBatch) -> Tensor> PreferenceLoss for WeightedBy<L, F> {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let weight = (self.weight)(batch).detach();
        // [batch, 1] would broadcast silently to [batch, batch].
        Named::vector("weight", &weight)
            .rank(1)?
            .length(0, "batch", batch.len())?
            .device(batch.logps().chosen().device())?;
        Ok(self.loss.per_pair(batch)? * weight)
    }

    fn is_coupled(&self) -> bool {
        self.loss.is_coupled()
    }

    /// The closure goes on to see the batch that it is given: one that compares pairs sees a part alone.
    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        // As a trait object: `&F` would make a new type, and that one the next.
        let weight: &'a dyn Fn(&PreferenceBatch) -> Tensor = &self.weight;
        Ok(Box::new(WeightedBy::new(self.loss.settled(whole)?, weight)))
    }
}

/// A loss from a closure: see [`from_fn`].
#[derive(Clone, Copy)]
pub struct FromFn<F>(F);

/// The way out: any closure from a batch to a loss of each pair, `[batch]`, as a loss.
///
/// It is taken to look at one pair at a time: where a step has several parts, a closure that compares pairs sees one part.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::loss::{PreferenceLoss, from_fn, Dpo};
///
/// let entropy_like = from_fn(|batch| Ok(batch.logps().chosen() * -0.1));
/// let loss = Dpo::new(0.1)?.plus(0.5, entropy_like);
/// # Ok(()) }
/// ```
pub fn from_fn<F: Fn(&PreferenceBatch) -> Result<Tensor>>(f: F) -> FromFn<F> {
    FromFn(f)
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FromFn").field(&type_name::<F>()).finish()
    }
}

impl<F: Fn(&PreferenceBatch) -> Result<Tensor>> PreferenceLoss for FromFn<F> {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let losses = (self.0)(batch)?;
        Named::vector("loss of the closure", &losses).rank(1)?.length(0, "batch", batch.len())?;
        Ok(losses)
    }
}
