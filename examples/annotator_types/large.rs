//! How long an E-step takes.

use std::time::Instant;

use anyhow::Result;
use ndarray::{Array1, Array2};
use prefopt::population::{AnnotatorMixture, Votes};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ANNOTATORS: usize = 100_000;
const EACH: usize = 20;
const PAIRS: usize = 20_000;
const TYPES: usize = 4;
const REPETITIONS: usize = 9;

/// Seconds of an E-step on random votes: best and median.
pub fn time() -> Result<String> {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let number = ANNOTATORS * EACH;
    let annotators: Vec<usize> = (0..number).map(|vote| vote % ANNOTATORS).collect();
    let pairs: Vec<usize> = (0..number).map(|_| rng.random_range(0..PAIRS)).collect();
    let first: Vec<bool> = (0..number).map(|_| rng.random::<bool>()).collect();
    let margins = Array2::from_shape_simple_fn((TYPES, PAIRS), || rng.random_range(-2.0..2.0));
    let start = Instant::now();
    let votes = Votes::new(&annotators, &pairs, &first, (ANNOTATORS, PAIRS))?;
    let grouping = start.elapsed().as_secs_f64();
    let proportions = Array1::from_elem(TYPES, 1.0 / TYPES as f64);
    let (mixture, mut seconds, mut log_likelihood) = (AnnotatorMixture::new(1)?, Vec::new(), 0.0);
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        log_likelihood = mixture.expect(&votes, proportions.view(), margins.view())?.1;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_unstable_by(f64::total_cmp);
    Ok(format!(
        "E-step of {ANNOTATORS} annotators x {EACH} votes on {PAIRS} pairs, {TYPES} types, {} threads: best {:.4} s, \
         median {:.4} s of {REPETITIONS}\n(votes grouped once in {grouping:.3} s; {:.4} nats a vote)",
        rayon::current_num_threads(),
        seconds[0],
        seconds[REPETITIONS / 2],
        log_likelihood / number as f64,
    ))
}
