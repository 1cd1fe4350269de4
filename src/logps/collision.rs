use tch::Tensor;

use super::padded::widened;
use crate::{Result, pairs::check::Named};

/// log Σ_v π(v)² of the next-token distribution, the log-probability that two draws agree, `[..]` from logits `[.., vocab]`, nats, without a gradient:
/// −log of the number of tokens for a uniform one, 0 for a sure one.
///
/// E_π log π ≤ log Σ π² for draws of π: what WPO measures a response's tokens against
/// ([`TokenLogps::policy_weight`](crate::pairs::TokenLogps::policy_weight)).
///
/// # Errors
/// [`Kind`](crate::Error::Kind) unless the logits are of a floating-point kind.
pub fn log_collision(logits: &Tensor) -> Result<Tensor> {
    Named::matrix("logits", "[.., vocab]", logits).float()?;
    let _no_grad = tch::no_grad_guard();
    let wide = widened(logits);
    Ok((&wide * 2.0).f_logsumexp([-1].as_slice(), false)? - wide.f_logsumexp([-1].as_slice(), false)? * 2.0)
}
