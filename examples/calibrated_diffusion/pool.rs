//! A pretrained model and its samples as plain numbers: tensors cannot be shared between threads.

use anyhow::Result;
use ndarray::{Array2, Array3, Axis};
use rand_chacha::ChaCha8Rng;

use crate::support::{
    diffusion::{Denoiser, Form, one_hot, schedule::Schedule},
    network::numbers,
};

/// Samples of each prompt.
pub const SAMPLES: usize = 16;
/// T of the schedule.
pub const STEPS: usize = 50;

/// A trained network, to be copied as often as needed.
#[derive(Debug)]
pub struct Pretrained {
    form: Form,
    weights: Vec<Vec<f64>>,
}

impl Pretrained {
    pub fn new(form: Form, model: &Denoiser) -> Result<Self> {
        Ok(Self { form, weights: model.weights()? })
    }

    pub fn copy(&self) -> Result<Denoiser> {
        Denoiser::with_weights(self.form, Schedule::cosine(STEPS)?, &self.weights)
    }
}

/// N samples of each prompt with their rewards.
#[derive(Debug)]
pub struct Pool {
    /// The condition of each prompt.
    pub conditions: Vec<usize>,
    /// `[models, prompts, samples]`.
    pub rewards: Array3<f64>,
    pub dims: usize,
    /// How many conditions there are.
    pub kinds: usize,
    /// `[prompts, samples, dims]`, flattened.
    values: Vec<f64>,
}

/// Rewards of each model, `[models, n]`, of points `[n, dims]` flattened under their conditions.
pub type Judges = fn(&[f64], &[usize]) -> Array2<f64>;

impl Pool {
    /// Draws from the model; prompts take the conditions in turn.
    pub fn new(model: &Denoiser, form: Form, judges: Judges, prompts: usize, rng: &mut ChaCha8Rng) -> Result<Self> {
        let conditions: Vec<usize> = (0..prompts).map(|prompt| prompt % form.conditions).collect();
        let each: Vec<usize> = conditions.iter().flat_map(|&condition| [condition; SAMPLES]).collect();
        let values = numbers(&model.sample(&one_hot(&each, form.conditions), rng))?;
        let rewards = judges(&values, &each);
        let shape = (rewards.nrows(), prompts, SAMPLES);
        let rewards = rewards.into_shape_with_order(shape)?;
        Ok(Self { conditions, rewards, dims: form.dims, kinds: form.conditions, values })
    }

    /// One sample of a prompt, `[dims]`.
    pub fn sample(&self, prompt: usize, sample: usize) -> &[f64] {
        let first = (prompt * SAMPLES + sample) * self.dims;
        &self.values[first..first + self.dims]
    }
}

/// What a model's samples get from each reward model: mean and standard deviation over samples.
#[derive(Debug)]
pub struct Marks {
    means: Vec<f64>,
    deviations: Vec<f64>,
}

impl Marks {
    /// From rewards `[models, n]`.
    pub fn of(rewards: &Array2<f64>) -> Self {
        let means = rewards.outer_iter().map(|row| row.sum() / row.len() as f64).collect();
        Self { means, deviations: rewards.std_axis(Axis(1), 1.0).to_vec() }
    }

    /// Gain of each reward, in standard deviations of these samples.
    pub fn gains(&self, after: &Self) -> Vec<f64> {
        let each = self.means.iter().zip(&after.means).zip(&self.deviations);
        each.map(|((before, after), deviation)| (after - before) / deviation).collect()
    }
}
