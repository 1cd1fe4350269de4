//! Losses: each is a few numbers and an equation from a checked batch to one loss a pair.
//!
//! Vary *before* the loss by transforming the batch ([`PairLogps::per_token`](crate::PairLogps::per_token)), *in* the loss by its
//! numbers, *after* it by combinators ([`plus`](PreferenceLoss::plus), [`weighted_by`](PreferenceLoss::weighted_by)).
//! A combination is a loss again, and a regulariser such as [`ForwardKl`] is a loss like any other.

mod anchored;
mod combine;
mod contrastive;
mod distillation;
mod divergence;
mod drdo;
mod gpo;
mod hull;
mod ipo;
mod kl;
mod logistic;
mod pessimistic;
mod reference_free;
mod spo;
mod supervised;
mod transport;
mod uncertainty;
mod unpaired;
mod wpo;

use std::fmt::Debug;

use tch::Tensor;

pub use anchored::{ApoDown, ApoZero, BcoPair, DpoPositive};
pub use combine::{FromFn, Plus, WeightedBy, from_fn};
pub use contrastive::{DiscoPop, ExoPair, NcaPair, Sppo, WinRate};
pub use distillation::{ProbabilityMatching, RewardDistillation, Target};
pub use divergence::{FDivergence, MarginLoss, OfScores};
pub use drdo::{Contrast, Drdo, FocalWeight, Likelihood};
pub use gpo::{Centring, Gpo, scores_against};
pub use ipo::Ipo;
pub use kl::{ForwardKl, ReverseKl};
pub use logistic::{Dpo, Hinge, RobustDpo};
pub use pessimistic::{Minimum, PessimisticDistillation};
pub use reference_free::{AlphaPo, Cpo, OddsRatio, SimPo};
pub use spo::{PairWeight, Spo};
pub use supervised::{Average, Demonstration, Sft};
pub use transport::{Aot, AotUnpaired};
pub use uncertainty::{Spread, UncertaintyPenalised, UncertaintyWeighted};
pub use unpaired::{Bco, Kto, UnpairedLoss};
pub use wpo::Wpo;

use crate::{PreferenceBatch, Result};

/// A loss of preference pairs.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{PairLogps, PreferenceBatch, loss::{Dpo, ForwardKl, PreferenceLoss}, tch::{Kind, Tensor}};
///
/// let policy = Tensor::from_slice(&[-12.0, -9.0]).set_requires_grad(true);
/// let zero = Tensor::zeros([2], (Kind::Double, prefopt::tch::Device::Cpu));
/// let batch = PreferenceBatch::new(PairLogps::new(policy.shallow_clone(), &zero - 11.0, &zero - 12.0, &zero - 11.0)?);
///
/// let loss = Dpo::new(0.1)?.plus(1e-3, ForwardKl::OwnResponses);
/// loss.mean(&batch)?.backward();
/// assert!(policy.grad().double_value(&[0]) < 0.0); // a step down the gradient makes the chosen response likelier
/// # Ok(()) }
/// ```
pub trait PreferenceLoss: Debug {
    /// Loss of each pair, `[batch]`. Gradients flow to the policy only.
    ///
    /// # Errors
    /// [`MissingColumn`](crate::Error::MissingColumn) when the batch lacks a column that this loss reads.
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor>;

    /// Mean over the batch under its pair weights, a scalar: what to call `backward` on.
    ///
    /// # Errors
    /// Those of [`per_pair`](Self::per_pair).
    fn mean(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(batch.weighted_mean(&self.per_pair(batch)?))
    }

    /// Whether a pair's loss depends on the other pairs of its batch: a minimum over the batch or the hull does, and what is made of them.
    /// A loss of your own that compares pairs has to say so, and to implement [`settled`](Self::settled); otherwise, in a step of several parts,
    /// it sees one part at a time.
    fn is_coupled(&self) -> bool {
        false
    }

    /// This loss with what couples the pairs of `whole` decided: on any part of it, its loss of a pair and that loss's gradient are those
    /// which this loss has on `whole`. What gradient accumulation needs; without coupling it is the loss itself.
    ///
    /// # Errors
    /// Those of [`per_pair`](Self::per_pair); [`Unsettled`](crate::Error::Unsettled) for a loss that cannot be taken apart.
    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        let _ = whole;
        Ok(Box::new(self))
    }

    /// This loss + `weight` · `term`.
    fn plus<T: PreferenceLoss>(self, weight: f64, term: T) -> Plus<Self, T>
    where
        Self: Sized,
    {
        Plus::new(self, weight, term)
    }

    /// This loss with each pair's share scaled by `weight(batch)`, `[batch]`, through which no gradient flows.
    fn weighted_by<F: Fn(&PreferenceBatch) -> Tensor>(self, weight: F) -> WeightedBy<Self, F>
    where
        Self: Sized,
    {
        WeightedBy::new(self, weight)
    }
}

impl<L: PreferenceLoss + ?Sized> PreferenceLoss for &L {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        (**self).per_pair(batch)
    }

    fn mean(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        (**self).mean(batch)
    }

    fn is_coupled(&self) -> bool {
        (**self).is_coupled()
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        (**self).settled(whole)
    }
}

impl<L: PreferenceLoss + ?Sized> PreferenceLoss for Box<L> {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        (**self).per_pair(batch)
    }

    fn mean(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        (**self).mean(batch)
    }

    fn is_coupled(&self) -> bool {
        (**self).is_coupled()
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        (**self).settled(whole)
    }
}
