//! The E-step, and what it hands to the M-step.

use ndarray::{Array2, array};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result,
    loss::{Dpo, ProbabilityMatching},
    population::{Assignment, PairWeights, Responsibilities, Votes, held_out_log_likelihood},
    tch::Tensor,
};

use super::{Cast, random_rows, simplex, soft, uniform};
use crate::{all_close, close, identities::config, number, numbers, oracle};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_e_step_is_bayes_rule(seed in any::<u64>(), annotators in 1..9_usize, pairs in 1..6_usize, each in 1..8_usize, types in 1..5_usize) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let cast = Cast::new((annotators, pairs), each, seed, |_, _| 0.6);
        let (proportions, margins) = (simplex(types, rng), uniform((types, pairs), 3.0, rng));
        let (found, log_likelihood) = soft().expect(&cast.votes(), proportions.view(), margins.view())?;
        for (i, joint) in cast.joint(&proportions.to_vec(), &margins).iter().enumerate() {
            let total: f64 = joint.iter().sum();
            let expected: Vec<f64> = joint.iter().map(|p| p / total).collect();
            all_close(&found.values().row(i).to_vec(), &expected, 1e-12, "γ");
            close(found.values().row(i).sum(), 1.0, 1e-14, 0.0, "sum of a row");
        }
        close(log_likelihood, cast.log_likelihood(&proportions.to_vec(), &margins), 1e-12, 1.0, "log-likelihood");
    }

    #[test]
    fn weights_are_the_objectives_of_dpo(seed in any::<u64>(), annotators in 1..7_usize, pairs in 1..6_usize, each in 1..8_usize, types in 1..4_usize) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let cast = Cast::new((annotators, pairs), each, seed, |_, _| 0.6);
        let gamma = random_rows((annotators, types), rng);
        let h = uniform((1, pairs), 3.0, rng);
        let weights = PairWeights::new(&cast.votes(), &gamma)?;
        prop_assert_eq!((weights.types(), weights.pairs()), (types, pairs));
        close(weights.weights().sum(), cast.first.len() as f64, 1e-12, 0.0, "all votes");
        for k in 0..types {
            let mut expected = 0.0;
            let (mut first, mut second) = (vec![0.0; pairs], vec![0.0; pairs]);
            for (i, j, preferred) in cast.rows() {
                let gamma = gamma.values()[[i, k]];
                let bh = 0.5 * h[[0, j]];
                expected -= gamma * oracle::log_sigmoid(if preferred { bh } else { -bh });
                if preferred { first[j] += gamma } else { second[j] += gamma }
            }
            all_close(&weights.first().row(k).to_vec(), &first, 1e-12, "n_first");
            all_close(&weights.second().row(k).to_vec(), &second, 1e-12, "n_second");
            let labelled = PreferenceBatch::new(logps(&h.row(0).to_vec())?).with_soft_labels(tensor(&weights.labels(), k))?;
            let of_type = numbers(&ProbabilityMatching::to_soft_labels(0.5)?.per_pair(&labelled)?);
            let found: f64 = weights.weights().row(k).iter().zip(&of_type).map(|(n, loss)| n * loss).sum();
            close(found, expected, 1e-12, 1.0, "objective");
        }
    }
}

fn tensor(rows: &Array2<f64>, row: usize) -> Tensor {
    Tensor::from_slice(&rows.row(row).to_vec())
}

/// Pairs of these margins h.
fn logps(h: &[f64]) -> Result<PairLogps> {
    let zeros = || Tensor::from_slice(&vec![0.0; h.len()]);
    PairLogps::new(Tensor::from_slice(h), zeros(), zeros(), zeros())
}

