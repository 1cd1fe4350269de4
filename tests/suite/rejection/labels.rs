//! Abstention on preference labels: their risks, and what a policy loss sees of their pairs.

use ndarray::{Array1, array};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result, RewardScores,
    loss::Dpo,
    rejection::{Abstention, Calibration, DensityRatio, LabelRisk, mean_margins, weight_column},
    tch::{Kind, Tensor},
};

use crate::{all_close, close, number, numbers, oracle};

#[test]
fn risks_of_labels() -> Result<()> {
    let margins = array![2.0, -2.0, 0.0, 700.0, -700.0];
    let calibration = Calibration::new(2.0)?;
    let given = calibration.label_risks(margins.view(), LabelRisk::GivenLabel)?.to_vec();
    let expected: Vec<f64> = margins.iter().map(|m| -oracle::log_sigmoid(m / 2.0)).collect();
    all_close(&given, &expected, 1e-14, "given label");
    let entropy = calibration.label_risks(margins.view(), LabelRisk::Entropy)?.to_vec();
    let p = oracle::sigmoid(1.0);
    let of_p = -p * p.ln() - (1.0 - p) * (1.0 - p).ln();
    all_close(&entropy, &[of_p, of_p, 2.0_f64.ln(), 0.0, 0.0], 1e-13, "entropy");
    // KL, λ = 1: the weight is σ(Δr/T) up to scale; at λ = ½ its square.
    for (lambda, power) in [(1.0, 1.0), (0.5, 2.0)] {
        let risks = Array1::from_vec(given[..3].to_vec());
        let weights = Abstention::down_weight(DensityRatio::kl(lambda)?).weights(risks.view())?.to_vec();
        let p: Vec<f64> = margins.iter().take(3).map(|m| oracle::sigmoid(m / 2.0).powf(power)).collect();
        let mean = oracle::mean(p.iter().copied());
        all_close(&weights, &p.iter().map(|p| p / mean).collect::<Vec<_>>(), 1e-13, "down-weighted");
    }
    Ok(())
}

/// A quarter of the labels flipped, and a judge that is somewhat right: the loss of the given label finds flips, the
/// entropy does not.
#[test]
fn the_given_label_finds_flips() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut margins, mut right) = (Vec::new(), Vec::new());
    for _ in 0..4000 {
        let (gold, judged): (f64, f64) = (rng.random_range(-3.0..3.0), rng.random_range(-1.0..1.0));
        let label = if rng.random_range(0.0..1.0) < 0.25 { -gold.signum() } else { gold.signum() };
        margins.push(label * (gold + judged));
        right.push(label == gold.signum());
    }
    let margins = Array1::from_vec(margins);
    let calibration = Calibration::of_margins(margins.view())?;
    let share = |risk| -> Result<f64> {
        let kept = Abstention::keep(0.8)?.kept(calibration.label_risks(margins.view(), risk)?.view())?;
        assert_eq!(kept.len(), 3200);
        Ok(kept.iter().filter(|pair| right[**pair]).count() as f64 / kept.len() as f64)
    };
    let all = right.iter().filter(|r| **r).count() as f64 / right.len() as f64;
    let (given, entropy) = (share(LabelRisk::GivenLabel)?, share(LabelRisk::Entropy)?);
    assert!(given > all + 0.1 && (entropy - all).abs() < 0.02, "all {all}, given {given}, entropy {entropy}");
    Ok(())
}

/// Four pairs whose policy carries a gradient.
pub fn pairs(rows: &[usize]) -> Result<(Tensor, PreferenceBatch)> {
    let pick = |x: [f64; 4]| Tensor::from_slice(&rows.iter().map(|&row| x[row]).collect::<Vec<_>>());
    let chosen = pick([-3.0, -1.0, -2.5, -4.0]).set_requires_grad(true);
    let (rejected, reference) = (pick([-2.0, -2.0, -3.0, -1.0]), pick([-2.5, -2.5, -2.5, -2.5]));
    let logps = PairLogps::new(chosen.shallow_clone(), rejected, reference.shallow_clone(), reference)?;
    Ok((chosen, PreferenceBatch::new(logps)))
}

/// A pair of weight 0 is as good as dropped, in value and gradient.
#[test]
fn a_weight_of_zero_drops_a_pair() -> Result<()> {
    let risks = array![0.2, 3.0, 0.1, 0.4];
    let (abstention, dpo) = (Abstention::keep(0.75)?, Dpo::new(0.5)?);
    assert_eq!(abstention.weights(risks.view())?.to_vec(), [1.0, 0.0, 1.0, 1.0]);
    let kept = abstention.kept(risks.view())?;
    assert_eq!(kept, [0, 2, 3]);
    let (all, batch) = pairs(&[0, 1, 2, 3])?;
    let weighted = dpo.mean(&abstention.apply(batch, risks.view())?)?;
    let (few, batch) = pairs(&kept)?;
    let dropped = dpo.mean(&batch)?;
    close(number(&weighted), number(&dropped), 1e-14, 0.0, "loss");
    weighted.backward();
    dropped.backward();
    let (of_all, of_few) = (numbers(&all.grad()), numbers(&few.grad()));
    assert_eq!(of_all[1], 0.0);
    all_close(&[of_all[0], of_all[2], of_all[3]], &of_few, 1e-14, "gradient");
    Ok(())
}

#[test]
fn weights_go_on_top_of_weights() -> Result<()> {
    let (risks, before) = (array![0.2, 3.0, 0.1, 0.4], [1.0, 2.0, 3.0, 4.0]);
    let rule = DensityRatio::alpha(2.0, 1.0)?;
    let expected = rule.fit(risks.view())?.ratios(risks.view());
    let (_, batch) = pairs(&[0, 1, 2, 3])?;
    let batch = Abstention::down_weight(rule).apply(batch.with_weights(Tensor::from_slice(&before))?, risks.view())?;
    let expected: Vec<f64> = expected.iter().zip(before).map(|(r, b)| r * b).collect();
    all_close(&numbers(batch.weights().expect("weights")), &expected, 1e-14, "weights");
    let column = weight_column(risks.view(), &Tensor::from_slice(&[0.0_f32]));
    assert_eq!((column.kind(), column.size()), (Kind::Float, vec![4]));
    Ok(())
}

#[test]
fn a_family_judges_by_its_mean() -> Result<()> {
    let (chosen, rejected) =
        (Tensor::from_slice2(&[[1.0, 2.0], [3.0, -2.0]]), Tensor::from_slice2(&[[0.5, 0.0], [0.5, 1.0]]));
    let margins = mean_margins(&RewardScores::new(chosen.set_requires_grad(true), rejected)?)?;
    all_close(&margins.to_vec(), &[1.5, -0.5], 1e-15, "mean margin");
    Ok(())
}
