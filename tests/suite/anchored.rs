//! BCO, APO and DPO-Positive: anchors, limits, and the shift that a running mean finds.

use proptest::prelude::*;

use prefopt::{
    PreferenceLoss, Result,
    loss::{ApoDown, ApoZero, Bco, BcoPair, Dpo, DpoPositive, Kto, UnpairedLoss},
    pairs::UnpairedBatch,
    tch::{Device, Kind},
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, RunningMean, Trainer},
};

use crate::{
    all_close, close,
    columns::Columns,
    contrastive::{log_ratios, refused, slopes},
    identities::config,
    numbers, oracle,
};

/// Loss of a pair as the sum of its responses' unpaired losses.
fn sum_of_both(loss: &impl UnpairedLoss, columns: &Columns) -> Vec<f64> {
    let batch = columns.batch();
    let unpaired = UnpairedBatch::of_pairs(batch.logps()).with_baseline(0.0).expect("is 0");
    let losses = numbers(&loss.per_response(&unpaired).expect("has a baseline"));
    let (chosen, rejected) = losses.split_at(columns.len());
    chosen.iter().zip(rejected).map(|(c, r)| c + r).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_pair_is_two_responses(seed in any::<u64>(), beta in 0.05..2.0_f64, shift in -2.0..2.0_f64) {
        let columns = Columns::random(4, 1, seed);
        let pair = BcoPair::new(beta).expect("valid").with_shift(shift).expect("finite");
        let single = Bco::new(beta).expect("valid").with_shift(shift).expect("finite");
        all_close(&numbers(&pair.per_pair(&columns.batch()).expect("valid")), &sum_of_both(&single, &columns), 1e-13, "bco");
        let apo = ApoZero::new(beta).expect("valid").per_pair(&columns.batch()).expect("valid");
        all_close(&numbers(&apo), &sum_of_both(&Kto::new(beta).expect("valid"), &columns), 1e-13, "apo-zero");
    }

    /// From log σ by hand; λ = 0, or y_w above the reference, is DPO.
    #[test]
    fn dpo_positive(chosen in -6.0..6.0_f64, rejected in -6.0..6.0_f64, beta in 0.05..1.0_f64, penalty in 0.0..50.0_f64) {
        let columns = log_ratios(&[chosen], &[rejected]);
        let (losses, slopes_) = slopes(&DpoPositive::new(beta, penalty).expect("valid"), &columns).expect("no column");
        let lost = (-chosen).max(0.0);
        let x = beta * (chosen - rejected - penalty * lost);
        close(losses[0], oracle::dpo(x, 0.0), 1e-10, 1.0, "value");
        let slope = -beta * oracle::sigmoid(-x);
        let counted = if chosen < 0.0 { 1.0 + penalty } else { 1.0 };
        close(slopes_[0][0], slope * counted, 1e-9, 1.0, "slope at chosen");
        close(slopes_[1][0], -slope, 1e-10, 1.0, "slope at rejected");
        let plain = slopes(&Dpo::new(beta).expect("valid"), &columns).expect("no column").0;
        let without = slopes(&DpoPositive::new(beta, 0.0).expect("valid"), &columns).expect("no column").0;
        close(without[0], plain[0], 1e-14, 1.0, "λ = 0");
        if chosen >= 0.0 {
            close(losses[0], plain[0], 1e-14, 1.0, "above the reference");
        }
    }
}

/// Both bounded by 0 and 2, and without a gradient far out.
#[test]
fn apo_at_the_reference_and_far_out() -> Result<()> {
    let beta = 0.5;
    let columns = log_ratios(&[0.0, 400.0, -400.0, 400.0], &[0.0, -400.0, 400.0, 400.0]);
    let (zero, [chosen, rejected]) = slopes(&ApoZero::new(beta)?, &columns)?;
    all_close(&zero, &[1.0, 0.0, 2.0, 1.0], 1e-14, "zero");
    all_close(&chosen, &[-beta / 4.0, 0.0, 0.0, 0.0], 1e-14, "zero: raises y_w");
    all_close(&rejected, &[beta / 4.0, 0.0, 0.0, 0.0], 1e-14, "zero: lowers y_l");
    let (down, [chosen, rejected]) = slopes(&ApoDown::new(beta)?, &columns)?;
    all_close(&down, &[1.0, 1.0, 1.0, 1.5], 1e-14, "down");
    // The two parts cancel at y_w, and y_l alone moves: y_w starts to fall as soon as the pair is told apart.
    all_close(&chosen, &[0.0, 0.0, 0.0, -beta / 4.0], 1e-14, "down at y_w");
    all_close(&rejected, &[beta / 4.0, 0.0, 0.0, beta / 4.0], 1e-14, "down at y_l");
    let told_apart = slopes(&ApoDown::new(beta)?, &log_ratios(&[0.0], &[-4.0]))?.1;
    assert!(told_apart[0][0] > 0.0 && told_apart[1][0] > 0.0);
    Ok(())
}

