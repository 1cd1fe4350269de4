use ndarray::ArrayView1;

use super::{
    column,
    rule::{by_risk, count},
};
use crate::{Result, check::matrix, domain::Coverage};

/// Accuracy over coverage: of the k least risky of n rows, which share is right, at coverage k/n.
///
/// It depends on the order of the risks alone. Among rows of one risk the accuracy is that of a random order, so that
/// the order of the rows says nothing.
///
/// Source: El-Yaniv and Wiener 2010, the risk–coverage curve, read the other way up.
#[derive(Debug, Clone, PartialEq)]
pub struct AccuracyCoverage {
    /// Right ones among the k + 1 least risky, in expectation over ties.
    right: Vec<f64>,
}

impl AccuracyCoverage {
    /// From the `risks` `[rows]` of rows and whether each is `correct` `[rows]`.
    ///
    /// # Errors
    /// [`Empty`](crate::Error::Empty) without a row, [`Element`](crate::Error::Element) for a risk that is not finite,
    /// [`Length`](crate::Error::Length) when the two differ in length.
    pub fn new(risks: ArrayView1<f64>, correct: &[bool]) -> Result<Self> {
        column("risks", risks)?;
        matrix("correct", "[rows]", "rows", risks.len(), correct.len())?;
        let (mut right, mut before) = (Vec::with_capacity(correct.len()), 0.0);
        for tied in by_risk(risks).chunk_by(|&a, &b| risks[a] == risks[b]) {
            let hits = tied.iter().filter(|&&row| correct[row]).count() as f64;
            let share = hits / tied.len() as f64;
            right.extend((1..=tied.len()).map(|k| before + share * k as f64));
            before += hits;
        }
        Ok(Self { right })
    }

    /// (k/n, accuracy of the k least risky) for k = 1 … n.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let n = self.right.len() as f64;
        self.right.iter().enumerate().map(|(i, right)| ((i + 1) as f64 / n, right / (i + 1) as f64)).collect()
    }

    /// Accuracy of the ⌈`coverage` · n⌉ least risky.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a coverage outside (0, 1\].
    pub fn accuracy_at(&self, coverage: f64) -> Result<f64> {
        let accepted = count(Coverage::new(coverage)?, self.right.len());
        Ok(self.right[accepted - 1] / accepted as f64)
    }

    /// Mean of the accuracy over k = 1 … n: 1 less the area under the risk–coverage curve.
    pub fn mean_accuracy(&self) -> f64 {
        self.points().iter().map(|(_, accuracy)| accuracy).sum::<f64>() / self.right.len() as f64
    }
}
