//! The plane: data, judges, the pretrained model and its samples. Everything that depends on the seed but the tuning.

use std::f64::consts::TAU;

use anyhow::Result;
use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Size,
    pool::{Marks, Pool, Pretrained, STEPS},
    support::{
        diffusion::{Denoiser, Form, Output, data::Rings, one_hot, schedule::Schedule},
        network::{matrix, numbers},
    },
};

pub const JUDGES: usize = 3;
/// What each judge's distance is multiplied with.
pub const SCALES: [f64; JUDGES] = [10.0, 1.0, 0.3];

const CONDITIONS: usize = 3;
const RINGS: Rings = Rings { conditions: CONDITIONS, modes: 6, radius: 1.2, deviation: 0.25 };
const FORM: Form = Form { dims: 2, conditions: CONDITIONS, hidden: 64, output: Output::Noise, bound: 3.0 };
/// Samples of the first condition that the picture shows.
const SHOWN: usize = 300;

/// Where a judge likes samples to be: on a circle of radius 1 that turns with the condition's ring.
pub fn favourite(judge: usize, condition: usize) -> [f64; 2] {
    let angle = TAU * (0.25 + judge as f64 / JUDGES as f64) + RINGS.turn(condition);
    [angle.cos(), angle.sin()]
}

/// Minus the scaled distance to each judge's favourite place, `[judges, n]`.
fn rewards(points: &[f64], conditions: &[usize]) -> Array2<f64> {
    Array2::from_shape_fn((JUDGES, conditions.len()), |(judge, i)| {
        let place = favourite(judge, conditions[i]);
        -SCALES[judge] * (points[2 * i] - place[0]).hypot(points[2 * i + 1] - place[1])
    })
}

/// One seed's pretrained model, samples and rewards.
#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub pretrained: Pretrained,
    pub pool: Pool,
    pub before: Judged,
}

/// What the judges say of a model's samples.
#[derive(Debug)]
pub struct Judged {
    pub marks: Marks,
    /// Mean log p(sample | condition) under the data, nats.
    pub density: f64,
    /// Samples of the first condition.
    pub shown: Vec<[f64; 2]>,
}

impl World {
    pub fn new(seed: u64, size: &Size) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let conditions: Vec<usize> = (0..size.data).map(|i| i % CONDITIONS).collect();
        let points = matrix(&RINGS.draw(&conditions, &mut rng), 2);
        let model = Denoiser::new(FORM, Schedule::cosine(STEPS)?, seed)?;
        model.fit(&points, &one_hot(&conditions, CONDITIONS), size.pretraining, &mut rng)?;
        let pool = Pool::new(&model, FORM, rewards, size.prompts, &mut rng)?;
        let before = judge(&model, size.judged, seed)?;
        Ok(Self { seed, pretrained: Pretrained::new(FORM, &model)?, pool, before })
    }
}

/// Samples with random numbers that are the same for every model of a seed.
pub fn judge(model: &Denoiser, samples: usize, seed: u64) -> Result<Judged> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(1 << 32));
    let conditions: Vec<usize> = (0..samples).map(|i| i % CONDITIONS).collect();
    let points = numbers(&model.sample(&one_hot(&conditions, CONDITIONS), &mut rng))?;
    let density: f64 = points.chunks_exact(2).zip(&conditions).map(|(p, &c)| RINGS.log_density(p, c)).sum();
    let first = points.chunks_exact(2).zip(&conditions).filter(|(_, c)| **c == 0).map(|(p, _)| [p[0], p[1]]);
    Ok(Judged {
        marks: Marks::of(&rewards(&points, &conditions)),
        density: density / samples as f64,
        shown: first.take(SHOWN).collect(),
    })
}
