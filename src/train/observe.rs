use super::StepReport;
use crate::{Error, diagnostics::Alarm};

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop after this step.
    Stop,
}

/// Watches a loop: progress bars, logs, early stopping. Closures over a [`StepReport`] are observers.
///
/// Alarms go from any observer that [raises](Self::raised) them, as a [`Watch`](super::Watch) does, to all:
///
/// ```no_run
/// # use prefopt::{Result, train::{Trainer, Watch}, diagnostics::Thresholds};
/// use prefopt::{diagnostics::Alarm, train::{Flow, Observer, StepReport}};
///
/// struct Log;
///
/// impl Observer for Log {
///     fn on_step(&mut self, report: &StepReport) -> Flow {
///         println!("{} {:.3}", report.step, report.loss);
///         Flow::Continue
///     }
///
///     fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
///         println!("{alarm}. {} {}", alarm.reason(), alarm.remedy());
///         Flow::Continue
///     }
/// }
///
/// # fn f(mut trainer: impl Trainer<Batch = Vec<usize>>, batches: Vec<Vec<usize>>) -> Result<()> {
/// trainer.fit(batches, &mut [&mut Watch::new(Thresholds::default()), &mut Log])?;
/// # Ok(()) }
/// ```
pub trait Observer {
    /// After each step.
    fn on_step(&mut self, report: &StepReport) -> Flow;

    /// Hands over the alarms that this observer has raised since it was last asked: after each step, once all observers have heard of it.
    fn raised(&mut self) -> Vec<Alarm> {
        Vec::new()
    }

    /// After a step at which an observer, this one or another, raised it.
    fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
        let _ = alarm;
        Flow::Continue
    }

    /// What went wrong for this observer, asked after each step: the loop ends with it.
    fn failure(&mut self) -> Option<Error> {
        None
    }

    /// After the last one, also when the loop ended by an error.
    fn on_end(&mut self) {}
}

impl<F: FnMut(&StepReport) -> Flow> Observer for F {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        self(report)
    }
}

/// Tells all observers of a step, and then of the alarms at it. Each hears of everything, also when an earlier one says stop.
pub(super) fn tell(observers: &mut [&mut dyn Observer], report: &StepReport) -> Flow {
    let mut stop = false;
    for observer in observers.iter_mut() {
        stop |= observer.on_step(report) == Flow::Stop;
    }
    let alarms: Vec<Alarm> = observers.iter_mut().flat_map(|observer| observer.raised()).collect();
    for alarm in &alarms {
        for observer in observers.iter_mut() {
            stop |= observer.on_alarm(alarm) == Flow::Stop;
        }
    }
    if stop { Flow::Stop } else { Flow::Continue }
}
