use tch::{Kind, Tensor};

use super::RewardScorer;
use crate::{
    Result, RewardScores,
    logps::{Decoder, halves, hidden_of},
    packed::PackedRow,
    pairs::check::Named,
};

const SHAPE: &str = "[members, responses]";

/// Scores of the responses in a packed row under a head on any decoder, in their order, `[members, responses]`, in units
/// of reward.
///
/// A score is read at the last token of the response, its end-of-sequence token as a rule: of all hidden states that one
/// alone has seen the whole response, and that it ended. It is found by where the response lies in the row, never as
/// "the last token that is no padding": where one token is padding and end of sequence, that is the token before the end.
///
/// Hidden states in half precision are widened to f32 before the head, which has to be in f32 then: a margin is a small
/// difference of two scores.
///
/// # Errors
/// Those of the decoder and of the scorer; [`Rank`](crate::Error::Rank) or [`Length`](crate::Error::Length) for hidden
/// states that are not one for each response, and these and [`Kind`](crate::Error::Kind) for scores that are not
/// `[members, responses]` in f32 or f64.
pub fn response_rewards_of<D: Decoder + ?Sized, S: RewardScorer + ?Sized>(
    decoder: &D,
    scorer: &S,
    row: &PackedRow,
) -> Result<Tensor> {
    let hidden = hidden_of(decoder, row, &row.last())?;
    let hidden = match hidden.kind() {
        Kind::Half | Kind::BFloat16 => hidden.f_to_kind(Kind::Float)?,
        _ => hidden,
    };
    let scores = scorer.scores(&hidden)?;
    let named = Named::matrix("scores", SHAPE, &scores).rank(2)?.wide()?;
    named.length(0, "members", scorer.members())?.length(1, "responses", row.responses())?;
    Ok(scores)
}

/// The same for a row of [pairs](PackedRow::pairs), in which chosen and rejected responses take turns, `[members, pairs]`
/// each.
///
/// # Errors
/// Those of [`response_rewards_of`]; [`Length`](crate::Error::Length) for an odd number of responses.
pub fn pair_rewards_of<D: Decoder + ?Sized, S: RewardScorer + ?Sized>(
    decoder: &D,
    scorer: &S,
    row: &PackedRow,
) -> Result<RewardScores> {
    let scores = response_rewards_of(decoder, scorer, row)?;
    let [chosen, rejected] = halves(Named::matrix("scores", "[members, 2 · pairs]", &scores))?;
    RewardScores::new(chosen, rejected)
}
