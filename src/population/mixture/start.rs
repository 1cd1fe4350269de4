use std::num::NonZeroUsize;

use ndarray::{Array2, ArrayView2};
use rand::{
    Rng, RngExt,
    distr::{Distribution, weighted::WeightedIndex},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Responsibilities, at_least_one};
use crate::{Error, Result, check, population::Votes};

/// Lloyd's rounds at most; a handful suffices.
const ROUNDS: usize = 100;

/// Where EM starts: annotators clustered by k-means, each all of its cluster's type.
///
/// Seeds by k-means++, then Lloyd's rounds until nobody moves; of several restarts the one of least inertia
/// Σ_i Σ_j (x_ij − c_k(i)j)². No cluster is left empty. Deterministic in the random numbers, whatever the number of threads.
///
/// Source: Arthur and Vassilvitskii 2007 for the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KMeans {
    types: NonZeroUsize,
    #[serde(default = "restarts")]
    restarts: NonZeroUsize,
}

/// What scikit-learn long had as its default.
fn restarts() -> NonZeroUsize {
    const { NonZeroUsize::new(10).expect("10 is not 0") }
}

impl KMeans {
    /// This many types, the best of 10 restarts.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for 0.
    pub fn new(types: usize) -> Result<Self> {
        Ok(Self { types: at_least_one("types", types)?, restarts: restarts() })
    }

    /// The best of another number of restarts.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for 0.
    pub fn with_restarts(self, restarts: usize) -> Result<Self> {
        Ok(Self { restarts: at_least_one("restarts", restarts)?, ..self })
    }

    /// By preference vectors: x_ij = 1 where annotator i preferred the first response of pair j, −1 where the second; distances run over the pairs
    /// that i voted on (Chi, Chi and Baraniuk 2016, k-POD). Needs pairs that many annotators share: use
    /// [`by_features`](Self::by_features) where they have few.
    ///
    /// # Errors
    /// [`TooManyTypes`](Error::TooManyTypes) for more types than annotators.
    pub fn by_votes(&self, votes: &Votes, rng: &mut impl Rng) -> Result<Responsibilities> {
        self.best(&Preferences(votes), rng)
    }

    /// By the caller's vector for each annotator, `[annotators, d]`, such as the mean over its votes of the preferred response's features less the
    /// other's: with few votes far better than preference vectors, since pairs that nobody shares still speak of the same features.
    ///
    /// # Errors
    /// As [`by_votes`](Self::by_votes); [`Element`](Error::Element) for a feature that is not finite.
    pub fn by_features(&self, features: ArrayView2<f64>, rng: &mut impl Rng) -> Result<Responsibilities> {
        check::finite("features", features.iter().copied())?;
        self.best(&Features(features), rng)
    }

    fn best(&self, points: &impl Points, rng: &mut impl Rng) -> Result<Responsibilities> {
        let (types, annotators) = (self.types.get(), points.number());
        if types > annotators {
            return Err(Error::TooManyTypes { types, annotators });
        }
        let runs = (0..self.restarts.get()).map(|_| cluster(points, types, rng));
        let best = runs.min_by(|a, b| a.0.total_cmp(&b.0)).expect("one restart at least");
        Ok(Responsibilities::of_types(&best.1, types))
    }
}

/// Vectors of which some entries are missing.
trait Points: Sync {
    fn number(&self) -> usize;
    fn width(&self) -> usize;
    /// Index and value of what is there.
    fn entries(&self, point: usize) -> impl Iterator<Item = (usize, f64)>;
}

struct Preferences<'a>(&'a Votes);

impl Points for Preferences<'_> {
    fn number(&self) -> usize {
        self.0.annotators()
    }

    fn width(&self) -> usize {
        self.0.pairs()
    }

    fn entries(&self, point: usize) -> impl Iterator<Item = (usize, f64)> {
        self.0.of(point).map(|(pair, first)| (pair, if first { 1.0 } else { -1.0 }))
    }
}

struct Features<'a>(ArrayView2<'a, f64>);

impl Points for Features<'_> {
    fn number(&self) -> usize {
        self.0.nrows()
    }

    fn width(&self) -> usize {
        self.0.ncols()
    }

    fn entries(&self, point: usize) -> impl Iterator<Item = (usize, f64)> {
        self.0.row(point).into_iter().copied().enumerate()
    }
}

/// A point's cluster and its squared distance to the centre.
#[derive(Debug, Clone, Copy)]
struct Nearest {
    cluster: usize,
    distance: f64,
}

