//! EXO, NCA, DiscoPOP and SPPO: minima, limits, what stays finite, and what is refused. Values and gradients: `table` and `trl`.

use std::f64::consts::LN_2;

use proptest::prelude::*;

use prefopt::{
    PreferenceLoss, Result,
    loss::{DiscoPop, Dpo, ExoPair, MarginLoss, NcaPair, Sppo},
    tch::{Device, Kind, Tensor},
};

use crate::{all_close, close, columns::Columns, identities::config, numbers, oracle};

/// Pairs with these log-ratios under the policy, without weights. Quarters of a nat are exact.
pub fn log_ratios(chosen: &[f64], rejected: &[f64]) -> Columns {
    let columns = Columns::random(chosen.len(), 1, 7).unweighted();
    let plus = |reference: &[f64], ratios: &[f64]| reference.iter().zip(ratios).map(|(r, u)| r + u).collect();
    let (chosen, rejected) = (plus(&columns.ref_chosen, chosen), plus(&columns.ref_rejected, rejected));
    Columns { chosen, rejected, ..columns }
}

/// Loss of each pair, and the gradients of their sum at log π(y_w) and log π(y_l).
pub fn slopes(loss: &dyn PreferenceLoss, columns: &Columns) -> Result<(Vec<f64>, [Vec<f64>; 2])> {
    let built = columns.build(Kind::Double, Device::Cpu)?;
    let losses = loss.per_pair(&built.batch)?;
    losses.sum(Kind::Double).backward();
    let of = |leaf: &Tensor| if leaf.grad().defined() { numbers(&leaf.grad()) } else { vec![0.0; leaf.numel()] };
    Ok((numbers(&losses), [of(&built.policy[0]), of(&built.policy[1])]))
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

/// The loss at margins that carry no rounding.
fn of_margins(loss: &impl MarginLoss, margins: &[f64]) -> Vec<f64> {
    numbers(&loss.of_margin(&Tensor::from_slice(margins)))
}

proptest! {
    #![proptest_config(config())]

    /// The divergence of Bernoulli(σ(βh)) from Bernoulli(1−ε): never negative, 0 with zero slope at the label's own odds.
    #[test]
    fn exo_is_a_divergence(beta in 0.05..3.0_f64, smoothing in 1e-4..0.49_f64, h in -40.0..40.0_f64) {
        let loss = ExoPair::new(beta, smoothing).expect("in its domain");
        let odds = ((1.0 - smoothing) / smoothing).ln() / beta;
        let values = of_margins(&loss, &[h, odds, odds + 1e-3, odds - 1e-3]);
        prop_assert!(values[0] >= -1e-14);
        let q = oracle::sigmoid(beta * h);
        if q > 1e-9 && q < 1.0 - 1e-9 {
            let plain = q * (q / (1.0 - smoothing)).ln() + (1.0 - q) * ((1.0 - q) / smoothing).ln();
            prop_assert!((values[0] - plain).abs() < 1e-6, "{} is not {plain}", values[0]);
        }
        prop_assert!(values[1].abs() < 1e-12 && values[2] > 0.0 && values[3] > 0.0);
    }

    /// At p for both it is fitted exactly where each log-ratio is (P − ½)/β.
    #[test]
    fn sppo_is_zero_at_its_targets(beta in 0.05..3.0_f64, seed in any::<u64>()) {
        let columns = Columns::random(4, 1, seed).unweighted();
        let target = |p: f64| (p - 0.5) / beta;
        let (chosen, rejected) = columns.soft_labels.iter().map(|p| (target(*p), target(1.0 - p))).unzip::<_, _, Vec<_>, Vec<_>>();
        let fitted = Columns { soft_labels: columns.soft_labels.clone(), ..log_ratios(&chosen, &rejected) };
        let (losses, slopes) = slopes(&Sppo::to_soft_labels(beta).expect("in its domain"), &fitted).expect("columns are there");
        prop_assert!(losses.iter().chain(slopes.iter().flatten()).all(|x| x.abs() < 1e-10), "{losses:?} {slopes:?}");
    }
}

/// −log(1−ε) on the right and −log ε on the left: far pairs are given up.
#[test]
fn exo_is_bounded() -> Result<()> {
    let values = of_margins(&ExoPair::new(1.0, 1e-3)?, &[1e4, -1e4]);
    all_close(&values, &[-(-1e-3_f64).ln_1p(), -1e-3_f64.ln()], 1e-14, "far out");
    Ok(())
}

/// r_w → log 2 from both sides, whatever r_l; r_l always falls.
#[test]
fn nca_holds_the_chosen_response() -> Result<()> {
    let beta = 0.5;
    let at = LN_2 / beta;
    let columns = log_ratios(&[at, at + 0.5, at - 0.5, 0.0], &[3.0, -1.0, 0.0, 0.0]);
    let (losses, [chosen, rejected]) = slopes(&NcaPair::new(beta)?, &columns)?;
    close(chosen[0], 0.0, 1e-12, 1.0, "at log 2");
    assert!(chosen[1] > 0.0 && chosen[2] < 0.0 && rejected.iter().all(|g| *g > 0.0));
    close(losses[3], 2.0 * LN_2, 1e-14, 0.0, "at the reference");
    Ok(())
}

/// τ → ∞ weighs both parts equally; τ → 0 is logistic on the left of 0 and exponential on its right.
#[test]
fn discopop_blends_two_losses() -> Result<()> {
    let margins = [-3.0, -0.25, 0.0, 0.25, 3.0];
    let logistic = margins.map(|x| oracle::dpo(x, 0.0));
    let exponential = margins.map(|x: f64| (-x).exp());
    let half: Vec<f64> = logistic.iter().zip(&exponential).map(|(l, e)| 0.5 * (l + e)).collect();
    let wide = DiscoPop::new(1.0)?.with_temperature(1e9)?;
    all_close(&of_margins(&wide, &margins), &half, 1e-8, "τ → ∞");
    let sharp = DiscoPop::new(1.0)?.with_temperature(1e-3)?;
    let expected = [logistic[0], logistic[1], half[2], exponential[3], exponential[4]];
    all_close(&of_margins(&sharp, &margins), &expected, 1e-12, "τ → 0");
    Ok(())
}

/// A wrongly ordered pair can rest in the dip: the loss at βh = −0.13 is below that at −0.5 and at 0.
#[test]
fn discopop_is_not_convex() -> Result<()> {
    let [left, dip, zero] = of_margins(&DiscoPop::new(1.0)?, &[-0.5, -0.13, 0.0])[..] else { panic!("three losses") };
    assert!(dip < left && dip < zero, "{left} {dip} {zero}");
    Ok(())
}

/// e^{−x} overflows from |x| = 88 in f32 and 709 in f64, where its weight is 0.
#[test]
fn discopop_stays_finite() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let margins = Tensor::from_slice(&[-1e4, -1e3, -100.0, 100.0, 1e4]).to_kind(kind).set_requires_grad(true);
        let losses = DiscoPop::new(1.0)?.of_margin(&margins);
        losses.sum(kind).backward();
        all_close(&numbers(&losses), &[1e4, 1e3, 100.0, 0.0, 0.0], 1e-6, format_args!("{kind:?}"));
        all_close(&numbers(&margins.grad()), &[-1.0, -1.0, -1.0, 0.0, 0.0], 1e-6, format_args!("slope in {kind:?}"));
    }
    Ok(())
}

