use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result, domain::Beta};

/// Reward-model distillation (d-DPO): (Δr − βh)², `[batch]`, in squared units of reward.
///
/// Δr = r(y_w) − r(y_l) is the margin of **one** reward model, from the column `rewards`. The loss is symmetric under swapping
/// the two responses: labels enter only through r, so any pairs will do, labelled or not. It is 0 on connected pairs exactly
/// when π ∝ π_ref e^{r/β}.
///
/// Source: Fisch et al. 2024, eq. 6 (no ½; β multiplies the log-ratio). NeMo-Aligner: `rpo_sq`. With Δr = ½ it is β² times
/// [`Ipo`](super::Ipo) at τ = β.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardDistillation {
    beta: Beta,
}

impl RewardDistillation {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)? })
    }
}

impl PreferenceLoss for RewardDistillation {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let margin = batch.require_reward_margin("RewardDistillation")?;
        Ok((margin - batch.logps().log_ratio_margin() * self.beta.get()).square())
    }
}

/// Where the probability that the chosen response is better comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// σ(Δr) of the only reward model in the column `rewards`.
    Rewards,
    /// The column `soft_labels`, for example the share of votes.
    SoftLabels,
}

/// Cross-entropy of the implicit preference probability against a soft one: −p log σ(βh) − (1−p) log σ(−βh), `[batch]`, nats.
///
/// p is σ(Δr) or the column `soft_labels`. The minimiser is βh = log(p/(1−p)), so βh = Δr for rewards; Δr → ∞ gives
/// [`Dpo`](super::Dpo).
///
/// Source: Fisch et al. 2024, the alternative named beside eq. 6.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbabilityMatching {
    beta: Beta,
    target: Target,
}

impl ProbabilityMatching {
    /// Matches σ(Δr) of a reward model.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn to_rewards(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, target: Target::Rewards })
    }

    /// Matches the column `soft_labels`.
    ///
    /// # Errors
    /// As [`to_rewards`](Self::to_rewards).
    pub fn to_soft_labels(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, target: Target::SoftLabels })
    }
}

impl PreferenceLoss for ProbabilityMatching {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let logits = batch.logps().log_ratio_margin() * self.beta.get();
        // σ(−Δr) and not 1 − σ(Δr), which is 0 in f32 from Δr = 17 on.
        let (better, worse) = match self.target {
            Target::Rewards => {
                let margin = batch.require_reward_margin("ProbabilityMatching")?;
                (margin.sigmoid(), (-margin).sigmoid())
            }
            Target::SoftLabels => {
                let labels = batch.require_soft_labels("ProbabilityMatching")?;
                (labels.shallow_clone(), 1.0 - labels)
            }
        };
        Ok(-(better * logits.log_sigmoid()) - worse * (-logits).log_sigmoid())
    }
}
