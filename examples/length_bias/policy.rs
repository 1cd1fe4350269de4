//! Tunes one policy by one method and judges it.

use std::{cell::RefCell, rc::Rc};

use anyhow::Result;
use prefopt::{
    PreferenceBatch, ResponseTable, RewardScores,
    logps::response_logps_of,
    loss::PessimisticDistillation,
    packed::PackedRow,
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, Trainer, Warmup},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::{
    Size,
    family::{self, Member},
    figure,
    methods::{Method, Scores},
    support::{
        gpt::Gpt,
        sampling::sample,
        stories::{self, ASSETS},
    },
    tensors,
    world::{LONGEST, World},
};

const BATCH: usize = 16;
const LEARNING_RATE: f64 = 5e-4;
/// Pairs whose log-probabilities are followed over training.
const FOLLOWED: usize = 64;
const FOLLOW_EVERY: usize = 5;

/// Everything that the policies of one seed share.
pub struct Setting {
    pub world: World,
    pub members: Vec<Member>,
    pub reference: [Vec<f32>; 3],
    pub seed: u64,
}

/// Which openings a policy is judged on.
#[derive(Debug, Clone, Copy)]
pub enum Openings {
    /// Those on which β is chosen.
    Tuning,
    Test,
}

/// One policy to tune.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub method: Method,
    /// Index of ρ; the pooled data ignore it.
    pub bias: usize,
    pub beta: f64,
    pub gamma: f64,
    pub judged_on: Openings,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub method: Method,
    pub bias: usize,
    pub seed: u64,
    pub beta: f64,
    /// Gold reward of own samples, in words.
    pub gold: f64,
    /// KL(π ‖ π_ref) on own samples, nats.
    pub kl: f64,
    /// Mean length of own samples, tokens.
    pub length: f64,
    /// Change of log π(y_w) and log π(y_l) on training pairs since the start: step, chosen, rejected, nats.
    pub trace: Vec<(usize, f64, f64)>,
    /// How many batches picked each member.
    pub picks: Vec<usize>,
    /// A few openings with the policy's continuations.
    pub examples: Vec<(String, String)>,
}

/// Tunes and judges.
pub fn run(setting: &Setting, job: Job, size: &Size, device: Device) -> Result<Outcome> {
    let world = &setting.world;
    let data = if job.method == Method::Pooled { &world.pooled } else { &world.biased[job.bias] };
    let (store, gpt) = stories::load(ASSETS.as_ref(), device)?;
    let scores = scores(setting, job, device)?;
    let forward = |pairs: &Vec<usize>| batch(setting, &gpt, scores.as_ref(), job.method.anchored(), pairs, device);
    let steps = size.epochs * (data.len() / BATCH);
    let optimizer = AdamW::new(store.trainable_variables(), AdamWConfig::default())?;
    let descent =
        Descent::new(optimizer, LEARNING_RATE)?.with_schedule(Warmup::new(5).then_cosine(steps.max(6) as u64 + 1)?);
    let picks = Rc::new(RefCell::new(vec![0; setting.members.len()]));
    let mut trainer = PolicyTrainer::new(job.method.loss(job.beta, job.gamma)?, forward, descent, job.beta)?;
    if job.method.pessimistic() {
        let (counts, loss) = (Rc::clone(&picks), PessimisticDistillation::new(job.beta)?);
        trainer = trainer.before_loss(move |_, batch| {
            counts.borrow_mut()[loss.best_member(batch)?.int64_value(&[]) as usize] += 1;
            Ok(())
        });
    }

    let mut rng = ChaCha8Rng::seed_from_u64(setting.seed);
    let followed = &data[..FOLLOWED.min(data.len())];
    let mut trace = vec![(0, 0.0, 0.0)];
    let mut order = data.clone();
    for _ in 0..size.epochs {
        order.shuffle(&mut rng);
        for pairs in order.chunks_exact(BATCH) {
            let step = trainer.step(&pairs.to_vec())?.step as usize;
            let shown = figure::follows(job.method, job.bias);
            if (shown && step.is_multiple_of(FOLLOW_EVERY)) || step == steps {
                let (chosen, rejected) = displacement(setting, &gpt, followed, device)?;
                trace.push((step, chosen, rejected));
            }
        }
    }
    drop(trainer);
    let picks = picks.borrow().clone();

    let openings = match job.judged_on {
        Openings::Tuning => &world.tuning,
        Openings::Test => &world.test,
    };
    let (gold, kl, length, examples) = judge(setting, &gpt, openings, device)?;
    let Job { method, bias, beta, .. } = job;
    Ok(Outcome { method, bias, seed: setting.seed, beta, gold, kl, length, trace, picks, examples })
}

