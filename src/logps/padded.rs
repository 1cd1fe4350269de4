//! Log-probabilities of tokens and of responses from a model's logits, in nats, in f32 or wider.

use tch::{Kind, Tensor};

use super::ResponseLogps;
use crate::{Error, Result, pairs::check::Named};

const LOGITS: &str = "[batch, time, vocab]";
const TOKENS: &str = "[batch, time]";

/// log π of each target under its own row of logits: logits\[target\] − logsumexp(logits), `[..]` from `[.., vocab]`.
///
/// Half-precision logits are widened to f32 first: their log-softmax loses whole nats.
///
/// # Errors
/// [`Kind`](Error::Kind) or [`Length`](Error::Length) naming the tensor; libtorch's for a target outside the vocabulary.
pub fn token_logps(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Named::matrix("logits", "[.., vocab]", logits).float()?;
    if targets.kind() != Kind::Int64 {
        return Err(Error::Kind { tensor: "targets", expected: "Int64", found: targets.kind() });
    }
    let wide = widened(logits);
    let picked = wide.f_gather(-1, &targets.f_unsqueeze(-1)?, false)?.squeeze_dim(-1);
    Ok(picked - wide.f_logsumexp([-1].as_slice(), false)?)
}

/// Log-probabilities of the responses in a padded batch, from the logits of any causal model.
///
/// `logits` `[batch, time, vocab]`, `tokens` `[batch, time]` (Int64) and `response` `[batch, time]` (Bool), true at the response's
/// tokens and its end-of-sequence token, false at prompt and padding. Token t is scored by the logits at t − 1, so a mask that
/// is true at time 0 asks for what no causal model predicts: that column is left out.
///
/// # Errors
/// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Kind`](Error::Kind) or [`Device`](Error::Device), naming the tensor.
pub fn response_logps(logits: &Tensor, tokens: &Tensor, response: &Tensor) -> Result<ResponseLogps> {
    let (logits, targets, mask) = shifted(logits, tokens, response)?;
    let left_out = mask.logical_not();
    // A padded position may hold -inf, whose logsumexp has a gradient of NaN, which not even a zero from above stops: blank the logits.
    let per_token = token_logps(&logits.masked_fill(&left_out.unsqueeze(-1), 0.0), &targets)?;
    let kept = per_token.masked_fill(&left_out, 0.0);
    Ok(ResponseLogps {
        sums: kept.sum_dim_intlist([1].as_slice(), false, kept.kind()),
        lengths: mask.sum_dim_intlist([1].as_slice(), false, Kind::Int64),
    })
}

/// Mean entropy of the next-token distribution in nats and share of response tokens that are the most likely one, both scalars
/// without a gradient: `entropy` and `mean_token_accuracy` in [`diagnostics`](crate::diagnostics).
///
/// Arguments as in [`response_logps`].
///
/// # Errors
/// As [`response_logps`].
pub fn token_statistics(logits: &Tensor, tokens: &Tensor, response: &Tensor) -> Result<(Tensor, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    let (logits, targets, mask) = shifted(logits, tokens, response)?;
    let log_softmax = widened(&logits).log_softmax(-1, None::<Kind>);
    let mass = log_softmax.exp();
    // 0 log 0 = 0: a token that is ruled out by a logit of -inf adds nothing.
    let entropy = -mass.xlogy(&mass).sum_dim_intlist([-1].as_slice(), false, mass.kind());
    let hits = log_softmax.argmax(-1, false).eq_tensor(&targets).to_kind(entropy.kind());
    let mean = |values: &Tensor| values.masked_select(&mask).mean(values.kind());
    Ok((mean(&entropy), mean(&hits)))
}

pub(super) fn widened(logits: &Tensor) -> Tensor {
    if logits.kind() == Kind::Double { logits.shallow_clone() } else { logits.to_kind(Kind::Float) }
}

fn shifted(logits: &Tensor, tokens: &Tensor, response: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    Named::matrix("logits", LOGITS, logits).rank(3)?.float()?;
    let size = logits.size();
    for (name, tensor, kind, expected) in
        [("tokens", tokens, Kind::Int64, "Int64"), ("response", response, Kind::Bool, "Bool")]
    {
        let named = Named::matrix(name, TOKENS, tensor).rank(2)?;
        named.length(0, "batch", size[0])?.length(1, "time", size[1])?.device(logits.device())?;
        if tensor.kind() != kind {
            return Err(Error::Kind { tensor: name, expected, found: tensor.kind() });
        }
    }
    let after = size[1] - 1;
    Ok((logits.narrow(1, 0, after), tokens.narrow(1, 1, after), response.narrow(1, 1, after)))
}
