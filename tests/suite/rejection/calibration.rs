//! Temperatures against closed forms and against their neighbours; the risks that they give predictions.

use ndarray::{Array1, Array2, array};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    rejection::{Calibration, Risk},
};

use crate::{all_close, close, oracle};

#[test]
fn temperatures_of_closed_form() -> Result<()> {
    // Nine of ten margins of 2 are right: σ(2/T) = .9.
    let mut margins = vec![2.0; 9];
    margins.push(-2.0);
    let margins = Array1::from_vec(margins);
    let found = Calibration::of_margins(margins.view())?.temperature();
    close(found, 2.0 / 9.0_f64.ln(), 1e-6, 0.0, "two responses");
    // Four classes, logit 3 for the first, which is right in seven of ten: e^{3/T} = 3 · .7/.3.
    let logits = Array2::from_shape_fn((10, 4), |(_, class)| if class == 0 { 3.0 } else { 0.0 });
    let labels = [0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
    let found = Calibration::fit(logits.view(), &labels)?.temperature();
    close(found, 3.0 / 7.0_f64.ln(), 1e-6, 0.0, "four classes");
    let scaled = Calibration::fit(logits.mapv(|z| 5.0 * z + 1.0).view(), &labels)?.temperature();
    close(scaled, 5.0 * found, 1e-6, 0.0, "logits in other units");
    // Two classes are a margin.
    let pairs = Array2::from_shape_fn((10, 2), |(row, class)| if class == 0 { margins[row] } else { 0.0 });
    close(Calibration::fit(pairs.view(), &[0; 10])?.temperature(), 2.0 / 9.0_f64.ln(), 1e-6, 0.0, "two classes");
    // All right, and worse than chance: the ends of the range.
    assert!(Calibration::of_margins(array![1.0, 2.0].view())?.temperature() < 0.1);
    assert!(Calibration::of_margins(array![-1.0, -2.0].view())?.temperature() > 900.0);
    Ok(())
}

/// On random logits no other temperature has a smaller log loss.
#[test]
fn temperatures_are_minimisers() -> Result<()> {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let logits = Array2::from_shape_fn((30, 5), |_| rng.random_range(-8.0..8.0));
        let labels: Vec<usize> = (0..30).map(|_| rng.random_range(0..5)).collect();
        let labels: Vec<usize> =
            labels.iter().enumerate().map(|(i, l)| if i % 2 == 0 { top(&logits, i) } else { *l }).collect();
        let loss = |t: f64| {
            let row =
                |(i, label): (usize, &usize)| -oracle::log_softmax(&logits.row(i).mapv(|z| z / t).to_vec())[*label];
            oracle::mean(labels.iter().enumerate().map(row))
        };
        let best = Calibration::fit(logits.view(), &labels)?.temperature();
        for factor in [0.2, 0.9, 0.999, 1.001, 1.1, 5.0] {
            assert!(loss(best) <= loss(best * factor) + 1e-14, "seed {seed}, T {best}, times {factor}");
        }
    }
    Ok(())
}

fn top(logits: &Array2<f64>, row: usize) -> usize {
    (0..logits.ncols()).max_by(|&a, &b| logits[[row, a]].total_cmp(&logits[[row, b]])).expect("a class")
}

#[test]
fn risks_of_predictions() -> Result<()> {
    let logits = array![[1.0, -0.5, 0.2], [0.0, 0.0, 0.0], [-3.0, 4.0, 4.0]];
    let calibration = Calibration::new(2.0)?;
    let log_p: Vec<Vec<f64>> =
        logits.rows().into_iter().map(|row| oracle::log_softmax(&row.mapv(|z| z / 2.0).to_vec())).collect();
    let entropy: Vec<f64> = log_p.iter().map(|row| -row.iter().map(|l| l.exp() * l).sum::<f64>()).collect();
    let error: Vec<f64> =
        log_p.iter().map(|row| 1.0 - row.iter().copied().fold(f64::NEG_INFINITY, f64::max).exp()).collect();
    all_close(&calibration.risks(logits.view(), Risk::Entropy)?.to_vec(), &entropy, 1e-14, "entropy");
    all_close(&calibration.risks(logits.view(), Risk::ZeroOne)?.to_vec(), &error, 1e-14, "1 − max p");
    close(entropy[1], 3.0_f64.ln(), 1e-14, 0.0, "uniform");
    // Rows of which the model is surer than f64 can say by 1 − max p are still told apart, and masked classes give no NaN.
    let sure = array![[0.0, 50.0], [60.0, 0.0], [f64::MIN, 0.0], [0.0, 0.0]];
    let error = Calibration::new(0.5)?.risks(sure.view(), Risk::ZeroOne)?.to_vec();
    close(error[0], (-100.0_f64).exp(), 1e-13, 0.0, "sure");
    assert!(error[1] < error[0] && error[2] == 0.0 && error[3] == 0.5, "{error:?}");
    assert!(Calibration::new(0.5)?.risks(sure.view(), Risk::Entropy)?.iter().all(|r| r.is_finite() && *r >= 0.0));
    Ok(())
}
