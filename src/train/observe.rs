use super::StepReport;

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop after this step.
    Stop,
}

/// Watches a loop: progress bars, logs, early stopping. Closures over a [`StepReport`] are observers.
pub trait Observer {
    /// After each step.
    fn on_step(&mut self, report: &StepReport) -> Flow;

    /// After the last one, also when the loop ended by an error.
    fn on_end(&mut self) {}
}

impl<F: FnMut(&StepReport) -> Flow> Observer for F {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        self(report)
    }
}
