//! Policies from votes: one, or one for each type; and the mixtures of them.

use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView1};
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss,
    loss::ProbabilityMatching,
    population::{
        AnnotatorMixture, Fit, KMeans, PairWeights, Responsibilities, Votes, adjusted_rand_index,
        held_out_log_likelihood, min_max, regret_matrix,
    },
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::{
    Betas, Job,
    support::{
        estimate::Estimate,
        network::{Mlp, descend, indices, matrix, numbers, vector},
    },
    world::{CANDIDATES, INPUTS, SHARES, Size, TYPES, Taste, World},
};

const HIDDEN: i64 = 24;
const RATE: f64 = 0.03;
/// EM ends where a round moves the log-likelihood by less than this many nats a vote.
const TOLERANCE: f64 = 1e-4;
/// Share of each annotator's votes by which the number of types is chosen.
const HELD_OUT: f64 = 0.2;
/// Of the min-max game.
const ROUNDS: usize = 4000;

pub const METHODS: [&str; 6] = [
    "one DPO policy",
    "EM-DPO, types by share",
    "EM-DPO, types equally",
    "MinMax, types alone",
    "MinMax, one policy too",
    "MinMax, types known",
];

/// What one world has to say.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub taste: Taste,
    pub votes: usize,
    pub seed: u64,
    pub betas: Betas,
    /// The number of types chosen.
    pub types: usize,
    /// Adjusted Rand index of EM-DPO's types, of the start's, and of an E-step with the true rewards and shares.
    pub index: f64,
    pub start: f64,
    pub oracle: f64,
    /// The worst-off type's regret under each of [`METHODS`].
    pub worst: [f64; METHODS.len()],
    /// Duality gap of the game with the one policy, nats.
    pub gap: f64,
    /// The one policy's weight in that game's mixture.
    pub one_policy_weight: f64,
}

impl Outcome {
    pub fn one_policy(&self) -> f64 {
        self.worst[0]
    }

    pub fn min_max(&self) -> f64 {
        self.worst[4]
    }
}

struct Policy {
    /// log π, `[prompts · candidates]`.
    log_probs: Array1<f64>,
    /// π on new prompts, `[new prompts · candidates]`.
    new_probs: Array1<f64>,
    /// βh of each pair.
    margins: Array1<f64>,
}

/// A world as tensors, and a β.
struct Learner<'a> {
    world: &'a World,
    inputs: Tensor,
    new_inputs: Tensor,
    first: Tensor,
    second: Tensor,
    reference: Tensor,
    beta: f64,
    seed: u64,
    size: &'a Size,
}

pub fn run(job: &Job, size: &Size) -> Result<Outcome> {
    let world = World::new(job, size)?;
    let learner = Learner::new(&world, job.betas.mixture, job.seed, size);
    let rng = &mut ChaCha8Rng::seed_from_u64(job.seed);
    let types = learner.choose_types(rng)?;
    let start = learner.start(&world.votes, types, rng)?;
    let (fit, policies) = learner.fit(&world.votes, &start)?;
    let known = Array2::from_shape_fn((size.annotators, TYPES), |(i, k)| f64::from(world.types[i] == k));
    let known = learner.maximise(&PairWeights::new(&world.votes, &Responsibilities::new(known)?)?)?;
    let one = learner.one_policy()?;
    let deployed = if job.betas.one == job.betas.mixture {
        learner.regrets(&[&one])
    } else {
        let other = Learner::new(&world, job.betas.one, job.seed, size);
        other.regrets(&[&other.one_policy()?])
    };

    let with_one: Vec<&Policy> = policies.iter().chain([&one]).collect();
    let (alone, _) = learner.game(&with_one[..types], types)?;
    let (both, gap) = learner.game(&with_one, types)?;
    let known: Vec<&Policy> = known.iter().chain([&one]).collect();
    let (known_weights, _) = learner.game(&known, TYPES)?;
    let regrets = learner.regrets(&with_one);
    let of_types = |weights: &[f64]| worst(&regrets, weights.iter().copied().chain([0.0]));
    let oracle = AnnotatorMixture::new(1)?.expect(&world.votes, ArrayView1::from(&SHARES), world.margins().view())?;
    let index = |found: &Responsibilities| adjusted_rand_index(&found.most_likely(), &world.types);
    Ok(Outcome {
        taste: job.taste,
        votes: job.votes,
        seed: job.seed,
        betas: job.betas,
        types,
        index: index(&fit.responsibilities)?,
        start: index(&start)?,
        oracle: index(&oracle.0)?,
        worst: [
            worst(&deployed, [1.0]),
            of_types(&fit.proportions.to_vec()),
            of_types(&vec![1.0 / types as f64; types]),
            of_types(&alone),
            worst(&regrets, both.iter().copied()),
            worst(&learner.regrets(&known), known_weights),
        ],
        gap,
        one_policy_weight: both[types],
    })
}

