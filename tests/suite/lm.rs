//! Decoders in Hugging Face's format: against transformers' numbers, and every path of theirs against every other.
//!
//! `tests/lm/golden.py` made the numbers of tiny models of all families, `tests/lm/make_reference.py` those of a whole one;
//! `tests/lm/check_transformers.py` reads what these tests and those of reward models have saved.

pub mod adapters;
mod configs;
mod families;
pub mod files;
mod reference;
mod sampling;
pub mod tiny;

use std::error::Error;

pub type Outcome = std::result::Result<(), Box<dyn Error>>;

/// The message of a refusal, which holds all of these parts.
#[track_caller]
pub fn refused<T: std::fmt::Debug, E: std::fmt::Display>(outcome: std::result::Result<T, E>, parts: &[&str]) {
    let Err(error) = outcome else { panic!("must be refused, naming {parts:?}") };
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{message}` does not name `{part}`");
    }
}
