//! Tiny models of every family, with weights by formula, and transformers' numbers of them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use prefopt::{
    lm::{CausalLm, ModelConfig},
    tch::{Device, Kind, Tensor, no_grad_guard},
};

#[derive(Deserialize)]
pub struct Golden {
    /// Two sequences of one length.
    pub tokens: Vec<Vec<i64>>,
    /// Positions whose logits are kept.
    pub shown: Vec<i64>,
    pub cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub config: Value,
    /// As transformers writes it.
    pub saved_config: Value,
    /// `[batch, shown, vocab]`.
    pub logits: Vec<f64>,
    /// `[batch, time − 1]`.
    pub logps: Vec<f64>,
    /// Of the sum of these log-probabilities.
    pub gradient_norms: BTreeMap<String, f64>,
}

impl Golden {
    pub fn read() -> Self {
        serde_json::from_str(include_str!("../../lm/golden.json")).expect("made by golden.py")
    }

    /// `[batch, time]`.
    pub fn batch(&self) -> Tensor {
        Tensor::from_slice2(&self.tokens)
    }
}

/// As `value` in `tests/lm/golden.py`.
pub fn value(name: &str, size: &[i64]) -> Tensor {
    let start = name.bytes().fold(2_166_136_261_u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(16_777_619));
    let gain = name.ends_with(".weight") && (name.contains("norm") || name.contains("ln_"));
    let number = |i: u32| {
        let mut h = start.wrapping_add(i.wrapping_mul(2_654_435_761));
        h ^= h >> 15;
        h = h.wrapping_mul(2_246_822_519);
        h ^= h >> 13;
        h = h.wrapping_mul(3_266_489_917);
        h ^= h >> 16;
        let u = f64::from(h) / 4_294_967_296.0 - 0.5;
        if gain { 1.0 + 0.4 * u } else { 0.9 * u }
    };
    let count = u32::try_from(size.iter().product::<i64>()).expect("tiny");
    Tensor::from_slice(&(0..count).map(number).collect::<Vec<_>>()).view(size)
}

/// A model of this configuration whose weights are those of `golden.py`.
pub fn model(config: &Value, kind: Kind) -> CausalLm {
    let config = ModelConfig::from_json(&config.to_string()).expect("a known configuration");
    let model = CausalLm::new(config, Device::Cpu, kind, 0).expect("a model");
    let _no_grad = no_grad_guard();
    for (name, tensor) in model.named_parameters() {
        tensor.shallow_clone().copy_(&value(name, &tensor.size()));
    }
    model
}

/// That of a case.
pub fn case(name: &str, kind: Kind) -> CausalLm {
    model(&Golden::read().cases[name].config, kind)
}

/// Another model with the same weights, and its own tensors.
pub fn copied(from: &CausalLm) -> CausalLm {
    let model = CausalLm::new(from.config().clone(), from.device(), from.kind(), 0).expect("a model");
    let _no_grad = no_grad_guard();
    for ((_, to), (_, from)) in model.named_parameters().zip(from.named_parameters()) {
        to.shallow_clone().copy_(from);
    }
    model
}

/// Gradients by name, and forgets them. Undefined ones are zeros.
pub fn gradients(model: &CausalLm) -> BTreeMap<String, Tensor> {
    gradients_of(model.parameters())
}

/// Those of any parameters.
pub fn gradients_of(parameters: Vec<(String, Tensor)>) -> BTreeMap<String, Tensor> {
    let taken = parameters.into_iter().map(|(name, mut tensor)| {
        let grad = tensor.grad();
        let grad = if grad.defined() { grad.copy() } else { tensor.zeros_like() };
        tensor.zero_grad();
        (name, grad)
    });
    taken.collect()
}
