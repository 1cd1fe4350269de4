//! Rejection by density ratios: ratios against the paper's formulas and their own optimality, coverage as a count,
//! Chow's rule.

mod calibration;
mod labels;
mod refusals;

use ndarray::{Array1, Array2, array};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    rejection::{Abstention, AccuracyCoverage, Calibration, DensityRatio, Rejector, Risk},
};

use crate::{all_close, close, identities::config, oracle};

/// Every rule at one λ, by its α; 1 stands for KL.
fn rules(lambda: f64) -> Vec<(f64, DensityRatio)> {
    let alphas = [1.05, 1.5, 2.0, 3.0, 4.3, 7.0];
    let kl = (1.0, DensityRatio::kl(lambda).expect("in its domain"));
    let of = |alpha| (alpha, DensityRatio::alpha(alpha, lambda).expect("in its domain"));
    std::iter::once(kl).chain(alphas.map(of)).collect()
}

/// ρ as the paper writes it.
fn ratio(alpha: f64, risk: f64, lambda: f64, normaliser: f64) -> f64 {
    if alpha == 1.0 {
        return (-risk / lambda).exp() / normaliser;
    }
    let base = 0.5 * (alpha - 1.0) * (normaliser - risk / lambda);
    base.max(0.0).powf(2.0 / (alpha - 1.0))
}

/// f of D(Q ‖ P) = E_P f(ρ).
fn divergence(alpha: f64, rho: f64) -> f64 {
    match (alpha == 1.0, rho > 0.0) {
        (true, true) => rho * rho.ln(),
        (true, false) => 0.0,
        (false, _) => 4.0 / (alpha * alpha - 1.0) * (rho.powf(0.5 * (alpha + 1.0)) - 1.0),
    }
}

