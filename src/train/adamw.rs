use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    Error, Result,
    domain::{Decay, Epsilon, WeightDecay},
};

/// Numbers of [`AdamW`] other than the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    beta1: Decay,
    beta2: Decay,
    epsilon: Epsilon,
    weight_decay: WeightDecay,
}

impl AdamWConfig {
    /// # Errors
    /// [`Domain`](Error::Domain) unless 0 ≤ beta < 1, ε > 0 and the decay ≥ 0.
    pub fn new(betas: (f64, f64), epsilon: f64, weight_decay: f64) -> Result<Self> {
        Ok(Self {
            beta1: Decay::new(betas.0)?,
            beta2: Decay::new(betas.1)?,
            epsilon: Epsilon::new(epsilon)?,
            weight_decay: WeightDecay::new(weight_decay)?,
        })
    }
}

/// Adam with decoupled weight decay, over any tensors that require a gradient.
///
/// m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², θ ← θ − η(λθ + m̂/(√v̂ + ε)) with m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ).
///
/// Source: Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form. State is kept in plain tensors.
#[derive(Debug)]
pub struct AdamW {
    parameters: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    config: AdamWConfig,
    steps: i32,
}

impl AdamW {
    /// # Errors
    /// [`NothingToTrain`](Error::NothingToTrain) when no tensor requires a gradient.
    pub fn new(parameters: Vec<Tensor>, config: AdamWConfig) -> Result<Self> {
        let parameters: Vec<_> = parameters.into_iter().filter(Tensor::requires_grad).collect();
        if parameters.is_empty() {
            return Err(Error::NothingToTrain("the list of parameters"));
        }
        let zeros = || parameters.iter().map(|p| p.detach().zeros_like()).collect();
        Ok(Self { first: zeros(), second: zeros(), parameters, config, steps: 0 })
    }

    /// The tensors that it trains.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// Forgets what `backward` has left in the parameters.
    pub fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(Tensor::zero_grad);
    }

    /// One update at this learning rate, with each gradient that `backward` has left multiplied by `scale` first.
    pub fn step(&mut self, learning_rate: f64, scale: f64) {
        let gradients: Vec<_> = self.parameters.iter().map(Tensor::grad).collect();
        self.apply(&gradients, learning_rate, scale);
    }

    /// The same with gradients at hand, one for each parameter. A parameter whose gradient is undefined stays as it is.
    pub(super) fn apply(&mut self, gradients: &[Tensor], learning_rate: f64, scale: f64) {
        let _no_grad = tch::no_grad_guard();
        self.steps += 1;
        let (beta1, beta2) = (self.config.beta1.get(), self.config.beta2.get());
        let (bias1, bias2) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((parameter, gradient), (m, v)) in self.parameters.iter_mut().zip(gradients).zip(moments) {
            if !gradient.defined() {
                continue;
            }
            let gradient = if scale == 1.0 { gradient.shallow_clone() } else { gradient * scale };
            let _ = m.g_mul_scalar_(beta1).g_add_(&(&gradient * (1.0 - beta1)));
            let _ = v.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
            let denominator = (&*v / bias2).sqrt_() + self.config.epsilon.get();
            let _ = parameter.g_mul_scalar_(1.0 - learning_rate * self.config.weight_decay.get());
            let _ = parameter.g_sub_(&(&*m * (learning_rate / bias1) / denominator));
        }
    }
}

impl Default for AdamWConfig {
    /// Betas .9 and .999, ε 1e-8, no decay: what preference tuning uses throughout.
    fn default() -> Self {
        Self {
            beta1: Decay::FIRST_MOMENT,
            beta2: Decay::SECOND_MOMENT,
            epsilon: Epsilon::ADAM,
            weight_decay: WeightDecay::NONE,
        }
    }
}
