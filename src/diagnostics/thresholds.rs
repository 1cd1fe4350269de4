use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::AlarmKind;
use crate::{Error, Result};

/// When an alarm is raised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    threshold: f64,
    patience: usize,
}

impl Limit {
    /// What the value must be beyond, in the kind's own unit.
    pub fn threshold(self) -> f64 {
        self.threshold
    }

    /// Over how many steps the value is taken. What is measured now and then, over many pairs or samples, is believed at once.
    pub fn patience(self) -> usize {
        self.patience
    }
}

/// Thresholds of all alarms; any can be moved, or left out.
///
/// | alarm | default | steps | why there |
/// | --- | --- | --- | --- |
/// | `reference_mismatch` | .001 | 1 | a thousand times what f32 loses, and less than one token of a response; with a decoder in bf16 take .01 |
/// | `reference_is_policy` | 10⁻⁶ | 5 | what f32 loses when a sum over tokens is computed twice; five updates at any usual rate move it further |
/// | `both_fall` | .2 | 5 | both responses cost a fifth more nats; where a policy learns the chosen one falls by a few percent at most |
/// | `runaway_margins` | 10 | 5 | odds of 22,000 to 1 in a tenth of the pairs: as many votes on each would be needed to know |
/// | `beyond_teachers` | 1 | 10 | margins twice the boldest teacher's |
/// | `labels_reversed` | 3 | 20 | three standard errors: one run in 700 by chance, if labels were coins |
/// | `opposed_labels` | .05 | 1 | a few pairs with several votes are no fault |
/// | `loss_stuck` | .01 | 50 | a margin of .02 has been learned after 50 steps past the warm-up |
/// | `non_finite` | 1000 | 1 | three orders of magnitude above the first step's loss or gradient |
/// | `entropy_collapse` | .5 | 5 | half of the entropy is gone |
/// | `length_drift` | 1.5 | at once | half as long again, or two thirds |
/// | `repetition` | .2 | at once | one run of tokens in five more than at first is a repetition |
///
/// In a configuration file what is not named keeps its default, and `null` leaves an alarm out:
///
/// ```
/// use prefopt::diagnostics::{AlarmKind, Thresholds};
///
/// let file = r#"{"both_fall": {"threshold": 0.3, "patience": 10}, "length_drift": null}"#;
/// let read: Thresholds = serde_json::from_str(file).unwrap();
/// let built = Thresholds::default().with(AlarmKind::BothFall, 0.3, 10).unwrap().without(AlarmKind::LengthDrift);
/// assert_eq!(read, built);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct Thresholds([Option<Limit>; AlarmKind::ALL.len()]);

impl Default for Thresholds {
    fn default() -> Self {
        let limit = |kind| {
            let (threshold, patience) = match kind {
                AlarmKind::ReferenceMismatch => (1e-3, 1),
                AlarmKind::ReferenceIsPolicy => (1e-6, 5),
                AlarmKind::BothFall => (0.2, 5),
                AlarmKind::RunawayMargins => (10.0, 5),
                AlarmKind::BeyondTeachers => (1.0, 10),
                AlarmKind::LabelsReversed => (3.0, 20),
                AlarmKind::OpposedLabels => (0.05, 1),
                AlarmKind::LossStuck => (0.01, 50),
                AlarmKind::NonFinite => (1e3, 1),
                AlarmKind::EntropyCollapse => (0.5, 5),
                AlarmKind::LengthDrift => (1.5, 5),
                AlarmKind::Repetition => (0.2, 5),
            };
            Some(Limit { threshold, patience })
        };
        Self(AlarmKind::ALL.map(limit))
    }
}

impl Thresholds {
    /// None at all: a start for a few of one's own.
    #[must_use]
    pub fn none() -> Self {
        Self([None; AlarmKind::ALL.len()])
    }

    /// The limit of an alarm; `None` where it is left out.
    pub fn get(&self, kind: AlarmKind) -> Option<Limit> {
        self.0[kind as usize]
    }

    /// With an alarm beyond `threshold`, over `patience` steps.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) under the alarm's name unless the threshold is positive and finite, and for a patience of 0.
    pub fn with(mut self, kind: AlarmKind, threshold: f64, patience: usize) -> Result<Self> {
        if !(threshold > 0.0 && threshold.is_finite()) {
            return Err(Error::Domain { parameter: kind.name(), domain: "positive and finite", value: threshold });
        }
        if patience == 0 {
            return Err(Error::Domain { parameter: "patience", domain: "at least 1 step", value: 0.0 });
        }
        self.0[kind as usize] = Some(Limit { threshold, patience });
        Ok(self)
    }

    /// Without an alarm.
    #[must_use]
    pub fn without(mut self, kind: AlarmKind) -> Self {
        self.0[kind as usize] = None;
        self
    }

    /// The same thresholds, each believed at once.
    #[must_use]
    pub fn impatient(self) -> Self {
        Self(self.0.map(|limit| limit.map(|limit| Limit { patience: 1, ..limit })))
    }
}

/// What a configuration file says, before it is checked.
type File = BTreeMap<AlarmKind, Option<FileLimit>>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimit {
    threshold: f64,
    patience: usize,
}

impl TryFrom<File> for Thresholds {
    type Error = Error;
    fn try_from(file: File) -> Result<Self> {
        file.into_iter().try_fold(Self::default(), |thresholds, (kind, limit)| match limit {
            Some(limit) => thresholds.with(kind, limit.threshold, limit.patience),
            None => Ok(thresholds.without(kind)),
        })
    }
}

impl From<Thresholds> for File {
    fn from(thresholds: Thresholds) -> Self {
        let limit = |Limit { threshold, patience }| FileLimit { threshold, patience };
        AlarmKind::ALL.into_iter().map(|kind| (kind, thresholds.get(kind).map(limit))).collect()
    }
}
