//! A reward as a distribution over ordered categories, because a population has no single opinion.
//!
//! The label is how many people would give an item each grade (see [`population`](crate::population)), the head predicts
//! that distribution, and a distance between the two is the loss.

mod transport;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

pub use transport::{Cost, MongeTransport, OptimalTransport};

use super::RewardScorer;
use crate::{Error, Result, pairs::check::Named};

const SHAPE: &str = "[batch, categories]";

/// Ordered categories and their positions w_1 < w_2 < … in units of reward: what each grade is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct Categories {
    positions: Vec<f64>,
}

impl Categories {
    /// # Errors
    /// [`Empty`](Error::Empty) without a position, [`Element`](Error::Element) for one that is not finite or not above
    /// the one before it.
    pub fn new(positions: &[f64]) -> Result<Self> {
        if positions.is_empty() {
            return Err(Error::Empty { tensor: "positions", shape: "[categories]" });
        }
        for (index, &value) in positions.iter().enumerate() {
            if !value.is_finite() || (index > 0 && value <= positions[index - 1]) {
                let domain = "finite and above the position before it";
                return Err(Error::Element { tensor: "positions", index: index as i64, domain, value });
            }
        }
        Ok(Self { positions: positions.to_vec() })
    }

    /// How many there are.
    pub fn count(&self) -> i64 {
        self.positions.len() as i64
    }

    /// w, in units of reward.
    pub fn positions(&self) -> &[f64] {
        &self.positions
    }

    /// Expected reward Σ_d w_d p̂_d, `[batch]`, of log p̂ `[batch, categories]`.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Kind`](Error::Kind) or [`Length`](Error::Length).
    pub fn expectation(&self, log_probabilities: &Tensor) -> Result<Tensor> {
        self.fit("log_probabilities", log_probabilities)?;
        Ok(total(&(log_probabilities.exp() * like(&self.positions, log_probabilities))))
    }

    fn fit<'a>(&self, name: &'static str, tensor: &'a Tensor) -> Result<Named<'a>> {
        Named::matrix(name, SHAPE, tensor).rank(2)?.wide()?.length(1, "categories", self.count())
    }

    /// w_{d+1} − w_d, `[categories − 1]`.
    fn gaps(&self) -> Vec<f64> {
        self.positions.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

impl TryFrom<Vec<f64>> for Categories {
    type Error = Error;
    fn try_from(positions: Vec<f64>) -> Result<Self> {
        Self::new(&positions)
    }
}

impl From<Categories> for Vec<f64> {
    fn from(categories: Categories) -> Self {
        categories.positions
    }
}

/// A distribution over categories: p̂ = softmax(W hidden + b). As a scorer it is one reward model, r = Σ_d w_d p̂_d.
///
/// Source: Li et al. 2024 ("Aligning crowd feedback via distributional preference reward modeling"), six categories.
#[derive(Debug)]
pub struct DistributionalHead {
    weight: Tensor,
    bias: Tensor,
    categories: Categories,
}

impl DistributionalHead {
    /// A head on hidden states of this width. It starts at 0, so that every category is as likely as another.
    pub fn new(vs: &nn::Path, width: i64, categories: Categories) -> Self {
        let count = categories.count();
        Self { weight: vs.zeros("weight", &[count, width]), bias: vs.zeros("bias", &[count]), categories }
    }

    /// The categories that it predicts.
    pub fn categories(&self) -> &Categories {
        &self.categories
    }

    /// log p̂, `[batch, categories]`, nats, of hidden states `[batch, width]`; f32 where they are in half precision.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank) or [`Length`](Error::Length) when the hidden states do not fit the head.
    pub fn log_probabilities(&self, hidden: &Tensor) -> Result<Tensor> {
        Named::matrix("hidden", "[batch, width]", hidden).rank(2)?.length(1, "width", self.weight.size()[1])?;
        let logits = hidden.f_linear(&self.weight, Some(&self.bias))?;
        let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(logits.log_softmax(-1, kind))
    }

    /// Expected reward Σ_d w_d p̂_d, `[batch]`.
    ///
    /// # Errors
    /// As [`Categories::expectation`].
    pub fn expected_reward(&self, log_probabilities: &Tensor) -> Result<Tensor> {
        self.categories.expectation(log_probabilities)
    }
}

impl RewardScorer for DistributionalHead {
    fn members(&self) -> i64 {
        1
    }

    fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.expected_reward(&self.log_probabilities(hidden)?)?.unsqueeze(0))
    }
}

/// Predicted distributions and the labels that they should meet.
#[derive(Debug)]
pub struct DistributionBatch {
    categories: Categories,
    log_probabilities: Tensor,
    targets: Tensor,
}

