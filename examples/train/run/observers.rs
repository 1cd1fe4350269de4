//! Who watches a run: Ctrl-C, alarms, log, TensorBoard, progress.

use std::{
    fs,
    io::{self, IsTerminal},
    num::NonZeroUsize,
    path::Path,
};

use anyhow::{Context, Result};
use prefopt::{
    diagnostics::{Alarm, Metrics},
    train::{Flow, Interrupt, JsonLines, Observer, Progress, StepReport, TensorBoard, Watch},
};

use super::log;
use crate::trainers::{self, Steps};

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// In a folder without one.
    New,
    /// Anew: it ended before its first checkpoint.
    Over,
    /// After so many steps.
    After(u64),
}

/// Of an evaluation, what is said where no bar would be torn by it.
const SAID: [&str; 4] = ["eval_loss", "eval_rewards/accuracies", "eval_accuracy", "samples/reverse_kl"];

pub struct Observers {
    interrupt: Interrupt,
    watch: Watch,
    log: JsonLines,
    board: TensorBoard,
    progress: Progress,
    /// Alarms that were raised before this start.
    known: usize,
}

impl Observers {
    /// Of a run of `total` steps. Those that remember are told what the log says of the steps before.
    pub fn begin(out: &Path, begin: Begin, total: u64, mut watch: Watch) -> Result<Self> {
        let (log_path, events) = (out.join("log.jsonl"), out.join("tensorboard"));
        let (log, board) = match begin {
            Begin::New => (JsonLines::create(&log_path)?, TensorBoard::create(events)?),
            Begin::Over => match fs::remove_file(&log_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", log_path.display()));
                }
                _ => (JsonLines::create(&log_path)?, TensorBoard::resume(events, 0)?),
            },
            Begin::After(step) => {
                let log = JsonLines::resume(&log_path, step)?;
                for line in log::lines(&log_path)? {
                    let line = line?;
                    if line.alarm.is_none() {
                        watch.measured(line.step, &trainers::metrics(line.numbers()));
                    }
                }
                // The log has them.
                watch.raised();
                (log, TensorBoard::resume(events, step)?)
            }
        };
        let (known, progress) = (watch.alarms().len(), Progress::new(total));
        Ok(Self { interrupt: Interrupt::listen()?, watch, log, board, progress, known })
    }

    /// Steps over the batches, unless someone says stop.
    pub fn fit<T: Steps>(
        &mut self,
        trainer: &mut T,
        batches: impl IntoIterator<Item = Vec<usize>>,
        parts: NonZeroUsize,
    ) -> prefopt::Result<()> {
        let Self { interrupt, watch, log, board, progress, .. } = self;
        let progress = &mut Throughout(progress);
        trainer.fit_over(batches, parts, &mut [interrupt, watch, log, board, progress]).map(drop)
    }

    /// What was measured after so many steps.
    pub fn measured(&mut self, step: u64, metrics: &Metrics) -> prefopt::Result<()> {
        self.log.measured(step, metrics);
        self.board.measured(step, metrics);
        self.watch.measured(step, metrics);
        // Now and not with the next step: a run that goes on from here keeps the lines of its log up to this step.
        for alarm in self.watch.raised() {
            self.log.on_alarm(&alarm);
            self.board.on_alarm(&alarm);
            self.progress.on_alarm(&alarm);
        }
        if !io::stderr().is_terminal() {
            let said = SAID.iter().filter_map(|name| metrics.get(name).map(|value| format!("  {name} {value:.4}")));
            let said: String = said.collect();
            if !said.is_empty() {
                eprintln!("after step {step}{said}");
            }
        }
        match self.log.failure().or_else(|| self.board.failure()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub fn is_asked(&self) -> bool {
        self.interrupt.is_asked()
    }

    /// Whether there was an alarm since this start.
    pub fn is_alarmed(&self) -> bool {
        self.watch.alarms().len() > self.known
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        self.progress.on_end();
    }
}

/// Hears of all but the end: that of a stretch of steps is not that of the run.
struct Throughout<'a>(&'a mut Progress);

impl Observer for Throughout<'_> {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        self.0.on_step(report)
    }

    fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
        self.0.on_alarm(alarm)
    }
}
