//! DRDO against its equation: values, gradients, limits, optima and refusals; and the objective that trains its oracle.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Error, PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, Result, RewardScores,
    loss::{Contrast, Drdo, FocalWeight, Likelihood},
    reward::{BradleyTerry, RewardBatch, RewardObjective, WithLikelihood},
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, Trainer, Warmup},
};

use crate::{all_close, close, identities::config, number, numbers, oracle};

/// Pairs as plain numbers; of each array the chosen response comes first.
#[derive(Debug, Clone)]
struct Case {
    logps: [Vec<f64>; 2],
    student: [Vec<f64>; 2],
    oracle: [Vec<f64>; 2],
    tokens: [Vec<i64>; 2],
}

/// The crate's batch and the leaves it was made of.
struct Built {
    batch: PreferenceBatch,
    logps: [Tensor; 2],
    student: [Tensor; 2],
    data: [Tensor; 4],
}

impl Case {
    fn random(pairs: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |low: f64, high: f64| -> Vec<f64> { (0..pairs).map(|_| rng.random_range(low..high)).collect() };
        let logps = [draw(-12.0, -0.02), draw(-12.0, -0.02)];
        let student = [draw(-2.0, 2.0), draw(-2.0, 2.0)];
        let oracle = [draw(-2.0, 2.0), draw(-2.0, 2.0)];
        let tokens = [0, 1].map(|_| (0..pairs).map(|_| rng.random_range(1..9_i64)).collect());
        Self { logps, student, oracle, tokens }
    }

    /// Without an oracle's residual, a response of one token each: what is left is the preference term.
    fn preference(chosen: &[f64], rejected: &[f64]) -> Self {
        let (zeros, one) = (vec![0.0; chosen.len()], vec![1; chosen.len()]);
        Self {
            logps: [chosen.to_vec(), rejected.to_vec()],
            student: [zeros.clone(), zeros.clone()],
            oracle: [zeros.clone(), zeros],
            tokens: [one.clone(), one],
        }
    }

    fn build(&self, kind: Kind) -> Result<Built> {
        let leaf = |x: &[f64]| Tensor::from_slice(x).to_kind(kind).set_requires_grad(true);
        let [logps, student, oracle] =
            [&self.logps, &self.student, &self.oracle].map(|pair| [0, 1].map(|i| leaf(&pair[i])));
        // A reference far from the policy: a loss that reads it gives itself away.
        let reference = [-3.0, -40.0].map(|x| (logps[0].detach().zeros_like() + x).set_requires_grad(true));
        let tokens = [0, 1].map(|i| Tensor::from_slice(&self.tokens[i]));
        let c = Tensor::shallow_clone;
        let batch =
            PreferenceBatch::new(PairLogps::new(c(&logps[0]), c(&logps[1]), c(&reference[0]), c(&reference[1]))?)
                .with_rewards(RewardScores::single(&oracle[0], &oracle[1])?)?
                .with_student_scores(RewardScores::single(&student[0], &student[1])?)?
                .with_lengths(ResponseLengths::new(c(&tokens[0]), c(&tokens[1]))?)?;
        let ([chosen, rejected], [ref_chosen, ref_rejected]) = (oracle, reference);
        Ok(Built { batch, logps, student, data: [chosen, rejected, ref_chosen, ref_rejected] })
    }

    fn per_pair(&self, loss: &Drdo) -> Result<Vec<f64>> {
        Ok(numbers(&loss.per_pair(&self.build(Kind::Double)?.batch)?))
    }

    /// Gradients of the sum over pairs at log π_w, log π_l, r̂(y_w), r̂(y_l).
    fn gradients(&self, loss: &Drdo) -> Result<[Vec<f64>; 4]> {
        let built = self.build(Kind::Double)?;
        loss.per_pair(&built.batch)?.sum(Kind::Double).backward();
        let of = |leaf: &Tensor| numbers(&leaf.grad());
        Ok([of(&built.logps[0]), of(&built.logps[1]), of(&built.student[0]), of(&built.student[1])])
    }

    /// Δr* − Δr̂.
    fn residuals(&self) -> Vec<f64> {
        let margin = |pair: &[Vec<f64>; 2], i: usize| pair[0][i] - pair[1][i];
        (0..self.logps[0].len()).map(|i| margin(&self.oracle, i) - margin(&self.student, i)).collect()
    }

