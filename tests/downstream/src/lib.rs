//! What a user might do with prefopt.

use prefopt::tch::{Kind, Tensor};

/// Something small that goes through libtorch.
pub fn compute() -> f64 {
    Tensor::from_slice(&[1f32, 2.]).sum(Kind::Float).double_value(&[])
}
