//! Checks of arrays on the host: made once, when something is built of them.

use ndarray::ArrayView1;

use crate::{Error, Result};

/// How far probabilities may miss 1: what a sum in f32 loses.
const ROUNDING: f64 = 1e-6;

/// One row of `name`: finite, at least 0, summing to 1.
pub(crate) fn probabilities(name: &'static str, row: ArrayView1<f64>, index: usize) -> Result<()> {
    for (column, &value) in row.iter().enumerate() {
        if !(value.is_finite() && value >= 0.0) {
            let index = (index * row.len() + column) as i64;
            return Err(Error::Element { tensor: name, index, domain: "at least 0 and finite", value });
        }
    }
    let sum = row.sum();
    if (sum - 1.0).abs() <= ROUNDING { Ok(()) } else { Err(Error::Simplex { name, row: index, sum }) }
}

/// The size of `name` along one dimension.
pub(crate) fn matrix(
    name: &'static str,
    shape: &'static str,
    dimension: &'static str,
    expected: usize,
    found: usize,
) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::Length { tensor: name, shape, dimension, expected: expected as i64, found: found as i64 })
    }
}

/// Every value finite.
pub(crate) fn finite(name: &'static str, values: impl Iterator<Item = f64>) -> Result<()> {
    for (index, value) in values.enumerate() {
        if !value.is_finite() {
            return Err(Error::Element { tensor: name, index: index as i64, domain: "finite", value });
        }
    }
    Ok(())
}
