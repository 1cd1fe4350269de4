//! Alarms: each on what it is for, not on one noisy batch, once; and how they reach observers.

mod training;

use std::collections::BTreeSet;

use prefopt::{
    PairLogps, PreferenceBatch, Result,
    diagnostics::{Alarm, AlarmKind, Metrics, Monitor, Thresholds, batch_metrics, check},
    tch::Tensor,
};

use crate::close;

const LN_2: f64 = std::f64::consts::LN_2;

/// One kind alone, by its default limit.
fn only(kind: AlarmKind) -> Thresholds {
    let limit = Thresholds::default().get(kind).expect("a default");
    Thresholds::none().with(kind, limit.threshold(), limit.patience()).expect("valid")
}

fn with(numbers: &[(&'static str, f64)]) -> Metrics {
    numbers.iter().fold(Metrics::default(), |metrics, &(name, value)| metrics.with(name, value))
}

/// Steps, from 1, at which the kind is raised by these numbers.
fn raised_at(thresholds: Thresholds, steps: impl IntoIterator<Item = Metrics>) -> Vec<u64> {
    let mut monitor = Monitor::new(thresholds);
    let steps = (1..).zip(steps);
    steps.flat_map(|(step, metrics)| monitor.observe(step, &metrics)).map(|alarm| alarm.step).collect()
}

/// Log-ratios of 100-nat responses.
fn displaced(chosen: f64, rejected: f64) -> Metrics {
    with(&[
        ("logps/chosen", -100.0 + chosen),
        ("logps/rejected", -100.0 + rejected),
        ("displacement/chosen", chosen),
        ("displacement/rejected", rejected),
        ("displacement/absolute", 0.5 * (chosen.abs() + rejected.abs())),
        ("grad_norm", 1.0),
    ])
}

#[test]
fn both_have_to_fall() {
    let of = |steps: Vec<Metrics>| raised_at(only(AlarmKind::BothFall), steps);
    assert_eq!(of((0..8).map(|_| displaced(-30.0, -60.0)).collect()), [5]);
    assert!(of((0..8).map(|_| displaced(-19.0, -60.0)).collect()).is_empty(), "the chosen one by a fifth at most");
    assert!(of((0..8).map(|_| displaced(5.0, -60.0)).collect()).is_empty());
    assert!(of((0..8).map(|_| displaced(-60.0, 5.0)).collect()).is_empty());
}

#[test]
fn a_single_noisy_batch_is_no_alarm() {
    let spikes = (1..=40).map(|step| if step % 6 == 0 { displaced(-99.0, -99.0) } else { displaced(-5.0, -5.0) });
    assert!(raised_at(only(AlarmKind::BothFall), spikes).is_empty());
    // Most of the last five are enough.
    let most = (1..=5).map(|step| if step > 2 { displaced(-30.0, -30.0) } else { displaced(-5.0, -5.0) });
    assert_eq!(raised_at(only(AlarmKind::BothFall), most), [5]);
}

#[test]
fn an_alarm_is_raised_once_until_it_was_quiet() {
    let of = |quiet: u64| {
        let bad = |step: u64| step <= 10 || step > 10 + quiet;
        let steps = (1..=40).map(|step| if bad(step) { displaced(-30.0, -30.0) } else { displaced(0.0, 0.0) });
        raised_at(only(AlarmKind::BothFall), steps)
    };
    assert_eq!(of(0), [5]);
    // The median of five is quiet two steps after the batches are, and not again quiet three after they are bad.
    assert_eq!(of(4), [5], "not long enough");
    assert_eq!(of(5), [5, 18]);
}

#[test]
fn what_stands_is_told() {
    let mut monitor = Monitor::new(only(AlarmKind::BothFall));
    for step in 1..=6 {
        monitor.observe(step, &displaced(-30.0, -30.0));
    }
    assert_eq!(monitor.standing().collect::<Vec<_>>(), [AlarmKind::BothFall]);
    for step in 7..=20 {
        monitor.observe(step, &displaced(0.0, 0.0));
    }
    assert_eq!(monitor.standing().count(), 0);
}

#[test]
fn margins_run_away_to_either_side() {
    let of = |low: f64, high: f64| {
        raised_at(only(AlarmKind::RunawayMargins), (0..6).map(|_| with(&[("margins/q10", low), ("margins/q90", high)])))
    };
    assert_eq!(of(-1.0, 10.5), [5]);
    assert_eq!(of(-10.5, 1.0), [5]);
    assert!(of(-9.0, 9.0).is_empty());
}

#[test]
fn teachers_are_exceeded() {
    let of =
        |excess: f64| raised_at(only(AlarmKind::BeyondTeachers), (0..12).map(|_| with(&[("ensemble/excess", excess)])));
    assert_eq!(of(1.1), [10]);
    assert!(of(0.9).is_empty());
}

/// Eight pairs say little; twenty batches of them say much. Many at once are believed at once.
#[test]
fn labels_are_judged_by_all_their_pairs() {
    let of = |name: &'static str, share: f64, pairs: f64| {
        raised_at(only(AlarmKind::LabelsReversed), (0..25).map(|_| with(&[(name, share), ("num_pairs", pairs)])))
    };
    for signal in ["ensemble/accuracy", "ensemble/agreement"] {
        // (½ − .25) · 2 · √8 = 1.4 standard errors a batch, 6.3 over 20.
        assert_eq!(of(signal, 0.25, 8.0), [20], "{signal}");
        assert!(of(signal, 0.45, 8.0).is_empty(), "1.3 standard errors");
        assert!(of(signal, 0.75, 8.0).is_empty());
    }
    let held_out = |share: f64, pairs: f64| {
        let numbers = with(&[("eval_rewards/accuracies", share), ("eval_num_pairs", pairs)]);
        Monitor::new(only(AlarmKind::LabelsReversed)).observe(7, &numbers)
    };
    let alarms = held_out(0.4, 400.0);
    assert_eq!((alarms[0].step, &*alarms[0].signal), (7, "eval_rewards/accuracies"));
    close(alarms[0].value, 4.0, 1e-12, 0.0, "standard errors");
    assert!(held_out(0.4, 100.0).is_empty(), "2 standard errors");
}

fn rate_and_loss(rate: f64, loss: f64) -> Metrics {
    with(&[("learning_rate", rate), ("loss", loss)])
}

#[test]
fn a_logistic_loss_has_to_fall() {
    let of = |loss: fn(u64) -> f64, warm_up: u64| {
        let rate = |step: u64| step.min(warm_up.max(1)) as f64;
        raised_at(only(AlarmKind::LossStuck), (1..=120).map(|step| rate_and_loss(rate(step), loss(step))))
    };
    assert_eq!(of(|_| LN_2, 0), [50]);
    // The first step has nothing to rise from; the 29 after it are the warm-up's.
    assert_eq!(of(|_| LN_2, 30), [79]);
    assert_eq!(of(|step| if step == 1 { LN_2 } else { 0.71 }, 0), [50], "worse than ln 2 is no better");
    assert!(of(|step| LN_2 - 0.001 * step as f64, 0).is_empty(), "slow, but it falls");
    assert!(of(|step| if step == 1 { LN_2 } else { 0.64 }, 0).is_empty());
    // Squared losses start elsewhere, and end near anything.
    assert!(of(|step| if step == 1 { 25.0 } else { LN_2 }, 0).is_empty());
}

#[test]
fn the_reference_is_the_start_and_stays_there() {
    let at = |step: u64, metrics: &Metrics, kind| Monitor::new(only(kind)).observe(step, metrics);
    let mismatch = at(1, &displaced(0.4, -0.2), AlarmKind::ReferenceMismatch);
    close(mismatch[0].value, 0.3 / 100.0, 1e-12, 0.0, "share of the log-probabilities");
    assert!(at(1, &displaced(1e-4, -1e-4), AlarmKind::ReferenceMismatch).is_empty(), "rounding");
    assert!(at(2, &displaced(0.4, -0.2), AlarmKind::ReferenceMismatch).is_empty(), "it has moved");
    assert_eq!(at(0, &displaced(0.4, -0.2), AlarmKind::ReferenceMismatch).len(), 1);

    let equal = |steps: Vec<Metrics>| raised_at(only(AlarmKind::ReferenceIsPolicy), steps);
    assert_eq!(equal((0..9).map(|_| displaced(0.0, 0.0)).collect()), [6], "five updates");
    assert_eq!(equal((0..9).map(|_| displaced(1e-5, -2e-5)).collect()), [6], "rounding");
    assert!(equal((0..9).map(|_| displaced(1e-3, -2e-3)).collect()).is_empty());
    let still = |name: &'static str| -> Vec<Metrics> {
        (0..9).map(|_| with(&[(name, 0.0)]).and(displaced(0.0, 0.0))).collect()
    };
    assert!(equal(still("learning_rate")).is_empty() && equal(still("grad_norm")).is_empty(), "nothing has moved it");
}

