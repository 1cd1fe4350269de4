//! Log-probabilities of tokens and of responses, in nats, in f32 or wider.
//!
//! From hidden states, [`VocabularyHead`] takes them through the vocabulary a tile at a time and never holds `[tokens, vocab]`;
//! [`response_logps_of`] does that for a [packed row](crate::packed). From logits that a model has returned anyway, padded,
//! [`response_logps`] takes them.

mod collision;
mod head;
mod padded;
mod plan;
mod responses;
mod tile;

pub use collision::log_collision;
pub use head::{TokenScores, VocabularyHead};
pub use padded::{response_logps, token_logps, token_statistics};
pub use responses::{Decoder, ResponseLogps, response_logps_of, response_scores_of};
pub(crate) use responses::{halves, hidden_of};
