//! Laws of the pessimistic ensemble: the order of its minima, families that are one model in truth, and the column of scores.

use proptest::prelude::*;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result, RewardScores,
    loss::{Minimum, PessimisticDistillation, RewardDistillation},
    tch::{Device, Kind, Tensor},
    train::RunningMinimum,
};

use crate::{
    all_close, close,
    columns::{Columns, columns},
    identities::config,
    number, numbers, oracle,
};

const MINIMA: [Minimum; 4] = [Minimum::Batch, Minimum::Pair, Minimum::Dataset { member: 0 }, Minimum::Hull];

/// Loss of each pair, and the gradient of their weighted mean at the chosen responses.
fn measured(loss: &impl PreferenceLoss, columns: &Columns) -> (Vec<f64>, Vec<f64>) {
    let built = columns.build(Kind::Double, Device::Cpu).expect("columns fit");
    let losses = loss.per_pair(&built.batch).expect("has every column");
    built.batch.weighted_mean(&losses).backward();
    (numbers(&losses), numbers(&built.policy[0].grad()))
}

/// 0 ≤ small ≤ large up to rounding, which is all that a hull of one point leaves between the two.
fn ordered(small: f64, large: f64) -> bool {
    small <= large + 1e-12 * (1.0 + large.abs())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_family_of_one_is_distillation(c in columns(1..=1), beta in 0.01..2.0) {
        let (values, slopes) = measured(&RewardDistillation::new(beta)?, &c);
        for minimum in MINIMA {
            let (found, found_slopes) = measured(&PessimisticDistillation::new(beta)?.with_minimum(minimum), &c);
            all_close(&found, &values, 1e-14, format_args!("{minimum:?}"));
            all_close(&found_slopes, &slopes, 1e-14, format_args!("slopes of {minimum:?}"));
        }
    }

    #[test]
    fn so_is_a_family_of_equals(c in columns(1..=1), members in 2..5_usize, beta in 0.01..2.0) {
        let (values, slopes) = measured(&RewardDistillation::new(beta)?, &c);
        let equals = Columns {
            chosen_scores: vec![c.chosen_scores[0].clone(); members],
            rejected_scores: vec![c.rejected_scores[0].clone(); members],
            ..c
        };
        for minimum in MINIMA {
            let (found, found_slopes) = measured(&PessimisticDistillation::new(beta)?.with_minimum(minimum), &equals);
            all_close(&found, &values, 1e-12, format_args!("{minimum:?}"));
            all_close(&found_slopes, &slopes, 1e-12, format_args!("slopes of {minimum:?}"));
        }
    }

    /// pair ≤ batch ≤ dataset ≤ each member, and hull ≤ batch, over equal batches of equally weighted pairs.
    #[test]
    fn the_minima_are_ordered(seed in any::<u64>(), size in 1..5_usize, beta in 0.05..1.0) {
        let loss = PessimisticDistillation::new(beta)?;
        let batches: Vec<_> = (0..4).map(|i| Columns::random(size, 3, seed ^ i).unweighted().batch()).collect();
        let mut tracker = RunningMinimum::new();
        for batch in &batches {
            tracker.observe(&loss, batch)?;
        }
        let mean = |minimum| -> Result<f64> {
            let means: Result<Vec<f64>> = batches.iter().map(|b| Ok(number(&loss.with_minimum(minimum).mean(b)?))).collect();
            Ok(oracle::mean(means?.into_iter()))
        };
        let dataset = mean(Minimum::Dataset { member: tracker.member()? })?;
        let batch = mean(Minimum::Batch)?;
        prop_assert!(ordered(mean(Minimum::Pair)?, batch) && ordered(batch, dataset) && ordered(mean(Minimum::Hull)?, batch));
        let means = numbers(&tracker.means()?);
        for member in 0..3 {
            let of_member = mean(Minimum::Dataset { member })?;
            prop_assert!(ordered(dataset, of_member));
            close(means[member as usize], of_member, 1e-12, 1.0, "the tracker's mean");
        }
    }

    /// Members that are never the best add nothing to a minimum over members.
    #[test]
    fn the_best_member_is_where_the_batch_minimum_is(c in columns(3..=3), beta in 0.01..2.0) {
        let loss = PessimisticDistillation::new(beta)?;
        let best = loss.best_member(&c.batch())?.int64_value(&[]);
        let chosen = loss.with_minimum(Minimum::Dataset { member: best });
        prop_assert_eq!(measured(&chosen, &c), measured(&loss, &c));
        let means = numbers(&c.batch().weighted_mean(&loss.per_member(&c.batch())?));
        prop_assert!(means.iter().all(|m| *m >= means[best as usize]));
    }

    /// Distillation to the members' mean is what `averaged` makes of a family.
    #[test]
    fn the_average_of_a_family_has_the_mean_margin(c in columns(2..=4)) {
        let batch = c.batch();
        let scores = batch.rewards().expect("scores");
        let margins = c.reward_margins();
        let expected: Vec<f64> = (0..c.len()).map(|i| oracle::mean(margins.iter().map(|m| m[i]))).collect();
        prop_assert_eq!(scores.averaged().members(), 1);
        all_close(&numbers(&scores.averaged().margins()), &expected, 1e-13, "averaged");
        for (i, m) in margins.iter().enumerate() {
            all_close(&numbers(&scores.member(i as i64)?.margins()), m, 1e-15, "member");
        }
        let squares = (0..c.len()).map(|i| (oracle::mean(margins.iter().map(|m| m[i] * m[i])) - expected[i].powi(2)).max(0.0).sqrt());
        close(scores.margin_spread(), oracle::mean(squares), 1e-7, 1.0, "spread over members");
    }
}

