//! What a batch and samples say about the policy or the reward model, and when that is a reason to stop.
//!
//! Numbers are [`Metrics`], under the names that TRL's dashboards use where it has one; alarms read them.
//!
//! | question | part |
//! | --- | --- |
//! | a batch of pairs: rewards, displacement, margins, teachers, lengths | [`batch_metrics`]; TRL's part of it: [`preference_metrics`] |
//! | a batch of reward scores | [`reward_metrics`] |
//! | the policy's own samples: divergence, entropy, length, repetition | [`sample_metrics`], or each alone |
//! | how far from the reference | [`forward_kl`], [`reverse_kl`], [`total_variation`], [`mass_moved_elsewhere`] |
//! | are implicit probabilities honest | [`Reliability`] |
//! | are the members of a family of reward models right, honest, of one mind, fond of length | [`FamilyReport`] |
//! | do the labels contradict each other | [`opposed_labels`] |
//! | has the policy degenerated | [`Monitor`] over a run, [`check`] for one batch: [`Alarm`]s by [`Thresholds`] |
//!
//! A trainer reports [`batch_metrics`] at each step, and [`Watch`](crate::train::Watch) is the observer that reads them. In a loop of your own:
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use prefopt::diagnostics::{AlarmKind, Monitor, Thresholds, batch_metrics, check};
//! use prefopt::{PairLogps, PreferenceBatch, tch::Tensor};
//!
//! // Before the first update the policy is its reference; here a cached column is wrong by some tokens.
//! let t = |x: [f64; 2]| Tensor::from_slice(&x);
//! let logps = PairLogps::new(t([-12.0, -9.0]), t([-11.0, -14.0]), t([-12.0, -9.0]), t([-13.0, -17.0]))?;
//! let batch = PreferenceBatch::new(logps);
//! let alarms = check(1, &batch, 0.1, &Thresholds::default())?;
//! assert_eq!(alarms[0].kind, AlarmKind::ReferenceMismatch);
//! println!("{}. {}", alarms[0], alarms[0].remedy());
//!
//! // With a memory, so that one noisy batch is no alarm: once a step.
//! let mut monitor = Monitor::new(Thresholds::default());
//! let metrics = batch_metrics(&batch, 0.1)?.with("loss", 0.69).with("grad_norm", 1.3).with("learning_rate", 1e-6);
//! for alarm in monitor.observe(1, &metrics) {
//!     println!("{alarm}");
//! }
//! # Ok(()) }
//! ```

mod advice;
mod alarm;
mod calibration;
mod columns;
mod displacement;
mod divergence;
mod family;
mod margins;
mod metrics;
mod monitor;
mod samples;
mod signals;
mod statistics;
mod thresholds;

pub use alarm::{Alarm, AlarmKind};
pub use calibration::{Bin, Reliability};
pub use divergence::{Estimate, forward_kl, mass_moved_elsewhere, reverse_kl, total_variation};
pub use family::{FamilyReport, MemberReport};
pub use metrics::{Metrics, batch_metrics, preference_metrics, reward_metrics};
pub use monitor::{Monitor, check};
pub use samples::{entropy, opposed_labels, repetition, sample_metrics};
pub use thresholds::{Limit, Thresholds};
