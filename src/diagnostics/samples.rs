use std::{collections::HashSet, num::NonZeroUsize};

use super::{
    Estimate, Metrics,
    divergence::{on_host, reverse_kl, total_variation},
    statistics::mean,
};
use crate::{Error, ResponseTable, Result, check::matrix};

/// Tokens of a run that counts as repeated in `samples/repetition`.
const RUN: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

/// What the policy's own samples say; measured now and then, as sampling costs more than a step.
///
/// `samples` `[prompts, samples]` drawn from the policy at temperature 1 and without top-p, `responses` their token ids in the table's
/// order, row by row. The first measurement, before the first step, is what alarms compare with.
///
/// | name | |
/// | --- | --- |
/// | `samples/reverse_kl`, `samples/reverse_kl_error` | [`reverse_kl`], nats, and its standard error where there are two prompts or samples |
/// | `samples/moved` | [`total_variation`] |
/// | `samples/entropy` | −Σ log π / Σ tokens, nats a token |
/// | `samples/length` | tokens |
/// | `samples/repetition` | [`repetition`] of runs of 4 tokens |
/// | `samples/alike` | share of samples that another before them equals, 1 − different/all, over all prompts |
///
/// # Errors
/// [`Length`](Error::Length) when the responses are not as many as the table's, [`Empty`](Error::Empty) when none has a token.
pub fn sample_metrics<R: AsRef<[i64]>>(samples: &ResponseTable, responses: &[R]) -> Result<Metrics> {
    matrix("responses", "[prompts · samples]", "prompts · samples", samples.policy().numel(), responses.len())?;
    let tokens: usize = responses.iter().map(|response| response.as_ref().len()).sum();
    if tokens == 0 {
        return Err(Error::Empty { tensor: "responses", shape: "[prompts · samples]" });
    }
    let n = responses.len() as f64;
    let divergence = reverse_kl(samples)?;
    let different = responses.iter().map(|response| response.as_ref()).collect::<HashSet<_>>().len();
    let mut metrics = Metrics::default().with("samples/reverse_kl", divergence.mean);
    if divergence.error.is_finite() {
        metrics = metrics.with("samples/reverse_kl_error", divergence.error);
    }
    Ok(metrics
        .with("samples/moved", total_variation(samples)?.mean)
        .with("samples/entropy", entropy(samples)?.mean * n / tokens as f64)
        .with("samples/length", tokens as f64 / n)
        .with("samples/repetition", repetition(responses, RUN)?)
        .with("samples/alike", 1.0 - different as f64 / n))
}

/// Entropy −E\[log π\] of whole responses, nats, from samples of the **policy**, `[prompts, samples]`, drawn at temperature 1 and without
/// top-p. Unbiased.
///
/// # Errors
/// libtorch's, if it refuses an operation.
pub fn entropy(policy_samples: &ResponseTable) -> Result<Estimate> {
    let [mut policy, _] = on_host(policy_samples)?;
    policy.iter_mut().flatten().for_each(|logp| *logp = -*logp);
    Ok(Estimate::of(&policy))
}

/// Share of a response's runs of `n` tokens that it has had before, 1 − different/all, in \[0, 1\], averaged over responses; 0 for one of
/// fewer tokens.
///
/// Source: Welleck et al. 2020, "Neural text generation with unlikelihood training" (seq-rep-n).
///
/// # Errors
/// [`Empty`](Error::Empty) without a response.
pub fn repetition<R: AsRef<[i64]>>(responses: &[R], n: NonZeroUsize) -> Result<f64> {
    if responses.is_empty() {
        return Err(Error::Empty { tensor: "responses", shape: "[responses]" });
    }
    let of = |response: &R| {
        let runs = response.as_ref().windows(n.get());
        match runs.len() {
            0 => 0.0,
            all => 1.0 - runs.collect::<HashSet<_>>().len() as f64 / all as f64,
        }
    };
    Ok(mean(responses.iter().map(of)))
}

/// Share of pairs, as (prompt, chosen, rejected) token ids, whose opposite is there too, in \[0, 1\]; 0 without a pair. A pair of equal
/// responses is its own opposite.
///
/// Such pairs pull both ways, and a loss of labels alone stays at ln 2 on them: merge their votes into soft labels instead. For the alarm,
/// hand it to [`Monitor::observe`](super::Monitor::observe) as `data/opposed`.
pub fn opposed_labels<'a>(pairs: impl IntoIterator<Item = (&'a [i64], &'a [i64], &'a [i64])>) -> f64 {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let there: HashSet<_> = pairs.iter().copied().collect();
    let opposed = pairs.iter().filter(|(prompt, chosen, rejected)| there.contains(&(*prompt, *rejected, *chosen)));
    opposed.count() as f64 / pairs.len().max(1) as f64
}