fn risks() -> impl Strategy<Value = Array1<f64>> {
    prop::collection::vec(0.0..4.0, 2..40).prop_map(Array1::from_vec)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn ratios_are_the_papers_with_mean_one(risks in risks(), lambda in 0.05..5.0) {
        for (alpha, rule) in rules(lambda) {
            let fitted = rule.fit(risks.view())?;
            let found = fitted.ratios(risks.view());
            close(found.mean().expect("rows"), 1.0, 1e-9, 0.0, format_args!("mean ratio, alpha {alpha}"));
            let paper: Vec<f64> = risks.iter().map(|r| ratio(alpha, *r, lambda, fitted.normaliser())).collect();
            all_close(found.as_slice().expect("one run"), &paper, 1e-7, format_args!("ratio, alpha {alpha}"));
        }
    }

    /// No other distribution has a smaller E_Q[L'] + λ D(Q ‖ P): a wrong exponent, factor or normaliser is beaten by
    /// some neighbour.
    #[test]
    fn ratios_solve_their_problem(risks in risks(), lambda in 0.2..3.0, seed in any::<u64>()) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (alpha, rule) in rules(lambda) {
            let objective = |rho: &[f64]| {
                let cost = |(r, l): (&f64, &f64)| r * l + lambda * divergence(alpha, *r);
                oracle::mean(rho.iter().zip(risks.iter()).map(cost))
            };
            let best = rule.fit(risks.view())?.ratios(risks.view()).to_vec();
            for share in [1.0, 0.1, 0.01] {
                let rival: Vec<f64> = (0..risks.len()).map(|_| rng.random_range(0.0..1.0)).collect();
                let mean = oracle::mean(rival.iter().copied());
                let mixed: Vec<f64> = best.iter().zip(&rival).map(|(b, r)| (1.0 - share) * b + share * r / mean).collect();
                prop_assert!(objective(&best) <= objective(&mixed) + 1e-9, "alpha {alpha}, share {share}");
            }
        }
    }

    /// Non-increasing in the risk, of one value for one risk, positive under KL; and unmoved by a common shift or unit
    /// of risks and λ.
    #[test]
    fn ratios_fall_with_the_risk(risks in risks(), lambda in 0.05..5.0, shift in -50.0..50.0, unit in 0.1..10.0) {
        for (alpha, rule) in rules(lambda) {
            let fitted = rule.fit(risks.view())?;
            let mut sorted = risks.to_vec();
            sorted.sort_by(f64::total_cmp);
            let falling: Vec<f64> = sorted.iter().map(|r| fitted.ratio(*r)).collect();
            prop_assert!(falling.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-14)), "alpha {alpha}: {falling:?}");
            prop_assert!(falling.iter().all(|r| r.is_finite() && *r >= 0.0));
            prop_assert!(alpha > 1.0 || falling.iter().all(|r| *r > 0.0));
            let moved = risks.mapv(|r| (r + shift) * unit);
            let other = rules(lambda * unit).into_iter().find(|(a, _)| *a == alpha).expect("the same list").1;
            let again = other.fit(moved.view())?.ratios(moved.view());
            all_close(&again.to_vec(), &fitted.ratios(risks.view()).to_vec(), 1e-5, format_args!("moved, alpha {alpha}"));
        }
    }

    #[test]
    fn alpha_to_one_is_kl(risks in risks(), lambda in 0.2..5.0) {
        let kl = DensityRatio::kl(lambda)?.fit(risks.view())?.ratios(risks.view()).to_vec();
        let distance = |alpha: f64| -> Result<f64> {
            let near = DensityRatio::alpha(alpha, lambda)?.fit(risks.view())?.ratios(risks.view());
            Ok(near.iter().zip(&kl).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
        };
        prop_assert!(distance(1.0 + 1e-9)? < 1e-5);
        prop_assert!(distance(1.001)? <= distance(1.1)? + 1e-12);
    }

    /// The KL rule is the Gibbs policy of −L' with the rows for its reference.
    #[test]
    fn kl_is_a_gibbs_policy(risks in risks(), lambda in 0.05..5.0) {
        let n = risks.len() as f64;
        let rewards: Vec<f64> = risks.iter().map(|r| -r).collect();
        let gibbs = oracle::gibbs(&vec![-n.ln(); risks.len()], &rewards, lambda);
        let expected: Vec<f64> = gibbs.iter().map(|log| n * log.exp()).collect();
        let found = DensityRatio::kl(lambda)?.fit(risks.view())?.ratios(risks.view());
        all_close(&found.to_vec(), &expected, 1e-11, "ratio");
    }

    /// At one coverage every divergence accepts the same rows, exactly ⌈coverage · n⌉ of them, and its accuracy is the
    /// curve's.
    #[test]
    fn coverage_is_exact_and_divergence_free(risks in risks(), lambda in 0.01..5.0, coverage in 0.01..1.0_f64, seed in any::<u64>()) {
        let count = (coverage * risks.len() as f64).ceil() as usize;
        let mut order: Vec<usize> = (0..risks.len()).collect();
        order.sort_by(|&a, &b| risks[a].total_cmp(&risks[b]));
        let mut expected = order[..count].to_vec();
        expected.sort_unstable();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let correct: Vec<bool> = risks.iter().map(|_| rng.random_range(0.0..1.0) < 0.7).collect();
        let accuracy = expected.iter().filter(|row| correct[**row]).count() as f64 / count as f64;
        for (alpha, rule) in rules(lambda) {
            let fitted = rule.fit(risks.view())?;
            let rejector = fitted.threshold_for_coverage(coverage)?;
            prop_assert_eq!(&rejector.accepted(risks.view()), &expected, "alpha {}", alpha);
            let threshold = fitted.ratio(rejector.limit());
            prop_assert!(expected.iter().all(|row| fitted.ratio(risks[*row]) >= threshold * (1.0 - 1e-14)));
        }
        prop_assert_eq!(Rejector::for_coverage(risks.view(), coverage)?.accepted(risks.view()), expected.clone());
        prop_assert_eq!(Abstention::keep(coverage)?.kept(risks.view())?, expected);
        close(AccuracyCoverage::new(risks.view(), &correct)?.accuracy_at(coverage)?, accuracy, 1e-12, 0.0, "accuracy");
    }

    /// A threshold τ accepts where ρ ≥ τ, whatever the form in which it is kept.
    #[test]
    fn a_threshold_is_one_on_the_ratio(risks in risks(), lambda in 0.1..5.0, threshold in 0.01..2.0) {
        for (alpha, rule) in rules(lambda) {
            let fitted = rule.fit(risks.view())?;
            let rejector = fitted.threshold(threshold)?;
            for risk in risks.iter().filter(|r| (fitted.ratio(**r) - threshold).abs() > 1e-7) {
                prop_assert_eq!(rejector.accepts(*risk), fitted.ratio(*risk) >= threshold, "alpha {}", alpha);
            }
        }
    }

    /// Two classes: the entropy's threshold at τ is Chow's rule at the cost whose entropy is that limit, for every
    /// divergence.
    #[test]
    fn binary_rules_are_chows(margins in prop::collection::vec(-6.0..6.0, 2..40), lambda in 0.05..2.0, threshold in 0.05..1.5) {
        let logits = Array2::from_shape_fn((margins.len(), 2), |(row, class)| if class == 0 { margins[row] } else { 0.0 });
        let calibration = Calibration::new(1.7)?;
        let [entropy, error] = [Risk::Entropy, Risk::ZeroOne].map(|risk| calibration.risks(logits.view(), risk).expect("finite"));
        for (alpha, rule) in rules(lambda) {
            let by_ratio = rule.fit(entropy.view())?.threshold(threshold)?;
            let cost = cost_of_entropy(by_ratio.limit());
            let chow = Rejector::chow(cost)?;
            for row in (0..margins.len()).filter(|row| (error[*row] - cost).abs() > 1e-9) {
                prop_assert_eq!(by_ratio.accepts(entropy[row]), chow.accepts(error[row]), "alpha {}", alpha);
            }
        }
    }
}