/// The largest regret under a mixture: rewards are means, so a mixture's regret is the mean of its members'.
fn worst(regrets: &Array2<f64>, weights: impl IntoIterator<Item = f64>) -> f64 {
    regrets.dot(&weights.into_iter().collect::<Array1<f64>>()).fold(f64::NEG_INFINITY, |worst, r| worst.max(*r))
}

impl<'a> Learner<'a> {
    fn new(world: &'a World, beta: f64, seed: u64, size: &'a Size) -> Self {
        let inputs = |rows: &Array2<f64>| matrix(&rows.iter().copied().collect::<Vec<_>>(), INPUTS as i64);
        Self {
            inputs: inputs(&world.prompts.inputs),
            new_inputs: inputs(&world.new_prompts.inputs),
            first: indices(&world.first),
            second: indices(&world.second),
            reference: vector(&vec![-(CANDIDATES as f64).ln(); size.pairs]),
            world,
            beta,
            seed,
            size,
        }
    }

    /// The most types that held-out votes speak for: the fewest within one standard error, paired by annotator, of the best number.
    fn choose_types(&self, rng: &mut ChaCha8Rng) -> Result<usize> {
        let (kept, held_out) = self.world.votes.hold_out(HELD_OUT, rng)?;
        let mut scores = Vec::new();
        for types in 1..=self.size.most {
            let (fit, _) = self.fit(&kept, &self.start(&kept, types, rng)?)?;
            scores.push(held_out_log_likelihood(&fit.responsibilities, fit.margins.view(), &held_out)?.to_vec());
        }
        let total = |types: usize| scores[types].iter().sum::<f64>();
        let best = (0..scores.len()).max_by(|&a, &b| total(a).total_cmp(&total(b))).unwrap_or_default();
        let near = |types: usize| {
            let behind = Estimate::paired(&scores[best], &scores[types]);
            behind.mean <= behind.error
        };
        Ok(1 + (0..best).find(|&types| near(types)).unwrap_or(best))
    }

    fn start(&self, votes: &Votes, types: usize, rng: &mut ChaCha8Rng) -> Result<Responsibilities> {
        Ok(KMeans::new(types)?.by_features(self.world.leanings(votes).view(), rng)?)
    }

    /// EM-DPO from a clustering. One type has nothing to find in a second round.
    fn fit(&self, votes: &Votes, start: &Responsibilities) -> Result<(Fit, Vec<Policy>)> {
        let rounds = if start.types() == 1 { 1 } else { self.size.rounds };
        let mut policies = Vec::new();
        let fit = AnnotatorMixture::new(rounds)?.with_tolerance(TOLERANCE)?.fit(votes, start.clone(), |weights| {
            policies = self.maximise(weights)?;
            let margin = |(kind, pair): (usize, usize)| policies[kind].margins[pair];
            anyhow::Ok(Array2::from_shape_fn((weights.types(), weights.pairs()), margin))
        })?;
        Ok((fit, policies))
    }

