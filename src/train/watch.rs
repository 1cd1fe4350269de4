use super::{Flow, Observer, StepReport};
use crate::diagnostics::{Alarm, Metrics, Monitor, Thresholds};

/// An observer that holds a run's numbers against thresholds and raises [`Alarm`]s, of which [`fit`](super::Trainer::fit) tells all
/// observers.
///
/// ```no_run
/// # use prefopt::{Result, train::Trainer};
/// use prefopt::{diagnostics::{AlarmKind, Thresholds}, train::Watch};
///
/// # fn f(mut trainer: impl Trainer<Batch = Vec<usize>>, epoch: Vec<Vec<usize>>, held_out: Vec<usize>) -> Result<()> {
/// let mut watch = Watch::new(Thresholds::default().with(AlarmKind::BothFall, 0.3, 10)?).stopping();
/// let last = trainer.fit(epoch, &mut [&mut watch])?;
/// // What is measured between steps.
/// watch.measured(last.map_or(0, |report| report.step), &trainer.evaluate(&held_out)?);
/// for alarm in watch.alarms() {
///     println!("{alarm}");
/// }
/// # Ok(()) }
/// ```
///
/// In a loop of one's own [`step`](Self::step) takes the report and returns what is new.
///
/// It is not part of a checkpoint: in a run that goes on, what later numbers are compared with are the first ones after that. Give the numbers of
/// the log to [`measured`](Self::measured) first to have the old ones.
#[derive(Debug, Clone)]
pub struct Watch {
    monitor: Monitor,
    stopping: bool,
    /// Alarms so far, of which `told` have been handed to the loop.
    alarms: Vec<Alarm>,
    told: usize,
}

impl Watch {
    /// By these thresholds; goes on whatever happens.
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Self {
        Self { monitor: Monitor::new(thresholds), stopping: false, alarms: Vec::new(), told: 0 }
    }

    /// Says stop at the first alarm.
    #[must_use]
    pub fn stopping(self) -> Self {
        Self { stopping: true, ..self }
    }

    /// What a step raises.
    pub fn step(&mut self, report: &StepReport) -> &[Alarm] {
        let numbers = Metrics::default()
            .with("loss", report.loss)
            .with("grad_norm", report.grad_norm)
            .with("learning_rate", report.learning_rate);
        self.measured(report.step, &numbers.and(report.metrics.clone()))
    }

    /// What numbers raise that were measured between steps, after `step` of them: an evaluation, samples, the data themselves.
    pub fn measured(&mut self, step: u64, metrics: &Metrics) -> &[Alarm] {
        let before = self.alarms.len();
        self.alarms.extend(self.monitor.observe(step, metrics));
        &self.alarms[before..]
    }

    /// All alarms so far.
    pub fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    /// What they are raised by.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }
}

impl Observer for Watch {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        let quiet = self.step(report).is_empty();
        if quiet || !self.stopping { Flow::Continue } else { Flow::Stop }
    }

    fn raised(&mut self) -> Vec<Alarm> {
        let new = self.alarms[self.told..].to_vec();
        self.told = self.alarms.len();
        new
    }
}
