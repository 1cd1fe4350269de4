//! The crate against mathematics: values, gradients, identities, optima and refusals.
//!
//! `table` lists every loss beside its equation in plain f64 (`oracle`, written from the papers). A new loss gets values, gradients,
//! extreme inputs, detachment, the missing-column refusal and the GPU run by adding a row there.

mod accumulation;
mod alarms;
mod anchored;
mod autograd;
mod braid;
mod capo;
#[cfg(feature = "run")]
mod checkpoint;
mod columns;
mod contrastive;
#[cfg(feature = "data")]
mod data;
mod diagnostics;
mod distributional;
mod divergence;
mod drdo;
mod family;
mod general_preference;
mod gradients;
mod head;
mod heads;
mod hull;
mod identities;
#[cfg(feature = "lm")]
mod lm;
mod logps;
mod metrics;
mod minimax;
mod optimiser;
mod optimum;
mod oracle;
mod packed;
mod pessimism;
mod population;
mod products;
mod reference;
mod reference_free;
mod refusals;
mod rejection;
#[cfg(feature = "data")]
mod resample;
mod reverse_kl;
#[cfg(feature = "lm")]
mod reward_model;
mod spo;
mod steps;
mod table;
mod tokens;
mod training;
mod traits;
mod transport;
mod trl;
mod uncertainty;
mod unpaired;
mod values;
#[cfg(feature = "run")]
mod watching;

use prefopt::tch::{Kind, Tensor};

/// |found − expected| ≤ tolerance · (|expected| + floor), with both in the message: NaN fails, equal infinities pass.
#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64, floor: f64, what: impl std::fmt::Display) {
    let holds = found == expected || (found - expected).abs() <= tolerance * (expected.abs() + floor);
    assert!(holds, "{what}: found {found:e}, expected {expected:e}");
}

/// [`close`] elementwise, with a floor of 1.
#[track_caller]
fn all_close(found: &[f64], expected: &[f64], tolerance: f64, what: impl std::fmt::Display) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (index, (f, e)) in found.iter().zip(expected).enumerate() {
        close(*f, *e, tolerance, 1.0, format_args!("{what}[{index}]"));
    }
}

/// The numbers of a tensor of any shape, flattened.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).flatten(0, -1)).expect("a flat tensor of f64")
}

fn number(tensor: &Tensor) -> f64 {
    numbers(tensor)[0]
}
