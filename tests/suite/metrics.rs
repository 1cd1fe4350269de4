//! Metrics under their names, against numbers by hand.

use prefopt::{
    PairLogps, PreferenceBatch, ResponseLengths, Result, RewardScores,
    diagnostics::{Metrics, preference_metrics, reward_metrics},
    tch::Tensor,
};

use crate::all_close;

fn split(metrics: &Metrics) -> (Vec<&str>, Vec<f64>) {
    metrics.iter().unzip()
}

/// Three pairs: won by 2 nats, tied, lost by 1.
fn pairs() -> Result<PairLogps> {
    let t = |x: [f64; 3]| Tensor::from_slice(&x);
    PairLogps::new(t([-10.0, -5.0, -7.0]), t([-12.0, -6.0, -3.0]), t([-11.0, -4.0, -8.0]), t([-11.0, -5.0, -5.0]))
}

#[test]
fn of_preferences() -> Result<()> {
    let lengths = ResponseLengths::new(Tensor::from_slice(&[3_i64, 4, 5]), Tensor::from_slice(&[6_i64, 7, 8]))?;
    let metrics = preference_metrics(&PreferenceBatch::new(pairs()?).with_lengths(lengths)?, 0.5)?;
    let (names, values) = split(&metrics);
    let expected = [
        ("rewards/chosen", 0.5 * (1.0 - 1.0 + 1.0) / 3.0),
        ("rewards/rejected", 0.5 * (-1.0 - 1.0 + 2.0) / 3.0),
        // A win, a tie that counts ½, a loss.
        ("rewards/accuracies", 0.5),
        ("rewards/margins", 0.5 * (2.0 + 0.0 - 1.0) / 3.0),
        ("logps/chosen", -22.0 / 3.0),
        ("logps/rejected", -7.0),
        ("num_tokens", 33.0),
    ];
    assert_eq!(names, expected.map(|(name, _)| name));
    all_close(&values, &expected.map(|(_, value)| value), 1e-14, "metrics");
    Ok(())
}

/// Token counts need lengths; accuracy is ½ before the first step; weights leave the plain means alone.
#[test]
fn of_an_untouched_policy() -> Result<()> {
    let t = |x: [f32; 2]| Tensor::from_slice(&x);
    let logps = PairLogps::new(t([-1.0, -2.0]), t([-3.0, -4.0]), t([-1.0, -2.0]), t([-3.0, -4.0]))?;
    let metrics = preference_metrics(&PreferenceBatch::new(logps).with_weights(t([1.0, 3.0]))?, 0.1)?;
    let numbers = ["rewards/accuracies", "rewards/margins", "logps/chosen"].map(|name| metrics.get(name));
    assert_eq!(numbers, [Some(0.5), Some(0.0), Some(-1.5)]);
    assert_eq!([metrics.get("num_tokens"), metrics.get("no such")], [None; 2]);
    Ok(())
}

#[test]
fn of_rewards() -> Result<()> {
    let scores = RewardScores::new(
        Tensor::from_slice2(&[[1.0, 2.0], [0.0, -3.0]]),
        Tensor::from_slice2(&[[0.5, 2.0], [1.0, -4.0]]),
    )?;
    let metrics = reward_metrics(&scores)?;
    let (names, values) = split(&metrics);
    assert_eq!(names, ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"]);
    // Margins .5, 0, −1, 1.
    all_close(&values, &[2.5 / 4.0, 0.125, -4.0, -0.5 / 8.0, 2.0], 1e-15, "metrics");
    Ok(())
}

#[test]
fn keep_their_order_and_write_themselves_as_pairs() {
    let metrics = Metrics::default().with("b", 1.0).and(Metrics::default().with("a", 2.0)).prefixed("eval_");
    assert_eq!(split(&metrics), (vec!["eval_b", "eval_a"], vec![1.0, 2.0]));
    assert_eq!(serde_json::to_string(&metrics).expect("plain data"), r#"[["eval_b",1.0],["eval_a",2.0]]"#);
}
