use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{
    PreferenceBatch, Result, RewardScores,
    domain::{Beta, Pessimism, Temperature},
};

/// Whose disagreement counts as a pair's uncertainty. All are population standard deviations over the members, in units of reward.
///
/// The paper penalises r(x,y) by an uncertainty u(x,y) and leaves open how an ensemble gives it; both readings are reconstructed,
/// and therefore an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Of each response's score, u_w and u_l. It says which of the two the family does not know, but is that of the responses only
    /// after the members' offsets are taken away ([`RewardScores::relative_to`]). Added, it enters as u_w − u_l, the difference of
    /// two lower confidence bounds; as a weight's exponent, as u_w + u_l, a factor for each response.
    Responses,
    /// Of the pair's margin, u. No centring is needed; it does not say which response is the uncertain one. It enters as u.
    Margin,
}

impl Spread {
    fn responses() -> Self {
        Self::Responses
    }

    fn margin() -> Self {
        Self::Margin
    }

    /// What the penalty takes from the reward margin for each unit of pessimism, `[batch]`.
    fn penalty(self, scores: &RewardScores) -> Tensor {
        match self {
            Self::Responses => {
                let [chosen, rejected] = scores.uncertainty();
                chosen - rejected
            }
            Self::Margin => scores.margin_uncertainty(),
        }
    }

    /// How uncertain the pair is, `[batch]`, at least 0.
    fn total(self, scores: &RewardScores) -> Tensor {
        match self {
            Self::Responses => {
                let [chosen, rejected] = scores.uncertainty();
                chosen + rejected
            }
            Self::Margin => scores.margin_uncertainty(),
        }
    }
}

/// Uncertainty-penalised DPO, additive: −log σ(βh + λ(u_w − u_l)), `[batch]`, nats; with [`Spread::Margin`] −log σ(βh + λu).
///
/// u is the disagreement of the family in the column `rewards`, through which no gradient flows; the members' mean is not read. λ is
/// in nats for each unit of reward.
///
/// The sign is plus: the log-ratio fits the pessimistic reward r − λu, so βh + λ(u_w − u_l) is the margin of r, and an uncertain
/// winner's gradient βσ(−βh − λ(u_w − u_l)) is attenuated. Under soft labels σ(Δr) the minimiser is βh = Δr − λ(u_w − u_l), and on
/// connected pairs π ∝ π_ref e^{(r−λu)/β}. The margin's form knows no better and worse response: its minimiser is Δr shrunk, towards
/// Δr/2 as λu grows. λ = 0 or members that agree give [`Dpo`](super::Dpo), u_w = u_l gives it for the responses' form.
///
/// Source: Houliston et al. 2024, "Uncertainty-Penalized Direct Preference Optimization", the additive (lower confidence bound)
/// penalty; its place inside the logistic function is reconstructed, and so is what u is: see [`Spread`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncertaintyPenalised {
    beta: Beta,
    pessimism: Pessimism,
    #[serde(default = "Spread::responses")]
    spread: Spread,
}

impl UncertaintyPenalised {
    /// With the spread of each response's score.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite and the pessimism λ at least 0 and finite.
    pub fn new(beta: f64, pessimism: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, pessimism: Pessimism::new(pessimism)?, spread: Spread::Responses })
    }

    /// The same with another spread.
    #[must_use]
    pub fn with_spread(self, spread: Spread) -> Self {
        Self { spread, ..self }
    }
}

impl PreferenceLoss for UncertaintyPenalised {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let penalty = self.spread.penalty(batch.require_rewards("UncertaintyPenalised")?) * self.pessimism.get();
        Ok(-(batch.logps().log_ratio_margin() * self.beta.get() + penalty).log_sigmoid())
    }
}

/// Uncertainty-penalised preference learning, multiplicative: e^{−u/τ} · ℓ for any loss ℓ, `[batch]`; with [`Spread::Responses`]
/// e^{−(u_w+u_l)/τ} · ℓ.
///
/// u is the disagreement of the family in the column `rewards` and τ a temperature in the same units of reward; no gradient flows
/// through the weight. It is not normalised: pairs that the family disagrees on count less, and so does a batch of them. τ → ∞ or
/// members that agree give ℓ. A loss that takes a minimum over the batch takes it before the weight.
///
/// Source: Houliston et al. 2024, the multiplicative (exponential) penalty; that it scales the pair's loss is reconstructed, and so is
/// what u is: see [`Spread`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncertaintyWeighted<L> {
    loss: L,
    temperature: Temperature,
    #[serde(default = "Spread::margin")]
    spread: Spread,
}

impl<L: PreferenceLoss> UncertaintyWeighted<L> {
    /// With the spread of the margin.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless the temperature τ is positive and finite.
    pub fn new(loss: L, temperature: f64) -> Result<Self> {
        Ok(Self { loss, temperature: Temperature::new(temperature)?, spread: Spread::Margin })
    }

    /// The same with another spread.
    #[must_use]
    pub fn with_spread(self, spread: Spread) -> Self {
        Self { spread, ..self }
    }
}

impl<L: PreferenceLoss> PreferenceLoss for UncertaintyWeighted<L> {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let uncertainty = self.spread.total(batch.require_rewards("UncertaintyWeighted")?);
        Ok(self.loss.per_pair(batch)? * (uncertainty / -self.temperature.get()).exp())
    }

    fn is_coupled(&self) -> bool {
        self.loss.is_coupled()
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        let loss = self.loss.settled(whole)?;
        Ok(Box::new(UncertaintyWeighted { loss, temperature: self.temperature, spread: self.spread }))
    }
}
