//! Robust preference optimization on libtorch.
//!
//! A preference pair says that response y_w to a prompt x was liked better than y_l. With policy π, frozen reference π_ref and
//!
//! > h = \[log π(y_w) − log π_ref(y_w)\] − \[log π(y_l) − log π_ref(y_l)\] (nats, the *log-ratio margin*),
//!
//! DPO minimises −log σ(βh). Each pair carries one label and the loss trusts it without limit: h runs to infinity, and probability may leave
//! **both** responses for ones that nobody has judged. The remedy of Fisch et al. 2024, "Robust Preference Optimization through
//! Reward Model Distillation", is to learn reward models r_i from the preferences, to distil their margins
//! Δr = r(y_w) − r(y_l) into the log-ratios, and to be pessimistic over the family:
//!
//! > min_i E\[(Δr_i − βh)²\] + γ KL(π_ref ‖ π).
//!
//! | step | module |
//! | --- | --- |
//! | pairs as one row of tokens without padding, each prompt once | [`packed`] |
//! | log-probabilities of responses, from hidden states or logits | [`logps`] |
//! | a checked batch of pairs and the columns that losses read | [`pairs`] |
//! | losses, regularisers and how they combine | [`loss`] |
//! | reward models | [`reward`] |
//! | votes, annotators and what a crowd of them wants | [`population`] |
//! | which predictions and labels to leave out | [`rejection`] |
//! | rewards that compete, and diffusion models | [`diffusion`] |
//! | metrics, samples, alarms | [`diagnostics`] |
//! | steps and loops | [`train`] |
//! | decoders in Hugging Face's format, adapters, sampling (feature `lm`) | `lm` |
//! | files, tokens, batches and caches of preference data (feature `data`) | `data` |
//! | operations with a backward pass of their own, checkpointing | [`autograd`] |
//! | which of libtorch's f32 products to use | [`matmul`] |
//!
//! A loss is a small `Copy` value that holds numbers; its [`per_pair`](PreferenceLoss::per_pair) gives `[batch]`. Reference
//! log-probabilities and reward scores are data by the time a loss sees them: compute them once.
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use prefopt::{PairLogps, PreferenceBatch, PreferenceLoss, RewardScores};
//! use prefopt::loss::{ForwardKl, PessimisticDistillation};
//! use prefopt::tch::Tensor;
//!
//! // Two pairs, summed log-probabilities in nats, and the scores of a family of three reward models.
//! let policy_chosen = Tensor::from_slice(&[-12.0, -9.0]).set_requires_grad(true);
//! let policy_rejected = Tensor::from_slice(&[-11.0, -14.0]).set_requires_grad(true);
//! let logps = PairLogps::new(
//!     policy_chosen.shallow_clone(),
//!     policy_rejected.shallow_clone(),
//!     Tensor::from_slice(&[-12.5, -9.5]),
//!     Tensor::from_slice(&[-10.5, -14.0]),
//! )?;
//! let scores = RewardScores::new(
//!     Tensor::from_slice2(&[[0.4, 1.2], [0.1, 0.9], [-0.3, 2.0]]),
//!     Tensor::from_slice2(&[[0.1, -0.3], [0.2, 0.0], [0.0, 0.4]]),
//! )?;
//! let batch = PreferenceBatch::new(logps).with_rewards(scores)?;
//!
//! let loss = PessimisticDistillation::new(0.1)?.plus(1e-3, ForwardKl::OwnResponses);
//! loss.mean(&batch)?.backward();
//! assert_eq!(policy_chosen.grad().size(), [2]);
//! # Ok(()) }
//! ```

#![deny(unsafe_code)]
#![deny(missing_docs, missing_debug_implementations)]

pub mod autograd;
mod check;
#[cfg(feature = "data")]
pub mod data;
pub mod diagnostics;
pub mod diffusion;
pub mod domain;
mod error;
#[cfg(feature = "lm")]
pub mod lm;
pub mod logps;
pub mod loss;
pub mod matmul;
mod native;
pub mod packed;
pub mod pairs;
pub mod population;
pub mod rejection;
pub mod reward;
pub mod train;

pub use error::{Error, Result};
pub use loss::PreferenceLoss;
pub use ndarray;
pub use pairs::{PairLogps, PreferenceBatch, ResponseLengths, ResponseTable, RewardScores};
pub use tch;

/// The examples of the README, compiled and run with the doc-tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
