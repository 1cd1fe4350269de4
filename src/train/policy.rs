use std::{fmt, marker::PhantomData};

use super::{Descent, StepReport, Trainer, scalar};
use crate::{
    Error, PreferenceBatch, PreferenceLoss, Result,
    diagnostics::{Metrics, batch_metrics},
    domain::Beta,
};

type BeforeLoss<L> = Box<dyn FnMut(&mut L, &PreferenceBatch) -> Result<()>>;

/// Tunes any policy: `forward` turns a batch of yours into a [`PreferenceBatch`] whose log-probabilities lead back to the parameters.
pub struct PolicyTrainer<B, L, F> {
    loss: L,
    forward: F,
    descent: Descent,
    reward_scale: Beta,
    before_loss: Option<BeforeLoss<L>>,
    batch: PhantomData<fn(&B)>,
}

impl<B, L: PreferenceLoss, F: Fn(&B) -> Result<PreferenceBatch>> PolicyTrainer<B, L, F> {
    /// `reward_scale` is the β of the [metrics](batch_metrics), usually the loss's own.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless it is positive and finite.
    pub fn new(loss: L, forward: F, descent: Descent, reward_scale: f64) -> Result<Self> {
        let reward_scale = Beta::new(reward_scale)?;
        Ok(Self { loss, forward, descent, reward_scale, before_loss: None, batch: PhantomData })
    }

    /// Calls `hook` with the loss and the batch of each step before the loss is taken: how a
    /// [`RunningMinimum`](super::RunningMinimum) hands a loss its member, or a β follows a schedule.
    #[must_use]
    pub fn before_loss(mut self, hook: impl FnMut(&mut L, &PreferenceBatch) -> Result<()> + 'static) -> Self {
        self.before_loss = Some(Box::new(hook));
        self
    }

    /// What moves the parameters: steps taken, and what a checkpoint saves.
    pub fn descent(&self) -> &Descent {
        &self.descent
    }

    /// The same, to [restore](Descent::restore) it.
    pub fn descent_mut(&mut self) -> &mut Descent {
        &mut self.descent
    }

    /// The loss.
    pub fn loss(&self) -> &L {
        &self.loss
    }

    /// The same, to put it back where it was: what a [hook](Self::before_loss) makes of it is in no checkpoint, and a run
    /// that goes on would otherwise be evaluated by the first loss until its next step.
    pub fn loss_mut(&mut self) -> &mut L {
        &mut self.loss
    }
}

impl<B, L: PreferenceLoss, F: Fn(&B) -> Result<PreferenceBatch>> Trainer for PolicyTrainer<B, L, F> {
    type Batch = B;

    /// With several parts, and a loss that couples the pairs of a batch or a hook, a first pass without gradients reads them all, so that
    /// both see the whole: a second forward pass is the price.
    fn step_over(&mut self, parts: &[B]) -> Result<StepReport> {
        let beta = self.reward_scale.get();
        if let [part] = parts {
            let batch = (self.forward)(part)?;
            if let Some(hook) = &mut self.before_loss {
                hook(&mut self.loss, &batch)?;
            }
            let loss = self.loss.mean(&batch)?;
            // Before the update: log-probabilities that are views of the parameters move with them.
            let metrics = batch_metrics(&batch, beta)?;
            self.descent.begin(&loss)?;
            return self.descent.update(metrics);
        }
        if parts.is_empty() {
            return Err(Error::NothingAccumulated);
        }
        let settled: Box<dyn PreferenceLoss + '_> = if self.loss.is_coupled() || self.before_loss.is_some() {
            let whole = {
                let _no_grad = tch::no_grad_guard();
                PreferenceBatch::concatenated(&parts.iter().map(&self.forward).collect::<Result<Vec<_>>>()?)?
            };
            if let Some(hook) = &mut self.before_loss {
                hook(&mut self.loss, &whole)?;
            }
            self.loss.settled(&whole)?
        } else {
            Box::new(&self.loss)
        };
        self.descent.forget();
        let mut seen = Vec::with_capacity(parts.len());
        for part in parts {
            let batch = (self.forward)(part)?;
            self.descent.accumulate(&settled.mean(&batch)?, batch.total_weight())?;
            seen.push(batch.measured());
        }
        self.descent.update(batch_metrics(&PreferenceBatch::concatenated(&seen)?, beta)?)
    }

    fn evaluate_over(&self, parts: &[B]) -> Result<Metrics> {
        let _no_grad = tch::no_grad_guard();
        let whole = PreferenceBatch::concatenated(&parts.iter().map(&self.forward).collect::<Result<Vec<_>>>()?)?;
        let loss = scalar(&self.loss.mean(&whole)?)?;
        let metrics = batch_metrics(&whole, self.reward_scale.get())?;
        Ok(Metrics::default().with("loss", loss).and(metrics).prefixed("eval_"))
    }
}

impl<B, L: fmt::Debug, F> fmt::Debug for PolicyTrainer<B, L, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyTrainer")
            .field("loss", &self.loss)
            .field("descent", &self.descent)
            .finish_non_exhaustive()
    }
}
