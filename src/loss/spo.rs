use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{
    PreferenceBatch, Result,
    domain::{Alpha, MassPower},
};

/// How much a pair counts in [`Spo`]: μ, symmetric in the two responses and without a gradient.
///
/// Under Bradley–Terry labels each pair's expected gradient is 0 at softmax(r/α) for itself, so any μ > 0 keeps that minimiser
/// and changes only the way there, and what is given up where the policy cannot reach it.
///
/// Source: Sharifnassab et al. 2024 have the weight; its form is reconstructed and therefore an option. Another symmetric μ:
/// `spo.weighted_by(μ)`, **before** a divergence is added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairWeight {
    /// μ = 1.
    #[default]
    Equal,
    /// μ = (π(y_w) + π(y_l))^power: pairs count that the policy may produce. Computed from log-probabilities, which are sums over
    /// tokens: at −100 nats and power 1, μ is 4·10⁻⁴⁴. Long responses need a power of the order of one over their length.
    Mass {
        /// 0 is [`Equal`](Self::Equal).
        power: MassPower,
    },
}

/// The contrastive term of soft preference optimization: −(μ/α) log σ(α \[log π(y_w) − log π(y_l)\]), `[batch]`, in nats / α.
/// **No reference** enters.
///
/// Under Bradley–Terry labels of a reward r its minimiser is softmax(r/α) where the pairs connect all responses, wherever
/// training starts; DPO's at β = α is π_ref e^{r/α}, of which this is the case of a uniform reference: α times the loss is
/// `Dpo::new(alpha)` of [`reference_free`](crate::PairLogps::reference_free) log-probabilities. With one label for a pair it has
/// no minimiser, as DPO has none.
///
/// As α → 0 the loss is (log 2)/α − ½ \[log π(y_w) − log π(y_l)\] + O(α): the value grows without bound, the gradient goes to ∓½.
/// As α → ∞ it is relu(log π(y_l) − log π(y_w)).
///
/// SPO's whole objective adds λ·[`ReverseKl`](super::ReverseKl), the divergence from the reference over the whole output
/// distribution:
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::loss::{PreferenceLoss, ReverseKl, Spo};
///
/// let spo = Spo::new(0.5)?.plus(0.1, ReverseKl::PolicySamples);
/// # Ok(()) }
/// ```
///
/// Source: Sharifnassab et al. 2024, "Soft Preference Optimization", the basic and the weighted loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spo {
    alpha: Alpha,
    #[serde(default)]
    pair_weight: PairWeight,
}

impl Spo {
    /// With equal weights; α is in units of reward a nat.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless α is positive and finite.
    pub fn new(alpha: f64) -> Result<Self> {
        Ok(Self { alpha: Alpha::new(alpha)?, pair_weight: PairWeight::Equal })
    }

    /// The same with other weights.
    #[must_use]
    pub fn with_pair_weight(self, pair_weight: PairWeight) -> Self {
        Self { pair_weight, ..self }
    }
}

impl PreferenceLoss for Spo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let (chosen, rejected, alpha) = (batch.logps().chosen(), batch.logps().rejected(), self.alpha.get());
        let losses = ((chosen - rejected) * alpha).log_sigmoid() / -alpha;
        Ok(match self.pair_weight {
            PairWeight::Equal => losses,
            // In log space: the probabilities of responses are below what f32 holds.
            PairWeight::Mass { power } => losses * (chosen.detach().logaddexp(&rejected.detach()) * power.get()).exp(),
        })
    }
}
