//! Laws of the losses, as properties.

use proptest::prelude::*;

use prefopt::{
    PreferenceBatch, PreferenceLoss, ResponseLengths, ResponseTable, Result,
    loss::{
        Dpo, ForwardKl, Hinge, Ipo, Minimum, PessimisticDistillation, ProbabilityMatching, RewardDistillation,
        RobustDpo,
    },
    tch::{Device, Kind, Tensor},
};

use crate::{
    all_close, close,
    columns::{Columns, columns},
    number, numbers, oracle,
    table::table,
};

pub fn config() -> ProptestConfig {
    // The seed is in the message; a file of regressions beside the sources would be one more thing to keep.
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

fn per_pair(loss: &impl PreferenceLoss, columns: &Columns) -> Vec<f64> {
    numbers(&loss.per_pair(&columns.batch()).expect("has every column"))
}

fn added(scores: &[Vec<f64>], shift: &[f64]) -> Vec<Vec<f64>> {
    scores.iter().map(|member| member.iter().zip(shift).map(|(s, c)| s + c).collect()).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_sum_is_linear_in_its_term(c in columns(1..=1), weight in -3.0..3.0, beta in 0.01..2.0) {
        let (base, term) = (RewardDistillation::new(beta)?, ForwardKl::ReferenceSamples);
        let expected: Vec<f64> = per_pair(&base, &c).iter().zip(per_pair(&term, &c)).map(|(b, t)| b + weight * t).collect();
        all_close(&per_pair(&base.plus(weight, term), &c), &expected, 1e-13, "sum");
    }

    #[test]
    fn without_gamma_the_anchored_losses_are_their_bases(c in columns(1..=1), beta in 0.01..2.0) {
        for anchor in [ForwardKl::Exact, ForwardKl::ReferenceSamples, ForwardKl::ReferenceSamplesK3, ForwardKl::OwnResponses] {
            let dpo = Dpo::new(beta)?;
            prop_assert_eq!(per_pair(&dpo.plus(0.0, anchor), &c), per_pair(&dpo, &c));
            let d_dpo = RewardDistillation::new(beta)?;
            prop_assert_eq!(per_pair(&d_dpo.plus(0.0, anchor), &c), per_pair(&d_dpo, &c));
        }
    }

    /// Scores and shifts are multiples of 1/64, so that the sums are exact and so is the equality.
    #[test]
    fn a_reward_of_the_prompt_changes_nothing(c in columns(1..=3), shift in prop::collection::vec(-640..640_i32, 6), beta in 0.01..2.0) {
        let shift: Vec<f64> = shift[..c.len()].iter().map(|s| f64::from(*s) / 64.0).collect();
        let moved = Columns {
            chosen_scores: added(&c.chosen_scores, &shift),
            rejected_scores: added(&c.rejected_scores, &shift),
            ..c.clone()
        };
        let ensemble = PessimisticDistillation::new(beta)?;
        for minimum in [Minimum::Batch, Minimum::Pair, Minimum::Dataset { member: 0 }, Minimum::Hull] {
            let loss = ensemble.with_minimum(minimum);
            prop_assert_eq!(per_pair(&loss, &moved), per_pair(&loss, &c));
        }
        if c.chosen_scores.len() == 1 {
            prop_assert_eq!(per_pair(&RewardDistillation::new(beta)?, &moved), per_pair(&RewardDistillation::new(beta)?, &c));
            let matching = ProbabilityMatching::to_rewards(beta)?;
            prop_assert_eq!(per_pair(&matching, &moved), per_pair(&matching, &c));
        }
    }

    #[test]
    fn a_margin_of_one_half_makes_distillation_ipo(c in columns(1..=1), beta in 0.01..2.0) {
        let c = c.clone().with_reward_margins(&[vec![0.5; c.len()]]);
        let ipo: Vec<f64> = per_pair(&Ipo::new(beta)?, &c).iter().map(|l| beta * beta * l).collect();
        all_close(&per_pair(&RewardDistillation::new(beta)?, &c), &ipo, 1e-12, "β² IPO(τ = β)");
    }

    #[test]
    fn at_the_reference_distillation_is_the_squared_margin(c in columns(1..=1), beta in 0.01..2.0) {
        let c = c.at_reference();
        let squares: Vec<f64> = c.reward_margins()[0].iter().map(|m| m * m).collect();
        prop_assert_eq!(per_pair(&RewardDistillation::new(beta)?, &c), squares);
    }

    #[test]
    fn at_the_reference_every_divergence_is_zero(c in columns(1..=1)) {
        let c = c.at_reference();
        for kl in [ForwardKl::Exact, ForwardKl::ReferenceSamples, ForwardKl::ReferenceSamplesK3, ForwardKl::OwnResponses] {
            prop_assert!(per_pair(&kl, &c).iter().all(|k| *k == 0.0), "{:?}", kl);
        }
    }

    #[test]
    fn k3_is_never_negative_and_the_exact_sum_neither(logits in prop::collection::vec(-4.0..4.0, 4), reference in prop::collection::vec(-4.0..4.0, 4)) {
        let (policy, reference) = (oracle::log_softmax(&logits), oracle::log_softmax(&reference));
        let one = Columns { samples: [vec![policy.clone()], vec![reference.clone()]], all: [vec![policy], vec![reference]], ..Columns::random(1, 1, 0) };
        prop_assert!(per_pair(&ForwardKl::ReferenceSamplesK3, &one)[0] >= 0.0);
        prop_assert!(per_pair(&ForwardKl::Exact, &one)[0] >= -1e-15);
    }

    /// Every response of the reference once, weighted by its probability: the expectation of an estimator without sampling.
    #[test]
    fn the_sampled_divergences_are_unbiased(logits in prop::collection::vec(-2.0..2.0, 4), reference in prop::collection::vec(-2.0..2.0, 4)) {
        for (logits, at_reference) in [(&logits, false), (&reference, true)] {
            let divergences = Divergences::new(logits, &oracle::log_softmax(&reference)).expect("tables fit");
            let [exact, k1, k3] = [divergences.exact, divergences.k1, divergences.k3];
            for (estimator, name) in [(k1, "k1"), (k3, "k3")] {
                close(estimator.0, exact.0, 1e-12, 1.0, name);
                all_close(&estimator.1, &exact.1, 1e-12, name);
            }
            if at_reference {
                all_close(&exact.1, &[0.0; 4], 1e-15, "gradient of the exact sum at the reference");
            }
        }
    }

    #[test]
    fn a_certain_reward_makes_matching_dpo(c in columns(1..=1), beta in 0.01..2.0) {
        let sure = c.clone().with_reward_margins(&[vec![1e4; c.len()]]);
        let dpo = per_pair(&Dpo::new(beta)?, &c);
        prop_assert_eq!(per_pair(&ProbabilityMatching::to_rewards(beta)?, &sure), dpo.clone());
        let labelled = Columns { soft_labels: vec![1.0; c.len()], ..c };
        prop_assert_eq!(per_pair(&ProbabilityMatching::to_soft_labels(beta)?, &labelled), dpo);
    }

    #[test]
    fn a_constant_soft_label_makes_matching_cdpo(c in columns(1..=1), beta in 0.01..2.0, flip in 0.0..0.5) {
        let labelled = Columns { soft_labels: vec![1.0 - flip; c.len()], ..c };
        let cdpo = per_pair(&Dpo::new(beta)?.with_flip_rate(flip)?, &labelled);
        all_close(&per_pair(&ProbabilityMatching::to_soft_labels(beta)?, &labelled), &cdpo, 1e-12, "matching");
    }

    #[test]
    fn the_minimiser_of_cdpo_is_the_log_odds(flip in 0.01..0.49, beta in 0.05..2.0, away in 0.05..3.0) {
        let best = f64::ln((1.0 - flip) / flip) / beta;
        let (values, slopes) = curve(&Dpo::new(beta)?.with_flip_rate(flip)?, &[best, best - away, best + away], 0.0);
        prop_assert!(slopes[0].abs() < 1e-14 && slopes[1] < 0.0 && slopes[2] > 0.0);
        prop_assert!(values[0] < values[1] && values[0] < values[2]);
    }

    #[test]
    fn the_minimiser_of_matching_is_the_margin(margin in -3.0..3.0, beta in 0.05..2.0, away in 0.05..3.0) {
        let best = margin / beta;
        let (_, slopes) = curve(&ProbabilityMatching::to_rewards(beta)?, &[best, best - away, best + away], margin);
        prop_assert!(slopes[0].abs() < 1e-14 && slopes[1] < 0.0 && slopes[2] > 0.0);
    }

    #[test]
    fn flips_leave_robust_dpo_unbiased(h in -20.0..20.0, flip in 0.0..0.49, beta in 0.05..2.0) {
        let (robust, _) = curve(&RobustDpo::new(beta, flip)?, &[h, -h], 0.0);
        let (clean, _) = curve(&Dpo::new(beta)?, &[h], 0.0);
        close((1.0 - flip) * robust[0] + flip * robust[1], clean[0], 1e-11, 1.0, "expectation over flips");
    }

    #[test]
    fn robust_dpo_falls_strictly(h in -20.0..20.0, flip in 0.0..0.49, beta in 0.05..0.5, step in 0.01..3.0) {
        let (values, slopes) = curve(&RobustDpo::new(beta, flip)?, &[h, h + step], 0.0);
        prop_assert!(values[1] < values[0] && slopes.iter().all(|s| *s < 0.0));
    }

    /// Labels enter distillation only through the reward; DPO, trusting them, is not symmetric.
    #[test]
    fn distillation_is_symmetric_under_swaps(c in columns(1..=3), beta in 0.01..2.0) {
        let swapped = Columns {
            chosen: c.rejected.clone(),
            rejected: c.chosen.clone(),
            ref_chosen: c.ref_rejected.clone(),
            ref_rejected: c.ref_chosen.clone(),
            chosen_scores: c.rejected_scores.clone(),
            rejected_scores: c.chosen_scores.clone(),
            ..c.clone()
        };
        for minimum in [Minimum::Batch, Minimum::Pair, Minimum::Hull] {
            let loss = PessimisticDistillation::new(beta)?.with_minimum(minimum);
            prop_assert_eq!(per_pair(&loss, &swapped), per_pair(&loss, &c));
        }
        let difference: Vec<f64> = per_pair(&Dpo::new(beta)?, &c).iter().zip(per_pair(&Dpo::new(beta)?, &swapped)).map(|(a, b)| a - b).collect();
        let minus_logits: Vec<f64> = c.h().iter().map(|h| -beta * h).collect();
        all_close(&difference, &minus_logits, 1e-12, "log σ(−x) − log σ(x)");
    }

    #[test]
    fn without_reference_the_margin_is_the_policys(c in columns(1..=1), beta in 0.01..2.0) {
        let batch = c.batch().map_logps(|logps| Ok(logps.reference_free()))?;
        let expected: Vec<f64> = (0..c.len()).map(|i| oracle::hinge(beta * (c.chosen[i] - c.rejected[i]))).collect();
        all_close(&numbers(&Hinge::new(beta)?.per_pair(&batch)?), &expected, 1e-13, "hinge without reference");
    }

    /// TRL's IPO: every log-probability over its own response's length.
    #[test]
    fn per_token_divides_each_response_by_its_length(c in columns(1..=1), lengths in prop::collection::vec((1..40_i64, 1..40_i64), 6), tau in 0.05..2.0) {
        let (w, l): (Vec<i64>, Vec<i64>) = lengths[..c.len()].iter().copied().unzip();
        let tokens = ResponseLengths::new(Tensor::from_slice(&w), Tensor::from_slice(&l))?;
        let batch = c.batch().map_logps(|logps| logps.per_token(&tokens))?;
        let margin = |i: usize| (c.chosen[i] - c.ref_chosen[i]) / w[i] as f64 - (c.rejected[i] - c.ref_rejected[i]) / l[i] as f64;
        let expected: Vec<f64> = (0..c.len()).map(|i| oracle::ipo(margin(i), tau)).collect();
        all_close(&numbers(&Ipo::new(tau)?.per_pair(&batch)?), &expected, 1e-12, "ipo per token");
    }
}

/// A pair of weight k counts as k copies of it, in every row.
#[test]
fn a_weight_is_a_number_of_copies() -> Result<()> {
    let copies = [2_usize, 1, 3, 1];
    let repeat = |row: &Vec<f64>| row.iter().zip(copies).flat_map(|(x, n)| vec![*x; n]).collect::<Vec<_>>();
    let repeat_rows =
        |rows: &Vec<Vec<f64>>| rows.iter().zip(copies).flat_map(|(x, n)| vec![x.clone(); n]).collect::<Vec<_>>();
    for row in table()? {
        let weighted = Columns { weights: copies.map(|n| n as f64).to_vec(), ..Columns::random(4, row.members, 21) };
        let repeated = Columns {
            chosen: repeat(&weighted.chosen),
            rejected: repeat(&weighted.rejected),
            ref_chosen: repeat(&weighted.ref_chosen),
            ref_rejected: repeat(&weighted.ref_rejected),
            chosen_scores: weighted.chosen_scores.iter().map(repeat).collect(),
            rejected_scores: weighted.rejected_scores.iter().map(repeat).collect(),
            soft_labels: repeat(&weighted.soft_labels),
            weights: vec![1.0; 7],
            samples: [0, 1].map(|i| repeat_rows(&weighted.samples[i])),
            all: [0, 1].map(|i| repeat_rows(&weighted.all[i])),
            student: weighted.student.each_ref().map(repeat),
            own: [0, 1].map(|i| repeat_rows(&weighted.own[i])),
            lengths: weighted
                .lengths
                .each_ref()
                .map(|lengths| lengths.iter().zip(copies).flat_map(|(length, n)| vec![*length; n]).collect()),
        };
        let [a, b] = [weighted, repeated].map(|c| row.loss.mean(&c.batch()).map(|mean| number(&mean)));
        close(a?, b?, 1e-12, 1.0, row.name);
    }
    Ok(())
}

/// Value and slope in h of a loss at these margins, with every reward margin the same.
fn curve(loss: &impl PreferenceLoss, h: &[f64], margin: f64) -> (Vec<f64>, Vec<f64>) {
    let zeros = vec![0.0; h.len()];
    let columns = Columns {
        chosen: h.to_vec(),
        rejected: zeros.clone(),
        ref_chosen: zeros.clone(),
        ref_rejected: zeros,
        ..Columns::random(h.len(), 1, 0).with_reward_margins(&[vec![margin; h.len()]])
    };
    let built = columns.build(Kind::Double, Device::Cpu).expect("columns fit");
    let losses = loss.per_pair(&built.batch).expect("has every column");
    losses.sum(Kind::Double).backward();
    (numbers(&losses), numbers(&built.policy[0].grad()))
}

/// Value, and gradient with respect to the policy's logits, of each divergence.
struct Divergences {
    exact: (f64, Vec<f64>),
    k1: (f64, Vec<f64>),
    k3: (f64, Vec<f64>),
}

impl Divergences {
    fn new(logits: &[f64], reference: &[f64]) -> Result<Self> {
        let reference_row = Tensor::from_slice(reference);
        let n = reference.len() as i64;
        let measure = |kl: ForwardKl| -> Result<_> {
            let leaf = Tensor::from_slice(logits).set_requires_grad(true);
            let policy = leaf.log_softmax(-1, Kind::Double);
            let logps = prefopt::PairLogps::new(
                policy.shallow_clone(),
                policy.shallow_clone(),
                reference_row.shallow_clone(),
                reference_row.shallow_clone(),
            )?;
            let samples = ResponseTable::new(policy.unsqueeze(1), reference_row.unsqueeze(1))?;
            let every = ResponseTable::new(policy.expand([n, n], false), reference_row.expand([n, n], false))?;
            let batch = PreferenceBatch::new(logps)
                .with_weights(reference_row.exp())?
                .with_reference_samples(samples)?
                .with_all_responses(every)?;
            let mean = kl.mean(&batch)?;
            mean.backward();
            Ok((number(&mean), numbers(&leaf.grad())))
        };
        Ok(Self {
            exact: measure(ForwardKl::Exact)?,
            k1: measure(ForwardKl::ReferenceSamples)?,
            k3: measure(ForwardKl::ReferenceSamplesK3)?,
        })
    }
}
