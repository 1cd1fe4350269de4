use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    Result,
    domain::{Beta, DesirableWeight, RewardShift, UndesirableWeight},
    pairs::UnpairedBatch,
};

/// A loss of single responses that are called desirable or not. No [`PreferenceLoss`](super::PreferenceLoss): nothing is compared.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{loss::{Kto, UnpairedLoss}, pairs::UnpairedBatch, tch::Tensor};
/// use prefopt::train::{AdamW, AdamWConfig, Descent};
///
/// let policy = Tensor::from_slice(&[-12.0, -9.0, -7.0]).set_requires_grad(true);
/// let reference = Tensor::from_slice(&[-11.0, -9.5, -7.5]);
/// let mut descent = Descent::new(AdamW::new(vec![policy.shallow_clone()], AdamWConfig::default())?, 0.1)?;
/// let desirable = Tensor::from_slice(&[true, false, true]);
/// let batch = UnpairedBatch::new(policy.shallow_clone(), reference, desirable)?.with_baseline(0.2)?;
/// descent.descend(&Kto::new(0.1)?.mean(&batch)?)?;
/// assert!(policy.double_value(&[0]) > -12.0 && policy.double_value(&[1]) < -9.0);
/// # Ok(()) }
/// ```
pub trait UnpairedLoss: Debug {
    /// Loss of each response, `[batch]`. Gradients flow to the policy only.
    ///
    /// # Errors
    /// [`MissingUnpairedColumn`](crate::Error::MissingUnpairedColumn) when the batch lacks what this loss reads.
    fn per_response(&self, batch: &UnpairedBatch) -> Result<Tensor>;

    /// Mean over the batch, a scalar. In a step of several parts each counts by its [`len`](UnpairedBatch::len).
    ///
    /// # Errors
    /// Those of [`per_response`](Self::per_response).
    fn mean(&self, batch: &UnpairedBatch) -> Result<Tensor> {
        let losses = self.per_response(batch)?;
        Ok(losses.mean(losses.kind()))
    }
}

/// Kahneman–Tversky optimization (KTO): λ_D (1 − σ(β(u − z))) for a desirable response, λ_U (1 − σ(β(z − u))) for another one, u = log π − log π_ref,
/// `[batch]`.
///
/// z ≥ 0 is the baseline, an estimate of KL(π ‖ π_ref) in nats without a gradient, from the batch:
/// [`with_mismatched`](UnpairedBatch::with_mismatched) or [`with_baseline`](UnpairedBatch::with_baseline). At z = 0 it is TRL's
/// `loss_type="apo_zero_unpaired"`.
///
/// Source: Ethayarajh et al. 2024, "KTO: model alignment as prospect theoretic optimization", arXiv 2402.01306, eq. 7, up to the constant λ_y.
/// TRL: `KTOTrainer`, `beta=0.1`, `desirable_weight=1.0`, `undesirable_weight=1.0`.
#[doc(alias = "KTO")]
#[doc(alias = "apo_zero_unpaired")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kto {
    beta: Beta,
    #[serde(default)]
    desirable_weight: DesirableWeight,
    #[serde(default)]
    undesirable_weight: UndesirableWeight,
}

impl Kto {
    /// With λ_D = λ_U = 1.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        let (desirable_weight, undesirable_weight) = (DesirableWeight::default(), UndesirableWeight::default());
        Ok(Self { beta: Beta::new(beta)?, desirable_weight, undesirable_weight })
    }

    /// With λ_D and λ_U. TRL advises λ_D n_D / (λ_U n_U) between 1 and 1.33, n_D and n_U the numbers of desirable and other responses.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for one that is negative or not finite.
    pub fn with_weights(self, desirable: f64, undesirable: f64) -> Result<Self> {
        let desirable_weight = DesirableWeight::new(desirable)?;
        Ok(Self { desirable_weight, undesirable_weight: UndesirableWeight::new(undesirable)?, ..self })
    }
}

impl UnpairedLoss for Kto {
    fn per_response(&self, batch: &UnpairedBatch) -> Result<Tensor> {
        let (desirable, undesirable) = (self.desirable_weight.get(), self.undesirable_weight.get());
        // λ_U + (λ_D − λ_U)·[desirable], by the sign s.
        let weight = batch.signs() * (0.5 * (desirable - undesirable)) + 0.5 * (desirable + undesirable);
        let gain = batch.signs() * (batch.log_ratio() - batch.require_baseline("Kto")?);
        Ok((gain * -self.beta.get()).sigmoid() * weight)
    }
}

/// Binary classifier optimization (BCO): −log σ(r − δ) for a desirable response, −log σ(δ − r) for another one, r = β·(log π − log π_ref),
/// `[batch]`, nats. [`BcoPair`](super::BcoPair) is the sum over a pair, and says what δ is.
///
/// Source: Jung et al. 2024, arXiv 2404.04656; its weights for undesirable responses from another distribution are left to the data. TRL 1.16 lacks
/// the unpaired form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bco {
    beta: Beta,
    #[serde(default)]
    shift: RewardShift,
}

impl Bco {
    /// With δ = 0.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, shift: RewardShift::default() })
    }

    /// With another δ, in units of β nats.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a number that is not finite.
    pub fn with_shift(self, shift: f64) -> Result<Self> {
        Ok(Self { shift: RewardShift::new(shift)?, ..self })
    }
}

impl UnpairedLoss for Bco {
    fn per_response(&self, batch: &UnpairedBatch) -> Result<Tensor> {
        Ok(-(batch.signs() * (batch.log_ratio() * self.beta.get() - self.shift.get())).log_sigmoid())
    }
}
