//! Divergences, entropy, repetition and labels from samples and token ids: exact expectations, and honest errors.

use std::num::NonZeroUsize;

use prefopt::{
    Error, ResponseTable, Result,
    diagnostics::{
        Estimate, Metrics, entropy, forward_kl, mass_moved_elsewhere, opposed_labels, repetition, reverse_kl,
        sample_metrics, total_variation,
    },
    tch::Tensor,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::says;
use crate::close;

const POLICY: [f64; 4] = [0.5, 0.25, 0.125, 0.125];
const REFERENCE: [f64; 4] = [0.25, 0.25, 0.375, 0.125];
/// Responses as often as the policy, or the reference, gives them: means over them are exact expectations.
const OWN: [usize; 8] = [0, 0, 0, 0, 1, 1, 2, 3];
const ITS: [usize; 8] = [0, 0, 1, 1, 2, 2, 2, 3];

fn table(prompts: &[&[usize]]) -> Result<ResponseTable> {
    let of = |mass: [f64; 4]| {
        let rows: Vec<f64> = prompts.iter().copied().flatten().map(|&i| mass[i].ln()).collect();
        Tensor::from_slice(&rows).view([prompts.len() as i64, -1])
    };
    ResponseTable::new(of(POLICY), of(REFERENCE))
}

#[test]
fn samples_give_the_exact_sums() -> Result<()> {
    let sum = |of: fn(f64, f64) -> f64| POLICY.iter().zip(REFERENCE).map(|(p, r)| of(*p, r)).sum::<f64>();
    let (own, its) = (table(&[&OWN])?, table(&[&ITS])?);
    close(reverse_kl(&own)?.mean, sum(|p, r| p * (p / r).ln()), 1e-14, 0.0, "reverse");
    close(forward_kl(&its)?.mean, sum(|p, r| r * (r / p).ln()), 1e-14, 0.0, "forward");
    close(entropy(&own)?.mean, sum(|p, _| -p * p.ln()), 1e-14, 0.0, "entropy");
    // Half of |p − r| summed, which is the mass that moved.
    close(total_variation(&own)?.mean, sum(|p, r| 0.5 * (p - r).abs()), 1e-14, 0.0, "total variation");
    close(total_variation(&own)?.mean, 0.25, 1e-14, 0.0, "a quarter went to the first response");
    Ok(())
}

#[test]
fn what_went_to_neither_leaves_the_pair_out() -> Result<()> {
    let own = table(&[&OWN, &OWN])?;
    // In the first prompt the response that gained is one of the pair, in the second it is not.
    let judged = |pair: [usize; 2]| OWN.map(|response| pair.contains(&response));
    let of = |pairs: [[usize; 2]; 2]| {
        let judged = pairs.map(judged).concat();
        mass_moved_elsewhere(&own, &Tensor::from_slice(&judged).view([2, -1]))
    };
    close(of([[0, 1], [2, 3]])?.mean, 0.125, 1e-14, 0.0, "of one prompt");
    assert_eq!(of([[0, 1], [0, 3]])?.mean, 0.0);
    assert_eq!(of([[2, 3], [1, 2]])?, total_variation(&own)?);
    let refused = |judged: Tensor| mass_moved_elsewhere(&own, &judged).expect_err("must be refused").to_string();
    let narrow = Tensor::from_slice(&[true; 6]).view([2, 3]);
    assert_eq!(refused(narrow), "judged must have shape [prompts, samples] with samples = 8, got samples = 3");
    let counts = Tensor::from_slice(&[1_i64; 16]).view([2, 8]);
    assert_eq!(refused(counts), "judged must be Bool, got Int64");
    Ok(())
}

/// Samples of a prompt are alike: what is independent is the prompts. Of one prompt it is its samples.
#[test]
fn standard_errors_are_over_prompts() -> Result<()> {
    let k = |response: usize| (POLICY[response] / REFERENCE[response]).ln();
    let error = |values: &[f64]| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
    };
    let three = reverse_kl(&table(&[&[0, 0], &[0, 2], &[1, 2]])?)?;
    let means = [k(0), 0.5 * (k(0) + k(2)), 0.5 * (k(1) + k(2))];
    close(three.error, error(&means), 1e-14, 0.0, "of three prompts");
    let one = reverse_kl(&table(&[&[0, 1, 2]])?)?;
    close(one.error, error(&[k(0), k(1), k(2)]), 1e-14, 0.0, "of one prompt");
    assert!(reverse_kl(&table(&[&[0]])?)?.error.is_nan());
    Ok(())
}

