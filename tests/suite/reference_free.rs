//! CPO, SimPO, AlphaPO, ORPO and the likelihood term: what they are of each other, and what they refuse.

use proptest::prelude::*;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, Result,
    logps::ResponseLogps,
    loss::{AlphaPo, Average, Cpo, Dpo, ForwardKl, MarginLoss, OddsRatio, Sft, SimPo, Wpo},
    tch::{Device, Kind, Tensor},
};

use crate::{
    all_close, close,
    columns::Columns,
    contrastive::{refused, slopes},
    identities::config,
    number, numbers, oracle,
};

const BETA: f64 = 2.0;

/// log π(y)/|y| of both responses.
fn means(columns: &Columns) -> [Vec<f64>; 2] {
    let of = |sums: &[f64], lengths: &[i64]| sums.iter().zip(lengths).map(|(s, n)| s / *n as f64).collect();
    [of(&columns.chosen, &columns.lengths[0]), of(&columns.rejected, &columns.lengths[1])]
}

fn of(loss: &dyn PreferenceLoss, columns: &Columns) -> Vec<f64> {
    numbers(&loss.per_pair(&columns.batch()).expect("has every column"))
}

/// Without a reference and averaged, in the batch instead of in the loss.
fn transformed(columns: &Columns) -> PreferenceBatch {
    let lengths = || {
        let [chosen, rejected] = columns.lengths.each_ref().map(|l| Tensor::from_slice(l));
        ResponseLengths::new(chosen, rejected).expect("at least one token")
    };
    columns.batch().map_logps(|logps| logps.reference_free().per_token(&lengths())).expect("fits")
}

