use std::num::NonZeroUsize;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{PairWeights, Responsibilities, at_least_one, softmax};
use crate::{Error, Result, check, domain::Tolerance, population::Votes};

/// Annotators summed by one job, in an order that does not depend on the number of threads.
const BLOCK: usize = 1024;

/// How much of an annotator each type gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignment {
    /// γ: the posterior probability of each type. What the paper does.
    #[default]
    Soft,
    /// All of the annotator to its most probable type, the first of equals: classification EM (Celeux and Govaert 1992). Each vote trains one
    /// policy only; the likelier to stay where it started.
    Hard,
}

/// EM-DPO: annotators of K latent types, each with a policy of its own; the votes of an annotator share its type.
///
/// Annotator i, of type k with probability η_k, prefers the first response of pair j with probability σ(βh_k(j)).
///
/// - E-step ([`expect`](Self::expect)): γ_ik ∝ η_k ∏_j σ(±βh_k(j)) over the votes of i, in logarithms.
/// - M-step: η_k = mean_i γ_ik; policy k minimises the DPO loss of all votes under weights γ_ik ([`PairWeights`]). The caller's closure trains
///   it: from the reference in each round, as in the paper, or from where it was.
///
/// Start from a clustering ([`KMeans`](super::KMeans)): equal rows give equal policies, which give equal rows, a saddle. Annotators need several
/// votes each; with one apiece every mixture of the same mean vote explains them alike.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use ndarray::array;
/// use prefopt::{Error, population::{AnnotatorMixture, PairWeights, Responsibilities, Votes}};
///
/// // Annotators 0 and 1 like the first response of both pairs, 2 and 3 the second.
/// let who = [0, 0, 1, 1, 2, 2, 3, 3];
/// let votes = Votes::new(&who, &[0, 1, 0, 1, 0, 1, 0, 1], &who.map(|i| i < 2), (4, 2))?;
/// let start = Responsibilities::new(array![[0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])?;
///
/// // A policy that may put any log-odds on any pair, with half a vote for either side beside those cast.
/// let log_odds = |weights: &PairWeights| {
///     let odds = (&weights.first() + 0.5) / (&weights.second() + 0.5);
///     Ok::<_, Error>(odds.mapv(f64::ln))
/// };
/// let fit = AnnotatorMixture::new(50)?.fit(&votes, start, log_odds)?;
/// assert_eq!(fit.responsibilities.most_likely(), [0, 0, 1, 1]);
/// # Ok(()) }
/// ```
///
/// Source: Chidambaram, Seetharaman and Syrgkanis 2024, "Direct preference optimization with unobserved preference heterogeneity".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnotatorMixture {
    rounds: NonZeroUsize,
    #[serde(default)]
    tolerance: Tolerance,
    #[serde(default)]
    assignment: Assignment,
}

/// Where EM ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// γ under the parameters below, `[annotators, types]`.
    pub responsibilities: Responsibilities,
    /// η, `[types]`.
    pub proportions: Array1<f64>,
    /// βh_k of the policies that the last M-step trained, `[types, pairs]`.
    pub margins: Array2<f64>,
    /// What [`AnnotatorMixture::expect`] gave in each round, in nats. With M-steps that lower (or keep) each type's objective it does not fall.
    pub trace: Vec<f64>,
}

impl AnnotatorMixture {
    /// At most this many rounds of one M-step and one E-step, with soft assignment.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for 0.
    pub fn new(rounds: usize) -> Result<Self> {
        let rounds = at_least_one("rounds", rounds)?;
        Ok(Self { rounds, tolerance: Tolerance::default(), assignment: Assignment::default() })
    }

    /// Ends once a round changes the log-likelihood by at most this many nats a vote; 0, the default, ends at a fixed point.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless it is at least 0 and finite.
    pub fn with_tolerance(self, tolerance: f64) -> Result<Self> {
        Ok(Self { tolerance: Tolerance::new(tolerance)?, ..self })
    }

    /// With another assignment.
    #[must_use]
    pub fn with_assignment(self, assignment: Assignment) -> Self {
        Self { assignment, ..self }
    }

    /// E-step: γ and the log-likelihood of the votes in nats, from η `[types]` and `margins` βh_k(j) of the first against the second response,
    /// `[types, pairs]`.
    ///
    /// With l_ik = log η_k + Σ_j log σ(±βh_k(j)) over the votes of i: γ_i = softmax l_i and Σ_i log Σ_k e^{l_ik}; with
    /// [`Hard`](Assignment::Hard) assignment 1 for the largest and Σ_i max_k l_ik, the classification log-likelihood.
    ///
    /// # Errors
    /// [`Length`](Error::Length) for margins of other shape, [`Element`](Error::Element) for a number that is not finite,
    /// [`Simplex`](Error::Simplex) for proportions that do not sum to 1.
    pub fn expect(
        &self,
        votes: &Votes,
        proportions: ArrayView1<f64>,
        margins: ArrayView2<f64>,
    ) -> Result<(Responsibilities, f64)> {
        check::probabilities("proportions", proportions, 0)?;
        fits(margins, proportions.len(), votes)?;
        let log_prior = proportions.mapv(f64::ln);
        let prior = |_: usize, row: &mut [f64]| row.iter_mut().zip(&log_prior).for_each(|(l, log)| *l = *log);
        let settle: fn(&mut [f64]) -> f64 = match self.assignment {
            Assignment::Soft => softmax,
            Assignment::Hard => winner,
        };
        let (rows, sums) = posterior(votes, margins, prior, settle);
        Ok((Responsibilities::trusted(rows), sums.iter().sum()))
    }

