use std::f64::consts::LN_2;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::PreferenceLoss;
use crate::{
    PreferenceBatch, Result,
    domain::{ContrastWeight, Focus},
};

const NAME: &str = "Drdo";

/// What DRDO's preference term does to the rejected response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contrast {
    /// −log π_w − log(1 − π_l): lowers π_l, as the paper's text says that the term does. Never negative.
    #[default]
    Corrected,
    /// −log \[π_w / (1 − π_l)\], the formula as printed: it falls as π_l **grows**, without bound as π_l → 1.
    Printed,
}

/// What DRDO calls π(y). The paper writes π(y|x) and does not say which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Likelihood {
    /// e^{log π / tokens}, the geometric mean of the tokens' probabilities: the column `lengths` is read.
    #[default]
    TokenMean,
    /// The probability of the whole response. At the lengths of text 1 − π_l is 1, and its logarithm says nothing: the gradient at
    /// −20 nats is 2·10⁻⁹, so that both contrasts agree.
    Sum,
}

/// Whether DRDO's focal weight (1 − p_w)^γ is differentiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FocalWeight {
    /// Adds αγ(1 − p_w)^γ p_w c to the gradient at log π_l and its opposite at log π_w, c the contrast: the one part of the term that still
    /// lowers y_l where 1 − π_l says nothing.
    #[default]
    Attached,
    /// A weight: pairs that are told apart already count less, and nothing else.
    Detached,
}

/// Direct reward distillation and policy optimization (DRDO): an oracle's margins for the policy's own reward head, and a focal preference
/// term for its likelihoods, in one loss and without a reference.
///
/// (Δr* − Δr̂)² + α (1 − p_w)^γ c, `[batch]`, with c a [`Contrast`] of π_w and π_l and 1 − p_w = σ(log π_l − log π_w).
///
/// Δr* is the margin of **one** oracle, the column `rewards`, detached; Δr̂ that of the student's head, the column `student_scores`,
/// whose gradient goes on into the trunk that the policy shares. Units: squared reward, plus α times nats. γ = 0 is no modulation; for
/// γ > 0 the preference term vanishes as p_w → 1 at fixed log π_w; α = 0 leaves the regression, 0 exactly where the margins agree.
///
/// log(1 − π_l) has a finite value and gradient up to π_l → 1. Where π_l **is** 1 to rounding it is −∞, which no optimiser can use: it
/// is taken at the largest normal log π_l below 0 instead, −87 nats in f32 and −708 in f64, with gradient 0.
///
/// Source: Nath et al. 2024, "Simultaneous Reward Distillation and Preference Learning", arXiv 2410.08458: the two terms, α = .1, γ = 2.
/// The inside of the second term is reconstructed, hence three options: [`Contrast`], [`Likelihood`], [`FocalWeight`]. The oracle's own
/// objective is [`WithLikelihood`](crate::reward::WithLikelihood).
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, RewardScores, loss::Drdo, tch::Tensor};
///
/// let t = |x: [f32; 2]| Tensor::from_slice(&x);
/// let (policy, head) = (t([-12.0, -9.0]).set_requires_grad(true), t([0.3, 0.1]).set_requires_grad(true));
/// let logps = PairLogps::new(policy.shallow_clone(), t([-11.0, -14.0]), t([0.0; 2]), t([0.0; 2]))?;
/// let tokens = || Tensor::from_slice(&[8_i64, 5]);
/// let batch = PreferenceBatch::new(logps)
///     .with_rewards(RewardScores::single(&t([0.4, 1.2]), &t([0.1, -0.3]))?)?
///     .with_student_scores(RewardScores::single(&head, &t([0.0; 2]))?)?
///     .with_lengths(ResponseLengths::new(tokens(), tokens())?)?;
/// Drdo::new().mean(&batch)?.backward();
/// assert!(policy.grad().defined() && head.grad().defined());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drdo {
    contrast_weight: ContrastWeight,
    focus: Focus,
    contrast: Contrast,
    likelihood: Likelihood,
    focal_weight: FocalWeight,
}

