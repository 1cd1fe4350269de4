//! What a run needs to go on, on disk.

mod disk;
mod error;
#[cfg(test)]
mod faults;
mod files;
mod record;
mod store;
mod tensors;

use std::collections::{BTreeMap, HashMap};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tch::Tensor;

pub use error::CheckpointError;
pub use store::{Better, Checkpoints, Loaded, Saved, Skipped};

use super::{Descent, DescentState, Position};
use crate::{Result, diagnostics::Metrics};
use tensors::Named;

/// Model, optimiser, schedule, position in the data, metrics, and whatever else a run remembers, such as the state of a random
/// generator: saved and put back bit for bit, so that on the CPU a run that goes on from it is the run that was never
/// interrupted.
///
/// Its tensors are those of the model and of the optimiser themselves, to which later steps write: [save](Checkpoints::save) it
/// before the next one.
///
/// ```no_run
/// # use prefopt::{PreferenceBatch, Result, loss::Dpo, tch::nn::VarStore};
/// use prefopt::train::{Better, Checkpoint, Checkpoints, Interrupt, PolicyTrainer, Position, Trainer};
///
/// # fn run<F: Fn(&Vec<usize>) -> Result<PreferenceBatch>>(
/// #     variables: &VarStore,
/// #     mut trainer: PolicyTrainer<Vec<usize>, Dpo, F>,
/// #     held_out: &Vec<usize>,
/// #     batches_of: impl Fn(u64) -> Vec<Vec<usize>>,
/// #     epochs: u64,
/// # ) -> Result<()> {
/// let mut checkpoints = Checkpoints::open("runs/dpo")?.best_by("eval_loss", Better::Lower);
/// let mut interrupt = Interrupt::listen()?;
/// let mut at = Position::default();
/// if let Some(loaded) = checkpoints.load_last()? {
///     for skipped in &loaded.skipped {
///         eprintln!("{} is passed over: {}", skipped.folder.display(), skipped.error);
///     }
///     loaded.checkpoint.restore(variables.variables(), trainer.descent_mut())?;
///     at = loaded.checkpoint.position();
/// }
/// while at.epoch < epochs && !interrupt.is_asked() {
///     // Shuffled by a seed and the number of the pass, so that a run which goes on finds the same order.
///     let batches = batches_of(at.epoch);
///     let (length, before) = (batches.len() as u64, trainer.descent().steps());
///     trainer.fit(batches.into_iter().skip(at.batch as usize).take(100), &mut [&mut interrupt])?;
///     at.batch += trainer.descent().steps() - before;
///     if at.batch == length {
///         at = Position { epoch: at.epoch + 1, batch: 0 };
///     }
///     let checkpoint = Checkpoint::of(variables.variables(), trainer.descent())?.at(at);
///     println!("{}", checkpoints.save(&checkpoint.with_metrics(trainer.evaluate(held_out)?))?);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    steps: u64,
    model: Named,
    /// `first_moment/NAME` and so on, by the parameter's name in the model.
    optimiser: Named,
    own: Named,
    position: Position,
    metrics: Metrics,
    values: BTreeMap<String, Value>,
}

impl Checkpoint {
    /// Of the named tensors of a model (all that are to be saved, [`VarStore::variables`](tch::nn::VarStore::variables) for
    /// one) and of what trains them. The optimiser's state goes by these names, not by the order of its parameters.
    ///
    /// # Errors
    /// [`Unnamed`](CheckpointError::Unnamed) when the optimiser trains a tensor that is not among them.
    pub fn of(model: impl IntoIterator<Item = (String, Tensor)>, descent: &Descent) -> Result<Self> {
        let model: Named = model.into_iter().collect();
        let mut names = HashMap::new();
        // In reverse, so that of two names for one tensor the first stays.
        for (name, tensor) in model.iter().rev() {
            names.insert((tensor.data_ptr() as usize, tensor.size()), name.clone());
        }
        let DescentState { steps, moments } = descent.state();
        let mut optimiser = Named::new();
        for (index, (parameter, moments)) in descent.optimizer().parameters().iter().zip(&moments).enumerate() {
            let shape = parameter.size();
            let Some(name) = names.get(&(parameter.data_ptr() as usize, shape.clone())) else {
                return Err(CheckpointError::Unnamed { index, shape }.into());
            };
            for (part, tensor) in moments.tensors() {
                optimiser.insert(format!("{part}/{name}"), tensor.shallow_clone());
            }
        }
        let (own, values) = (Named::new(), BTreeMap::new());
        Ok(Self { steps, model, optimiser, own, position: Position::default(), metrics: Metrics::default(), values })
    }

