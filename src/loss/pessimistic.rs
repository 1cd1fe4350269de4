use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{PreferenceLoss, hull};
use crate::{
    Error, PreferenceBatch, Result, RewardScores,
    domain::Beta,
    native::{self, has_kernel},
};

const NAME: &str = "PessimisticDistillation";

/// Over what the smallest of the family's distillation losses is taken.
///
/// The paper's minimum stands outside the expectation. As means over the same equally weighted pairs in equal batches, at one
/// policy: pair ≤ batch ≤ dataset ≤ each member, and hull ≤ batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Minimum {
    /// min_i mean_batch (Δr_i − βh)²: the stochastic form of the paper's minimum. The mean is over the pair weights.
    #[default]
    Batch,
    /// mean_batch min_i (Δr_i − βh)²: every pair picks the member that suits it.
    Pair,
    /// The member that a tracker has found best over the data set: see [`RunningMinimum`](crate::train::RunningMinimum).
    Dataset {
        /// Its index, from 0.
        member: i64,
    },
    /// min_w mean_batch (Σ_i w_i Δr_i − βh)² over simplex weights w: the squared distance of βh to the convex hull of the family,
    /// convex and continuously differentiable in h, 0 inside it. Solved exactly for each batch; the `[members, members]`
    /// Gram matrix goes to the host for it, one synchronisation a step on a GPU.
    Hull,
}

/// Pessimistic ensemble distillation (e-DPO): the smallest distillation loss over a family of reward models, `[batch]`.
///
/// With [`Minimum::Batch`] each pair's loss is that of the batch's best member, so that the mean over the batch is the minimum.
/// Add `γ·`[`ForwardKl`](super::ForwardKl) for the paper's whole objective: at γ = 0 every member's own optimum is a zero.
///
/// Source: Fisch et al. 2024, eq. 11 for the minimum over a family; where it sits in a stochastic step is reconstructed, and
/// therefore an option. Members compete on the scale of their margins too: see
/// [`RewardScores::standardised`](crate::RewardScores::standardised).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PessimisticDistillation {
    beta: Beta,
    #[serde(default)]
    minimum: Minimum,
}

impl PessimisticDistillation {
    /// With the minimum over the batch.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, minimum: Minimum::Batch })
    }

    /// The same with another minimum.
    #[must_use]
    pub fn with_minimum(self, minimum: Minimum) -> Self {
        Self { minimum, ..self }
    }

    /// Every member's distillation loss of every pair, (Δr_i − βh)², `[members, batch]`.
    ///
    /// # Errors
    /// [`MissingColumn`](Error::MissingColumn) without rewards.
    pub fn per_member(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.residuals(batch)?.square())
    }

    /// Index of the member of smallest loss on this batch, a scalar of Int64 on the batch's device.
    ///
    /// # Errors
    /// [`MissingColumn`](Error::MissingColumn) without rewards.
    pub fn best_member(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        Ok(Nearest::find(batch, batch.require_rewards(NAME)?, &self.scaled(batch))?.index())
    }

    /// The simplex weights w of [`Minimum::Hull`] on this batch, `[members]`, detached, in f64.
    ///
    /// # Errors
    /// [`MissingColumn`](Error::MissingColumn) without rewards.
    pub fn hull_weights(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let residuals = self.residuals(batch)?.to_kind(Kind::Double);
        let weights = match batch.weights() {
            Some(weights) => weights.to_kind(Kind::Double) / weights.sum(Kind::Double),
            None => residuals.select(0, 0).ones_like() / batch.len() as f64,
        };
        let gram = (&residuals * weights).f_matmul(&residuals.tr())?;
        let gram: ndarray::ArrayD<f64> = (&gram).try_into()?;
        let solution = hull::nearest_to_origin(&gram);
        Ok(Tensor::from_slice(&solution).to_device(residuals.device()))
    }

    /// βh, `[batch]`.
    fn scaled(&self, batch: &PreferenceBatch) -> Tensor {
        batch.logps().log_ratio_margin() * self.beta.get()
    }

    fn residuals(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(batch.require_rewards(NAME)?.margins() - self.scaled(batch))
    }
}

