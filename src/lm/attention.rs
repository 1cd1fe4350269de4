use std::num::NonZeroUsize;

use tch::{Device, Kind, Tensor};

use super::{
    config::{Architecture, Shape},
    error::Loaded,
    linear::{Bias, Layout, Linear, Weights},
    norm::Norm,
    rope::Turn,
    source::Builder,
};
use crate::{Result, packed::Readout};

/// Grouped-query attention with its projections.
#[derive(Debug)]
pub(super) struct Attention {
    input: Input,
    output: Linear,
    /// Of query and key.
    head_norms: Option<[Norm; 2]>,
    heads: i64,
    key_heads: i64,
    head_width: i64,
    scale: f64,
    window: Option<NonZeroUsize>,
}

#[derive(Debug)]
enum Input {
    /// Query, key and value side by side in one product.
    Joint(Linear),
    /// One each.
    Apart([Linear; 3]),
}

impl Attention {
    /// `name` is that of the block, with its dot.
    pub fn new(builder: &mut Builder, name: &str, shape: &Shape, layer: usize) -> Loaded<Self> {
        let &Shape { width, heads, key_heads, head_width, scale, epsilon, .. } = shape;
        let (queries, keys) = (heads * head_width, key_heads * head_width);
        let (input, output, head_norms) = match &shape.architecture {
            Architecture::Gpt2 { .. } => {
                let mut linear = |part: &str, outputs: i64, inputs: i64| {
                    Linear::new(builder, format!("{name}attn.{part}"), [outputs, inputs], Bias::With, Layout::Conv1d)
                };
                let input = linear("c_attn", 3 * width, width)?;
                (Input::Joint(input), linear("c_proj", width, width)?, None)
            }
            &Architecture::Llama { input_bias, output_bias, head_norms, .. } => {
                let name = format!("{name}self_attn.");
                let mut linear = |part: &str, size: [i64; 2], bias: bool| {
                    Linear::new(builder, format!("{name}{part}"), size, bias.into(), Layout::Linear)
                };
                let input = [
                    linear("q_proj", [queries, width], input_bias)?,
                    linear("k_proj", [keys, width], input_bias)?,
                    linear("v_proj", [keys, width], input_bias)?,
                ];
                let output = linear("o_proj", [width, queries], output_bias)?;
                let head_norms = match head_norms {
                    true => Some([
                        Norm::root_mean_square(builder, &format!("{name}q_norm"), head_width, epsilon)?,
                        Norm::root_mean_square(builder, &format!("{name}k_norm"), head_width, epsilon)?,
                    ]),
                    false => None,
                };
                (Input::Apart(input), output, head_norms)
            }
        };
        let window = shape.windows[layer];
        Ok(Self { input, output, head_norms, heads, key_heads, head_width, scale, window })
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let input = match &self.input {
            Input::Joint(one) => std::slice::from_ref(one),
            Input::Apart(three) => &three[..],
        };
        input.iter().chain(std::iter::once(&self.output))
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let input = match &mut self.input {
            Input::Joint(one) => std::slice::from_mut(one),
            Input::Apart(three) => &mut three[..],
        };
        input.iter_mut().chain(std::iter::once(&mut self.output))
    }

    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.linears().flat_map(Linear::weights).chain(self.head_norms.iter().flatten().flat_map(Norm::weights))
    }

    pub fn shallow_clone(&self) -> Self {
        let input = match &self.input {
            Input::Joint(one) => Input::Joint(one.shallow_clone()),
            Input::Apart(three) => Input::Apart(three.each_ref().map(Linear::shallow_clone)),
        };
        Self {
            input,
            output: self.output.shallow_clone(),
            head_norms: self.head_norms.as_ref().map(|norms| norms.each_ref().map(Norm::shallow_clone)),
            ..*self
        }
    }

    pub fn window(&self) -> Option<NonZeroUsize> {
        self.window
    }

    /// `[rows, width]` of the readout's tokens, from the normed states of all tokens of a row, `[tokens, width]`.
    pub fn packed(&self, x: &Tensor, turn: Option<&Turn>, readout: &Readout, weights: Weights) -> Result<Tensor> {
        let own = turn.map(|turn| turn.of(readout)).transpose()?;
        let [query, key, value] = self.project(&readout.select(x)?, x, weights)?;
        let query = self.placed(0, query, own.as_ref())?;
        let key = self.placed(1, key, turn)?;
        let seen = readout.attend(&query, &key, &value, self.scale)?;
        self.output.apply(&seen.f_view([-1, self.heads * self.head_width])?, weights)
    }

    /// `[batch · time, width]` to the same, after what the cache holds of this layer.
    pub fn padded(
        &self,
        x: &Tensor,
        turn: Option<&Turn>,
        sight: &Sight,
        past: Option<&mut Past>,
        weights: Weights,
    ) -> Result<Tensor> {
        let [query, key, value] = self.project(x, x, weights)?;
        let (query, key) = (self.placed(0, query, turn)?, self.placed(1, key, turn)?);
        // [batch, heads, time, head width]
        let by_head = |rows: &Tensor| {
            let size = rows.size();
            rows.f_view([-1, sight.time, size[1], size[2]])?.f_transpose(1, 2)
        };
        let (query, mut key, mut value) = (by_head(&query)?, by_head(&key)?, by_head(&value)?);
        if let Some(past) = past {
            [key, value] = past.extended(&key, &value)?;
        }
        let (mask, grouped) = (sight.of(self.window), self.heads != self.key_heads);
        let seen =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, Some(mask), 0.0, false, self.scale, grouped)?;
        let seen = seen.f_transpose(1, 2)?.f_reshape([-1, self.heads * self.head_width])?;
        self.output.apply(&seen, weights)
    }

    /// Queries of some rows, keys and values of others, `[rows, heads, head width]` each.
    fn project(&self, queried: &Tensor, x: &Tensor, weights: Weights) -> Result<[Tensor; 3]> {
        let width = self.heads * self.head_width;
        let [query, key, value] = match &self.input {
            Input::Joint(linear) if queried.size() == x.size() => {
                let joint = linear.apply(x, weights)?;
                let part = |first: i64| joint.f_narrow(1, first * width, width);
                [part(0)?, part(1)?, part(2)?]
            }
            Input::Joint(linear) => {
                let rest = linear.outputs(x, width, 2 * width, weights)?;
                let query = linear.outputs(queried, 0, width, weights)?;
                [query, rest.f_narrow(1, 0, width)?, rest.f_narrow(1, width, width)?]
            }
            Input::Apart([query, key, value]) => {
                [query.apply(queried, weights)?, key.apply(x, weights)?, value.apply(x, weights)?]
            }
        };
        let heads = |rows: &Tensor, heads: i64| rows.f_view([-1, heads, self.head_width]);
        Ok([heads(&query, self.heads)?, heads(&key, self.key_heads)?, heads(&value, self.key_heads)?])
    }

    /// Queries (0) or keys (1) normed and turned, where the family does so.
    fn placed(&self, which: usize, rows: Tensor, turn: Option<&Turn>) -> Result<Tensor> {
        let normed = match &self.head_norms {
            Some(norms) => norms[which].apply(&rows)?,
            None => rows,
        };
        match turn {
            Some(turn) => turn.apply(&normed),
            None => Ok(normed),
        }
    }
}

