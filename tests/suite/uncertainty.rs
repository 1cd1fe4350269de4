//! Laws of the uncertainty losses: what a family that agrees leaves of them, what an uncertain response does to the gradient, where
//! their minimum is, and what counts as uncertainty at all.

use proptest::prelude::*;
use serde_json::from_str;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result, RewardScores,
    loss::{Dpo, Ipo, Minimum, PessimisticDistillation, Spread, UncertaintyPenalised, UncertaintyWeighted},
    tch::{Device, Kind, Tensor},
};

use crate::{
    all_close, close,
    columns::{Columns, columns},
    identities::config,
    number, numbers,
    optimum::Toy,
    oracle,
};

const SPREADS: [Spread; 2] = [Spread::Responses, Spread::Margin];

/// Root of the mean square about the mean, over the rows, of each column: `[members][batch]` to `[batch]`.
pub fn deviations(rows: &[Vec<f64>]) -> Vec<f64> {
    let n = rows.len() as f64;
    let of = |i: usize| {
        let mean = rows.iter().map(|row| row[i]).sum::<f64>() / n;
        (rows.iter().map(|row| (row[i] - mean).powi(2)).sum::<f64>() / n).sqrt()
    };
    (0..rows[0].len()).map(of).collect()
}

/// u_w, u_l and u of each pair.
pub fn uncertainties(c: &Columns) -> [Vec<f64>; 3] {
    [deviations(&c.chosen_scores), deviations(&c.rejected_scores), deviations(&c.reward_margins())]
}

/// What the penalty multiplies λ with.
fn penalties(c: &Columns, spread: Spread) -> Vec<f64> {
    let [chosen, rejected, margin] = uncertainties(c);
    match spread {
        Spread::Responses => chosen.iter().zip(&rejected).map(|(w, l)| w - l).collect(),
        Spread::Margin => margin,
    }
}

/// What the weight's exponent divides by −τ.
fn totals(c: &Columns, spread: Spread) -> Vec<f64> {
    let [chosen, rejected, margin] = uncertainties(c);
    match spread {
        Spread::Responses => chosen.iter().zip(&rejected).map(|(w, l)| w + l).collect(),
        Spread::Margin => margin,
    }
}

/// Loss of each pair, and its slope in h.
fn measured(loss: &impl PreferenceLoss, columns: &Columns) -> (Vec<f64>, Vec<f64>) {
    let built = columns.build(Kind::Double, Device::Cpu).expect("columns fit");
    let losses = loss.per_pair(&built.batch).expect("has every column");
    losses.sum(Kind::Double).backward();
    (numbers(&losses), numbers(&built.policy[0].grad()))
}

#[track_caller]
fn same(found: &(Vec<f64>, Vec<f64>), expected: &(Vec<f64>, Vec<f64>), tolerance: f64, what: &str) {
    all_close(&found.0, &expected.0, tolerance, what);
    all_close(&found.1, &expected.1, tolerance, format_args!("slopes of {what}"));
}

