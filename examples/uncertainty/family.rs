//! The family of reward models, and whether its disagreement knows which labels are wrong.

use anyhow::Result;
use prefopt::{
    RewardScores,
    reward::{BradleyTerry, RewardBatch, RewardObjective},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    Size,
    support::network::{Mlp, descend, indices, matrix, numbers, vector},
    world::{FEATURES, RESPONSES, Split, World, reference},
};

const HIDDEN: i64 = 16;
const RATE: f64 = 0.02;

/// Scores of a split's pairs and each member's mean score under π_ref for their prompts, `[members, pairs]` each, flattened.
#[derive(Debug)]
pub struct Scores {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
    baseline: Vec<f64>,
    pairs: i64,
}

impl Scores {
    fn none(split: &Split) -> Self {
        Self { chosen: vec![], rejected: vec![], baseline: vec![], pairs: split.chosen.len() as i64 }
    }

    fn add(&mut self, split: &Split, member: &Mlp) -> Result<()> {
        let all = member.forward(&matrix(&split.features, FEATURES as i64)).view([-1, RESPONSES as i64]);
        let of = |responses: &[usize]| numbers(&all.gather(1, &indices(responses).unsqueeze(1), false));
        self.chosen.extend(of(&split.chosen)?);
        self.rejected.extend(of(&split.rejected)?);
        let mean = (&all * vector(&reference())).sum_dim_intlist([1].as_slice(), false, Kind::Float);
        self.baseline.extend(numbers(&mean)?);
        Ok(())
    }

    /// Centred: members' offsets are arbitrary.
    pub fn centred(&self) -> Result<RewardScores> {
        let [chosen, rejected, baseline] =
            [&self.chosen, &self.rejected, &self.baseline].map(|values| matrix(values, self.pairs));
        Ok(RewardScores::new(chosen, rejected)?.relative_to(&baseline)?)
    }
}

/// Scores of reward models that have each seen their own resample of the training pairs.
#[derive(Debug)]
pub struct Family {
    pub training: Scores,
    pub held_out: Scores,
}

impl Family {
    pub fn learn(world: &World, size: &Size, seed: u64) -> Result<Self> {
        let split = &world.training;
        let (chosen, rejected) = (rows(split, &split.chosen), rows(split, &split.rejected));
        let objective = BradleyTerry::new(0.0)?;
        let mut family = Self { training: Scores::none(split), held_out: Scores::none(&world.held_out) };
        for member in 0..size.members {
            let seed = 100 * seed + member;
            let (mut rng, pairs) = (ChaCha8Rng::seed_from_u64(seed), split.chosen.len());
            let resample = indices(&(0..pairs).map(|_| rng.random_range(0..pairs)).collect::<Vec<_>>());
            let [better, worse] = [&chosen, &rejected].map(|responses| responses.index_select(0, &resample));
            let model = Mlp::new(FEATURES as i64, HIDDEN, 1, seed)?;
            descend(model.parameters(), size.reward_steps, RATE, |_| {
                let score = |responses: &Tensor| model.forward(responses).squeeze_dim(1);
                let scores = RewardScores::single(&score(&better), &score(&worse))?;
                Ok(objective.mean(&RewardBatch::new(scores))?)
            })?;
            let _no_grad = tch::no_grad_guard();
            family.training.add(split, &model)?;
            family.held_out.add(&world.held_out, &model)?;
        }
        Ok(family)
    }
}

/// Features of one response of each prompt, `[prompts, features]`.
fn rows(split: &Split, responses: &[usize]) -> Tensor {
    let all = matrix(&split.features, FEATURES as i64);
    let places = responses.iter().enumerate().map(|(prompt, response)| prompt * RESPONSES + response);
    all.index_select(0, &indices(&places.collect::<Vec<_>>()))
}

/// What has to hold before a penalty on disagreement can help. Pairs of two numbers are with and without a scarce response.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Share of labels that contradict the gold reward.
    pub wrong: [f64; 2],
    /// Mean deviation of the members' margins.
    pub disagreement: [f64; 2],
    /// Probability that a wrong label's pair has the larger u than a right label's, on training pairs.
    pub margin: f64,
    /// The same of u_w + u_l.
    pub responses: f64,
    /// The same of u on pairs that no member has seen.
    pub held_out: f64,
    /// The same of the given label's loss −log σ(Δr) under the members' mean, in place of their disagreement.
    pub loss: f64,
    /// Share of wrong labels in each fifth of the training pairs, by increasing u.
    pub fifths: Vec<f64>,
}

impl Check {
    pub fn new(world: &World, family: &Family) -> Result<Self> {
        let (split, scores, held_out) = (&world.training, family.training.centred()?, family.held_out.centred()?);
        let margin = numbers(&scores.margin_uncertainty())?;
        let [chosen, rejected] = scores.uncertainty();
        let wrong: Vec<f64> = split.wrong.iter().map(|&wrong| f64::from(wrong)).collect();
        Ok(Self {
            wrong: by_kind(&wrong, &split.scarce),
            disagreement: by_kind(&margin, &split.scarce),
            margin: separation(&margin, &split.wrong),
            responses: separation(&numbers(&(chosen + rejected))?, &split.wrong),
            held_out: separation(&numbers(&held_out.margin_uncertainty())?, &world.held_out.wrong),
            // −log σ falls in the margin: the order is the margin's, turned.
            loss: separation(&numbers(&-scores.averaged().margins())?, &split.wrong),
            fifths: fifths(&margin, &wrong),
        })
    }
}

/// Means over the pairs with a scarce response and over the others.
fn by_kind(values: &[f64], scarce: &[bool]) -> [f64; 2] {
    [true, false].map(|kind| {
        let of: Vec<f64> = values.iter().zip(scarce).filter(|(_, s)| **s == kind).map(|(v, _)| *v).collect();
        of.iter().sum::<f64>() / of.len() as f64
    })
}

/// Area under the curve: the probability that a value of the `true` ones is larger than one of the others, a tie counting ½.
fn separation(values: &[f64], wrong: &[bool]) -> f64 {
    let side = |want: bool| values.iter().zip(wrong).filter(move |(_, w)| **w == want).map(|(v, _)| *v);
    let (mut won, mut all) = (0.0, 0.0);
    for a in side(true) {
        for b in side(false) {
            won += if a == b { 0.5 } else { f64::from(a > b) };
            all += 1.0;
        }
    }
    won / all
}

fn fifths(values: &[f64], wrong: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let share = |part: usize| {
        let pairs = &order[part * order.len() / 5..(part + 1) * order.len() / 5];
        pairs.iter().map(|&pair| wrong[pair]).sum::<f64>() / pairs.len() as f64
    };
    (0..5).map(share).collect()
}
