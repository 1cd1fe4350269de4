//! From pairs of token ids to packed rows, and from their log-probabilities to columns.

use prefopt::{
    Result,
    logps::{Decoder, response_logps_of},
    packed::PackedRow,
};
use tch::{Device, Tensor};

use crate::{support::gpt::Gpt, world::Pair};

/// Pairs as one row: each opening once, followed by the chosen and the rejected response and, if asked for, the sample.
pub fn row<'a>(pairs: impl IntoIterator<Item = &'a Pair>, samples: bool, device: Device) -> Result<PackedRow> {
    let groups = pairs.into_iter().map(|pair| {
        let all = [&pair.chosen, &pair.rejected, &pair.sample];
        (pair.opening.as_slice(), all.into_iter().take(if samples { 3 } else { 2 }).map(Vec::as_slice))
    });
    PackedRow::groups(groups, device)
}

/// log π of every response of such a row, nats: `[pairs]` for chosen, rejected and, if it is there, the sample.
pub fn logps(gpt: &Gpt, row: &PackedRow, samples: bool) -> Result<Vec<Tensor>> {
    let sums = response_logps_of(gpt, row)?.sums;
    Ok(sums.view([-1, if samples { 3 } else { 2 }]).unbind(1))
}

/// Hidden states of the last tokens of the chosen and the rejected responses, `[pairs, width]` each: what a reward head reads.
pub fn last_hidden(gpt: &Gpt, row: &PackedRow) -> Result<[Tensor; 2]> {
    let hidden = gpt.hidden(row, &row.last())?.view([-1, 2, gpt.config.width]);
    Ok([hidden.select(1, 0), hidden.select(1, 1)])
}
