use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Moments;
use crate::{
    Error, Result,
    domain::{Decay, Epsilon, WeightDecay},
    native::{self, AdamWStep},
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
/// m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², θ ← θ − η(λθ + m̂/(√v̂ + ε)) with m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ), in libtorch's fused kernel:
/// one pass over θ, g, m and v. t counts the updates of each parameter. State is kept in plain
/// tensors of the parameter's kind; of parameters in half precision better [`with_masters`](Self::with_masters).
///
/// Source: Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form.
#[derive(Debug)]
pub struct AdamW {
    parameters: Vec<Tensor>,
    /// What is updated in place of a parameter and then rounded into it.
    masters: Vec<Option<Tensor>>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    /// t of each parameter, a scalar of f32 as the kernel wants it.
    steps: Vec<Tensor>,
    config: AdamWConfig,
}

impl AdamW {
    /// # Errors
    /// [`NothingToTrain`](Error::NothingToTrain) when no tensor requires a gradient.
    pub fn new(parameters: Vec<Tensor>, config: AdamWConfig) -> Result<Self> {
        let parameters: Vec<_> = parameters.into_iter().filter(Tensor::requires_grad).collect();
        if parameters.is_empty() {
            return Err(Error::NothingToTrain("the list of parameters"));
        }
        let zeros = || parameters.iter().map(|p| p.detach().contiguous().zeros_like()).collect();
        let steps = parameters.iter().map(|p| Tensor::zeros([0_i64; 0], (Kind::Float, p.device()))).collect();
        let masters = parameters.iter().map(|_| None).collect();
        Ok(Self { first: zeros(), second: zeros(), masters, steps, parameters, config })
    }

    /// With a master in f32 of each parameter in half precision: a step updates the master, with moments in f32, and rounds it
    /// into the parameter. What one step changes by less than half a unit in the parameter's last place, 2⁻⁹ to 2⁻⁸ of its value
    /// in bf16, then adds up over steps and is not lost. Parameters of other kinds are left as they are.
    ///
    /// Memory: 12 bytes a parameter beside its own 2, and during a step an f32 copy of its gradient. Whatever else writes to the parameter is
    /// undone by the next step, so load weights before.
    ///
    /// Source: Micikevicius et al. 2018, "Mixed precision training", section 3.1.
    #[must_use]
    pub fn with_masters(mut self) -> Self {
        let _no_grad = tch::no_grad_guard();
        for (i, parameter) in self.parameters.iter().enumerate() {
            if self.masters[i].is_none() && matches!(parameter.kind(), Kind::Half | Kind::BFloat16) {
                let wide = |tensor: &Tensor| tensor.detach().to_kind(Kind::Float).contiguous();
                self.masters[i] = Some(wide(parameter));
                self.first[i] = wide(&self.first[i]);
                self.second[i] = wide(&self.second[i]);
            }
        }
        self
    }

    /// The tensors that it trains.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// What it remembers of each of its [parameters](Self::parameters), in their order. The tensors are its own, to which later steps write:
    /// save or copy them before the next one.
    pub fn state(&self) -> Vec<Moments> {
        (0..self.parameters.len())
            .map(|i| Moments {
                first: self.first[i].shallow_clone(),
                second: self.second[i].shallow_clone(),
                steps: self.steps[i].shallow_clone(),
                master: self.masters[i].as_ref().map(Tensor::shallow_clone),
            })
            .collect()
    }

    /// Copies what another one remembered, over as many parameters of the same shapes in the same order. The parameters themselves are left as
    /// they are.
    ///
    /// # Errors
    /// [`Length`](Error::Length) for another number of parameters, [`Rank`](Error::Rank) for another shape, [`KindOf`](Error::KindOf) for
    /// another kind, as between an optimiser with masters and one without: before anything is copied.
    pub fn restore(&mut self, state: &[Moments]) -> Result<()> {
        let own = self.state();
        if own.len() != state.len() {
            return Err(Error::Length {
                tensor: "the optimiser's state",
                shape: "[parameters]",
                dimension: "parameters",
                expected: own.len() as i64,
                found: state.len() as i64,
            });
        }
        let pairs = own.iter().zip(state).flat_map(|(own, given)| own.tensors().zip(given.tensors()));
        for ((name, own), (_, given)) in pairs.clone() {
            if own.size() != given.size() {
                let expected = "of the parameter that it belongs to";
                return Err(Error::Rank { tensor: name, expected, found: given.size() });
            }
            if own.kind() != given.kind() {
                return Err(Error::KindOf { tensor: name, expected: own.kind(), found: given.kind() });
            }
        }
        let _no_grad = tch::no_grad_guard();
        for ((_, own), (_, given)) in pairs {
            own.shallow_clone().f_copy_(given)?;
        }
        Ok(())
    }

    /// Forgets what `backward` has left in the parameters.
    pub fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(Tensor::zero_grad);
    }

    /// One update at this learning rate, with each gradient that `backward` has left multiplied by `scale` first, in place.
    ///
    /// # Errors
    /// libtorch's, if it refuses a gradient.
    pub fn step(&mut self, learning_rate: f64, scale: f64) -> Result<()> {
        let gradients: Vec<_> = self.parameters.iter().map(Tensor::grad).collect();
        self.apply(gradients, learning_rate, scale)
    }

    /// The same with gradients at hand, one for each parameter, which may be overwritten. A parameter whose gradient is undefined stays as it is.
    pub(super) fn apply(&mut self, mut gradients: Vec<Tensor>, learning_rate: f64, scale: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for ((gradient, master), parameter) in gradients.iter_mut().zip(&self.masters).zip(&self.parameters) {
            if gradient.defined() {
                *gradient = gradient.f_to_kind(master.as_ref().unwrap_or(parameter).kind())?;
            }
        }
        separate(&mut gradients);
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let numbers = AdamWStep {
            rate: learning_rate,
            betas: (beta1.get(), beta2.get()),
            decay: weight_decay.get(),
            epsilon: epsilon.get(),
            scale,
        };
        let updated: Vec<Tensor> = self
            .parameters
            .iter()
            .zip(&self.masters)
            .map(|(parameter, master)| master.as_ref().unwrap_or(parameter).detach())
            .collect();
        let places: Vec<_> = updated.iter().map(|u| (u.device(), u.kind())).collect();
        let mut rest: Vec<usize> = (0..gradients.len()).filter(|&i| gradients[i].defined()).collect();
        // The kernel takes lists of one device and one kind.
        while let Some(&one) = rest.first() {
            let (alike, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|&i| places[i] == places[one]);
            // A parameter laid out in another order is updated in a copy.
            let dense: Vec<Tensor> = alike.iter().map(|&i| updated[i].contiguous()).collect();
            let lists = [
                dense.iter().collect(),
                of(&gradients, &alike),
                of(&self.first, &alike),
                of(&self.second, &alike),
                of(&self.steps, &alike),
            ];
            native::fused_adamw(lists.each_ref().map(Vec::as_slice), &numbers)?;
            for (&i, now) in alike.iter().zip(&dense) {
                // A master is rounded here.
                if now.data_ptr() != self.parameters[i].data_ptr() {
                    self.parameters[i].copy_(now);
                }
            }
            rest = others;
        }
        Ok(())
    }
}

fn of<'a>(list: &'a [Tensor], indices: &[usize]) -> Vec<&'a Tensor> {
    indices.iter().map(|&i| &list[i]).collect()
}

/// Makes gradients dense, and copies those that share memory with another: the engine may hand the same tensor to two parameters, or a
/// view of one's to the other, and each will be scaled in place.
fn separate(gradients: &mut [Tensor]) {
    let mut spans = Vec::with_capacity(gradients.len());
    for (i, gradient) in gradients.iter_mut().enumerate().filter(|(_, gradient)| gradient.defined()) {
        if !gradient.is_contiguous() {
            *gradient = gradient.contiguous();
        }
        let start = gradient.data_ptr() as usize;
        spans.push((start, start + gradient.numel() * gradient.kind().elt_size_in_bytes(), i));
    }
    spans.sort_unstable();
    let mut reached = 0;
    for (start, end, i) in spans {
        if start < reached {
            gradients[i] = gradients[i].copy();
        }
        reached = reached.max(end);
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