    /// Rounds of M-step and E-step from `start`. `m_step` trains each type's policy on its pair weights and returns βh_k(j) of the first
    /// against the second response, `[types, pairs]`; its own errors pass through. A type that nobody is of has weights 0, and whatever
    /// its margins are it stays so.
    ///
    /// # Errors
    /// [`Length`](Error::Length) when `start` or the margins do not fit the votes, [`TooManyTypes`](Error::TooManyTypes) for more types than
    /// annotators, [`Element`](Error::Element) for a margin that is not finite; those of `m_step`.
    pub fn fit<E: From<Error>>(
        &self,
        votes: &Votes,
        start: Responsibilities,
        mut m_step: impl FnMut(&PairWeights) -> std::result::Result<Array2<f64>, E>,
    ) -> std::result::Result<Fit, E> {
        let (types, annotators) = (start.types(), votes.annotators());
        if types > annotators {
            return Err(Error::TooManyTypes { types, annotators }.into());
        }
        let tolerance = self.tolerance.get() * votes.len() as f64;
        let mut trace = Vec::new();
        let mut responsibilities = start;
        loop {
            let proportions = responsibilities.proportions();
            let margins = m_step(&PairWeights::new(votes, &responsibilities)?)?;
            let (next, log_likelihood) = self.expect(votes, proportions.view(), margins.view())?;
            responsibilities = next;
            let change = trace.last().map_or(f64::INFINITY, |last: &f64| (log_likelihood - last).abs());
            trace.push(log_likelihood);
            if trace.len() >= self.rounds.get() || change <= tolerance {
                return Ok(Fit { responsibilities, proportions, margins, trace });
            }
        }
    }
}

/// Log-likelihood of each annotator's held-out votes given those that γ was estimated on: log Σ_k γ_ik ∏_j σ(±βh_k(j)), nats, `[annotators]`;
/// 0 without held-out votes. Choose the number of types by its sum; two numbers' differences, paired by annotator, give the standard error.
///
/// # Errors
/// [`Length`](Error::Length) for γ or margins of other shape, [`Element`](Error::Element) for a margin that is not finite.
pub fn held_out_log_likelihood(
    responsibilities: &Responsibilities,
    margins: ArrayView2<f64>,
    held_out: &Votes,
) -> Result<Array1<f64>> {
    let found = responsibilities.annotators();
    check::matrix("responsibilities", "[annotators, types]", "annotators", held_out.annotators(), found)?;
    fits(margins, responsibilities.types(), held_out)?;
    let gamma = responsibilities.values();
    let prior = |annotator: usize, row: &mut [f64]| {
        row.iter_mut().zip(gamma.row(annotator)).for_each(|(l, share)| *l = share.ln());
    };
    Ok(Array1::from(posterior(held_out, margins, prior, softmax).1))
}

fn fits(margins: ArrayView2<f64>, types: usize, votes: &Votes) -> Result<()> {
    const SHAPE: &str = "[types, pairs]";
    check::matrix("margins", SHAPE, "types", types, margins.nrows())?;
    check::matrix("margins", SHAPE, "pairs", votes.pairs(), margins.ncols())?;
    check::finite("margins", margins.iter().copied())
}

/// Rows of log prior + Σ log σ(±margin), each put through `settle`, and what that returned: `[annotators, types]` and `[annotators]`.
fn posterior(
    votes: &Votes,
    margins: ArrayView2<f64>,
    prior: impl Fn(usize, &mut [f64]) + Sync,
    settle: fn(&mut [f64]) -> f64,
) -> (Array2<f64>, Vec<f64>) {
    let types = margins.nrows();
    let table = log_likelihoods(margins);
    let mut rows = vec![0.0; votes.annotators() * types];
    let mut sums = vec![0.0; votes.annotators()];
    let blocks = rows.par_chunks_mut(BLOCK * types).zip(sums.par_chunks_mut(BLOCK)).enumerate();
    blocks.for_each(|(block, (rows, sums))| {
        for (i, (row, sum)) in rows.chunks_exact_mut(types).zip(sums).enumerate() {
            let annotator = block * BLOCK + i;
            prior(annotator, row);
            for outcome in votes.outcomes(annotator) {
                let of_types = &table[outcome * types..(outcome + 1) * types];
                row.iter_mut().zip(of_types).for_each(|(l, log)| *l += log);
            }
            *sum = settle(row);
        }
    });
    let rows = Array2::from_shape_vec((votes.annotators(), types), rows).expect("a row of types for each annotator");
    (rows, sums)
}

/// log σ(±margin) by outcome, `[2 · pairs, types]`: a vote looks its logarithm up.
fn log_likelihoods(margins: ArrayView2<f64>) -> Vec<f64> {
    let types = margins.nrows();
    let mut table = vec![0.0; 2 * margins.len()];
    table.par_chunks_exact_mut(2 * types).with_min_len(BLOCK).enumerate().for_each(|(pair, rows)| {
        let (second, first) = rows.split_at_mut(types);
        for ((second, first), &margin) in second.iter_mut().zip(first).zip(margins.column(pair)) {
            let tail = (-margin.abs()).exp().ln_1p();
            *second = (-margin).min(0.0) - tail;
            *first = margin.min(0.0) - tail;
        }
    });
    table
}

/// 1 for the first of the largest and 0 for the others, in place; returns the largest.
fn winner(row: &mut [f64]) -> f64 {
    let best = (1..row.len()).fold(0, |best, kind| if row[kind] > row[best] { kind } else { best });
    let top = row[best];
    row.fill(0.0);
    row[best] = 1.0;
    top
}
