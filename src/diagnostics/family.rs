use std::num::NonZeroUsize;

use ndarray::{ArrayView1, ArrayView2, Axis};
use serde::Serialize;

use super::{
    Reliability,
    statistics::{mean, win},
};
use crate::{
    Error, Result,
    check::{finite, matrix},
};

/// Bins of equal width over confidences \[½, 1\] for `expected_calibration_error`.
const BINS: NonZeroUsize = NonZeroUsize::new(10).expect("10 is not 0");

/// How good one reward model is on pairs that it was not trained on; Δr is its margin of a pair, p the pair's label.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemberReport {
    /// The label's share for the response of the higher score: mean of p where Δr > 0, 1 − p where Δr < 0, ½ at a tie.
    /// Of labels 0 and 1 the share of pairs that are called right.
    pub accuracy: f64,
    /// Mean of −p log σ(Δr) − (1 − p) log σ(−Δr), nats; ln 2 for a model that never prefers a response.
    pub log_loss: f64,
    /// [`Reliability::expected_error`] in 10 bins of equal width over confidences σ(|Δr|) in \[½, 1\]; in \[0, 1\].
    pub expected_calibration_error: f64,
    /// Mean of Δr, units of reward.
    pub margin: f64,
    /// Share of the pairs of unequal length whose longer response has the higher score, a tie counting ½; `None` where
    /// no lengths are known or all are equal.
    pub prefers_longer: Option<f64>,
}

/// How good a family of reward models is, one by one and as their mean, and how far its members agree.
///
/// Swapping a pair, Δr with −Δr, p with 1 − p and the sign of its difference of lengths, changes nothing but `margin`.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use ndarray::{array, aview1};
/// use prefopt::diagnostics::FamilyReport;
///
/// // Two members, three pairs, whose chosen responses are 4 and 2 tokens longer and 1 shorter.
/// let margins = array![[1.0, 2.0, -0.5], [0.5, -1.0, 1.0]];
/// let report = FamilyReport::new(margins.view(), aview1(&[1.0; 3]), Some(aview1(&[4.0, 2.0, -1.0])))?;
/// assert_eq!((report.members[0].accuracy, report.members[0].prefers_longer), (2.0 / 3.0, Some(1.0)));
/// assert_eq!((report.mean.accuracy, report.agreement), (1.0, 1.0 / 3.0));
/// # Ok(()) }
/// ```
///
/// Source: Guo et al. 2017, "On calibration of modern neural networks" (expected calibration error).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FamilyReport {
    /// In the order of the margins' rows.
    pub members: Vec<MemberReport>,
    /// The same of the members' mean margin: what averaging the family gives.
    pub mean: MemberReport,
    /// Mean over pairs and over pairs of members of whether both members prefer the same response, ½ where one of them
    /// has a tie; 1 for one member.
    pub agreement: f64,
    /// Share of pairs on which all members prefer the same response, without a tie.
    pub unanimous: f64,
}

impl FamilyReport {
    /// From `margins` Δr `[members, pairs]`, units of reward, `labels` p `[pairs]`, the probability that the response
    /// called chosen is the better one, and, where they are known, `length_differences` |y_w| − |y_l| `[pairs]`,
    /// tokens.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a member or a pair, [`Length`](Error::Length) when numbers of pairs differ,
    /// [`Element`](Error::Element) for a margin or difference that is not finite or a label outside \[0, 1\].
    pub fn new(
        margins: ArrayView2<f64>,
        labels: ArrayView1<f64>,
        length_differences: Option<ArrayView1<f64>>,
    ) -> Result<Self> {
        let pairs = margins.ncols();
        let Some(averaged) = margins.mean_axis(Axis(0)).filter(|_| pairs > 0) else {
            return Err(Error::Empty { tensor: "margins", shape: "[members, pairs]" });
        };
        finite("margins", margins.iter().copied())?;
        if let Some(differences) = length_differences {
            matrix("length_differences", "[pairs]", "pairs", pairs, differences.len())?;
            finite("length_differences", differences.iter().copied())?;
        }
        let report = |margins: ArrayView1<f64>| MemberReport::new(margins, labels, length_differences);
        let members = margins.rows().into_iter().map(report).collect::<Result<Vec<_>>>()?;
        let (agreement, unanimous) = agreement(margins);
        Ok(Self { members, mean: report(averaged.view())?, agreement, unanimous })
    }
}

impl MemberReport {
    /// [`Reliability`] refuses margins and labels that do not fit.
    fn new(
        margins: ArrayView1<f64>,
        labels: ArrayView1<f64>,
        length_differences: Option<ArrayView1<f64>>,
    ) -> Result<Self> {
        let reliability = Reliability::new(margins, labels, BINS)?;
        let judged = || margins.iter().copied().zip(labels.iter().copied());
        let longer = |differences: ArrayView1<f64>| {
            let unequal = margins.iter().zip(differences).filter(|(_, difference)| **difference != 0.0);
            let wins: Vec<f64> = unequal.map(|(margin, difference)| win(margin * difference.signum())).collect();
            (!wins.is_empty()).then(|| mean(wins))
        };
        Ok(Self {
            accuracy: mean(judged().map(|(margin, label)| label * win(margin) + (1.0 - label) * win(-margin))),
            log_loss: mean(judged().map(|(margin, label)| cross_entropy(margin, label))),
            expected_calibration_error: reliability.expected_error,
            margin: mean(margins.iter().copied()),
            prefers_longer: length_differences.and_then(longer),
        })
    }
}

/// −p log σ(x) − (1 − p) log σ(−x) = max(x, 0) − p x + log(1 + e^{−|x|}), nats.
fn cross_entropy(margin: f64, label: f64) -> f64 {
    margin.max(0.0) - label * margin + (-margin.abs()).exp().ln_1p()
}

/// Agreement over pairs of members, and the share of pairs on which all agree.
fn agreement(margins: ArrayView2<f64>) -> (f64, f64) {
    let members = margins.nrows() as f64;
    // With signs s_m in {−1, 0, 1}, two members agree by ½ + ½ s_m s_k, and Σ_{m≠k} s_m s_k = (Σ s)² − Σ s².
    let signs = || {
        margins.columns().into_iter().map(|column| {
            let signs = column.mapv(|margin| 2.0 * win(margin) - 1.0);
            (signs.sum(), signs.dot(&signs))
        })
    };
    let couples = members * (members - 1.0);
    let agreement = if couples > 0.0 {
        mean(signs().map(|(sum, squares)| 0.5 + 0.5 * (sum * sum - squares) / couples))
    } else {
        1.0
    };
    (agreement, mean(signs().map(|(sum, _)| if sum.abs() == members { 1.0 } else { 0.0 })))
}
