//! Part 2's data: prompts of two regions, a gold reward and a reference that are smooth in prompt and response, and labelled pairs in one
//! of the regions.

use std::f64::consts::TAU;

use anyhow::Result;
use prefopt::PairLogps;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::{
    Size,
    support::network::{indices, matrix, normal, numbers},
};

pub const RESPONSES: usize = 16;
/// Numbers that describe a prompt, and as many that describe a response.
const FEATURES: usize = 4;
/// What a policy reads.
pub const INPUTS: i64 = 2 * FEATURES as i64;
/// Standard deviation of the prompts of a region in each direction, and the distance between the regions.
const SPREAD: f64 = 0.7;
const SHIFT: f64 = 3.0;
/// Gold rewards have this standard deviation, in nats of Bradley–Terry preference.
const REWARD: f64 = 1.5;
/// The reference's logits: this share of the gold reward, and a field of unit variance that has nothing to do with it.
const COMPETENCE: f64 = 0.5;
/// Waves of a random field, and the standard deviation of their frequencies.
const WAVES: usize = 32;
const FREQUENCY: f64 = 0.55;

/// A smooth random function of prompt and response with unit variance.
struct Field(Vec<Wave>);

struct Wave {
    frequency: Vec<f64>,
    phase: f64,
    amplitude: f64,
}

impl Field {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let waves = (0..WAVES).map(|_| Wave {
            frequency: normal(rng, 2 * FEATURES).iter().map(|w| FREQUENCY * w).collect(),
            phase: rng.random_range(0.0..TAU),
            amplitude: normal(rng, 1)[0] * (2.0 / WAVES as f64).sqrt(),
        });
        Self(waves.collect())
    }

    fn at(&self, z: &[f64]) -> f64 {
        let wave =
            |w: &Wave| w.amplitude * (w.phase + w.frequency.iter().zip(z).map(|(f, z)| f * z).sum::<f64>()).sin();
        self.0.iter().map(wave).sum()
    }
}

/// Prompts with everything that is known of their responses.
pub struct Prompts {
    /// Prompt and response side by side, `[prompts · responses, INPUTS]`.
    pub inputs: Tensor,
    /// log π_ref, `[prompts, responses]`.
    pub reference: Tensor,
    /// Gold reward, `[prompts, responses]`.
    pub gold: Tensor,
}

/// Labelled pairs of the training prompts.
pub struct Pairs {
    /// Index of the prompt, `[pairs]`.
    pub prompt: Tensor,
    /// Indices into a flattened `[prompts, responses]`.
    chosen: Tensor,
    rejected: Tensor,
    pub number: usize,
}

impl Pairs {
    /// From the tables of all responses, `[prompts, responses]`.
    pub fn logps(&self, policy: &Tensor, reference: &Tensor) -> prefopt::Result<PairLogps> {
        let of = |table: &Tensor, side: &Tensor| table.reshape([-1]).index_select(0, side);
        PairLogps::new(
            of(policy, &self.chosen),
            of(policy, &self.rejected),
            of(reference, &self.chosen),
            of(reference, &self.rejected),
        )
    }
}

/// What one seed learns from and is judged on.
pub struct World {
    pub training: Prompts,
    pub pairs: Pairs,
    /// Half from either region, without labels.
    pub unlabelled: Prompts,
    /// Other prompts of the training region.
    pub familiar: Prompts,
    /// Prompts of the other region, none of which is unlabelled's.
    pub shifted: Prompts,
}

impl World {
    pub fn new(seed: u64, size: &Size) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let responses: Vec<Vec<f64>> = (0..RESPONSES).map(|_| normal(&mut rng, FEATURES)).collect();
        let (gold, prior) = (Field::new(&mut rng), Field::new(&mut rng));
        let direction = normal(&mut rng, FEATURES);
        let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        let mut region = |prompts: usize, shift: f64| -> Vec<Vec<f64>> {
            let mut point = || normal(&mut rng, FEATURES);
            let place = |(e, d): (&f64, &f64)| SPREAD * e + shift * d / length;
            (0..prompts).map(|_| point().iter().zip(&direction).map(place).collect()).collect()
        };
        let points = [
            region(size.prompts, 0.0),
            [region(size.unlabelled / 2, 0.0), region(size.unlabelled / 2, SHIFT)].concat(),
            region(size.judged, 0.0),
            region(size.judged, SHIFT),
        ];
        let [training, unlabelled, familiar, shifted] =
            points.map(|points| describe(&points, &responses, &gold, &prior));
        let pairs = label(&training, size.pairs, &mut rng)?;
        Ok(Self { training, pairs, unlabelled, familiar, shifted })
    }
}

fn describe(prompts: &[Vec<f64>], responses: &[Vec<f64>], gold: &Field, prior: &Field) -> Prompts {
    let (mut inputs, mut rewards, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for prompt in prompts {
        for response in responses {
            let z = [prompt.as_slice(), response.as_slice()].concat();
            let reward = REWARD * gold.at(&z);
            rewards.push(reward);
            logits.push(COMPETENCE * reward + prior.at(&z));
            inputs.extend(z);
        }
    }
    let width = RESPONSES as i64;
    Prompts {
        inputs: matrix(&inputs, INPUTS),
        reference: matrix(&logits, width).log_softmax(-1, Kind::Float),
        gold: matrix(&rewards, width),
    }
}

/// Pairs of two different responses of the reference, each labelled once by Bradley–Terry on the gold reward.
fn label(prompts: &Prompts, pairs: usize, rng: &mut ChaCha8Rng) -> Result<Pairs> {
    let (masses, gold) = (numbers(&prompts.reference.exp())?, numbers(&prompts.gold)?);
    let (mut prompt, mut chosen, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
    for (i, masses) in masses.chunks(RESPONSES).enumerate() {
        for _ in 0..pairs {
            let a = draw(masses, rng);
            let without: Vec<f64> = masses.iter().enumerate().map(|(y, p)| if y == a { 0.0 } else { *p }).collect();
            let (a, b) = (i * RESPONSES + a, i * RESPONSES + draw(&without, rng));
            let a_wins = rng.random::<f64>() < 1.0 / (1.0 + (gold[b] - gold[a]).exp());
            let (w, l) = if a_wins { (a, b) } else { (b, a) };
            prompt.push(i);
            chosen.push(w);
            rejected.push(l);
        }
    }
    let number = prompt.len();
    Ok(Pairs { prompt: indices(&prompt), chosen: indices(&chosen), rejected: indices(&rejected), number })
}

/// An index in proportion to these masses.
pub fn draw(masses: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut left = rng.random::<f64>() * masses.iter().sum::<f64>();
    let reached = masses.iter().position(|mass| {
        left -= mass;
        left < 0.0
    });
    reached.unwrap_or(masses.len() - 1)
}