/// A label of 1, and win rates of 1 and 0, are the hard form; of ½ and ½, the square of both log-ratios.
#[test]
fn the_soft_forms_of_sppo_contain_the_hard_one() -> Result<()> {
    let columns = log_ratios(&[0.5, -2.0, 0.0], &[1.0, -0.25, 4.0]);
    let hard = slopes(&Sppo::hard(0.25)?, &columns)?;
    let sure = Columns { soft_labels: vec![1.0; 3], ..columns.clone() };
    assert_eq!(slopes(&Sppo::to_soft_labels(0.25)?, &sure)?, hard);
    let scored = |chosen: f64, rejected: f64| Columns {
        chosen_scores: vec![vec![chosen; 3]],
        rejected_scores: vec![vec![rejected; 3]],
        ..columns.clone()
    };
    assert_eq!(slopes(&Sppo::to_rewards(0.25)?, &scored(1.0, 0.0))?, hard);
    let (even, _) = slopes(&Sppo::to_rewards(0.25)?, &scored(0.5, 0.5))?;
    all_close(&even, &[1.25, 4.0625, 16.0], 1e-12, "no preference");
    let (apart, _) = slopes(&Sppo::to_rewards(0.25)?, &scored(0.75, 0.5))?;
    all_close(&apart, &[1.25, 9.0625, 17.0], 1e-12, "each its own target: 1 and 0");
    Ok(())
}

#[test]
fn numbers_outside_their_domain() -> Result<()> {
    refused(ExoPair::new(0.0, 0.1), "beta must be positive and finite, got 0");
    for smoothing in [0.0, 0.5, -0.1, f64::NAN] {
        refused(
            ExoPair::new(0.1, smoothing),
            &format!("label_smoothing must be above 0 and below 0.5, got {smoothing}"),
        );
    }
    refused(NcaPair::new(-1.0), "beta must be positive and finite, got -1");
    refused(DiscoPop::new(0.1)?.with_temperature(0.0), "temperature must be positive and finite, got 0");
    refused(Sppo::hard(f64::INFINITY), "beta must be positive and finite, got inf");
    let family = Columns::random(3, 2, 1).batch();
    refused(
        Sppo::to_rewards(0.1)?.per_pair(&family),
        "Sppo takes one reward model, got 2: choose one with RewardScores::member, or average with RewardScores::averaged",
    );
    Ok(())
}

/// A loss of the margin alone says so by agreeing with itself on the batch.
#[test]
fn of_margin_is_per_pair() -> Result<()> {
    let columns = Columns::random(5, 1, 3);
    let (margins, batch) = (columns.h(), columns.batch());
    let losses: [(Box<dyn PreferenceLoss>, Vec<f64>); 3] = [
        (Box::new(Dpo::new(0.3)?), of_margins(&Dpo::new(0.3)?, &margins)),
        (Box::new(ExoPair::new(0.3, 0.1)?), of_margins(&ExoPair::new(0.3, 0.1)?, &margins)),
        (Box::new(DiscoPop::new(0.3)?), of_margins(&DiscoPop::new(0.3)?, &margins)),
    ];
    for (loss, expected) in losses {
        all_close(&numbers(&loss.per_pair(&batch)?), &expected, 1e-14, format_args!("{loss:?}"));
    }
    Ok(())
}
