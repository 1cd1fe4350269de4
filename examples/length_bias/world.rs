//! The data: pairs sampled from the reference, labelled by an annotator, and resampled to a length bias.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use tch::Device;
use tokenizers::Tokenizer;

use crate::{
    Size,
    support::{
        gold::gold,
        gpt::Gpt,
        sampling::sample,
        stories::{self, ASSETS},
    },
};

/// Longest response in tokens.
pub const LONGEST: usize = 40;
const LONGEST_OPENING: usize = 32;
const SAMPLING_BATCH: usize = 256;

/// A labelled pair, with one more response of the reference for the forward divergence.
#[derive(Debug, Clone)]
pub struct Pair {
    pub opening: Vec<i64>,
    pub chosen: Vec<i64>,
    pub rejected: Vec<i64>,
    pub sample: Vec<i64>,
    /// Gold reward of chosen minus rejected, in words.
    pub gold_margin: f64,
}

impl Pair {
    fn prefers_longer(&self) -> bool {
        self.chosen.len() > self.rejected.len()
    }
}

/// What one seed learns from and is judged on.
pub struct World {
    pub tokenizer: Tokenizer,
    /// All labelled pairs; the rest of the data are indices into it.
    pub pairs: Vec<Pair>,
    /// For each ρ, the pairs in which the longer response wins with probability ρ, in equal numbers.
    pub biased: Vec<Vec<usize>>,
    /// As many pairs, drawn from all of those.
    pub pooled: Vec<usize>,
    /// Pairs that no learner sees, labelled by the annotator: where reward models are judged.
    pub held_out: Vec<usize>,
    /// Openings on which β is chosen.
    pub tuning: Vec<Vec<i64>>,
    /// Openings on which policies are judged.
    pub test: Vec<Vec<i64>>,
}

impl World {
    /// Samples, labels and resamples: everything that depends on the seed but the learners themselves.
    pub fn new(reference: &Gpt, rhos: &[f64], size: &Size, seed: u64, device: Device) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tokenizer = stories::tokenizer(ASSETS.as_ref())?;
        let mut openings = openings(&tokenizer)?;
        // The same split for every seed: an opening of the test is never trained on.
        openings.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        let judged = 2 * size.judged;
        ensure!(openings.len() > 3 * judged, "the corpus has only {} openings", openings.len());
        let training = openings.split_off(judged);
        let test = openings.split_off(size.judged);

        let drawn: Vec<&[i64]> =
            (0..size.pool).map(|_| training[rng.random_range(0..training.len())].as_slice()).collect();
        let pairs = label(reference, &tokenizer, &drawn, &mut rng, device)?;
        let cut = pairs.len() * 9 / 10;
        let biased =
            rhos.iter().map(|&rho| resample(&pairs[..cut], rho, size.pairs, &mut rng)).collect::<Result<Vec<_>>>()?;
        let mut pooled = biased.concat();
        pooled.shuffle(&mut rng);
        pooled.truncate(size.pairs);
        let held_out = (cut..pairs.len()).collect();
        Ok(Self { tokenizer, pairs, biased, pooled, held_out, tuning: openings, test })
    }

    /// Mean gold reward and mean length in tokens of responses.
    pub fn judge(&self, responses: &[Vec<i64>]) -> Result<(f64, f64)> {
        let mut total = (0.0, 0.0);
        for response in responses {
            total.0 += gold(&stories::decode(&self.tokenizer, response)?);
            total.1 += response.len() as f64;
        }
        let n = responses.len() as f64;
        Ok((total.0 / n, total.1 / n))
    }
}

/// Different openings of the corpus that leave room for a response, in a fixed order.
fn openings(tokenizer: &Tokenizer) -> Result<Vec<Vec<i64>>> {
    let path = format!("{ASSETS}/corpus.txt");
    let different: BTreeSet<String> = stories::corpus(path.as_ref())?.into_iter().map(|story| story.opening).collect();
    let mut encoded = Vec::with_capacity(different.len());
    for opening in &different {
        let ids = stories::encode_opening(tokenizer, opening)?;
        if ids.len() <= LONGEST_OPENING {
            encoded.push(ids);
        }
    }
    Ok(encoded)
}

/// Two responses to each opening, preferred by Bradley–Terry on the gold reward (one word is one nat), and a third for the
/// divergence. Pairs of equal length carry no length preference and are left out.
fn label(
    gpt: &Gpt,
    tokenizer: &Tokenizer,
    openings: &[&[i64]],
    rng: &mut ChaCha8Rng,
    device: Device,
) -> Result<Vec<Pair>> {
    let mut draw = |prompts: &[&[i64]]| sample(gpt, prompts, LONGEST, rng, device);
    let mut drawn = Vec::with_capacity(openings.len());
    for prompts in openings.chunks(SAMPLING_BATCH) {
        let (first, second, third) = (draw(prompts)?, draw(prompts)?, draw(prompts)?);
        for (((opening, a), b), sample) in prompts.iter().zip(first).zip(second).zip(third) {
            drawn.push((opening.to_vec(), a, b, sample));
        }
    }
    let mut pairs = Vec::with_capacity(drawn.len());
    for (opening, a, b, sample) in drawn.into_iter().filter(|(_, a, b, _)| a.len() != b.len()) {
        let margin = gold(&stories::decode(tokenizer, &a)?) - gold(&stories::decode(tokenizer, &b)?);
        let prefers_first = rng.random::<f64>() < 1.0 / (1.0 + (-margin).exp());
        let (chosen, rejected, gold_margin) = if prefers_first { (a, b, margin) } else { (b, a, -margin) };
        pairs.push(Pair { opening, chosen, rejected, sample, gold_margin });
    }
    Ok(pairs)
}

/// `n` pairs without replacement of which the share ρ prefers the longer response.
fn resample(pairs: &[Pair], rho: f64, n: usize, rng: &mut ChaCha8Rng) -> Result<Vec<usize>> {
    let (mut longer, mut shorter): (Vec<_>, Vec<_>) = (0..pairs.len()).partition(|&i| pairs[i].prefers_longer());
    let wanted = (rho * n as f64).round() as usize;
    ensure!(
        longer.len() >= wanted && shorter.len() >= n - wanted,
        "{} and {} pairs are too few for {n} at rho = {rho}",
        longer.len(),
        shorter.len()
    );
    longer.shuffle(rng);
    shorter.shuffle(rng);
    let mut chosen = [&longer[..wanted], &shorter[..n - wanted]].concat();
    chosen.shuffle(rng);
    Ok(chosen)
}
