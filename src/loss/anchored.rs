//! Losses in which each response's log-ratio is held against the reference, and not only against the other response's.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{
    PreferenceBatch, Result,
    domain::{Beta, Penalty, RewardShift},
};

/// r_w and r_l, r = β·(log π − log π_ref), `[batch]`.
pub(super) fn rewards(batch: &PreferenceBatch, beta: Beta) -> [Tensor; 2] {
    [batch.logps().chosen_log_ratio() * beta.get(), batch.logps().rejected_log_ratio() * beta.get()]
}

/// Binary classifier optimization of a pair (BCO): −log σ(r_w − δ) − log σ(δ − r_l), r = β·(log π − log π_ref), `[batch]`, nats.
///
/// δ is the reward shift, the boundary between good and bad: ½(E r_w + E r_l) in the paper, from a [`RunningMean`](crate::train::RunningMean), and 0
/// in TRL 1.16. Unpaired data: [`Bco`](super::Bco).
///
/// ```no_run
/// # use prefopt::{loss::BcoPair, train::{Descent, PolicyTrainer, RunningMean}, PreferenceBatch, Result};
/// # fn f(forward: impl Fn(&PreferenceBatch) -> Result<PreferenceBatch>, descent: Descent) -> Result<()> {
/// let mut reward = RunningMean::new();
/// let trainer = PolicyTrainer::new(BcoPair::new(0.1)?, forward, descent, 0.1)?.before_loss(move |loss, batch| {
///     let shift = reward.observe(loss.mean_reward(batch)?, batch.total_weight())?;
///     *loss = loss.with_shift(shift)?;
///     Ok(())
/// });
/// # let _: PolicyTrainer<PreferenceBatch, _, _> = trainer;
/// # Ok(()) }
/// ```
///
/// Source: Jung et al. 2024, "Binary classifier optimization for large language model alignment", arXiv 2404.04656. TRL: `loss_type="bco_pair"`.
#[doc(alias = "bco_pair")]
#[doc(alias = "BCO")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BcoPair {
    beta: Beta,
    #[serde(default)]
    shift: RewardShift,
}

impl BcoPair {
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

    /// Mean of ½(r_w + r_l) under the pair weights: what δ is the mean of. Waits for the device.
    ///
    /// # Errors
    /// libtorch's, if it refuses the copy to the host.
    pub fn mean_reward(&self, batch: &PreferenceBatch) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let [chosen, rejected] = rewards(batch, self.beta);
        Ok(batch.weighted_mean(&((chosen + rejected) * 0.5)).f_double_value(&[])?)
    }
}

impl PreferenceLoss for BcoPair {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = rewards(batch, self.beta).map(|r| r - self.shift.get());
        Ok(-chosen.log_sigmoid() - (-rejected).log_sigmoid())
    }
}

/// Anchored preference optimization, zero: 1 − σ(r_w) + σ(r_l), r = β·(log π − log π_ref), `[batch]`, between 0 and 2.
///
/// Raises y_w and lowers y_l, each against the reference: for chosen responses that are better than the policy's own. It is bounded, so a pair far
/// off on either side has no gradient. Unpaired: [`Kto`](super::Kto) at a baseline of 0.
///
/// Source: D'Oosterlinck et al. 2024, "Anchored preference optimization and contrastive revisions", arXiv 2408.06266, eq. 7. TRL:
/// `loss_type="apo_zero"`.
#[doc(alias = "apo_zero")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApoZero {
    beta: Beta,
}

impl ApoZero {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)? })
    }
}

impl PreferenceLoss for ApoZero {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = rewards(batch, self.beta);
        Ok((-chosen).sigmoid() + rejected.sigmoid())
    }
}

/// Anchored preference optimization, down: σ(r_w) + 1 − σ(r_w − r_l), r = β·(log π − log π_ref), `[batch]`, between 0 and 2.
///
/// Lowers y_l until the pair is told apart, and from then on mostly y_w (at r_w = 0 from r_w − r_l of 1.3 on): for chosen responses that are worse than the
/// policy's own. Meant so, both fall.
///
/// Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8. TRL: `loss_type="apo_down"`.
#[doc(alias = "apo_down")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApoDown {
    beta: Beta,
}

impl ApoDown {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)? })
    }
}

impl PreferenceLoss for ApoDown {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = rewards(batch, self.beta);
        Ok(chosen.sigmoid() + (rejected - chosen).sigmoid())
    }
}

/// DPO-Positive (DPOP): −log σ(β \[h − λ·max(0, log π_ref(y_w) − log π(y_w))\]), `[batch]`, nats.
///
/// While y_w is less likely than under the reference, its log-probability counts 1 + λ times: the margin can no longer be had by lowering both.
/// λ = 0 is [`Dpo`](super::Dpo), and so is any λ where log π(y_w) ≥ log π_ref(y_w).
///
/// Source: Pal et al. 2024, "Smaug: fixing failure modes of preference optimisation with DPO-Positive", arXiv 2402.13228. TRL 1.16 lacks
/// it.
#[doc(alias = "DPOP")]
#[doc(alias = "dpop")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoPositive {
    beta: Beta,
    penalty: Penalty,
}

impl DpoPositive {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite and the penalty λ at least 0 and finite.
    pub fn new(beta: f64, penalty: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, penalty: Penalty::new(penalty)? })
    }
}

impl PreferenceLoss for DpoPositive {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let lost = (-batch.logps().chosen_log_ratio()).relu();
        Ok(-((batch.logps().log_ratio_margin() - lost * self.penalty.get()) * self.beta.get()).log_sigmoid())
    }
}