impl DistributionBatch {
    /// log p̂ with a path to the head, and labels p, both `[batch, categories]` of one kind and device; the labels are
    /// detached. p̂ and p have to sum to 1 (logits in place of log p̂ are caught by that). The checks wait for the
    /// device.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Length`](Error::Length), [`Device`](Error::Device),
    /// [`Kind`](Error::Kind), [`KindOf`](Error::KindOf); [`Element`](Error::Element) for a label below 0,
    /// [`Simplex`](Error::Simplex) for a row that does not sum to 1.
    pub fn new(categories: &Categories, log_probabilities: Tensor, targets: Tensor) -> Result<Self> {
        let targets = targets.detach();
        categories.fit("log_probabilities", &log_probabilities)?;
        let named = categories.fit("targets", &targets)?.length(0, "batch", log_probabilities.size()[0])?;
        let named = named.device(log_probabilities.device())?.kind_of(&log_probabilities)?;
        named.elements("at least 0 and finite", &targets.ge(0.0).logical_and(&targets.isfinite()))?;
        sum_to_one("targets", &targets)?;
        sum_to_one("exp(log_probabilities)", &log_probabilities.detach().exp())?;
        Ok(Self { categories: categories.clone(), log_probabilities, targets })
    }

    /// The categories.
    pub fn categories(&self) -> &Categories {
        &self.categories
    }

    /// log p̂, `[batch, categories]`, nats.
    pub fn log_probabilities(&self) -> &Tensor {
        &self.log_probabilities
    }

    /// p, `[batch, categories]`.
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// p − p̂, `[batch, categories]`.
    fn excess(&self) -> Tensor {
        &self.targets - self.log_probabilities.exp()
    }

    /// CDF_p − CDF_p̂ at every category but the last, where it is 0.
    fn cdf_excess(&self) -> Tensor {
        cdf(&self.excess())
    }
}

/// A loss between distributions over ordered categories.
pub trait DistributionLoss: Debug {
    /// Loss of each row, `[batch]`. Gradients flow to log p̂ only.
    ///
    /// # Errors
    /// [`Length`](Error::Length) when the loss is for another number of categories.
    fn per_row(&self, batch: &DistributionBatch) -> Result<Tensor>;

    /// Mean over the batch, a scalar.
    ///
    /// # Errors
    /// Those of [`per_row`](Self::per_row).
    fn mean(&self, batch: &DistributionBatch) -> Result<Tensor> {
        let losses = self.per_row(batch)?;
        Ok(losses.mean(losses.kind()))
    }
}

/// Σ_d (CDF_p − CDF_p̂)² (w_{d+1} − w_d), `[batch]`, in units of reward: the ranked probability score. Minimised by the
/// mean label.
///
/// Source: Epstein 1969, "A scoring system for probability forecasts of ranked categories".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SquaredCdf;

impl DistributionLoss for SquaredCdf {
    fn per_row(&self, batch: &DistributionBatch) -> Result<Tensor> {
        let excess = batch.cdf_excess();
        Ok(total(&(excess.square() * like(&batch.categories.gaps(), &excess))))
    }
}

/// −Σ_d p_d log p̂_d, `[batch]`, nats: the likelihood of the votes, blind to the order of the categories. Minimised by
/// the mean label, where it is the label's entropy and not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CrossEntropy;

impl DistributionLoss for CrossEntropy {
    fn per_row(&self, batch: &DistributionBatch) -> Result<Tensor> {
        let (p, log) = (&batch.targets, &batch.log_probabilities);
        // A category that the label does not have costs nothing, not 0·∞.
        let terms = (p * log).where_self(&p.gt(0.0), &p.zeros_like());
        Ok(-total(&terms))
    }
}

/// Running sums over the categories but the last, whose is known.
fn cdf(probabilities: &Tensor) -> Tensor {
    probabilities.narrow(1, 0, probabilities.size()[1] - 1).cumsum(1, probabilities.kind())
}

/// Sum over the categories.
fn total(terms: &Tensor) -> Tensor {
    terms.sum_dim_intlist([1].as_slice(), false, terms.kind())
}

/// Numbers in the kind and on the device of a tensor.
fn like(numbers: &[f64], tensor: &Tensor) -> Tensor {
    Tensor::from_slice(numbers).to_kind(tensor.kind()).to_device(tensor.device())
}

/// Every row sums to 1, up to what a softmax in that kind may lose.
fn sum_to_one(name: &'static str, probabilities: &Tensor) -> Result<()> {
    let rounding = if probabilities.kind() == Kind::Double { 1e-6 } else { 1e-4 };
    let sums = probabilities.sum_dim_intlist([1].as_slice(), false, Kind::Double);
    let holds = (&sums - 1.0).abs().le(rounding);
    if bool::try_from(holds.all())? {
        return Ok(());
    }
    let row = holds.to_kind(Kind::Int).argmin(0, false).int64_value(&[]);
    Err(Error::Simplex { name, row: row as usize, sum: sums.double_value(&[row]) })
}