/// One pair with this h, whose two members score the responses ±u_w and ±u_l.
fn one(h: f64, chosen: f64, rejected: f64) -> Columns {
    let columns = Columns::random(1, 2, 0).unweighted().with_margins(&[h]);
    Columns {
        chosen_scores: vec![vec![chosen], vec![-chosen]],
        rejected_scores: vec![vec![rejected], vec![-rejected]],
        ..columns
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_family_that_agrees_leaves_the_bare_loss(c in columns(1..=1), members in 1..5_usize, beta in 0.01..2.0, pessimism in 0.0..9.0, tau in 0.01..9.0) {
        let c = Columns {
            chosen_scores: vec![c.chosen_scores[0].clone(); members],
            rejected_scores: vec![c.rejected_scores[0].clone(); members],
            ..c
        };
        let (dpo, ipo) = (measured(&Dpo::new(beta)?, &c), measured(&Ipo::new(tau)?, &c));
        for spread in SPREADS {
            same(&measured(&UncertaintyPenalised::new(beta, pessimism)?.with_spread(spread), &c), &dpo, 1e-14, "penalised");
            same(&measured(&UncertaintyWeighted::new(Ipo::new(tau)?, tau)?.with_spread(spread), &c), &ipo, 1e-14, "weighted");
        }
    }

    #[test]
    fn so_do_no_pessimism_and_an_infinite_temperature(c in columns(2..=4), beta in 0.01..2.0) {
        let dpo = measured(&Dpo::new(beta)?, &c);
        for spread in SPREADS {
            prop_assert_eq!(&measured(&UncertaintyPenalised::new(beta, 0.0)?.with_spread(spread), &c), &dpo);
            prop_assert_eq!(&measured(&UncertaintyWeighted::new(Dpo::new(beta)?, 1e300)?.with_spread(spread), &c), &dpo);
        }
    }

    #[test]
    fn values_and_slopes_are_those_of_the_formulas(c in columns(1..=4), beta in 0.01..2.0, pessimism in 0.0..3.0, tau in 0.1..9.0) {
        let ipo = measured(&Ipo::new(beta)?, &c);
        for spread in SPREADS {
            let logits: Vec<f64> = c.h().iter().zip(penalties(&c, spread)).map(|(h, u)| beta * h + pessimism * u).collect();
            let values = logits.iter().map(|x| -oracle::log_sigmoid(*x)).collect();
            let slopes = logits.iter().map(|x| -beta * oracle::sigmoid(-x)).collect();
            same(&measured(&UncertaintyPenalised::new(beta, pessimism)?.with_spread(spread), &c), &(values, slopes), 1e-12, "penalised");
            let weights = totals(&c, spread).iter().map(|u| f64::exp(-u / tau)).collect::<Vec<_>>();
            let scaled = |values: &[f64]| values.iter().zip(&weights).map(|(v, w)| v * w).collect::<Vec<_>>();
            let expected = (scaled(&ipo.0), scaled(&ipo.1));
            same(&measured(&UncertaintyWeighted::new(Ipo::new(beta)?, tau)?.with_spread(spread), &c), &expected, 1e-12, "weighted");
        }
    }

    /// The same deviations in another order of the members, and about another mean.
    #[test]
    fn equal_uncertainties_cancel(c in columns(2..=4), shift in -3.0..3.0, beta in 0.01..2.0, pessimism in 0.1..3.0) {
        let rejected = c.chosen_scores.iter().rev().map(|row| row.iter().map(|s| s + shift).collect()).collect();
        let c = Columns { rejected_scores: rejected, ..c };
        same(&measured(&UncertaintyPenalised::new(beta, pessimism)?, &c), &measured(&Dpo::new(beta)?, &c), 1e-12, "penalised");
    }

    /// |∂L/∂h| falls in u_w and rises in u_l; in the margin's form and under a weight it falls in both.
    #[test]
    fn an_uncertain_winner_moves_the_policy_less(h in -8.0..8.0, u in 0.1..2.0, v in 0.1..2.0, more in 0.05..2.0, beta in 0.05..1.0, number in 0.1..2.0) {
        let slope = |loss: &dyn PreferenceLoss, chosen: f64, rejected: f64| measured(&loss, &one(h, chosen, rejected)).1[0];
        let penalised = UncertaintyPenalised::new(beta, number)?;
        let weighted = UncertaintyWeighted::new(Dpo::new(beta)?, number)?;
        prop_assert!(slope(&penalised, u + more, v) > slope(&penalised, u, v));
        prop_assert!(slope(&penalised, u, v + more) < slope(&penalised, u, v));
        let others: [&dyn PreferenceLoss; 3] = [&penalised.with_spread(Spread::Margin), &weighted, &weighted.with_spread(Spread::Responses)];
        for loss in others {
            // Members that err alike on both responses agree on the margin: here they err in opposite directions.
            prop_assert!(slope(loss, u + more, -v) > slope(loss, u, -v), "{:?}", loss);
            prop_assert!(slope(loss, u, -v - more) > slope(loss, u, -v), "{:?}", loss);
            prop_assert!(slope(loss, u, -v) < 0.0, "{:?}", loss);
        }
    }

    /// log σ(x) − log σ(−x) = x: the penalty turns its sign with the labels.
    #[test]
    fn swapped_labels_swap_the_penalty(c in columns(2..=4), beta in 0.01..2.0, pessimism in 0.0..3.0) {
        let swapped = Columns {
            chosen: c.rejected.clone(),
            rejected: c.chosen.clone(),
            ref_chosen: c.ref_rejected.clone(),
            ref_rejected: c.ref_chosen.clone(),
            chosen_scores: c.rejected_scores.clone(),
            rejected_scores: c.chosen_scores.clone(),
            ..c.clone()
        };
        let loss = UncertaintyPenalised::new(beta, pessimism)?;
        let difference: Vec<f64> = measured(&loss, &swapped).0.iter().zip(measured(&loss, &c).0).map(|(s, l)| s - l).collect();
        let logits: Vec<f64> = c.h().iter().zip(penalties(&c, Spread::Responses)).map(|(h, u)| beta * h + pessimism * u).collect();
        all_close(&difference, &logits, 1e-12, "βh + λ(u_w − u_l)");
    }

    /// Both orders of a pair, weighted by σ(Δr) and σ(−Δr): βh = Δr − λ(u_w − u_l).
    #[test]
    fn the_minimiser_is_the_pessimistic_margin(margin in -3.0..3.0, u in 0.0..2.0, v in 0.0..2.0, beta in 0.05..2.0, pessimism in 0.0..2.0, away in 0.05..3.0) {
        let best = (margin - pessimism * (u - v)) / beta;
        let loss = UncertaintyPenalised::new(beta, pessimism)?;
        let slopes = [best, best - away, best + away].map(|h| soft_slope(&loss, h, margin, [u, v]));
        prop_assert!(slopes[0].abs() < 1e-12 && slopes[1] < 0.0 && slopes[2] > 0.0, "{:?}", slopes);
    }

    /// With A = e^{λu} and E = e^{Δr}, z = e^{βh} solves A z² − (E − 1) z − A E = 0: Δr shrunk, by half at most.
    #[test]
    fn the_minimiser_of_the_margins_form_is_shrunk(margin in -3.0..3.0, u in 0.0..2.0, beta in 0.05..2.0, pessimism in 0.0..2.0, away in 0.05..3.0) {
        let (a, e) = (f64::exp(pessimism * u), f64::exp(margin));
        let best = (((e - 1.0) + ((e - 1.0).powi(2) + 4.0 * a * a * e).sqrt()) / (2.0 * a)).ln() / beta;
        let loss = UncertaintyPenalised::new(beta, pessimism)?.with_spread(Spread::Margin);
        let slopes = [best, best - away, best + away].map(|h| soft_slope(&loss, h, margin, [u, 0.0]));
        prop_assert!(slopes[0].abs() < 1e-12 && slopes[1] < 0.0 && slopes[2] > 0.0, "{:?}", slopes);
        let logit = (beta * best).abs();
        prop_assert!(logit >= 0.5 * margin.abs() - 1e-9 && logit <= margin.abs() + 1e-9);
    }

    #[test]
    fn uncertainty_is_the_deviation_over_members(c in columns(1..=5)) {
        let scores = scores(&c.chosen_scores, &c.rejected_scores);
        let [chosen, rejected, margin] = uncertainties(&c);
        let [found_chosen, found_rejected] = scores.uncertainty().map(|u| numbers(&u));
        let found_margin = numbers(&scores.margin_uncertainty());
        all_close(&found_chosen, &chosen, 1e-12, "u_w");
        all_close(&found_rejected, &rejected, 1e-12, "u_l");
        all_close(&found_margin, &margin, 1e-12, "u");
        close(scores.margin_spread(), margin.iter().sum::<f64>() / margin.len() as f64, 1e-12, 1.0, "mean of u");
        for i in 0..c.len() {
            prop_assert!((chosen[i] - rejected[i]).abs() <= found_margin[i] + 1e-12);
            prop_assert!(found_margin[i] <= chosen[i] + rejected[i] + 1e-12);
        }
    }

    /// Half the distance, so that mean − std is the lower of two.
    #[test]
    fn of_two_members_the_lower_bound_is_the_minimum(c in columns(2..=2)) {
        let scores = scores(&c.chosen_scores, &c.rejected_scores);
        let bound = scores.averaged().chosen().squeeze_dim(0) - &scores.uncertainty()[0];
        let lower: Vec<f64> = c.chosen_scores[0].iter().zip(&c.chosen_scores[1]).map(|(a, b)| a.min(*b)).collect();
        all_close(&numbers(&bound), &lower, 1e-12, "mean − std");
    }

    /// Scores, offsets and baselines are multiples of 1/64, so that the differences are exact and so is the equality.
    #[test]
    fn a_members_offset_goes_with_its_baseline(c in columns(2..=4), seed in any::<u64>()) {
        let draw = |seed: u64| Columns::random(c.len(), c.chosen_scores.len(), seed).chosen_scores;
        let (baseline, offsets) = (draw(seed), draw(seed.wrapping_add(1)));
        let moved = scores(&sum(&c.chosen_scores, &offsets), &sum(&c.rejected_scores, &offsets));
        let plain = scores(&c.chosen_scores, &c.rejected_scores).relative_to(&matrix(&baseline))?;
        let moved = moved.relative_to(&matrix(&sum(&baseline, &offsets)))?;
        prop_assert_eq!(numbers(moved.chosen()), numbers(plain.chosen()));
        prop_assert_eq!(numbers(moved.rejected()), numbers(plain.rejected()));
        prop_assert_eq!(numbers(&plain.margins()), c.reward_margins().concat());
        let relative: Vec<Vec<f64>> = sum(&c.chosen_scores, &negative(&baseline));
        all_close(&numbers(&plain.uncertainty()[0]), &deviations(&relative), 1e-12, "u_w of r − b");
    }

    /// ±Δr/2 is left, whatever the family knows of either response.
    #[test]
    fn the_pairs_own_mean_is_no_baseline(c in columns(2..=4), beta in 0.01..2.0, pessimism in 0.1..3.0) {
        let raw = scores(&c.chosen_scores, &c.rejected_scores);
        let centred = raw.relative_to(&((raw.chosen() + raw.rejected()) * 0.5))?;
        let half: Vec<f64> = uncertainties(&c)[2].iter().map(|u| u / 2.0).collect();
        for u in centred.uncertainty() {
            all_close(&numbers(&u), &half, 1e-12, "u/2");
        }
        let batch = c.batch().with_rewards(centred)?;
        let found = numbers(&UncertaintyPenalised::new(beta, pessimism)?.per_pair(&batch)?);
        all_close(&found, &numbers(&Dpo::new(beta)?.per_pair(&batch)?), 1e-12, "penalised");
    }
}

fn matrix(rows: &[Vec<f64>]) -> Tensor {
    Tensor::from_slice2(rows)
}

fn scores(chosen: &[Vec<f64>], rejected: &[Vec<f64>]) -> RewardScores {
    RewardScores::new(matrix(chosen), matrix(rejected)).expect("fit each other")
}

fn sum(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn negative(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|x| -x).collect()).collect()
}

