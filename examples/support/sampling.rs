//! Sampling from the small GPT, at temperature 1 from the whole distribution, seeded on the host.

use anyhow::{Result, ensure};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::{gpt::Gpt, stories::END};

/// One continuation of each prompt, its end token included; `longest` tokens at most, of which the last may then not be the end.
///
/// Prompts are padded on the left, so that one pass serves all lengths. The random numbers come from the host: torch's global
/// generator would make the result depend on what other threads draw.
pub fn sample(
    gpt: &Gpt,
    prompts: &[&[i64]],
    longest: usize,
    rng: &mut ChaCha8Rng,
    device: Device,
) -> Result<Vec<Vec<i64>>> {
    let _no_grad = tch::no_grad_guard();
    ensure!(
        !prompts.is_empty() && prompts.iter().all(|p| !p.is_empty()),
        "sampling needs prompts of at least one token"
    );
    let (batch, width) = (prompts.len(), prompts.iter().map(|p| p.len()).max().unwrap_or(0));
    ensure!(width + longest <= gpt.config.context as usize, "{width} + {longest} tokens do not fit the context");

    let mut padded = vec![END; batch * width];
    for (row, prompt) in padded.chunks_mut(width).zip(prompts) {
        row[width - prompt.len()..].copy_from_slice(prompt);
    }
    let start = Tensor::from_slice(&prompts.iter().map(|p| (width - p.len()) as i64).collect::<Vec<_>>()).to(device);
    let columns = Tensor::arange((width + longest) as i64, (Kind::Int64, device));
    let real = columns.unsqueeze(0).ge_tensor(&start.unsqueeze(1)); // [batch, time]
    let positions = (columns.unsqueeze(0) - start.unsqueeze(1)).clamp_min(0);

    let (w, n) = (width as i64, batch as i64);
    let mut cache = gpt.cache(n);
    let tokens = Tensor::from_slice(&padded).view([n, w]).to(device);
    let causal = columns.narrow(0, 0, w).unsqueeze(1).ge_tensor(&columns.narrow(0, 0, w).unsqueeze(0));
    // A padded query may see itself: a row that sees nothing is a softmax of nothing, NaN.
    let own = Tensor::eye(w, (Kind::Bool, device));
    let mask = real.narrow(1, 0, w).unsqueeze(1).logical_and(&causal).logical_or(&own).unsqueeze(1);
    let mut logits = gpt.read(&tokens, &positions.narrow(1, 0, w), &mask, &mut cache);

    let mut responses = vec![Vec::new(); batch];
    for t in 0..longest {
        let drawn = draw(&logits, rng, device)?;
        let live = extend(&mut responses, &drawn);
        if !live || t + 1 == longest {
            break;
        }
        let at = w + t as i64;
        let next = Tensor::from_slice(&drawn).unsqueeze(1).to(device);
        let mask = real.narrow(1, 0, at + 1).unsqueeze(1).unsqueeze(1);
        logits = gpt.read(&next, &positions.narrow(1, at, 1), &mask, &mut cache);
    }
    Ok(responses)
}

/// One token a row, by inverting its cumulative distribution at one uniform number.
fn draw(logits: &Tensor, rng: &mut ChaCha8Rng, device: Device) -> Result<Vec<i64>> {
    let size = logits.size();
    let uniform: Vec<f64> = (0..size[0]).map(|_| rng.random()).collect();
    let cumulative = logits.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    let below = cumulative.le_tensor(&Tensor::from_slice(&uniform).unsqueeze(1).to(device));
    let drawn = below.sum_dim_intlist([-1].as_slice(), false, Kind::Int64).clamp_max(size[1] - 1);
    Ok(Vec::try_from(drawn)?)
}

/// Adds the drawn tokens to the responses that have not ended; false when all have.
fn extend(responses: &mut [Vec<i64>], drawn: &[i64]) -> bool {
    for (response, &token) in responses.iter_mut().zip(drawn) {
        if response.last() != Some(&END) {
            response.push(token);
        }
    }
    responses.iter().any(|response| response.last() != Some(&END))
}