/// One restart: inertia, and each point's cluster.
fn cluster(points: &impl Points, clusters: usize, rng: &mut impl Rng) -> (f64, Vec<usize>) {
    // Sparse vectors tie where they share no entry with any seed: in order, the first cluster would get them all.
    let first: Vec<usize> = (0..points.number()).map(|_| rng.random_range(0..clusters)).collect();
    let labels = |nearest: &[Nearest]| nearest.iter().map(|n| n.cluster).collect::<Vec<_>>();
    let mut nearest = assign(points, &seeds(points, clusters, rng), &first);
    for _ in 0..ROUNDS {
        let assigned = labels(&nearest);
        nearest = assign(points, &centres(points, &assigned, clusters), &first);
        if labels(&nearest) == assigned {
            break;
        }
    }
    (nearest.iter().map(|n| n.distance).sum(), labels(&nearest))
}

/// Each point to its nearest centre, ties to the next from `first` on; a cluster left empty takes the farthest point that can be spared.
fn assign(points: &impl Points, centres: &Array2<f64>, first: &[usize]) -> Vec<Nearest> {
    let clusters = centres.nrows();
    let choose = |point: usize| {
        let order = (0..clusters).map(|k| (first[point] + k) % clusters);
        let distances = order.map(|cluster| Nearest { cluster, distance: distance(points, point, centres, cluster) });
        distances.reduce(|best, other| if other.distance < best.distance { other } else { best }).expect("a cluster")
    };
    let mut nearest: Vec<Nearest> = (0..points.number()).into_par_iter().map(choose).collect();
    let mut members = vec![0; clusters];
    nearest.iter().for_each(|n| members[n.cluster] += 1);
    for cluster in 0..clusters {
        if members[cluster] == 0 {
            let spare = (0..nearest.len()).filter(|&point| members[nearest[point].cluster] > 1);
            let farthest = spare.max_by(|&a, &b| nearest[a].distance.total_cmp(&nearest[b].distance));
            let point = farthest.expect("no more clusters than points");
            members[nearest[point].cluster] -= 1;
            members[cluster] = 1;
            nearest[point] = Nearest { cluster, distance: 0.0 };
        }
    }
    nearest
}

/// Over the entries that the point has.
fn distance(points: &impl Points, point: usize, centres: &Array2<f64>, cluster: usize) -> f64 {
    points.entries(point).map(|(j, x)| (x - centres[[cluster, j]]).powi(2)).sum()
}

/// k-means++: the first seed at random, each other in proportion to the squared distance from those before.
fn seeds(points: &impl Points, clusters: usize, rng: &mut impl Rng) -> Array2<f64> {
    let number = points.number();
    let mut seeds = Array2::<f64>::zeros((clusters, points.width()));
    let mut nearest = vec![f64::INFINITY; number];
    let mut next = rng.random_range(0..number);
    for cluster in 0..clusters {
        seeds.row_mut(cluster).assign(&centres(&One(points, next), &[0], 1).row(0));
        nearest
            .par_iter_mut()
            .enumerate()
            .for_each(|(point, d)| *d = (*d).min(distance(points, point, &seeds, cluster)));
        // No weights at all where every point lies on a seed.
        next = match WeightedIndex::<f64>::new(&nearest) {
            Ok(weights) => weights.sample(rng),
            Err(_) => rng.random_range(0..number),
        };
    }
    seeds
}

/// One of the points.
struct One<'a, P>(&'a P, usize);

impl<P: Points> Points for One<'_, P> {
    fn number(&self) -> usize {
        1
    }

    fn width(&self) -> usize {
        self.0.width()
    }

    fn entries(&self, _: usize) -> impl Iterator<Item = (usize, f64)> {
        self.0.entries(self.1)
    }
}

/// Means over what members have of each entry, `[clusters, width]`; 0, between the two votes, where none has it.
fn centres(points: &impl Points, assigned: &[usize], clusters: usize) -> Array2<f64> {
    let mut sums = Array2::<f64>::zeros((clusters, points.width()));
    let mut counts = Array2::<f64>::zeros((clusters, points.width()));
    for (point, &cluster) in assigned.iter().enumerate() {
        for (j, x) in points.entries(point) {
            sums[[cluster, j]] += x;
            counts[[cluster, j]] += 1.0;
        }
    }
    sums / counts.mapv(|n| n.max(1.0))
}
