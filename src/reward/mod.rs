//! Reward models: heads on a network's hidden states and the objectives that train them; among them one that predicts a whole distribution of grades.
//!
//! A scorer's output is a column by the time a policy loss sees it: score the data once, keep the scores.

mod decoder;
mod distributional;
mod heads;
mod objective;
mod preference;

pub use decoder::{pair_rewards_of, response_rewards_of};
pub use distributional::{
    Categories, Cost, CrossEntropy, DistributionBatch, DistributionLoss, DistributionalHead, MongeTransport,
    OptimalTransport, SquaredCdf,
};
pub use heads::{EnsembleHead, RewardScorer, ScalarHead};
pub use objective::{BradleyTerry, RewardBatch, RewardObjective, WithLikelihood};
pub use preference::{GeneralPreference, GeneralPreferenceHead, Norm, ScaleGate, preference_score, preference_table};
