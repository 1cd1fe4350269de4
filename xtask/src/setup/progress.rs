//! How far a long step is: a bar in a terminal, a few plain lines in a log.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{prefix} [{bar:40}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

/// Per cent between two plain lines.
const STRIDE: u64 = 25;

pub struct Progress {
    label: &'static str,
    total: u64,
    reached: u64,
    next_line: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(label: &'static str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_prefix(label);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { label, total: total.max(1), reached: 0, next_line: STRIDE, bar }
    }

    /// Never backwards: pip's temporary files come and go.
    pub fn reach(&mut self, bytes: u64) {
        self.reached = self.reached.max(bytes.min(self.total));
        if let Some(bar) = &self.bar {
            bar.set_position(self.reached);
            return;
        }
        let percent = self.reached * 100 / self.total;
        if percent >= self.next_line {
            eprintln!("{}: {percent} % of {}", self.label, DecimalBytes(self.total));
            self.next_line = (percent / STRIDE + 1) * STRIDE;
        }
    }

    pub fn finish(mut self, complete: bool) {
        if complete {
            self.reach(self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
