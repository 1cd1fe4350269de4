use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use super::statistics::{quantile, sorted};

/// What an alarm is about. docs/alarms.md lists signal, threshold, remedy and source of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AlarmKind {
    /// Before the first update π and π_ref differ: by how much of the log-probabilities.
    ReferenceMismatch,
    /// After updates π and π_ref are still equal: by how much of the log-probabilities they differ.
    ReferenceIsPolicy,
    /// log π(y_w) and log π(y_l) have both fallen: by how much of log π_ref, the less fallen of the two.
    BothFall,
    /// A tenth of the pairs have a margin beyond: of |βh|, nats.
    RunawayMargins,
    /// |βh| exceeds the boldest reward model's |Δr|: by how many of it.
    BeyondTeachers,
    /// The labels say the opposite of the reward models or of held-out pairs: standard errors below ½.
    LabelsReversed,
    /// Pairs that are there with the opposite label too: their share.
    OpposedLabels,
    /// A logistic loss that does not fall: ln 2 less the loss, nats.
    LossStuck,
    /// A number that is not finite, or a loss or gradient that goes there: how many times its first value.
    NonFinite,
    /// Entropy has fallen since the first measurement: by what share.
    EntropyCollapse,
    /// Samples have become longer or shorter since the first measurement: by what factor.
    LengthDrift,
    /// Samples repeat themselves more than at the first measurement: by how much of their runs of tokens.
    Repetition,
}

impl AlarmKind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ReferenceMismatch,
        Self::ReferenceIsPolicy,
        Self::BothFall,
        Self::RunawayMargins,
        Self::BeyondTeachers,
        Self::LabelsReversed,
        Self::OpposedLabels,
        Self::LossStuck,
        Self::NonFinite,
        Self::EntropyCollapse,
        Self::LengthDrift,
        Self::Repetition,
    ];

    /// The name in a configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReferenceMismatch => "reference_mismatch",
            Self::ReferenceIsPolicy => "reference_is_policy",
            Self::BothFall => "both_fall",
            Self::RunawayMargins => "runaway_margins",
            Self::BeyondTeachers => "beyond_teachers",
            Self::LabelsReversed => "labels_reversed",
            Self::OpposedLabels => "opposed_labels",
            Self::LossStuck => "loss_stuck",
            Self::NonFinite => "non_finite",
            Self::EntropyCollapse => "entropy_collapse",
            Self::LengthDrift => "length_drift",
            Self::Repetition => "repetition",
        }
    }

    /// Whether a value is beyond its threshold.
    pub(super) fn is_beyond(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::LossStuck | Self::ReferenceIsPolicy => value < threshold,
            Self::NonFinite => !value.is_finite() || value > threshold,
            _ => value > threshold,
        }
    }

    /// One value for several: their median, which one noisy batch does not move; of standard errors their sum over the root of their
    /// number (Stouffer), which is that of all pairs together.
    pub(super) fn over(self, values: Vec<f64>) -> f64 {
        match (self, values.as_slice()) {
            (_, [only]) => *only,
            (Self::LabelsReversed, all) => all.iter().sum::<f64>() / (all.len() as f64).sqrt(),
            _ => quantile(&sorted(values), 0.5),
        }
    }
}

/// Something is wrong with a run: what, when, and by how much. `{}` is one sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// What it is about.
    pub kind: AlarmKind,
    /// The metric that it was read from.
    pub signal: Cow<'static, str>,
    /// The step whose batch, or after which a measurement, raised it; 0 before the first.
    pub step: u64,
    /// What the kind measures, over as many steps as it waits for. JSON has `null` for one that is not finite, which is read as NaN.
    #[serde(deserialize_with = "or_nan")]
    pub value: f64,
    /// What the value was beyond.
    pub threshold: f64,
}

fn or_nan<'de, D: serde::Deserializer<'de>>(number: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(number)?.unwrap_or(f64::NAN))
}

impl Alarm {
    /// As [`AlarmKind::reason`].
    pub fn reason(&self) -> &'static str {
        self.kind.reason()
    }

    /// As [`AlarmKind::remedy`].
    pub fn remedy(&self) -> &'static str {
        self.kind.remedy()
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signal, step, value, threshold, .. } = self;
        let percent = |share: &f64| 100.0 * share;
        write!(f, "step {step}: ")?;
        match self.kind {
            AlarmKind::ReferenceMismatch => write!(
                f,
                "policy and reference differ before the first update, by {:.2}% of their log-probabilities (at most {:.2}%)",
                percent(value),
                percent(threshold)
            ),
            AlarmKind::ReferenceIsPolicy => write!(
                f,
                "policy and reference are equal after updates, to {value:.1e} of their log-probabilities (at least {threshold:.1e})"
            ),
            AlarmKind::BothFall => write!(
                f,
                "chosen and rejected responses cost {:.0}% more nats than under the reference (at most {:.0}%)",
                percent(value),
                percent(threshold)
            ),
            AlarmKind::RunawayMargins => {
                write!(f, "a tenth of the implicit margins are beyond {value:.1} nats (at most {threshold:.1})")
            }
            AlarmKind::BeyondTeachers => write!(
                f,
                "implicit margins exceed the boldest reward model's by {value:.2} times their size (at most {threshold:.2})"
            ),
            AlarmKind::LabelsReversed => {
                write!(f, "{signal} is {value:.1} standard errors below one half (at most {threshold:.1})")
            }
            AlarmKind::OpposedLabels => write!(
                f,
                "{:.0}% of the pairs are there with the opposite label too (at most {:.0}%)",
                percent(value),
                percent(threshold)
            ),
            AlarmKind::LossStuck => {
                write!(f, "the loss has not fallen below ln 2: ln 2 - loss is {value:.4} (at least {threshold:.4})")
            }
            AlarmKind::NonFinite if value.is_finite() => {
                write!(f, "{signal} is {value:.0} times what it was at first (at most {threshold:.0})")
            }
            AlarmKind::NonFinite => write!(f, "{signal} is {value}"),
            AlarmKind::EntropyCollapse => write!(
                f,
                "{signal} has fallen by {:.0}% since the first measurement (at most {:.0}%)",
                percent(value),
                percent(threshold)
            ),
            AlarmKind::LengthDrift => write!(
                f,
                "{signal} has changed by a factor of {value:.2} since the first measurement (at most {threshold:.2})"
            ),
            AlarmKind::Repetition => write!(
                f,
                "{signal} has risen by {:.0} points since the first measurement (at most {:.0})",
                percent(value),
                percent(threshold)
            ),
        }
    }
}
