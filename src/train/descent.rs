use std::fmt;

use tch::Tensor;

use super::{AdamW, Constant, Schedule, StepReport, scalar};
use crate::{
    Error, Result,
    diagnostics::Metrics,
    domain::{LearningRate, MaxNorm},
};

/// From a loss to moved parameters: backward, check, clip, update. What every trainer stands on, and of use in one's own loop.
pub struct Descent {
    optimizer: AdamW,
    learning_rate: LearningRate,
    schedule: Box<dyn Schedule + Send>,
    max_norm: Option<MaxNorm>,
    step: u64,
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

    /// Backward through `loss` and one update; returns the gradient's global norm before clipping.
    ///
    /// # Errors
    /// [`NonFinite`](Error::NonFinite) for a loss or gradient norm that is not finite and [`Disconnected`](Error::Disconnected) for a loss
    /// that reaches no parameter: in both cases before any parameter, moment or step count changes.
    pub fn descend(&mut self, loss: &Tensor) -> Result<f64> {
        Ok(self.update(loss, Metrics::default())?.grad_norm)
    }

    /// The same for a trainer, whose report carries what it measured before the update.
    pub(super) fn update(&mut self, loss: &Tensor, metrics: Metrics) -> Result<StepReport> {
        let step = self.step + 1;
        let value = finite("loss", step, scalar(loss)?)?;
        if !loss.requires_grad() {
            return Err(Error::Disconnected);
        }
        // Not `backward`, which adds to what is there: a parameter that this loss does not reach must stay, not be moved by zeros.
        let gradients = Tensor::f_run_backward(&[loss], self.optimizer.parameters(), false, false)?;
        let grad_norm = finite("gradient norm", step, norm(&gradients)?)?;
        let scale = self.max_norm.map_or(1.0, |max| (max.get() / (grad_norm + 1e-6)).min(1.0));
        let learning_rate = self.learning_rate.get() * self.schedule.factor(step);
        self.optimizer.apply(&gradients, learning_rate, scale);
        self.step = step;
        Ok(StepReport { step, loss: value, grad_norm, learning_rate, metrics })
    }
}

/// Global norm of the gradients that are there.
fn norm(gradients: &[Tensor]) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let defined = gradients.iter().filter(|g| g.defined());
    let norms: Vec<_> = defined.map(|g| g.norm().to_kind(tch::Kind::Double)).collect();
    if norms.is_empty() {
        return Err(Error::Disconnected);
    }
    scalar(&Tensor::f_stack(&norms, 0)?.norm())
}

fn finite(quantity: &'static str, step: u64, value: f64) -> Result<f64> {
    if value.is_finite() { Ok(value) } else { Err(Error::NonFinite { quantity, step, value }) }
}