/// Without a reference there is no displacement to read.
#[test]
fn no_reference_no_alarm_of_it() -> Result<()> {
    let t = |x: [f64; 2]| Tensor::from_slice(&x);
    let logps = PairLogps::new(t([-90.0, -80.0]), t([-70.0, -95.0]), t([-1.0; 2]), t([-1.0; 2]))?.reference_free();
    let metrics = batch_metrics(&PreferenceBatch::new(logps), 0.01)?;
    for step in 0..9 {
        let alarms = Monitor::new(Thresholds::default()).observe(step, &metrics);
        assert!(alarms.is_empty(), "{alarms:?}");
    }
    Ok(())
}

#[test]
fn numbers_have_to_be_finite_and_to_stay_so() {
    let first = with(&[("loss", 0.7), ("grad_norm", 2.0)]);
    let second = |numbers: &[(&'static str, f64)]| {
        let mut monitor = Monitor::new(only(AlarmKind::NonFinite));
        assert!(monitor.observe(1, &first).is_empty());
        monitor.observe(2, &with(numbers))
    };
    let found = second(&[("loss", 0.6), ("entropy", f64::NAN), ("logps/chosen", f64::NEG_INFINITY)]);
    assert_eq!(found.len(), 1);
    assert_eq!((&*found[0].signal, found[0].value.is_nan()), ("entropy", true));
    assert_eq!(found[0].to_string(), "step 2: entropy is NaN");
    let grown = second(&[("loss", 700.7), ("grad_norm", 1999.0)]);
    assert_eq!(grown.len(), 1);
    assert_eq!(grown[0].to_string(), "step 2: loss is 1001 times what it was at first (at most 1000)");
    assert_eq!(second(&[("grad_norm", 2001.0)]).len(), 1);
    assert!(second(&[("loss", -5.0), ("num_tokens", 1e9)]).is_empty());
}

#[test]
fn samples_are_compared_with_the_first() {
    let of = |kind, name: &'static str, first: f64, now: f64| {
        let mut monitor = Monitor::new(only(kind));
        assert!(monitor.observe(0, &with(&[(name, first)])).is_empty());
        !monitor.observe(100, &with(&[(name, now)])).is_empty()
    };
    let entropy = |now| of(AlarmKind::EntropyCollapse, "samples/entropy", 2.0, now);
    assert_eq!([0.9, 1.1, 4.0].map(entropy), [true, false, false]);
    let length = |now| of(AlarmKind::LengthDrift, "samples/length", 30.0, now);
    assert_eq!([19.0, 21.0, 44.0, 46.0].map(length), [true, false, false, true]);
    for name in ["samples/repetition", "samples/alike"] {
        let repetition = |now| of(AlarmKind::Repetition, name, 0.05, now);
        assert_eq!([0.0, 0.2, 0.3].map(repetition), [false, false, true], "{name}");
    }
    // The entropy of a step's few tokens has to stay low.
    let steps = (1..=9).map(|step| with(&[("entropy", if step == 1 { 2.0 } else { 0.5 })]));
    assert_eq!(raised_at(only(AlarmKind::EntropyCollapse), steps), [5]);
}