proptest! {
    #![proptest_config(config())]

    /// By hand; the margin is γ, or γ/β times β.
    #[test]
    fn simpo(seed in any::<u64>(), beta in 0.5..10.0_f64, ratio in 0.0..1.5_f64, flip in 0.0..0.49_f64) {
        let columns = Columns::random(4, 1, seed);
        let [chosen, rejected] = means(&columns);
        let expected: Vec<f64> = (0..4).map(|i| oracle::dpo(beta * (chosen[i] - rejected[i] - ratio), flip)).collect();
        let absolute = SimPo::new(beta, beta * ratio).expect("valid").with_flip_rate(flip).expect("valid");
        all_close(&of(&absolute, &columns), &expected, 1e-12, "γ");
        let relative = SimPo::with_ratio(beta, ratio).expect("valid").with_flip_rate(flip).expect("valid");
        prop_assert_eq!(relative, absolute);
        let plain = SimPo::new(beta, 0.0).expect("valid");
        let dpo = Dpo::new(beta).expect("valid").per_pair(&transformed(&columns)).expect("valid");
        all_close(&of(&plain, &columns), &numbers(&dpo), 1e-12, "γ = 0 is DPO of reference-free means");
    }

    /// α → 0 is SimPO; the reward rises with p whatever α.
    #[test]
    fn alphapo(seed in any::<u64>(), alpha in -0.9..0.9_f64, gamma in 0.0..2.0_f64) {
        let columns = Columns::random(4, 1, seed);
        let [chosen, rejected] = means(&columns);
        let reward = |mean: f64| (1.0 - mean.exp().powf(-alpha)) / alpha;
        prop_assume!(alpha.abs() > 1e-3);
        let expected: Vec<f64> = (0..4).map(|i| oracle::dpo(BETA * (reward(chosen[i]) - reward(rejected[i])) - gamma, 0.0)).collect();
        all_close(&of(&AlphaPo::new(BETA, gamma, alpha).expect("valid"), &columns), &expected, 1e-9, "by powers of p");
        let simpo = of(&SimPo::new(BETA, gamma).expect("valid"), &columns);
        all_close(&of(&AlphaPo::new(BETA, gamma, 0.0).expect("valid"), &columns), &simpo, 1e-14, "α = 0");
        all_close(&of(&AlphaPo::new(BETA, gamma, 1e-9).expect("valid"), &columns), &simpo, 1e-6, "α → 0");
        let slopes = slopes(&AlphaPo::new(BETA, gamma, alpha).expect("valid"), &columns).expect("valid").1;
        prop_assert!(slopes[0].iter().all(|g| *g <= 0.0) && slopes[1].iter().all(|g| *g >= 0.0));
    }

    #[test]
    fn odds_ratio(seed in any::<u64>()) {
        let columns = Columns::random(4, 1, seed);
        let odds = |mean: f64| mean.exp() / (1.0 - mean.exp());
        let [chosen, rejected] = means(&columns);
        let expected: Vec<f64> = (0..4).map(|i| oracle::dpo((odds(chosen[i]) / odds(rejected[i])).ln(), 0.0)).collect();
        all_close(&of(&OddsRatio, &columns), &expected, 1e-9, "by odds");
    }

    /// −Σ w log π / Σ w |y|, whatever the lengths: the mean over tokens.
    #[test]
    fn sft_is_a_mean_over_tokens(seed in any::<u64>(), gold in any::<bool>()) {
        let columns = Columns::random(5, 1, seed);
        let mut batch = columns.batch();
        let (logps, tokens) = if gold { (&columns.rejected, &columns.lengths[1]) } else { (&columns.chosen, &columns.lengths[0]) };
        let sft = if gold { Sft::of_gold() } else { Sft::new() };
        if gold {
            let (sums, lengths) = (Tensor::from_slice(logps), Tensor::from_slice(tokens));
            batch = batch.with_gold(ResponseLogps { sums, lengths }).expect("fits");
        }
        let weighted = |of: &dyn Fn(usize) -> f64| (0..5).map(|i| columns.weights[i] * of(i)).sum::<f64>();
        let expected = -weighted(&|i| logps[i]) / weighted(&|i| tokens[i] as f64);
        close(number(&sft.mean(&batch).expect("has lengths")), expected, 1e-12, 1.0, "tokens");
        let each: Vec<f64> = (0..5).map(|i| -logps[i] / tokens[i] as f64).collect();
        let response = sft.with_average(Average::Response).per_pair(&batch).expect("has lengths");
        all_close(&numbers(&response), &each, 1e-13, "responses");
        let sums: Vec<f64> = logps.iter().map(|l| -l).collect();
        all_close(&numbers(&sft.with_average(Average::None).per_pair(&batch).expect("reads no length")), &sums, 1e-14, "sums");
        prop_assert!(sft.is_coupled() && !sft.with_average(Average::Response).is_coupled());
    }
}

#[test]
fn cpo_is_dpo_without_a_reference() -> Result<()> {
    let columns = Columns::random(5, 1, 2);
    let batch = columns.batch().map_logps(|logps| Ok(logps.reference_free()))?;
    let dpo = numbers(&Dpo::new(0.25)?.with_flip_rate(0.1)?.per_pair(&batch)?);
    assert_eq!(of(&Cpo::new(0.25)?.with_flip_rate(0.1)?, &columns), dpo);
    Ok(())
}

/// Whatever the reference says, and whether it is there.
#[test]
fn none_reads_a_reference() -> Result<()> {
    let columns = Columns::random(4, 1, 3);
    let other = Columns { ref_chosen: vec![-1.0; 4], ref_rejected: vec![-900.0; 4], ..columns.clone() };
    let losses: [Box<dyn PreferenceLoss>; 5] = [
        Box::new(Cpo::new(0.1)?),
        Box::new(SimPo::new(2.0, 0.5)?),
        Box::new(AlphaPo::new(2.0, 0.5, 0.25)?),
        Box::new(OddsRatio),
        Box::new(Sft::new()),
    ];
    for loss in losses {
        assert_eq!(of(&loss, &columns), of(&loss, &other), "{loss:?}");
    }
    Ok(())
}

