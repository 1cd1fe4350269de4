//! What a user might do with prefopt.

use prefopt::{PairLogps, PreferenceBatch, PreferenceLoss, loss::Dpo, tch::Tensor};

/// DPO's loss of one pair at the reference, which is ln 2.
///
/// # Errors
/// None, if libtorch works.
pub fn compute() -> prefopt::Result<f64> {
    let logps = || Tensor::from_slice(&[-3.0]);
    let batch = PreferenceBatch::new(PairLogps::new(logps(), logps(), logps(), logps())?);
    Ok(Dpo::new(0.1)?.mean(&batch)?.double_value(&[]))
}