    /// log π_w and log π_l of a pair as the form takes them, and what each was divided by.
    fn likelihoods(&self, form: Form, i: usize) -> ([f64; 2], [f64; 2]) {
        let tokens =
            [0, 1].map(|side| if form.likelihood == Likelihood::Sum { 1.0 } else { self.tokens[side][i] as f64 });
        ([0, 1].map(|side| self.logps[side][i] / tokens[side]), tokens)
    }
}

/// One of the eight readings.
#[derive(Debug, Clone, Copy)]
struct Form {
    contrast: Contrast,
    likelihood: Likelihood,
    focal_weight: FocalWeight,
}

impl Form {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for contrast in [Contrast::Corrected, Contrast::Printed] {
            for likelihood in [Likelihood::TokenMean, Likelihood::Sum] {
                for focal_weight in [FocalWeight::Attached, FocalWeight::Detached] {
                    all.push(Self { contrast, likelihood, focal_weight });
                }
            }
        }
        all
    }

    /// Of log(1 − π_l) in the corrected form's favour.
    fn sign(self) -> f64 {
        if self.contrast == Contrast::Corrected { 1.0 } else { -1.0 }
    }

    fn loss(self, alpha: f64, gamma: f64) -> Result<Drdo> {
        let loss = Drdo::new().with_contrast_weight(alpha)?.with_focus(gamma)?;
        Ok(loss.with_contrast(self.contrast).with_likelihood(self.likelihood).with_focal_weight(self.focal_weight))
    }
}

