//! One step is a trait, the loop is code: trainers, the optimiser under them, schedules, observers.

mod adamw;
mod baseline;
#[cfg(feature = "run")]
mod checkpoint;
mod descent;
#[cfg(feature = "run")]
mod file;
#[cfg(feature = "run")]
mod interrupt;
#[cfg(feature = "run")]
mod log;
mod observe;
mod policy;
#[cfg(feature = "run")]
mod progress;
mod reference;
mod reward;
mod running;
mod schedule;
mod state;
#[cfg(feature = "run")]
mod tensorboard;
mod watch;

use std::num::NonZeroUsize;

use tch::Tensor;

pub use adamw::{AdamW, AdamWConfig};
pub use baseline::RunningMean;
#[cfg(feature = "run")]
pub use checkpoint::{Better, Checkpoint, CheckpointError, Checkpoints, Loaded, Saved, Skipped};
pub use descent::Descent;
#[cfg(feature = "run")]
pub use file::FileError;
#[cfg(feature = "run")]
pub use interrupt::Interrupt;
#[cfg(feature = "run")]
pub use log::JsonLines;
pub use observe::{Flow, Observer};
pub use policy::PolicyTrainer;
#[cfg(feature = "run")]
pub use progress::Progress;
pub use reference::ReferenceUpdate;
pub use reward::RewardTrainer;
pub use running::RunningMinimum;
pub use schedule::{Constant, Schedule, Warmup};
pub use state::{DescentState, Moments, Position};
#[cfg(feature = "run")]
pub use tensorboard::TensorBoard;
pub use watch::Watch;

use crate::{Result, diagnostics::Metrics};

/// What one step did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// Index of the step, from 1.
    pub step: u64,
    /// Mean loss before the update.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// What the batch said before the update.
    pub metrics: Metrics,
}

/// Takes one step at a time; the loop over batches is [`fit`](Self::fit), or your own.
pub trait Trainer {
    /// What a step learns from.
    type Batch;

    /// One update by the mean over all pairs of `parts`, whose forward and backward passes run one after the other: the memory of a
    /// part, the gradient of the whole, also for losses that couple the pairs of a batch. After a refusal no parameter, moment or step count has
    /// changed.
    ///
    /// # Errors
    /// [`NonFinite`](crate::Error::NonFinite) for a loss or gradient that is not finite, before any parameter moves; those of the
    /// forward pass and of the loss; [`NothingAccumulated`](crate::Error::NothingAccumulated) without a part.
    fn step_over(&mut self, parts: &[Self::Batch]) -> Result<StepReport>;

    /// One update by one batch.
    ///
    /// # Errors
    /// As [`step_over`](Self::step_over).
    fn step(&mut self, batch: &Self::Batch) -> Result<StepReport> {
        self.step_over(std::slice::from_ref(batch))
    }

    /// Measures all pairs of `parts` as one batch, without an update: the memory of one part's forward pass, the numbers of
    /// the whole, also for losses that couple the pairs of a batch and for pairs of different weight. The names carry the
    /// prefix `eval_`.
    ///
    /// # Errors
    /// Those of the forward pass and of the loss; [`Empty`](crate::Error::Empty) without a part.
    fn evaluate_over(&self, parts: &[Self::Batch]) -> Result<Metrics>;

    /// The same of one batch.
    ///
    /// # Errors
    /// As [`evaluate_over`](Self::evaluate_over).
    fn evaluate(&self, batch: &Self::Batch) -> Result<Metrics> {
        self.evaluate_over(std::slice::from_ref(batch))
    }

    /// Steps over batches until they end or an observer says stop. Observers hear of each step, and of the alarms that any of them raises at it.
    /// Returns the last step's report, `None` without a batch.
    ///
    /// # Errors
    /// Those of [`step`](Self::step); observers are told of the end in any case.
    fn fit<I>(&mut self, batches: I, observers: &mut [&mut dyn Observer]) -> Result<Option<StepReport>>
    where
        I: IntoIterator<Item = Self::Batch>,
        Self: Sized,
    {
        self.fit_over(batches, NonZeroUsize::MIN, observers)
    }

    /// The same with `parts` batches to a step; the last step takes what is left.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    fn fit_over<I>(
        &mut self,
        batches: I,
        parts: NonZeroUsize,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Option<StepReport>>
    where
        I: IntoIterator<Item = Self::Batch>,
        Self: Sized,
    {
        let (mut last, mut batches) = (Ok(None), batches.into_iter());
        loop {
            let step: Vec<_> = batches.by_ref().take(parts.get()).collect();
            if step.is_empty() {
                break;
            }
            match self.step_over(&step) {
                Ok(report) => {
                    let flow = observe::tell(observers, &report);
                    last = match observers.iter_mut().find_map(|observer| observer.failure()) {
                        Some(error) => Err(error),
                        None => Ok(Some(report)),
                    };
                    if flow == Flow::Stop || last.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    last = Err(error);
                    break;
                }
            }
        }
        observers.iter_mut().for_each(|o| o.on_end());
        last
    }
}

pub(crate) fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_double_value(&[])?)
}