/// δ moves the boundary: with δ = βu both responses at log-ratio u are undecided.
#[test]
fn the_shift_is_the_boundary() -> Result<()> {
    let columns = log_ratios(&[3.0], &[3.0]);
    let (losses, [chosen, rejected]) = slopes(&BcoPair::new(0.5)?.with_shift(1.5)?, &columns)?;
    close(losses[0], 2.0 * std::f64::consts::LN_2, 1e-12, 0.0, "undecided");
    all_close(&[chosen[0], rejected[0]], &[-0.25, 0.25], 1e-12, "slopes");
    Ok(())
}

/// Before each loss the shift becomes the mean of all rewards so far, weighted as the pairs are.
#[test]
fn a_running_mean_hands_bco_its_shift() -> Result<()> {
    let (beta, first, second) = (0.5, Columns::random(4, 1, 1), Columns::random(3, 1, 2));
    let reward = |c: &Columns| {
        let both =
            (0..c.len()).map(|i| 0.5 * beta * (c.chosen[i] - c.ref_chosen[i] + c.rejected[i] - c.ref_rejected[i]));
        both.collect::<Vec<_>>()
    };
    let (m1, m2) = (first.mean(&reward(&first)), second.mean(&reward(&second)));
    let (w1, w2) = (first.weights.iter().sum::<f64>(), second.weights.iter().sum::<f64>());
    let expected = [m1, (w1 * m1 + w2 * m2) / (w1 + w2)];

    // The batches are those of the columns; a leaf that stays at 0 is what the step trains.
    let leaf = prefopt::tch::Tensor::zeros([1], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let held = leaf.shallow_clone();
    let forward = move |columns: &Columns| {
        columns.batch().map_logps(|logps| {
            let shifted = |logps: &prefopt::tch::Tensor| logps.detach() + &held;
            prefopt::PairLogps::new(
                shifted(logps.chosen()),
                shifted(logps.rejected()),
                logps.ref_chosen().shallow_clone(),
                logps.ref_rejected().shallow_clone(),
            )
        })
    };
    let descent = Descent::new(AdamW::new(vec![leaf], AdamWConfig::default())?, 0.0)?;
    let mut mean = RunningMean::new();
    let mut trainer =
        PolicyTrainer::new(BcoPair::new(beta)?, forward, descent, beta)?.before_loss(move |loss, batch| {
            *loss = loss.with_shift(mean.observe(loss.mean_reward(batch)?, batch.total_weight())?)?;
            Ok(())
        });
    for (columns, shift) in [&first, &second].into_iter().zip(expected) {
        let report = trainer.step(columns)?;
        let by_hand = BcoPair::new(beta)?.with_shift(shift)?.mean(&columns.batch())?;
        close(report.loss, by_hand.double_value(&[]), 1e-12, 1.0, "loss at the shift");
    }
    Ok(())
}

#[test]
fn running_means() -> Result<()> {
    let mut all = RunningMean::new();
    assert_eq!(all.mean(), None);
    assert_eq!([all.observe(1.0, 1.0)?, all.observe(4.0, 2.0)?, all.observe(-3.0, 3.0)?], [1.0, 3.0, 0.0]);
    all.reset();
    assert_eq!((all.mean(), all), (None, RunningMean::default()));
    // Σ ρ^(n−t) x_t / Σ ρ^(n−t): the first number is itself, not a share of it.
    let mut moving = RunningMean::new().with_retention(0.5)?;
    assert_eq!(moving.observe(8.0, 1.0)?, 8.0);
    close(moving.observe(2.0, 1.0)?, (0.5 * 8.0 + 2.0) / 1.5, 1e-15, 0.0, "second");
    close(moving.observe(1.0, 1.0)?, (0.25 * 8.0 + 0.5 * 2.0 + 1.0) / 1.75, 1e-15, 0.0, "third");
    let before = moving;
    refused(moving.observe(f64::NAN, 1.0), "observation must be finite, got NaN");
    refused(moving.observe(1.0, 0.0), "weight of a part must be positive and finite, got 0");
    assert_eq!(moving, before);
    refused(RunningMean::new().with_retention(0.0), "retention must be above 0 and at most 1, got 0");
    refused(RunningMean::new().with_retention(1.5), "retention must be above 0 and at most 1, got 1.5");
    Ok(())
}

#[test]
fn numbers_outside_their_domain() -> Result<()> {
    refused(BcoPair::new(0.0), "beta must be positive and finite, got 0");
    refused(BcoPair::new(0.1)?.with_shift(f64::NAN), "shift must be finite, got NaN");
    refused(ApoZero::new(-0.1), "beta must be positive and finite, got -0.1");
    refused(ApoDown::new(-0.1), "beta must be positive and finite, got -0.1");
    refused(DpoPositive::new(0.1, -1.0), "penalty must be at least 0 and finite, got -1");
    Ok(())
}
