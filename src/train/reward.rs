use std::{fmt, marker::PhantomData};

use super::{Descent, StepReport, Trainer, scalar};
use crate::{
    Error, Result, RewardScores,
    diagnostics::{Metrics, reward_metrics},
    reward::{RewardBatch, RewardObjective},
};

/// Trains a reward model or a family: `forward` turns a batch of yours into scores that lead back to the parameters.
///
/// A part of a step, or of an evaluation, counts for its number of pairs. That is exact also under
/// [member weights](RewardBatch::with_member_weights): the mean over a part of b pairs is Σ w ℓ / b, not divided by Σ w.
/// Metrics are plain means over members and pairs, whatever the weights and the soft labels.
pub struct RewardTrainer<B, O, F> {
    objective: O,
    forward: F,
    descent: Descent,
    batch: PhantomData<fn(&B)>,
}

impl<B, O: RewardObjective, F: Fn(&B) -> Result<RewardBatch>> RewardTrainer<B, O, F> {
    /// From its parts.
    pub fn new(objective: O, forward: F, descent: Descent) -> Self {
        Self { objective, forward, descent, batch: PhantomData }
    }

    /// What moves the parameters: steps taken, and what a checkpoint saves.
    pub fn descent(&self) -> &Descent {
        &self.descent
    }

    /// The same, to [restore](Descent::restore) it.
    pub fn descent_mut(&mut self) -> &mut Descent {
        &mut self.descent
    }
}

impl<B, O: RewardObjective, F: Fn(&B) -> Result<RewardBatch>> Trainer for RewardTrainer<B, O, F> {
    type Batch = B;

    fn step_over(&mut self, parts: &[B]) -> Result<StepReport> {
        if parts.is_empty() {
            return Err(Error::NothingAccumulated);
        }
        self.descent.forget();
        let mut seen = Vec::with_capacity(parts.len());
        for part in parts {
            let batch = (self.forward)(part)?;
            self.descent.accumulate(&self.objective.mean(&batch)?, weight(&batch, parts.len()))?;
            seen.push(batch.scores().detached());
        }
        self.descent.update(reward_metrics(&RewardScores::concatenated(&seen)?)?)
    }

    fn evaluate_over(&self, parts: &[B]) -> Result<Metrics> {
        let _no_grad = tch::no_grad_guard();
        let (mut seen, mut loss, mut total) = (Vec::with_capacity(parts.len()), 0.0, 0.0);
        for part in parts {
            let batch = (self.forward)(part)?;
            let weight = weight(&batch, parts.len());
            loss += weight * scalar(&self.objective.mean(&batch)?)?;
            total += weight;
            seen.push(batch.scores().detached());
        }
        let metrics = reward_metrics(&RewardScores::concatenated(&seen)?)?;
        Ok(Metrics::default().with("loss", loss / total).and(metrics).prefixed("eval_"))
    }
}

/// What a part's mean counts for beside the others; alone it is its own, to the bit.
fn weight(batch: &RewardBatch, parts: usize) -> f64 {
    if parts == 1 { 1.0 } else { batch.scores().batch() as f64 }
}

impl<B, O: fmt::Debug, F> fmt::Debug for RewardTrainer<B, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RewardTrainer");
        shown.field("objective", &self.objective).field("descent", &self.descent).finish_non_exhaustive()
    }
}
