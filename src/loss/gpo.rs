use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, ResponseTable, Result, domain::Beta, pairs::check::Named};

const LAST: &[i64] = &[-1];

/// What the residual d(y) = log(π(y)/π_t(y)) − ŝ(y≻π_t)/β is measured from.
///
/// The paper's objective, E ŝ − β KL(π ‖ π_t), is solved by π ∝ π_t e^{ŝ/β}, where d is −log Z and not 0. What its regression does about Z
/// is reconstructed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Centring {
    /// The mean of d over the prompt's samples: Z drops out, and the minimiser is π ∝ π_t e^{ŝ/β} at every β.
    #[default]
    Prompt,
    /// 0, which takes Z for 1: right as β → ∞, where Z = 1 + O(1/β²). At small β the minimiser is another policy: for three responses in a
    /// cycle of scores √3/2, π_t = (½, ¼, ¼) and β = .1 it is off by .18 in total variation.
    None,
}

/// General preference optimization: mean over a prompt's responses of (d − d̄)², d = log(π(y)/π_t(y)) − ŝ(y≻π_t)/β, `[batch]`, nats².
///
/// A step of self-play, π_{t+1} ∝ π_t e^{ŝ/β}: sample π_t, score each sample against the others ([`scores_against`]), minimise this, repeat
/// with the result as π_t ([`SelfPlay`](crate::population::SelfPlay) is the same without sampling). Small β makes large steps. With a
/// Condorcet winner the last iterate goes to it; on a cycle it circles, and the **average** iterate goes to the Nash mixture.
///
/// Of K responses it is K⁻² Σ_{i<j} (h_ij − Δŝ_ij/β)², h_ij the log-ratio margin against π_t: distillation
/// ([`RewardDistillation`](super::RewardDistillation)) of r = ŝ(·≻π_t) on all pairs, over β². So it compares the responses of one prompt,
/// and is no [`PreferenceLoss`](super::PreferenceLoss), whose batch holds pairs.
///
/// Source: Zhang et al. 2024, "Beyond Bradley–Terry models", the objective; the centred regression is reconstructed: see [`Centring`]. The
/// authors' scripts keep the best and the worst of five samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpo {
    beta: Beta,
    #[serde(default)]
    centring: Centring,
}

impl Gpo {
    /// Centred over each prompt's samples. β in units of score for each nat.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, centring: Centring::Prompt })
    }

    /// The same with the residual measured from elsewhere.
    #[must_use]
    pub fn with_centring(self, centring: Centring) -> Self {
        Self { centring, ..self }
    }

    /// Loss of each prompt, `[batch]`. `responses` holds log π, which receives the gradient, and as its reference log π_t, of samples of π_t,
    /// `[batch, responses]`; `scores` is ŝ(y≻π_t), of that shape and without a gradient.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Device`](Error::Device) or [`KindOf`](Error::KindOf) when the scores do not fit
    /// the responses; [`Domain`](Error::Domain) for one response a prompt, whose centred residual is 0 whatever π is.
    pub fn per_prompt(&self, responses: &ResponseTable, scores: &Tensor) -> Result<Tensor> {
        let (policy, current) = (responses.policy(), responses.reference());
        let size = policy.size();
        let named = Named::matrix("scores", "[batch, responses]", scores).rank(2)?.length(0, "batch", size[0])?;
        named.length(1, "responses", size[1])?.device(policy.device())?.kind_of(policy)?;
        let residual = policy - current - scores.detach() / self.beta.get();
        let centred = match self.centring {
            Centring::None => residual,
            Centring::Prompt if size[1] == 1 => return Err(ALONE),
            Centring::Prompt => &residual - residual.mean_dim(LAST, true, residual.kind()),
        };
        Ok(centred.square().mean_dim(LAST, false, centred.kind()))
    }

    /// Mean over the prompts, a scalar.
    ///
    /// # Errors
    /// As [`per_prompt`](Self::per_prompt).
    pub fn mean(&self, responses: &ResponseTable, scores: &Tensor) -> Result<Tensor> {
        let losses = self.per_prompt(responses, scores)?;
        Ok(losses.mean(losses.kind()))
    }
}

const ALONE: Error = Error::Domain {
    parameter: "number of responses to a prompt",
    domain: "at least 2 (the centred residual of one is 0 for every policy)",
    value: 1.0,
};

/// ŝ(y≻π_t): the mean score of each response against samples of π_t, `[batch, responses]`, from s(y≻y′), `[batch, responses, opponents]`.
///
/// Of a [`preference_table`](crate::reward::preference_table) the opponents are the responses themselves: the mean is over all K, so each
/// is compared with itself too, at 0. That is the exact score against the K samples as a mixture, sums to 0 over them, and is (K−1)/K of
/// the mean over the others, which β absorbs.
///
/// # Errors
/// [`Rank`](Error::Rank), [`Empty`](Error::Empty) or [`Kind`](Error::Kind) unless the table has three dimensions and is f32 or f64.
pub fn scores_against(table: &Tensor) -> Result<Tensor> {
    Named::matrix("table", "[batch, responses, opponents]", table).rank(3)?.wide()?;
    Ok(table.mean_dim(LAST, false, table.kind()))
}
