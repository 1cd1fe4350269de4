//! Noise schedules of T steps: x_t = √ᾱ_t x + √(1−ᾱ_t) ε, and the reverse step.

use prefopt::{Error, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::super::network::{matrix, vector};

/// The paper clips at .999 and has thousands of steps. With a few dozen the first reverse step would multiply the network's error
/// by 1/√(1−β) = 30.
const LARGEST_BETA: f64 = 0.9;

/// σ_t² of the reverse steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variance {
    /// β_t (1−ᾱ_{t−1})/(1−ᾱ_t): the last step adds no noise.
    Posterior,
    /// β_t: every step adds noise, so that the chains of two networks have a finite divergence.
    Forward,
}

/// ᾱ_t for t = 0 … T, ᾱ_0 = 1.
#[derive(Debug, Clone)]
pub struct Schedule {
    alpha_bar: Vec<f64>,
    variance: Variance,
}

impl Schedule {
    /// ᾱ_t = f(t)/f(0), f(t) = cos²(π/2 · (t/T + .008)/1.008) (Nichol and Dhariwal 2021, eq. 17), β_t at most .9.
    pub fn cosine(steps: usize) -> Result<Self> {
        let f = |t: usize| ((t as f64 / steps as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        Self::of_betas(steps, |t| 1.0 - f(t) / f(t - 1))
    }

    /// β_t rising in equal steps from 1e-4 to .02 at T = 1000 (Ho et al. 2020), both times 1000/T, at most .9.
    pub fn linear(steps: usize) -> Result<Self> {
        let last = (steps.max(2) - 1) as f64;
        Self::of_betas(steps, |t| (1e-4 + (0.02 - 1e-4) * (t - 1) as f64 / last) * 1000.0 / steps as f64)
    }

    fn of_betas(steps: usize, beta: impl Fn(usize) -> f64) -> Result<Self> {
        if steps == 0 {
            return Err(Error::Domain { parameter: "steps", domain: "at least 1", value: 0.0 });
        }
        let mut alpha_bar = vec![1.0];
        for t in 1..=steps {
            alpha_bar.push(alpha_bar[t - 1] * (1.0 - beta(t).min(LARGEST_BETA)));
        }
        Ok(Self { alpha_bar, variance: Variance::Posterior })
    }

    /// The same with another variance of the reverse steps; that of the posterior is the default.
    pub fn with_variance(self, variance: Variance) -> Self {
        Self { variance, ..self }
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.alpha_bar.len() - 1
    }

    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.alpha_bar[t]
    }

    /// β_t = 1 − ᾱ_t/ᾱ_{t−1}, t from 1.
    pub fn beta(&self, t: usize) -> f64 {
        1.0 - self.alpha_bar[t] / self.alpha_bar[t - 1]
    }

    /// λ_t = log ᾱ_t/(1−ᾱ_t), nats, t from 1.
    pub fn log_snr(&self, t: usize) -> f64 {
        (self.alpha_bar[t] / (1.0 - self.alpha_bar[t])).ln()
    }

    /// σ_t of the reverse step from t to t − 1, t from 1.
    pub fn sigma(&self, t: usize) -> f64 {
        let share = match self.variance {
            Variance::Posterior => (1.0 - self.alpha_bar[t - 1]) / (1.0 - self.alpha_bar[t]),
            Variance::Forward => 1.0,
        };
        (self.beta(t) * share).sqrt()
    }

    /// λ_t of each t, `[n]`, f32.
    pub fn log_snrs(&self, t: &[usize]) -> Tensor {
        vector(&t.iter().map(|&t| self.log_snr(t)).collect::<Vec<_>>())
    }

    /// t uniform from 1 to T.
    pub fn draw(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        (0..n).map(|_| rng.random_range(1..=self.steps())).collect()
    }

    /// x_t = √ᾱ_t x + √(1−ᾱ_t) ε, `[n, dims]`, t one for all rows or `n`.
    pub fn noised(&self, x: &Tensor, noise: &Tensor, t: &[usize]) -> Tensor {
        let column =
            |value: fn(f64) -> f64| matrix(&t.iter().map(|&t| value(self.alpha_bar[t])).collect::<Vec<_>>(), 1);
        x * column(f64::sqrt) + noise * column(|alpha_bar| (1.0 - alpha_bar).sqrt())
    }

    /// Mean of x_{t−1} given x_t and its noise: (x_t − β_t/√(1−ᾱ_t) ε)/√(1−β_t).
    pub fn mean(&self, x: &Tensor, noise: &Tensor, t: usize) -> Tensor {
        let beta = self.beta(t);
        (x - noise * (beta / (1.0 - self.alpha_bar[t]).sqrt())) / (1.0 - beta).sqrt()
    }
}
