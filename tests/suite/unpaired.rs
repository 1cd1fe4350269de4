//! KTO and BCO on single responses. Golden values of KTO in `trl`.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    loss::{Bco, Kto, UnpairedLoss},
    pairs::UnpairedBatch,
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent},
};

use crate::{all_close, close, contrastive::refused, identities::config, number, numbers, oracle};

/// Log-ratios and labels, over references of any size.
struct Case {
    ratios: Vec<f64>,
    reference: Vec<f64>,
    desirable: Vec<bool>,
}

impl Case {
    fn random(n: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |low: f64, high: f64| (0..n).map(|_| rng.random_range(low..high)).collect::<Vec<f64>>();
        let (ratios, reference) = (draw(-5.0, 5.0), draw(-40.0, -10.0));
        let desirable = draw(0.0, 1.0).iter().map(|x| *x < 0.5).collect();
        Self { ratios, reference, desirable }
    }

    fn build(&self) -> Result<(UnpairedBatch, Tensor, Tensor)> {
        let logps: Vec<f64> = self.ratios.iter().zip(&self.reference).map(|(u, r)| u + r).collect();
        let leaf = |x: &[f64]| Tensor::from_slice(x).set_requires_grad(true);
        let (logps, reference) = (leaf(&logps), leaf(&self.reference));
        let desirable = Tensor::from_slice(&self.desirable);
        let batch = UnpairedBatch::new(logps.shallow_clone(), reference.shallow_clone(), desirable)?;
        Ok((batch, logps, reference))
    }
}

proptest! {
    #![proptest_config(config())]

    /// Value and slope by hand: a response is worth λσ(±β(u − z)) less than λ.
    #[test]
    fn kto(seed in any::<u64>(), beta in 0.05..2.0_f64, baseline in 0.0..3.0_f64, weights in (0.0..2.0_f64, 0.0..2.0_f64)) {
        let case = Case::random(6, seed);
        let (batch, logps, reference) = case.build().expect("fits");
        let batch = batch.with_baseline(baseline).expect("valid");
        let loss = Kto::new(beta).expect("valid").with_weights(weights.0, weights.1).expect("valid");
        let losses = loss.per_response(&batch).expect("has a baseline");
        losses.sum(Kind::Double).backward();
        let side = |i: usize| if case.desirable[i] { (weights.0, 1.0) } else { (weights.1, -1.0) };
        let gain = |i: usize| beta * (case.ratios[i] - baseline);
        let expected: Vec<f64> = (0..6).map(|i| side(i).0 * (1.0 - oracle::sigmoid(side(i).1 * gain(i)))).collect();
        all_close(&numbers(&losses), &expected, 1e-12, "loss");
        let steep = |i: usize| oracle::sigmoid(gain(i)) * oracle::sigmoid(-gain(i));
        let slopes: Vec<f64> = (0..6).map(|i| -side(i).0 * side(i).1 * beta * steep(i)).collect();
        all_close(&numbers(&logps.grad()), &slopes, 1e-12, "slope");
        prop_assert!(!reference.grad().defined());
        close(number(&loss.mean(&batch).expect("has a baseline")), expected.iter().sum::<f64>() / 6.0, 1e-12, 1.0, "mean");
    }

    #[test]
    fn bco(seed in any::<u64>(), beta in 0.05..2.0_f64, shift in -2.0..2.0_f64) {
        let case = Case::random(6, seed);
        let (batch, logps, _) = case.build().expect("fits");
        let losses = Bco::new(beta).expect("valid").with_shift(shift).expect("valid").per_response(&batch).expect("reads no baseline");
        losses.sum(Kind::Double).backward();
        let x = |i: usize| if case.desirable[i] { beta * case.ratios[i] - shift } else { shift - beta * case.ratios[i] };
        all_close(&numbers(&losses), &(0..6).map(|i| oracle::dpo(x(i), 0.0)).collect::<Vec<_>>(), 1e-12, "loss");
        let sign = |i: usize| if case.desirable[i] { -1.0 } else { 1.0 };
        let slopes: Vec<f64> = (0..6).map(|i| sign(i) * beta * oracle::sigmoid(-x(i))).collect();
        all_close(&numbers(&logps.grad()), &slopes, 1e-12, "slope");
    }
}

