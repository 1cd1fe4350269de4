use serde::Serialize;
use tch::{Kind, Tensor};

use super::statistics::{mean, moments};
use crate::{Error, ResponseTable, Result, pairs::check::Named};

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Standard deviation of what is independent over the root of its number; NaN for one number alone.
    pub error: f64,
}

impl Estimate {
    /// Of values `[prompts][samples]`. Samples of one prompt are alike, so the prompts' means are what is independent; of one prompt
    /// it is the samples.
    pub(super) fn of(rows: &[Vec<f64>]) -> Self {
        let means: Vec<f64> = rows.iter().map(|row| mean(row.iter().copied())).collect();
        let independent = if rows.len() == 1 { &rows[0] } else { &means };
        let (_, deviation) = moments(independent);
        Self { mean: mean(means.iter().copied()), error: deviation / (independent.len() as f64 - 1.0).sqrt() }
    }
}

/// log π and log π_ref of a table, row by row.
pub(super) fn on_host(samples: &ResponseTable) -> Result<[Vec<Vec<f64>>; 2]> {
    let both = Tensor::f_cat(&[samples.policy(), samples.reference()], 0)?;
    let mut policy = Vec::<Vec<f64>>::try_from(both.detach())?;
    let reference = policy.split_off(samples.policy().size()[0] as usize);
    Ok([policy, reference])
}

/// A function of log π and log π_ref averaged over the samples.
fn expectation(samples: &ResponseTable, of: impl Fn(f64, f64) -> f64) -> Result<Estimate> {
    let [policy, reference] = on_host(samples)?;
    let row = |(policy, reference): (&Vec<f64>, &Vec<f64>)| -> Vec<f64> {
        policy.iter().zip(reference).map(|(policy, reference)| of(*policy, *reference)).collect()
    };
    Ok(Estimate::of(&policy.iter().zip(&reference).map(row).collect::<Vec<_>>()))
}

/// Forward divergence KL(π_ref ‖ π) = E\[log π_ref − log π\], nats, from samples of the **reference**, `[prompts, samples]`, drawn at
/// temperature 1 and without top-p. Unbiased; may come out negative.
///
/// # Errors
/// libtorch's, if it refuses an operation.
pub fn forward_kl(reference_samples: &ResponseTable) -> Result<Estimate> {
    expectation(reference_samples, |policy, reference| reference - policy)
}

/// Reverse divergence KL(π ‖ π_ref) = E\[log π − log π_ref\], nats, from samples of the **policy**, `[prompts, samples]`, drawn at
/// temperature 1 and without top-p. Unbiased; may come out negative.
///
/// # Errors
/// libtorch's, if it refuses an operation.
pub fn reverse_kl(policy_samples: &ResponseTable) -> Result<Estimate> {
    expectation(policy_samples, |policy, reference| policy - reference)
}

/// Probability mass that has moved, Σ_y (π(y) − π_ref(y))₊ = E_π\[(1 − π_ref/π)₊\], in \[0, 1\], from samples of the **policy**,
/// `[prompts, samples]`. Unbiased, and bounded where the divergences are not; for long responses it is soon near 1.
///
/// # Errors
/// libtorch's, if it refuses an operation.
pub fn total_variation(policy_samples: &ResponseTable) -> Result<Estimate> {
    expectation(policy_samples, gained)
}

/// The part of [`total_variation`] that went to **neither** response of the pair: Σ_{y ∉ {y_w, y_l}} (π(y) − π_ref(y))₊.
///
/// `judged` `[prompts, samples]` (Bool) is true where a sample is its prompt's y_w or y_l. It is what DPO's loss does not see: by
/// it mass leaves both responses for ones that nobody has judged.
///
/// Source: Fisch et al. 2024, the degeneracy of DPO, as a share of mass.
///
/// # Errors
/// [`Rank`](Error::Rank), [`Length`](Error::Length) or [`Kind`](Error::Kind) when `judged` does not fit the samples.
pub fn mass_moved_elsewhere(policy_samples: &ResponseTable, judged: &Tensor) -> Result<Estimate> {
    let size = policy_samples.policy().size();
    let named = Named::matrix("judged", "[prompts, samples]", judged).rank(2)?;
    named.length(0, "prompts", size[0])?.length(1, "samples", size[1])?;
    if judged.kind() != Kind::Bool {
        return Err(Error::Kind { tensor: "judged", expected: "Bool", found: judged.kind() });
    }
    let [policy, reference] = on_host(policy_samples)?;
    let judged = Vec::<Vec<bool>>::try_from(judged)?;
    let row = |row: usize| -> Vec<f64> {
        let gains = policy[row].iter().zip(&reference[row]).map(|(policy, reference)| gained(*policy, *reference));
        gains.zip(&judged[row]).map(|(gain, judged)| if *judged { 0.0 } else { gain }).collect()
    };
    Ok(Estimate::of(&(0..policy.len()).map(row).collect::<Vec<_>>()))
}

/// (1 − π_ref/π)₊.
fn gained(policy: f64, reference: f64) -> f64 {
    (-(reference - policy).exp_m1()).max(0.0)
}
