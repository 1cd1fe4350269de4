//! Images of drawn shapes before and after tuning, with two rewards of different scale: a picture, not a claim (one seed, one β).

use anyhow::Result;
use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    Size,
    methods::Method,
    pool::{Marks, Pool, Pretrained, STEPS},
    support::{
        diffusion::{
            Denoiser, Form, Output,
            data::{KINDS, SIDE, shapes},
            one_hot,
            schedule::Schedule,
        },
        network::{matrix, numbers},
        trial::Trial,
    },
    tuning::tune,
};

const PIXELS: usize = SIDE * SIDE;
const FORM: Form = Form { dims: PIXELS, conditions: KINDS, hidden: 192, output: Output::Velocity, bound: 1.0 };
const SEED: u64 = 1;
const BETA: f64 = 128.0;
/// What brightness is multiplied with; symmetry is as it is.
const SCALE: f64 = 20.0;
/// Images of each kind in the picture.
pub const SHOWN: usize = 6;

/// Images of one model, `SHOWN` of each kind, and each reward's gain over the pretrained model in its standard deviations there.
#[derive(Debug, Serialize)]
pub struct Exhibit {
    pub name: &'static str,
    /// Brightness, then symmetry.
    pub gains: Vec<f64>,
    #[serde(skip)]
    pub images: Vec<Vec<f64>>,
}

/// The pretrained model of images, and what was made of it.
#[derive(Debug)]
pub struct Gallery {
    pretrained: Pretrained,
    pool: Pool,
    marks: Marks,
    pub exhibits: Vec<Exhibit>,
}

/// Scaled mean brightness, and minus the mean difference between a pixel and its mirror image, left to right: `[2, n]`.
fn rewards(images: &[f64], _conditions: &[usize]) -> Array2<f64> {
    Array2::from_shape_fn((2, images.len() / PIXELS), |(reward, i)| {
        let image = &images[i * PIXELS..(i + 1) * PIXELS];
        let mean = |value: &dyn Fn(usize) -> f64| (0..PIXELS).map(value).sum::<f64>() / PIXELS as f64;
        match reward {
            0 => SCALE * mean(&|pixel| image[pixel]),
            _ => -mean(&|pixel| (image[pixel] - image[pixel - pixel % SIDE + SIDE - 1 - pixel % SIDE]).abs()),
        }
    })
}

/// The rewards of many samples, and the first of each kind.
fn judge(model: &Denoiser, samples: usize) -> Result<(Marks, Vec<Vec<f64>>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + (1 << 32));
    let kinds: Vec<usize> = (0..samples).map(|i| i % KINDS).collect();
    let images = numbers(&model.sample(&one_hot(&kinds, KINDS), &mut rng))?;
    let of_kind = |kind: usize| images.chunks_exact(PIXELS).skip(kind).step_by(KINDS).take(SHOWN).map(<[f64]>::to_vec);
    Ok((Marks::of(&rewards(&images, &kinds)), (0..KINDS).flat_map(of_kind).collect()))
}

impl Gallery {
    /// Trains on drawn shapes and samples.
    pub fn new(size: &Size) -> Result<Self> {
        tch::set_num_threads(1);
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let kinds: Vec<usize> = (0..size.data).map(|i| i % KINDS).collect();
        let images = matrix(&shapes(&kinds, &mut rng), PIXELS as i64);
        let model = Denoiser::new(FORM, Schedule::cosine(STEPS)?, SEED)?;
        model.fit(&images, &one_hot(&kinds, KINDS), size.images, &mut rng)?;
        let pool = Pool::new(&model, FORM, rewards, size.prompts / 2, &mut rng)?;
        let (marks, images) = judge(&model, size.judged / 2)?;
        let before = Exhibit { name: "before tuning", gains: vec![0.0, 0.0], images };
        Ok(Self { pretrained: Pretrained::new(FORM, &model)?, pool, marks, exhibits: vec![before] })
    }

    /// Tunes by three ways to make pairs.
    pub fn tune(&mut self, trial: &Trial, size: &Size) -> Result<()> {
        let methods = [Method::Raw, Method::Calibrated, Method::Frontier];
        let tuned = trial.run(&methods, |&method| {
            let model = tune(&self.pretrained, &self.pool, method, BETA, size.tuning, SEED)?;
            let (marks, images) = judge(&model, size.judged / 2)?;
            Ok(Exhibit { name: method.name(), gains: self.marks.gains(&marks), images })
        })?;
        self.exhibits.extend(tuned);
        Ok(())
    }
}
