use std::iter::zip;

use tch::{Device, Kind, Tensor};

use super::{
    CausalLm, ModelConfig, ModelError,
    attention::{Past, Sight},
    block::Block,
    config::Architecture,
    linear::Weights,
    rope::Turn,
};
use crate::{
    Error, Result,
    autograd::{checkpoint, recording},
    logps::{Decoder, VocabularyHead},
    packed::{PackedRow, Readout},
    pairs::check::Named,
};

/// A model with its adapter on, if it has one, or off. See [`CausalLm::reference`].
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    model: &'a CausalLm,
    weights: Weights,
}

impl<'a> From<&'a CausalLm> for Reader<'a> {
    fn from(model: &'a CausalLm) -> Self {
        Self { model, weights: Weights::Tuned }
    }
}

impl Decoder for Reader<'_> {
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
        let (model, weights) = (self.model, self.weights);
        let longest = row.positions().f_max()?.f_int64_value(&[])? + 1;
        let (mut x, turn) = self.embedded(row.tokens(), row.positions(), longest)?;
        // Windows that reach over every sequence are none.
        let window = model.config.shape.window().filter(|window| (window.get() as i64) < longest);
        let near = window.map(|window| [row.everything().within(window), readout.within(window)]);
        let last = model.blocks.len() - 1;
        for (i, block) in model.blocks.iter().enumerate() {
            let (inner, outer) = match (&near, block.window()) {
                (Some([inner, outer]), Some(_)) => (inner, outer),
                _ => (row.everything(), readout),
            };
            let look = if i < last { inner } else { outer };
            x = match model.checkpointing && recording() {
                true => again(block, &x, turn.as_ref(), look, weights)?,
                false => block.packed(&x, turn.as_ref(), look, weights)?,
            };
        }
        model.norm.apply(&x)
    }

    fn head(&self) -> Result<VocabularyHead> {
        VocabularyHead::new(&self.model.head)
    }
}

/// A block whose insides are computed again in the backward pass.
fn again(block: &Block, x: &Tensor, turn: Option<&Turn>, readout: &Readout, weights: Weights) -> Result<Tensor> {
    let (block, turn, readout) = (block.shallow_clone(), turn.map(Turn::shallow_clone), readout.shallow_clone());
    let own: Vec<Tensor> = block.weights().map(Tensor::shallow_clone).collect();
    let own: Vec<&Tensor> = own.iter().collect();
    checkpoint(&[x], &own, move |inputs| block.packed(&inputs[0], turn.as_ref(), &readout, weights))
}

impl<'a> Reader<'a> {
    pub(super) fn without_adapter(model: &'a CausalLm) -> Self {
        Self { model, weights: Weights::Base }
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    pub(super) fn device(&self) -> Device {
        self.model.device()
    }

    /// As [`CausalLm::logits`].
    ///
    /// # Errors
    /// As there.
    pub fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        Named::matrix("tokens", "[batch, time]", tokens).rank(2)?;
        let (batch, time) = (tokens.size()[0], tokens.size()[1]);
        let options = (Kind::Int64, tokens.device());
        let positions = Tensor::f_arange(time, options)?.f_repeat([batch])?.f_view([batch, time])?;
        let sight = Sight::new(&Tensor::f_zeros([1], options)?, 0, time, self.config().shape.window())?;
        let hidden = self.padded(tokens, &positions, &sight, None)?;
        Ok(hidden.f_matmul(&self.model.head.f_tr()?)?.f_view([batch, time, -1])?)
    }

    /// Logits of what follows the last column, `[batch, vocab]`, after reading `tokens` `[batch, time]` at `positions`.
    pub(super) fn next(&self, tokens: &Tensor, positions: &Tensor, sight: &Sight, past: &mut [Past]) -> Result<Tensor> {
        let (batch, time) = (tokens.size()[0], tokens.size()[1]);
        let hidden = self.padded(tokens, positions, sight, Some(past))?;
        let last = hidden.f_view([batch, time, -1])?.f_select(1, time - 1)?;
        Ok(last.f_matmul(&self.model.head.f_tr()?)?)
    }

    /// An empty cache with room for so many tokens of each of `batch` sequences.
    pub(super) fn past(&self, batch: i64, room: i64) -> Result<Vec<Past>> {
        let options = (self.model.kind(), self.device());
        let layer = |_: &Block| Past::new(&self.config().shape, batch, room, options);
        self.model.blocks.iter().map(layer).collect()
    }

    /// Normed hidden states, `[batch · time, width]`.
    fn padded(&self, tokens: &Tensor, positions: &Tensor, sight: &Sight, past: Option<&mut [Past]>) -> Result<Tensor> {
        let (tokens, positions) = (tokens.f_flatten(0, -1)?, positions.f_flatten(0, -1)?);
        let longest = positions.f_max()?.f_int64_value(&[])? + 1;
        let (mut x, turn) = self.embedded(&tokens, &positions, longest)?;
        let (blocks, weights) = (&self.model.blocks, self.weights);
        match past {
            Some(past) => {
                for (block, past) in zip(blocks, past) {
                    x = block.padded(&x, turn.as_ref(), sight, Some(past), weights)?;
                }
            }
            None => {
                for block in blocks {
                    x = block.padded(&x, turn.as_ref(), sight, None, weights)?;
                }
            }
        }
        self.model.norm.apply(&x)
    }

    /// Embedded tokens, `[tokens, width]`, and the turns at their positions. Waits for the device.
    fn embedded(&self, tokens: &Tensor, positions: &Tensor, longest: i64) -> Result<(Tensor, Option<Turn>)> {
        let (model, shape) = (self.model, &self.config().shape);
        if longest > shape.context {
            return Err(ModelError::Context { tokens: longest, context: shape.context }.into());
        }
        let known = tokens.f_ge(0)?.f_logical_and(&tokens.f_lt(shape.vocab)?)?;
        let named = Named::matrix("tokens", "[tokens]", tokens).device(model.device())?;
        if tokens.kind() != Kind::Int64 {
            return Err(Error::Kind { tensor: "tokens", expected: "Int64", found: tokens.kind() });
        }
        named.elements("an index into the vocabulary", &known)?;
        let look_up = |table: &Tensor, rows: &Tensor| Tensor::f_embedding(table, rows, -1, false, false);
        let x = look_up(&model.embedding, tokens)?;
        match (&shape.architecture, &model.positions) {
            (Architecture::Llama { rope, .. }, _) => Ok((x, Some(rope.at(positions, model.kind())?))),
            (_, Some(table)) => Ok((x.f_add(&look_up(table, positions)?)?, None)),
            (_, None) => Ok((x, None)),
        }
    }
}