/// Slope in h of the expected loss of a pair whose labels are right with probability σ(margin). Two members score ±u and ±v.
fn soft_slope(loss: &impl PreferenceLoss, h: f64, margin: f64, [u, v]: [f64; 2]) -> f64 {
    let build = || -> Result<f64> {
        let leaf = Tensor::from_slice(&[h]).set_requires_grad(true);
        let zero = Tensor::from_slice(&[0.0]);
        let both = Tensor::zeros([2], (Kind::Double, Device::Cpu));
        let (chosen, rejected) = (Tensor::cat(&[&leaf, &zero], 0), Tensor::cat(&[&zero, &leaf], 0));
        let batch = PreferenceBatch::new(PairLogps::new(chosen, rejected, both.shallow_clone(), both)?)
            .with_rewards(scores(&[vec![u, v], vec![-u, -v]], &[vec![v, u], vec![-v, -u]]))?
            .with_weights(Tensor::from_slice(&[oracle::sigmoid(margin), oracle::sigmoid(-margin)]))?;
        loss.mean(&batch)?.backward();
        Ok(number(&leaf.grad()))
    };
    build().expect("every column is there")
}

/// The margin's form attenuates where the responses' form sees two equally uncertain responses.
#[test]
fn members_that_contradict_each_other() -> Result<()> {
    let opposed = one(0.0, 0.5, -0.5);
    let penalised = UncertaintyPenalised::new(1.0, 2.0)?;
    close(measured(&penalised, &opposed).0[0], std::f64::consts::LN_2, 1e-14, 0.0, "u_w = u_l");
    let margin = measured(&penalised.with_spread(Spread::Margin), &opposed).0[0];
    close(margin, -oracle::log_sigmoid(2.0), 1e-14, 0.0, "u = 1");
    let weighted = UncertaintyWeighted::new(Dpo::new(1.0)?, 2.0)?;
    let expected = std::f64::consts::LN_2 * (-0.5_f64).exp();
    close(measured(&weighted, &opposed).0[0], expected, 1e-14, 0.0, "u = 1");
    let agreed = one(0.0, 0.5, 0.5);
    close(measured(&weighted, &agreed).0[0], std::f64::consts::LN_2, 1e-14, 0.0, "u = 0");
    close(measured(&weighted.with_spread(Spread::Responses), &agreed).0[0], expected, 1e-14, 0.0, "u_w + u_l = 1");
    Ok(())
}

