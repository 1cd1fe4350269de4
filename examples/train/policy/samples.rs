//! Samples of the policy and of the reference: at temperature 1, as estimators of divergences want them.

use std::{iter, num::NonZeroUsize, path::Path};

use anyhow::{Result, bail};
use prefopt::{
    data::{Cache, Digest, PairDataset, Values},
    lm::{CausalLm, ModelConfig, Reader, Sampler},
    logps::response_logps_of,
    ndarray::Array2,
};
use rand::{SeedableRng, rngs::StdRng};
use tch::{Device, Kind, Tensor};

use super::{
    numbered::{Numbered, row, wide},
    reference::Frozen,
};
use crate::{
    columns::{self, BATCH_TOKENS, Kept},
    flags::PolicyFlags,
    models,
    support::progress,
};

/// What samples are for: each purpose has random numbers of its own.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    Reference = 1,
    Policy = 2,
    SelfPlay = 3,
    Divergence = 4,
}

/// How continuations are drawn.
pub struct Draw {
    /// Continuations of each prompt.
    pub each: usize,
    longest: NonZeroUsize,
    pub context: usize,
    ends: Vec<i64>,
    seed: u64,
}

impl Draw {
    pub fn new(flags: &PolicyFlags, config: &ModelConfig) -> Result<Self> {
        let end = models::tokenizer(&flags.model.model)?.end();
        Ok(Self {
            each: flags.samples.get(),
            longest: flags.sample_length,
            context: usize::try_from(config.context()).unwrap_or(usize::MAX),
            ends: config.end_tokens().iter().copied().chain([i64::from(end)]).collect(),
            seed: flags.run.seed,
        })
    }

    /// The same for the same step and place, so that two passes over a batch, or a run that goes on, draw the same.
    pub fn rng(&self, purpose: Purpose, step: u64, place: usize) -> StdRng {
        let mut seed = [0; 32];
        let numbers = [purpose as u64, self.seed, step, place as u64];
        for (bytes, number) in seed.chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        StdRng::from_seed(seed)
    }

    /// Continuations of each prompt, one prompt's after the other's. Where the context ends before `--sample-length`,
    /// they end with it, and those of no other prompt do.
    pub fn draw<'a>(
        &self,
        model: impl Into<Reader<'a>>,
        prompts: &[Vec<i64>],
        rng: &mut StdRng,
    ) -> prefopt::Result<Vec<Vec<i64>>> {
        let room = |prompt: &Vec<i64>| {
            let room = NonZeroUsize::new(self.context.saturating_sub(prompt.len())).unwrap_or(NonZeroUsize::MIN);
            self.longest.min(room)
        };
        let reader: Reader<'a> = model.into();
        let mut drawn = Vec::with_capacity(prompts.len() * self.each);
        // Those of equal room together, and in order, as they take their random numbers.
        for prompts in prompts.chunk_by(|one, next| room(one) == room(next)) {
            let sampler = Sampler::new(room(&prompts[0])).with_stop(self.ends.iter().copied());
            let repeated = prompts.iter().flat_map(|prompt| iter::repeat_n(prompt.as_slice(), self.each));
            drawn.extend(sampler.sample(reader, &repeated.collect::<Vec<_>>(), rng)?);
        }
        Ok(drawn)
    }

    /// Tokens that a prompt and its continuations may take.
    pub fn tokens(&self, prompt: usize) -> usize {
        self.each * (prompt + self.longest.get())
    }
}

/// Samples of the reference for each pair's prompt, drawn once.
pub struct ReferenceSamples {
    /// Of each pair in turn.
    tokens: Vec<Vec<i64>>,
    each: usize,
    /// log π_ref, `[pairs, samples]`, nats.
    pub logps: Tensor,
}

