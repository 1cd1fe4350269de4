//! Prompts, strings, the gold reward, the reference, and annotators who hardly prefer one string to another. All of it on the host.

use anyhow::Result;
use rand::{
    RngExt, SeedableRng,
    distr::{Distribution, weighted::WeightedIndex},
};
use rand_chacha::ChaCha8Rng;

use crate::{Size, support::network::normal};

pub const TOKENS: usize = 6;
pub const STRINGS: usize = TOKENS * TOKENS * TOKENS;
/// Beginnings of strings that a next token follows, the empty one included.
pub const PREFIXES: usize = 1 + TOKENS + TOKENS * TOKENS;
/// Features of a prompt.
const PROMPT: usize = 4;
/// Features of a prompt and of what has been written: which token stands at each of three positions.
pub const WIDTH: usize = PROMPT + 3 * TOKENS;
/// Strings drawn from the reference for each pair, on which the divergence is estimated.
pub const SAMPLES: usize = 8;

/// By how many nats the reference disfavours a token that it has written before.
const RELUCTANCE: f64 = 6.0;
/// Gold reward of a string that repeats a token.
const BAD: f64 = -2.0;

pub type Prompt = [f64; PROMPT];

/// A labelled pair; strings by their index.
pub struct Pair {
    /// Index into the training prompts.
    pub prompt: usize,
    pub chosen: usize,
    pub rejected: usize,
    pub samples: [usize; SAMPLES],
}

/// What one seed learns from and is judged on.
pub struct World {
    pub seed: u64,
    pub train: Vec<Prompt>,
    /// Prompts that no learner sees.
    pub test: Vec<Prompt>,
    pub pairs: Vec<Pair>,
    /// Mean probability with which the better string of a pair wins.
    pub certainty: f64,
    /// What makes each token good at a prompt.
    merits: Vec<Prompt>,
}

impl World {
    /// Annotators prefer by σ(sharpness · Δgold). Worlds of one seed differ in their labels alone.
    pub fn new(seed: u64, sharpness: f64, size: &Size) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |n: usize, scale: f64| -> Vec<Prompt> { (0..n).map(|_| random(&mut rng, scale)).collect() };
        let (merits, train, test) = (draw(TOKENS, 0.75), draw(size.prompts, 1.0), draw(size.judged, 1.0));
        let mut world = Self { seed, train, test, pairs: Vec::with_capacity(size.pairs), certainty: 0.0, merits };

        let mass: Vec<f64> = reference_strings().iter().map(|l| l.exp()).collect();
        let reference = WeightedIndex::<f64>::new(&mass)?;
        // Strings so rare that no pair shows one.
        let shown = WeightedIndex::<f64>::new((0..STRINGS).map(|s| if repeats(s) { 0.0 } else { mass[s] }))?;
        for i in 0..size.pairs {
            let prompt = i % size.prompts;
            let first = shown.sample(&mut rng);
            let mut second = first;
            while second == first {
                second = shown.sample(&mut rng);
            }
            let margin = world.gold(&world.train[prompt], first) - world.gold(&world.train[prompt], second);
            let prefers_first = 1.0 / (1.0 + (-sharpness * margin).exp());
            world.certainty += prefers_first.max(1.0 - prefers_first) / size.pairs as f64;
            let first_wins = rng.random::<f64>() < prefers_first;
            let (chosen, rejected) = if first_wins { (first, second) } else { (second, first) };
            let samples = std::array::from_fn(|_| reference.sample(&mut rng));
            world.pairs.push(Pair { prompt, chosen, rejected, samples });
        }
        Ok(world)
    }

    pub fn gold(&self, prompt: &Prompt, string: usize) -> f64 {
        let merit = |token: usize| self.merits[token].iter().zip(prompt).map(|(w, x)| w * x).sum::<f64>().tanh();
        if repeats(string) { BAD } else { tokens(string).map(merit).iter().sum::<f64>() / 3.0 }
    }

    /// The test prompts with features twice as large: the same merits, further out than any that was trained on.
    pub fn shifted(&self) -> Vec<Prompt> {
        self.test.iter().map(|prompt| prompt.map(|x| 2.0 * x)).collect()
    }

    /// Expected gold reward of the reference on the test prompts.
    pub fn reference_gold(&self) -> f64 {
        let mass = reference_strings();
        self.mean(|prompt| (0..STRINGS).map(|s| mass[s].exp() * self.gold(prompt, s)).sum())
    }

    /// Gold reward of each test prompt's best string.
    pub fn best_gold(&self) -> f64 {
        self.mean(|prompt| (0..STRINGS).map(|s| self.gold(prompt, s)).fold(f64::NEG_INFINITY, f64::max))
    }

    fn mean(&self, value: impl Fn(&Prompt) -> f64) -> f64 {
        self.test.iter().map(value).sum::<f64>() / self.test.len() as f64
    }
}

fn random(rng: &mut ChaCha8Rng, scale: f64) -> Prompt {
    let values = normal(rng, PROMPT);
    std::array::from_fn(|i| scale * values[i])
}

pub fn tokens(string: usize) -> [usize; 3] {
    [string / (TOKENS * TOKENS), string / TOKENS % TOKENS, string % TOKENS]
}

pub fn repeats(string: usize) -> bool {
    let [a, b, c] = tokens(string);
    a == b || b == c || a == c
}

/// The empty one, those of one token, those of two.
pub fn prefixes() -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    all.extend((0..TOKENS).map(|a| vec![a]));
    all.extend((0..TOKENS * TOKENS).map(|ab| vec![ab / TOKENS, ab % TOKENS]));
    all
}

/// log π_ref of each token after each prefix, `[43 · 6]`, nats: all alike but for those that have been written.
pub fn reference() -> Vec<f64> {
    let mut logps = Vec::with_capacity(PREFIXES * TOKENS);
    for prefix in prefixes() {
        let logits: Vec<f64> = (0..TOKENS).map(|t| if prefix.contains(&t) { -RELUCTANCE } else { 0.0 }).collect();
        let total = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logps.extend(logits.iter().map(|l| l - total));
    }
    logps
}

/// log π_ref of each string, `[216]`, nats.
pub fn reference_strings() -> Vec<f64> {
    let next = reference();
    let of = |prefix: usize, token: usize| next[prefix * TOKENS + token];
    let string = |[a, b, c]: [usize; 3]| of(0, a) + of(1 + a, b) + of(1 + TOKENS + a * TOKENS + b, c);
    (0..STRINGS).map(|s| string(tokens(s))).collect()
}

/// What a network reads of a prompt and of what has been written.
pub fn features(prompt: &Prompt, written: &[usize]) -> [f64; WIDTH] {
    let mut features = [0.0; WIDTH];
    features[..PROMPT].copy_from_slice(prompt);
    for (position, token) in written.iter().enumerate() {
        features[PROMPT + position * TOKENS + token] = 1.0;
    }
    features
}
