//! Pairs of continuations of story openings, labelled by the gold reward, with the scores of three teachers.

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
        network::normal,
        sampling::sample,
        stories::{self, ASSETS},
    },
};

/// Longest response in tokens.
pub const LONGEST: usize = 24;
const LONGEST_OPENING: usize = 32;
const SAMPLING_BATCH: usize = 256;

/// Reward models that see the gold reward through noise of their own.
pub const TEACHERS: usize = 3;
/// Standard deviation of a teacher's noise on a response, in words of gold.
const TEACHER_NOISE: f64 = 0.5;

/// A labelled pair.
#[derive(Debug, Clone)]
pub struct Pair {
    pub opening: Vec<i64>,
    pub chosen: Vec<i64>,
    pub rejected: Vec<i64>,
    /// Each teacher's score of the chosen and of the rejected response.
    pub scores: [[f64; TEACHERS]; 2],
}

impl Pair {
    /// With the other label; scores stay with their responses.
    pub fn reversed(&self) -> Self {
        let Self { opening, chosen, rejected, scores: [of_chosen, of_rejected] } = self.clone();
        Self { opening, chosen: rejected, rejected: chosen, scores: [of_rejected, of_chosen] }
    }
}

/// What one seed trains on and is measured on.
pub struct World {
    pub seed: u64,
    pub training: Vec<Pair>,
    pub held_out: Vec<Pair>,
    /// Openings from which the policy is sampled, now and then.
    pub prompts: Vec<Vec<i64>>,
}

impl World {
    /// One word of gold is one nat of Bradley–Terry preference; pairs of equal gold are left out.
    pub fn new(size: &Size, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tokenizer = stories::tokenizer(ASSETS.as_ref())?;
        let (_store, reference) = stories::load(ASSETS.as_ref(), Device::Cpu)?;
        let mut prompts = openings(&tokenizer)?;
        prompts.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        ensure!(prompts.len() > 2 * size.prompts, "the corpus has only {} openings", prompts.len());
        let openings = prompts.split_off(size.prompts);

        let wanted = size.training + size.held_out;
        let mut pairs = Vec::with_capacity(wanted);
        while pairs.len() < wanted {
            let drawn: Vec<&[i64]> = (0..SAMPLING_BATCH.min(2 * wanted))
                .map(|_| openings[rng.random_range(0..openings.len())].as_slice())
                .collect();
            let mut draw = || sample(&reference, &drawn, LONGEST, &mut rng, Device::Cpu);
            let (first, second) = (draw()?, draw()?);
            for ((opening, a), b) in drawn.iter().zip(first).zip(second) {
                let golds = [gold(&stories::decode(&tokenizer, &a)?), gold(&stories::decode(&tokenizer, &b)?)];
                if golds[0] != golds[1] {
                    pairs.push(labelled(opening.to_vec(), [a, b], golds, &mut rng));
                }
            }
        }
        pairs.truncate(wanted);
        let held_out = pairs.split_off(size.training);
        Ok(Self { seed, training: pairs, held_out, prompts })
    }
}

fn labelled(opening: Vec<i64>, responses: [Vec<i64>; 2], golds: [f64; 2], rng: &mut ChaCha8Rng) -> Pair {
    let scores = golds.map(|gold| {
        let noise = normal(rng, TEACHERS);
        std::array::from_fn(|teacher| gold + TEACHER_NOISE * noise[teacher])
    });
    let [first, second] = responses;
    let pair = Pair { opening, chosen: first, rejected: second, scores };
    let prefers_first = rng.random::<f64>() < 1.0 / (1.0 + (golds[1] - golds[0]).exp());
    if prefers_first { pair } else { pair.reversed() }
}

/// Different openings of the corpus that leave room for a response, in a fixed order.
fn openings(tokenizer: &Tokenizer) -> Result<Vec<Vec<i64>>> {
    let path = format!("{ASSETS}/corpus.txt");
    let different: BTreeSet<String> = stories::corpus(path.as_ref())?.into_iter().map(|story| story.opening).collect();
    let mut encoded = Vec::with_capacity(different.len());
    for opening in &different {
        let ids = stories::encode_opening(tokenizer, opening)?;
        // Two tokens at least: a mask that is wrong by a prompt needs one.
        if (2..=LONGEST_OPENING).contains(&ids.len()) {
            encoded.push(ids);
        }
    }
    Ok(encoded)
}
