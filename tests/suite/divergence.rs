//! f-divergences as the slope of the implicit reward, and scores over tokens. Golden values in `trl`.

use proptest::prelude::*;

use prefopt::{
    PreferenceLoss, ResponseLengths, Result,
    loss::{Dpo, ExoPair, FDivergence, Hinge, Ipo, MarginLoss, OfScores},
    tch::{Kind, Tensor},
};

use crate::{
    all_close, close,
    columns::Columns,
    contrastive::{log_ratios, refused, slopes},
    identities::config,
    numbers, oracle,
};

const BETA: f64 = 0.5;

fn slope(divergence: FDivergence, log_ratios: &[f64]) -> Vec<f64> {
    numbers(&divergence.slope(&Tensor::from_slice(log_ratios)))
}

fn alpha(order: f64) -> FDivergence {
    FDivergence::alpha(order).expect("is finite")
}

/// The generators themselves, f(1) = 0 and f'(1) = 0, of which the crate has the slopes.
fn generator(divergence: FDivergence, t: f64) -> f64 {
    match divergence {
        FDivergence::ReverseKl => t * t.ln() - t + 1.0,
        FDivergence::ForwardKl => t - 1.0 - t.ln(),
        FDivergence::JensenShannon => t * t.ln() - (t + 1.0) * ((t + 1.0) / 2.0).ln(),
        FDivergence::Alpha { order } => {
            let a = order.get();
            (t.powf(a) - a * t - (1.0 - a)) / (a * (a - 1.0))
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn slopes_are_those_of_the_generators(u in -2.0..2.0_f64, order in 0.1..0.9_f64) {
        const STEP: f64 = 1e-5;
        for divergence in [FDivergence::ReverseKl, FDivergence::ForwardKl, FDivergence::JensenShannon, alpha(order), alpha(order + 1.0)] {
            let t = u.exp();
            let difference = (generator(divergence, t + STEP) - generator(divergence, t - STEP)) / (2.0 * STEP);
            close(slope(divergence, &[u])[0], difference, 1e-6, 1.0, format_args!("{divergence:?} at {u}"));
        }
    }

    /// Order 0 is forward KL, order 1 reverse KL and so is what lies near it; every slope rises through 0 at π = π_ref.
    #[test]
    fn the_family(u in -8.0..8.0_f64, order in -1.0..3.0_f64) {
        close(slope(alpha(0.0), &[u])[0], slope(FDivergence::ForwardKl, &[u])[0], 1e-13, 1.0, "order 0");
        prop_assert_eq!(slope(alpha(1.0), &[u])[0], u);
        close(slope(alpha(1.0 + 1e-5), &[u])[0], u, 1e-3, 1.0, "order → 1");
        for divergence in [FDivergence::ReverseKl, FDivergence::ForwardKl, FDivergence::JensenShannon, alpha(order)] {
            let [zero, here, there] = slope(divergence, &[0.0, u, u + 0.5])[..] else { panic!("three") };
            prop_assert!(zero.abs() < 1e-15 && here < there, "{:?}: {} {} {}", divergence, zero, here, there);
        }
        prop_assert!(slope(FDivergence::JensenShannon, &[u])[0] <= std::f64::consts::LN_2);
    }

    /// ℓ(f'(ρ_w) − f'(ρ_l)) by hand, with and without the division by lengths, which comes after f'.
    #[test]
    fn a_loss_of_scores(seed in any::<u64>(), order in -0.5..0.5_f64) {
        let columns = Columns::random(4, 1, seed);
        let f = |u: f64| ((order - 1.0) * u).exp_m1() / (order - 1.0);
        let ratio = |i: usize| [columns.chosen[i] - columns.ref_chosen[i], columns.rejected[i] - columns.ref_rejected[i]];
        let tokens = |i: usize| columns.lengths.each_ref().map(|l| l[i] as f64);
        let loss = Dpo::new(BETA).expect("valid").under(alpha(order));
        let of = |scores: fn([f64; 2], [f64; 2]) -> f64| (0..4)
            .map(|i| oracle::dpo(BETA * scores(ratio(i).map(f), tokens(i)), 0.0))
            .collect::<Vec<_>>();
        let sums = of(|s, _| s[0] - s[1]);
        all_close(&numbers(&loss.per_pair(&columns.batch()).expect("reads no length")), &sums, 1e-9, "sums");
        let means = of(|s, n| s[0] / n[0] - s[1] / n[1]);
        let per_token = loss.per_token();
        all_close(&numbers(&per_token.per_pair(&columns.batch()).expect("has lengths")), &means, 1e-9, "means");
        prop_assert_eq!(Dpo::new(BETA).expect("valid").per_token().under(alpha(order)), per_token);
    }
}

/// The same as the transform of the batch, and as the loss itself under reverse KL.
#[test]
fn reverse_kl_and_means() -> Result<()> {
    let columns = Columns::random(5, 1, 1);
    let lengths =
        ResponseLengths::new(Tensor::from_slice(&columns.lengths[0]), Tensor::from_slice(&columns.lengths[1]))?;
    let averaged = columns.batch().map_logps(|logps| logps.per_token(&lengths))?;
    let batch = columns.batch();
    let same = |found: &dyn PreferenceLoss, expected: Tensor| -> Result<()> {
        all_close(&numbers(&found.per_pair(&batch)?), &numbers(&expected), 1e-13, format_args!("{found:?}"));
        Ok(())
    };
    same(&Ipo::new(0.3)?.under(FDivergence::ReverseKl), Ipo::new(0.3)?.per_pair(&batch)?)?;
    same(&Ipo::new(0.3)?.per_token(), Ipo::new(0.3)?.per_pair(&averaged)?)?;
    same(&Hinge::new(0.3)?.per_token(), Hinge::new(0.3)?.per_pair(&averaged)?)?;
    same(&ExoPair::new(0.3, 0.1)?.per_token(), ExoPair::new(0.3, 0.1)?.per_pair(&averaged)?)
}

/// f' after the mean is another loss than the mean of f', and is the one of the transformed batch.
#[test]
fn the_order_of_mean_and_slope_matters() -> Result<()> {
    let columns = Columns { lengths: [vec![2; 3], vec![8; 3]], ..Columns::random(3, 1, 2) };
    let lengths =
        ResponseLengths::new(Tensor::from_slice(&columns.lengths[0]), Tensor::from_slice(&columns.lengths[1]))?;
    let loss = Dpo::new(BETA)?.under(FDivergence::ForwardKl);
    let after = numbers(&loss.per_token().per_pair(&columns.batch())?);
    let before = numbers(&loss.per_pair(&columns.batch().map_logps(|logps| logps.per_token(&lengths))?)?);
    assert!(after.iter().zip(&before).any(|(a, b)| (a - b).abs() > 1e-2), "{after:?} {before:?}");
    Ok(())
}

/// A divergence whose slope is bounded on one side holds a far response no longer; forward KL pulls the harder the further it fell.
#[test]
fn what_the_choice_does() -> Result<()> {
    let gained = log_ratios(&[20.0], &[0.0]);
    let slope_of = |divergence| -> Result<f64> { Ok(slopes(&Dpo::new(BETA)?.under(divergence), &gained)?.1[0][0]) };
    let [reverse, js, forward] =
        [FDivergence::ReverseKl, FDivergence::JensenShannon, FDivergence::ForwardKl].map(slope_of);
    assert!(reverse? < -1e-5 && js?.abs() < 1e-8 && forward?.abs() < 1e-8);
    let lost = log_ratios(&[-5.0], &[0.0]);
    let pull = slopes(&Dpo::new(BETA)?.under(FDivergence::ForwardKl), &lost)?.1[0][0];
    close(pull, -BETA * 5.0_f64.exp(), 1e-9, 0.0, "e⁵ times DPO's");
    Ok(())
}

/// The exponent (α−1)u is held at 80, where f32 still has its exponential; forward KL as written is not.
#[test]
fn clamping() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let log_ratio = Tensor::from_slice(&[-81.0, -1e4, -80.0]).to_kind(kind).set_requires_grad(true);
        let slope = alpha(0.0).slope(&log_ratio);
        slope.sum(kind).backward();
        let bound = -80.0_f64.exp();
        for (i, found) in numbers(&slope).into_iter().enumerate() {
            close(found, bound, 1e-6, 0.0, format_args!("{kind:?}[{i}]"));
        }
        assert_eq!(numbers(&log_ratio.grad())[..2], [0.0, 0.0], "{kind:?}");
    }
    assert_eq!(slope(FDivergence::ForwardKl, &[-1e4]), [f64::NEG_INFINITY]);
    Ok(())
}