/// More annotators than a job sums: each one's row is what it is alone, and the sum does not depend on the threads.
#[test]
fn annotators_do_not_mix() -> Result<()> {
    let rng = &mut ChaCha8Rng::seed_from_u64(5);
    let cast = Cast::new((2500, 30), 3, 6, |_, pair| 0.2 + 0.02 * pair as f64);
    let (proportions, margins) = (simplex(3, rng), uniform((3, 30), 2.0, rng));
    let votes = cast.votes();
    let (together, total) = soft().expect(&votes, proportions.view(), margins.view())?;
    let mut sum = 0.0;
    for annotator in [0, 1, 1023, 1024, 2047, 2048, 2499] {
        let (pairs, first): (Vec<usize>, Vec<bool>) = votes.of(annotator).unzip();
        let alone = Votes::new(&vec![0; pairs.len()], &pairs, &first, (1, 30))?;
        let (row, _) = soft().expect(&alone, proportions.view(), margins.view())?;
        assert_eq!(row.values().row(0), together.values().row(annotator), "annotator {annotator}");
    }
    for annotator in 0..2500 {
        let (pairs, first): (Vec<usize>, Vec<bool>) = votes.of(annotator).unzip();
        let alone = Votes::new(&vec![0; pairs.len()], &pairs, &first, (1, 30))?;
        sum += soft().expect(&alone, proportions.view(), margins.view())?.1;
    }
    close(total, sum, 1e-12, 0.0, "log-likelihood");
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let again = pool.install(|| soft().expect(&votes, proportions.view(), margins.view()))?;
        assert_eq!(again, (together.clone(), total));
    }
    Ok(())
}

#[test]
fn extreme_margins_stay_finite() -> Result<()> {
    let votes = Votes::new(&[0; 50], &[0; 50], &[true; 50], (1, 1))?;
    let (gamma, log_likelihood) = soft().expect(&votes, array![0.5, 0.5].view(), array![[1e4], [-1e4]].view())?;
    assert_eq!(gamma.values(), array![[1.0, 0.0]]);
    close(log_likelihood, 0.5_f64.ln(), 1e-12, 0.0, "the sure type");
    let (gamma, log_likelihood) = soft().expect(&votes, array![0.5, 0.5].view(), array![[-1e4], [-1e4]].view())?;
    assert_eq!(gamma.values(), array![[0.5, 0.5]]);
    close(log_likelihood, -50.0 * 1e4, 1e-12, 0.0, "both surprised");
    // A type that nobody is of stays so.
    let (gamma, _) = soft().expect(&votes, array![0.0, 1.0].view(), array![[1e4], [-1e4]].view())?;
    assert_eq!(gamma.values(), array![[0.0, 1.0]]);
    Ok(())
}

#[test]
fn equal_policies_leave_the_proportions() -> Result<()> {
    let cast = Cast::opposed((40, 6), 5, 0.9, 7);
    let row = uniform((1, 6), 2.0, &mut ChaCha8Rng::seed_from_u64(8));
    let margins = Array2::from_shape_fn((3, 6), |(_, pair)| row[[0, pair]]);
    let proportions = array![0.2, 0.5, 0.3];
    let (gamma, log_likelihood) = soft().expect(&cast.votes(), proportions.view(), margins.view())?;
    for row in gamma.values().outer_iter() {
        all_close(&row.to_vec(), &proportions.to_vec(), 1e-13, "γ = η");
    }
    all_close(&gamma.proportions().to_vec(), &proportions.to_vec(), 1e-13, "η");
    let (_, alone) = soft().expect(&cast.votes(), array![1.0].view(), row.view())?;
    close(log_likelihood, alone, 1e-13, 0.0, "log-likelihood");
    Ok(())
}

