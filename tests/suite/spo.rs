//! SPO: identities, limits, and where it ends with and without the reverse divergence, whose own tests are in `reverse_kl`.

use proptest::prelude::*;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result,
    domain::MassPower,
    loss::{Dpo, PairWeight, ProbabilityMatching, ReverseKl, Spo},
    tch::{Kind, Tensor},
};

use crate::{
    all_close, close,
    columns::{Columns, columns},
    identities::config,
    numbers,
    optimum::Toy,
    oracle,
};

const REFERENCE: [f64; 5] = [0.1, 0.3, 0.05, 0.35, 0.2];
const REWARDS: [f64; 5] = [0.7, -0.4, 1.2, 0.1, -0.9];

fn mass(power: f64) -> PairWeight {
    PairWeight::Mass { power: MassPower::new(power).expect("in its domain") }
}

/// −log σ(αd)/α, as written in the paper: log(1 + (π_l/π_w)^α)/α.
fn spo(alpha: f64, d: f64) -> f64 {
    let x = -alpha * d;
    (x.max(0.0) + (-x.abs()).exp().ln_1p()) / alpha
}

/// Pairs with a uniform reference.
pub fn without_reference(chosen: &Tensor, rejected: &Tensor) -> PreferenceBatch {
    let zero = chosen.detach().zeros_like();
    let logps = PairLogps::new(chosen.shallow_clone(), rejected.shallow_clone(), zero.shallow_clone(), zero);
    PreferenceBatch::new(logps.expect("of one shape"))
}

/// Losses of pairs with these log-probabilities, and slopes at the chosen and the rejected one.
fn slopes(loss: &impl PreferenceLoss, chosen: &[f64], rejected: &[f64]) -> Result<[Vec<f64>; 3]> {
    let [chosen, rejected] = [chosen, rejected].map(|side| Tensor::from_slice(side).set_requires_grad(true));
    let losses = loss.per_pair(&without_reference(&chosen, &rejected))?;
    losses.sum(Kind::Double).backward();
    Ok([numbers(&losses), numbers(&chosen.grad()), numbers(&rejected.grad())])
}

fn per_pair(loss: &impl PreferenceLoss, batch: &PreferenceBatch) -> Vec<f64> {
    numbers(&loss.per_pair(batch).expect("has every column"))
}

fn swapped(c: &Columns) -> Columns {
    Columns { chosen: c.rejected.clone(), rejected: c.chosen.clone(), ..c.clone() }
}

