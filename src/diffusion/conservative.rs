//! Fine-tuning of a diffusion model on a learned reward, back through the denoising chain.
//!
//! The reverse chain is x_{t−1} = μ_θ(x_t, t) + σ_t z; pretrained and tuned model share σ_t, so that their divergence is a difference
//! of means. The gradient goes through the last n steps. Let the **pretrained** model take the steps before: then the sum over
//! n steps is the divergence of the whole chains, and the gradient is exact.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result, domain::KlWeight, pairs::check::Named};

const MEANS: &str = "[batch, ..dims]";

/// A reverse step as two models would take it from the same x_t.
#[derive(Debug)]
pub struct ReverseStep {
    /// μ_θ(x_t, t) of the model that is tuned, `[batch, ..dims]`, with its gradient.
    pub policy_mean: Tensor,
    /// μ_pre(x_t, t) of the pretrained one, of the same shape: its weights frozen, its gradient to x_t kept.
    pub pretrained_mean: Tensor,
    /// σ_t, the deviation of both.
    pub sigma: f64,
}

impl ReverseStep {
    /// [`step_kl`] of this step, `[batch]`, nats.
    ///
    /// # Errors
    /// As [`step_kl`].
    pub fn kl(&self) -> Result<Tensor> {
        step_kl(&self.policy_mean, &self.pretrained_mean, self.sigma)
    }
}

/// Divergence of one reverse step to the pretrained model's, ‖μ_θ − μ_pre‖²/(2σ_t²) summed over dimensions, `[batch]`, nats, from means
/// `[batch, ..dims]`.
///
/// The sum over t, averaged over x_t of the tuned chain, is the divergence of the chains; that of the samples x_0 is at most as
/// large. A last step without noise (DDPM's posterior variance has σ_1 = 0) makes it infinite: sample with σ_t² = β_t.
///
/// Source: Uehara et al. 2024 (BRAID); the same term in Fan et al. 2023 (DPOK).
///
/// # Errors
/// [`Domain`](Error::Domain) unless σ_t is positive and finite; [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Kind`](Error::Kind),
/// [`KindOf`](Error::KindOf) or [`Device`](Error::Device) for the means.
pub fn step_kl(policy_mean: &Tensor, pretrained_mean: &Tensor, sigma: f64) -> Result<Tensor> {
    if !(sigma > 0.0 && sigma.is_finite()) {
        return Err(Error::Domain { parameter: "sigma", domain: "positive and finite", value: sigma });
    }
    let size = policy_mean.size();
    if size.len() < 2 {
        return Err(Error::Rank { tensor: "policy_mean", expected: MEANS, found: size });
    }
    Named::matrix("policy_mean", MEANS, policy_mean).rank(size.len())?.wide()?;
    if pretrained_mean.size() != size {
        let (expected, found) = ("[batch, ..dims] of policy_mean", pretrained_mean.size());
        return Err(Error::Rank { tensor: "pretrained_mean", expected, found });
    }
    let named = Named::matrix("pretrained_mean", MEANS, pretrained_mean);
    named.device(policy_mean.device())?.kind_of(policy_mean)?;
    let shift = ((policy_mean - pretrained_mean) / sigma).flatten(1, -1);
    Ok(shift.square().sum_dim_intlist([1].as_slice(), false, shift.kind()) * 0.5)
}