/// Keys and values that one layer has read, `[batch, key heads, room, head width]` each.
#[derive(Debug)]
pub(super) struct Past {
    keys: Tensor,
    values: Tensor,
    filled: i64,
}

impl Past {
    pub fn new(shape: &Shape, batch: i64, room: i64, options: (Kind, Device)) -> Result<Self> {
        let empty = || Tensor::f_empty([batch, shape.key_heads, room, shape.head_width], options);
        Ok(Self { keys: empty()?, values: empty()?, filled: 0 })
    }

    /// Takes more in, and gives all of them.
    fn extended(&mut self, key: &Tensor, value: &Tensor) -> Result<[Tensor; 2]> {
        let (start, time) = (self.filled, key.size()[2]);
        self.filled += time;
        let put = |whole: &Tensor, more: &Tensor| {
            whole.f_narrow(2, start, time)?.f_copy_(more)?;
            whole.f_narrow(2, 0, start + time)
        };
        Ok([put(&self.keys, key)?, put(&self.values, value)?])
    }
}

/// What each of `time` new tokens of a batch sees of the columns read so far, `[batch or 1, 1, time, columns]`, Bool.
#[derive(Debug)]
pub(super) struct Sight {
    all: Tensor,
    within: Option<Tensor>,
    time: i64,
}

impl Sight {
    /// `start` `[batch]` is each row's first column that is no padding; `past` columns were read before.
    pub fn new(start: &Tensor, past: i64, time: i64, window: Option<NonZeroUsize>) -> Result<Self> {
        let columns = Tensor::f_arange(past + time, (Kind::Int64, start.device()))?;
        let (rows, columns) = (columns.f_narrow(0, past, time)?.f_unsqueeze(1)?, columns.f_unsqueeze(0)?);
        let real = columns.f_ge_tensor(&start.f_view([-1, 1, 1])?)?;
        // A padded token sees itself: a softmax over nothing is NaN.
        let seen = real.f_logical_and(&columns.f_le_tensor(&rows)?)?.f_logical_or(&columns.f_eq_tensor(&rows)?)?;
        let all = seen.f_unsqueeze(1)?;
        let short = window.map(|window| window.get() as i64).filter(|&window| window < past + time);
        let near = |window: i64| all.f_logical_and(&columns.f_gt_tensor(&(&rows - window))?);
        Ok(Self { within: short.map(near).transpose()?, all, time })
    }

    fn of(&self, window: Option<NonZeroUsize>) -> &Tensor {
        match (&self.within, window) {
            (Some(within), Some(_)) => within,
            _ => &self.all,
        }
    }
}
