//! Reward models: a family of bootstraps for e-DPO, and DRDO's oracle. All have the policy's own shape.

use anyhow::Result;
use prefopt::reward::{BradleyTerry, RewardBatch, RewardObjective, WithLikelihood};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::{
    Size,
    policy::{Pairs, Policy, whole_strings},
    support::network::{descend, indices, numbers},
    world::{STRINGS, World, repeats},
};

const MEMBERS: usize = 4;
const RATE: f64 = 0.01;
/// Of the squared mean score.
const CENTRING: f64 = 0.001;
/// Of the oracle's language-modelling term, a mean over tokens.
const LIKELIHOOD: f64 = 0.1;

/// Margins of all pairs, as data.
pub struct Models {
    /// `[members][pairs]`.
    pub family: Vec<Vec<f64>>,
    /// `[pairs]`.
    pub oracle: Vec<f64>,
    /// Correlation of the oracle's scores with gold, over the strings of the test prompts that repeat nothing and within a prompt.
    pub quality: f64,
}

impl Models {
    pub fn train(world: &World, size: &Size) -> Result<Self> {
        let pairs = Pairs::new(world);
        let objective = BradleyTerry::new(CENTRING)?;
        let mut rng = ChaCha8Rng::seed_from_u64(world.seed);
        let mut family = Vec::with_capacity(MEMBERS);
        for member in 0..MEMBERS as u64 {
            let n = world.pairs.len();
            let drawn: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
            let drawn = pairs.strings.each_ref().map(|side| side.index_select(0, &indices(&drawn)));
            let model = Policy::new(16 * world.seed + member)?;
            descend(model.parameters(), size.reward_steps, RATE, |_| {
                Ok(objective.mean(&RewardBatch::new(model.scores(&drawn)?))?)
            })?;
            family.push(margins(&model, &pairs)?);
        }

        let objective = WithLikelihood::new(objective, LIKELIHOOD)?;
        let model = Policy::new(16 * world.seed + MEMBERS as u64)?;
        descend(model.parameters(), size.reward_steps, RATE, |_| {
            let chosen = pairs.chosen_logps(&model) / 3.0;
            Ok(objective.mean(&RewardBatch::new(model.scores(&pairs.strings)?).with_chosen_logps(chosen)?)?)
        })?;
        Ok(Self { family, oracle: margins(&model, &pairs)?, quality: quality(&model, world)? })
    }
}

fn margins(model: &Policy, pairs: &Pairs) -> Result<Vec<f64>> {
    let _no_grad = tch::no_grad_guard();
    numbers(&model.scores(&pairs.strings)?.margins())
}

fn quality(model: &Policy, world: &World) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let shown: Vec<usize> = (0..STRINGS).filter(|&s| !repeats(s)).collect();
    let rows: Vec<Vec<f64>> = world.test.iter().map(|x| shown.iter().map(|&s| world.gold(x, s)).collect()).collect();
    let strings = world.test.iter().flat_map(|x| shown.iter().map(move |&s| (x, s)));
    let scores = model.score(&whole_strings(strings))?.reshape([-1, shown.len() as i64]).to_kind(Kind::Double);
    let centred = |x: &Tensor| x - x.mean_dim([1_i64].as_slice(), true, Kind::Double);
    let (scores, gold) = (centred(&scores), centred(&Tensor::from_slice2(&rows)));
    let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
    Ok(dot(&scores, &gold) / (dot(&scores, &scores) * dot(&gold, &gold)).sqrt())
}