/// max(0, mean log-ratio) of the mismatched responses, without a gradient to them.
#[test]
fn the_baseline_is_a_divergence() -> Result<()> {
    let case = Case::random(4, 1);
    for (policy, expected) in [([-10.0, -12.0, -8.0], 1.0), ([-12.0, -15.0, -9.0], 0.0)] {
        let (batch, logps, _) = case.build()?;
        let policy = Tensor::from_slice(&policy).set_requires_grad(true);
        let batch = batch.with_mismatched(&policy, &Tensor::from_slice(&[-11.0; 3]))?;
        assert_eq!(numbers(batch.require_baseline("Kto")?), [expected]);
        Kto::new(0.1)?.mean(&batch)?.backward();
        assert!(logps.grad().defined() && !policy.grad().defined());
    }
    Ok(())
}

/// A step raises what is desirable and lowers the rest, in a batch that has only one of the two as well.
#[test]
fn steps() -> Result<()> {
    for desirable in [[true, false], [true, true], [false, false]] {
        let logps = Tensor::from_slice(&[-5.0, -5.0]).set_requires_grad(true);
        let optimizer = AdamW::new(vec![logps.shallow_clone()], AdamWConfig::default())?;
        let batch = UnpairedBatch::new(
            logps.shallow_clone(),
            Tensor::from_slice(&[-5.0, -5.0]),
            Tensor::from_slice(&desirable),
        )?;
        Descent::new(optimizer, 0.1)?.descend(&Kto::new(0.1)?.mean(&batch.with_baseline(0.5)?)?)?;
        for (found, up) in numbers(&logps).into_iter().zip(desirable) {
            close(found, if up { -4.9 } else { -5.1 }, 1e-6, 0.0, format_args!("{desirable:?}"));
        }
    }
    Ok(())
}

#[test]
fn refusals() -> Result<()> {
    let t = |n: i64| Tensor::zeros([n], (Kind::Double, Device::Cpu));
    let labels = |n: i64| Tensor::zeros([n], (Kind::Bool, Device::Cpu));
    let batch = || UnpairedBatch::new(t(3), t(3), labels(3)).expect("fits");
    refused(
        Kto::new(0.1)?.mean(&batch()),
        "Kto needs the column `baseline`, which this batch lacks: add it with UnpairedBatch::with_mismatched or with_baseline",
    );
    refused(UnpairedBatch::new(t(3).unsqueeze(1), t(3), labels(3)), "logps must have shape [batch], got [3, 1]");
    refused(UnpairedBatch::new(t(0), t(0), labels(0)), "logps is empty: shape [batch] needs at least one element");
    refused(
        UnpairedBatch::new(t(3), t(2), labels(3)),
        "ref_logps must have shape [batch] with batch = 3, got batch = 2",
    );
    refused(
        UnpairedBatch::new(t(3), t(3), labels(4)),
        "desirable must have shape [batch] with batch = 3, got batch = 4",
    );
    refused(UnpairedBatch::new(t(3), t(3), t(3)), "desirable must be Bool, got Double");
    refused(
        batch().with_mismatched(&t(4), &t(5)),
        "mismatched_ref_logps must have shape [mismatched] with mismatched = 4, got mismatched = 5",
    );
    refused(
        batch().with_mismatched(&t(4).to_kind(Kind::Float), &t(4)),
        "mismatched_logps must be Double like the tensors it goes with, got Float",
    );
    refused(batch().with_baseline(-0.1), "baseline must be at least 0 and finite, got -0.1");
    refused(Kto::new(0.0), "beta must be positive and finite, got 0");
    refused(Kto::new(0.1)?.with_weights(-1.0, 1.0), "desirable_weight must be at least 0 and finite, got -1");
    refused(Kto::new(0.1)?.with_weights(1.0, f64::NAN), "undesirable_weight must be at least 0 and finite, got NaN");
    refused(Bco::new(0.1)?.with_shift(f64::INFINITY), "shift must be finite, got inf");
    assert_eq!(batch().len(), 3);
    Ok(())
}

#[test]
fn configuration() -> Result<()> {
    let kto: Kto = serde_json::from_str(r#"{"beta":0.1}"#).expect("defaults are left out");
    assert_eq!(kto, Kto::new(0.1)?);
    let json = r#"{"beta":0.1,"desirable_weight":1.5,"undesirable_weight":1.0}"#;
    assert_eq!(serde_json::to_string(&Kto::new(0.1)?.with_weights(1.5, 1.0)?).expect("plain data"), json);
    assert_eq!(serde_json::to_string(&Bco::new(0.1)?).expect("plain data"), r#"{"beta":0.1,"shift":0.0}"#);
    Ok(())
}
