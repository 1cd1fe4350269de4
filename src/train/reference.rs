use std::{fmt, num::NonZeroU64};

use tch::Tensor;

use super::{Flow, Observer, StepReport};
use crate::{Error, Result, domain::ReferenceShare, pairs::check::Named};

/// A reference that follows the policy (TR-DPO): every n steps θ_ref ← αθ + (1−α)θ_ref, in place.
///
/// α < 1 is the paper's soft update, at n = 1 a moving average of the policy; α = 1 the hard one, which sets the reference to the policy. It is an
/// [`Observer`]: give it to [`fit`](super::Trainer::fit), or call [`after`](Self::after) in a loop of your own.
///
/// It holds the tensors of both models and writes to the reference's, so a forward pass has to compute the reference's log-probabilities **anew**:
/// those of a cache are of a model that is no more.
///
/// ```no_run
/// # use prefopt::{tch::nn::VarStore, train::{ReferenceUpdate, Trainer}, Result};
/// # use std::num::NonZeroU64;
/// # fn f<T: Trainer>(mut trainer: T, batches: Vec<T::Batch>, policy: &VarStore, reference: &VarStore) -> Result<()> {
/// let tensors = |of: &VarStore| {
///     let mut named: Vec<_> = of.variables().into_iter().collect();
///     named.sort_by(|a, b| a.0.cmp(&b.0)); // a `VarStore` has no order of its own
///     named.into_iter().map(|(_, tensor)| tensor).collect::<Vec<_>>()
/// };
/// let every = NonZeroU64::new(512).expect("is not 0");
/// let mut follow = ReferenceUpdate::soft(tensors(policy), tensors(reference), 0.6, every)?;
/// trainer.fit(batches, &mut [&mut follow])?;
/// # Ok(()) }
/// ```
///
/// Source: Gorbatovski et al. 2024, "Learn your reference model for real good alignment", arXiv 2404.09656. TRL: `sync_ref_model=True`,
/// `ref_model_mixup_alpha=0.6`, `ref_model_sync_steps=512`.
#[doc(alias = "sync_ref_model")]
#[doc(alias = "TR-DPO")]
pub struct ReferenceUpdate {
    policy: Vec<Tensor>,
    reference: Vec<Tensor>,
    share: ReferenceShare,
    every: NonZeroU64,
}

impl ReferenceUpdate {
    /// Soft: a share α in (0, 1] of the policy every so many steps. The tensors of both models in one order.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for α; [`Length`](Error::Length) when the lists differ in length; [`Rank`](Error::Rank),
    /// [`Device`](Error::Device) or [`KindOf`](Error::KindOf) when two tensors do not fit.
    pub fn soft(policy: Vec<Tensor>, reference: Vec<Tensor>, share: f64, every: NonZeroU64) -> Result<Self> {
        let share = ReferenceShare::new(share)?;
        if policy.len() != reference.len() {
            return Err(Error::Length {
                tensor: "reference",
                shape: "[tensors]",
                dimension: "tensors",
                expected: policy.len() as i64,
                found: reference.len() as i64,
            });
        }
        for (from, to) in policy.iter().zip(&reference) {
            if to.size() != from.size() {
                let expected = "of the policy's tensor beside it";
                return Err(Error::Rank { tensor: "reference", expected, found: to.size() });
            }
            Named::matrix("reference", "[..]", to).device(from.device())?.kind_of(from)?;
        }
        Ok(Self { policy, reference, share, every })
    }

    /// Hard: the policy itself every so many steps.
    ///
    /// # Errors
    /// As [`soft`](Self::soft).
    pub fn hard(policy: Vec<Tensor>, reference: Vec<Tensor>, every: NonZeroU64) -> Result<Self> {
        Self::soft(policy, reference, 1.0, every)
    }

    /// One update now.
    pub fn update(&mut self) {
        let (_no_grad, share) = (tch::no_grad_guard(), self.share.get());
        for (from, to) in self.policy.iter().zip(&mut self.reference) {
            to.copy_(&(to.detach() * (1.0 - share) + from * share));
        }
    }

    /// An update if `step`, counted from 1, is a multiple of n; whether it was.
    pub fn after(&mut self, step: u64) -> bool {
        let due = step % self.every == 0;
        if due {
            self.update();
        }
        due
    }
}

impl Observer for ReferenceUpdate {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        self.after(report.step);
        Flow::Continue
    }
}

impl fmt::Debug for ReferenceUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReferenceUpdate")
            .field("tensors", &self.reference.len())
            .field("share", &self.share)
            .field("every", &self.every)
            .finish()
    }
}
