//! Prompts, candidate responses, annotators of three types, their votes.

use anyhow::Result;
use ndarray::{Array1, Array2, Axis};
use prefopt::population::Votes;
use rand::{
    RngExt, SeedableRng,
    distr::{Distribution, weighted::WeightedIndex},
};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{Job, support::network::normal};

pub const CANDIDATES: usize = 16;
pub const TYPES: usize = 3;
pub const SHARES: [f64; TYPES] = [0.5, 0.3, 0.2];

/// Numbers that describe a candidate, and a prompt.
const CANDIDATE: usize = 4;
const PROMPT: usize = 2;
pub const INPUTS: usize = CANDIDATE + PROMPT;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub prompts: usize,
    pub new_prompts: usize,
    pub pairs: usize,
    pub annotators: usize,
    /// Updates of a policy in one M-step.
    pub steps: usize,
    /// Rounds of EM.
    pub rounds: usize,
    /// Largest number of types that is tried.
    pub most: usize,
}

/// How the types' tastes lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taste {
    /// Rewards are linear in two features, in directions 0°, 80° and 200°.
    Opposing,
    /// Rewards fall with the square of the distance to ideals that lie around a middle.
    Compromise,
}

impl Taste {
    pub const ALL: [Self; 2] = [Self::Opposing, Self::Compromise];

    pub fn name(self) -> &'static str {
        match self {
            Self::Opposing => "opposing",
            Self::Compromise => "compromise",
        }
    }

    /// Of a candidate at (u, v), for one type.
    fn reward(self, kind: usize, u: f64, v: f64) -> f64 {
        match self {
            Self::Opposing => {
                let angle = [0.0_f64, 80.0, 200.0][kind].to_radians();
                1.2 * (u * angle.cos() + v * angle.sin())
            }
            Self::Compromise => {
                let angle = [90.0_f64, 210.0, 330.0][kind].to_radians();
                -0.4 * ((u - 1.4 * angle.cos()).powi(2) + (v - 1.4 * angle.sin()).powi(2))
            }
        }
    }
}

/// Prompts with their candidates, candidate after candidate.
#[derive(Debug)]
pub struct Prompts {
    /// What a policy reads, `[prompts · candidates, INPUTS]`.
    pub inputs: Array2<f64>,
    /// `[TYPES, prompts · candidates]`.
    pub rewards: Array2<f64>,
}

impl Prompts {
    fn new(taste: Taste, prompts: usize, rng: &mut ChaCha8Rng) -> Self {
        let of_prompts = normal(rng, prompts * PROMPT);
        let of_candidates = normal(rng, prompts * CANDIDATES * CANDIDATE);
        let number = prompts * CANDIDATES;
        let inputs = Array2::from_shape_fn((number, INPUTS), |(row, j)| match j.checked_sub(CANDIDATE) {
            None => of_candidates[row * CANDIDATE + j],
            Some(j) => of_prompts[row / CANDIDATES * PROMPT + j],
        });
        // On top of each taste a liking that all share, and that depends on the prompt.
        let shared = |row: usize| 0.5 * inputs[[row, CANDIDATE]].tanh() * inputs[[row, 3]];
        let reward = |(kind, row): (usize, usize)| taste.reward(kind, inputs[[row, 0]], inputs[[row, 1]]) + shared(row);
        let rewards = Array2::from_shape_fn((TYPES, number), reward);
        Self { inputs, rewards }
    }

    /// Mean over prompts of each type's best candidate's reward, `[TYPES]`.
    pub fn best(&self) -> Array1<f64> {
        let best = |rewards: &[f64]| rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = |row: Vec<f64>| {
            let prompts = row.len() / CANDIDATES;
            row.chunks_exact(CANDIDATES).map(best).sum::<f64>() / prompts as f64
        };
        self.rewards.outer_iter().map(|row| mean(row.to_vec())).collect()
    }
}

/// What is learned from, what is judged on, and what nobody knows.
#[derive(Debug)]
pub struct World {
    pub prompts: Prompts,
    pub new_prompts: Prompts,
    /// Rows of `prompts` of each pair's first and second response.
    pub first: Vec<usize>,
    pub second: Vec<usize>,
    /// Each annotator's type.
    pub types: Vec<usize>,
    pub votes: Votes,
}

impl World {
    /// Prompts, pairs and annotators depend on the seed alone; votes on their number too.
    pub fn new(job: &Job, size: &Size) -> Result<Self> {
        let rng = &mut ChaCha8Rng::seed_from_u64(job.seed);
        let prompts = Prompts::new(job.taste, size.prompts, rng);
        let new_prompts = Prompts::new(job.taste, size.new_prompts, rng);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..size.pairs {
            let (prompt, a) = (rng.random_range(0..size.prompts), rng.random_range(0..CANDIDATES));
            let b = (a + rng.random_range(1..CANDIDATES)) % CANDIDATES;
            first.push(prompt * CANDIDATES + a);
            second.push(prompt * CANDIDATES + b);
        }
        let shares = WeightedIndex::<f64>::new(SHARES)?;
        let types: Vec<usize> = (0..size.annotators).map(|_| shares.sample(rng)).collect();

        let rng = &mut ChaCha8Rng::seed_from_u64(job.seed + 1_000 * job.votes as u64);
        let (mut who, mut on, mut preferred) = (Vec::new(), Vec::new(), Vec::new());
        for (annotator, &kind) in types.iter().enumerate() {
            for pair in rand::seq::index::sample(rng, size.pairs, job.votes) {
                let margin = prompts.rewards[[kind, first[pair]]] - prompts.rewards[[kind, second[pair]]];
                who.push(annotator);
                on.push(pair);
                preferred.push(rng.random::<f64>() < 1.0 / (1.0 + (-margin).exp()));
            }
        }
        let votes = Votes::new(&who, &on, &preferred, (size.annotators, size.pairs))?;
        Ok(Self { prompts, new_prompts, first, second, types, votes })
    }

    /// What an annotator who knew its type's reward would put on each pair, `[TYPES, pairs]`.
    pub fn margins(&self) -> Array2<f64> {
        let rewards = &self.prompts.rewards;
        rewards.select(Axis(1), &self.first) - rewards.select(Axis(1), &self.second)
    }

    /// Each annotator's mean, over its votes, of the preferred candidate's features less the other's, `[annotators, CANDIDATE]`.
    pub fn leanings(&self, votes: &Votes) -> Array2<f64> {
        let mut leanings = Array2::<f64>::zeros((votes.annotators(), CANDIDATE));
        for (annotator, mut row) in leanings.outer_iter_mut().enumerate() {
            let mut number = 0.0;
            for (pair, first) in votes.of(annotator) {
                let sign = if first { 1.0 } else { -1.0 };
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum += sign
                        * (self.prompts.inputs[[self.first[pair], j]] - self.prompts.inputs[[self.second[pair], j]]);
                }
                number += 1.0;
            }
            row /= f64::max(number, 1.0);
        }
        leanings
    }
}
