//! What batches and samples say, against plain numbers, exact expectations and each other.

mod reliability;
mod samples;

use prefopt::{
    PairLogps, PreferenceBatch, ResponseLengths, Result, RewardScores,
    diagnostics::{Metrics, batch_metrics, preference_metrics},
    tch::{Kind, Tensor},
};

use crate::{all_close, close, columns::Columns, oracle};

fn names(metrics: &Metrics) -> Vec<&str> {
    metrics.iter().map(|(name, _)| name).collect()
}

#[track_caller]
fn says(metrics: &Metrics, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        close(metrics.get(name).unwrap_or_else(|| panic!("no {name}")), *value, 1e-13, 1.0, name);
    }
}

fn row<const N: usize>(x: [f64; N]) -> Tensor {
    Tensor::from_slice(&x)
}

/// Four pairs. Log-ratios of y_w: 2, −1, −.005, −3; of y_l: −2, −1, −1, 1; so h: 4, 0, .995, −4.
fn pairs() -> Result<PairLogps> {
    PairLogps::new(
        row([-10.0, -5.0, -7.005, -9.0]),
        row([-12.0, -6.0, -3.0, -2.0]),
        row([-12.0, -4.0, -7.0, -6.0]),
        row([-10.0, -5.0, -2.0, -3.0]),
    )
}

#[test]
fn displacement_is_the_change_of_both() -> Result<()> {
    let metrics = batch_metrics(&PreferenceBatch::new(pairs()?), 0.5)?;
    says(
        &metrics,
        &[
            ("num_pairs", 4.0),
            ("displacement/chosen", (2.0 - 1.0 - 0.005 - 3.0) / 4.0),
            ("displacement/rejected", (-2.0 - 1.0 - 1.0 + 1.0) / 4.0),
            // Of the second pair alone: the third's chosen response has fallen by rounding, the others' one has risen.
            ("displacement/both_fall", 0.25),
            ("displacement/absolute", (2.0 + 1.0 + 0.005 + 3.0 + 2.0 + 1.0 + 1.0 + 1.0) / 8.0),
        ],
    );
    Ok(())
}

/// numpy.quantile([-2, 0, .4975, 2], [.1, .5, .9]).
#[test]
fn margins_have_their_quantiles() -> Result<()> {
    let metrics = batch_metrics(&PreferenceBatch::new(pairs()?), 0.5)?;
    says(&metrics, &[("margins/q10", -1.4), ("margins/q50", 0.24875), ("margins/q90", 1.54925)]);
    let certain = |beta: f64| batch_metrics(&PreferenceBatch::new(pairs()?), beta).map(|m| m.get("margins/certain"));
    // |h| = 4 in two of the four pairs: beyond 24 ln 2 = 16.6 from β = 4.159 on.
    assert_eq!([certain(4.15)?, certain(4.16)?, certain(50.0)?], [Some(0.0), Some(0.5), Some(0.75)]);
    Ok(())
}

/// The bound on certain margins is where σ is 1 in f32 and no earlier.
#[test]
fn a_certain_margin_is_one_that_f32_takes_for_1() {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    assert_eq!(sigmoid(24.0 * std::f32::consts::LN_2 + 0.01), 1.0);
    assert!(sigmoid(23.0 * std::f32::consts::LN_2) < 1.0);
}

/// Margins of two teachers: (1, 3), (−2, 1), (−1, −1), (−2, 0).
fn taught() -> Result<PreferenceBatch> {
    let chosen = Tensor::from_slice2(&[[1.0, -2.0, 1.0, 0.0], [4.0, 1.0, 0.0, 5.0]]);
    let rejected = Tensor::from_slice2(&[[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 1.0, 5.0]]);
    PreferenceBatch::new(pairs()?).with_rewards(RewardScores::new(chosen, rejected)?)
}

#[test]
fn an_ensemble_stands_beside_the_implicit_reward() -> Result<()> {
    // βh: 2, 0, .4975, −2. Mean margins: 2, −½, −1, −1.
    says(
        &batch_metrics(&taught()?, 0.5)?,
        &[
            ("ensemble/accuracy", 0.25),
            // Right, a tie of βh, wrong, right.
            ("ensemble/agreement", (1.0 + 0.5 + 0.0 + 1.0) / 4.0),
            // Population standard deviations 1, 1.5, 0, 1.
            ("ensemble/disagreement", 3.5 / 4.0),
            ("ensemble/range", 7.0 / 4.0),
            // [1, 3], [−2, 1], [−1, −1], [−2, 0]: only the third is outside.
            ("ensemble/outside", 0.25),
            ("ensemble/excess", 0.0),
        ],
    );
    // βh: 8, 0, 1.99, −8 against the boldest 3, 2, 1, 2.
    let twice = batch_metrics(&taught()?, 2.0)?;
    says(&twice, &[("ensemble/outside", 0.75), ("ensemble/excess", (5.0 + 0.0 + 0.99 + 6.0) / 8.0)]);
    Ok(())
}