/// p → 1 has infinite odds and finite numbers, in both kinds.
#[test]
fn the_odds_of_a_sure_response() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let columns = Columns {
            chosen: vec![-1e-6, 0.0, -700.0, -1e-6],
            rejected: vec![-3.0, -3.0, -1e-6, -1e-6],
            lengths: [vec![1; 4], vec![1; 4]],
            ..Columns::random(4, 1, 4)
        };
        let built = columns.build(kind, Device::Cpu)?;
        let losses = OddsRatio.per_pair(&built.batch)?;
        losses.sum(kind).backward();
        for tensor in [&losses, &built.policy[0].grad(), &built.policy[1].grad()] {
            assert!(numbers(tensor).iter().all(|x| x.is_finite()), "{kind:?}: {tensor:?}");
        }
        // log odds of e^{−700} against 1 − 10⁻⁶: −700 − log 10⁶.
        close(numbers(&losses)[2], 700.0 + 1e6_f64.ln(), 1e-5, 0.0, format_args!("{kind:?}"));
        close(numbers(&losses)[3], std::f64::consts::LN_2, 1e-6, 0.0, "equal odds");
    }
    Ok(())
}

/// A mean of a mean would pass for a number.
#[test]
fn means_are_not_divided_again() -> Result<()> {
    let columns = Columns::random(3, 1, 5);
    let said = |by: &str| {
        format!(
            "{by} divides by the responses' lengths: give it sums over tokens, which these log-probabilities no longer are (PairLogps::per_token)"
        )
    };
    let losses: [(&str, Box<dyn PreferenceLoss>); 6] = [
        ("SimPo", Box::new(SimPo::new(2.0, 0.5)?)),
        ("AlphaPo", Box::new(AlphaPo::new(2.0, 0.5, 0.25)?)),
        ("OddsRatio", Box::new(OddsRatio)),
        ("Sft", Box::new(Sft::new())),
        ("Sft", Box::new(Sft::new().with_average(Average::Response))),
        ("per_token", Box::new(Dpo::new(0.1)?.per_token())),
    ];
    let batch = transformed(&columns);
    for (name, loss) in losses {
        refused(loss.per_pair(&batch), &said(name));
    }
    let lengths =
        ResponseLengths::new(Tensor::from_slice(&columns.lengths[0]), Tensor::from_slice(&columns.lengths[1]))?;
    refused(batch.map_logps(|logps| logps.per_token(&lengths)), &said("PairLogps::per_token"));
    // Nor do means and sums make one batch.
    refused(
        PreferenceBatch::concatenated(&[transformed(&columns), columns.batch()]),
        "some of the batches have the column `means over tokens` and some do not: a whole needs it from all or none",
    );
    let whole = PreferenceBatch::concatenated(&[transformed(&columns), transformed(&columns)])?;
    refused(SimPo::new(2.0, 0.5)?.per_pair(&whole), &said("SimPo"));
    Ok(())
}

/// Half of the anchor of both responses, up to a constant: the same slope at y_w.
#[test]
fn a_likelihood_is_half_an_anchor() -> Result<()> {
    let columns = Columns::random(3, 1, 6);
    let (_, [chosen, rejected]) = slopes(&Sft::new().with_average(Average::None), &columns)?;
    let (_, [anchored, _]) = slopes(&ForwardKl::OwnResponses, &columns)?;
    assert_eq!(chosen.iter().map(|g| 0.5 * g).collect::<Vec<_>>(), anchored);
    assert_eq!(rejected, [0.0; 3]);
    Ok(())
}

