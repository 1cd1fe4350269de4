use std::fmt;

use tch::Tensor;

use super::{AdamW, Constant, DescentState, Schedule, StepReport, scalar};
use crate::{
    Error, Result,
    diagnostics::Metrics,
    domain::{LearningRate, MaxNorm, PartWeight},
    native,
};

/// From a loss to moved parameters: backward, check, clip, update. What every trainer stands on, and of use in one's own loop.
pub struct Descent {
    optimizer: AdamW,
    learning_rate: LearningRate,
    schedule: Box<dyn Schedule + Send>,
    max_norm: Option<MaxNorm>,
    step: u64,
    pending: Option<Pending>,
}

/// What the parts of a step have said so far.
struct Pending {
    /// Σ weight · gradient; undefined where no part has reached a parameter.
    gradients: Vec<Tensor>,
    /// Σ weight · loss.
    loss: f64,
    weight: f64,
    /// Whether the gradients are sums made here, and not what the engine handed out.
    summed: bool,
}

impl fmt::Debug for Descent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descent")
            .field("learning_rate", &self.learning_rate)
            .field("max_norm", &self.max_norm)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

impl Descent {
    /// At a constant rate, with gradients clipped to a global norm of 1.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for a rate that is negative or not finite.
    pub fn new(optimizer: AdamW, learning_rate: f64) -> Result<Self> {
        Ok(Self {
            optimizer,
            learning_rate: LearningRate::new(learning_rate)?,
            schedule: Box::new(Constant),
            max_norm: Some(MaxNorm::new(1.0)?),
            step: 0,
            pending: None,
        })
    }

    /// With the rate of each step as a share of the peak.
    #[must_use]
    pub fn with_schedule(self, schedule: impl Schedule + Send + 'static) -> Self {
        Self { schedule: Box::new(schedule), ..self }
    }

    /// With gradients scaled down to this global norm; `None` for no clipping.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless it is positive.
    pub fn with_max_norm(self, max_norm: Option<f64>) -> Result<Self> {
        Ok(Self { max_norm: max_norm.map(MaxNorm::new).transpose()?, ..self })
    }

