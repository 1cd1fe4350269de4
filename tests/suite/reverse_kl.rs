//! The reverse divergence: the exact sum, and an estimator whose gradient is not that of its value.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PreferenceLoss, ResponseTable, Result,
    loss::ReverseKl,
    tch::{Kind, Tensor},
};

use crate::{all_close, close, identities::config, number, numbers, oracle, spo::without_reference};

/// k = log π − log π_ref.
fn log_ratio(policy: &[f64], reference: &[f64]) -> Vec<f64> {
    policy.iter().zip(reference).map(|(p, r)| p - r).collect()
}

/// KL(π ‖ π_ref), and its gradient at the logits: π_i (k_i − KL).
fn exact(policy: &[f64], reference: &[f64]) -> (f64, Vec<f64>) {
    let divergence = oracle::kl(policy, reference);
    let slope = |(p, k): (&f64, f64)| p.exp() * (k - divergence);
    (divergence, policy.iter().zip(log_ratio(policy, reference)).map(slope).collect())
}

/// All tuples of n numbers below `responses`.
fn tuples(responses: i64, n: usize) -> Vec<Vec<i64>> {
    (0..n).fold(vec![Vec::new()], |tuples: Vec<Vec<i64>>, _| {
        tuples.iter().flat_map(|t| (0..responses).map(move |y| [t.as_slice(), [y].as_slice()].concat())).collect()
    })
}

/// One estimate a row.
struct Measured {
    values: Vec<f64>,
    /// At the logits of each row.
    gradients: Vec<Vec<f64>>,
}

impl Measured {
    /// Under draws of this distribution, of which the rows are all there can be.
    fn expectation(&self, tuples: &[Vec<i64>], of: &[f64]) -> (f64, Vec<f64>) {
        let share = |t: &Vec<i64>| t.iter().map(|&y| of[y as usize]).sum::<f64>().exp();
        let shares: Vec<f64> = tuples.iter().map(share).collect();
        let value = shares.iter().zip(&self.values).map(|(s, v)| s * v).sum::<f64>();
        (value, oracle::mix(&self.gradients, &shares))
    }

    /// Mean of the gradient, its standard error, and the variance of one estimate summed over the logits.
    fn moments(&self) -> (Vec<f64>, Vec<f64>, f64) {
        let n = self.gradients.len() as f64;
        let mean = oracle::mix(&self.gradients, &vec![1.0 / n; self.gradients.len()]);
        let square = |j: usize| self.gradients.iter().map(|g| (g[j] - mean[j]).powi(2)).sum::<f64>() / (n - 1.0);
        let variances: Vec<f64> = (0..mean.len()).map(square).collect();
        let errors = variances.iter().map(|v| (v / n).sqrt()).collect();
        (mean, errors, variances.iter().sum())
    }

    /// Means over groups of rows.
    fn grouped(&self, size: usize) -> Self {
        let share = vec![1.0 / size as f64; size];
        Self {
            values: self.values.chunks(size).map(|v| v.iter().sum::<f64>() / size as f64).collect(),
            gradients: self.gradients.chunks(size).map(|g| oracle::mix(g, &share)).collect(),
        }
    }
}

/// The policy of these logits, with a row of its own for each tuple of drawn responses.
fn measure(kl: ReverseKl, logits: &[f64], reference: &[f64], drawn: &[Vec<i64>]) -> Result<Measured> {
    let rows = drawn.len() as i64;
    let leaf = Tensor::from_slice(logits).repeat([rows, 1]).set_requires_grad(true);
    let (policy, reference) = (leaf.log_softmax(-1, Kind::Double), Tensor::from_slice(reference).repeat([rows, 1]));
    let drawn = Tensor::from_slice(&drawn.concat()).view([rows, -1]);
    let of = |table: &Tensor| table.gather(1, &drawn, false);
    let batch = without_reference(&policy.select(1, 0), &policy.select(1, 1))
        .with_policy_samples(ResponseTable::new(of(&policy), of(&reference))?)?
        .with_all_responses(ResponseTable::new(policy.shallow_clone(), reference.shallow_clone())?)?;
    let values = kl.per_pair(&batch)?;
    values.sum(Kind::Double).backward();
    let gradients = numbers(&leaf.grad()).chunks(logits.len()).map(<[f64]>::to_vec).collect();
    Ok(Measured { values: numbers(&values), gradients })
}