/// The factor is a column, is not normalised, and carries no gradient.
#[test]
fn wpo_weighs_any_loss() -> Result<()> {
    let columns = Columns::random(3, 1, 7);
    let built = columns.build(Kind::Double, Device::Cpu)?;
    let weights = Tensor::from_slice(&[0.5, 0.0, 2.0]).set_requires_grad(true);
    let batch = built.batch.with_policy_weights(weights.shallow_clone())?;
    let losses = Wpo::new(Cpo::new(0.25)?).per_pair(&batch)?;
    losses.sum(Kind::Double).backward();
    let plain = slopes(&Cpo::new(0.25)?, &columns)?;
    let times = |x: &[f64]| [0.5 * x[0], 0.0, 2.0 * x[2]];
    all_close(&numbers(&losses), &times(&plain.0), 1e-14, "loss");
    all_close(&numbers(&built.policy[0].grad()), &times(&plain.1[0]), 1e-14, "slope");
    assert!(!weights.grad().defined());
    // What couples the loss inside couples it still, and settles.
    let sft = Wpo::new(Sft::new());
    assert!(sft.is_coupled() && !Wpo::new(Cpo::new(0.25)?).is_coupled());
    all_close(&numbers(&sft.settled(&batch)?.per_pair(&batch)?), &numbers(&sft.per_pair(&batch)?), 1e-14, "settled");
    refused(
        Wpo::new(Cpo::new(0.25)?).per_pair(&columns.batch()),
        "Wpo needs the column `policy_weights`, which this batch lacks: add it with PreferenceBatch::with_policy_weights",
    );
    refused(
        columns.batch().with_policy_weights(Tensor::from_slice(&[1.0, -1.0, 1.0])),
        "policy_weights[1] must be at least 0 and finite, got -1",
    );
    Ok(())
}

/// The gold response's gradient goes to its own log-probability; a batch lacks it or has it whole.
#[test]
fn gold_responses() -> Result<()> {
    let columns = Columns::random(2, 1, 8);
    let gold = |sums: &[f64], tokens: &[i64]| {
        let sums = Tensor::from_slice(sums).set_requires_grad(true);
        let logps = ResponseLogps { sums: sums.shallow_clone(), lengths: Tensor::from_slice(tokens) };
        (sums, logps)
    };
    let built = columns.build(Kind::Double, Device::Cpu)?;
    let (sums, logps) = gold(&[-3.0, -5.0], &[2, 6]);
    let batch = built.batch.with_gold(logps)?;
    Cpo::new(0.1)?
        .plus(1.0, Sft::of_gold().with_average(Average::Response))
        .per_pair(&batch)?
        .sum(Kind::Double)
        .backward();
    all_close(&numbers(&sums.grad()), &[-0.5, -1.0 / 6.0], 1e-14, "slope at the gold response");
    refused(
        Sft::of_gold().per_pair(&columns.batch()),
        "Sft needs the column `gold`, which this batch lacks: add it with PreferenceBatch::with_gold",
    );
    refused(
        columns.batch().with_gold(gold(&[-3.0], &[2]).1),
        "gold_logps must have shape [batch] with batch = 2, got batch = 1",
    );
    refused(
        columns.batch().with_gold(gold(&[-3.0, -1.0], &[2, 0]).1),
        "gold_lengths[1] must be at least 1 token (an empty response has no mean), got 0",
    );
    refused(
        PreferenceBatch::concatenated(&[batch, columns.batch()]),
        "some of the batches have the column `gold` and some do not: a whole needs it from all or none",
    );
    Ok(())
}

#[test]
fn numbers_outside_their_domain() -> Result<()> {
    refused(Cpo::new(0.0), "beta must be positive and finite, got 0");
    refused(Cpo::new(0.1)?.with_flip_rate(0.5), "flip_rate must be at least 0 and below 0.5, got 0.5");
    refused(SimPo::new(2.0, -0.5), "margin must be at least 0 and finite, got -0.5");
    refused(SimPo::with_ratio(2.0, f64::NAN), "margin must be at least 0 and finite, got NaN");
    refused(AlphaPo::new(2.0, 0.5, f64::INFINITY), "alpha must be finite, got inf");
    let bare = PreferenceBatch::new(PairLogps::new(
        Tensor::from_slice(&[-1.0]),
        Tensor::from_slice(&[-1.0]),
        Tensor::from_slice(&[-1.0]),
        Tensor::from_slice(&[-1.0]),
    )?);
    refused(
        SimPo::new(2.0, 0.5)?.per_pair(&bare),
        "SimPo needs the column `lengths`, which this batch lacks: add it with PreferenceBatch::with_lengths",
    );
    Ok(())
}
