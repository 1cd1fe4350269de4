use std::num::NonZeroUsize;

use tch::Tensor;

use super::{
    attention::{Attention, Past, Sight},
    config::{Architecture, Shape},
    error::Loaded,
    linear::{Bias, Layout, Linear, Weights},
    norm::Norm,
    rope::Turn,
    source::Builder,
};
use crate::{Result, packed::Readout};

/// x + attention(norm x), then x + MLP(norm x).
#[derive(Debug)]
pub(super) struct Block {
    before_attention: Norm,
    attention: Attention,
    before_mlp: Norm,
    mlp: Mlp,
}

#[derive(Debug)]
enum Mlp {
    /// down(gelu(up x)).
    Plain { layers: [Linear; 2], gelu: &'static str },
    /// down(silu(gate x)·up x).
    Gated { layers: [Linear; 3] },
}

impl Block {
    pub fn new(builder: &mut Builder, shape: &Shape, layer: usize) -> Loaded<Self> {
        let &Shape { width, epsilon, .. } = shape;
        match &shape.architecture {
            Architecture::Gpt2 { .. } => {
                let name = format!("transformer.h.{layer}.");
                Ok(Self {
                    before_attention: Norm::layer(builder, &format!("{name}ln_1"), width, epsilon)?,
                    attention: Attention::new(builder, &name, shape, layer)?,
                    before_mlp: Norm::layer(builder, &format!("{name}ln_2"), width, epsilon)?,
                    mlp: Mlp::new(builder, &name, shape)?,
                })
            }
            Architecture::Llama { .. } => {
                let name = format!("model.layers.{layer}.");
                let [before, after] =
                    ["input_layernorm", "post_attention_layernorm"].map(|norm| format!("{name}{norm}"));
                Ok(Self {
                    before_attention: Norm::root_mean_square(builder, &before, width, epsilon)?,
                    attention: Attention::new(builder, &name, shape, layer)?,
                    before_mlp: Norm::root_mean_square(builder, &after, width, epsilon)?,
                    mlp: Mlp::new(builder, &name, shape)?,
                })
            }
        }
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().chain(self.mlp.layers())
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.attention.linears_mut().chain(self.mlp.layers_mut())
    }

    /// Everything with a gradient of its own.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let norms = self.before_attention.weights().chain(self.before_mlp.weights());
        norms.chain(self.attention.weights()).chain(self.mlp.layers().iter().flat_map(Linear::weights))
    }

    pub fn shallow_clone(&self) -> Self {
        Self {
            before_attention: self.before_attention.shallow_clone(),
            attention: self.attention.shallow_clone(),
            before_mlp: self.before_mlp.shallow_clone(),
            mlp: self.mlp.shallow_clone(),
        }
    }

    pub fn window(&self) -> Option<NonZeroUsize> {
        self.attention.window()
    }

    /// Packed tokens `[tokens, width]` to those of the readout: a last layer has no use for the others, beyond their keys and values.
    pub fn packed(&self, x: &Tensor, turn: Option<&Turn>, readout: &Readout, weights: Weights) -> Result<Tensor> {
        let seen = self.attention.packed(&self.before_attention.apply(x)?, turn, readout, weights)?;
        self.after_attention(&readout.select(x)?, &seen, weights)
    }

    /// `[batch · time, width]` to the same.
    pub fn padded(
        &self,
        x: &Tensor,
        turn: Option<&Turn>,
        sight: &Sight,
        past: Option<&mut Past>,
        weights: Weights,
    ) -> Result<Tensor> {
        let seen = self.attention.padded(&self.before_attention.apply(x)?, turn, sight, past, weights)?;
        self.after_attention(x, &seen, weights)
    }

    fn after_attention(&self, x: &Tensor, seen: &Tensor, weights: Weights) -> Result<Tensor> {
        let x = x.f_add(seen)?;
        let change = self.mlp.apply(&self.before_mlp.apply(&x)?, weights)?;
        Ok(x.f_add(&change)?)
    }
}

impl Mlp {
    fn new(builder: &mut Builder, name: &str, shape: &Shape) -> Loaded<Self> {
        let &Shape { width, inner, .. } = shape;
        match shape.architecture {
            Architecture::Gpt2 { gelu } => {
                let mut linear = |part: &str, size: [i64; 2]| {
                    Linear::new(builder, format!("{name}mlp.{part}"), size, Bias::With, Layout::Conv1d)
                };
                Ok(Self::Plain { layers: [linear("c_fc", [inner, width])?, linear("c_proj", [width, inner])?], gelu })
            }
            Architecture::Llama { mlp_bias, .. } => {
                let mut linear = |part: &str, size: [i64; 2]| {
                    Linear::new(builder, format!("{name}mlp.{part}"), size, mlp_bias.into(), Layout::Linear)
                };
                let (gate, up) = (linear("gate_proj", [inner, width])?, linear("up_proj", [inner, width])?);
                Ok(Self::Gated { layers: [gate, up, linear("down_proj", [width, inner])?] })
            }
        }
    }

    fn layers(&self) -> &[Linear] {
        match self {
            Self::Plain { layers, .. } => layers,
            Self::Gated { layers } => layers,
        }
    }

    fn layers_mut(&mut self) -> &mut [Linear] {
        match self {
            Self::Plain { layers, .. } => layers,
            Self::Gated { layers } => layers,
        }
    }

    fn shallow_clone(&self) -> Self {
        match self {
            Self::Plain { layers, gelu } => Self::Plain { layers: layers.each_ref().map(Linear::shallow_clone), gelu },
            Self::Gated { layers } => Self::Gated { layers: layers.each_ref().map(Linear::shallow_clone) },
        }
    }

    fn apply(&self, x: &Tensor, weights: Weights) -> Result<Tensor> {
        match self {
            Self::Plain { layers: [up, down], gelu } => down.apply(&up.apply(x, weights)?.f_gelu(gelu)?, weights),
            Self::Gated { layers: [gate, up, down] } => {
                let gated = gate.apply(x, weights)?.f_silu()?.f_mul(&up.apply(x, weights)?)?;
                down.apply(&gated, weights)
            }
        }
    }
}
