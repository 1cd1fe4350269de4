use std::{
    collections::VecDeque,
    fmt,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use super::{Flow, Observer, StepReport};
use crate::diagnostics::Alarm;

/// How far a run is, its loss, tokens a second and the time left: a bar on a terminal, a line now and then elsewhere.
///
/// Speeds are those of the last 32 steps with what lay between them, evaluations and checkpoints; tokens are the metric
/// `num_tokens`, where batches have lengths.
pub struct Progress {
    steps: u64,
    face: Face,
    recent: VecDeque<Mark>,
    tokens: f64,
    clock: Box<dyn FnMut() -> Instant + Send>,
}

enum Face {
    Bar(ProgressBar),
    Lines {
        out: Box<dyn Write + Send>,
        every: Duration,
        /// When the last line was written.
        said: Option<Instant>,
        /// What there is to say of a step that no line has told of.
        unsaid: Option<String>,
    },
}

/// What was behind a run after a step.
struct Mark {
    time: Instant,
    step: u64,
    tokens: f64,
}

/// Steps that a speed is measured over.
const WINDOW: usize = 32;

impl Progress {
    /// Of a run of so many steps, on standard error; lines at most every ten seconds.
    #[must_use]
    pub fn new(steps: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::lines(steps, io::stderr());
        }
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}").expect("a template without mistakes");
        // A run that stops early leaves its bar where it was.
        Self::with_face(
            steps,
            Face::Bar(ProgressBar::new(steps).with_style(style).with_finish(ProgressFinish::Abandon)),
        )
    }

    /// In lines, wherever `out` leads.
    #[must_use]
    pub fn lines(steps: u64, out: impl Write + Send + 'static) -> Self {
        let (out, every) = (Box::new(out), Duration::from_secs(10));
        Self::with_face(steps, Face::Lines { out, every, said: None, unsaid: None })
    }

    /// Lines at most so often. The first and the last step have one in any case.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        if let Face::Lines { every, .. } = &mut self.face {
            *every = interval;
        }
        self
    }

    /// By another clock than the system's.
    #[must_use]
    pub fn with_clock(self, clock: impl FnMut() -> Instant + Send + 'static) -> Self {
        Self { clock: Box::new(clock), ..self }
    }

    fn with_face(steps: u64, face: Face) -> Self {
        Self { steps, face, recent: VecDeque::new(), tokens: 0.0, clock: Box::new(Instant::now) }
    }

    /// What there is to say after a step.
    fn message(&mut self, report: &StepReport, now: Instant) -> String {
        let accuracy = ["rewards/accuracies", "accuracy"].into_iter().find_map(|name| report.metrics.get(name));
        let tokens = report.metrics.get("num_tokens");
        self.tokens += tokens.unwrap_or(0.0);
        let mut text = format!("loss {:.4}", report.loss);
        if let Some(accuracy) = accuracy {
            text += &format!("  accuracy {accuracy:.3}");
        }
        if let Some(first) = self.recent.front() {
            let seconds = now.duration_since(first.time).as_secs_f64();
            if tokens.is_some() && seconds > 0.0 {
                text += &format!("  {:.0} tokens/s", (self.tokens - first.tokens) / seconds);
            }
            let done = report.step.saturating_sub(first.step);
            if done > 0 && report.step < self.steps {
                let left = seconds / done as f64 * (self.steps - report.step) as f64;
                text += &format!("  {} left", Span(left));
            }
        }
        self.recent.push_back(Mark { time: now, step: report.step, tokens: self.tokens });
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        text
    }

    fn aside(&mut self, text: &str) {
        match &mut self.face {
            Face::Bar(bar) => bar.println(text),
            Face::Lines { out, .. } => say(out, text),
        }
    }
}

impl Observer for Progress {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        let now = (self.clock)();
        let message = self.message(report, now);
        match &mut self.face {
            Face::Bar(bar) => {
                bar.set_message(message);
                bar.set_position(report.step);
            }
            Face::Lines { out, every, said, unsaid } => {
                let line = format!("step {}/{}  {message}", report.step, self.steps);
                if said.is_none_or(|said| now.duration_since(said) >= *every) {
                    say(out, &line);
                    (*said, *unsaid) = (Some(now), None);
                } else {
                    *unsaid = Some(line);
                }
            }
        }
        Flow::Continue
    }

    fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
        self.aside(&format!("{alarm}. {} {}", alarm.reason(), alarm.remedy()));
        Flow::Continue
    }

    fn on_end(&mut self) {
        match &mut self.face {
            Face::Bar(bar) => bar.tick(),
            Face::Lines { out, unsaid, .. } => {
                if let Some(line) = unsaid.take() {
                    say(out, &line);
                }
            }
        }
    }
}

/// A line that nobody is there to read is no reason to end a run.
fn say(out: &mut impl Write, line: &str) {
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Seconds, as a reader wants them.
struct Span(f64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.round() as u64;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match (hours, minutes) {
            (0, 0) => write!(f, "{seconds} s"),
            (0, _) => write!(f, "{minutes} min {seconds:02} s"),
            _ => write!(f, "{hours} h {minutes:02} min"),
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("steps", &self.steps).field("tokens", &self.tokens).finish_non_exhaustive()
    }
}
