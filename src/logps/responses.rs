use tch::Tensor;

use super::{TokenScores, VocabularyHead};
use crate::{
    PairLogps, ResponseLengths, Result,
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
        let [chosen, rejected] = halves("sums", &self.sums)?;
        let [ref_chosen, ref_rejected] = halves("reference sums", &reference.sums)?;
        let [chosen_lengths, rejected_lengths] = halves("lengths", &self.lengths)?;
        Ok((
            PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?,
            ResponseLengths::new(chosen_lengths, rejected_lengths)?,
        ))
    }
}

/// The even and the odd entries of a vector.
fn halves(tensor: &'static str, values: &Tensor) -> Result<[Tensor; 2]> {
    let found = Named::matrix(tensor, "[2 · pairs]", values).rank(1)?.tensor.size()[0];
    if found % 2 != 0 {
        let shape = "[2 · pairs]";
        return Err(crate::Error::Length { tensor, shape, dimension: "responses", expected: found + 1, found });
    }
    let pairs = values.view([-1, 2]);
    Ok([pairs.select(1, 0), pairs.select(1, 1)])
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
    let readout = row.predicting();
    let hidden = decoder.hidden(row, &readout)?;
    // A decoder that forgets to select would otherwise be read at other tokens, without a sign of it.
    Named::matrix("hidden", "[tokens read, width]", &hidden).rank(2)?.length(0, "tokens read", readout.len())?;
    let scored = row.scored();
    Ok((hidden.f_index_select(0, &scored.predictors)?, scored))
}