/// c in [0, ½] with −c log c − (1−c) log(1−c) equal to a limit, by bisection: ½ above log 2, 0 below 0.
fn cost_of_entropy(limit: f64) -> f64 {
    let entropy = |c: f64| if c == 0.0 { 0.0 } else { -c * c.ln() - (1.0 - c) * (1.0 - c).ln() };
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if entropy(middle) <= limit { low = middle } else { high = middle }
    }
    low
}

/// Clipped before the power: (½(b − s))² of the outlier's negative base would be large, and mean ρ = 1 with it.
#[test]
fn a_hopeless_row_has_ratio_zero() -> Result<()> {
    let risks = array![0.1, 0.2, 0.3, 40.0];
    for alpha in [2.0, 3.0, 3.5] {
        let fitted = DensityRatio::alpha(alpha, 0.5)?.fit(risks.view())?;
        assert_eq!(fitted.ratio(40.0), 0.0, "alpha {alpha}");
        assert!(fitted.ratio(0.3) > 1.0, "alpha {alpha}");
    }
    // α = 3 is linear: while no row is clipped, b = 1 + mean L'/λ.
    let fitted = DensityRatio::alpha(3.0, 2.0)?.fit(array![0.0, 1.0, 2.0].view())?;
    close(fitted.normaliser(), 1.5, 1e-12, 0.0, "b");
    all_close(&fitted.ratios(array![0.0, 1.0, 2.0, 9.0].view()).to_vec(), &[1.5, 1.0, 0.5, 0.0], 1e-12, "ratio");
    Ok(())
}

#[test]
fn far_ends_of_lambda() -> Result<()> {
    let risks = array![0.3, 0.1, 2.0, 0.7];
    for (alpha, rule) in rules(1e9) {
        all_close(&rule.fit(risks.view())?.ratios(risks.view()).to_vec(), &[1.0; 4], 1e-8, format_args!("{alpha}"));
    }
    for (alpha, rule) in rules(1e-12) {
        let found = rule.fit(risks.view())?.ratios(risks.view()).to_vec();
        all_close(&found, &[0.0, 4.0, 0.0, 0.0], 1e-8, format_args!("{alpha}"));
    }
    for (_, rule) in rules(0.1) {
        all_close(
            &rule.fit(array![5.0, 5.0].view())?.ratios(array![5.0, 5.0].view()).to_vec(),
            &[1.0; 2],
            1e-12,
            "equal",
        );
    }
    Ok(())
}

