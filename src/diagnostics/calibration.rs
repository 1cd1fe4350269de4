use std::num::NonZeroUsize;

use ndarray::ArrayView1;
use serde::Serialize;

use super::{Metrics, columns::Columns, statistics::mean};
use crate::{
    Error, Result,
    check::{finite, matrix},
};

/// A pair as the policy sees it: how sure it is of the response that it prefers, and how right it is.
struct Judgement {
    /// σ(|βh|), in [½, 1].
    predicted: f64,
    /// The label's share for the response that the policy prefers; ½ where it prefers none.
    observed: f64,
    /// (σ(βh) − p)².
    squared: f64,
}

impl Judgement {
    fn new(margin: f64, label: f64) -> Self {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let observed = if margin > 0.0 {
            label
        } else if margin < 0.0 {
            1.0 - label
        } else {
            0.5
        };
        Self { predicted: sigmoid(margin.abs()), observed, squared: (sigmoid(margin) - label).powi(2) }
    }
}

pub(super) fn calibration(columns: &Columns) -> Metrics {
    let Some(labels) = &columns.soft_labels else {
        return Metrics::default();
    };
    let judged = || columns.margins.iter().zip(labels).map(|(&margin, &label)| Judgement::new(margin, label));
    Metrics::default()
        .with("calibration/overconfidence", mean(judged().map(|j| j.predicted - j.observed)))
        .with("calibration/brier", mean(judged().map(|j| j.squared)))
}

/// Pairs on which the policy is about equally sure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Σ of the pairs' votes, or their number.
    pub weight: f64,
    /// Mean of σ(|βh|).
    pub predicted: f64,
    /// Mean share of the labels, or of the votes, for the response that the policy prefers.
    pub observed: f64,
}

/// Whether implicit probabilities σ(βh) are honest: beside soft labels p, or shares of votes, on pairs that were **not** trained on.
///
/// Each pair is turned to the response that the policy prefers, so that swapping a pair changes nothing: the policy's confidence
/// σ(|βh|) against the label's share for that response. Confidence is binned in equal widths over \[½, 1\]; empty bins are left out.
///
/// Source: Guo et al. 2017, "On calibration of modern neural networks" (reliability diagram, expected calibration error); Brier 1950.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reliability {
    /// In increasing order of confidence.
    pub bins: Vec<Bin>,
    /// Σ_bins weight · |predicted − observed| / Σ weight.
    pub expected_error: f64,
    /// Weighted mean of predicted − observed: positive for a policy that is surer than its labels.
    pub overconfidence: f64,
    /// Weighted mean of (σ(βh) − p)².
    pub brier: f64,
}

impl Reliability {
    /// From implicit `margins` βh and `labels` p, `[pairs]` each: the probability, or share of votes, that the response called chosen is the better one.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a pair, [`Length`](Error::Length) when the two differ in length, [`Element`](Error::Element) for a
    /// margin that is not finite or a label outside \[0, 1\].
    pub fn new(margins: ArrayView1<f64>, labels: ArrayView1<f64>, bins: NonZeroUsize) -> Result<Self> {
        Self::build(margins, labels, None, bins)
    }

    /// The same where a label is a share of `votes` `[pairs]`, which the pair counts for.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Element`](Error::Element) for a number of votes that is not positive and finite.
    pub fn of_votes(
        margins: ArrayView1<f64>,
        shares: ArrayView1<f64>,
        votes: ArrayView1<f64>,
        bins: NonZeroUsize,
    ) -> Result<Self> {
        matrix("votes", "[pairs]", "pairs", margins.len(), votes.len())?;
        within("votes", votes, "positive and finite", |x| x > 0.0 && x.is_finite())?;
        Self::build(margins, shares, Some(votes), bins)
    }

    fn build(
        margins: ArrayView1<f64>,
        labels: ArrayView1<f64>,
        votes: Option<ArrayView1<f64>>,
        bins: NonZeroUsize,
    ) -> Result<Self> {
        if margins.is_empty() {
            return Err(Error::Empty { tensor: "margins", shape: "[pairs]" });
        }
        finite("margins", margins.iter().copied())?;
        matrix("labels", "[pairs]", "pairs", margins.len(), labels.len())?;
        within("labels", labels, "in [0, 1]", |x| (0.0..=1.0).contains(&x))?;

        let last = bins.get() - 1;
        let (mut sums, mut squares) = (vec![Bin { weight: 0.0, predicted: 0.0, observed: 0.0 }; bins.get()], 0.0);
        for (index, (&margin, &label)) in margins.iter().zip(labels).enumerate() {
            let (judged, weight) = (Judgement::new(margin, label), votes.map_or(1.0, |votes| votes[index]));
            let bin = &mut sums[((2.0 * judged.predicted - 1.0) * bins.get() as f64).min(last as f64) as usize];
            bin.weight += weight;
            bin.predicted += weight * judged.predicted;
            bin.observed += weight * judged.observed;
            squares += weight * judged.squared;
        }
        let total: f64 = sums.iter().map(|bin| bin.weight).sum();
        let gaps = || sums.iter().map(|bin| bin.predicted - bin.observed);
        let (expected_error, overconfidence) = (gaps().map(f64::abs).sum::<f64>() / total, gaps().sum::<f64>() / total);
        let filled = sums.iter().filter(|bin| bin.weight > 0.0).map(|&Bin { weight, predicted, observed }| Bin {
            weight,
            predicted: predicted / weight,
            observed: observed / weight,
        });
        Ok(Self { bins: filled.collect(), expected_error, overconfidence, brier: squares / total })
    }
}

/// Every value in its domain.
fn within(
    name: &'static str,
    values: ArrayView1<f64>,
    domain: &'static str,
    holds: impl Fn(f64) -> bool,
) -> Result<()> {
    match values.iter().position(|&value| !holds(value)) {
        Some(index) => Err(Error::Element { tensor: name, index: index as i64, domain, value: values[index] }),
        None => Ok(()),
    }
}