/// Every pair of a table in both orders, weighted by the mean member's soft label: π ∝ π_ref e^{(r − λu)/β}. With minus in place of
/// plus in the loss it would be r + λu.
#[test]
fn descent_ends_at_the_gibbs_policy_of_the_lower_bound() -> Result<()> {
    const PESSIMISM: f64 = 0.8;
    const BETA: f64 = 0.5;
    let (rewards, spreads) = ([0.7, -0.4, 1.2, 0.1, -0.9], [0.2, 0.6, 1.1, 0.0, 0.4]);
    let member = |sign: f64| (0..5).map(|i| rewards[i] + sign * spreads[i]).collect::<Vec<f64>>();
    let mut pairs = Toy::all_pairs(5);
    pairs.extend(Toy::all_pairs(5).iter().map(|&(a, b)| (b, a)));
    let toy = Toy::new(&[0.1, 0.3, 0.05, 0.35, 0.2], &[&member(1.0), &member(-1.0)], pairs);
    let soft_label = |batch: &PreferenceBatch| {
        let margins = batch.rewards().expect("has scores").averaged().margins();
        margins.squeeze_dim(0).sigmoid()
    };
    let loss = UncertaintyPenalised::new(BETA, PESSIMISM)?.weighted_by(soft_label);
    let found = toy.descend(&loss, 6.0, 0.8, 400)?;
    let bound: Vec<f64> = rewards.iter().zip(spreads).map(|(r, u)| r - PESSIMISM * u).collect();
    all_close(&found, &oracle::gibbs(&toy.reference, &bound, BETA), 1e-9, "log π");
    Ok(())
}

