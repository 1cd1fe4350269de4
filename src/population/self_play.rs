use ndarray::{Array1, Array2, ArrayView1};

use crate::{Error, Result, check, domain::Beta};

const SCORES: &str = "scores";
const SQUARE: &str = "[responses, responses]";
const POLICY: &str = "[responses]";

/// How far s(j≻i) may miss −s(i≻j), relative to 1 + |s|.
const ROUNDING: f64 = 1e-9;

/// Self-play on a table of preference scores: π_{t+1}(y) ∝ π_t(y) e^{s(y≻π_t)/β}, s(y≻π) = Σ_j π(j) s(y≻j), exact, in f64.
///
/// What [`Gpo`](crate::loss::Gpo) does to a policy, for responses that can be enumerated. It is multiplicative weights on a symmetric
/// zero-sum game. Against a Nash mixture π*, with Z_t = E_{π_t} e^{s(y≻π_t)/β} ≥ 1:
///
/// - on a cycle, where π* gives mass to all, KL(π* ‖ π_{t+1}) = KL(π* ‖ π_t) + log Z_t: the **last** iterate moves away from π*, for ever;
/// - [`exploitability`](Self::exploitability) of the **average** of π_0 … π_T is at most β/(T+1) · \[max_y −log π_0(y) + Σ_t log Z_t\], and
///   log Z_t ≤ (max s − min s)²/(8β²), so 1/β sets how near it comes within how many steps;
/// - where one response beats every other (a Condorcet winner), it is the Nash mixture and both go to it.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use ndarray::array;
/// use prefopt::population::SelfPlay;
///
/// let cycle = array![[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]];
/// let mut play = SelfPlay::new(cycle, array![0.6, 0.3, 0.1], 4.0)?;
/// (0..2000).for_each(|_| play.step());
/// assert!(play.exploitability(play.average().view())? < 0.02);
/// assert!(play.exploitability(play.policy().view())? > 0.2);
/// # Ok(()) }
/// ```
///
/// Source: Zhang et al. 2024, the iteration of general preference optimization; Freund and Schapire 1999, "Adaptive game playing using
/// multiplicative weights", for the average.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfPlay {
    scores: Array2<f64>,
    beta: Beta,
    /// log π_t; −∞ without mass.
    log_policy: Array1<f64>,
    /// Σ over the policies so far.
    sum: Array1<f64>,
    steps: usize,
}

impl SelfPlay {
    /// From scores s(i≻j), `[responses, responses]`, row i column j, and the first policy π_0, `[responses]`, often π_ref. A response
    /// without mass in π_0 never gets any. β in units of score.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a response, [`Length`](Error::Length) for a table that is not square or a policy of another length,
    /// [`Element`](Error::Element) for a score that is not finite or not minus that of the reversed pair, and for a negative probability,
    /// [`Simplex`](Error::Simplex) where they do not sum to 1, [`Domain`](Error::Domain) unless β is positive and finite.
    pub fn new(scores: Array2<f64>, start: Array1<f64>, beta: f64) -> Result<Self> {
        let responses = scores.nrows();
        if scores.is_empty() {
            return Err(Error::Empty { tensor: SCORES, shape: SQUARE });
        }
        check::matrix(SCORES, SQUARE, "responses", responses, scores.ncols())?;
        check::finite(SCORES, scores.iter().copied())?;
        for ((i, j), &value) in scores.indexed_iter() {
            if (value + scores[[j, i]]).abs() > ROUNDING * (1.0 + value.abs()) {
                let (index, domain) = ((i * responses + j) as i64, "minus the score of the reversed pair");
                return Err(Error::Element { tensor: SCORES, index, domain, value });
            }
        }
        check::matrix("start", POLICY, "responses", responses, start.len())?;
        check::probabilities("start", start.view(), 0)?;
        let policy = &start / start.sum();
        Ok(Self { beta: Beta::new(beta)?, log_policy: policy.mapv(f64::ln), sum: policy, scores, steps: 0 })
    }

    /// From π_t to π_{t+1}.
    pub fn step(&mut self) {
        let tilted = &self.log_policy + &(self.scores.dot(&self.policy()) / self.beta.get());
        let top = tilted.fold(f64::NEG_INFINITY, |top, &x| top.max(x));
        let log_total = top + tilted.mapv(|x| (x - top).exp()).sum().ln();
        self.log_policy = tilted - log_total;
        let policy = self.policy();
        self.sum += &policy;
        self.steps += 1;
    }

    /// t.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// π_t, `[responses]`.
    pub fn policy(&self) -> Array1<f64> {
        self.log_policy.mapv(f64::exp)
    }

    /// Mean of π_0 … π_t, `[responses]`: a mixture of policies, drawn once for each prompt.
    pub fn average(&self) -> Array1<f64> {
        &self.sum / (self.steps + 1) as f64
    }

    /// max_y s(y≻π): what the best response gains against a policy `[responses]`, in units of score. It is 0 exactly for Nash mixtures and
    /// positive for every other policy.
    ///
    /// # Errors
    /// [`Length`](Error::Length), [`Element`](Error::Element) or [`Simplex`](Error::Simplex) unless the policy is a distribution over the
    /// responses.
    pub fn exploitability(&self, policy: ArrayView1<'_, f64>) -> Result<f64> {
        check::matrix("policy", POLICY, "responses", self.scores.nrows(), policy.len())?;
        check::probabilities("policy", policy, 0)?;
        Ok(self.scores.dot(&policy).fold(f64::NEG_INFINITY, |best, &gain| best.max(gain)))
    }
}