    /// With the batch that comes next.
    #[must_use]
    pub fn at(self, position: Position) -> Self {
        Self { position, ..self }
    }

    /// With what was measured last. [`Checkpoints::best_by`] goes by one of these.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// With something else that the run remembers: the state of a random generator, a member, a β.
    ///
    /// # Errors
    /// [`Value`](CheckpointError::Value) for what JSON does not hold.
    pub fn with_value(mut self, name: impl Into<String>, value: &impl Serialize) -> Result<Self> {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => self.values.insert(name, value),
            Err(source) => return Err(CheckpointError::Value { name, source }.into()),
        };
        Ok(self)
    }

    /// With a tensor that belongs to neither model nor optimiser: the sums of a [`RunningMinimum`](super::RunningMinimum), a
    /// moving reference.
    #[must_use]
    pub fn with_tensor(mut self, name: impl Into<String>, tensor: &Tensor) -> Self {
        self.own.insert(name.into(), tensor.shallow_clone());
        self
    }

    /// Puts model, optimiser and schedule back where they were, on whatever device they are. What was accumulated for a step is
    /// forgotten.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor), [`NoPlace`](CheckpointError::NoPlace),
    /// [`Shape`](CheckpointError::Shape) or [`KindOf`](CheckpointError::KindOf) unless both have the same tensors, and
    /// [`Unnamed`](CheckpointError::Unnamed) as in [`of`](Self::of): before anything is written.
    pub fn restore(&self, model: impl IntoIterator<Item = (String, Tensor)>, descent: &mut Descent) -> Result<()> {
        // Handles to the tensors that are to be written.
        let own = Self::of(model, descent)?;
        fits(&self.model, &own.model)?;
        fits(&self.optimiser, &own.optimiser)?;
        let _no_grad = tch::no_grad_guard();
        for (saved, tensor) in self.model.values().zip(own.model.values()) {
            tensor.shallow_clone().f_copy_(saved)?;
        }
        for (saved, tensor) in self.optimiser.values().zip(own.optimiser.values()) {
            tensor.shallow_clone().f_copy_(saved)?;
        }
        let state = DescentState { steps: self.steps, ..descent.state() };
        descent.restore(&state)
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The batch that comes next.
    pub fn position(&self) -> Position {
        self.position
    }

    /// What was measured last.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The model's tensors by name.
    pub fn model(&self) -> &BTreeMap<String, Tensor> {
        &self.model
    }

    /// What was given to [`with_value`](Self::with_value).
    ///
    /// # Errors
    /// [`MissingValue`](CheckpointError::MissingValue), or [`Value`](CheckpointError::Value) when it is not a `T`.
    pub fn value<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let missing = || CheckpointError::MissingValue { name: name.to_owned() };
        let value = self.values.get(name).ok_or_else(missing)?.clone();
        Ok(serde_json::from_value(value).map_err(|source| CheckpointError::Value { name: name.to_owned(), source })?)
    }

    /// What was given to [`with_tensor`](Self::with_tensor).
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor).
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        Ok(self.own.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })?)
    }
}

/// Whether what was saved has the names, shapes and kinds of what is there.
fn fits(saved: &Named, there: &Named) -> Result<()> {
    if let Some(name) = there.keys().find(|name| !saved.contains_key(*name)) {
        return Err(CheckpointError::MissingTensor { name: name.clone() }.into());
    }
    for (name, saved) in saved {
        let there = there.get(name).ok_or_else(|| CheckpointError::NoPlace { name: name.clone() })?;
        let (expected, found) = (there.size(), saved.size());
        if expected != found {
            return Err(CheckpointError::Shape { name: name.clone(), expected, found }.into());
        }
        let (expected, found) = (there.kind(), saved.kind());
        if expected != found {
            return Err(CheckpointError::KindOf { name: name.clone(), expected, found }.into());
        }
    }
    Ok(())
}
