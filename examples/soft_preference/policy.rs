//! Tunes one policy and judges it in both regions.

use anyhow::Result;
use prefopt::{
    PreferenceBatch, PreferenceLoss, ResponseTable,
    loss::{Dpo, ReverseKl, Spo},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    Size,
    support::network::{Mlp, descend, indices, numbers},
    world::{INPUTS, Prompts, RESPONSES, World, draw},
};

const HIDDEN: i64 = 32;
const RATE: f64 = 0.01;
/// On-policy samples of each prompt.
const SAMPLES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Method {
    Dpo,
    Spo,
}

/// Prompts at which the divergence holds the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Anchor {
    /// Nowhere: λ = 0.
    None,
    /// At those of the pairs.
    Pairs,
    /// At unlabelled ones of both regions.
    Unlabelled,
}

/// One way to train.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setting {
    pub method: Method,
    pub anchor: Anchor,
    /// β of DPO, α of SPO.
    pub strength: f64,
    pub lambda: f64,
    pub divergence: ReverseKl,
}

impl Setting {
    /// DPO's loss is divided by β: so it has SPO's scale, and one λ weighs the same beside either.
    fn loss(&self) -> prefopt::Result<Box<dyn PreferenceLoss>> {
        let Self { strength, lambda, divergence, .. } = *self;
        let scale = move |batch: &PreferenceBatch| batch.logps().chosen().ones_like() / strength;
        Ok(match (self.method, self.anchor) {
            (Method::Dpo, Anchor::None) => Box::new(Dpo::new(strength)?.weighted_by(scale)),
            (Method::Dpo, _) => Box::new(Dpo::new(strength)?.weighted_by(scale).plus(lambda, divergence)),
            (Method::Spo, Anchor::None) => Box::new(Spo::new(strength)?),
            (Method::Spo, _) => Box::new(Spo::new(strength)?.plus(lambda, divergence)),
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub setting: Setting,
    pub seed: u64,
}

/// In one region.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Judged {
    /// Expected gold reward above the reference's.
    pub gain: f64,
    /// KL(π ‖ π_ref), nats.
    pub kl: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Outcome {
    pub familiar: Judged,
    pub shifted: Judged,
}

/// The reference's logits and a network's, which starts at 0.
struct Policy(Mlp);

impl Policy {
    /// log π of every response, `[prompts, responses]`.
    fn logps(&self, prompts: &Prompts) -> Tensor {
        let learned = self.0.forward(&prompts.inputs).view([-1, RESPONSES as i64]);
        (learned + &prompts.reference).log_softmax(-1, Kind::Float)
    }

    fn judged(&self, prompts: &Prompts) -> Judged {
        let _no_grad = tch::no_grad_guard();
        let log_policy = self.logps(prompts);
        let mass = log_policy.exp();
        let mean = |values: Tensor| values.sum(Kind::Double).double_value(&[]) / values.size()[0] as f64;
        Judged {
            gain: mean((&mass - prompts.reference.exp()) * &prompts.gold),
            kl: mean(&mass * (&log_policy - &prompts.reference)),
        }
    }
}

/// Full-batch steps on all pairs, the same number for every setting.
pub fn train(job: &Job, size: &Size) -> Result<Outcome> {
    let world = World::new(job.seed, size)?;
    let Setting { anchor, divergence, .. } = job.setting;
    let mut rng = ChaCha8Rng::seed_from_u64(job.seed.wrapping_add(1 << 32));
    let policy = Policy(Mlp::new(INPUTS, HIDDEN, 1, job.seed)?);
    let loss = job.setting.loss()?;
    // The row of the divergence's table that goes with each pair.
    let rows = match anchor {
        Anchor::None | Anchor::Pairs => world.pairs.prompt.shallow_clone(),
        Anchor::Unlabelled => indices(&(0..world.pairs.number).map(|pair| pair % size.unlabelled).collect::<Vec<_>>()),
    };
    let mut drawn = Tensor::new();
    descend(policy.0.parameters(), size.steps, RATE, |step| {
        let training = policy.logps(&world.training);
        let batch = PreferenceBatch::new(world.pairs.logps(&training, &world.training.reference)?);
        let (table, reference) = match anchor {
            Anchor::None => return Ok(loss.mean(&batch)?),
            Anchor::Pairs => (training, &world.training.reference),
            Anchor::Unlabelled => (policy.logps(&world.unlabelled), &world.unlabelled.reference),
        };
        let batch = match divergence {
            ReverseKl::Exact => {
                let of = |table: &Tensor| table.index_select(0, &rows);
                batch.with_all_responses(ResponseTable::new(of(&table), of(reference))?)?
            }
            ReverseKl::PolicySamples => {
                // Drawn anew every `refresh` steps; what is kept in between is the responses, not their log-probabilities.
                if step.is_multiple_of(size.refresh) {
                    drawn = sample(&table, &mut rng)?;
                }
                let of = |table: &Tensor| table.gather(1, &drawn, false).index_select(0, &rows);
                batch.with_policy_samples(ResponseTable::new(of(&table), of(reference))?)?
            }
        };
        Ok(loss.mean(&batch)?)
    })?;
    Ok(Outcome { familiar: policy.judged(&world.familiar), shifted: policy.judged(&world.shifted) })
}

/// Responses of the policy for each prompt, `[prompts, SAMPLES]`.
fn sample(log_policy: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let masses = numbers(&log_policy.exp())?;
    let mut drawn = Vec::new();
    for masses in masses.chunks(RESPONSES) {
        drawn.extend((0..SAMPLES).map(|_| draw(masses, rng)));
    }
    Ok(indices(&drawn).view([-1, SAMPLES as i64]))
}
