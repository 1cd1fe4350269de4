//! Many annotators, estimated once on the host in f64: what their votes say, and what becomes a column or a weight of a batch.
//!
//! | question | part |
//! | --- | --- |
//! | which votes were cast on which pairs by whom | [`Votes`] |
//! | which types of annotators there are, and who is of which | [`AnnotatorMixture`], from [`KMeans`] |
//! | which mixture of policies leaves the worst type least to regret | [`regret_matrix`], [`min_max`], [`PolicyMixture`] |
//! | where a policy that plays a table of preferences against itself goes | [`SelfPlay`] |
//! | how likely each ordered category is after some votes | [`DirichletPrior`], [`DirichletLabel`] |

mod game;
mod labels;
mod mixture;
mod self_play;
mod votes;

pub use game::{Equilibrium, PolicyMixture, min_max, regret_matrix};
pub use labels::{DirichletLabel, DirichletPrior, label_means};
pub use mixture::{
    AnnotatorMixture, Assignment, Fit, KMeans, PairWeights, Responsibilities, adjusted_rand_index,
    held_out_log_likelihood,
};
pub use self_play::SelfPlay;
pub use votes::Votes;