/// The error is what estimates scatter by.
#[test]
fn standard_errors_are_honest() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut estimates: Vec<Estimate> = Vec::new();
    for _ in 0..1000 {
        let rows: Vec<Vec<usize>> = (0..12).map(|_| (0..3).map(|_| OWN[rng.random_range(0..8)]).collect()).collect();
        estimates.push(reverse_kl(&table(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())?)?);
    }
    let exact: f64 = POLICY.iter().zip(REFERENCE).map(|(p, r)| p * (p / r).ln()).sum();
    let n = estimates.len() as f64;
    let scatter = (estimates.iter().map(|e| (e.mean - exact).powi(2)).sum::<f64>() / n).sqrt();
    let claimed = (estimates.iter().map(|e| e.error.powi(2)).sum::<f64>() / n).sqrt();
    close(claimed, scatter, 0.1, 0.0, "standard error");
    Ok(())
}

#[test]
fn runs_that_come_again_are_repetition() -> Result<()> {
    let two = NonZeroUsize::new(2).expect("is not 0");
    // 12 23 31 12 23: two of five come again. No run in the second, one in the third.
    let responses: [Vec<i64>; 3] = [vec![1, 2, 3, 1, 2, 3], vec![7], vec![4, 4]];
    close(repetition(&responses[..1], two)?, 0.4, 1e-15, 0.0, "one");
    close(repetition(&responses, two)?, 0.4 / 3.0, 1e-15, 0.0, "mean");
    assert_eq!(repetition(&[[5_i64; 9]], two)?, 7.0 / 8.0);
    let none: [Vec<i64>; 0] = [];
    let empty = repetition(&none, two).expect_err("nothing to measure").to_string();
    assert_eq!(empty, "responses is empty: shape [responses] needs at least one element");
    Ok(())
}

#[test]
fn samples_are_measured_together() -> Result<()> {
    let responses: [Vec<i64>; 4] = [vec![1, 2, 3], vec![1, 2, 3], vec![9; 8], vec![5, 6]];
    let samples = table(&[&[0, 0], &[1, 2]])?;
    let metrics = sample_metrics(&samples, &responses)?;
    let nats: f64 = [0, 0, 1, 2].iter().map(|&i: &usize| -POLICY[i].ln()).sum();
    says(
        &metrics,
        &[
            ("samples/reverse_kl", reverse_kl(&samples)?.mean),
            ("samples/reverse_kl_error", reverse_kl(&samples)?.error),
            ("samples/moved", total_variation(&samples)?.mean),
            ("samples/entropy", nats / 16.0),
            ("samples/length", 4.0),
            // Four of the five runs of 4 in the third response.
            ("samples/repetition", 0.8 / 4.0),
            // Three different ones among four.
            ("samples/alike", 0.25),
        ],
    );
    let one = sample_metrics(&table(&[&[0]])?, &responses[..1])?;
    assert_eq!(one.get("samples/reverse_kl_error"), None);
    let said = |outcome: Result<Metrics>| outcome.expect_err("must be refused").to_string();
    assert_eq!(
        said(sample_metrics(&samples, &responses[..3])),
        "responses must have shape [prompts · samples] with prompts · samples = 4, got prompts · samples = 3"
    );
    let empty: [Vec<i64>; 4] = Default::default();
    assert!(matches!(sample_metrics(&samples, &empty), Err(Error::Empty { tensor: "responses", .. })));
    Ok(())
}

#[test]
fn opposed_labels_are_pairs_that_are_there_both_ways() {
    type Pair<'a> = (&'a [i64], &'a [i64], &'a [i64]);
    let [p, q, a, b, c]: [&[i64]; 5] = [&[1], &[2], &[3], &[4, 5], &[6]];
    let share = |pairs: &[Pair]| opposed_labels(pairs.iter().copied());
    assert_eq!(share(&[(p, a, b), (p, b, a), (p, a, c), (q, a, b)]), 0.5);
    // The same label twice is no contradiction, another prompt is none, a pair of equals is.
    assert_eq!(share(&[(p, a, b), (p, a, b)]), 0.0);
    assert_eq!(share(&[(p, a, b), (q, b, a)]), 0.0);
    assert_eq!(share(&[(p, a, a), (p, a, b)]), 0.5);
    assert_eq!(share(&[]), 0.0);
}

proptest! {
    /// Mass that moved is a share, whatever the samples.
    #[test]
    fn moved_mass_is_a_share(logps in prop::collection::vec((-30.0..0.0_f64, -30.0..0.0_f64), 1..20)) {
        let column = |of: fn(&(f64, f64)) -> f64| {
            Tensor::from_slice(&logps.iter().map(of).collect::<Vec<_>>()).unsqueeze(0)
        };
        let samples = ResponseTable::new(column(|x| x.0), column(|x| x.1)).expect("fit");
        let moved = total_variation(&samples).expect("finite").mean;
        prop_assert!((0.0..=1.0).contains(&moved));
    }
}
