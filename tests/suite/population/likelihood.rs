//! What EM climbs.

use ndarray::Array2;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Error, Result,
    population::{
        AnnotatorMixture, Assignment, Fit, KMeans, Responsibilities, adjusted_rand_index, held_out_log_likelihood,
    },
};

use super::{Cast, bounded_log_odds, random_rows, uniform};
use crate::{all_close, close, identities::config, oracle};

#[track_caller]
fn never_falls(trace: &[f64]) {
    for (round, step) in trace.windows(2).enumerate() {
        assert!(step[1] >= step[0] - 1e-9 * step[0].abs(), "round {round}: {} after {}", step[1], step[0]);
    }
}

fn last(fit: &Fit) -> f64 {
    *fit.trace.last().expect("one round at least")
}

proptest! {
    #![proptest_config(config())]

    /// Exact M-steps on any votes, soft and hard, from any start.
    #[test]
    fn the_likelihood_never_falls(seed in any::<u64>(), annotators in 4..12_usize, pairs in 1..6_usize, each in 1..10_usize, types in 1..4_usize) {
        let votes = Cast::opposed((annotators, pairs), each, 0.75, seed).votes();
        let start = random_rows((annotators, types), &mut ChaCha8Rng::seed_from_u64(seed));
        for assignment in [Assignment::Soft, Assignment::Hard] {
            let fit = AnnotatorMixture::new(25)?.with_assignment(assignment).fit(&votes, start.clone(), bounded_log_odds)?;
            never_falls(&fit.trace);
        }
    }
}

/// The saddle that a clustering avoids: equal rows give equal policies, which give equal rows.
#[test]
fn an_even_start_goes_nowhere() -> Result<()> {
    let cast = Cast::opposed((40, 6), 8, 0.9, 9);
    let even = Responsibilities::new(Array2::from_elem((40, 2), 0.5))?;
    let fit = AnnotatorMixture::new(30)?.fit(&cast.votes(), even.clone(), bounded_log_odds)?;
    all_close(&fit.responsibilities.values().column(0).to_vec(), &[0.5; 40], 1e-12, "γ");
    let start = KMeans::new(2)?.by_votes(&cast.votes(), &mut ChaCha8Rng::seed_from_u64(10))?;
    let better = AnnotatorMixture::new(30)?.fit(&cast.votes(), start, bounded_log_odds)?;
    assert!(last(&better) > last(&fit) + 10.0, "{} against {}", last(&better), last(&fit));
    Ok(())
}

/// Gradient steps from where the policies were, small enough never to overshoot: the M-step of a warm start.
#[test]
fn nor_does_it_fall_with_a_warm_start() -> Result<()> {
    let cast = Cast::opposed((30, 8), 10, 0.85, 12);
    let mut margins = uniform((2, 8), 0.1, &mut ChaCha8Rng::seed_from_u64(13));
    let start = random_rows((30, 2), &mut ChaCha8Rng::seed_from_u64(14));
    // The first round starts at the reference, and from there on the policies stay.
    let fit = AnnotatorMixture::new(200)?.fit(&cast.votes(), start, |weights| {
        let n = weights.weights();
        for _ in 0..3 {
            for (at, margin) in margins.indexed_iter_mut() {
                let up =
                    weights.first()[at] * oracle::sigmoid(-*margin) - weights.second()[at] * oracle::sigmoid(*margin);
                *margin += 4.0 * up / n[at].max(1e-9);
            }
        }
        Ok::<_, Error>(margins.clone())
    })?;
    never_falls(&fit.trace);
    assert!(last(&fit) > fit.trace[0] + 10.0, "{} from {}", last(&fit), fit.trace[0]);
    let index = adjusted_rand_index(&fit.responsibilities.most_likely(), &cast.types())?;
    assert!(index > 0.7, "{index}");
    Ok(())
}

/// Where EM ends the likelihood, by the formula in plain f64, has no slope: in no margin, and not between the types' shares.
#[test]
fn it_ends_at_a_stationary_point_of_the_likelihood() -> Result<()> {
    let cast = Cast::opposed((60, 3), 6, 0.75, 15);
    let start = random_rows((60, 2), &mut ChaCha8Rng::seed_from_u64(16));
    let fit = AnnotatorMixture::new(5000)?.with_tolerance(1e-14)?.fit(&cast.votes(), start, bounded_log_odds)?;
    let log_likelihood = |shift: f64, margins: &Array2<f64>| {
        cast.log_likelihood(&[fit.proportions[0] + shift, fit.proportions[1] - shift], margins)
    };
    close(last(&fit), log_likelihood(0.0, &fit.margins), 1e-12, 0.0, "log-likelihood");
    let slope = |high: f64, low: f64| (high - low) / 2e-5;
    for at in ndarray::indices(fit.margins.dim()) {
        assert!(fit.margins[at].abs() < 3.9, "a margin at its bound: {:?}", fit.margins);
        let moved = |step: f64| {
            let mut margins = fit.margins.clone();
            margins[at] += step;
            log_likelihood(0.0, &margins)
        };
        let slope = slope(moved(1e-5), moved(-1e-5));
        assert!(slope.abs() < 1e-3, "slope {slope} at {at:?}");
    }
    let slope = slope(log_likelihood(1e-5, &fit.margins), log_likelihood(-1e-5, &fit.margins));
    assert!(slope.abs() < 1e-2, "slope {slope} in the shares");
    Ok(())
}

/// From either clustering, soft and hard; on held-out votes two types are better than one.
#[test]
fn planted_types_are_found() -> Result<()> {
    let cast = Cast::opposed((120, 24), 12, 0.9, 17);
    let rng = &mut ChaCha8Rng::seed_from_u64(18);
    let (kept, held_out) = cast.votes().hold_out(0.25, rng)?;
    // The share of even pairs' first responses, less that of odd pairs': one number says it all in this world.
    let sign = |pair: usize, first: bool| if first == pair.is_multiple_of(2) { 1.0 } else { -1.0 };
    let mean = |i: usize| kept.of(i).map(|(pair, first)| sign(pair, first)).sum::<f64>() / kept.of(i).count() as f64;
    let features = Array2::from_shape_fn((120, 1), |(i, _)| mean(i));
    let starts = [KMeans::new(2)?.by_votes(&kept, rng)?, KMeans::new(2)?.by_features(features.view(), rng)?];
    let one = AnnotatorMixture::new(1)?.fit(&kept, Responsibilities::new(Array2::ones((120, 1)))?, bounded_log_odds)?;
    let alone = held_out_log_likelihood(&one.responsibilities, one.margins.view(), &held_out)?;
    for start in starts {
        for assignment in [Assignment::Soft, Assignment::Hard] {
            let fit =
                AnnotatorMixture::new(30)?.with_assignment(assignment).fit(&kept, start.clone(), bounded_log_odds)?;
            let index = adjusted_rand_index(&fit.responsibilities.most_likely(), &cast.types())?;
            assert!(index > 0.9, "{assignment:?}: {index}");
            let found = held_out_log_likelihood(&fit.responsibilities, fit.margins.view(), &held_out)?;
            assert!(found.sum() > alone.sum() + 20.0, "{assignment:?}: {} against {}", found.sum(), alone.sum());
        }
    }
    Ok(())
}
