use ndarray::ArrayView1;

use super::column;
use crate::{
    Result,
    domain::{Confidence, Coverage, RejectionCost},
};

/// Accepts a row while its risk is at most a limit.
///
/// Every rule here has this form, since every score falls as its risk rises: a [density
/// ratio](super::FittedRatio::threshold) of at least τ, Chow's rule and a confidence threshold. They differ in the
/// risk, and in how the limit is said. Comparing risks rather than scores breaks ties where scores are clipped to 0 or
/// rounded to one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejector {
    limit: f64,
}

impl Rejector {
    pub(super) fn at(limit: f64) -> Self {
        Self { limit }
    }

    /// Chow's rule: rejects where the expected error 1 − max p exceeds the `cost` of a rejection, an error costing 1.
    /// It takes risks [`ZeroOne`](super::Risk::ZeroOne) of calibrated logits, and is optimal where they are the truth.
    ///
    /// Source: Chow 1970, "On optimum recognition error and reject tradeoff".
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a cost outside \[0, 1\].
    pub fn chow(cost: f64) -> Result<Self> {
        Ok(Self::at(RejectionCost::new(cost)?.get()))
    }

    /// A confidence threshold: rejects where max p < `confidence`. It takes risks [`ZeroOne`](super::Risk::ZeroOne), by
    /// custom of the logits as they are, at T = 1.
    ///
    /// Source: Geifman and El-Yaniv 2017, "Selective classification for deep neural networks" (softmax response).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a confidence outside \[0, 1\].
    pub fn confidence(confidence: f64) -> Result<Self> {
        Ok(Self::at(1.0 - Confidence::new(confidence)?.get()))
    }

    /// The smallest limit that accepts ⌈`coverage` · rows⌉ of these rows, and more only where risks are equal to it.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a coverage outside (0, 1\]; [`Empty`](crate::Error::Empty) without a row,
    /// [`Element`](crate::Error::Element) for a risk that is not finite.
    pub fn for_coverage(risks: ArrayView1<f64>, coverage: f64) -> Result<Self> {
        let coverage = Coverage::new(coverage)?;
        column("risks", risks)?;
        let last = count(coverage, risks.len()) - 1;
        Ok(Self::at(risks[by_risk(risks)[last]]))
    }

    /// The largest risk that is accepted; infinite where all are.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Whether a row of this risk is accepted. NaN is not.
    pub fn accepts(&self, risk: f64) -> bool {
        risk <= self.limit
    }

    /// Indices of the rows that are accepted, in their order.
    pub fn accepted(&self, risks: ArrayView1<f64>) -> Vec<usize> {
        risks.iter().enumerate().filter(|(_, risk)| self.accepts(**risk)).map(|(row, _)| row).collect()
    }
}

/// ⌈coverage · rows⌉, at least 1.
pub(super) fn count(coverage: Coverage, rows: usize) -> usize {
    // .07 · 100 is 7 and a rounding: without the shrinking it would be 8.
    let exact = coverage.get() * rows as f64 * (1.0 - 4.0 * f64::EPSILON);
    (exact.ceil() as usize).clamp(1, rows)
}

/// Rows from the least risky to the riskiest, ties in their order.
pub(super) fn by_risk(risks: ArrayView1<f64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..risks.len()).collect();
    order.sort_by(|&a, &b| risks[a].total_cmp(&risks[b]));
    order
}