/// What conservative fine-tuning maximises, J = E\[r̂ − ĝ\] − α Σ_t KL_t over the last n steps of the chain, as a loss to descend on.
///
/// Over all distributions the maximiser is p ∝ p_pre e^{(r̂ − ĝ)/α}. If |r̂ − r| ≤ ĝ it loses at most 2 E_π ĝ of E r − α KL against
/// **any** π: what counts is how well the data cover the policy that one would like to have, not the worst that an optimiser finds.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::diffusion::{ConservativeObjective, EllipticalBonus, ReverseStep};
/// use prefopt::tch::{Kind, Tensor};
///
/// // The last two features of a reward network on three scored samples.
/// let mut bonus = EllipticalBonus::new(2, 1.0, 0.5)?;
/// bonus.update(&Tensor::from_slice2(&[[1.0, 0.0], [0.5, 0.2], [0.8, 0.1]]))?;
///
/// // One reverse step of one sample: x_0 = μ_θ + σ z.
/// let mean = Tensor::from_slice2(&[[0.4, 0.3]]).set_requires_grad(true);
/// let sample = &mean + Tensor::from_slice2(&[[0.1, -0.2]]) * 0.5;
/// let (features, score) = (sample.tanh(), sample.sum_dim_intlist([1].as_slice(), false, Kind::Double));
/// let pretrained_mean = Tensor::from_slice2(&[[0.2, 0.3]]);
/// let step = ReverseStep { policy_mean: mean.shallow_clone(), pretrained_mean, sigma: 0.5 };
///
/// let loss = ConservativeObjective::new(0.1, 1)?.mean(&(score - bonus.penalty(&features)?), &[step])?;
/// loss.backward();
/// assert_eq!(mean.grad().size(), [1, 2]);
/// # Ok(()) }
/// ```
///
/// A deep chain of a large network is a case for [`checkpoint`](crate::autograd::checkpoint) around each call of it.
///
/// Source: Uehara et al. 2024, "Bridging Model-Based Optimization and Generative Modeling via Conservative Fine-Tuning of Diffusion
/// Models" (BRAID); the truncation is that of Clark et al. 2023 (DRaFT-K).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConservativeObjective {
    kl_weight: KlWeight,
    last_steps: NonZeroUsize,
}

impl ConservativeObjective {
    /// With α in units of reward per nat, and the number n of last steps that the gradient goes through.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless α is at least 0 and finite and n at least 1.
    pub fn new(kl_weight: f64, last_steps: usize) -> Result<Self> {
        let none = Error::Domain { parameter: "last_steps", domain: "at least 1", value: last_steps as f64 };
        Ok(Self { kl_weight: KlWeight::new(kl_weight)?, last_steps: NonZeroUsize::new(last_steps).ok_or(none)? })
    }

    /// n.
    #[must_use]
    pub fn last_steps(&self) -> usize {
        self.last_steps.get()
    }

    /// Σ_t KL_t of the last n steps, `[batch]`, nats.
    ///
    /// # Errors
    /// [`Length`](Error::Length) for another number of steps than n, or steps of different batches; else as [`step_kl`].
    pub fn divergence(&self, steps: &[ReverseStep]) -> Result<Tensor> {
        let (expected, found) = (self.last_steps() as i64, steps.len() as i64);
        if expected != found {
            return Err(Error::Length {
                tensor: "steps",
                shape: "[last_steps]",
                dimension: "last_steps",
                expected,
                found,
            });
        }
        let first = steps[0].kl()?;
        steps[1..].iter().try_fold(first, |sum, step| {
            let kl = step.kl()?;
            Named::vector("KL of a step", &kl).like(&sum)?;
            Ok(sum + kl)
        })
    }

    /// α Σ_t KL_t − (r̂ − ĝ), `[batch]`, from `rewards` = r̂ − ĝ of the samples, `[batch]`, with its gradient back to the chain: a score
    /// less [`EllipticalBonus::penalty`](super::EllipticalBonus::penalty), a [`bootstrap_minimum`](super::bootstrap_minimum), or the
    /// score alone.
    ///
    /// # Errors
    /// As [`divergence`](Self::divergence); [`Rank`](Error::Rank), [`Length`](Error::Length), [`Kind`](Error::Kind) or
    /// [`Device`](Error::Device) for the rewards.
    pub fn per_sample(&self, rewards: &Tensor, steps: &[ReverseStep]) -> Result<Tensor> {
        let divergence = self.divergence(steps)?;
        Named::vector("rewards", rewards).rank(1)?.like(&divergence)?;
        Ok(divergence * self.kl_weight.get() - rewards)
    }

    /// Mean over the batch, a scalar.
    ///
    /// # Errors
    /// As [`per_sample`](Self::per_sample).
    pub fn mean(&self, rewards: &Tensor, steps: &[ReverseStep]) -> Result<Tensor> {
        let losses = self.per_sample(rewards, steps)?;
        Ok(losses.mean(losses.kind()))
    }
}