    /// Backward through `loss` and one update; returns the gradient's global norm before clipping. Parts accumulated before are forgotten.
    ///
    /// # Errors
    /// [`NonFinite`](Error::NonFinite) for a loss or gradient norm that is not finite and [`Disconnected`](Error::Disconnected) for a loss
    /// that reaches no parameter: in both cases before any parameter, moment or step count changes.
    pub fn descend(&mut self, loss: &Tensor) -> Result<f64> {
        self.begin(loss)?;
        Ok(self.finish()?.grad_norm)
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// What moves the parameters.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// What it and its optimiser remember between steps; the schedule goes by the number of steps. As with [`AdamW::state`] the tensors are
    /// the optimiser's own. Parts accumulated since the last step are not in it.
    pub fn state(&self) -> DescentState {
        DescentState { steps: self.step, moments: self.optimizer.state() }
    }

    /// Goes on from where another one was; parts accumulated before are forgotten. Learning rate, schedule and bound of the norm are its own.
    ///
    /// # Errors
    /// As [`AdamW::restore`]; nothing has changed then.
    pub fn restore(&mut self, state: &DescentState) -> Result<()> {
        self.optimizer.restore(&state.moments)?;
        self.forget();
        self.step = state.steps;
        Ok(())
    }

    /// Forgets the parts so far.
    pub(super) fn forget(&mut self) {
        self.pending = None;
    }

    /// Forgets the parts so far and takes this loss for the whole of the step.
    pub(super) fn begin(&mut self, loss: &Tensor) -> Result<()> {
        self.forget();
        self.accumulate(loss, 1.0)
    }

    /// Backward through the loss of a part of a step. The update, by [`finish`](Self::finish), goes down the gradient of
    /// Σ weight · loss / Σ weight over the parts: with means over pairs as losses and numbers of pairs as weights that is the mean over all
    /// pairs.
    ///
    /// # Errors
    /// As [`descend`](Self::descend), and [`Domain`](Error::Domain) unless the weight is positive and finite; the parts so far are
    /// forgotten.
    pub fn accumulate(&mut self, loss: &Tensor, weight: f64) -> Result<()> {
        let so_far = self.pending.take();
        let weight = PartWeight::new(weight)?.get();
        let value = finite("loss", self.step + 1, scalar(loss)?)?;
        if !loss.requires_grad() {
            return Err(Error::Disconnected);
        }
        let weighted = if weight == 1.0 { loss.shallow_clone() } else { loss * weight };
        // Not `backward`, which adds to what is there: a parameter that this loss does not reach must stay, not be moved by zeros.
        let gradients = Tensor::f_run_backward(&[&weighted], self.optimizer.parameters(), false, false)?;
        self.pending = Some(match so_far {
            None => Pending { gradients, loss: value * weight, weight, summed: false },
            Some(mut so_far) => {
                let _no_grad = tch::no_grad_guard();
                for (sum, gradient) in so_far.gradients.iter_mut().zip(gradients) {
                    match (sum.defined(), gradient.defined()) {
                        (true, true) if so_far.summed => *sum = sum.f_add_(&gradient)?,
                        // Not in place: the engine may have handed one tensor to several parameters.
                        (true, true) => *sum = wide(sum)?.f_add(&gradient)?,
                        (false, true) => *sum = wide(&gradient)?.copy(),
                        (true, false) if !so_far.summed => *sum = wide(sum)?.copy(),
                        (_, false) => {}
                    }
                }
                Pending { loss: so_far.loss + value * weight, weight: so_far.weight + weight, summed: true, ..so_far }
            }
        });
        Ok(())
    }

    /// The update for the parts given to [`accumulate`](Self::accumulate) since the last one.
    ///
    /// # Errors
    /// [`NonFinite`](Error::NonFinite) or [`Disconnected`](Error::Disconnected) as in [`descend`](Self::descend);
    /// [`NothingAccumulated`](Error::NothingAccumulated) without a part.
    pub fn finish(&mut self) -> Result<StepReport> {
        self.update(Metrics::default())
    }

    /// The same for a trainer, whose report carries what it measured before the update.
    pub(super) fn update(&mut self, metrics: Metrics) -> Result<StepReport> {
        let step = self.step + 1;
        let Pending { gradients, loss, weight, .. } = self.pending.take().ok_or(Error::NothingAccumulated)?;
        let grad_norm = finite("gradient norm", step, norm(&gradients)? / weight)?;
        let clip = self.max_norm.map_or(1.0, |max| (max.get() / (grad_norm + 1e-6)).min(1.0));
        let learning_rate = self.learning_rate.get() * self.schedule.factor(step);
        self.optimizer.apply(gradients, learning_rate, clip / weight)?;
        self.step = step;
        Ok(StepReport { step, loss: loss / weight, grad_norm, learning_rate, metrics })
    }
}

/// Global norm of the gradients that are there.
fn norm(gradients: &[Tensor]) -> Result<f64> {
    let defined: Vec<&Tensor> = gradients.iter().filter(|g| g.defined()).collect();
    if defined.is_empty() {
        return Err(Error::Disconnected);
    }
    scalar(&native::norms(&defined)?.norm())
}

fn finite(quantity: &'static str, step: u64, value: f64) -> Result<f64> {
    if value.is_finite() { Ok(value) } else { Err(Error::NonFinite { quantity, step, value }) }
}

/// Sums of parts are made in f32 at least: in half precision the later ones would be lost.
fn wide(gradient: &Tensor) -> Result<Tensor> {
    match gradient.kind() {
        tch::Kind::Half | tch::Kind::BFloat16 => Ok(gradient.f_to_kind(tch::Kind::Float)?),
        _ => Ok(gradient.shallow_clone()),
    }
}
