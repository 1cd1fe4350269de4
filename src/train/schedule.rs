use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Learning rate of each step as a share of the peak rate.
pub trait Schedule {
    /// Factor of step `step`, counted from 1.
    fn factor(&self, step: u64) -> f64;
}

impl<F: Fn(u64) -> f64> Schedule for F {
    fn factor(&self, step: u64) -> f64 {
        self(step)
    }
}

/// The peak rate throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Constant;

impl Schedule for Constant {
    fn factor(&self, _step: u64) -> f64 {
        1.0
    }
}

/// Linear warm-up to the peak over the first steps, then constant, or a half cosine down to 0 at the last step.
///
/// Step s of n with w steps of warm-up: s/w for s ≤ w; then ½(1 + cos(π (s − w)/(n − w))).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WarmupFile")]
pub struct Warmup {
    steps: u64,
    cosine_until: Option<u64>,
}

/// What a configuration file says, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WarmupFile {
    steps: u64,
    #[serde(default)]
    cosine_until: Option<u64>,
}

impl TryFrom<WarmupFile> for Warmup {
    type Error = Error;
    fn try_from(file: WarmupFile) -> Result<Self> {
        let warmup = Self::new(file.steps);
        file.cosine_until.map_or(Ok(warmup), |last| warmup.then_cosine(last))
    }
}

impl Warmup {
    /// Warm-up over this many steps, then the peak rate.
    #[must_use]
    pub fn new(steps: u64) -> Self {
        Self { steps, cosine_until: None }
    }

    /// Then a half cosine that reaches 0 at step `last`.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless `last` lies after the warm-up.
    pub fn then_cosine(self, last: u64) -> Result<Self> {
        if last > self.steps {
            Ok(Self { cosine_until: Some(last), ..self })
        } else {
            Err(Error::Domain { parameter: "last step", domain: "after the warm-up", value: last as f64 })
        }
    }
}

impl Schedule for Warmup {
    fn factor(&self, step: u64) -> f64 {
        if step < self.steps {
            return step as f64 / self.steps as f64;
        }
        self.cosine_until.map_or(1.0, |last| {
            let share = (step - self.steps) as f64 / last.saturating_sub(self.steps).max(1) as f64;
            0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())
        })
    }
}
