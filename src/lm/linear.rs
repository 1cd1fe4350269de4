use tch::Tensor;

use super::{
    error::Loaded,
    source::{Builder, Start},
};
use crate::Result;

/// Which weights a model is read with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weights {
    /// With the adapter, if there is one.
    Tuned,
    /// Without it.
    Base,
}

/// How a file lays out a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[outputs, inputs]`.
    Linear,
    /// `[inputs, outputs]`: GPT-2's.
    Conv1d,
}

/// A change of rank r to a matrix: s·B A, with A `[r, inputs]` and B `[outputs, r]`.
#[derive(Debug)]
pub(super) struct Adapter {
    pub down: Tensor,
    pub up: Tensor,
    pub scale: f64,
}

impl Adapter {
    fn shallow_clone(&self) -> Self {
        Self { down: self.down.shallow_clone(), up: self.up.shallow_clone(), scale: self.scale }
    }
}

/// W x + b, and s·B A x with an adapter, for rows x `[rows, inputs]`.
#[derive(Debug)]
pub(super) struct Linear {
    /// Of the layer, without `.weight`.
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
    layout: Layout,
    adapter: Option<Adapter>,
}

/// Whether a layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    With,
    Without,
}

impl From<bool> for Bias {
    fn from(with: bool) -> Self {
        if with { Self::With } else { Self::Without }
    }
}

impl Linear {
    pub fn new(
        builder: &mut Builder,
        name: String,
        [outputs, inputs]: [i64; 2],
        bias: Bias,
        layout: Layout,
    ) -> Loaded<Self> {
        let size = match layout {
            Layout::Linear => [outputs, inputs],
            Layout::Conv1d => [inputs, outputs],
        };
        let weight = builder.take(format!("{name}.weight"), &size, Start::MATRIX)?;
        let bias = match bias {
            Bias::With => Some(builder.take(format!("{name}.bias"), &[outputs], Start::Constant(0.0))?),
            Bias::Without => None,
        };
        Ok(Self { name, weight, bias, layout, adapter: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Outputs and inputs.
    pub fn size(&self) -> [i64; 2] {
        let size = self.weight.size();
        match self.layout {
            Layout::Linear => [size[0], size[1]],
            Layout::Conv1d => [size[1], size[0]],
        }
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    pub fn set_adapter(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
    }

    /// W + s·B A as the file lays it out, in the weight's kind and without a gradient; `None` without an adapter.
    pub fn merged(&self) -> Loaded<Option<Tensor>> {
        let Some(adapter) = &self.adapter else { return Ok(None) };
        let _no_grad = tch::no_grad_guard();
        let change = adapter.up.f_matmul(&adapter.down)? * adapter.scale;
        let change = match self.layout {
            Layout::Linear => change,
            Layout::Conv1d => change.f_tr()?,
        };
        let weight = self.weight.f_to_kind(change.kind())?.f_add(&change)?;
        Ok(Some(weight.f_to_kind(self.weight.kind())?))
    }

    /// Writes [`merged`](Self::merged) into the weight, and has no adapter then.
    pub fn merge(&mut self) -> Loaded<()> {
        if let Some(merged) = self.merged()? {
            let _no_grad = tch::no_grad_guard();
            self.weight.f_copy_(&merged)?;
            self.adapter = None;
        }
        Ok(())
    }

    /// Everything with a gradient of its own.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.adapter.iter().flat_map(|adapter| [&adapter.down, &adapter.up]);
        std::iter::once(&self.weight).chain(&self.bias).chain(adapter)
    }

    pub fn shallow_clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            layout: self.layout,
            adapter: self.adapter.as_ref().map(Adapter::shallow_clone),
        }
    }

    pub fn apply(&self, x: &Tensor, weights: Weights) -> Result<Tensor> {
        self.outputs(x, 0, self.size()[0], weights)
    }

    /// The outputs from `first` on alone.
    pub fn outputs(&self, x: &Tensor, first: i64, length: i64, weights: Weights) -> Result<Tensor> {
        let rows = |matrix: &Tensor| match matrix.size()[0] == length {
            true => Ok(matrix.shallow_clone()),
            false => matrix.f_narrow(0, first, length),
        };
        let matrix = match self.layout {
            Layout::Linear => rows(&self.weight)?,
            Layout::Conv1d => rows(&self.weight.f_tr()?)?,
        };
        let y = x.f_linear(&matrix, self.bias.as_ref().map(rows).transpose()?)?;
        match (&self.adapter, weights) {
            (Some(adapter), Weights::Tuned) => {
                let low = x.f_to_kind(adapter.down.kind())?.f_linear(&adapter.down, None::<&Tensor>)? * adapter.scale;
                let change = low.f_linear(&rows(&adapter.up)?, None::<&Tensor>)?;
                Ok(y.f_add(&change.f_to_kind(y.kind())?)?)
            }
            _ => Ok(y),
        }
    }
}