#[test]
fn the_data_are_judged_before_the_first_step() {
    let of = |share| Monitor::new(only(AlarmKind::OpposedLabels)).observe(0, &with(&[("data/opposed", share)]));
    assert!(of(0.04).is_empty());
    assert_eq!(of(0.5)[0].to_string(), "step 0: 50% of the pairs are there with the opposite label too (at most 5%)");
}

#[test]
fn an_alarm_that_is_left_out_is_silent() {
    let steps = || (0..9).map(|_| displaced(-30.0, -60.0));
    assert!(raised_at(Thresholds::none(), steps()).is_empty());
    assert!(!raised_at(Thresholds::default().without(AlarmKind::ReferenceMismatch), steps()).is_empty());
    let neither = Thresholds::default().without(AlarmKind::ReferenceMismatch).without(AlarmKind::BothFall);
    assert!(raised_at(neither, steps()).is_empty());
    let later = only(AlarmKind::BothFall).with(AlarmKind::BothFall, 0.25, 7).expect("valid");
    assert_eq!(raised_at(later, steps()), [7]);
}

#[test]
fn thresholds_are_checked_and_named() {
    let said = |outcome: Result<Thresholds>| outcome.expect_err("must be refused").to_string();
    let with = |kind, threshold, patience| Thresholds::default().with(kind, threshold, patience);
    for kind in AlarmKind::ALL {
        for threshold in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let expected = format!("{} must be positive and finite, got {threshold}", kind.name());
            assert_eq!(said(with(kind, threshold, 5)), expected);
        }
    }
    assert_eq!(said(with(AlarmKind::BothFall, 0.1, 0)), "patience must be at least 1 step, got 0");
}

