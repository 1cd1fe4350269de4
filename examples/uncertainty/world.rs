//! Prompts with candidates of two kinds, one of which the reference seldom gives, and annotators whose noise depends on the kind.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::support::network::normal;

/// Candidates of a prompt; the last [`SCARCE`] are of the scarce kind.
pub const RESPONSES: usize = 12;
const SCARCE: usize = 3;
/// Probability that the reference gives a response of the scarce kind.
const MASS: f64 = 0.1;
/// Numbers that describe a response within its kind.
const TRAITS: usize = 5;
/// The traits of either kind, 0 for the other's, and which kind it is: nothing learned on one kind says anything of the other.
pub const FEATURES: usize = 2 * TRAITS + 2;
/// Standard deviation of the gold reward within a kind, in nats of Bradley–Terry preference.
const DEVIATION: f64 = 2.0;

/// Where annotators flip labels. The rates are such that one label in ten is flipped in all.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Noise {
    pub name: &'static str,
    /// Flip rate of pairs with a scarce response.
    pub scarce: f64,
    /// Flip rate of the others.
    pub common: f64,
}

/// The claim's own setting first.
pub const NOISES: [Noise; 3] = [
    Noise { name: "where data are scarce", scarce: 0.45, common: 0.02 },
    Noise { name: "everywhere alike", scarce: 0.1, common: 0.1 },
    Noise { name: "where data are plentiful", scarce: 0.0, common: 0.12 },
];

/// Prompts with all their candidates, and one labelled pair of them each.
#[derive(Debug, Default)]
pub struct Split {
    /// `[prompts, responses, features]`, flattened.
    pub features: Vec<f64>,
    /// `[prompts, responses]`, flattened.
    pub gold: Vec<f64>,
    /// Which of the prompt's responses the annotator chose, and which not.
    pub chosen: Vec<usize>,
    pub rejected: Vec<usize>,
    /// Whether one of the two is of the scarce kind.
    pub scarce: Vec<bool>,
    /// The annotators' flip rate.
    pub noise: Vec<f64>,
    /// Whether the label contradicts the gold reward.
    pub wrong: Vec<bool>,
}

#[derive(Debug)]
pub struct World {
    pub training: Split,
    pub held_out: Split,
}

impl World {
    /// The same prompts, pairs and gold reward for every noise.
    pub fn new(noise: Noise, prompts: usize, held_out: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kinds = [Surface::draw(&mut rng), Surface::draw(&mut rng)];
        let training = Split::draw(&kinds, noise, prompts, &mut rng);
        Self { training, held_out: Split::draw(&kinds, noise, held_out, &mut rng) }
    }
}

/// π_ref of each candidate, the same for every prompt: `[responses]`.
pub fn reference() -> Vec<f64> {
    let common = RESPONSES - SCARCE;
    let mass = |j| if is_scarce(j) { MASS / SCARCE as f64 } else { (1.0 - MASS) / common as f64 };
    (0..RESPONSES).map(mass).collect()
}

pub fn is_scarce(response: usize) -> bool {
    response >= RESPONSES - SCARCE
}

impl Split {
    fn draw(kinds: &[Surface; 2], noise: Noise, prompts: usize, rng: &mut ChaCha8Rng) -> Self {
        let (reference, mut split) = (reference(), Self::default());
        for _ in 0..prompts {
            let mut gold = [0.0; RESPONSES];
            for (response, gold) in gold.iter_mut().enumerate() {
                let (kind, traits) = (usize::from(is_scarce(response)), normal(rng, TRAITS));
                let mut features = [0.0; FEATURES];
                features[kind * TRAITS..(kind + 1) * TRAITS].copy_from_slice(&traits);
                features[2 * TRAITS + kind] = 1.0;
                split.features.extend(features);
                *gold = kinds[kind].gold(&traits);
            }
            split.gold.extend(gold);
            split.label(&gold, two_of(&reference, rng), noise, rng);
        }
        split
    }

    /// Bradley–Terry on the gold reward, then a flip at the rate of the pair.
    fn label(&mut self, gold: &[f64], [a, b]: [usize; 2], noise: Noise, rng: &mut ChaCha8Rng) {
        let scarce = is_scarce(a) || is_scarce(b);
        let rate = if scarce { noise.scarce } else { noise.common };
        let preferred = rng.random::<f64>() < 1.0 / (1.0 + (gold[b] - gold[a]).exp());
        let flipped = rng.random::<f64>() < rate;
        let (chosen, rejected) = if preferred != flipped { (a, b) } else { (b, a) };
        self.chosen.push(chosen);
        self.rejected.push(rejected);
        self.scarce.push(scarce);
        self.noise.push(rate);
        self.wrong.push(gold[chosen] < gold[rejected]);
    }
}

/// Two different responses drawn from these masses.
fn two_of(masses: &[f64], rng: &mut ChaCha8Rng) -> [usize; 2] {
    let mut draw = || {
        let mut left: f64 = rng.random();
        let found = masses.iter().position(|mass| {
            left -= mass;
            left < 0.0
        });
        found.unwrap_or(masses.len() - 1)
    };
    let first = draw();
    loop {
        let second = draw();
        if second != first {
            return [first, second];
        }
    }
}

/// A random smooth function of the traits of one kind: a layer of tanh units, standardised.
struct Surface {
    weights: Vec<f64>,
    biases: Vec<f64>,
    readout: Vec<f64>,
    mean: f64,
    deviation: f64,
}

impl Surface {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        const UNITS: usize = 16;
        const SAMPLES: usize = 2000;
        let weights = normal(rng, UNITS * TRAITS).iter().map(|w| 0.6 * w).collect();
        let (biases, readout) = (normal(rng, UNITS), normal(rng, UNITS));
        let surface = Self { weights, biases, readout, mean: 0.0, deviation: 1.0 };
        let values: Vec<f64> = (0..SAMPLES).map(|_| surface.raw(&normal(rng, TRAITS))).collect();
        let mean = values.iter().sum::<f64>() / SAMPLES as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / SAMPLES as f64;
        Self { mean, deviation: variance.sqrt(), ..surface }
    }

    fn raw(&self, traits: &[f64]) -> f64 {
        let units = self.weights.chunks(TRAITS).zip(&self.biases).zip(&self.readout);
        let unit = |((weights, bias), readout): ((&[f64], &f64), &f64)| {
            let input = weights.iter().zip(traits).map(|(w, t)| w * t).sum::<f64>() + bias;
            readout * input.tanh()
        };
        units.map(unit).sum()
    }

    fn gold(&self, traits: &[f64]) -> f64 {
        DEVIATION * (self.raw(traits) - self.mean) / self.deviation
    }
}
