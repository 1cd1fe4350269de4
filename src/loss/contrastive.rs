use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{MarginLoss, PreferenceLoss, anchored::rewards};
use crate::{
    Error, PreferenceBatch, Result,
    domain::{Beta, Smoothing, Temperature},
};

/// Efficient exact optimization of a pair (EXO): the **reverse** divergence of the policy's preference from the label's,
///
/// σ(βh) \[log σ(βh) − log(1−ε)\] + σ(−βh) \[log σ(−βh) − log ε\], `[batch]`, nats.
///
/// 0 exactly at βh = log((1−ε)/ε), where cDPO has its minimum too; beyond it the loss is bounded by −log ε and −log(1−ε), so far pairs are given
/// up where DPO would pull on. ε > 0 is needed: at 0 the loss is infinite.
///
/// Source: Ji et al. 2024, "Towards efficient exact optimization", arXiv 2402.00856, eq. 16. TRL: `loss_type="exo_pair"`, `label_smoothing`.
#[doc(alias = "exo_pair")]
#[doc(alias = "EXO")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExoPair {
    beta: Beta,
    label_smoothing: Smoothing,
}

impl ExoPair {
    /// With the label smoothing ε; the paper takes 10⁻³.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite and ε above 0 and below ½.
    pub fn new(beta: f64, label_smoothing: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, label_smoothing: Smoothing::new(label_smoothing)? })
    }
}

impl MarginLoss for ExoPair {
    fn of_margin(&self, margin: &Tensor) -> Tensor {
        let (logits, smoothing) = (margin * self.beta.get(), self.label_smoothing.get());
        let (better, worse) = (logits.log_sigmoid() - (-smoothing).ln_1p(), (-&logits).log_sigmoid() - smoothing.ln());
        logits.sigmoid() * better + (-logits).sigmoid() * worse
    }
}

impl PreferenceLoss for ExoPair {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.of_margin(&batch.logps().log_ratio_margin()))
    }
}

/// Noise-contrastive alignment of a pair (NCA): −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r = β·(log π − log π_ref), `[batch]`, nats.
///
/// It is not a function of the margin: the chosen response's own reward goes to log 2 and stays, where DPO may let it fall.
///
/// Source: Chen et al. 2024, "Noise contrastive alignment of language models with explicit rewards", arXiv 2402.05369, for pairs. TRL:
/// `loss_type="nca_pair"`.
#[doc(alias = "nca_pair")]
#[doc(alias = "NCA")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NcaPair {
    beta: Beta,
}

impl NcaPair {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)? })
    }
}

impl PreferenceLoss for NcaPair {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = rewards(batch, self.beta);
        Ok(-chosen.log_sigmoid() - ((-chosen).log_sigmoid() + (-rejected).log_sigmoid()) * 0.5)
    }
}

/// DiscoPOP, the log-ratio modulated loss that a search over programs found: with x = βh and m = σ(x/τ),
///
/// −(1−m) log σ(x) + m e^{−x}, `[batch]`: logistic where the pair is ordered wrongly, exponential where rightly.
///
/// It is not convex: at τ = .05 it has a dip on the left of 0 in which a wrongly ordered pair can stay. The second term is taken as
/// e^{log σ(x/τ) − x}; the product as written, which TRL has, is 0·∞ at x = −709 in f64 and −88 in f32.
///
/// Source: Lu et al. 2024, "Discovering preference optimization algorithms with and for large language models", arXiv 2406.08414, eq. 5. TRL:
/// `loss_type="discopop"`, `discopop_tau=0.05`.
#[doc(alias = "discopop")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoPop {
    beta: Beta,
    temperature: Temperature,
}

impl DiscoPop {
    /// With the paper's temperature τ = .05.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, temperature: Temperature::new(0.05)? })
    }

    /// With another τ. Above 1 the loss grows exponentially on the left.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless it is positive and finite.
    pub fn with_temperature(self, temperature: f64) -> Result<Self> {
        Ok(Self { temperature: Temperature::new(temperature)?, ..self })
    }
}

impl MarginLoss for DiscoPop {
    fn of_margin(&self, margin: &Tensor) -> Tensor {
        let logits = margin * self.beta.get();
        let modulation = &logits / self.temperature.get();
        (modulation.log_sigmoid() - &logits).exp() - (-modulation).sigmoid() * logits.log_sigmoid()
    }
}

impl PreferenceLoss for DiscoPop {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.of_margin(&batch.logps().log_ratio_margin()))
    }
}

/// Where SPPO's probability P(y ≻ π_t) that a response beats the current policy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WinRate {
    /// 1 for the chosen response and 0 for the rejected one.
    Hard,
    /// p and 1 − p, the column `soft_labels`.
    SoftLabels,
    /// The scores of the only reward model in the column `rewards`, which have to be such probabilities: each response's share of wins against
    /// samples of the policy, for example.
    Rewards,
}

/// Self-play preference optimization: (u_w − (P_w − ½)/β)² + (u_l − (P_l − ½)/β)², u = log π − log π_ref, `[batch]`, nats².
///
/// Each response's log-ratio is fitted to its own target, so that neither falls with the other. The reference is the policy π_t of the last round,
/// and 1/β the paper's η. [`Gpo`](super::Gpo) is the form over all samples of a prompt.
///
/// Source: Wu et al. 2024, "Self-play preference optimization", arXiv 2405.00675, eq. 4.7. TRL: `loss_type="sppo_hard"`; it has no soft form, the
/// authors' code does.
#[doc(alias = "sppo_hard")]
#[doc(alias = "SPPO")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sppo {
    beta: Beta,
    win_rate: WinRate,
}

impl Sppo {
    /// TRL's form: the targets are ±1/(2β).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn hard(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, win_rate: WinRate::Hard })
    }

    /// The soft form, with the column `soft_labels`.
    ///
    /// # Errors
    /// As [`hard`](Self::hard).
    pub fn to_soft_labels(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, win_rate: WinRate::SoftLabels })
    }

    /// The soft form, with each response's own probability from the column `rewards`.
    ///
    /// # Errors
    /// As [`hard`](Self::hard).
    pub fn to_rewards(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, win_rate: WinRate::Rewards })
    }

    /// P_w and P_l, `[batch]`.
    fn win_rates(&self, batch: &PreferenceBatch) -> Result<[Tensor; 2]> {
        Ok(match self.win_rate {
            WinRate::Hard => [batch.logps().ref_chosen().ones_like(), batch.logps().ref_chosen().zeros_like()],
            WinRate::SoftLabels => {
                let labels = batch.require_soft_labels("Sppo")?;
                [labels.shallow_clone(), 1.0 - labels]
            }
            WinRate::Rewards => match batch.require_rewards("Sppo")? {
                scores if scores.members() == 1 => [scores.chosen().squeeze_dim(0), scores.rejected().squeeze_dim(0)],
                scores => return Err(Error::OneMember { loss: "Sppo", members: scores.members() }),
            },
        })
    }
}

impl PreferenceLoss for Sppo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = self.win_rates(batch)?.map(|p| (p - 0.5) / self.beta.get());
        let logps = batch.logps();
        Ok((logps.chosen_log_ratio() - chosen).square() + (logps.rejected_log_ratio() - rejected).square())
    }
}
