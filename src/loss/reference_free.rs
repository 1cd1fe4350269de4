//! Losses without a reference model: its log-probabilities are not read, whatever the batch holds.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PreferenceLoss, drdo::log1mexp, logistic::logistic};
use crate::{
    PreferenceBatch, Result,
    domain::{Beta, FlipRate, PreferenceMargin, RewardCurvature},
};

/// log π(y)/|y| of both responses, `[batch]`: needs the column `lengths`, and sums over tokens in the batch.
fn token_means(batch: &PreferenceBatch, loss: &'static str) -> Result<[Tensor; 2]> {
    batch.logps().require_sums(loss)?;
    let sums = [batch.logps().chosen(), batch.logps().rejected()];
    Ok(batch.require_lengths(loss)?.averages(sums.map(Tensor::shallow_clone)))
}

/// Contrastive preference optimization (CPO), its preference term: −(1−ε) log σ(x) − ε log σ(−x), x = β \[log π(y_w) − log π(y_l)\], `[batch]`, nats.
///
/// The same as [`Dpo`](super::Dpo) after [`reference_free`](crate::PairLogps::reference_free). **CPO** adds the likelihood of y_w, as TRL does by
/// default: `Cpo::new(0.1)?.plus(1.0, Sft::new())`. **TPO** has its likelihood term on a gold response: `Cpo::new(0.01)?.plus(1.0, Sft::of_gold())`.
///
/// Source: Xu et al. 2024, "Contrastive preference optimization", arXiv 2401.08417, eq. 3; TPO: Saeidi et al. 2024, "Triple preference
/// optimization", arXiv 2405.16681. TRL: `CPOTrainer`, `loss_type="sigmoid"`, `beta=0.1`, `cpo_alpha=1.0`, `label_smoothing`; `TPOTrainer`,
/// `beta=0.01`, `tpo_alpha=1.0`.
#[doc(alias = "CPO")]
#[doc(alias = "TPO")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpo {
    beta: Beta,
    #[serde(default)]
    flip_rate: FlipRate,
}

impl Cpo {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, flip_rate: FlipRate::default() })
    }

    /// With labels flipped at a rate in [0, ½).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) outside it.
    pub fn with_flip_rate(self, flip_rate: f64) -> Result<Self> {
        Ok(Self { flip_rate: FlipRate::new(flip_rate)?, ..self })
    }
}

impl PreferenceLoss for Cpo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let margin = batch.logps().chosen() - batch.logps().rejected();
        Ok(logistic(&(margin * self.beta.get()), self.flip_rate))
    }
}

/// Simple preference optimization (SimPO): −(1−ε) log σ(x) − ε log σ(−x), x = β \[log π(y_w)/|y_w| − log π(y_l)/|y_l|\] − γ, `[batch]`, nats.
///
/// Reads the column `lengths`; log-probabilities that are means already are refused. The margin γ is **absolute** here and in TRL; the authors and
/// HALOs give it as γ/β: [`with_ratio`](Self::with_ratio). TRL adds the likelihood of y_w unless `cpo_alpha=0`: `.plus(1.0, Sft::new())`.
/// TPO's length-normalised form, TPO-L, is this with `.plus(1.0, Sft::of_gold())`.
///
/// Source: Meng et al. 2024, "SimPO", arXiv 2405.14734. TRL: `CPOTrainer`, `loss_type="simpo"`, `beta`, `simpo_gamma=0.5`; TPO-L:
/// `TPOTrainer`, `loss_type="tpo-l"`, `tpo_l_gamma=0.5`.
#[doc(alias = "simpo")]
#[doc(alias = "tpo-l")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimPo {
    beta: Beta,
    margin: PreferenceMargin,
    #[serde(default)]
    flip_rate: FlipRate,
}

impl SimPo {
    /// With the margin γ itself, as TRL's `simpo_gamma`.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite and γ at least 0 and finite.
    pub fn new(beta: f64, margin: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, margin: PreferenceMargin::new(margin)?, flip_rate: FlipRate::default() })
    }

    /// With γ/β, in nats a token, as the authors' `gamma_beta_ratio`.
    ///
    /// # Errors
    /// As [`new`](Self::new), of γ.
    pub fn with_ratio(beta: f64, ratio: f64) -> Result<Self> {
        Self::new(beta, beta * ratio)
    }

    /// With labels flipped at a rate in [0, ½).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) outside it.
    pub fn with_flip_rate(self, flip_rate: f64) -> Result<Self> {
        Ok(Self { flip_rate: FlipRate::new(flip_rate)?, ..self })
    }
}

impl PreferenceLoss for SimPo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = token_means(batch, "SimPo")?;
        Ok(logistic(&((chosen - rejected) * self.beta.get() - self.margin.get()), self.flip_rate))
    }
}

/// AlphaPO: −log σ(β \[r_w − r_l\] − γ), r = (1 − p^{−α})/α, p = e^{log π(y)/|y|}, `[batch]`, nats: [`SimPo`] with another reward shape.
///
/// α = 0 is SimPO. Positive α pull on what is unlikely, negative ones on what is likely. r is the slope of the α-divergence of order 1 − α
/// ([`FDivergence::slope`](super::FDivergence::slope)) at the mean log-probability, but without a bound on its exponent: at α = ¼ it overflows in
/// f32 where the mean is below −350 nats a token.
///
/// Source: Gupta et al. 2025, "AlphaPO: reward shape matters for LLM alignment", arXiv 2501.03884. TRL: `CPOTrainer`, `loss_type="alphapo"`,
/// `alpha=0.0`, `simpo_gamma=0.5`.
#[doc(alias = "alphapo")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlphaPo {
    beta: Beta,
    margin: PreferenceMargin,
    alpha: RewardCurvature,
}

impl AlphaPo {
    /// With the margin γ itself, as in [`SimPo::new`].
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite, γ at least 0 and finite and α finite.
    pub fn new(beta: f64, margin: f64, alpha: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, margin: PreferenceMargin::new(margin)?, alpha: RewardCurvature::new(alpha)? })
    }
}

impl PreferenceLoss for AlphaPo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let alpha = self.alpha.get();
        let reward = |mean: Tensor| if alpha == 0.0 { mean } else { (mean * -alpha).expm1() / -alpha };
        let [chosen, rejected] = token_means(batch, "AlphaPo")?.map(reward);
        Ok(-((chosen - rejected) * self.beta.get() - self.margin.get()).log_sigmoid())
    }
}

/// ORPO's odds-ratio term: −log σ(log odds_w − log odds_l), odds = p/(1−p), p = e^{log π(y)/|y|}, `[batch]`, nats.
///
/// Reads the column `lengths`; log-probabilities that are means already are refused. **ORPO** is `Sft::new().plus(0.1, OddsRatio)`: the weight is the
/// paper's λ and TRL's `beta`. TRL takes its likelihood over **prompt and** response; [`Sft`](super::Sft) over the response, which is the same for
/// a prompt of one token.
///
/// log(1 − p) has a finite value and gradient up to p → 1, as in [`Drdo`](super::Drdo).
///
/// Source: Hong, Lee and Thorne 2024, "ORPO", arXiv 2403.07691, eq. 7. TRL: `ORPOTrainer`, `beta=0.1`.
#[doc(alias = "ORPO")]
#[doc(alias = "orpo")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OddsRatio;

impl PreferenceLoss for OddsRatio {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let [chosen, rejected] = token_means(batch, "OddsRatio")?;
        let log_odds = (&chosen - &rejected) - (log1mexp(&chosen) - log1mexp(&rejected));
        Ok(-log_odds.log_sigmoid())
    }
}
