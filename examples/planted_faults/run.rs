//! One run: a policy tuned under the eyes of a watch.

use anyhow::Result;
use prefopt::{
    PairLogps, PreferenceBatch, ResponseLengths, ResponseTable, RewardScores,
    diagnostics::{Alarm, Metrics, Thresholds, opposed_labels, sample_metrics},
    logps::{ResponseLogps, response_logps_of},
    packed::PackedRow,
    train::{AdamW, AdamWConfig, Descent, Flow, Observer, PolicyTrainer, StepReport, Trainer, Warmup, Watch},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::{
    Size,
    plants::{BETA, Mask, Plant},
    support::{
        gpt::Gpt,
        sampling::sample,
        stories::{self, ASSETS},
    },
    world::{LONGEST, Pair, TEACHERS, World},
};

const BATCH: usize = 8;
const WARM_UP: u64 = 5;
/// Pairs in one pass without gradients.
const PASS: usize = 64;

/// What a step said.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    pub step: u64,
    /// Change of log π(y_w) and log π(y_l), nats.
    pub chosen: f64,
    pub rejected: f64,
    /// Mean of βh.
    pub margin: f64,
}

/// A typed error in place of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Refusal {
    /// Steps that were taken before it.
    pub after: u64,
    pub message: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub plant: Plant,
    pub seed: u64,
    pub alarms: Vec<Alarm>,
    pub refusal: Option<Refusal>,
    pub trace: Vec<Point>,
}

/// Keeps what the picture shows.
#[derive(Default)]
struct Diary(Vec<Point>);

impl Observer for Diary {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        let of = |name| report.metrics.get(name).unwrap_or(f64::NAN);
        let (chosen, rejected) = (of("displacement/chosen"), of("displacement/rejected"));
        self.0.push(Point { step: report.step, chosen, rejected, margin: of("rewards/margins") });
        Flow::Continue
    }
}

pub fn run(world: &World, plant: Plant, size: &Size) -> Result<Outcome> {
    let (mut watch, mut diary) = (Watch::new(Thresholds::default()), Diary::default());
    let refusal = train(world, plant, size, &mut watch, &mut diary)?;
    Ok(Outcome { plant, seed: world.seed, alarms: watch.alarms().to_vec(), refusal, trace: diary.0 })
}

/// Trains to the end, or until a typed error refuses to go on.
fn train(world: &World, plant: Plant, size: &Size, watch: &mut Watch, diary: &mut Diary) -> Result<Option<Refusal>> {
    let training = plant.training(world);
    let labels = training.iter().map(|pair| (&pair.opening[..], &pair.chosen[..], &pair.rejected[..]));
    watch.measured(0, &Metrics::default().with("data/opposed", opposed_labels(labels)));

    let pairs: Vec<&Pair> = training.iter().chain(&world.held_out).collect();
    let held_out: Vec<usize> = (training.len()..pairs.len()).collect();
    let (_frozen, reference) = stories::load(ASSETS.as_ref(), Device::Cpu)?;
    let [mask, mask_of_reference] = plant.masks();
    let cached = match cache(&reference, &pairs, mask_of_reference) {
        Ok(cached) => cached,
        Err(error) => return Ok(Some(Refusal { after: 0, message: error.to_string() })),
    };

    let (store, policy) = stories::load(ASSETS.as_ref(), Device::Cpu)?;
    let forward = |batch: &Vec<usize>| -> prefopt::Result<PreferenceBatch> {
        let rows: Vec<&Pair> = batch.iter().map(|&i| pairs[i]).collect();
        assembled(plant, &rows, score(&policy, &rows, mask)?, batch.iter().map(|&i| cached[i]).collect())
    };
    let optimizer = AdamW::new(store.trainable_variables(), AdamWConfig::default())?;
    let descent = Descent::new(optimizer, plant.learning_rate())?.with_schedule(Warmup::new(WARM_UP));
    let mut trainer = PolicyTrainer::new(plant.loss()?, forward, descent, BETA)?;

    let samples = || samples(&policy, &reference, world);
    watch.measured(0, &samples()?);
    for batches in batches(training.len(), size.steps, world.seed).chunks(size.every) {
        let step = match trainer.fit(batches.to_vec(), &mut [&mut *watch, &mut *diary]) {
            Ok(report) => report.map_or(0, |report| report.step),
            Err(error) => {
                let after = diary.0.last().map_or(0, |point| point.step);
                return Ok(Some(Refusal { after, message: error.to_string() }));
            }
        };
        if plant.is_compared() {
            watch.measured(step, &trainer.evaluate(&held_out)?);
        }
        if step.is_multiple_of(2 * size.every as u64) {
            watch.measured(step, &samples()?);
        }
    }
    Ok(None)
}