fn scores(setting: &Setting, job: Job, device: Device) -> Result<Option<RewardScores>> {
    let all: Vec<&Member> = setting.members.iter().collect();
    Ok(match job.method.scores() {
        Scores::None => None,
        Scores::Own => Some(family::scores(&all[job.bias..=job.bias], device)?),
        Scores::Mean => Some(family::scores(&all, device)?.averaged()),
        Scores::Family => Some(family::scores(&all, device)?),
        Scores::Standardised => Some(family::scores(&all, device)?.standardised()),
    })
}

fn batch(
    setting: &Setting,
    gpt: &Gpt,
    scores: Option<&RewardScores>,
    anchored: bool,
    pairs: &[usize],
    device: Device,
) -> prefopt::Result<PreferenceBatch> {
    let row = tensors::row(pairs.iter().map(|&i| &setting.world.pairs[i]), anchored, device)?;
    let mut parts = tensors::logps(gpt, &row, anchored)?.into_iter();
    let mut next = || parts.next().unwrap_or_else(|| Tensor::zeros([0], (Kind::Float, device)));
    let logps = family::against(&setting.reference, pairs, next(), next())?;
    let mut batch = PreferenceBatch::new(logps);
    if let Some(scores) = scores {
        let index: Vec<i64> = pairs.iter().map(|&i| i as i64).collect();
        batch = batch.with_rewards(scores.select(&Tensor::from_slice(&index).to(device))?)?;
    }
    if anchored {
        let reference = family::column(&setting.reference[2], pairs, device);
        batch = batch.with_reference_samples(ResponseTable::new(next().unsqueeze(1), reference.unsqueeze(1))?)?;
    }
    Ok(batch)
}

/// Mean change of log π(y_w) and log π(y_l) since the reference, nats.
fn displacement(setting: &Setting, gpt: &Gpt, pairs: &[usize], device: Device) -> Result<(f64, f64)> {
    let _no_grad = tch::no_grad_guard();
    let batch = batch(setting, gpt, None, false, pairs, device)?;
    let mean = |log_ratio: Tensor| log_ratio.mean(Kind::Double).double_value(&[]);
    Ok((mean(batch.logps().chosen_log_ratio()), mean(batch.logps().rejected_log_ratio())))
}

/// Gold reward, divergence from the reference, length, and a few samples.
type Judgement = (f64, f64, f64, Vec<(String, String)>);

/// Samples once from each opening, with random numbers that are the same for every method.
pub fn judge(setting: &Setting, gpt: &Gpt, openings: &[Vec<i64>], device: Device) -> Result<Judgement> {
    const SHOWN: usize = 6;
    let _no_grad = tch::no_grad_guard();
    let world = &setting.world;
    let mut rng = ChaCha8Rng::seed_from_u64(setting.seed.wrapping_add(1 << 32));
    let prompts: Vec<&[i64]> = openings.iter().map(Vec::as_slice).collect();
    let responses = sample(gpt, &prompts, LONGEST, &mut rng, device)?;
    let (gold, length) = world.judge(&responses)?;
    let row = PackedRow::sequences(prompts.iter().copied().zip(responses.iter().map(Vec::as_slice)), device)?;
    let (_store, reference) = stories::load(ASSETS.as_ref(), device)?;
    let [own, of_reference] = [response_logps_of(gpt, &row)?.sums, response_logps_of(&reference, &row)?.sums];
    let kl = (own - of_reference).mean(Kind::Double).double_value(&[]);
    let texts = prompts.iter().zip(&responses).take(SHOWN).map(|(prompt, response)| {
        Ok((stories::decode(&world.tokenizer, prompt)?, stories::decode(&world.tokenizer, response)?))
    });
    Ok((gold, kl, length, texts.collect::<Result<_>>()?))
}
