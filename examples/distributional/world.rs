//! Items, the two camps that grade them, and votes.

use anyhow::Result;
use ndarray::{Array2, ArrayView1, Axis};
use prefopt::population::{DirichletPrior, label_means};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Size, heads::Labels, support::network::normal};

pub const FEATURES: usize = 4;
pub const CATEGORIES: usize = 6;
const MOST_VOTES: usize = 50;
/// How far the opinions of one camp spread, in categories.
const SPREAD: f64 = 0.65;
/// κ: the prior weighs one vote.
const CONCENTRATION: f64 = 1.0;

/// One seed's items.
#[derive(Debug)]
pub struct World {
    /// `[items, FEATURES]`.
    pub features: Array2<f64>,
    pub unseen_features: Array2<f64>,
    /// Distributions of the population over the categories, `[held_out, CATEGORIES]`.
    pub unseen: Array2<f64>,
    /// `[items, MOST_VOTES]`: of n votes an item has the first n, so that more votes are the same ones and others.
    votes: Array2<usize>,
}

impl World {
    pub fn new(seed: u64, size: Size) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let camps = Camps::new(&mut rng);
        let mut draw = |items: usize| {
            let features = normal(&mut rng, items * FEATURES);
            let features = Array2::from_shape_vec((items, FEATURES), features).expect("as many as asked for");
            let population = camps.opinions(&features);
            (features, population)
        };
        let (features, seen) = draw(size.items);
        let (unseen_features, unseen) = draw(size.held_out);
        let votes = Array2::from_shape_fn((size.items, MOST_VOTES), |(item, _)| vote(&mut rng, seen.row(item)));
        Self { features, unseen_features, unseen, votes }
    }

    /// Labels after this many votes an item, `[items, CATEGORIES]`.
    pub fn labels(&self, votes: usize, labels: Labels) -> Result<Array2<f64>> {
        let mut counts = Array2::<u64>::zeros((self.votes.nrows(), CATEGORIES));
        for (mut counts, votes_of_item) in counts.rows_mut().into_iter().zip(self.votes.rows()) {
            votes_of_item.iter().take(votes).for_each(|&category| counts[category] += 1);
        }
        match labels {
            Labels::Shares => Ok(counts.mapv(|n| n as f64 / votes as f64)),
            Labels::Posterior => {
                // What is common: the shares of all votes, kept off 0 by a vote for each category.
                let mut all = DirichletPrior::uniform(CATEGORIES, CATEGORIES as f64)?.posterior();
                all.observe_counts(&counts.sum_axis(Axis(0)).to_vec())?;
                Ok(label_means(&DirichletPrior::new(all.mean(), CONCENTRATION)?, counts.view())?)
            }
        }
    }

    /// The unseen item whose population is the most divided, by what the camps' grades have over the two between them.
    pub fn most_divided(&self) -> usize {
        let divided = |item: usize| {
            let p = self.unseen.row(item);
            p[1].min(p[4]) - p[2].max(p[3])
        };
        (0..self.unseen.nrows()).max_by(|&a, &b| divided(a).total_cmp(&divided(b))).expect("at least one item")
    }
}

/// The true distribution of the item that the picture shows.
pub fn shown(seed: u64, size: Size) -> Vec<f64> {
    let world = World::new(seed, size);
    world.unseen.row(world.most_divided()).to_vec()
}

/// What the share of the camps and the grade that each gives depend on: one direction of the features for each.
#[derive(Debug)]
struct Camps {
    /// `[3, FEATURES]`.
    directions: Array2<f64>,
}

impl Camps {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let directions =
            Array2::from_shape_vec((3, FEATURES), normal(rng, 3 * FEATURES)).expect("as many as asked for");
        // All of length 2, so that a sigmoid of them is neither flat nor a step.
        let lengths = directions.mapv(|x| x * x).sum_axis(Axis(1)).mapv(f64::sqrt).insert_axis(Axis(1));
        Self { directions: directions * 2.0 / lengths }
    }

    /// Share · hump at the critics' grade + rest · hump at the admirers', `[items, CATEGORIES]`.
    fn opinions(&self, features: &Array2<f64>) -> Array2<f64> {
        let traits = features.dot(&self.directions.t()).mapv(|x| 1.0 / (1.0 + (-x).exp()));
        let mut opinions = Array2::<f64>::zeros((features.nrows(), CATEGORIES));
        for (mut row, traits) in opinions.rows_mut().into_iter().zip(traits.rows()) {
            let share = 0.15 + 0.7 * traits[0];
            let (critics, admirers) = (hump(0.4 + 1.2 * traits[1]), hump(3.4 + 1.2 * traits[2]));
            for ((p, critic), admirer) in row.iter_mut().zip(critics).zip(admirers) {
                *p = share * critic + (1.0 - share) * admirer;
            }
        }
        opinions
    }
}

/// A discretised normal distribution.
fn hump(centre: f64) -> [f64; CATEGORIES] {
    let heights: [f64; CATEGORIES] =
        std::array::from_fn(|category| (-((category as f64 - centre) / SPREAD).powi(2) / 2.0).exp());
    let sum: f64 = heights.iter().sum();
    heights.map(|height| height / sum)
}

fn vote(rng: &mut ChaCha8Rng, distribution: ArrayView1<'_, f64>) -> usize {
    let mut left: f64 = rng.random();
    for (category, p) in distribution.iter().enumerate() {
        left -= p;
        if left < 0.0 {
            return category;
        }
    }
    // Rounding may leave a little.
    CATEGORIES - 1
}