proptest! {
    #![proptest_config(config())]

    /// The columns have a reference that is not uniform: it must not matter to SPO.
    #[test]
    fn alpha_times_the_loss_is_dpo_at_a_uniform_reference(c in columns(1..=1), alpha in 0.01..4.0) {
        let found: Vec<f64> = per_pair(&Spo::new(alpha)?, &c.batch()).iter().map(|l| alpha * l).collect();
        let uniform = c.batch().map_logps(|logps| Ok(logps.reference_free()))?;
        all_close(&found, &per_pair(&Dpo::new(alpha)?, &uniform), 1e-12, "α·SPO");
        let by_hand: Vec<f64> = (0..c.len()).map(|i| alpha * spo(alpha, c.chosen[i] - c.rejected[i])).collect();
        all_close(&found, &by_hand, 1e-12, "the paper's form");
    }

    /// Both orders of a pair in their shares are the soft label.
    #[test]
    fn shares_of_both_orders_are_a_soft_label(c in columns(1..=1), alpha in 0.05..4.0) {
        let loss = Spo::new(alpha)?;
        let (kept, flipped) = (per_pair(&loss, &c.batch()), per_pair(&loss, &swapped(&c).batch()));
        let expected: Vec<f64> = (0..c.len()).map(|i| c.soft_labels[i] * kept[i] + (1.0 - c.soft_labels[i]) * flipped[i]).collect();
        let uniform = c.batch().map_logps(|logps| Ok(logps.reference_free()))?;
        let matching = per_pair(&ProbabilityMatching::to_soft_labels(alpha)?, &uniform);
        all_close(&expected, &matching.iter().map(|l| l / alpha).collect::<Vec<_>>(), 1e-12, "matching / α");
    }

    #[test]
    fn the_mass_scales_loss_and_gradient_and_is_symmetric(
        w in prop::collection::vec(-6.0..-0.1, 5),
        l in prop::collection::vec(-6.0..-0.1, 5),
        alpha in 0.05..4.0,
        power in 0.0..3.0,
    ) {
        let weighted = Spo::new(alpha)?.with_pair_weight(mass(power));
        let [found, at_chosen, at_rejected] = slopes(&weighted, &w, &l)?;
        let mu: Vec<f64> = w.iter().zip(&l).map(|(w, l)| (w.exp() + l.exp()).powf(power)).collect();
        let each = |f: &dyn Fn(f64) -> f64| (0..5).map(|i| mu[i] * f(w[i] - l[i])).collect::<Vec<f64>>();
        all_close(&found, &each(&|d| spo(alpha, d)), 1e-12, "value");
        // A gradient through μ would add power·μ·π_w/(π_w + π_l) times the loss.
        all_close(&at_chosen, &each(&|d| -oracle::sigmoid(-alpha * d)), 1e-12, "slope at the chosen");
        all_close(&at_rejected, &each(&|d| oracle::sigmoid(-alpha * d)), 1e-12, "slope at the rejected");
        // SPO(w, l) − SPO(l, w) = −μ(w, l)·d whatever α is, if and only if μ(w, l) = μ(l, w).
        let [other, ..] = slopes(&weighted, &l, &w)?;
        let difference: Vec<f64> = found.iter().zip(&other).map(|(a, b)| a - b).collect();
        all_close(&difference, &each(&|d| -d), 1e-11, "difference of the two orders");
    }

    #[test]
    fn without_power_the_mass_is_equal(c in columns(1..=1), alpha in 0.05..4.0) {
        let spo = Spo::new(alpha)?;
        prop_assert_eq!(per_pair(&spo.with_pair_weight(mass(0.0)), &c.batch()), per_pair(&spo, &c.batch()));
    }

    /// log 2/α − d/2 + αd²/8, and ∓½ for the gradient.
    #[test]
    fn a_small_alpha_makes_it_linear(d in -4.0..4.0_f64) {
        const ALPHA: f64 = 1e-5;
        let [value, at_chosen, at_rejected] = slopes(&Spo::new(ALPHA)?, &[d - 7.0], &[-7.0])?;
        close(value[0] - f64::ln(2.0) / ALPHA, -0.5 * d, 3e-5, 1.0, "value");
        all_close(&[at_chosen[0], at_rejected[0]], &[-0.5, 0.5], 2e-5, "slopes");
    }

    #[test]
    fn a_large_alpha_makes_it_a_hinge(d in -4.0..4.0_f64) {
        let [value, ..] = slopes(&Spo::new(1e6)?, &[d - 7.0], &[-7.0])?;
        close(value[0], (-d).max(0.0), 1e-6, 1.0, "value");
    }
}

/// e^{−800} is 0 in f64; its 64th root is not.
#[test]
fn the_mass_of_long_responses_is_taken_in_log_space() -> Result<()> {
    let loss = Spo::new(0.5)?.with_pair_weight(mass(1.0 / 64.0));
    let [found, ..] = slopes(&loss, &[-800.0], &[-801.0])?;
    let expected = ((-800.0 + (-1.0_f64).exp().ln_1p()) / 64.0).exp() * spo(0.5, 1.0);
    close(found[0], expected, 1e-12, 0.0, "μ·SPO");
    Ok(())
}

