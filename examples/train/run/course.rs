//! Steps, evaluations and checkpoints, each when it is due.

use anyhow::{Context, Result};
use prefopt::{
    diagnostics::Metrics,
    train::{Checkpoint, Checkpoints, Position, Saved, Skipped},
};

use super::{Job, observers::Observers, plan::Plan};
use crate::{flags::Export, trainers::Steps};

/// What ends the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Finished,
    Asked,
    Alarmed,
}

/// A run on its way.
pub struct Course<'a, T, M, S> {
    pub job: &'a Job<'a>,
    pub plan: Plan<'a>,
    pub held_out: Vec<Vec<usize>>,
    pub trainer: &'a mut T,
    pub measure: M,
    pub saving: S,
    pub checkpoints: Checkpoints,
    pub at: Position,
    /// What was measured last.
    pub metrics: Metrics,
    /// Whether that was after the last step.
    pub is_fresh: bool,
    /// Whether a checkpoint holds the model as it is, with its metrics.
    pub is_saved: bool,
    /// The last one of this start.
    pub saved: Option<Saved>,
}

impl<T, M, S> Course<'_, T, M, S>
where
    T: Steps,
    M: FnMut(u64) -> Result<Metrics>,
    S: FnMut(Checkpoint) -> Result<Checkpoint>,
{
    pub fn go(&mut self, observers: &mut Observers) -> Result<End> {
        let parts = self.plan.accumulate();
        let mut epoch = self.plan.epoch(self.at.epoch)?;
        loop {
            let steps = self.trainer.descent().steps();
            // What is due waits for the next start, which finds that it was not done.
            if observers.is_asked() {
                return Ok(End::Asked);
            }
            // Ctrl-C came before an evaluation that was due: without its numbers in the checkpoint it would be logged
            // again.
            let lacks_metrics = self.is_saved;
            if self.plan.evaluates(steps) && !self.is_fresh {
                self.evaluate(steps, observers)?;
            }
            if (lacks_metrics || self.saves(steps)) && !self.is_saved {
                self.save()?;
            }
            if steps >= self.plan.total() {
                return Ok(End::Finished);
            }
            if self.job.flags.stop_on_alarm && observers.is_alarmed() {
                return Ok(End::Alarmed);
            }
            if epoch.number != self.at.epoch {
                epoch = self.plan.epoch(self.at.epoch)?;
            }
            let batches = epoch.batches_from(self.at.batch).take(self.plan.until_due(steps));
            observers.fit(self.trainer, batches, parts)?;
            self.at = self.plan.after(&epoch, self.at, self.trainer.descent().steps() - steps);
            (self.is_fresh, self.is_saved) = (false, false);
        }
    }

    /// Whether a checkpoint is due; the best one is among those that are saved.
    fn saves(&self, steps: u64) -> bool {
        let may_be_best = self.job.flags.export == Export::Best && self.plan.evaluates(steps);
        may_be_best || self.plan.saves(steps)
    }

    fn evaluate(&mut self, steps: u64, observers: &mut Observers) -> Result<()> {
        let held_out = match self.held_out.as_slice() {
            [] => Metrics::default(),
            batches => self.trainer.evaluate_over(batches)?,
        };
        self.metrics = held_out.and((self.measure)(steps)?);
        self.is_fresh = true;
        if !is_empty(&self.metrics) {
            self.is_saved = false;
            observers.measured(steps, &self.metrics)?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<Saved> {
        // Not those of earlier steps: the best checkpoint is found by them.
        let metrics = if self.is_fresh { self.metrics.clone() } else { Metrics::default() };
        let checkpoint = Checkpoint::of(self.job.named(), self.trainer.descent())?.at(self.at).with_metrics(metrics);
        let saved = self.checkpoints.save(&(self.saving)(checkpoint)?)?;
        (self.is_saved, self.saved) = (true, Some(saved.clone()));
        Ok(saved)
    }

    /// The checkpoint of the model as it is.
    pub fn saved(&mut self) -> Result<Saved> {
        match self.saved.take() {
            Some(saved) if self.is_saved => Ok(saved),
            _ => self.save(),
        }
    }

    /// Puts the best checkpoint's model into the job's.
    pub fn take_best(&mut self) -> Result<()> {
        let Some(loaded) = self.checkpoints.load_best()? else {
            eprintln!("no checkpoint has a finite held-out loss: the model is the last one");
            return Ok(());
        };
        tell(&loaded.skipped);
        let best = loaded.checkpoint;
        let _no_grad = tch::no_grad_guard();
        for (name, mut tensor) in self.job.named() {
            let saved = best.model().get(&name);
            let saved = saved.with_context(|| format!("{} has no tensor {name}", loaded.folder.display()))?;
            tensor.f_copy_(saved)?;
        }
        eprintln!("the model is that of step {}, of smallest held-out loss among the checkpoints", best.steps());
        self.metrics = best.metrics().clone();
        Ok(())
    }
}

pub fn is_empty(metrics: &Metrics) -> bool {
    metrics.iter().next().is_none()
}

pub fn tell(skipped: &[Skipped]) {
    for Skipped { folder, error } in skipped {
        eprintln!("{} is passed over: {error}", folder.display());
    }
}