#[test]
fn no_gradient_reaches_the_scores() -> Result<()> {
    let leaf = || matrix(&[vec![0.5, -1.0], vec![1.5, 0.25]]).set_requires_grad(true);
    let (chosen, rejected) = (leaf(), leaf());
    let scores = RewardScores::new(chosen.shallow_clone(), rejected.shallow_clone())?;
    let [u, v] = scores.uncertainty();
    assert!(!u.requires_grad() && !v.requires_grad() && !scores.margin_uncertainty().requires_grad());
    // Centred scores keep theirs, as scores do.
    scores.relative_to(&matrix(&[vec![0.0; 2], vec![1.0; 2]]))?.chosen().sum(Kind::Double).backward();
    assert_eq!(numbers(&chosen.grad()), [1.0; 4]);
    Ok(())
}

#[test]
fn both_precisions_keep_their_kind() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let batch = Columns::random(3, 2, 4).build(kind, Device::Cpu)?.batch;
        for spread in SPREADS {
            let penalised = UncertaintyPenalised::new(0.1, 1.0)?.with_spread(spread).per_pair(&batch)?;
            let weighted = UncertaintyWeighted::new(Dpo::new(0.1)?, 1.0)?.with_spread(spread).per_pair(&batch)?;
            assert_eq!((penalised.kind(), penalised.size()), (kind, vec![3]));
            assert_eq!((weighted.kind(), weighted.size()), (kind, vec![3]));
        }
    }
    Ok(())
}