/// Sums over responses, γ = 0 and α = 1: the contrast itself.
fn bare(contrast: Contrast) -> Result<Drdo> {
    Form { contrast, likelihood: Likelihood::Sum, focal_weight: FocalWeight::Attached }.loss(1.0, 0.0)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_form_is_its_equation(pairs in 1..6_usize, seed in any::<u64>(), alpha in 0.0..2.0_f64, gamma in 0.0..4.0_f64) {
        let case = Case::random(pairs, seed);
        let residuals = case.residuals();
        for form in Form::all() {
            let equation = |i: usize| oracle::drdo(residuals[i], case.likelihoods(form, i).0, alpha, gamma, form.sign());
            let expected: Vec<f64> = (0..pairs).map(equation).collect();
            all_close(&case.per_pair(&form.loss(alpha, gamma)?)?, &expected, 1e-12, format_args!("{form:?}"));
        }
    }

    /// By hand: with w = (1 − p)^γ and c the contrast, −α(w + γwpc) at log π_w and α(γwpc ± w π_l/(1 − π_l)) at log π_l; the part with γ
    /// is the focal weight's own, absent where it is detached. ∓2(Δr* − Δr̂) at the student's scores, for they are not data.
    #[test]
    fn its_gradients_are_those_by_hand(seed in any::<u64>(), alpha in 0.0..2.0_f64, gamma in 0.0..4.0_f64) {
        let case = Case::random(4, seed);
        for form in Form::all() {
            let (mut chosen, mut rejected) = (Vec::<f64>::new(), Vec::<f64>::new());
            for i in 0..4 {
                let ([w, l], tokens): ([f64; 2], [f64; 2]) = case.likelihoods(form, i);
                let (p, weight) = (oracle::sigmoid(w - l), oracle::sigmoid(l - w).powf(gamma));
                let contrast = -w - form.sign() * oracle::log1mexp(l);
                let focal = if form.focal_weight == FocalWeight::Attached { gamma * weight * p * contrast } else { 0.0 };
                chosen.push(-alpha * (weight + focal) / tokens[0]);
                rejected.push(alpha * (focal + form.sign() * weight / (-l).exp_m1()) / tokens[1]);
            }
            let found = case.gradients(&form.loss(alpha, gamma)?)?;
            let student: Vec<f64> = case.residuals().iter().map(|r| -2.0 * r).collect();
            let opposite: Vec<f64> = student.iter().map(|g| -g).collect();
            for (found, expected) in found.iter().zip([chosen, rejected, student, opposite]) {
                all_close(found, &expected, 1e-10, format_args!("{form:?}"));
            }
        }
    }

    #[test]
    fn without_alpha_it_is_the_regression(pairs in 1..6_usize, seed in any::<u64>()) {
        let case = Case::random(pairs, seed);
        let squares: Vec<f64> = case.residuals().iter().map(|r| r * r).collect();
        for form in Form::all() {
            let loss = form.loss(0.0, 2.0)?;
            all_close(&case.per_pair(&loss)?, &squares, 1e-14, "squares");
            let [chosen, rejected, ..] = case.gradients(&loss)?;
            prop_assert!(chosen.iter().chain(&rejected).all(|g| *g == 0.0));
            // Equal up to the prompt's own level, which margins do not see.
            let agreeing = Case { student: case.oracle.clone().map(|side| side.iter().map(|r| r + 1.0).collect()), ..case.clone() };
            all_close(&agreeing.per_pair(&loss)?, &vec![0.0; pairs], 1e-14, "zero where the margins agree");
        }
    }

    #[test]
    fn without_gamma_nothing_is_modulated(seed in any::<u64>(), alpha in 0.0..2.0) {
        let case = Case::random(4, seed);
        let residuals = case.residuals();
        for form in Form::all() {
            let plain = |i: usize| {
                let ([w, l], _) = case.likelihoods(form, i);
                residuals[i].powi(2) + alpha * (-w - form.sign() * oracle::log1mexp(l))
            };
            let expected: Vec<f64> = (0..4).map(plain).collect();
            all_close(&case.per_pair(&form.loss(alpha, 0.0)?)?, &expected, 1e-12, format_args!("{form:?}"));
        }
    }

    /// A repeated response says the same twice: log-probability and length double, the mean over tokens stays.
    #[test]
    fn means_over_tokens_do_not_see_length(seed in any::<u64>()) {
        let case = Case::random(4, seed);
        let twice = Case {
            logps: case.logps.clone().map(|side| side.iter().map(|l| 2.0 * l).collect()),
            tokens: case.tokens.clone().map(|side| side.iter().map(|n| 2 * n).collect()),
            ..case.clone()
        };
        let (means, sums) = (Drdo::new(), Drdo::new().with_likelihood(Likelihood::Sum));
        all_close(&twice.per_pair(&means)?, &case.per_pair(&means)?, 1e-13, "means");
        prop_assert!(twice.per_pair(&sums)? != case.per_pair(&sums)?);
    }

    /// With two responses 1 − π_l is π_w, and the printed ratio is 1 whatever the policy: it says nothing about the only choice there is.
    #[test]
    fn the_printed_ratio_is_void_between_two_responses(share in 0.01..0.99) {
        let case = Case::preference(&[f64::ln(share)], &[f64::ln(1.0 - share)]);
        close(case.per_pair(&bare(Contrast::Printed)?)?[0], 0.0, 1e-12, 1.0, "printed");
        close(case.per_pair(&bare(Contrast::Corrected)?)?[0], -2.0 * share.ln(), 1e-12, 1.0, "corrected");
    }
}

/// At fixed log π_w a sure pair costs nothing for any γ > 0, and −log π_w for γ = 0; value and gradient.
#[test]
fn the_preference_term_vanishes_where_the_pair_is_told_apart() -> Result<()> {
    let rejected = [-3.0, -9.0, -30.0, -200.0, -1e4];
    let case = Case::preference(&[-1.0; 5], &rejected);
    for form in Form::all() {
        for gamma in [0.5, 1.0, 2.0] {
            let (values, gradients) =
                (case.per_pair(&form.loss(1.0, gamma)?)?, case.gradients(&form.loss(1.0, gamma)?)?);
            assert!(values.is_sorted_by(|a, b| a > b || *b == 0.0) && values[2] < 1e-5, "{form:?} {gamma}: {values:?}");
            assert!(gradients.iter().flatten().all(|g| g.is_finite()), "{form:?} {gamma}: {gradients:?}");
            assert_eq!((values[4], gradients[0][4], gradients[1][4]), (0.0, 0.0, 0.0), "{form:?} {gamma}");
        }
        close(case.per_pair(&form.loss(1.0, 0.0)?)?[4], 1.0, 1e-12, 0.0, "unmodulated");
    }
    Ok(())
}

