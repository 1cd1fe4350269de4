//! The policy: the reference's logits plus a small network that reads the prompt and what has been written, and a linear reward head on
//! its last hidden state.

use anyhow::Result;
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, ResponseTable, RewardScores,
    reward::{RewardScorer, ScalarHead},
    train::{AdamW, AdamWConfig, Descent},
};
use serde::Serialize;
use tch::{Device, Kind, Tensor, nn};

use crate::{
    Setting,
    methods::Method,
    support::network::{Mlp, indices, matrix, vector},
    world::{self, PREFIXES, Prompt, SAMPLES, STRINGS, TOKENS, WIDTH, World, features},
};

const HIDDEN: i64 = 32;
const RATE: f64 = 0.003;

pub struct Policy {
    network: Mlp,
    head: ScalarHead,
    head_store: nn::VarStore,
}

impl Policy {
    /// It starts at the reference and indifferent.
    pub fn new(seed: u64) -> Result<Self> {
        let head_store = nn::VarStore::new(Device::Cpu);
        let head = ScalarHead::new(&head_store.root(), HIDDEN);
        Ok(Self { network: Mlp::new(WIDTH as i64, HIDDEN, TOKENS as i64, seed)?, head, head_store })
    }

    pub fn parameters(&self) -> Vec<Tensor> {
        let mut all = self.network.parameters();
        all.extend(self.head_store.trainable_variables());
        all
    }

    /// log π of every string at every prompt, `[prompts · 216]`, nats, by the chain rule.
    fn logps(&self, prefixes: &Tensor, reference: &Tensor) -> Tensor {
        let (prefix, token) = (PREFIXES as i64, TOKENS as i64);
        let logits = self.network.forward(prefixes).view([-1, prefix, token]) + reference;
        let next = logits.log_softmax(-1, Kind::Float);
        let first = next.narrow(1, 0, 1).reshape([-1, token, 1, 1]);
        let second = next.narrow(1, 1, token).reshape([-1, token, token, 1]);
        let third = next.narrow(1, 1 + token, token * token).reshape([-1, token, token, token]);
        (first + second + third).reshape([-1])
    }

    /// r̂ of whole strings, `[1, n]`, from the hidden state of the last token.
    pub fn score(&self, strings: &Tensor) -> prefopt::Result<Tensor> {
        self.head.scores(&self.network.hidden(strings))
    }

    /// r̂ of the chosen and the rejected strings.
    pub fn scores(&self, [chosen, rejected]: &[Tensor; 2]) -> prefopt::Result<RewardScores> {
        RewardScores::new(self.score(chosen)?, self.score(rejected)?)
    }
}

/// Features of whole strings, `[n, width]`.
pub fn whole_strings<'a>(strings: impl Iterator<Item = (&'a Prompt, usize)>) -> Tensor {
    let rows: Vec<f64> = strings.flat_map(|(prompt, string)| features(prompt, &world::tokens(string))).collect();
    matrix(&rows, WIDTH as i64)
}

/// Features of every prefix at every prompt, `[prompts · 43, width]`.
fn every_prefix(prompts: &[Prompt]) -> Tensor {
    let written = world::prefixes();
    let rows = prompts.iter().flat_map(|prompt| written.iter().flat_map(move |prefix| features(prompt, prefix)));
    matrix(&rows.collect::<Vec<f64>>(), WIDTH as i64)
}

/// `[43, 6]`.
fn reference() -> Tensor {
    matrix(&world::reference(), TOKENS as i64)
}

/// The pairs of a world as tensors.
pub struct Pairs {
    prefixes: Tensor,
    reference: Tensor,
    /// Where a pair's responses stand among all strings at all prompts, `[pairs]` each: chosen, rejected.
    at: [Tensor; 2],
    /// Their features, `[pairs, width]` each.
    pub strings: [Tensor; 2],
    ref_logps: [Tensor; 2],
    /// As `at` and `ref_logps`, `[pairs · samples]`.
    samples_at: Tensor,
    ref_samples: Tensor,
    /// `[pairs]` of Int64: all are of three tokens.
    tokens: Tensor,
}

impl Pairs {
    pub fn new(world: &World) -> Self {
        let known = world::reference_strings();
        let of = |string: fn(&world::Pair) -> usize| -> Vec<(usize, usize)> {
            world.pairs.iter().map(|pair| (pair.prompt, string(pair))).collect()
        };
        let sides = [of(|pair| pair.chosen), of(|pair| pair.rejected)];
        let samples: Vec<(usize, usize)> =
            world.pairs.iter().flat_map(|pair| pair.samples.map(|string| (pair.prompt, string))).collect();
        let place = |all: &[(usize, usize)]| indices(&all.iter().map(|(x, s)| x * STRINGS + s).collect::<Vec<_>>());
        let reference_of = |all: &[(usize, usize)]| vector(&all.iter().map(|(_, s)| known[*s]).collect::<Vec<_>>());
        Self {
            prefixes: every_prefix(&world.train),
            reference: reference(),
            at: sides.each_ref().map(|side| place(side)),
            strings: sides.each_ref().map(|side| whole_strings(side.iter().map(|&(x, s)| (&world.train[x], s)))),
            ref_logps: sides.each_ref().map(|side| reference_of(side)),
            samples_at: place(&samples),
            ref_samples: reference_of(&samples).view([-1, SAMPLES as i64]),
            tokens: Tensor::full([world.pairs.len() as i64], 3_i64, (Kind::Int64, Device::Cpu)),
        }
    }

