//! Means over seeds with their standard errors.

use serde::Serialize;

/// A mean with its standard error; the error is NaN for one value.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Estimate {
    pub mean: f64,
    pub error: f64,
}

impl Estimate {
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Self { mean, error: (variance / n).sqrt() }
    }

    /// Of the differences `a` − `b`, paired by index.
    pub fn paired(a: &[f64], b: &[f64]) -> Self {
        assert_eq!(a.len(), b.len(), "paired values come in pairs");
        Self::of(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
    }

    /// How many standard errors the mean is from 0, in words.
    pub fn errors(&self) -> String {
        let errors = self.mean / self.error;
        if errors.is_finite() { format!("{errors:+.1} standard errors") } else { "one seed, or no spread".into() }
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(2);
        if self.error.is_finite() {
            write!(f, "{:+.digits$}±{:.digits$}", self.mean, self.error)
        } else {
            write!(f, "{:+.digits$}", self.mean)
        }
    }
}