/// Shuffled anew at each pass over the pairs.
fn batches(pairs: usize, steps: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut order, mut batches): (Vec<usize>, Vec<Vec<usize>>) = ((0..pairs).collect(), vec![]);
    while batches.len() < steps {
        order.shuffle(&mut rng);
        batches.extend(order.chunks_exact(BATCH).map(<[usize]>::to_vec));
    }
    batches.truncate(steps);
    batches
}

/// log π of what the mask selects in both responses of each pair.
fn score(gpt: &Gpt, pairs: &[&Pair], mask: Mask) -> prefopt::Result<ResponseLogps> {
    let parts: Vec<[Vec<i64>; 3]> = pairs.iter().map(|pair| mask.parts(pair)).collect();
    let row = parts.iter().map(|[prompt, chosen, rejected]| (&prompt[..], &chosen[..], &rejected[..]));
    response_logps_of(gpt, &PackedRow::pairs(row, Device::Cpu)?)
}

/// The two columns of `[2 · pairs]`.
fn columns(of: &Tensor) -> [Tensor; 2] {
    let pairs = of.view([-1, 2]);
    [pairs.select(1, 0), pairs.select(1, 1)]
}

/// Log-probabilities of all pairs under the reference, computed once.
fn cache(reference: &Gpt, pairs: &[&Pair], mask: Mask) -> prefopt::Result<Vec<[f32; 2]>> {
    let _no_grad = tch::no_grad_guard();
    let mut cached = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(PASS) {
        let sums = Vec::<f32>::try_from(score(reference, pairs, mask)?.sums)?;
        cached.extend(sums.chunks_exact(2).map(|pair| [pair[0], pair[1]]));
    }
    Ok(cached)
}

/// A batch, with the faults that lie in putting it together.
fn assembled(
    plant: Plant,
    pairs: &[&Pair],
    own: ResponseLogps,
    cached: Vec<[f32; 2]>,
) -> prefopt::Result<PreferenceBatch> {
    let [chosen, rejected] = columns(&own.sums);
    let [ref_chosen, ref_rejected] = match plant {
        // What a second pass through the same weights would give.
        Plant::ReferenceTrained => [chosen.detach(), rejected.detach()],
        Plant::ReferenceSwapped => reference_columns(&cached, [1, 0]),
        _ => reference_columns(&cached, [0, 1]),
    };
    let [chosen_lengths, rejected_lengths] = columns(&own.lengths);
    let (logps, lengths) = match plant {
        Plant::PairsSwapped => (
            PairLogps::new(rejected, chosen, ref_rejected, ref_chosen)?,
            ResponseLengths::new(rejected_lengths, chosen_lengths)?,
        ),
        _ => (
            PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?,
            ResponseLengths::new(chosen_lengths, rejected_lengths)?,
        ),
    };
    let batch = PreferenceBatch::new(logps).with_lengths(lengths)?;
    if !plant.is_compared() {
        return Ok(batch);
    }
    let scores = |side: usize| {
        let rows: Vec<f64> = pairs.iter().flat_map(|pair| pair.scores[side]).collect();
        Tensor::from_slice(&rows).view([-1, TEACHERS as i64]).tr().to_kind(Kind::Float)
    };
    let scores = RewardScores::new(scores(0), scores(1))?;
    // Distillation takes one reward model.
    batch.with_rewards(if plant == Plant::Distillation { scores.averaged() } else { scores })
}

fn reference_columns(cached: &[[f32; 2]], order: [usize; 2]) -> [Tensor; 2] {
    order.map(|side| Tensor::from_slice(&cached.iter().map(|pair| pair[side]).collect::<Vec<_>>()))
}

/// What the policy writes now, with the random numbers of every other time.
fn samples(policy: &Gpt, reference: &Gpt, world: &World) -> Result<Metrics> {
    let _no_grad = tch::no_grad_guard();
    let mut rng = ChaCha8Rng::seed_from_u64(world.seed.wrapping_add(1 << 32));
    let prompts: Vec<&[i64]> = world.prompts.iter().map(Vec::as_slice).collect();
    let responses = sample(policy, &prompts, LONGEST, &mut rng, Device::Cpu)?;
    let row = PackedRow::sequences(prompts.iter().copied().zip(responses.iter().map(Vec::as_slice)), Device::Cpu)?;
    let logps = |gpt: &Gpt| -> prefopt::Result<Tensor> { Ok(response_logps_of(gpt, &row)?.sums.unsqueeze(1)) };
    Ok(sample_metrics(&ResponseTable::new(logps(policy)?, logps(reference)?)?, &responses)?)
}