    /// log π(y_w), `[pairs]`.
    pub fn chosen_logps(&self, policy: &Policy) -> Tensor {
        policy.logps(&self.prefixes, &self.reference).index_select(0, &self.at[0])
    }

    /// The columns that a method reads.
    fn batch(&self, policy: &Policy, method: Method, rewards: &RewardScores) -> prefopt::Result<PreferenceBatch> {
        let all = policy.logps(&self.prefixes, &self.reference);
        let [chosen, rejected] = self.at.each_ref().map(|at| all.index_select(0, at));
        let [ref_chosen, ref_rejected] = self.ref_logps.each_ref().map(Tensor::shallow_clone);
        let batch = PreferenceBatch::new(PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?);
        match method {
            Method::Dpo | Method::Imitation => Ok(batch),
            Method::Pessimistic => {
                let samples = all.index_select(0, &self.samples_at).view([-1, SAMPLES as i64]);
                let samples = ResponseTable::new(samples, self.ref_samples.shallow_clone())?;
                batch.with_rewards(rewards.detached())?.with_reference_samples(samples)
            }
            Method::Drdo | Method::Printed => {
                let lengths = ResponseLengths::new(self.tokens.shallow_clone(), self.tokens.shallow_clone())?;
                let batch = batch.with_rewards(rewards.detached())?.with_lengths(lengths)?;
                batch.with_student_scores(policy.scores(&self.strings)?)
            }
        }
    }
}

/// What a policy is worth, exactly: over all its strings.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Judged {
    /// Expected gold reward on prompts that no learner saw.
    pub gold: f64,
    /// Probability of a string that repeats a token.
    pub repeating: f64,
    /// Expected gold reward on the shifted prompts.
    pub shifted: f64,
}

struct Judge {
    test: Tensor,
    gold: Tensor,
    shifted: Tensor,
    shifted_gold: Tensor,
    reference: Tensor,
    repeating: Tensor,
}

impl Judge {
    fn new(world: &World) -> Self {
        let gold = |prompts: &[Prompt]| {
            let values = prompts.iter().flat_map(|x| (0..STRINGS).map(move |s| world.gold(x, s)));
            matrix(&values.collect::<Vec<f64>>(), STRINGS as i64)
        };
        let shifted = world.shifted();
        let repeating: Vec<usize> = (0..STRINGS).filter(|&s| world::repeats(s)).collect();
        Self {
            test: every_prefix(&world.test),
            gold: gold(&world.test),
            shifted: every_prefix(&shifted),
            shifted_gold: gold(&shifted),
            reference: reference(),
            repeating: indices(&repeating),
        }
    }

    fn judge(&self, policy: &Policy) -> Judged {
        let _no_grad = tch::no_grad_guard();
        let mass = |prefixes: &Tensor| policy.logps(prefixes, &self.reference).exp().view([-1, STRINGS as i64]);
        let mean = |values: &Tensor| values.sum(Kind::Double).double_value(&[]) / self.gold.size()[0] as f64;
        let test = mass(&self.test);
        Judged {
            gold: mean(&(&test * &self.gold)),
            repeating: mean(&test.index_select(1, &self.repeating)),
            shifted: mean(&(mass(&self.shifted) * &self.shifted_gold)),
        }
    }
}

/// Trains a policy at a constant rate on all pairs at once, and judges it after each budget.
pub fn train(setting: &Setting, method: Method, number: usize, budgets: &[usize]) -> Result<Vec<Judged>> {
    let Setting { world, models, .. } = setting;
    let (pairs, judge) = (Pairs::new(world), Judge::new(world));
    let margins = if method == Method::Pessimistic { models.family.concat() } else { models.oracle.clone() };
    let margins = matrix(&margins, world.pairs.len() as i64);
    let rewards = RewardScores::new(margins.shallow_clone(), margins.zeros_like())?;

    let (policy, loss) = (Policy::new(world.seed)?, method.loss(number)?);
    let mut descent = Descent::new(AdamW::new(policy.parameters(), AdamWConfig::default())?, RATE)?;
    let mut judged = Vec::with_capacity(budgets.len());
    for step in 1..=budgets.last().copied().unwrap_or_default() {
        descent.descend(&loss.mean(&pairs.batch(&policy, method, &rewards)?)?)?;
        if budgets.contains(&step) {
            judged.push(judge.judge(&policy));
        }
    }
    Ok(judged)
}
