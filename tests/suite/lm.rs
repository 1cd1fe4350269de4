//! Decoders in Hugging Face's format: against transformers' numbers, and every path of theirs against every other.
//!
//! `tests/lm/golden.py` made the numbers of tiny models of all families, `tests/lm/make_reference.py` those of a whole one;
//! `tests/lm/check_transformers.py` reads what these tests have saved.

mod adapters;
mod configs;
mod families;
mod files;
mod reference;
mod sampling;
mod tiny;

use std::error::Error;

type Outcome = std::result::Result<(), Box<dyn Error>>;

/// The message of a refusal, which holds all of these parts.
#[track_caller]
fn refused<T: std::fmt::Debug, E: std::fmt::Display>(outcome: std::result::Result<T, E>, parts: &[&str]) {
    let Err(error) = outcome else { panic!("must be refused, naming {parts:?}") };
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{message}` does not name `{part}`");
    }
}