/// Some of the pairs as a batch of their own.
fn part(c: &Columns, start: usize, end: usize) -> Result<PreferenceBatch> {
    let vector = |values: &[f64]| Tensor::from_slice(&values[start..end]);
    let rows = |rows: &[Vec<f64>]| rows.iter().map(|row| row[start..end].to_vec()).collect::<Vec<_>>();
    let logps = PairLogps::new(vector(&c.chosen), vector(&c.rejected), vector(&c.ref_chosen), vector(&c.ref_rejected))?;
    PreferenceBatch::new(logps)
        .with_rewards(scores(&rows(&c.chosen_scores), &rows(&c.rejected_scores)))?
        .with_weights(vector(&c.weights))
}

/// A weight leaves the inner loss what it is: coupled or not, and settled by the whole batch.
#[test]
fn a_weighted_minimum_over_the_batch_is_settled_by_the_whole() -> Result<()> {
    let inner = PessimisticDistillation::new(0.25)?;
    let loss = UncertaintyWeighted::new(inner, 1.5)?;
    assert!(loss.is_coupled() && UncertaintyWeighted::new(inner.with_minimum(Minimum::Hull), 1.5)?.is_coupled());
    assert!(!UncertaintyWeighted::new(Dpo::new(0.25)?, 1.5)?.is_coupled());
    assert!(!UncertaintyPenalised::new(0.25, 1.0)?.is_coupled());
    let mut otherwise = 0;
    for seed in 0..8 {
        let c = Columns::random(6, 3, seed);
        let whole = part(&c, 0, 6)?;
        let (settled, mut found, mut alone) = (loss.settled(&whole)?, vec![], vec![]);
        for (start, end) in [(0, 2), (2, 3), (3, 6)] {
            found.extend(numbers(&settled.per_pair(&part(&c, start, end)?)?));
            alone.extend(numbers(&loss.per_pair(&part(&c, start, end)?)?));
        }
        let expected = numbers(&loss.per_pair(&whole)?);
        all_close(&found, &expected, 1e-12, format_args!("seed {seed}"));
        otherwise += usize::from(alone.iter().zip(&expected).any(|(a, e)| (a - e).abs() > 1e-6));
    }
    assert!(otherwise > 0, "no part would have chosen another member by itself");
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn numbers_outside_their_domain() -> Result<()> {
    let dpo = Dpo::new(0.1)?;
    for number in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(UncertaintyPenalised::new(number, 1.0), &format!("beta must be positive and finite, got {number}"));
        refused(
            UncertaintyWeighted::new(dpo, number),
            &format!("temperature must be positive and finite, got {number}"),
        );
    }
    for number in [-0.5, f64::NAN, f64::INFINITY] {
        refused(
            UncertaintyPenalised::new(0.1, number),
            &format!("pessimism must be at least 0 and finite, got {number}"),
        );
    }
    UncertaintyPenalised::new(0.1, 0.0).map(|_| ())
}

