//! Where weights come from, under their names: a checkpoint, or random numbers.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tch::{Device, Kind, Tensor};

use super::error::Loaded;

/// What a weight is before anything was learned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// Uniform in ±this.
    Uniform(f64),
    /// This number.
    Constant(f64),
}

impl Start {
    /// Of a matrix: standard deviation .02, as GPT-2's.
    pub const MATRIX: Self = Self::Uniform(0.034_641_016_151_377_55);
}

pub(super) trait Source {
    /// The tensor of this name and size.
    fn take(&mut self, name: &str, size: &[i64], start: Start) -> Loaded<Tensor>;
}

/// New weights, from a seed.
#[derive(Debug)]
pub(super) struct Fresh {
    rng: StdRng,
    options: (Kind, Device),
}

impl Fresh {
    pub fn new(seed: u64, options: (Kind, Device)) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), options }
    }
}

impl Source for Fresh {
    fn take(&mut self, _name: &str, size: &[i64], start: Start) -> Loaded<Tensor> {
        match start {
            Start::Constant(value) => Ok(Tensor::f_full(size, value, self.options)?),
            Start::Uniform(bound) => {
                let numbers = (0..size.iter().product::<i64>()).map(|_| (2.0 * self.rng.random::<f64>() - 1.0) * bound);
                let tensor = Tensor::f_from_slice(&numbers.collect::<Vec<_>>())?.f_view(size)?;
                Ok(tensor.f_to_kind(self.options.0)?.f_to_device(self.options.1)?.copy())
            }
        }
    }
}

/// Hands weights to the layers that are built, and keeps a list of them.
pub(super) struct Builder<'a> {
    source: &'a mut dyn Source,
    named: Vec<(String, Tensor)>,
}

impl<'a> Builder<'a> {
    pub fn new(source: &'a mut dyn Source) -> Self {
        Self { source, named: Vec::new() }
    }

    pub fn take(&mut self, name: String, size: &[i64], start: Start) -> Loaded<Tensor> {
        let tensor = self.source.take(&name, size, start)?.f_set_requires_grad(true)?;
        self.named.push((name, tensor.shallow_clone()));
        Ok(tensor)
    }

    pub fn finish(self) -> Vec<(String, Tensor)> {
        self.named
    }
}
