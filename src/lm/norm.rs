use tch::{Device, Kind, Tensor};

use super::{
    error::Loaded,
    source::{Builder, Start},
};
use crate::{
    Result,
    autograd::{Saved, custom},
};

/// A norm over the last axis, of `[.., width]`.
#[derive(Debug)]
pub(super) enum Norm {
    /// w·(x − mean)/√(variance + ε) + b.
    Layer { weight: Tensor, bias: Tensor, epsilon: f64 },
    /// w·x/√(mean of x² + ε).
    RootMeanSquare { weight: Tensor, epsilon: f64 },
}

impl Norm {
    pub fn layer(builder: &mut Builder, name: &str, width: i64, epsilon: f64) -> Loaded<Self> {
        let weight = builder.take(format!("{name}.weight"), &[width], Start::Constant(1.0))?;
        let bias = builder.take(format!("{name}.bias"), &[width], Start::Constant(0.0))?;
        Ok(Self::Layer { weight, bias, epsilon })
    }

    pub fn root_mean_square(builder: &mut Builder, name: &str, width: i64, epsilon: f64) -> Loaded<Self> {
        let weight = builder.take(format!("{name}.weight"), &[width], Start::Constant(1.0))?;
        Ok(Self::RootMeanSquare { weight, epsilon })
    }

    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let (weight, bias) = match self {
            Self::Layer { weight, bias, .. } => (weight, Some(bias)),
            Self::RootMeanSquare { weight, .. } => (weight, None),
        };
        std::iter::once(weight).chain(bias)
    }

    pub fn shallow_clone(&self) -> Self {
        match self {
            Self::Layer { weight, bias, epsilon } => {
                Self::Layer { weight: weight.shallow_clone(), bias: bias.shallow_clone(), epsilon: *epsilon }
            }
            Self::RootMeanSquare { weight, epsilon } => {
                Self::RootMeanSquare { weight: weight.shallow_clone(), epsilon: *epsilon }
            }
        }
    }

    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer { weight, bias, epsilon } => {
                Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), *epsilon, true)?)
            }
            Self::RootMeanSquare { weight, epsilon } => root_mean_square(x, weight, *epsilon),
        }
    }
}

/// On a CPU libtorch has no kernel for it, and its six operations and their gradients take twice the time of these.
fn root_mean_square(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let width = weight.size()[0];
    if x.device() != Device::Cpu || !matches!(x.kind(), Kind::Float | Kind::Double) {
        return Ok(x.f_rms_norm(width, Some(weight), epsilon)?);
    }
    let (output, scale) = {
        let _no_grad = tch::no_grad_guard();
        let (x, weight) = (x.detach(), weight.detach());
        let norm = x.f_norm_scalaropt_dim(2.0, [-1], true)?;
        let scale = (norm.f_square()? / width as f64 + epsilon).f_rsqrt()?;
        let mut output = x.f_mul(&scale)?;
        (output.f_mul_(&weight)?, scale)
    };
    let saved = [Saved::new("input of a norm", x), Saved::new("weight of a norm", weight)];
    // With n = x/rms and g the cotangent: dw = Σ g·n, dx = (g·w − n·mean(g·w·n))/rms.
    custom(&[x, weight], output, move |cotangent, wanted| {
        let normed = saved[0].get()?.f_mul(&scale)?;
        let (weight, along) = (saved[1].get()?, cotangent.f_mul(&normed)?);
        let to_x = if wanted.get(0) {
            let shared = along.f_matmul(weight)?.f_unsqueeze(-1)? / -width as f64;
            let mut slope = cotangent.f_mul(weight)?;
            let _ = slope.f_addcmul_(&normed, &shared)?.f_mul_(&scale)?;
            Some(slope)
        } else {
            None
        };
        let to_weight = match wanted.get(1) {
            true => Some(along.f_reshape([-1, width])?.f_sum_dim_intlist([0].as_slice(), false, along.kind())?),
            false => None,
        };
        Ok(vec![to_x, to_weight])
    })
}
