use std::f64::consts::LN_2;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result, domain::DivergenceOrder};

/// Below this distance of its order from 1 the α-divergence is taken for reverse KL, its limit, as in TRL.
const NEAR_ONE: f64 = 1e-6;

/// Bound of the α-divergence's exponent, as in TRL: e⁸⁰ is finite in f32.
const LARGEST_EXPONENT: f64 = 80.0;

/// A loss ℓ(h) of the log-ratio margin h **alone**: one whose implicit reward may be another function of π/π_ref, or a mean over tokens.
///
/// [`under`](Self::under) and [`per_token`](Self::per_token) give ℓ(s_w − s_l) for scores s of the responses. The constant that an f-divergence
/// leaves in a response's reward, β·log Z(x) for reverse KL, cancels in a difference and nowhere else; so a loss that reads each response's
/// log-ratio for itself has no such form, and does not have the methods:
///
/// ```compile_fail,E0599
/// use prefopt::loss::{BcoPair, FDivergence, MarginLoss};
/// let _ = BcoPair::new(0.1).unwrap().under(FDivergence::ForwardKl);
/// ```
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::loss::{Dpo, FDivergence, Ipo, MarginLoss, PreferenceLoss, Sft};
///
/// let f_dpo = Dpo::new(0.1)?.under(FDivergence::JensenShannon).plus(1.0, Sft::new());
/// let ipo_of_means = Ipo::new(0.1)?.per_token(); // TRL's `loss_type="ipo"`
/// # Ok(()) }
/// ```
pub trait MarginLoss: PreferenceLoss {
    /// ℓ of each margin, `[batch]` from `[batch]`.
    fn of_margin(&self, margin: &Tensor) -> Tensor;

    /// ℓ(f'(ρ_w) − f'(ρ_l)), ρ = π/π_ref: this loss where the regulariser is another divergence than reverse KL.
    fn under(self, divergence: FDivergence) -> OfScores<Self>
    where
        Self: Sized,
    {
        OfScores { loss: self, divergence, per: Per::Response }
    }

    /// ℓ(log ρ_w / |y_w| − log ρ_l / |y_l|): the log-ratios averaged over tokens; reads the column `lengths`.
    ///
    /// The same as [`PairLogps::per_token`](crate::PairLogps::per_token) before the loss, but that metrics, and the other terms of a sum, go on
    /// reading sums over tokens.
    fn per_token(self) -> OfScores<Self>
    where
        Self: Sized,
    {
        OfScores { loss: self, divergence: FDivergence::ReverseKl, per: Per::Token }
    }
}

/// An f-divergence D_f(π ‖ π_ref) = E_ref f(π/π_ref) between policy and reference, by the slope f' that it makes the implicit reward,
/// β f'(π/π_ref). f'(1) = 0 in each.
///
/// Source: Wang et al. 2023, "Beyond Reverse KL", arXiv 2309.16240. TRL: `f_divergence_type`, `f_alpha_divergence_coef`.
#[doc(alias = "f_divergence_type")]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    /// f' = log ρ (up to a constant): DPO itself.
    #[default]
    ReverseKl,
    /// f' = 1 − 1/ρ. A response that became unlikelier by u nats counts e^u: from 88 in f32, 709 in f64, it is infinite, and a trainer refuses the
    /// step. `FDivergence::alpha(0.0)` is the same with the exponent bounded: its value stays finite, but from about 44 on the square of
    /// its slope does not in f32, and a trainer refuses the step (so does [`Ipo`](super::Ipo)'s value).
    ForwardKl,
    /// f' = log 2 + log σ(log ρ) = log \[2ρ/(ρ+1)\], at most log 2.
    #[serde(rename = "js_divergence")]
    JensenShannon,
    /// f' = (ρ^{α−1} − 1)/(α − 1): forward KL at order α = 0, reverse KL as α → 1. The exponent (α−1)·log ρ is held at 80 and below, with gradient
    /// 0 beyond, in both kinds.
    #[serde(rename = "alpha_divergence")]
    Alpha {
        /// α.
        order: DivergenceOrder,
    },
}

impl FDivergence {
    /// The α-divergence; TRL's default order is ½.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for an order that is not finite.
    pub fn alpha(order: f64) -> Result<Self> {
        Ok(Self::Alpha { order: DivergenceOrder::new(order)? })
    }

    /// f'(e^u) of log-ratios u, of any shape.
    pub fn slope(self, log_ratio: &Tensor) -> Tensor {
        match self {
            Self::ReverseKl => log_ratio.shallow_clone(),
            Self::ForwardKl => -(-log_ratio).expm1(),
            Self::JensenShannon => log_ratio.log_sigmoid() + LN_2,
            Self::Alpha { order } => match order.get() - 1.0 {
                power if power.abs() < NEAR_ONE => log_ratio.shallow_clone(),
                power => (log_ratio * power).clamp_max(LARGEST_EXPONENT).expm1() / power,
            },
        }
    }
}

/// What a response's score is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Per {
    #[default]
    Response,
    Token,
}

/// ℓ(s_w − s_l), `[batch]`, of a [`MarginLoss`] ℓ and scores s = f'(π/π_ref), divided by |y| with [`per_token`](Self::per_token).
///
/// The division comes **after** f', as in TRL; f' of log-ratios that are means already is this loss after
/// [`PairLogps::per_token`](crate::PairLogps::per_token). One or the other: both at once are refused.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfScores<L> {
    loss: L,
    #[serde(default)]
    divergence: FDivergence,
    #[serde(default)]
    per: Per,
}

impl<L: MarginLoss> OfScores<L> {
    /// The same with the slope of another divergence.
    #[must_use]
    pub fn under(self, divergence: FDivergence) -> Self {
        Self { divergence, ..self }
    }

    /// The same with scores divided by their response's length.
    #[must_use]
    pub fn per_token(self) -> Self {
        Self { per: Per::Token, ..self }
    }
}

impl<L: MarginLoss> PreferenceLoss for OfScores<L> {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let log_ratios = [batch.logps().chosen_log_ratio(), batch.logps().rejected_log_ratio()];
        let scores = log_ratios.map(|u| self.divergence.slope(&u));
        let [chosen, rejected] = match self.per {
            Per::Response => scores,
            Per::Token => {
                batch.logps().require_sums("per_token")?;
                batch.require_lengths("per_token")?.averages(scores)
            }
        };
        Ok(self.loss.of_margin(&(chosen - rejected)))
    }
}
