//! From noise to samples. A sampler takes any prediction of the noise, `predict(x_t, t)`, for rows that are all at one t.

use prefopt::{Error, Result};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::{gaussian, schedule::Schedule};

/// A reverse step that was taken: x_{t−1} is normal about `mean` = μ_θ(x_t, t) with deviation `sigma`.
#[derive(Debug)]
pub struct Step {
    pub t: usize,
    /// x_t, `[n, dims]`.
    pub x: Tensor,
    /// μ_θ(x_t, t), `[n, dims]`, with its gradient.
    pub mean: Tensor,
    pub sigma: f64,
}

/// Samples with the steps that a gradient flows through.
#[derive(Debug)]
pub struct Chain {
    /// x_0, `[n, dims]`.
    pub sample: Tensor,
    /// The kept steps, t falling to 1.
    pub steps: Vec<Step>,
}

/// DDPM from x_T, `[n, dims]`, with gradients through its `last` steps, t = `last` … 1; those before are not recorded.
pub fn chain(
    schedule: &Schedule,
    predict: impl Fn(&Tensor, usize) -> Tensor,
    start: Tensor,
    last: usize,
    rng: &mut ChaCha8Rng,
) -> Chain {
    let (mut x, mut steps) = (start, Vec::with_capacity(last));
    for t in (1..=schedule.steps()).rev() {
        let kept = t <= last;
        let _no_grad = (!kept).then(tch::no_grad_guard);
        let (mean, sigma) = (schedule.mean(&x, &predict(&x, t), t), schedule.sigma(t));
        let size = x.size();
        let next = if sigma > 0.0 {
            &mean + gaussian(size[0] as usize, size[1] as usize, rng) * sigma
        } else {
            mean.shallow_clone()
        };
        let before = std::mem::replace(&mut x, next);
        if kept {
            steps.push(Step { t, x: before, mean, sigma });
        }
    }
    Chain { sample: x, steps }
}

/// DDPM from x_T without a gradient.
pub fn ddpm(
    schedule: &Schedule,
    predict: impl Fn(&Tensor, usize) -> Tensor,
    start: Tensor,
    rng: &mut ChaCha8Rng,
) -> Tensor {
    chain(schedule, predict, start, 0, rng).sample
}

/// DDIM (Song et al. 2021) with η = 0: no noise is drawn, and `steps` of the schedule's T, evenly spread, are taken. Without a gradient.
pub fn ddim(
    schedule: &Schedule,
    predict: impl Fn(&Tensor, usize) -> Tensor,
    start: Tensor,
    steps: usize,
) -> Result<Tensor> {
    let all = schedule.steps();
    if !(1..=all).contains(&steps) {
        let domain = "at least 1 and at most the schedule's";
        return Err(Error::Domain { parameter: "sampling steps", domain, value: steps as f64 });
    }
    let _no_grad = tch::no_grad_guard();
    let mut x = start;
    for i in (1..=steps).rev() {
        let (t, before) = (all * i / steps, all * (i - 1) / steps);
        let noise = predict(&x, t);
        let (now, then) = (schedule.alpha_bar(t), schedule.alpha_bar(before));
        let clean = (x - &noise * (1.0 - now).sqrt()) / now.sqrt();
        x = clean * then.sqrt() + noise * (1.0 - then).sqrt();
    }
    Ok(x)
}