#[test]
fn teachers_without_an_opinion_are_not_exceeded() -> Result<()> {
    let nothing = RewardScores::single(&row([1.0; 4]), &row([1.0; 4]))?;
    let metrics = batch_metrics(&PreferenceBatch::new(pairs()?).with_rewards(nothing)?, 0.5)?;
    says(&metrics, &[("ensemble/accuracy", 0.5), ("ensemble/agreement", 0.5), ("ensemble/excess", 0.0)]);
    Ok(())
}

fn lengths(chosen: [i64; 4], rejected: [i64; 4]) -> Result<ResponseLengths> {
    ResponseLengths::new(Tensor::from_slice(&chosen), Tensor::from_slice(&rejected))
}

#[test]
fn lengths_are_correlated_with_margins_where_both_vary() -> Result<()> {
    let of = |chosen, rejected| {
        let batch = PreferenceBatch::new(pairs()?).with_lengths(lengths(chosen, rejected)?)?;
        batch_metrics(&batch, 0.5)
    };
    let metrics = of([9, 5, 6, 1], [5, 5, 5, 5])?;
    says(&metrics, &[("lengths/chosen", 21.0 / 4.0), ("lengths/rejected", 5.0), ("num_tokens", 41.0)]);
    // numpy.corrcoef([4, 0, .995, -4], [4, 0, 1, -4]).
    let [h, d] = [[4.0, 0.0, 0.995, -4.0], [4.0, 0.0, 1.0, -4.0]];
    let mean = |x: [f64; 4]| x.iter().sum::<f64>() / 4.0;
    let moment = |a: [f64; 4], b: [f64; 4]| (0..4).map(|i| (a[i] - mean(a)) * (b[i] - mean(b))).sum::<f64>();
    let expected = moment(h, d) / (moment(h, h) * moment(d, d)).sqrt();
    says(&metrics, &[("lengths/correlation", expected)]);
    assert_eq!(of([5; 4], [5; 4])?.get("lengths/correlation"), None);
    Ok(())
}

#[test]
fn calibration_is_against_soft_labels() -> Result<()> {
    let labels = [0.75, 0.6, 0.0, 0.5];
    let batch = PreferenceBatch::new(pairs()?).with_soft_labels(row(labels))?;
    let sigmoid = oracle::sigmoid;
    // The policy prefers the first, neither, the first and the second response.
    let sure = [2.0, 0.0, 0.4975, 2.0].map(sigmoid);
    let right = [0.75, 0.5, 0.0, 0.5];
    let over = (0..4).map(|i| sure[i] - right[i]).sum::<f64>() / 4.0;
    let brier = [2.0, 0.0, 0.4975, -2.0].iter().zip(labels).map(|(m, p)| (sigmoid(*m) - p).powi(2)).sum::<f64>() / 4.0;
    says(&batch_metrics(&batch, 0.5)?, &[("calibration/overconfidence", over), ("calibration/brier", brier)]);
    Ok(())
}

/// What has no column is not said, and what TRL says comes first, unchanged.
#[test]
fn columns_decide_what_is_said() -> Result<()> {
    let batch = PreferenceBatch::new(pairs()?);
    let all = batch_metrics(&batch, 0.5)?;
    let groups = ["ensemble/", "lengths/", "calibration/"];
    assert!(names(&all).iter().all(|name| !groups.iter().any(|group| name.starts_with(group))));
    let few = preference_metrics(&batch, 0.5)?;
    assert_eq!(all.iter().take(6).collect::<Vec<_>>(), few.iter().collect::<Vec<_>>());
    // A uniform reference of log-probability 0 has no displacement; margins stay.
    let free = batch_metrics(&PreferenceBatch::new(pairs()?.reference_free()), 0.5)?;
    assert_eq!([free.get("displacement/chosen"), free.get("displacement/absolute")], [None; 2]);
    assert!(free.get("margins/q50").is_some());
    let full = batch_metrics(&Columns::random(5, 3, 1).batch(), 0.1)?;
    assert!(full.iter().all(|(name, value)| value.is_finite() || panic!("{name} is {value}")));
    let different: std::collections::BTreeSet<_> = names(&full).into_iter().collect();
    assert_eq!(different.len(), names(&full).len(), "a name twice");
    Ok(())
}

/// f32 columns are read as they are: differences are taken in f64.
#[test]
fn a_batch_in_f32_says_the_same() -> Result<()> {
    let columns = Columns::random(6, 2, 3);
    let [wide, narrow] = [Kind::Double, Kind::Float]
        .map(|kind| batch_metrics(&columns.build(kind, prefopt::tch::Device::Cpu)?.batch, 0.1));
    let (wide, narrow) = (wide?, narrow?);
    assert_eq!(names(&wide), names(&narrow));
    let numbers = |metrics: &Metrics| metrics.iter().map(|(_, value)| value).collect::<Vec<_>>();
    all_close(&numbers(&narrow), &numbers(&wide), 1e-6, "f32");
    Ok(())
}

#[test]
fn no_gradient_is_recorded_or_touched() -> Result<()> {
    let policy = row([-1.0, -2.0]).set_requires_grad(true);
    let fixed = || row([-1.5, -2.5]);
    let logps = PairLogps::new(policy.shallow_clone(), policy.shallow_clone(), fixed(), fixed())?;
    batch_metrics(&PreferenceBatch::new(logps), 0.1)?;
    assert!(!policy.grad().defined());
    Ok(())
}