proptest! {
    #![proptest_config(config())]

    /// Every tuple of n responses of the policy, weighted by its probability: the expectation of the estimator without sampling.
    #[test]
    fn the_score_function_is_unbiased(logits in prop::collection::vec(-2.0..2.0, 4), reference in prop::collection::vec(-2.0..2.0, 4)) {
        let (policy, reference) = (oracle::log_softmax(&logits), oracle::log_softmax(&reference));
        let (divergence, gradient) = exact(&policy, &reference);
        for n in 1..=3 {
            let tuples = tuples(4, n);
            let found = measure(ReverseKl::PolicySamples, &logits, &reference, &tuples)?;
            let (value, slope) = found.expectation(&tuples, &policy);
            close(value, divergence, 1e-12, 1.0, format_args!("value from {n}"));
            all_close(&slope, &gradient, 1e-12, format_args!("gradient from {n}"));
        }
        let found = measure(ReverseKl::Exact, &logits, &reference, &tuples(4, 1))?;
        close(found.values[0], divergence, 1e-12, 1.0, "exact");
        all_close(&found.gradients[0], &gradient, 1e-12, "gradient of the exact sum");
    }

    /// Samples of an older policy: KL(old ‖ ref) − KL(old ‖ π) in value, Cov_old(k, ∇log π) = ½∇Var_old(k) in gradient.
    #[test]
    fn kept_samples_are_of_the_variance_of_the_log_ratio(
        logits in prop::collection::vec(-2.0..2.0, 4),
        reference in prop::collection::vec(-2.0..2.0, 4),
        old in prop::collection::vec(-2.0..2.0, 4),
    ) {
        let [policy, reference, old] = [&logits, &reference, &old].map(|x| oracle::log_softmax(x));
        let (k, share) = (log_ratio(&policy, &reference), |i: usize| old[i].exp());
        let level: f64 = (0..4).map(|i| share(i) * k[i]).sum();
        let expected: [Vec<f64>; 2] = [
            (0..4).map(|i| share(i) * k[i] - policy[i].exp() * level).collect(),
            (0..4).map(|i| share(i) * (k[i] - level)).collect(),
        ];
        for (n, expected) in [(1, &expected[0]), (2, &expected[1]), (3, &expected[1])] {
            let tuples = tuples(4, n);
            let found = measure(ReverseKl::PolicySamples, &logits, &reference, &tuples)?;
            let (value, slope) = found.expectation(&tuples, &old);
            close(value, oracle::kl(&old, &reference) - oracle::kl(&old, &policy), 1e-12, 1.0, format_args!("value from {n}"));
            all_close(&slope, expected, 1e-12, format_args!("gradient from {n}"));
        }
    }

    #[test]
    fn at_the_reference_value_and_gradient_are_zero(logits in prop::collection::vec(-2.0..2.0, 4)) {
        let reference = oracle::log_softmax(&logits);
        for kl in [ReverseKl::Exact, ReverseKl::PolicySamples] {
            for n in 1..=2 {
                let found = measure(kl, &logits, &reference, &tuples(4, n))?;
                all_close(&found.values, &vec![0.0; found.values.len()], 1e-14, format_args!("{kl:?}"));
                all_close(&found.gradients.concat(), &vec![0.0; found.gradients.len() * 4], 1e-14, format_args!("{kl:?}"));
            }
        }
    }
}

/// The same by sampling, within five standard errors; and what the baseline is for: here the policy has left what the reference likes,
/// so that its own responses share a level of k.
#[test]
fn sampled_gradients_average_to_the_exact_one_and_the_baseline_steadies_them() -> Result<()> {
    const ROWS: usize = 8000;
    const SAMPLES: usize = 4;
    let logits = [1.0, 0.8, 0.6, -3.0];
    let (policy, reference) = (oracle::log_softmax(&logits), oracle::log_softmax(&[-0.5, 0.0, 0.2, 2.5]));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut draw = || {
        let u = rng.random::<f64>();
        let reached = (0..3_usize).filter(|&i| policy[..=i].iter().map(|p| p.exp()).sum::<f64>() <= u);
        reached.count() as i64
    };
    let drawn: Vec<Vec<i64>> = (0..ROWS).map(|_| (0..SAMPLES).map(|_| draw()).collect()).collect();
    let alone: Vec<Vec<i64>> = drawn.concat().iter().map(|&y| vec![y]).collect();
    let with = measure(ReverseKl::PolicySamples, &logits, &reference, &drawn)?;
    let without = measure(ReverseKl::PolicySamples, &logits, &reference, &alone)?.grouped(SAMPLES);

    let (divergence, gradient) = exact(&policy, &reference);
    for (name, measured) in [("with the baseline", &with), ("without", &without)] {
        let (mean, errors, _) = measured.moments();
        for ((found, expected), error) in mean.iter().zip(&gradient).zip(&errors) {
            let off = (found - expected).abs();
            assert!(off < 5.0 * error, "{name}: {found} for {expected}, standard error {error}");
        }
        assert!(gradient[0].abs() > 20.0 * errors[0], "{name}: the bound says nothing");
        all_close(&measured.values, &with.values, 1e-12, "the baseline leaves the value");
    }
    close(with.values.iter().sum::<f64>() / ROWS as f64, divergence, 0.05, 0.0, "mean value");
    let [steady, loose] = [with.moments().2, without.moments().2];
    assert!(steady < 0.5 * loose, "variance {steady} with the baseline, {loose} without");
    Ok(())
}

