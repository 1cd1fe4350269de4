use tch::{Kind, Tensor};

use crate::{Error, PreferenceBatch, Result, domain::PartWeight, loss::PessimisticDistillation};

/// Each member's mean distillation loss over the data seen since the last reset: the minimum over the **data set** of e-DPO.
///
/// The loss holds no tensors; this does, and hands it a member: `loss.with_minimum(Minimum::Dataset { member })`. Reset it where
/// the policy has moved far, for example at each epoch.
///
/// ```no_run
/// # use prefopt::{loss::{Minimum, PessimisticDistillation}, train::{Descent, PolicyTrainer, RunningMinimum}, PreferenceBatch, Result};
/// # fn f(forward: impl Fn(&PreferenceBatch) -> Result<PreferenceBatch>, descent: Descent) -> Result<()> {
/// let mut tracker = RunningMinimum::new();
/// let trainer = PolicyTrainer::new(PessimisticDistillation::new(0.1)?, forward, descent, 0.1)?
///     .before_loss(move |loss, batch| {
///         tracker.observe(loss, batch)?;
///         *loss = loss.with_minimum(Minimum::Dataset { member: tracker.member()? });
///         Ok(())
///     });
/// # let _: PolicyTrainer<PreferenceBatch, _, _> = trainer;
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct RunningMinimum {
    sums: Option<Tensor>,
    weight: f64,
}

impl RunningMinimum {
    /// Has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Σ weight · loss of each member, `[members]`, f64, and Σ weight: what to save of it. `None` before the first batch.
    pub fn sums(&self) -> Option<(Tensor, f64)> {
        self.sums.as_ref().map(|sums| (sums.shallow_clone(), self.weight))
    }

    /// Goes on from the [`sums`](Self::sums) of another one.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless the weight is positive and finite; [`Rank`](Error::Rank) or [`Kind`](Error::Kind) unless the sums are
    /// `[members]` in f64.
    pub fn from_sums(sums: Tensor, weight: f64) -> Result<Self> {
        if sums.dim() != 1 {
            return Err(Error::Rank { tensor: "sums", expected: "[members]", found: sums.size() });
        }
        if sums.kind() != Kind::Double {
            return Err(Error::Kind { tensor: "sums", expected: "Double", found: sums.kind() });
        }
        Ok(Self { sums: Some(sums), weight: PartWeight::new(weight)?.get() })
    }

    /// Adds a batch: pairs count by their weights.
    ///
    /// # Errors
    /// [`MissingColumn`](Error::MissingColumn) without rewards; libtorch's when the number of members changes.
    pub fn observe(&mut self, loss: &PessimisticDistillation, batch: &PreferenceBatch) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let weight = batch.total_weight();
        let sums = batch.weighted_mean(&loss.per_member(batch)?).to_kind(Kind::Double) * weight;
        self.sums = Some(match self.sums.take() {
            Some(so_far) => so_far.f_add(&sums)?,
            None => sums,
        });
        self.weight += weight;
        Ok(())
    }

    /// Each member's mean so far, `[members]`, f64.
    ///
    /// # Errors
    /// [`NothingObserved`](Error::NothingObserved) before the first batch.
    pub fn means(&self) -> Result<Tensor> {
        self.sums.as_ref().map(|sums| sums / self.weight).ok_or(Error::NothingObserved)
    }

    /// The member of smallest mean.
    ///
    /// # Errors
    /// [`NothingObserved`](Error::NothingObserved) before the first batch.
    pub fn member(&self) -> Result<i64> {
        Ok(self.means()?.argmin(0, false).int64_value(&[]))
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}