/// The sign that the correction is about: a step down the printed form's gradient makes the rejected response likelier.
#[test]
fn the_printed_form_raises_the_rejected_response() -> Result<()> {
    let case = Case::preference(&[-1.0, -2.0, -0.5], &[-0.3, -1.0, -4.0]);
    let [_, corrected, ..] = case.gradients(&bare(Contrast::Corrected)?)?;
    let [_, printed, ..] = case.gradients(&bare(Contrast::Printed)?)?;
    for (corrected, printed) in corrected.iter().zip(&printed) {
        assert!(*corrected > 0.0 && *printed == -corrected, "{corrected} {printed}");
    }
    Ok(())
}

/// At −20 nats the sum's rejected term has a gradient of 2·10⁻⁹.
#[test]
fn over_sums_the_rejected_term_is_inert() -> Result<()> {
    let case = Case::preference(&[-18.0], &[-20.0]);
    let [corrected, printed] = [Contrast::Corrected, Contrast::Printed].map(bare);
    let (corrected, printed) = (corrected?, printed?);
    close(case.gradients(&corrected)?[1][0], 2.06e-9, 1e-2, 0.0, "gradient");
    close(case.per_pair(&corrected)?[0] - case.per_pair(&printed)?[0], 4.12e-9, 1e-2, 0.0, "difference of the forms");
    Ok(())
}

/// −log(1 − π_l) alone and its gradient: π_w is 1.
fn probe(rejected: &[f64], kind: Kind) -> Result<(Vec<f64>, Vec<f64>)> {
    let built = Case::preference(&vec![0.0; rejected.len()], rejected).build(kind)?;
    let losses = bare(Contrast::Corrected)?.per_pair(&built.batch)?;
    losses.sum(kind).backward();
    Ok((numbers(&losses), numbers(&built.logps[1].grad())))
}

#[test]
fn the_unlikelihood_keeps_its_digits_at_both_ends() -> Result<()> {
    // Exact in f32.
    let ordinary = [-1e-30_f32, -1e-8, -1e-3, -0.5, -0.6875, -0.75, -2.0, -20.0, -80.0].map(f64::from);
    for (kind, tolerance) in [(Kind::Double, 1e-13), (Kind::Float, 1e-5)] {
        let (values, gradients) = probe(&ordinary, kind)?;
        for ((x, value), gradient) in ordinary.iter().zip(values).zip(gradients) {
            close(value, -oracle::log1mexp(*x), tolerance, 0.0, format_args!("value at {x} in {kind:?}"));
            close(gradient, 1.0 / (-x).exp_m1(), tolerance, 0.0, format_args!("gradient at {x} in {kind:?}"));
        }
    }
    let (values, gradients) = probe(&[-1e-300, -1e4, f64::NEG_INFINITY], Kind::Double)?;
    all_close(&values, &[300.0 * f64::ln(10.0), 0.0, 0.0], 1e-12, "values far out");
    close(gradients[0], 1e300, 1e-12, 0.0, "gradient near 0");
    assert_eq!(gradients[1..], [0.0, 0.0]);
    Ok(())
}

/// π_l = 1: no number is the answer, so the largest finite one is, and nothing is asked of the policy.
#[test]
fn a_certain_rejected_response_has_a_finite_loss() -> Result<()> {
    for (kind, smallest) in [(Kind::Double, f64::MIN_POSITIVE), (Kind::Float, f64::from(f32::MIN_POSITIVE))] {
        let (values, gradients) = probe(&[0.0, -smallest], kind)?;
        all_close(&values, &[-smallest.ln(); 2], 1e-6, format_args!("values in {kind:?}"));
        assert_eq!(gradients[0], 0.0);
        close(gradients[1], 1.0 / smallest, 1e-6, 0.0, format_args!("gradient at the edge in {kind:?}"));
    }
    Ok(())
}

#[test]
fn data_receive_no_gradient_and_the_reference_is_not_read() -> Result<()> {
    let case = Case::random(4, 3);
    let built = case.build(Kind::Double)?;
    let loss = Drdo::new();
    loss.mean(&built.batch)?.backward();
    for leaf in &built.data {
        assert!(leaf.requires_grad() && !leaf.grad().defined());
    }
    let expected = numbers(&loss.per_pair(&built.batch)?);
    let free = built.batch.map_logps(|logps| Ok(logps.reference_free()))?;
    assert_eq!(numbers(&loss.per_pair(&free)?), expected);
    Ok(())
}

