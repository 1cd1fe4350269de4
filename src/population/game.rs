//! The game between types of annotators, who point at what they regret, and a mixture of policies.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rand::{
    Rng,
    distr::{Distribution, weighted::WeightedIndex},
};
use serde::{Deserialize, Serialize};

use super::mixture::{at_least_one, softmax};
use crate::{Error, Result, check};

/// What each type regrets under each policy, with a row of zeros below: `[types + 1, columns]`, nats for weights of 1.
///
/// w_k (L_kk − L_kc), L_kc = mean \[log π_k(y) − log π_ref(y)\] over y ∼ π_c, from `log_ratios` L `[types, columns]` and `weights` w `[types]`, at
/// least 0; times β it is the loss of implicit reward. The first columns are the types' own policies in their order; other candidates may follow,
/// and **the pooled DPO policy should**: where one response suits all types no mixture of their own favourites finds it. A regret is negative
/// where a type likes another's policy better than its own, which stays near the reference; the row of zeros keeps the worst type's regret from
/// falling below 0.
///
/// Source: Chidambaram, Seetharaman and Syrgkanis 2024 (min-max regret); columns beside the types' own are an addition.
///
/// # Errors
/// [`Empty`](Error::Empty) without types, [`Length`](Error::Length) for fewer columns than types or for weights of another number,
/// [`Element`](Error::Element) for a number that is not finite or a negative weight.
pub fn regret_matrix(log_ratios: ArrayView2<f64>, weights: ArrayView1<f64>) -> Result<Array2<f64>> {
    const SHAPE: &str = "[types, columns]";
    let (types, columns) = log_ratios.dim();
    if types == 0 {
        return Err(Error::Empty { tensor: "log_ratios", shape: SHAPE });
    }
    check::matrix("log_ratios", SHAPE, "columns", columns.max(types), columns)?;
    check::matrix("weights", "[types]", "types", types, weights.len())?;
    check::finite("log_ratios", log_ratios.iter().copied())?;
    for (index, &value) in weights.iter().enumerate() {
        if !(value.is_finite() && value >= 0.0) {
            let domain = "at least 0 and finite";
            return Err(Error::Element { tensor: "weights", index: index as i64, domain, value });
        }
    }
    Ok(Array2::from_shape_fn((types + 1, columns), |(k, c)| match weights.get(k) {
        Some(weight) => weight * (log_ratios[[k, k]] - log_ratios[[k, c]]),
        None => 0.0,
    }))
}

/// What [`min_max`] found: averages over its rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Equilibrium {
    /// x̄, the rows' mixture, `[rows]`: which types (or the zero row) the policies are held to.
    pub types: Array1<f64>,
    /// ȳ, the columns' mixture, `[columns]`: what to deploy.
    pub policies: Array1<f64>,
    /// x̄ᵀAȳ: the game's value to within the gap.
    pub value: f64,
    /// max_r (Aȳ)_r − min_c (x̄ᵀA)_c ≥ 0, up to rounding: what the two could still gain. ȳ's worst row is within it of the best possible.
    pub gap: f64,
}

impl Equilibrium {
    /// The mixture of policies to deploy.
    pub fn mixture(&self) -> PolicyMixture {
        PolicyMixture(self.policies.to_vec())
    }
}