#[test]
fn thresholds_survive_a_configuration_file() {
    let read = |json: &str| serde_json::from_str::<Thresholds>(json);
    assert_eq!(read("{}").expect("valid"), Thresholds::default());
    let changed =
        Thresholds::default().with(AlarmKind::LossStuck, 0.02, 200).expect("valid").without(AlarmKind::Repetition);
    let json = serde_json::to_string(&changed).expect("plain data");
    assert_eq!(read(&json).expect("its own text"), changed);
    assert!(
        json.contains(r#""loss_stuck":{"threshold":0.02,"patience":200}"#) && json.contains(r#""repetition":null"#)
    );
    let said = |json: &str| read(json).expect_err("must be refused").to_string();
    let negative = said(r#"{"both_fall": {"threshold": -1.0, "patience": 5}}"#);
    assert!(negative.starts_with("both_fall must be positive and finite, got -1"), "{negative}");
    assert!(said(r#"{"both_rise": null}"#).contains("both_rise"));
    assert!(said(r#"{"both_fall": {"threshold": 0.1, "patience": 5, "why": 1}}"#).contains("why"));
}

#[test]
fn every_alarm_says_what_why_and_what_to_do() {
    let mut texts = BTreeSet::new();
    for kind in AlarmKind::ALL {
        let alarm = Alarm { kind, signal: "signal".into(), step: 12, value: 0.875, threshold: 0.25 };
        let said = alarm.to_string();
        assert!(said.starts_with("step 12: "), "{said}");
        for text in [said, alarm.reason().into(), alarm.remedy().into(), kind.name().into()] {
            assert!(texts.insert(text.clone()), "twice: {text}");
        }
        for sentence in [alarm.reason(), alarm.remedy()] {
            assert!(sentence.ends_with('.') && !sentence.contains(". "), "one sentence: {sentence}");
        }
        let json = serde_json::to_string(&alarm).expect("plain data");
        assert!(json.contains(&format!(r#""kind":"{}""#, kind.name())), "{json}");
        assert_eq!(serde_json::from_str::<Alarm>(&json).expect("its own text"), alarm);
        assert_eq!(Thresholds::default().get(kind).map(|limit| limit.patience() > 0), Some(true));
    }
}

fn row<const N: usize>(x: [f64; N]) -> Tensor {
    Tensor::from_slice(&x)
}

/// Without a memory, in a loop of one's own.
#[test]
fn one_batch_is_checked_by_a_function() -> Result<()> {
    let batch = |reference: [f64; 2]| -> Result<PreferenceBatch> {
        Ok(PreferenceBatch::new(PairLogps::new(row([-40.0; 2]), row([-50.0; 2]), row(reference), row([-50.0; 2]))?))
    };
    let kinds = |step, batch: Result<PreferenceBatch>| -> Result<Vec<AlarmKind>> {
        Ok(check(step, &batch?, 0.1, &Thresholds::default())?.into_iter().map(|alarm| alarm.kind).collect())
    };
    assert!(kinds(1, batch([-40.0; 2]))?.is_empty());
    assert_eq!(kinds(1, batch([-41.0, -40.0]))?, [AlarmKind::ReferenceMismatch]);
    assert!(kinds(2, batch([-41.0, -40.0]))?.is_empty());
    assert_eq!(kinds(2, batch([-40.0; 2]))?, [AlarmKind::ReferenceIsPolicy]);
    assert!(check(1, &batch([-40.0; 2])?, -0.1, &Thresholds::default()).is_err());
    Ok(())
}