/// K = 1: γ = 1, the weights are plain counts, and the M-step's loss and gradient are DPO's on the votes.
#[test]
fn one_type_is_dpo() -> Result<()> {
    const BETA: f64 = 0.3;
    let cast = Cast::opposed((10, 5), 6, 0.8, 11);
    let votes = cast.votes();
    let weights = PairWeights::new(&votes, &Responsibilities::new(Array2::ones((10, 1)))?)?;
    let zeros = |n: usize| Tensor::from_slice(&vec![0.0; n]);
    let leaves = || {
        [[0.4, -1.2, 2.0, 0.1, -0.7], [-0.3, 0.9, 1.1, -2.0, 0.5]]
            .map(|l| Tensor::from_slice(&l).set_requires_grad(true))
    };

    let [first, second] = leaves();
    let batch =
        PreferenceBatch::new(PairLogps::new(first.shallow_clone(), second.shallow_clone(), zeros(5), zeros(5))?);
    let batch = batch.with_weights(tensor(&weights.weights(), 0))?.with_soft_labels(tensor(&weights.labels(), 0))?;
    let weighted = ProbabilityMatching::to_soft_labels(BETA)?.mean(&batch)?;
    weighted.backward();

    let [each_first, each_second] = leaves();
    let index = |preferred: bool| {
        let of = |(_, pair, first): (usize, usize, bool)| pair as i64 + if first == preferred { 0 } else { 5 };
        Tensor::from_slice(&cast.rows().map(of).collect::<Vec<i64>>())
    };
    let both = Tensor::cat(&[&each_first, &each_second], 0);
    let (chosen, rejected) = (both.index_select(0, &index(true)), both.index_select(0, &index(false)));
    let n = cast.first.len();
    let dpo = Dpo::new(BETA)?.mean(&PreferenceBatch::new(PairLogps::new(chosen, rejected, zeros(n), zeros(n))?))?;
    dpo.backward();

    close(number(&weighted), number(&dpo), 1e-13, 0.0, "loss");
    all_close(&numbers(&first.grad()), &numbers(&each_first.grad()), 1e-13, "gradient");
    all_close(&numbers(&second.grad()), &numbers(&each_second.grad()), 1e-13, "gradient");

    let margins = Array2::from_shape_vec((1, 5), numbers(&((first - second) * BETA))).expect("a row");
    let (gamma, log_likelihood) = soft().expect(&votes, array![1.0].view(), margins.view())?;
    assert_eq!(gamma.values(), Array2::<f64>::ones((10, 1)));
    close(log_likelihood, -number(&dpo) * n as f64, 1e-13, 0.0, "log-likelihood");
    Ok(())
}

#[test]
fn hard_assignment_gives_all_to_the_first_of_the_likeliest() -> Result<()> {
    let votes = Votes::new(&[0, 1, 2], &[0, 0, 1], &[true, false, true], (3, 2))?;
    let (margins, shares) = (array![[2.0, 0.0], [-2.0, 0.0]], array![0.5, 0.5]);
    let hard = soft().with_assignment(Assignment::Hard);
    let (gamma, log_likelihood) = hard.expect(&votes, shares.view(), margins.view())?;
    assert_eq!(gamma.values(), array![[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]);
    assert_eq!(gamma.most_likely(), [0, 1, 0]);
    let expected = 2.0 * oracle::log_sigmoid(2.0) + 0.5_f64.ln() + 3.0 * 0.5_f64.ln();
    close(log_likelihood, expected, 1e-13, 0.0, "classification log-likelihood");
    Ok(())
}

#[test]
fn held_out_votes_are_judged_by_the_annotators_own_types() -> Result<()> {
    let cast = Cast::opposed((15, 6), 4, 0.8, 19);
    let rng = &mut ChaCha8Rng::seed_from_u64(20);
    let (gamma, margins) = (random_rows((15, 3), rng), uniform((3, 6), 2.0, rng));
    let (_, held_out) = cast.votes().hold_out(0.1, rng)?;
    let found = held_out_log_likelihood(&gamma, margins.view(), &held_out)?;
    for (annotator, &found) in found.iter().enumerate() {
        let likelihood = |k: usize| {
            let vote = |(pair, first): (usize, bool)| {
                oracle::sigmoid(if first { margins[[k, pair]] } else { -margins[[k, pair]] })
            };
            held_out.of(annotator).map(vote).product::<f64>()
        };
        let expected = (0..3).map(|k| gamma.values()[[annotator, k]] * likelihood(k)).sum::<f64>().ln();
        close(found, expected, 1e-12, 1.0, "log-likelihood");
    }
    assert!((0..15).any(|annotator| held_out.of(annotator).count() == 0), "the test means to have someone without");
    Ok(())
}
