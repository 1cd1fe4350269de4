use std::{borrow::Cow, collections::BTreeMap, f64::consts::LN_2};

use super::{AlarmKind, Metrics};

/// Numbers that are compared with their first value.
pub(super) const BASELINES: [&str; 7] =
    ["loss", "grad_norm", "entropy", "samples/entropy", "samples/length", "samples/repetition", "samples/alike"];

/// How far from ln 2 a loss may start and still be a logistic one.
const LOGISTIC: f64 = 0.01;

/// What signals are read from.
pub(super) struct Reading<'a> {
    pub step: u64,
    pub now: &'a Metrics,
    pub first: &'a BTreeMap<&'static str, f64>,
    /// Whether the learning rate is still rising.
    pub warming_up: bool,
}

impl Reading<'_> {
    fn get(&self, name: &str) -> Option<f64> {
        self.now.get(name)
    }

    /// A number now and at first, where it was positive then.
    fn since_first(&self, name: &str) -> Option<(f64, f64)> {
        let first = self.first.get(name).copied().filter(|first| *first > 0.0)?;
        Some((self.get(name)?, first))
    }

    /// Mean log π_ref of one side, nats: the log-probability less its change.
    fn reference(&self, side: [&str; 2]) -> Option<(f64, f64)> {
        let [logp, change] = [self.get(side[0])?, self.get(side[1])?];
        let reference = logp - change;
        (reference < 0.0).then_some((reference, change))
    }

    /// By how much of log π_ref a side has fallen.
    fn fall(&self, side: [&str; 2]) -> Option<f64> {
        self.reference(side).map(|(reference, change)| change / reference)
    }

    /// Mean |log π − log π_ref| as a share of mean |log π_ref|.
    fn distance(&self) -> Option<f64> {
        let [(chosen, _), (rejected, _)] = [self.reference(CHOSEN)?, self.reference(REJECTED)?];
        Some(self.get("displacement/absolute")? / (-0.5 * (chosen + rejected)))
    }

    /// How many times its first value.
    fn growth(&self, name: &str) -> Option<f64> {
        self.since_first(name).map(|(now, first)| now / first)
    }

    /// By how much above its first value.
    fn rise(&self, name: &str) -> Option<f64> {
        Some(self.get(name)? - self.first.get(name)?)
    }

    /// Standard errors by which a share of n pairs is below ½, were labels coins.
    fn below_half(&self, share: &str, pairs: &str) -> Option<f64> {
        Some((0.5 - self.get(share)?) * 2.0 * self.get(pairs)?.sqrt())
    }
}

const CHOSEN: [&str; 2] = ["logps/chosen", "displacement/chosen"];
const REJECTED: [&str; 2] = ["logps/rejected", "displacement/rejected"];

/// How often a number comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Every {
    /// With each step, from a few pairs.
    Step,
    /// Now and then, from many pairs or samples.
    Measurement,
}

/// One number that an alarm watches.
pub(super) struct Signal {
    pub kind: AlarmKind,
    name: &'static str,
    pub every: Every,
    /// `None` where the metrics do not say it.
    pub read: fn(&Reading<'_>) -> Option<f64>,
}

impl Signal {
    const fn step(kind: AlarmKind, name: &'static str, read: fn(&Reading<'_>) -> Option<f64>) -> Self {
        Self { kind, name, every: Every::Step, read }
    }

    const fn measured(kind: AlarmKind, name: &'static str, read: fn(&Reading<'_>) -> Option<f64>) -> Self {
        Self { kind, name, every: Every::Measurement, read }
    }

    /// The metric that it is read from.
    pub fn name(&self, now: &Metrics) -> Cow<'static, str> {
        if self.name == ANY {
            let found = now.iter().find(|(_, value)| !value.is_finite());
            found.map_or(ANY.into(), |(name, _)| name.to_owned().into())
        } else {
            self.name.into()
        }
    }
}

/// The name of a signal that is read from all of them.
const ANY: &str = "metrics";

/// All signals, in the order in which alarms of one step are told.
pub(super) const SIGNALS: [Signal; 18] = [
    Signal::measured(AlarmKind::OpposedLabels, "data/opposed", |r| r.get("data/opposed")),
    Signal::measured(AlarmKind::ReferenceMismatch, "displacement/absolute", |r| r.distance().filter(|_| r.step <= 1)),
    Signal::step(AlarmKind::NonFinite, ANY, |r| {
        Some(r.now.iter().map(|(_, value)| value).find(|value| !value.is_finite()).unwrap_or(0.0))
    }),
    Signal::step(AlarmKind::NonFinite, "loss", |r| r.growth("loss")),
    Signal::step(AlarmKind::NonFinite, "grad_norm", |r| r.growth("grad_norm")),
    // Where gradient or rate is 0 nothing should have moved.
    Signal::step(AlarmKind::ReferenceIsPolicy, "displacement/absolute", |r| {
        let moved = |name| r.get(name).is_none_or(|number| number > 0.0);
        r.distance().filter(|_| r.step > 1 && moved("grad_norm") && moved("learning_rate"))
    }),
    Signal::step(AlarmKind::BothFall, "displacement/chosen", |r| Some(r.fall(CHOSEN)?.min(r.fall(REJECTED)?))),
    Signal::step(AlarmKind::RunawayMargins, "margins/q90", |r| Some(r.get("margins/q90")?.max(-r.get("margins/q10")?))),
    Signal::step(AlarmKind::BeyondTeachers, "ensemble/excess", |r| r.get("ensemble/excess")),
    Signal::step(AlarmKind::LabelsReversed, "ensemble/accuracy", |r| r.below_half("ensemble/accuracy", "num_pairs")),
    Signal::step(AlarmKind::LabelsReversed, "ensemble/agreement", |r| r.below_half("ensemble/agreement", "num_pairs")),
    Signal::measured(AlarmKind::LabelsReversed, "eval_rewards/accuracies", |r| {
        r.below_half("eval_rewards/accuracies", "eval_num_pairs")
    }),
    Signal::step(AlarmKind::LossStuck, "loss", |r| {
        let (now, first) = r.since_first("loss")?;
        (!r.warming_up && (first - LN_2).abs() < LOGISTIC).then_some(LN_2 - now)
    }),
    Signal::step(AlarmKind::EntropyCollapse, "entropy", |r| r.growth("entropy").map(|growth| 1.0 - growth)),
    Signal::measured(AlarmKind::EntropyCollapse, "samples/entropy", |r| {
        r.growth("samples/entropy").map(|growth| 1.0 - growth)
    }),
    Signal::measured(AlarmKind::LengthDrift, "samples/length", |r| {
        r.growth("samples/length").map(|growth| growth.max(growth.recip()))
    }),
    Signal::measured(AlarmKind::Repetition, "samples/repetition", |r| r.rise("samples/repetition")),
    Signal::measured(AlarmKind::Repetition, "samples/alike", |r| r.rise("samples/alike")),
];
