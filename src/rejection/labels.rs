use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{
    DensityRatio, column,
    risk::log_sigmoid,
    rule::{by_risk, count},
};
use crate::{PreferenceBatch, Result, RewardScores, domain::Coverage, pairs::check::Named};

/// L' of a preference label, from the calibrated margin Δr/T of the response that the label calls better; nats.
///
/// Soen et al. judge inputs, not labels; that the risk of a label decides what a policy loss sees is reconstructed, and
/// so is which risk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelRisk {
    /// −log σ(Δr/T), the loss of the label as given: large where a sure judge contradicts it. It finds labels that are
    /// flipped.
    #[default]
    GivenLabel,
    /// The entropy of σ(Δr/T): large where the judge is unsure, whatever the label says.
    Entropy,
}

impl LabelRisk {
    pub(super) fn of(self, margin: f64) -> f64 {
        match self {
            Self::GivenLabel => -log_sigmoid(margin),
            Self::Entropy => {
                let (yes, no) = (log_sigmoid(margin), log_sigmoid(-margin));
                -(yes.exp() * yes + no.exp() * no)
            }
        }
    }
}

/// From the risks of preference labels to what a policy loss sees of their pairs.
///
/// A ratio has mean 1, and a coverage is a share, **of the rows given**: take the risks of the whole data set, then cut
/// the weights into batches. The judge whose margins make the risks should not have been trained on the pairs that it
/// judges: it would have learned their flips.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Abstention {
    /// Weight 1 for the ⌈coverage · pairs⌉ of least risk, 0 for the others: what every density ratio does at that
    /// coverage.
    Keep(Coverage),
    /// The density ratio for a weight: no pair is dropped by the KL rule, the riskiest are by an α rule. With KL, λ = 1
    /// and the risk of the given label it is σ(Δr/T), up to scale.
    DownWeight(DensityRatio),
}

impl Abstention {
    /// Drops all but this share of the pairs.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a coverage outside (0, 1\].
    pub fn keep(coverage: f64) -> Result<Self> {
        Ok(Self::Keep(Coverage::new(coverage)?))
    }

    /// Keeps all, each at its density ratio.
    pub fn down_weight(ratio: DensityRatio) -> Self {
        Self::DownWeight(ratio)
    }

    /// A weight for each pair, `[pairs]`. Of equal risks the first rows are kept.
    ///
    /// # Errors
    /// [`Empty`](crate::Error::Empty) without a pair, [`Element`](crate::Error::Element) for a risk that is not finite.
    pub fn weights(&self, risks: ArrayView1<f64>) -> Result<Array1<f64>> {
        match self {
            Self::Keep(coverage) => {
                column("risks", risks)?;
                let mut weights = Array1::zeros(risks.len());
                for &pair in &by_risk(risks)[..count(*coverage, risks.len())] {
                    weights[pair] = 1.0;
                }
                Ok(weights)
            }
            Self::DownWeight(ratio) => Ok(ratio.fit(risks)?.ratios(risks)),
        }
    }

    /// Indices of the pairs of positive weight, in their order: to drop the others from the data before they are cut
    /// into batches.
    ///
    /// # Errors
    /// As [`weights`](Self::weights).
    pub fn kept(&self, risks: ArrayView1<f64>) -> Result<Vec<usize>> {
        let weights = self.weights(risks)?;
        Ok(weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0).map(|(pair, _)| pair).collect())
    }

    /// The same batch with its pairs weighted by their risks `[batch]`, on top of the weights that it has. For a batch
    /// that **is** the data set; a part of one takes its part of [`weights`](Self::weights), by [`weight_column`].
    ///
    /// # Errors
    /// As [`weights`](Self::weights); [`Length`](crate::Error::Length) when the risks are not this batch's,
    /// [`Domain`](crate::Error::Domain) when no pair is left.
    pub fn apply(&self, batch: PreferenceBatch, risks: ArrayView1<f64>) -> Result<PreferenceBatch> {
        let column = weight_column(self.weights(risks)?.view(), batch.logps().chosen());
        Named::vector("risks", &column).length(0, "batch", batch.len())?;
        let weights = match batch.weights() {
            Some(before) => column * before,
            None => column,
        };
        batch.with_weights(weights)
    }
}

/// Weights `[batch]` as a column for [`PreferenceBatch::with_weights`], of the kind and on the device of `like`, for
/// example `logps.chosen()`.
pub fn weight_column(weights: ArrayView1<f64>, like: &Tensor) -> Tensor {
    Tensor::from_slice(&weights.to_vec()).to_kind(like.kind()).to(like.device())
}

/// Δr of each pair, averaged over the family, on the host: `[pairs]`, in units of reward.
///
/// # Errors
/// [`Element`](crate::Error::Element) for a margin that is not finite.
pub fn mean_margins(scores: &RewardScores) -> Result<Array1<f64>> {
    let margins = scores.averaged().margins().detach().squeeze_dim(0).to_kind(Kind::Double).to(Device::Cpu);
    let margins = Array1::from_vec(Vec::<f64>::try_from(margins)?);
    column("margins", margins.view())?;
    Ok(margins)
}
