use tch::Tensor;

use super::{TokenScores, VocabularyHead};
use crate::{
    Error, PairLogps, ResponseLengths, Result,
    packed::{PackedRow, Readout, Scored},
    pairs::check::Named,
};

/// A causal language model that reads [packed rows](crate::packed): the contract by which a decoder gets shared prompts and the
/// chunked vocabulary head.
///
/// The shortest way to keep it: run every layer on all tokens, with `row.everything().attend(..)` for attention and
/// `row.positions()` for positions, and return `readout.select(&hidden)`. The faster one runs the last layer's queries, output projection
/// and MLP on `readout`'s tokens alone, with `readout.attend(..)`.
pub trait Decoder {
    /// Final hidden states, after the last norm, of the tokens of `readout`, a part of `row`: `[readout.len(), width]`.
    ///
    /// # Errors
    /// Whatever keeps the model from reading the row: a position beyond its context, for example.
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor>;

    /// The layer from hidden states to the vocabulary.
    ///
    /// # Errors
    /// Those of [`VocabularyHead`].
    fn head(&self) -> Result<VocabularyHead>;
}

/// Log-probability of each sequence's response, summed over its tokens, with the number of tokens scored.
#[derive(Debug)]
pub struct ResponseLogps {
    /// Σ log π(token), `[batch]`, nats.
    pub sums: Tensor,
    /// Tokens scored, `[batch]`, Int64. 0 where a mask selects none: [`ResponseLengths`] refuses those.
    pub lengths: Tensor,
}

impl ResponseLogps {
    /// Of a row of [pairs](PackedRow::pairs) and the reference's log-probabilities of the same row: the pairs, and their lengths.
    ///
    /// # Errors
    /// [`Length`](crate::Error::Length) when the responses are not pairs, or the reference's are not as many.
    pub fn into_pairs(self, reference: &Self) -> Result<(PairLogps, ResponseLengths)> {
        let sides = |name: &'static str, values: &Tensor| halves(Named::matrix(name, "[2 · pairs]", values).rank(1)?);
        let [chosen, rejected] = sides("sums", &self.sums)?;
        let [ref_chosen, ref_rejected] = sides("reference sums", &reference.sums)?;
        let [chosen_lengths, rejected_lengths] = sides("lengths", &self.lengths)?;
        Ok((
            PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?,
            ResponseLengths::new(chosen_lengths, rejected_lengths)?,
        ))
    }
}

/// The even and the odd entries along the last axis, of a row of pairs: of chosen and of rejected responses.
pub(crate) fn halves(values: Named) -> Result<[Tensor; 2]> {
    let Named { name, shape, tensor } = values;
    let found = tensor.size().last().copied().unwrap_or_default();
    if found % 2 != 0 {
        let (dimension, expected) = ("responses", found + 1);
        return Err(Error::Length { tensor: name, shape, dimension, expected, found });
    }
    let every_second = |first: i64| tensor.f_slice(-1, first, None::<i64>, 2);
    Ok([every_second(0)?, every_second(1)?])
}

/// Log-probabilities of the responses in a packed row, in their order.
///
/// Only response tokens go through the vocabulary.
///
/// # Errors
/// Those of the decoder and of its head.
pub fn response_logps_of<D: Decoder + ?Sized>(decoder: &D, row: &PackedRow) -> Result<ResponseLogps> {
    let (hidden, scored) = predicting_states(decoder, row)?;
    let logps = decoder.head()?.logps(&hidden, &scored.targets)?;
    Ok(ResponseLogps { sums: scored.sums(&logps)?, lengths: row.lengths() })
}

/// The same, with entropy and top-1 hit of each of the responses' tokens, in the same pass.
///
/// # Errors
/// As [`response_logps_of`].
pub fn response_scores_of<D: Decoder + ?Sized>(decoder: &D, row: &PackedRow) -> Result<(ResponseLogps, TokenScores)> {
    let (hidden, scored) = predicting_states(decoder, row)?;
    let tokens = decoder.head()?.scores(&hidden, &scored.targets)?;
    Ok((ResponseLogps { sums: scored.sums(&tokens.logps)?, lengths: row.lengths() }, tokens))
}

/// A hidden state for each token of the responses, the one that predicts it.
fn predicting_states<D: Decoder + ?Sized>(decoder: &D, row: &PackedRow) -> Result<(Tensor, Scored)> {
    let hidden = hidden_of(decoder, row, &row.predicting())?;
    let scored = row.scored();
    Ok((hidden.f_index_select(0, &scored.predictors)?, scored))
}

/// Hidden states of the readout's tokens, one each.
pub(crate) fn hidden_of<D: Decoder + ?Sized>(decoder: &D, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
    let hidden = decoder.hidden(row, readout)?;
    // A decoder that forgets to select would otherwise be read at other tokens, without a sign of it.
    Named::matrix("hidden", "[tokens read, width]", &hidden).rank(2)?.length(0, "tokens read", readout.len())?;
    Ok(hidden)
}