/// Most ratios are 0 and equal; the risk decides among them. ⌈.07 · 100⌉ is 7, though .07 · 100 > 7 in f64.
#[test]
fn ties_at_zero_are_broken_by_the_risk() -> Result<()> {
    let risks = Array1::from_shape_fn(100, |i| f64::from((37 * i as u32) % 100));
    let fitted = DensityRatio::alpha(3.0, 0.5)?.fit(risks.view())?;
    assert!(fitted.ratios(risks.view()).iter().filter(|r| **r == 0.0).count() >= 80);
    for (coverage, count) in [(0.07, 7), (0.5, 50), (0.801, 81), (1.0, 100), (1e-9, 1)] {
        let rejector = fitted.threshold_for_coverage(coverage)?;
        assert_eq!(rejector.accepted(risks.view()).len(), count, "{coverage}");
        assert_eq!(rejector.limit(), count as f64 - 1.0, "{coverage}");
    }
    let all = fitted.threshold(0.0)?;
    assert!(all.accepts(1e300) && !all.accepts(f64::NAN));
    Ok(())
}

#[test]
fn chow_and_confidence() -> Result<()> {
    let error = array![0.0, 0.1, 0.25, 0.5, 0.75];
    assert_eq!(Rejector::chow(0.25)?.accepted(error.view()), [0, 1, 2]);
    assert_eq!(Rejector::confidence(0.75)?.accepted(error.view()), [0, 1, 2]);
    assert_eq!(Rejector::chow(1.0)?.accepted(error.view()).len(), 5);
    assert_eq!(Rejector::confidence(1.0)?.accepted(error.view()), [0]);
    // Three classes: the entropy prefers the row that excludes a class, Chow's rule the one with the larger maximum.
    let logits = array![[0.5_f64.ln(), 0.49_f64.ln(), 0.01_f64.ln()], [0.52_f64.ln(), 0.24_f64.ln(), 0.24_f64.ln()]];
    let of = |risk| Calibration::new(1.0).and_then(|one| one.risks(logits.view(), risk));
    let (entropy, error) = (of(Risk::Entropy)?, of(Risk::ZeroOne)?);
    assert!(entropy[0] < entropy[1] && error[0] > error[1]);
    Ok(())
}

#[test]
fn curves_by_hand() -> Result<()> {
    let curve = AccuracyCoverage::new(array![0.3, 0.1, 0.9, 0.2].view(), &[false, true, true, true])?;
    let expected = [(0.25, 1.0), (0.5, 1.0), (0.75, 2.0 / 3.0), (1.0, 0.75)];
    for ((coverage, accuracy), (c, a)) in curve.points().into_iter().zip(expected) {
        close(coverage, c, 1e-15, 0.0, "coverage");
        close(accuracy, a, 1e-15, 0.0, "accuracy");
    }
    close(curve.mean_accuracy(), (2.0 + 2.0 / 3.0 + 0.75) / 4.0, 1e-15, 0.0, "mean");
    close(curve.accuracy_at(0.51)?, 2.0 / 3.0, 1e-15, 0.0, "⌈.51 · 4⌉ = 3");
    // Equal risks: a random order in expectation, whatever the order of the rows.
    let tied = array![0.5, 0.5, 0.5, 0.1];
    let curve = AccuracyCoverage::new(tied.view(), &[true, false, false, true])?;
    assert_eq!(curve, AccuracyCoverage::new(tied.view(), &[false, false, true, true])?);
    close(curve.accuracy_at(0.5)?, (1.0 + 1.0 / 3.0) / 2.0, 1e-15, 0.0, "tied");
    Ok(())
}