impl Drdo {
    /// The paper's α = .1 and γ = 2, corrected, over token means, its weight differentiated.
    #[must_use]
    pub fn new() -> Self {
        Self {
            contrast_weight: ContrastWeight::new(0.1).expect("0.1 is in its domain"),
            focus: Focus::new(2.0).expect("2 is in its domain"),
            contrast: Contrast::default(),
            likelihood: Likelihood::default(),
            focal_weight: FocalWeight::default(),
        }
    }

    /// α: weight of the preference term beside the regression.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a weight that is negative or not finite.
    pub fn with_contrast_weight(self, contrast_weight: f64) -> Result<Self> {
        Ok(Self { contrast_weight: ContrastWeight::new(contrast_weight)?, ..self })
    }

    /// γ: how strongly pairs that are told apart already are left alone; 0 for not at all.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a number that is negative or not finite.
    pub fn with_focus(self, focus: f64) -> Result<Self> {
        Ok(Self { focus: Focus::new(focus)?, ..self })
    }

    /// With another form of the preference term.
    #[must_use]
    pub fn with_contrast(self, contrast: Contrast) -> Self {
        Self { contrast, ..self }
    }

    /// With sums or means over tokens.
    #[must_use]
    pub fn with_likelihood(self, likelihood: Likelihood) -> Self {
        Self { likelihood, ..self }
    }

    /// With or without the focal weight's own gradient.
    #[must_use]
    pub fn with_focal_weight(self, focal_weight: FocalWeight) -> Self {
        Self { focal_weight, ..self }
    }

    /// log π_w and log π_l, `[batch]`.
    fn likelihoods(&self, batch: &PreferenceBatch) -> Result<[Tensor; 2]> {
        let sums = [batch.logps().chosen(), batch.logps().rejected()].map(Tensor::shallow_clone);
        Ok(match self.likelihood {
            Likelihood::TokenMean => {
                batch.logps().require_sums(NAME)?;
                batch.require_lengths(NAME)?.averages(sums)
            }
            Likelihood::Sum => sums,
        })
    }

    /// (1 − p_w)^γ.
    fn weight(&self, chosen: &Tensor, rejected: &Tensor) -> Tensor {
        // Where π_l is 0 the product below would be 0·∞.
        if self.focus.get() == 0.0 {
            return chosen.ones_like();
        }
        // Through the logarithm: a power's gradient divides by the base, which underflows where p_w is near 1.
        let weight = ((rejected - chosen).log_sigmoid() * self.focus.get()).exp();
        match self.focal_weight {
            FocalWeight::Attached => weight,
            FocalWeight::Detached => weight.detach(),
        }
    }

    fn contrast(&self, chosen: &Tensor, rejected: &Tensor) -> Tensor {
        match self.contrast {
            Contrast::Corrected => -(chosen + log1mexp(rejected)),
            Contrast::Printed => log1mexp(rejected) - chosen,
        }
    }
}

impl Default for Drdo {
    fn default() -> Self {
        Self::new()
    }
}

impl PreferenceLoss for Drdo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let residual = batch.require_reward_margin(NAME)? - batch.require_student_margin(NAME)?;
        let [chosen, rejected] = self.likelihoods(batch)?;
        let preference = self.weight(&chosen, &rejected) * self.contrast(&chosen, &rejected);
        Ok(residual.square() + preference * self.contrast_weight.get())
    }
}

/// log(1 − eˣ) for x < 0; from the largest normal number below 0 on, its value there with gradient 0.
///
/// Source: Mächler 2012, "Accurately computing log(1 − exp(−|a|))": each of the two forms loses its digits on the other's side of −log 2.
pub(super) fn log1mexp(x: &Tensor) -> Tensor {
    let smallest = if x.kind() == Kind::Double { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    let near = -x.clamp_max(-smallest).expm1();
    // Clamped, or the gradient of the branch that is not taken would be 0·∞ near 0.
    let far = -x.clamp_max(-LN_2).exp();
    near.log().where_self(&x.gt(-LN_2), &far.log1p())
}