/// (k_i − k̄)/(n−1), the gradient of half the samples' variance; k itself for one sample.
#[test]
fn the_gradient_at_the_samples_is_that_of_half_their_variance() -> Result<()> {
    let (policy, reference) = ([-1.0, -2.5, -0.5], [-1.5, -1.0, -2.0]);
    let slope = |n: usize| -> Result<_> {
        let leaf = Tensor::from_slice(&policy[..n]).view([1, -1]).set_requires_grad(true);
        let table = ResponseTable::new(leaf.shallow_clone(), Tensor::from_slice(&reference[..n]).view([1, -1]))?;
        let one = Tensor::from_slice(&[-1.0]);
        let batch = without_reference(&one, &one).with_policy_samples(table)?;
        let value = ReverseKl::PolicySamples.mean(&batch)?;
        value.backward();
        Ok((number(&value), numbers(&leaf.grad())))
    };
    // k = 0.5, −1.5, 1.5.
    for (n, value, gradient) in
        [(1, 0.5, vec![0.5]), (2, -0.5, vec![1.0, -1.0]), (3, 1.0 / 6.0, vec![1.0 / 6.0, -5.0 / 6.0, 2.0 / 3.0])]
    {
        let found = slope(n)?;
        close(found.0, value, 1e-14, 1.0, format_args!("value from {n}"));
        all_close(&found.1, &gradient, 1e-14, format_args!("gradient from {n}"));
    }
    Ok(())
}

/// A pair's divergence is of its own row: in a batch and alone it is the same.
#[test]
fn rows_do_not_see_each_other() -> Result<()> {
    let (logits, reference) = ([0.3, -0.7, 1.1], oracle::log_softmax(&[0.0, 0.5, -1.0]));
    let drawn = [vec![0, 0, 1], vec![2, 1, 2], vec![1, 1, 1]];
    for kl in [ReverseKl::Exact, ReverseKl::PolicySamples] {
        assert!(!kl.is_coupled());
        let whole = measure(kl, &logits, &reference, &drawn)?;
        for (i, row) in drawn.iter().enumerate() {
            let alone = measure(kl, &logits, &reference, std::slice::from_ref(row))?;
            close(whole.values[i], alone.values[0], 1e-14, 1.0, format_args!("{kl:?}, row {i}"));
            all_close(&whole.gradients[i], &alone.gradients[0], 1e-14, format_args!("{kl:?}, row {i}"));
        }
    }
    Ok(())
}

/// 0·(−∞) is 0 in value and gradient: the policy without its impossible response is the same policy.
#[test]
fn a_response_of_no_mass_counts_nothing() -> Result<()> {
    let reference = oracle::log_softmax(&[0.2, -0.4, 0.9]);
    let draws = [vec![0]];
    for nothing in [f64::NEG_INFINITY, -1e4] {
        let found = measure(ReverseKl::Exact, &[0.5, nothing, -0.3], &reference, &draws)?;
        let smaller = measure(ReverseKl::Exact, &[0.5, -0.3], &[reference[0], reference[2]], &draws)?;
        close(found.values[0], smaller.values[0], 1e-14, 1.0, format_args!("value at {nothing}"));
        let [a, b] = [smaller.gradients[0][0], smaller.gradients[0][1]];
        all_close(&found.gradients[0], &[a, 0.0, b], 1e-14, format_args!("gradient at {nothing}"));
    }
    let both = [reference[0], f64::NEG_INFINITY, reference[2]];
    let found = measure(ReverseKl::Exact, &[0.5, f64::NEG_INFINITY, -0.3], &both, &draws)?;
    assert!(found.values[0].is_finite() && found.gradients[0].iter().all(|g| g.is_finite()));
    let beyond = measure(ReverseKl::Exact, &[0.5, 0.0, -0.3], &both, &draws)?;
    assert_eq!(beyond.values[0], f64::INFINITY);
    Ok(())
}