/// Equilibrium of the zero-sum game in which rows r (types) receive and columns c (policies) pay A_rc: min_y max_r (Ay)_r, by optimistic multiplicative
/// weights.
///
/// x_{t+1} ∝ exp(η(Σ_{s≤t} Ay_s + Ay_t)), y_{t+1} ∝ exp(−η(Σ_{s≤t} Aᵀx_s + Aᵀx_t)), both from uniform; the answer is the averages over t. At
/// the default step η = ¼/max|A|, which is also the largest allowed, the duality gap is at most
/// max|A| (4 log(rows · columns) + ½) / rounds. `step` takes a smaller one.
///
/// Source: Rakhlin and Sridharan 2013; the rate by the bound of Syrgkanis, Agarwal, Luo and Schapire 2015.
///
/// # Errors
/// [`Empty`](Error::Empty) for a matrix without elements, [`Element`](Error::Element) for one that is not finite, [`Domain`](Error::Domain) for 0 rounds or
/// a step outside (0, ¼/max|A|].
pub fn min_max(payoff: ArrayView2<f64>, rounds: usize, step: Option<f64>) -> Result<Equilibrium> {
    if payoff.is_empty() {
        return Err(Error::Empty { tensor: "payoff", shape: "[types, policies]" });
    }
    check::finite("payoff", payoff.iter().copied())?;
    let rounds = at_least_one("rounds", rounds)?.get();
    let largest = payoff.iter().fold(f64::MIN_POSITIVE, |largest, a| largest.max(a.abs()));
    let limit = 0.25 / largest;
    let step = step.unwrap_or(limit);
    if !(step > 0.0 && step <= limit) {
        return Err(Error::Domain {
            parameter: "step",
            domain: "positive and at most 1/(4 max |payoff|)",
            value: step,
        });
    }

    let zeros = || (Array1::<f64>::zeros(payoff.nrows()), Array1::<f64>::zeros(payoff.ncols()));
    let (mut types, mut policies) = zeros();
    let (mut gains, mut losses) = zeros();
    let (mut last_gain, mut last_loss) = zeros();
    for _ in 0..rounds {
        let x = play((&gains + &last_gain) * step);
        let y = play((&losses + &last_loss) * -step);
        (last_gain, last_loss) = (payoff.dot(&y), payoff.t().dot(&x));
        gains += &last_gain;
        losses += &last_loss;
        types += &x;
        policies += &y;
    }
    let [types, policies] = [types, policies].map(|sum| sum / rounds as f64);
    let (gains, losses) = (payoff.dot(&policies), payoff.t().dot(&types));
    let best_row = gains.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let best_column = losses.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Equilibrium { value: types.dot(&gains), gap: best_row - best_column, types, policies })
}

fn play(mut scores: Array1<f64>) -> Array1<f64> {
    softmax(scores.as_slice_mut().expect("one row"));
    scores
}

/// A policy that draws a member for each prompt and lets it answer: π(y) = Σ_m w_m π_m(y), of **whole** responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct PolicyMixture(Vec<f64>);

impl PolicyMixture {
    /// From the members' weights, `[members]`.
    ///
    /// # Errors
    /// [`Element`](Error::Element) for a weight that is negative or not finite, [`Simplex`](Error::Simplex) unless they sum to 1.
    pub fn new(weights: Vec<f64>) -> Result<Self> {
        check::probabilities("weights", ArrayView1::from(weights.as_slice()), 0)?;
        Ok(Self(weights))
    }

    /// w, `[members]`.
    pub fn weights(&self) -> &[f64] {
        &self.0
    }

    /// The member that answers the next prompt.
    pub fn sample(&self, rng: &mut impl Rng) -> usize {
        WeightedIndex::<f64>::new(&self.0).expect("weights are at least 0 and sum to 1").sample(rng)
    }

    /// log π(y) = log Σ_m w_m π_m(y), `[responses]`, from the members' log π_m(y), `[members, responses]`, nats, summed over each response's
    /// tokens: a mixture of token probabilities would be another policy, that changes its mind at each token.
    ///
    /// # Errors
    /// [`Length`](Error::Length) for another number of members, [`Element`](Error::Element) for NaN or +∞; −∞ is a probability of 0.
    pub fn log_probability(&self, members: ArrayView2<f64>) -> Result<Array1<f64>> {
        check::matrix("members", "[members, responses]", "members", self.0.len(), members.nrows())?;
        for (index, &value) in members.iter().enumerate() {
            if value.is_nan() || value == f64::INFINITY {
                let domain = "a number below infinity";
                return Err(Error::Element { tensor: "members", index: index as i64, domain, value });
            }
        }
        let mixed = |response: ArrayView1<f64>| {
            let terms = || self.0.iter().zip(response).filter(|(w, _)| **w > 0.0).map(|(w, log)| w.ln() + log);
            let top = terms().fold(f64::NEG_INFINITY, f64::max);
            if top == f64::NEG_INFINITY { top } else { top + terms().map(|term| (term - top).exp()).sum::<f64>().ln() }
        };
        Ok(members.columns().into_iter().map(mixed).collect())
    }
}

impl TryFrom<Vec<f64>> for PolicyMixture {
    type Error = Error;
    fn try_from(weights: Vec<f64>) -> Result<Self> {
        Self::new(weights)
    }
}

impl From<PolicyMixture> for Vec<f64> {
    fn from(mixture: PolicyMixture) -> Self {
        mixture.0
    }
}