/// σ(Δr): over both orders of every pair the weighted mean is the expected loss under Bradley–Terry labels.
fn label(batch: &PreferenceBatch) -> Tensor {
    batch.rewards().expect("toys have rewards").margins().select(0, 0).sigmoid()
}

fn both_orders() -> Vec<(i64, i64)> {
    Toy::all_pairs(5).into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

/// Softmax(r/α), not π_ref e^{r/α}: where descent starts leaves no trace.
#[track_caller]
fn ends_at_the_softmax(loss: &impl PreferenceLoss, alpha: f64) -> Result<()> {
    let toy = Toy::new(&REFERENCE, &[&REWARDS], both_orders());
    let found = toy.descend(loss, 8.0, 0.8, 200)?;
    all_close(&found, &oracle::gibbs(&[0.0; 5], &REWARDS, alpha), 1e-6, format_args!("log π at {alpha}"));
    Ok(())
}

#[test]
fn under_bradley_terry_the_minimiser_is_the_softmax() -> Result<()> {
    for alpha in [0.5, 1.5] {
        ends_at_the_softmax(&Spo::new(alpha)?.weighted_by(label), alpha)?;
    }
    Ok(())
}

#[test]
fn the_mass_keeps_that_minimiser() -> Result<()> {
    for (alpha, power) in [(0.5, 1.0), (1.5, 0.5)] {
        ends_at_the_softmax(&Spo::new(alpha)?.with_pair_weight(mass(power)).weighted_by(label), alpha)?;
    }
    Ok(())
}

#[test]
fn so_does_any_symmetric_weight() -> Result<()> {
    let lesser = |b: &PreferenceBatch| label(b) * (b.logps().chosen().minimum(b.logps().rejected()).exp() + 1.0);
    let distance = |b: &PreferenceBatch| label(b) * ((b.logps().chosen() - b.logps().rejected()).abs() + 0.5);
    ends_at_the_softmax(&Spo::new(0.5)?.weighted_by(lesser), 0.5)?;
    ends_at_the_softmax(&Spo::new(0.5)?.weighted_by(distance), 0.5)
}

/// And one that is not symmetric does not: the test above would pass for it otherwise.
#[test]
fn a_weight_that_favours_the_chosen_moves_it() -> Result<()> {
    let lopsided = |b: &PreferenceBatch| label(b) * (b.logps().chosen().exp() + 0.1);
    let toy = Toy::new(&REFERENCE, &[&REWARDS], both_orders());
    let found = toy.descend(&Spo::new(0.5)?.weighted_by(lopsided), 8.0, 0.8, 200)?;
    let softmax = oracle::gibbs(&[0.0; 5], &REWARDS, 0.5);
    assert!(found.iter().zip(&softmax).any(|(f, s)| (f - s).abs() > 0.1), "{found:?}");
    Ok(())
}

/// λ(log π − log π_ref) → −g/π_ref, g the gradient of the contrast at the reference: so π → π_ref, and from where.
#[test]
fn a_large_weight_of_the_divergence_ends_at_the_reference() -> Result<()> {
    const LAMBDA: f64 = 1e3;
    const ALPHA: f64 = 0.5;
    let pairs = [(0, 1), (2, 1), (2, 3), (4, 3)];
    let toy = Toy::new(&REFERENCE, &[&REWARDS], pairs.to_vec());
    let found = toy.descend(&Spo::new(ALPHA)?.plus(LAMBDA, ReverseKl::Exact), 2.0 / LAMBDA, 0.7, 200)?;
    let mut gradient = [0.0; 5];
    for (w, l) in pairs.map(|(w, l)| (w as usize, l as usize)) {
        let slope = oracle::sigmoid(-ALPHA * (toy.reference[w] - toy.reference[l])) / pairs.len() as f64;
        gradient[w] -= slope;
        gradient[l] += slope;
    }
    let scaled: Vec<f64> = found.iter().zip(&toy.reference).map(|(f, r)| LAMBDA * (f - r)).collect();
    let expected: Vec<f64> = (0..5).map(|i| -gradient[i] / REFERENCE[i]).collect();
    all_close(&scaled, &expected, 1e-2, "λ(log π − log π_ref)");
    Ok(())
}

/// Two responses and one label: σ(−αd) = λ π_w π_l (d − d_ref). The forward divergence would say λ(π_w − ref_w) on the right.
#[test]
fn with_a_moderate_weight_it_ends_between() -> Result<()> {
    let (alpha, lambda) = (1.0, 2.0);
    let toy = Toy::new(&[0.3, 0.7], &[&[0.0; 2]], vec![(0, 1)]);
    let found = toy.descend(&Spo::new(alpha)?.plus(lambda, ReverseKl::Exact), 0.5, 0.8, 300)?;
    let (d, d_ref) = (found[0] - found[1], toy.reference[0] - toy.reference[1]);
    let pull = lambda * (found[0] + found[1]).exp() * (d - d_ref);
    close(oracle::sigmoid(-alpha * d), pull, 1e-9, 1.0, "balance of the two terms");
    assert!(d > d_ref + 0.5, "the label moved nothing");
    Ok(())
}

#[test]
fn refusals() -> Result<()> {
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = Spo::new(alpha).expect_err("outside its domain");
        assert_eq!(refused.to_string(), format!("alpha must be positive and finite, got {alpha}"));
    }
    let power = MassPower::new(-1.0).expect_err("outside its domain");
    assert_eq!(power.to_string(), "mass_power must be at least 0 and finite, got -1");
    for (json, start) in [
        (r#"{"alpha": 0}"#, "alpha must be positive and finite, got 0"),
        (r#"{"alpha": 1, "beta": 1}"#, "unknown field `beta`"),
        (r#"{"alpha": 1, "pair_weight": {"mass": {"power": -1}}}"#, "mass_power must be at least 0 and finite, got -1"),
        ("{}", "missing field `alpha`"),
    ] {
        let refused = serde_json::from_str::<Spo>(json).expect_err("must be refused").to_string();
        assert!(refused.starts_with(start), "{refused}");
    }
    let bare = PreferenceBatch::new(PairLogps::new(
        Tensor::from_slice(&[-1.0]),
        Tensor::from_slice(&[-2.0]),
        Tensor::from_slice(&[-1.0]),
        Tensor::from_slice(&[-2.0]),
    )?);
    for (kl, name, column) in [
        (ReverseKl::Exact, "ReverseKl::Exact", "all_responses"),
        (ReverseKl::PolicySamples, "ReverseKl::PolicySamples", "policy_samples"),
    ] {
        let said = format!(
            "{name} needs the column `{column}`, which this batch lacks: add it with PreferenceBatch::with_{column}"
        );
        assert_eq!(kl.per_pair(&bare).expect_err("no such column").to_string(), said);
        assert_eq!(Spo::new(1.0)?.plus(1.0, kl).mean(&bare).expect_err("no such column").to_string(), said);
    }
    Ok(())
}

#[test]
fn configuration_files() -> Result<()> {
    let spo = Spo::new(0.5)?;
    for (loss, json) in [
        (spo, r#"{"alpha":0.5,"pair_weight":"equal"}"#),
        (spo.with_pair_weight(mass(0.25)), r#"{"alpha":0.5,"pair_weight":{"mass":{"power":0.25}}}"#),
    ] {
        assert_eq!(serde_json::to_string(&loss).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<Spo>(json).expect("its own text"), loss);
    }
    assert_eq!(serde_json::from_str::<Spo>(r#"{"alpha": 0.5}"#).expect("valid"), spo);
    for (kl, json) in [(ReverseKl::Exact, r#""exact""#), (ReverseKl::PolicySamples, r#""policy_samples""#)] {
        assert_eq!(serde_json::to_string(&kl).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<ReverseKl>(json).expect("its own text"), kl);
    }
    Ok(())
}