#[test]
fn configuration_and_refusals() -> Result<()> {
    let loss = Dpo::new(0.5)?.under(alpha(0.5)).per_token();
    let json = r#"{"loss":{"beta":0.5,"flip_rate":0.0},"divergence":{"alpha_divergence":{"order":0.5}},"per":"token"}"#;
    assert_eq!(serde_json::to_string(&loss).expect("plain data"), json);
    assert_eq!(serde_json::from_str::<OfScores<Dpo>>(json).expect("its own text"), loss);
    let short = r#"{"loss":{"beta":0.5},"divergence":"js_divergence"}"#;
    let read: OfScores<Dpo> = serde_json::from_str(short).expect("defaults are left out");
    assert_eq!(read, Dpo::new(0.5)?.under(FDivergence::JensenShannon));
    refused(FDivergence::alpha(f64::NAN), "order must be finite, got NaN");
    let bare = Columns::random(2, 1, 3).batch();
    let bare = prefopt::PreferenceBatch::new(prefopt::PairLogps::new(
        bare.logps().chosen().shallow_clone(),
        bare.logps().rejected().shallow_clone(),
        bare.logps().ref_chosen().shallow_clone(),
        bare.logps().ref_rejected().shallow_clone(),
    )?);
    refused(
        Ipo::new(0.1)?.per_token().per_pair(&bare),
        "per_token needs the column `lengths`, which this batch lacks: add it with PreferenceBatch::with_lengths",
    );
    Ok(())
}