    /// M-step: each type's policy, from the reference.
    fn maximise(&self, weights: &PairWeights) -> Result<Vec<Policy>> {
        let (counts, labels) = (weights.weights(), weights.labels());
        counts.outer_iter().zip(labels.outer_iter()).map(|(counts, labels)| self.train(counts, labels)).collect()
    }

    /// DPO on all votes.
    fn one_policy(&self) -> Result<Policy> {
        let all = Responsibilities::new(Array2::ones((self.size.annotators, 1)))?;
        let weights = PairWeights::new(&self.world.votes, &all)?;
        self.train(weights.weights().row(0), weights.labels().row(0))
    }

    /// DPO on weighted votes. A type without any keeps the reference.
    fn train(&self, counts: ArrayView1<f64>, labels: ArrayView1<f64>) -> Result<Policy> {
        // One seed for every policy: they start at one reference and differ by their votes alone.
        let net = Mlp::new(INPUTS as i64, HIDDEN, 1, self.seed)?;
        if counts.sum() > 0.0 {
            let (counts, labels) = (vector(&counts.to_vec()), vector(&labels.to_vec()));
            let loss = ProbabilityMatching::to_soft_labels(self.beta)?;
            descend(net.parameters(), self.size.steps, RATE, |_| {
                let batch = PreferenceBatch::new(self.logps(&net)?);
                let batch = batch.with_weights(counts.shallow_clone())?.with_soft_labels(labels.shallow_clone())?;
                Ok(loss.mean(&batch)?)
            })?;
        }
        // No guard against gradients here: this thread may take up another job while it waits for an E-step.
        Ok(Policy {
            margins: Array1::from(numbers(&self.logps(&net)?.log_ratio_margin())?) * self.beta,
            log_probs: Array1::from(numbers(&log_probs(&net, &self.inputs))?),
            new_probs: Array1::from(numbers(&log_probs(&net, &self.new_inputs).exp())?),
        })
    }

    /// Of each pair's first response as the chosen one.
    fn logps(&self, net: &Mlp) -> prefopt::Result<PairLogps> {
        let all = log_probs(net, &self.inputs);
        let reference = || self.reference.shallow_clone();
        PairLogps::new(all.index_select(0, &self.first), all.index_select(0, &self.second), reference(), reference())
    }

    /// Min-max regret over policies of which the first `types` are the types' own: weights, and the duality gap.
    fn game(&self, policies: &[&Policy], types: usize) -> Result<(Vec<f64>, f64)> {
        let prompts = self.size.prompts as f64;
        let log_ratio = |(kind, column): (usize, usize)| {
            let (own, other) = (&policies[kind].log_probs, &policies[column].log_probs);
            let log_ratios = own + (CANDIDATES as f64).ln();
            (other.mapv(f64::exp) * log_ratios).sum() / prompts
        };
        let log_ratios = Array2::from_shape_fn((types, policies.len()), log_ratio);
        let payoff = regret_matrix(log_ratios.view(), Array1::ones(types).view())?;
        let found = min_max(payoff.view(), ROUNDS, None)?;
        Ok((found.mixture().weights().to_vec(), found.gap))
    }

    /// True regret of each type under each policy on new prompts, `[TYPES, policies]`.
    fn regrets(&self, policies: &[&Policy]) -> Array2<f64> {
        let (new, prompts) = (&self.world.new_prompts, self.size.new_prompts as f64);
        let best = new.best();
        Array2::from_shape_fn((TYPES, policies.len()), |(kind, column)| {
            best[kind] - new.rewards.row(kind).dot(&policies[column].new_probs) / prompts
        })
    }
}

/// log π of every candidate, `[prompts · candidates]`.
fn log_probs(net: &Mlp, inputs: &Tensor) -> Tensor {
    net.forward(inputs).view([-1, CANDIDATES as i64]).log_softmax(-1, Kind::Float).flatten(0, -1)
}
