//! Annotators of several types: the E-step and its weights against the formula in plain f64, EM against the likelihood that it climbs, the min-max
//! game against games of known value.

mod clusters;
mod expectation;
mod game;
mod likelihood;
mod refusals;

use ndarray::{Array1, Array2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    population::{AnnotatorMixture, PairWeights, Responsibilities, Votes},
};

use crate::oracle;

/// Votes as columns, from which the crate's and the oracle's are both made.
#[derive(Debug, Clone)]
struct Cast {
    annotators: Vec<usize>,
    pairs: Vec<usize>,
    first: Vec<bool>,
    size: (usize, usize),
}

impl Cast {
    /// `each` votes of each annotator on random pairs, for the first response with probability `first(annotator, pair)`; in random order.
    fn new(size: (usize, usize), each: usize, seed: u64, first: impl Fn(usize, usize) -> f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut cast = Self { annotators: Vec::new(), pairs: Vec::new(), first: Vec::new(), size };
        for vote in 0..each * size.0 {
            // Annotators in turn, so that nobody's votes lie together.
            let (annotator, pair) = (vote % size.0, rng.random_range(0..size.1));
            cast.annotators.push(annotator);
            cast.pairs.push(pair);
            cast.first.push(rng.random::<f64>() < first(annotator, pair));
        }
        cast
    }

    /// Two types that oppose each other on every pair, even and odd annotators, right in `share` of their votes.
    fn opposed(size: (usize, usize), each: usize, share: f64, seed: u64) -> Self {
        Self::new(size, each, seed, |annotator, pair| if (annotator + pair) % 2 == 0 { share } else { 1.0 - share })
    }

    fn votes(&self) -> Votes {
        Votes::new(&self.annotators, &self.pairs, &self.first, self.size).expect("fits")
    }

    fn rows(&self) -> impl Iterator<Item = (usize, usize, bool)> {
        self.annotators.iter().zip(&self.pairs).zip(&self.first).map(|((&i, &j), &first)| (i, j, first))
    }

    /// Even and odd.
    fn types(&self) -> Vec<usize> {
        (0..self.size.0).map(|annotator| annotator % 2).collect()
    }

    /// η_k ∏_j σ(±m_kj), `[annotators][types]`, in probabilities and not in logarithms.
    fn joint(&self, proportions: &[f64], margins: &Array2<f64>) -> Vec<Vec<f64>> {
        let mut joint = vec![proportions.to_vec(); self.size.0];
        for (annotator, pair, first) in self.rows() {
            for (k, p) in joint[annotator].iter_mut().enumerate() {
                *p *= oracle::sigmoid(if first { margins[[k, pair]] } else { -margins[[k, pair]] });
            }
        }
        joint
    }

    fn log_likelihood(&self, proportions: &[f64], margins: &Array2<f64>) -> f64 {
        self.joint(proportions, margins).iter().map(|row| row.iter().sum::<f64>().ln()).sum()
    }
}

fn simplex(n: usize, rng: &mut ChaCha8Rng) -> Array1<f64> {
    let masses: Array1<f64> = (0..n).map(|_| rng.random_range(0.1..1.0)).collect();
    let total = masses.sum();
    masses / total
}

fn uniform(shape: (usize, usize), bound: f64, rng: &mut ChaCha8Rng) -> Array2<f64> {
    Array2::from_shape_simple_fn(shape, || rng.random_range(-bound..bound))
}

fn random_rows(shape: (usize, usize), rng: &mut ChaCha8Rng) -> Responsibilities {
    let mut rows = Array2::<f64>::zeros(shape);
    rows.outer_iter_mut().for_each(|mut row| row.assign(&simplex(shape.1, rng)));
    Responsibilities::new(rows).expect("rows sum to 1")
}

fn soft() -> AnnotatorMixture {
    AnnotatorMixture::new(1).expect("at least 1")
}

/// The exact M-step of policies that may put any log-odds between −4 and 4 on any pair: the objective is concave in each, so its maximum is
/// the nearest of them to log(n_first / n_second).
fn bounded_log_odds(weights: &PairWeights) -> Result<Array2<f64>> {
    let odds =
        |first: f64, second: f64| if first + second > 0.0 { (first / second).ln().clamp(-4.0, 4.0) } else { 0.0 };
    Ok(Array2::from_shape_fn((weights.types(), weights.pairs()), |at| odds(weights.first()[at], weights.second()[at])))
}

#[test]
fn votes_are_kept_by_annotator_in_order() -> Result<()> {
    let votes = Votes::new(&[2, 0, 2, 1, 0], &[3, 1, 0, 3, 1], &[true, false, false, true, true], (3, 4))?;
    assert_eq!((votes.annotators(), votes.pairs(), votes.len()), (3, 4, 5));
    assert_eq!(votes.of(0).collect::<Vec<_>>(), [(1, false), (1, true)]);
    assert_eq!(votes.of(1).collect::<Vec<_>>(), [(3, true)]);
    assert_eq!(votes.of(2).collect::<Vec<_>>(), [(3, true), (0, false)]);
    assert_eq!((votes.of(3).count(), votes.of(usize::MAX).count()), (0, 0));
    let all = [(0, 1, false), (0, 1, true), (1, 3, true), (2, 3, true), (2, 0, false)];
    assert_eq!(votes.iter().collect::<Vec<_>>(), all);
    Ok(())
}

#[test]
fn what_is_held_out_and_what_is_kept_are_all_votes() -> Result<()> {
    let cast = Cast::opposed((300, 40), 7, 0.8, 1);
    let votes = cast.votes();
    let (kept, held_out) = votes.hold_out(0.3, &mut ChaCha8Rng::seed_from_u64(2))?;
    assert_eq!((kept.annotators(), kept.pairs()), (300, 40));
    assert_eq!((held_out.annotators(), held_out.pairs()), (300, 40));
    let sorted = |votes: &[&Votes]| {
        let mut rows: Vec<_> = votes.iter().flat_map(|votes| votes.iter()).collect();
        rows.sort_unstable();
        rows
    };
    assert_eq!(sorted(&[&kept, &held_out]), sorted(&[&votes]));
    for annotator in 0..300 {
        let out = held_out.of(annotator).count();
        assert!(out == 2 || out == 3, "2.1 of 7 rounded to {out}");
    }
    let share = held_out.len() as f64 / votes.len() as f64;
    assert!((share - 0.3).abs() < 0.02, "{share}");
    let again = votes.hold_out(0.3, &mut ChaCha8Rng::seed_from_u64(2))?;
    assert_eq!(again, (kept, held_out));
    // One vote each: nothing can be spared.
    let (kept, held_out) =
        Cast::opposed((20, 5), 1, 0.8, 3).votes().hold_out(0.99, &mut ChaCha8Rng::seed_from_u64(4))?;
    assert_eq!((kept.len(), held_out.len()), (20, 0));
    Ok(())
}
