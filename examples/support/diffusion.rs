//! A small diffusion model on flat data: an MLP that predicts the noise, conditional by one-hot, seeded from the host.
//!
//! Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol and Dhariwal 2021 (the cosine schedule).

pub mod data;
pub mod sampling;
pub mod schedule;

use anyhow::Result;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::network::{Mlp, descend, indices, matrix, normal, numbers};
use schedule::Schedule;

/// Frequencies of the time embedding: sin and cos of πk t/T.
const FREQUENCIES: usize = 4;

/// What the network's output is read as. Outwards it is ε in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// ε itself: better in few dimensions.
    Noise,
    /// v = √ᾱ ε − √(1−ᾱ) x (Salimans and Ho 2022), so ε = √(1−ᾱ) x_t + √ᾱ v: in many dimensions the noise need not pass through the
    /// hidden units.
    Velocity,
}

/// Sizes of a network, and the range of its data.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub dims: usize,
    pub conditions: usize,
    pub hidden: i64,
    pub output: Output,
    /// Samplers keep the x_0 that a prediction implies within ± this; without it the errors of a small network add up outside the data.
    pub bound: f64,
}

/// ε_θ(x_t, t, condition), its schedule, and what follows from the two.
#[derive(Debug)]
pub struct Denoiser {
    network: Mlp,
    form: Form,
    schedule: Schedule,
}

/// How long and on what a network learns.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    pub steps: usize,
    pub batch: usize,
    pub rate: f64,
}

impl Denoiser {
    pub fn new(form: Form, schedule: Schedule, seed: u64) -> Result<Self> {
        let inputs = (form.dims + 2 * FREQUENCIES + form.conditions) as i64;
        Ok(Self { network: Mlp::new(inputs, form.hidden, form.dims as i64, seed)?, form, schedule })
    }

    /// The weights as plain numbers, which threads can share: tensors cannot be.
    pub fn weights(&self) -> Result<Vec<Vec<f64>>> {
        self.parameters().iter().map(numbers).collect()
    }

    /// The network of these weights.
    pub fn with_weights(form: Form, schedule: Schedule, weights: &[Vec<f64>]) -> Result<Self> {
        let model = Self::new(form, schedule, 0)?;
        let _no_grad = tch::no_grad_guard();
        for (mut parameter, values) in model.parameters().into_iter().zip(weights) {
            let size = parameter.size();
            parameter.copy_(&Tensor::from_slice(values).view(size.as_slice()));
        }
        Ok(model)
    }

    pub fn parameters(&self) -> Vec<Tensor> {
        self.network.parameters()
    }

    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// ε_θ, `[n, dims]`, of x_t `[n, dims]` at t (one for all rows, or `n`, from 1 to T) under one-hot conditions `[n, conditions]`.
    pub fn noise(&self, x: &Tensor, t: &[usize], condition: &Tensor) -> Tensor {
        let time = self.embedded(t).expand([x.size()[0], -1], false);
        let output = self.network.forward(&Tensor::cat(&[x, &time, condition], 1));
        match self.form.output {
            Output::Noise => output,
            Output::Velocity => self.schedule.noised(&output, x, t),
        }
    }

    /// The same of rows that are all at one t, with the x_0 that it implies kept within the bound: what a sampler asks for.
    pub fn bounded_noise(&self, x: &Tensor, t: usize, condition: &Tensor) -> Tensor {
        let alpha_bar = self.schedule.alpha_bar(t);
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let clean = (x - self.noise(x, &[t], condition) * noise) / signal;
        (x - clean.clamp(-self.form.bound, self.form.bound) * signal) / noise
    }

    /// [`bounded_noise`](Self::bounded_noise) as a function of x_t and t.
    pub fn under<'a>(&'a self, condition: &'a Tensor) -> impl Fn(&Tensor, usize) -> Tensor + 'a {
        move |x, t| self.bounded_noise(x, t, condition)
    }

    /// μ_θ(x_t, t), `[n, dims]`: the mean of x_{t−1} in a sampler's step. Its deviation is the schedule's `sigma(t)`.
    pub fn mean(&self, x: &Tensor, t: usize, condition: &Tensor) -> Tensor {
        self.schedule.mean(x, &self.bounded_noise(x, t, condition), t)
    }

    /// Samples under these conditions, `[n, dims]`, by DDPM, without a gradient.
    pub fn sample(&self, condition: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
        let start = gaussian(condition.size()[0] as usize, self.form.dims, rng);
        sampling::ddpm(&self.schedule, self.under(condition), start, rng)
    }

    /// Learns to predict the noise: mean of ‖ε − ε_θ(x_t)‖² over t uniform, ε standard normal, rows of `data` `[n, dims]`.
    pub fn fit(&self, data: &Tensor, condition: &Tensor, fit: Fit, rng: &mut ChaCha8Rng) -> Result<()> {
        let rows = data.size()[0] as usize;
        descend(self.parameters(), fit.steps, fit.rate, |_| {
            let drawn: Vec<usize> = (0..fit.batch).map(|_| rng.random_range(0..rows)).collect();
            let (x, condition) = (data.index_select(0, &indices(&drawn)), condition.index_select(0, &indices(&drawn)));
            let t = self.schedule.draw(fit.batch, rng);
            let noise = gaussian(fit.batch, self.form.dims, rng);
            let predicted = self.noise(&self.schedule.noised(&x, &noise, &t), &t, &condition);
            Ok((predicted - noise).square().mean(Kind::Float))
        })
    }

    fn embedded(&self, t: &[usize]) -> Tensor {
        let features = t.iter().flat_map(|&t| {
            let share = t as f64 / self.schedule.steps() as f64;
            (1..=FREQUENCIES).flat_map(move |k| {
                let angle = std::f64::consts::PI * k as f64 * share;
                [angle.sin(), angle.cos()]
            })
        });
        matrix(&features.collect::<Vec<_>>(), 2 * FREQUENCIES as i64)
    }
}

/// Standard normal numbers, `[n, dims]`, f32.
pub fn gaussian(n: usize, dims: usize, rng: &mut ChaCha8Rng) -> Tensor {
    matrix(&normal(rng, n * dims), dims as i64)
}

/// One-hot rows, `[n, count]`, f32.
pub fn one_hot(conditions: &[usize], count: usize) -> Tensor {
    let rows = conditions.iter().flat_map(|&c| (0..count).map(move |k| if k == c { 1.0 } else { 0.0 }));
    matrix(&rows.collect::<Vec<_>>(), count as i64)
}
