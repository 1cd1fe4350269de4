use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{MarginLoss, PreferenceLoss};
use crate::{
    PreferenceBatch, Result,
    domain::{Beta, FlipRate},
};

/// −(1−ε) log σ(x) − ε log σ(−x), nats.
pub(super) fn logistic(logits: &Tensor, flip_rate: FlipRate) -> Tensor {
    let flip = flip_rate.get();
    let kept = logits.log_sigmoid() * (flip - 1.0);
    if flip == 0.0 { kept } else { kept - (-logits).log_sigmoid() * flip }
}

/// Direct preference optimization, with an optional label flip rate (cDPO).
///
/// −(1−ε) log σ(βh) − ε log σ(−βh), in nats; h is [`log_ratio_margin`](crate::PairLogps::log_ratio_margin), `[batch]`.
///
/// With ε = 0 it has no minimiser: where pairs share no response its infimum sends h to infinity, and the mass may go to
/// responses that no pair contains. With ε > 0 the minimiser is βh = log((1−ε)/ε).
///
/// Source: Rafailov et al. 2023, eq. 7; the flip rate from Mitchell 2023, "A note on DPO with noisy preferences", eq. 3. TRL:
/// `loss_type="sigmoid"`; its 1.16 ignores `label_smoothing` there, which is ε in most other systems. Soft labels that differ
/// from pair to pair: [`ProbabilityMatching`](super::ProbabilityMatching). Its `sigmoid_norm` is `Dpo::new(beta)?.per_token()`.
#[doc(alias = "sigmoid")]
#[doc(alias = "sigmoid_norm")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dpo {
    beta: Beta,
    #[serde(default)]
    flip_rate: FlipRate,
}

impl Dpo {
    /// DPO that trusts every label.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, flip_rate: FlipRate::default() })
    }

    /// cDPO: labels are flipped with this probability, in [0, ½).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) outside it.
    pub fn with_flip_rate(self, flip_rate: f64) -> Result<Self> {
        Ok(Self { flip_rate: FlipRate::new(flip_rate)?, ..self })
    }
}

impl MarginLoss for Dpo {
    fn of_margin(&self, margin: &Tensor) -> Tensor {
        logistic(&(margin * self.beta.get()), self.flip_rate)
    }
}

impl PreferenceLoss for Dpo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.of_margin(&batch.logps().log_ratio_margin()))
    }
}

/// DPO made unbiased under labels flipped at a known rate.
///
/// \[−(1−ε) log σ(βh) + ε log σ(−βh)\] / (1−2ε), `[batch]`, nats. Its expectation over flipped labels is DPO's over clean ones.
/// It can be negative, and falls strictly in h: it degenerates as DPO does.
///
/// Source: Chowdhury, Kini and Natarajan 2024, "Provably robust DPO", eq. 12. TRL: `loss_type="robust"`, `label_smoothing`.
#[doc(alias = "robust")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RobustDpo {
    beta: Beta,
    flip_rate: FlipRate,
}

impl RobustDpo {
    /// For labels flipped at a rate in [0, ½).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for β or the rate outside their domains.
    pub fn new(beta: f64, flip_rate: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, flip_rate: FlipRate::new(flip_rate)? })
    }
}

impl MarginLoss for RobustDpo {
    fn of_margin(&self, margin: &Tensor) -> Tensor {
        let (logits, flip) = (margin * self.beta.get(), self.flip_rate.get());
        (-logits.log_sigmoid() * (1.0 - flip) + (-logits).log_sigmoid() * flip) / (1.0 - 2.0 * flip)
    }
}

impl PreferenceLoss for RobustDpo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.of_margin(&batch.logps().log_ratio_margin()))
    }
}

/// Hinge loss: relu(1 − βh), `[batch]`.
///
/// Source: Zhao et al. 2023 (SLiC-HF), eq. 2, with log-ratios in place of log-probabilities. TRL: `loss_type="hinge"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hinge {
    beta: Beta,
}

impl Hinge {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)? })
    }
}

impl MarginLoss for Hinge {
    fn of_margin(&self, margin: &Tensor) -> Tensor {
        let shortfall: Tensor = 1.0 - margin * self.beta.get();
        shortfall.relu()
    }
}

impl PreferenceLoss for Hinge {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.of_margin(&batch.logps().log_ratio_margin()))
    }
}