proptest! {
    #![proptest_config(config())]

    /// Standardising takes a member's scale away, and nothing else: not its level, which no loss sees.
    #[test]
    fn standardised_scores_have_unit_deviation_at_any_scale(c in columns(1..=3), scale in 0.01..100.0) {
        // A constant member has no scale to take away.
        prop_assume!(c.chosen_scores.iter().zip(&c.rejected_scores).all(|(w, l)| w.iter().chain(l).any(|s| *s != w[0])));
        let tensors = |factor: f64| [&c.chosen_scores, &c.rejected_scores].map(|s| Tensor::from_slice2(s) * factor);
        let standardised = |factor: f64| -> Result<RewardScores> {
            let [chosen, rejected] = tensors(factor);
            Ok(RewardScores::new(chosen, rejected)?.standardised())
        };
        let (plain, scaled) = (standardised(1.0)?, standardised(scale)?);
        all_close(&numbers(&scaled.margins()), &numbers(&plain.margins()), 1e-11, "scaled");
        for m in 0..c.chosen_scores.len() {
            let of = |scores: &Tensor| numbers(&scores.get(m as i64));
            let all = [of(plain.chosen()), of(plain.rejected())].concat();
            let level = oracle::mean(all.iter().copied());
            close(oracle::mean(all.iter().map(|s| (s - level).powi(2))), 1.0, 1e-12, 0.0, "variance");
        }
    }
}

#[test]
fn a_constant_member_keeps_margins_of_zero() -> Result<()> {
    for (kind, level) in [Kind::Float, Kind::Double].into_iter().flat_map(|kind| [(kind, 0.0), (kind, 3.0)]) {
        let constant = Tensor::full([2, 3], level, (kind, Device::Cpu));
        let scores = RewardScores::new(constant.shallow_clone(), constant)?.standardised();
        assert_eq!(numbers(&scores.margins()), [0.0; 6], "{level} in {kind:?}");
    }
    Ok(())
}

#[test]
fn selecting_pairs_keeps_members_together() -> Result<()> {
    let scores = RewardScores::new(
        Tensor::from_slice2(&[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        Tensor::from_slice2(&[[0.5, 0.5, 0.5], [1.5, 1.5, 1.5]]),
    )?;
    let some = scores.select(&Tensor::from_slice(&[2_i64, 0]))?;
    assert_eq!((some.members(), some.batch()), (2, 2));
    assert_eq!(numbers(&some.margins()), [2.5, 0.5, 4.5, 2.5]);
    assert!(scores.select(&Tensor::from_slice(&[3_i64])).is_err());
    Ok(())
}

/// In f32 on the CPU a kernel chooses, elsewhere ATen's operations: both the member of smallest mean, at any number of pairs, with weights
/// and without.
#[test]
fn the_member_is_the_same_in_either_precision() -> Result<()> {
    let loss = PessimisticDistillation::new(0.25)?;
    for (pairs, seed) in [(1, 1), (15, 2), (16, 3), (17, 4), (300, 5)] {
        for columns in [Columns::random(pairs, 5, seed), Columns::random(pairs, 5, seed + 50).unweighted()] {
            let [f32, f64] = [Kind::Float, Kind::Double].map(|kind| columns.build(kind, Device::Cpu));
            let of = |batch: &PreferenceBatch| -> Result<f64> { Ok(number(&loss.best_member(batch)?)) };
            assert_eq!(of(&f32?.batch)?, of(&f64?.batch)?, "{pairs} pairs");
        }
    }
    Ok(())
}

/// A reward model that is not a number is not passed over for one that is: the trainer has to hear of it.
#[test]
fn a_member_that_is_not_a_number_is_not_passed_over() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let column = |value: f64| Tensor::full([2], value, (kind, Device::Cpu));
        let logps = PairLogps::new(column(-1.0), column(-2.0), column(-1.0), column(-2.0))?;
        let scores = Tensor::from_slice2(&[[0.0, 0.0], [f64::NAN, 0.0], [0.0, 0.0]]).to_kind(kind);
        let zeros = scores.zeros_like();
        let batch = PreferenceBatch::new(logps).with_rewards(RewardScores::new(scores, zeros)?)?;
        assert!(number(&PessimisticDistillation::new(0.1)?.mean(&batch)?).is_nan(), "{kind:?}");
    }
    Ok(())
}