impl ReferenceSamples {
    /// Those in the folder, or drawn now and kept in it.
    pub fn of(
        pairs: &Numbered,
        frozen: &mut Frozen,
        digest: Digest,
        folder: &Path,
        draw: &Draw,
        (device, weights): (Device, Kind),
    ) -> Result<Self> {
        // What the numbers depend on besides the reference and the pairs.
        let what = format!("samples-{}x{}-seed-{}", draw.each, draw.longest, draw.seed);
        let (mut tokens, mut logps) = (Vec::new(), Vec::new());
        for (place, (part, pairs)) in pairs.parts().into_iter().enumerate() {
            let key = Kept::Samples.key(weights, pairs, digest);
            let file = columns::file(folder, &what, part);
            let cache = columns::kept(&file, &key, || drawn(frozen.model()?, pairs, draw, place))?;
            tokens.extend(sequences(&cache, draw)?);
            logps.push(columns::column(&[&cache], "logps", (Kind::Float, device))?.tr());
        }
        Ok(Self { tokens, each: draw.each, logps: Tensor::f_cat(&logps, 0)? })
    }

    pub fn of_pair(&self, index: usize) -> &[Vec<i64>] {
        &self.tokens[index * self.each..][..self.each]
    }
}

/// Columns `tokens` `[samples · longest, pairs]`, −1 behind the end, and `logps` `[samples, pairs]`.
fn drawn(model: &CausalLm, pairs: &PairDataset, draw: &Draw, place: usize) -> Result<Cache> {
    let _no_grad = tch::no_grad_guard();
    let (each, longest) = (draw.each, draw.longest.get());
    let lengths: Vec<usize> = pairs.iter().map(|pair| pair.prompt.len()).collect();
    // Prompts of like length together, as the sampler pads them.
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|&pair| lengths[pair]);
    let mut tokens = Array2::from_elem((each * longest, pairs.len()), -1_f32);
    let mut logps = Array2::<f64>::zeros((each, pairs.len()));
    let mut rng = draw.rng(Purpose::Reference, 0, place);
    let runs = columns::runs(order.iter().map(|&pair| draw.tokens(lengths[pair])), BATCH_TOKENS);
    let bar = progress::bar(runs.len() as u64, "batches")?;
    bar.set_message("samples of the reference");
    for run in runs {
        let indices = &order[run];
        let prompts: Vec<Vec<i64>> = indices.iter().filter_map(|&pair| Some(wide(pairs.pair(pair)?.prompt))).collect();
        let responses = draw.draw(model, &prompts, &mut rng)?;
        let sums = response_logps_of(model, &row(&prompts, &responses, each, model.device())?)?.sums;
        let sums = Vec::<f64>::try_from(&sums)?;
        for ((number, response), sum) in responses.iter().enumerate().zip(sums) {
            let (pair, sample) = (indices[number / each], number % each);
            logps[[sample, pair]] = sum;
            for (time, &token) in response.iter().enumerate() {
                // Exact up to 16 million tokens of a vocabulary.
                tokens[[sample * longest + time, pair]] = token as f32;
            }
        }
        progress::done(&bar, "batches");
    }
    bar.finish_and_clear();
    Ok(Cache::default().with("tokens", Values::Single(tokens.into_dyn()))?.with("logps", logps)?)
}

/// The sequences of the column `tokens`, pair by pair.
fn sequences(cache: &Cache, draw: &Draw) -> Result<Vec<Vec<i64>>> {
    let (each, longest) = (draw.each, draw.longest.get());
    let Values::Single(tokens) = cache.column("tokens")? else {
        bail!("the samples of the reference are of another form: delete them from the cache");
    };
    let pairs = cache.pairs().unwrap_or_default();
    let sequence = |pair: usize, sample: usize| -> Vec<i64> {
        let tokens = (0..longest).map(|time| tokens[[sample * longest + time, pair]] as i64);
        tokens.take_while(|&token| token >= 0).collect()
    };
    Ok((0..pairs).flat_map(|pair| (0..each).map(move |sample| (pair, sample))).map(|(p, s)| sequence(p, s)).collect())
}
