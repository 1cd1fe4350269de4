//! Preference models of a world: Bradley–Terry scores and general preference embeddings on one small trunk, fitted to the same labels.

use anyhow::Result;
use prefopt::reward::{
    BradleyTerry, GeneralPreference, GeneralPreferenceHead, RewardBatch, RewardObjective, RewardScorer, ScalarHead,
    preference_score, preference_table,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Tensor, nn};

use crate::{
    Size,
    support::network::{Mlp, descend, indices, normal, numbers, vector},
    world::{CANDIDATES, FEATURES, Game, Prompts, World},
};

const HIDDEN: i64 = 16;
/// τ of P = σ(s/τ), the library's default: s of a table is τ times log-odds, whatever model it comes from.
pub const TEMPERATURE: f64 = 0.1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Model {
    BradleyTerry,
    /// With this many blocks of two numbers.
    General(i64),
}

impl Model {
    pub const ALL: [Self; 4] = [Self::BradleyTerry, Self::General(1), Self::General(2), Self::General(3)];

    pub fn name(self) -> String {
        match self {
            Self::BradleyTerry => "Bradley–Terry".into(),
            Self::General(blocks) => format!("general, k = {blocks}"),
        }
    }
}

/// One model to fit.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub game: Game,
    pub seed: u64,
    pub model: Model,
    pub rate: f64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct Fitted {
    pub game: Game,
    pub seed: u64,
    pub model: Model,
    pub rate: f64,
    /// Share of ordered pairs on held-out prompts, of those with a strict true preference, that are told right; a tie counts ½.
    pub accuracy: f64,
    /// Cross-entropy of the true probabilities on held-out pairs of two kinds, nats.
    pub log_loss: f64,
    /// s of all candidates of a training prompt against each other, `[prompts · candidates · candidates]`.
    #[serde(skip)]
    pub table: Vec<f64>,
}

/// Fits and measures.
pub fn run(job: Job, size: &Size) -> Result<Fitted> {
    let Job { game, seed, model, rate } = job;
    let world = World::new(game, seed, size);
    let trunk = Mlp::new(FEATURES, HIDDEN, 1, seed)?;
    let store = nn::VarStore::new(Device::Cpu);
    let head = Head::new(&store, model, seed);
    let (features, chosen, rejected) =
        (world.train.features(), indices(&world.pairs.chosen), indices(&world.pairs.rejected));
    let mut parameters = trunk.parameters();
    parameters.extend(store.trainable_variables());
    descend(parameters, size.reward_steps, rate, |_| {
        let hidden = trunk.hidden(&features);
        head.loss(&hidden, &chosen, &rejected)
    })?;
    let _no_grad = tch::no_grad_guard();
    let table = |prompts: &Prompts| numbers(&head.table(&trunk.hidden(&prompts.features()))?);
    let (accuracy, log_loss) = measured(&world, &table(&world.test)?);
    Ok(Fitted { game, seed, model, rate, accuracy, log_loss, table: table(&world.train)? })
}

/// The library's two heads.
enum Head {
    Scalar(ScalarHead),
    Embedding(GeneralPreferenceHead),
}

impl Head {
    fn new(store: &nn::VarStore, model: Model, seed: u64) -> Self {
        match model {
            Model::BradleyTerry => Self::Scalar(ScalarHead::new(&store.root(), HIDDEN)),
            Model::General(blocks) => {
                let head = GeneralPreferenceHead::new(&store.root(), HIDDEN, blocks);
                draw_again(store, seed);
                Self::Embedding(head)
            }
        }
    }

    fn loss(&self, hidden: &Tensor, chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
        let of = |rows: &Tensor| (rows.index_select(0, chosen), rows.index_select(0, rejected));
        match self {
            Self::Scalar(head) => {
                let (chosen, rejected) = of(hidden);
                Ok(BradleyTerry::new(0.0)?.mean(&RewardBatch::new(head.pair_scores(&chosen, &rejected)?))?)
            }
            Self::Embedding(head) => {
                let (chosen, rejected) = of(&head.embed(hidden)?);
                let scores = preference_score(&chosen, &rejected, None)?;
                Ok(GeneralPreference::new(TEMPERATURE)?.mean(&scores)?)
            }
        }
    }

    /// s of all candidates of a prompt against each other, `[prompts, candidates, candidates]`.
    fn table(&self, hidden: &Tensor) -> Result<Tensor> {
        let candidates = CANDIDATES as i64;
        match self {
            Self::Scalar(head) => {
                let rewards = head.scores(hidden)?.reshape([-1, candidates]);
                Ok((rewards.unsqueeze(2) - rewards.unsqueeze(1)) * TEMPERATURE)
            }
            Self::Embedding(head) => {
                let embeddings = head.embed(hidden)?.view([-1, candidates, 2 * head.blocks()]);
                Ok(preference_table(&embeddings, None)?)
            }
        }
    }
}

/// Weights from the host: libtorch's generator is shared by all threads, so what it gives depends on the others.
fn draw_again(store: &nn::VarStore, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let variables = store.variables();
    let mut names: Vec<&String> = variables.keys().collect();
    names.sort();
    let _no_grad = tch::no_grad_guard();
    for name in names {
        let mut variable = variables[name].shallow_clone();
        let values = vector(&normal(&mut rng, variable.numel())) / (HIDDEN as f64).sqrt();
        variable.copy_(&values.view(variable.size().as_slice()));
    }
}

/// Accuracy and log-loss of a table of the test prompts.
fn measured(world: &World, table: &[f64]) -> (f64, f64) {
    let log_sigmoid = |x: f64| x.min(0.0) - (-x.abs()).exp().ln_1p();
    let (mut right, mut strict, mut loss, mut pairs) = (0.0, 0.0, 0.0, 0.0);
    for (place, score) in table.iter().enumerate() {
        let (prompt, i, j) = (place / (CANDIDATES * CANDIDATES), place / CANDIDATES % CANDIDATES, place % CANDIDATES);
        let [i, j] = [i, j].map(|candidate| world.test.kinds[prompt * CANDIDATES + candidate]);
        if i == j {
            continue;
        }
        let (truth, odds) = (world.scores[[i, j]], score / TEMPERATURE);
        let p = 1.0 / (1.0 + (-truth).exp());
        loss -= p * log_sigmoid(odds) + (1.0 - p) * log_sigmoid(-odds);
        pairs += 1.0;
        if truth > 0.0 {
            strict += 1.0;
            right += if odds == 0.0 { 0.5 } else { f64::from(odds > 0.0) };
        }
    }
    (right / strict, loss / pairs)
}
