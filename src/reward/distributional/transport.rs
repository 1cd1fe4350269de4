//! Optimal transport between distributions over ordered categories: what mass costs to move is a choice, the solution is
//! exact.

use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{DistributionBatch, DistributionLoss, cdf, like, total};
use crate::{Error, Result, domain::CostPower};

const COSTS: &str = "costs";
const COSTS_SHAPE: &str = "[categories, categories]";

/// How far a cost may miss the Monge condition, as a share of the largest: the roundings of a table made in f64.
const MONGE_ROUNDING: f64 = 1e-12;

/// What it costs to move one unit of probability from category i to j.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Cost {
    /// |w_i − w_j|: the 1-Wasserstein distance Σ_d |CDF_p − CDF_p̂|(w_{d+1} − w_d), in units of reward.
    #[default]
    Distance,
    /// |w_i − w_j|^q: the q-th power of the q-Wasserstein distance. At q = 1 it is `Distance`; larger q dread far moves.
    Power {
        /// q.
        power: CostPower,
    },
    /// 1 unless i = j: the total variation ½ Σ_d |p_d − p̂_d|, which knows no order.
    Unequal,
}

impl Cost {
    /// |w_i − w_j|^q.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless q is at least 1 and finite (below 1 the cost is concave and the monotone coupling
    /// not optimal).
    pub fn power(q: f64) -> Result<Self> {
        Ok(Self::Power { power: CostPower::new(q)? })
    }
}

/// Optimal transport from the label p to the prediction p̂: min Σ_ij π_ij c_ij over couplings π of the two, `[batch]`;
/// exact, no entropy added.
///
/// 0 exactly when p̂ = p. Averaged over labels of a few votes each it is not the mean label that minimises `Distance`,
/// but, threshold by threshold, the **median** of the labels' CDFs; [`SquaredCdf`](super::SquaredCdf) and
/// [`CrossEntropy`](super::CrossEntropy) have the mean.
///
/// Source: Li et al. 2024, the loss and that its cost is a choice; the closed form of the distance: Vallender 1974.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimalTransport {
    #[serde(default)]
    cost: Cost,
}

impl OptimalTransport {
    /// Under this cost.
    #[must_use]
    pub fn new(cost: Cost) -> Self {
        Self { cost }
    }
}

impl DistributionLoss for OptimalTransport {
    fn per_row(&self, batch: &DistributionBatch) -> Result<Tensor> {
        match self.cost {
            Cost::Distance => {
                let excess = batch.cdf_excess();
                Ok(total(&(excess.abs() * like(&batch.categories.gaps(), &excess))))
            }
            Cost::Power { power } => {
                let w = like(batch.categories.positions(), &batch.targets);
                let costs = (w.unsqueeze(1) - w.unsqueeze(0)).abs().pow_tensor_scalar(power.get());
                Ok(monotone_cost(batch, &costs))
            }
            Cost::Unequal => Ok(total(&batch.excess().abs()) * 0.5),
        }
    }
}

/// Optimal transport under a table of costs, `[batch]`: c_ij of moving one unit of probability from the label's category
/// i to the prediction's j.
///
/// Exact where the table is **Monge**, c_ij + c_{i+1,j+1} ≤ c_{i,j+1} + c_{i+1,j}: then uncrossing two moves never costs
/// more, and the monotone (north-west corner) coupling is optimal. Convex functions of w_i − w_j are, also where up and
/// down cost differently. Others are refused: concave costs, and 0/1 costs of three categories or more, for which there
/// is [`Cost::Unequal`].
///
/// Source: Hoffman 1963, "On simple linear programming problems".
#[derive(Debug, Clone, PartialEq)]
pub struct MongeTransport {
    categories: i64,
    costs: Vec<f64>,
}

impl MongeTransport {
    /// From c, `[categories, categories]`.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty), [`Length`](Error::Length) unless it is square, [`Element`](Error::Element) for a cost
    /// that is not finite, [`NotMonge`](Error::NotMonge).
    pub fn new(costs: ArrayView2<'_, f64>) -> Result<Self> {
        let (rows, columns) = costs.dim();
        if costs.is_empty() {
            return Err(Error::Empty { tensor: COSTS, shape: COSTS_SHAPE });
        }
        square(rows as i64, columns as i64)?;
        if let Some((index, &value)) = costs.iter().enumerate().find(|(_, cost)| !cost.is_finite()) {
            return Err(Error::Element { tensor: COSTS, index: index as i64, domain: "finite", value });
        }
        let rounding = MONGE_ROUNDING * costs.iter().fold(0.0, |most: f64, cost| most.max(cost.abs()));
        for row in 0..rows - 1 {
            for column in 0..columns - 1 {
                let straight = costs[[row, column]] + costs[[row + 1, column + 1]];
                let excess = straight - costs[[row, column + 1]] - costs[[row + 1, column]];
                if excess > rounding {
                    return Err(Error::NotMonge { row, column, excess });
                }
            }
        }
        Ok(Self { categories: rows as i64, costs: costs.iter().copied().collect() })
    }
}

impl DistributionLoss for MongeTransport {
    fn per_row(&self, batch: &DistributionBatch) -> Result<Tensor> {
        square(batch.categories.count(), self.categories)?;
        let costs = like(&self.costs, &batch.targets).view([self.categories, self.categories]);
        Ok(monotone_cost(batch, &costs))
    }
}

/// Σ_ij π_ij c_ij of the monotone coupling of p and p̂, `[batch]`, for costs `[categories, categories]`.
///
/// The levels of both CDFs, merged and sorted, cut \[0, 1\] into intervals on each of which both quantile functions are
/// constant; an interval's length is the mass that goes from one's category to the other's. The gradient flows through
/// the levels. Where levels tie, their order decides on a one-sided derivative, so that the gradient is a subgradient
/// everywhere.
fn monotone_cost(batch: &DistributionBatch, costs: &Tensor) -> Tensor {
    let (label, prediction) = (cdf(&batch.targets), cdf(&batch.log_probabilities.exp()));
    let inner = label.size()[1];
    let (levels, order) = Tensor::cat(&[label, prediction], 1).sort(1, false);
    let edge = batch.targets.narrow(1, 0, 1);
    let lengths = Tensor::cat(&[&levels, &edge.ones_like()], 1) - Tensor::cat(&[&edge.zeros_like(), &levels], 1);
    // How many levels of each lie below an interval is which category its quantile has.
    let of_label = order.lt(inner);
    let below = |side: &Tensor| side.cumsum(1, Kind::Int64).constant_pad_nd([1, 0]);
    let (from, to) = (below(&of_label), below(&of_label.logical_not()));
    total(&(lengths * costs.take(&(from * (inner + 1) + to))))
}

fn square(expected: i64, found: i64) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::Length { tensor: COSTS, shape: COSTS_SHAPE, dimension: "categories", expected, found })
    }
}