/// The parts of a step keep the student's scores and lengths.
#[test]
fn parts_put_together_are_the_whole() -> Result<()> {
    let (a, b) = (Case::random(3, 4), Case::random(2, 5));
    let parts = [a.build(Kind::Double)?.batch, b.build(Kind::Double)?.batch];
    let whole = PreferenceBatch::concatenated(&parts)?;
    let loss = Drdo::new();
    let expected = [a.per_pair(&loss)?, b.per_pair(&loss)?].concat();
    all_close(&numbers(&loss.per_pair(&whole)?), &expected, 1e-15, "whole");
    Ok(())
}

/// Of two responses the first won the share p of the votes. Then −p log π_a − p log(1 − π_b) and so on is 2·cross-entropy, and the policy
/// ends at π_a = p, finite without a reference, while the head ends at the oracle's margin.
#[test]
fn votes_on_two_responses_are_matched_and_the_oracle_copied() -> Result<()> {
    const SHARE: f64 = 0.7;
    const MARGIN: f64 = 0.8;
    let leaf = || Tensor::zeros([2], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let (logits, student) = (leaf(), leaf());
    let (policy, head) = (logits.shallow_clone(), student.shallow_clone());
    // The pair as it was won and as it was lost.
    let forward = move |(): &()| {
        let logps = policy.log_softmax(-1, Kind::Double);
        let (back, zeros) = (logps.flip([0]), logps.detach().zeros_like());
        let oracle = Tensor::from_slice(&[MARGIN, 0.0]);
        PreferenceBatch::new(PairLogps::new(logps, back, zeros.shallow_clone(), zeros)?)
            .with_rewards(RewardScores::single(&oracle, &oracle.flip([0]))?)?
            .with_student_scores(RewardScores::single(&head, &head.flip([0]))?)?
            .with_weights(Tensor::from_slice(&[SHARE, 1.0 - SHARE]))
    };
    let optimizer = AdamW::new(vec![logits.shallow_clone(), student.shallow_clone()], AdamWConfig::default())?;
    let descent = Descent::new(optimizer, 0.05)?.with_schedule(Warmup::new(5).then_cosine(400)?);
    let mut trainer = PolicyTrainer::new(bare(Contrast::Corrected)?, forward, descent, 1.0)?;
    trainer.fit(std::iter::repeat_n((), 400), &mut [])?;
    all_close(&numbers(&logits.softmax(-1, Kind::Double)), &[SHARE, 1.0 - SHARE], 1e-3, "π");
    let scores = numbers(&student);
    close(scores[0] - scores[1], MARGIN, 1e-3, 0.0, "Δr̂");
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn what_is_missing_is_named() -> Result<()> {
    let missing = |column: &str| {
        format!("Drdo needs the column `{column}`, which this batch lacks: add it with PreferenceBatch::with_{column}")
    };
    let t = || Tensor::from_slice(&[-1.0, -2.0]);
    let scores = || RewardScores::single(&t(), &t());
    let batch = || PairLogps::new(t(), t(), t(), t()).map(PreferenceBatch::new);
    let loss = Drdo::new();
    refused(loss.per_pair(&batch()?), &missing("rewards"));
    refused(loss.per_pair(&batch()?.with_rewards(scores()?)?), &missing("student_scores"));
    let without_lengths = batch()?.with_rewards(scores()?)?.with_student_scores(scores()?)?;
    refused(loss.per_pair(&without_lengths), &missing("lengths"));
    assert_eq!(loss.with_likelihood(Likelihood::Sum).per_pair(&without_lengths)?.size(), [2]);
    let family = RewardScores::new(Tensor::stack(&[t(), t()], 0), Tensor::stack(&[t(), t()], 0))?;
    let said = "Drdo takes one reward model, got 2: choose one with RewardScores::member, or average with RewardScores::averaged";
    refused(loss.per_pair(&batch()?.with_rewards(family)?.with_student_scores(scores()?)?), said);
    Ok(())
}

#[test]
fn numbers_outside_their_domain() {
    for value in [-0.1, f64::NAN, f64::INFINITY] {
        let weight = format!("contrast_weight must be at least 0 and finite, got {value}");
        refused(Drdo::new().with_contrast_weight(value), &weight);
        refused(Drdo::new().with_focus(value), &format!("focus must be at least 0 and finite, got {value}"));
    }
    refused(
        BradleyTerry::new(0.0).and_then(|bt| WithLikelihood::new(bt, -1.0)),
        "likelihood_weight must be at least 0 and finite, got -1",
    );
    let said = |json: &str| serde_json::from_str::<Drdo>(json).expect_err("must be refused").to_string();
    assert!(said(r#"{"contrast_weight": -1}"#).starts_with("contrast_weight must be at least 0 and finite, got -1"));
    assert!(said(r#"{"focus": -1}"#).starts_with("focus must be at least 0 and finite, got -1"));
    assert!(said(r#"{"gamma": 2}"#).starts_with("unknown field `gamma`"));
    assert!(said(r#"{"contrast": "fixed"}"#).starts_with("unknown variant `fixed`"));
}

#[test]
fn it_survives_a_configuration_file() -> Result<()> {
    let other = Drdo::new().with_contrast_weight(0.5)?.with_focus(0.0)?.with_contrast(Contrast::Printed);
    let other = other.with_likelihood(Likelihood::Sum).with_focal_weight(FocalWeight::Detached);
    for (loss, json) in [
        (
            Drdo::default(),
            r#"{"contrast_weight":0.1,"focus":2.0,"contrast":"corrected","likelihood":"token_mean","focal_weight":"attached"}"#,
        ),
        (
            other,
            r#"{"contrast_weight":0.5,"focus":0.0,"contrast":"printed","likelihood":"sum","focal_weight":"detached"}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&loss).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<Drdo>(json).expect("its own text"), loss);
    }
    assert_eq!(serde_json::from_str::<Drdo>("{}").expect("valid"), Drdo::new());
    Ok(())
}

/// −log σ(Δr) + c (r_w + r_l)² − w·log π(y_w), with −w at each log π(y_w).
#[test]
fn the_oracles_objective_adds_the_likelihood() -> Result<()> {
    let case = Case::random(5, 6);
    for (centring, weight) in [(0.0, 0.3), (0.2, 0.0), (0.2, 1.5)] {
        let objective = WithLikelihood::new(BradleyTerry::new(centring)?, weight)?;
        let built = case.build(Kind::Double)?;
        let scores = || RewardScores::single(&built.student[0], &built.student[1]);
        let batch = RewardBatch::new(scores()?).with_chosen_logps(built.logps[0].shallow_clone())?;
        let equation = |i: usize| {
            let (w, l) = (case.student[0][i], case.student[1][i]);
            -oracle::log_sigmoid(w - l) + centring * (w + l).powi(2) - weight * case.logps[0][i]
        };
        let expected: Vec<f64> = (0..5).map(equation).collect();
        all_close(&numbers(&objective.per_pair(&batch)?), &expected, 1e-13, "losses");
        let mean = objective.mean(&batch)?;
        close(number(&mean), oracle::mean(expected.into_iter()), 1e-13, 1.0, "mean");
        mean.backward();
        all_close(&numbers(&built.logps[0].grad()), &[-weight / 5.0; 5], 1e-14, "language model");
        let of_score = |i: usize| {
            let (w, l) = (case.student[0][i], case.student[1][i]);
            (-oracle::sigmoid(l - w) + 2.0 * centring * (w + l)) / 5.0
        };
        let expected: Vec<f64> = (0..5).map(of_score).collect();
        all_close(&numbers(&built.student[0].grad()), &expected, 1e-13, "reward model");
        let said = "WithLikelihood needs the column `chosen_logps`, which this batch lacks: add it with RewardBatch::with_chosen_logps";
        let missing = objective.per_pair(&RewardBatch::new(scores()?));
        assert!(matches!(&missing, Err(Error::MissingRewardColumn { .. })));
        refused(missing, said);
    }
    Ok(())
}

#[test]
fn its_column_has_to_fit() -> Result<()> {
    let t = |n: i64| Tensor::zeros([n], (Kind::Double, Device::Cpu));
    let batch = || RewardScores::single(&t(3), &t(3)).map(RewardBatch::new);
    let said = "chosen_logps must have shape [batch] with batch = 3, got batch = 2";
    refused(batch()?.with_chosen_logps(t(2)), said);
    refused(batch()?.with_chosen_logps(t(3).unsqueeze(1)), "chosen_logps must have shape [batch], got [3, 1]");
    Ok(())
}