#[test]
fn a_batch_without_scores() -> Result<()> {
    let zeros = || Tensor::zeros([3], (Kind::Double, Device::Cpu));
    let bare = PreferenceBatch::new(PairLogps::new(zeros(), zeros(), zeros(), zeros())?);
    let said = |loss| {
        format!("{loss} needs the column `rewards`, which this batch lacks: add it with PreferenceBatch::with_rewards")
    };
    for spread in SPREADS {
        let penalised = UncertaintyPenalised::new(0.1, 1.0)?.with_spread(spread);
        refused(penalised.per_pair(&bare), &said("UncertaintyPenalised"));
        let weighted = UncertaintyWeighted::new(Dpo::new(0.1)?, 1.0)?.with_spread(spread);
        refused(weighted.per_pair(&bare), &said("UncertaintyWeighted"));
    }
    // What the inner loss lacks is the inner loss's to say.
    let settled = UncertaintyWeighted::new(PessimisticDistillation::new(0.1)?, 1.0)?;
    refused(settled.settled(&bare), &said("PessimisticDistillation"));
    Ok(())
}

/// `[members]`, `[batch]` or `[members, 1]` would broadcast without a word.
#[test]
fn baselines_that_do_not_fit() {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let scores = RewardScores::new(zeros(&[2, 3]), zeros(&[2, 3])).expect("fit each other");
    refused(scores.relative_to(&zeros(&[3])), "baseline must have shape [members, batch], got [3]");
    let said = "baseline must have shape [members, batch] with members = 2, got members = 1";
    refused(scores.relative_to(&zeros(&[1, 3])), said);
    let said = "baseline must have shape [members, batch] with batch = 3, got batch = 1";
    refused(scores.relative_to(&zeros(&[2, 1])), said);
    let float = zeros(&[2, 3]).to_kind(Kind::Float);
    refused(scores.relative_to(&float), "baseline must be Double like the rest of its batch, got Float");
}

#[test]
fn configuration_files() -> Result<()> {
    let penalised = UncertaintyPenalised::new(0.1, 0.5)?;
    assert_eq!(from_str::<UncertaintyPenalised>(r#"{"beta":0.1,"pessimism":0.5}"#).expect("valid"), penalised);
    let weighted = UncertaintyWeighted::new(Dpo::new(0.1)?, 2.0)?;
    let text = r#"{"loss":{"beta":0.1},"temperature":2.0}"#;
    assert_eq!(from_str::<UncertaintyWeighted<Dpo>>(text).expect("valid"), weighted);
    let margin = penalised.with_spread(Spread::Margin);
    let text = serde_json::to_string(&margin).expect("plain data");
    assert_eq!(text, r#"{"beta":0.1,"pessimism":0.5,"spread":"margin"}"#);
    assert_eq!(from_str::<UncertaintyPenalised>(&text).expect("its own text"), margin);
    let responses = weighted.with_spread(Spread::Responses);
    let text = serde_json::to_string(&responses).expect("plain data");
    assert_eq!(text, r#"{"loss":{"beta":0.1,"flip_rate":0.0},"temperature":2.0,"spread":"responses"}"#);
    assert_eq!(from_str::<UncertaintyWeighted<Dpo>>(&text).expect("its own text"), responses);
    let broken = [
        (r#"{"beta":0.1,"pessimism":-1.0}"#, "pessimism must be at least 0 and finite, got -1"),
        (r#"{"beta":0.1,"pessimism":1.0,"spread":"both"}"#, "unknown variant `both`"),
        (r#"{"beta":0.1,"pessimism":1.0,"lambda":1.0}"#, "unknown field `lambda`"),
        (r#"{"beta":0.1}"#, "missing field `pessimism`"),
    ];
    for (text, said) in broken {
        let error = from_str::<UncertaintyPenalised>(text).expect_err("must be refused").to_string();
        assert!(error.contains(said), "{error}");
    }
    Ok(())
}
