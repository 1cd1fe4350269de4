//! Reward models: heads on a network's hidden states, and the objective that trains them.
//!
//! A scorer's output is a column by the time a policy loss sees it: score the data once, keep the scores.

mod heads;
mod objective;

pub use heads::{EnsembleHead, RewardScorer, ScalarHead};
pub use objective::{BradleyTerry, RewardBatch, RewardObjective, WithLikelihood};
