use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};

/// L'(x), what a calibrated classifier expects to lose at x; p = softmax(z/T).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// −Σ_k p_k log p_k, nats: its expected log loss.
    #[default]
    Entropy,
    /// 1 − max_k p_k: its expected error, on which [Chow's rule](super::Rejector::chow) and a [confidence
    /// threshold](super::Rejector::confidence) stand. For two classes it orders rows as the entropy does; for more it
    /// does not.
    ZeroOne,
}

impl Risk {
    pub(super) fn of(self, row: &Tempered) -> f64 {
        match self {
            Self::Entropy => row.log_p.iter().map(|log_p| -log_p.exp() * log_p).sum(),
            Self::ZeroOne => row.error,
        }
    }
}

/// One row's tempered softmax.
pub(super) struct Tempered {
    /// log p, `[classes]`.
    pub log_p: Array1<f64>,
    /// 1 − max p, from the other classes' odds: where the model is sure the difference would be 0, and rows that are
    /// not equally sure would tie.
    pub error: f64,
}

impl Tempered {
    pub fn new(row: ArrayView1<f64>, temperature: f64) -> Self {
        let top = (1..row.len()).fold(0, |top, class| if row[class] > row[top] { class } else { top });
        // Bounded, since a masked logit of f64::MIN over T < 1 would be −∞ and its p log p NaN.
        let below: Array1<f64> = row.mapv(|logit| ((logit - row[top]) / temperature).max(f64::MIN));
        let others: f64 = below.iter().enumerate().filter(|(class, _)| *class != top).map(|(_, b)| b.exp()).sum();
        Self { log_p: below - others.ln_1p(), error: others / (1.0 + others) }
    }
}

/// log σ(x) = min(x, 0) − log(1 + e^{−|x|}).
pub(super) fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}
