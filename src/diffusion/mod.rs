//! Preference pairs for diffusion models: which samples to prefer where several rewards compete, and log-probabilities for them; and
//! fine-tuning on a learned reward.
//!
//! | question | part |
//! | --- | --- |
//! | how good is a sample among the others of its prompt, on one scale for every reward model | [`Calibration`] |
//! | what did one do before | [`weighted_sum`] of the rewards as they are |
//! | which samples does none beat in every reward, which beat none | [`upper_front`], [`lower_front`], [`non_dominated_ranks`] |
//! | which two samples of a prompt make a pair | [`extremes`] of one score, a [`Frontier`] of several |
//! | what stands for log π of a sample | [`Denoising`], from the noise that a network predicts |
//! | how far may a learned reward be trusted at a sample | [`EllipticalBonus`] of its features, [`bootstrap_minimum`] of several heads |
//! | how to fine-tune on it back through the chain | [`ConservativeObjective`] over [`ReverseStep`]s, [`step_kl`] of one |
//!
//! [`Denoising`] gives [`PairLogps`](crate::PairLogps), so **every** loss that is a function of the log-ratio margin h tunes a
//! diffusion model: DPO, IPO, distillation, e-DPO. CaPO's own, (ΔR_ca − βh)², is
//! [`RewardDistillation`](crate::loss::RewardDistillation) of calibrated rewards:
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use ndarray::array;
//! use prefopt::diffusion::{Calibration, Denoising, NoisePredictions, TemperatureUnit, extremes};
//! use prefopt::loss::{Dpo, RewardDistillation};
//! use prefopt::{PreferenceBatch, PreferenceLoss, RewardScores, tch::Tensor};
//!
//! // Two reward models of different scale, one prompt, four samples of the pretrained model.
//! let rewards = array![[[10.0, 30.0, 20.0, 0.0]], [[0.3, 0.4, 0.2, 0.1]]];
//! let calibration = Calibration::new(1.0)?.with_unit(TemperatureUnit::Deviation);
//! let calibrated = calibration.average(rewards.view())?;
//! let pairs: Vec<_> = extremes(calibrated.view())?.into_iter().flatten().collect();
//! assert_eq!((pairs[0].chosen, pairs[0].rejected), (1, 3));
//!
//! // Both samples are noised with the same ε to the same t, and the two networks are asked for that ε: [batch, ..dims].
//! let noise = Tensor::from_slice2(&[[0.5, -1.0]]);
//! let leaf = Tensor::from_slice2(&[[0.3, -0.7]]).set_requires_grad(true);
//! let predictions = NoisePredictions {
//!     chosen: leaf.shallow_clone(),
//!     rejected: &leaf + 0.1,
//!     ref_chosen: Tensor::from_slice2(&[[0.2, -0.6]]),
//!     ref_rejected: Tensor::from_slice2(&[[0.4, -0.8]]),
//! };
//! let log_snr = Tensor::from_slice(&[-0.5]);
//! let logps = Denoising::new(0.0)?.logps(&noise, &log_snr, &predictions)?;
//!
//! let side = |index: usize| Tensor::from_slice(&[calibrated[[0, index]]]);
//! let scores = RewardScores::single(&side(pairs[0].chosen), &side(pairs[0].rejected))?;
//! let batch = PreferenceBatch::new(logps).with_rewards(scores)?;
//! RewardDistillation::new(10.0)?.mean(&batch)?.backward(); // CaPO
//! let other = Dpo::new(10.0)?.mean(&batch)?; // and any other loss of the same batch
//! # assert!(other.double_value(&[]) > 0.0 && leaf.grad().defined());
//! # Ok(()) }
//! ```
//!
//! Source: Lee et al. 2025, "Calibrated Multi-Preference Optimization for Aligning Diffusion Models" (CaPO); Uehara et al. 2024,
//! "Bridging Model-Based Optimization and Generative Modeling via Conservative Fine-Tuning of Diffusion Models" (BRAID).

mod bonus;
mod calibrate;
mod conservative;
mod denoising;
mod pareto;
mod selection;

pub use bonus::{EllipticalBonus, bootstrap_minimum};
pub use calibrate::{Calibration, TemperatureUnit, weighted_sum};
pub use conservative::{ConservativeObjective, ReverseStep, step_kl};
pub use denoising::{Denoising, Dimensions, NoisePredictions};
pub use pareto::{lower_front, non_dominated_ranks, upper_front};
pub use selection::{Frontier, SamplePair, extremes};

use ndarray::ArrayView3;

use crate::{Error, Result, check};

const REWARDS: &str = "[models, prompts, samples]";

/// Rewards that are there and finite.
fn checked(rewards: ArrayView3<f64>, shape: &'static str) -> Result<()> {
    if rewards.is_empty() {
        return Err(Error::Empty { tensor: "rewards", shape });
    }
    check::finite("rewards", rewards.iter().copied())
}
