//! Prompts and responses as one row of tokens: no padding, and each prompt once, however many responses it has.
//!
//! A pair scored the usual way reads its prompt twice and is padded to the longest of its batch. Here a batch is one row
//!
//! > prompt 1 | chosen 1 | rejected 1 | prompt 2 | chosen 2 | …
//!
//! in which a response's positions go on from its prompt's, and its tokens see the prompt and what comes before them in the response
//! itself, so that every hidden state is the one that it would have alone. What works token by token (embedding, norms, projections, MLP)
//! runs on `[tokens, width]`; [`Readout::attend`] is the attention. With a share f of each sequence being prompt, a pair has 1 − f/2 of the
//! tokens.

mod attention;
mod plan;
mod row;

pub(crate) use row::Scored;
pub use row::{PackedRow, Readout};