/// The member of smallest mean of (Δr_i − βh)² under the pair weights.
enum Nearest {
    Known(i64),
    /// A scalar on the batch's device, so that nothing has to wait for it.
    OnDevice(Tensor),
}

impl Nearest {
    fn find(batch: &PreferenceBatch, scores: &RewardScores, scaled: &Tensor) -> Result<Self> {
        // One pass in place of five operations, which would cost as much as the loss itself does.
        if has_kernel(scaled.kind(), scaled.device()) {
            return Ok(Self::Known(native::nearest(scores.chosen(), scores.rejected(), scaled, batch.weights())));
        }
        let losses = batch.weighted_mean(&(scores.margins() - scaled.detach()).square());
        Ok(Self::OnDevice(losses.f_argmin(0, false)?))
    }

    fn index(self) -> Tensor {
        match self {
            Self::Known(member) => Tensor::from(member),
            Self::OnDevice(member) => member,
        }
    }

    /// Δr of this member, `[batch]`.
    fn margin(&self, scores: &RewardScores) -> Result<Tensor> {
        match self {
            Self::Known(member) => Ok(scores.chosen().select(0, *member) - scores.rejected().select(0, *member)),
            Self::OnDevice(member) => Ok(scores.margins().f_index_select(0, member)?.squeeze_dim(0)),
        }
    }
}

impl PreferenceLoss for PessimisticDistillation {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        match self.minimum {
            // Chosen without a graph, so that the graph is that of one member.
            Minimum::Batch => {
                let (scores, scaled) = (batch.require_rewards(NAME)?, self.scaled(batch));
                let margin = Nearest::find(batch, scores, &scaled)?.margin(scores)?;
                Ok((margin - scaled).square())
            }
            // `min_dim` gives a tie's gradient to one member; `amin` would split it.
            Minimum::Pair => Ok(self.per_member(batch)?.min_dim(0, false).0),
            Minimum::Dataset { member } => {
                let losses = self.per_member(batch)?;
                let members = losses.size()[0];
                if (0..members).contains(&member) {
                    Ok(losses.select(0, member))
                } else {
                    Err(Error::MemberOutOfRange { index: member, members })
                }
            }
            Minimum::Hull => {
                let residuals = self.residuals(batch)?;
                let weights = self.hull_weights(batch)?.to_kind(residuals.kind());
                Ok(weights.unsqueeze(0).f_matmul(&residuals)?.squeeze_dim(0).square())
            }
        }
    }

    fn is_coupled(&self) -> bool {
        matches!(self.minimum, Minimum::Batch | Minimum::Hull)
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        Ok(match self.minimum {
            Minimum::Batch => {
                let member = self.best_member(whole)?.int64_value(&[]);
                Box::new(self.with_minimum(Minimum::Dataset { member }))
            }
            Minimum::Hull => Box::new(Mixture { beta: self.beta, weights: Vec::try_from(self.hull_weights(whole)?)? }),
            Minimum::Pair | Minimum::Dataset { .. } => Box::new(self),
        })
    }
}

/// Distillation of one mixture of the family: (Σ_i w_i Δr_i − βh)², what the hull is once its weights are known.
#[derive(Debug)]
struct Mixture {
    beta: Beta,
    weights: Vec<f64>,
}

impl PreferenceLoss for Mixture {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let h = batch.logps().log_ratio_margin();
        let weights = Tensor::from_slice(&self.weights).to_kind(h.kind()).to_device(h.device());
        let margin = batch.require_rewards(NAME)?.mixed(&weights)?.margins().squeeze_dim(0);
        Ok((margin - h * self.beta.get()).square())
    }
}
