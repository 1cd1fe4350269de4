use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::{Error, Result, check, population::Votes};

/// γ, the probability that each annotator is of each type: `[annotators, types]`, rows summing to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Responsibilities(Array2<f64>);

impl Responsibilities {
    /// Checks each row.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without annotators or types, [`Element`](Error::Element) for a number that is negative or not finite,
    /// [`Simplex`](Error::Simplex) for a row that does not sum to 1.
    pub fn new(values: Array2<f64>) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::Empty { tensor: "responsibilities", shape: "[annotators, types]" });
        }
        for (index, row) in values.outer_iter().enumerate() {
            check::probabilities("responsibilities", row, index)?;
        }
        Ok(Self(values))
    }

    /// Rows that are probabilities by their making.
    pub(super) fn trusted(values: Array2<f64>) -> Self {
        Self(values)
    }

    /// 1 for each annotator's type.
    pub(super) fn of_types(assigned: &[usize], types: usize) -> Self {
        let certain = |(annotator, kind): (usize, usize)| f64::from(assigned[annotator] == kind);
        Self(Array2::from_shape_fn((assigned.len(), types), certain))
    }

    /// γ_ik, `[annotators, types]`.
    pub fn values(&self) -> ArrayView2<'_, f64> {
        self.0.view()
    }

    /// Number of annotators.
    pub fn annotators(&self) -> usize {
        self.0.nrows()
    }

    /// Number of types.
    pub fn types(&self) -> usize {
        self.0.ncols()
    }

    /// η_k = mean_i γ_ik, `[types]`: the types' shares, as the M-step estimates them.
    pub fn proportions(&self) -> Array1<f64> {
        self.0.sum_axis(Axis(0)) / self.annotators() as f64
    }

    /// Each annotator's most probable type, `[annotators]`; the first of equals.
    pub fn most_likely(&self) -> Vec<usize> {
        let best = |row: ndarray::ArrayView1<f64>| {
            row.iter().enumerate().fold(0, |best, (kind, &value)| if value > row[best] { kind } else { best })
        };
        self.0.outer_iter().map(best).collect()
    }
}

/// What the M-step of each type k reads of the votes: n_k(j) = Σ_i γ_ik · (votes of i for the first, or the second, response of pair j),
/// `[types, pairs]`.
///
/// Type k's objective is DPO under its responsibilities, Σ_i γ_ik Σ_j −log σ(±βh_k(j)) =
/// Σ_j \[−n_first(j) log σ(βh_k(j)) − n_second(j) log σ(−βh_k(j))\], with h of the first against the second response. That is, up to the factor
/// Σ_j n(j) which no step's direction depends on, the mean of [`ProbabilityMatching::to_soft_labels`](crate::loss::ProbabilityMatching::to_soft_labels)
/// on a batch of all pairs, the first responses as the chosen ones, under the pair weights [`weights`](Self::weights) and soft labels
/// [`labels`](Self::labels).
#[derive(Debug, Clone, PartialEq)]
pub struct PairWeights {
    first: Array2<f64>,
    second: Array2<f64>,
}

impl PairWeights {
    /// Counts under responsibilities. With one type they are plain counts, and its M-step is DPO on all votes.
    ///
    /// # Errors
    /// [`Length`](Error::Length) for responsibilities of another number of annotators.
    pub fn new(votes: &Votes, responsibilities: &Responsibilities) -> Result<Self> {
        let found = responsibilities.annotators();
        check::matrix("responsibilities", "[annotators, types]", "annotators", votes.annotators(), found)?;
        let mut counts = Array2::<f64>::zeros((2 * votes.pairs(), responsibilities.types()));
        for (annotator, row) in responsibilities.values().outer_iter().enumerate() {
            for &outcome in votes.outcomes(annotator) {
                counts.row_mut(outcome).zip_mut_with(&row, |count, share| *count += share);
            }
        }
        let side = |offset: isize| counts.slice(ndarray::s![offset..;2, ..]).t().as_standard_layout().into_owned();
        Ok(Self { first: side(1), second: side(0) })
    }

    /// Number of types.
    pub fn types(&self) -> usize {
        self.first.nrows()
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.first.ncols()
    }

    /// Weighted votes for each pair's first response, `[types, pairs]`.
    pub fn first(&self) -> ArrayView2<'_, f64> {
        self.first.view()
    }

    /// Weighted votes for each pair's second response, `[types, pairs]`.
    pub fn second(&self) -> ArrayView2<'_, f64> {
        self.second.view()
    }

    /// n_first + n_second, `[types, pairs]`: a row is a type's column of pair weights. It is all 0 for a type that nobody is of, which a
    /// batch refuses: such a type keeps the reference.
    pub fn weights(&self) -> Array2<f64> {
        &self.first + &self.second
    }

    /// n_first / (n_first + n_second), `[types, pairs]`: a row is a type's column of soft labels; ½ where nobody has voted.
    pub fn labels(&self) -> Array2<f64> {
        let share = |&first: &f64, &second: &f64| if first + second > 0.0 { first / (first + second) } else { 0.5 };
        ndarray::Zip::from(&self.first).and(&self.second).map_collect(share)
    }
}
