use std::collections::{BTreeMap, VecDeque};

use super::{
    Alarm, AlarmKind, Limit, Metrics, Thresholds, batch_metrics,
    signals::{BASELINES, Every, Reading, SIGNALS},
};
use crate::{PreferenceBatch, Result};

/// Reads a run's numbers, step by step, and says when one is beyond its threshold.
///
/// An alarm's value is taken over the last `patience` steps: the median, so that one noisy batch is no alarm, and for labels the standard
/// errors of all their pairs together. It is raised once, and again only after as many steps on which its value was within bounds.
///
/// Numbers are known by their names, so that any may be missing: those of [`batch_metrics`] with `loss`, `grad_norm` and `learning_rate`
/// at each step; `entropy` where the loop has it; now and then those of [`sample_metrics`](super::sample_metrics), an evaluation's with the
/// prefix `eval_`, and `data/opposed`. The first `loss`, `grad_norm`, `entropy` and samples are what later ones are compared with:
/// measure samples before the first step too.
#[derive(Debug, Clone)]
pub struct Monitor {
    thresholds: Thresholds,
    first: BTreeMap<&'static str, f64>,
    rate: Option<f64>,
    windows: [Window; SIGNALS.len()],
}

impl Monitor {
    /// Has seen nothing.
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Self {
        let windows = std::array::from_fn(|_| Window::default());
        Self { thresholds, first: BTreeMap::new(), rate: None, windows }
    }

    /// Alarms that these numbers raise. Steps count from 1 and their numbers are from before the update, as in
    /// [`StepReport`](crate::train::StepReport); a measurement has the step after which it was made, 0 before the first.
    pub fn observe(&mut self, step: u64, metrics: &Metrics) -> Vec<Alarm> {
        for name in BASELINES {
            if let Some(value) = metrics.get(name) {
                self.first.entry(name).or_insert(value);
            }
        }
        let rate = metrics.get("learning_rate");
        let warming_up = rate.zip(self.rate).is_some_and(|(now, before)| now > before);
        self.rate = rate.or(self.rate);
        let reading = Reading { step, now: metrics, first: &self.first, warming_up };

        let mut alarms = Vec::new();
        for (signal, window) in SIGNALS.iter().zip(&mut self.windows) {
            let kind = signal.kind;
            let (Some(limit), Some(value)) = (self.thresholds.get(kind), (signal.read)(&reading)) else {
                continue;
            };
            let patience = if signal.every == Every::Step { limit.patience() } else { 1 };
            if let Some(value) = window.push(kind, value, limit, patience) {
                alarms.push(Alarm { kind, signal: signal.name(metrics), step, value, threshold: limit.threshold() });
            }
        }
        alarms
    }

    /// Kinds that have been raised and not been quiet since.
    pub fn standing(&self) -> impl Iterator<Item = AlarmKind> {
        SIGNALS.iter().zip(&self.windows).filter(|(_, window)| window.raised).map(|(signal, _)| signal.kind)
    }
}

/// The last values of one signal.
#[derive(Debug, Clone, Default)]
struct Window {
    values: VecDeque<f64>,
    raised: bool,
    /// Values in a row that were within bounds.
    quiet: usize,
}

impl Window {
    /// The value over the window, if it raises the alarm.
    fn push(&mut self, kind: AlarmKind, value: f64, limit: Limit, patience: usize) -> Option<f64> {
        self.values.push_back(value);
        if self.values.len() > patience {
            self.values.pop_front();
        }
        if self.values.len() < patience {
            return None;
        }
        let value = kind.over(self.values.iter().copied().collect());
        if kind.is_beyond(value, limit.threshold()) {
            self.quiet = 0;
            (!std::mem::replace(&mut self.raised, true)).then_some(value)
        } else {
            self.quiet += 1;
            self.raised &= self.quiet < patience;
            None
        }
    }
}

/// One batch against the thresholds, without memory and without patience: for a loop of one's own. β is that of the rewards.
///
/// At step 1, before the first update, it holds the reference against the policy; later it sees whether they are still equal. What needs a
/// memory (the loss, the gradient, samples) takes a [`Monitor`].
///
/// # Errors
/// Those of [`batch_metrics`].
pub fn check(step: u64, batch: &PreferenceBatch, beta: f64, thresholds: &Thresholds) -> Result<Vec<Alarm>> {
    Ok(Monitor::new(thresholds.impatient()).observe(step, &batch_metrics(batch, beta)?))
}
