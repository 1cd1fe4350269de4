//! A reward network whose last features are rectified units: beyond its data it goes on in a straight line.

use anyhow::Result;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::support::network::{descend, normal, numbers};

/// Units of a layer, and the width of the features.
pub const WIDTH: i64 = 32;
const RATE: f64 = 1e-2;
/// Weight and bias of each layer.
const SHAPES: [&[i64]; 6] = [&[WIDTH, 2], &[WIDTH], &[WIDTH, WIDTH], &[WIDTH], &[1, WIDTH], &[1]];

/// Each parameter, flattened.
pub type Weights = Vec<Vec<f64>>;

#[derive(Debug)]
pub struct RewardNetwork([Tensor; 6]);

impl RewardNetwork {
    /// Without gradients to its weights.
    pub fn new(weights: &[Vec<f64>]) -> Self {
        let tensor = |i: usize| Tensor::from_slice(&weights[i]).view(SHAPES[i]).to_kind(Kind::Float);
        Self(std::array::from_fn(tensor))
    }

    /// Least squares on points `[n, 2]` and their scores `[n]`.
    pub fn fit(points: &Tensor, scores: &Tensor, steps: usize, seed: u64) -> Result<Weights> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let initial = SHAPES.iter().enumerate().map(|(i, shape)| {
            let count = shape.iter().product::<i64>() as usize;
            // The last layer starts at 0, as biases do.
            let hidden = i == 0 || i == 2;
            let scale = if hidden { (shape[1] as f64).sqrt().recip() } else { 0.0 };
            normal(&mut rng, count).into_iter().map(|w| scale * w).collect::<Vec<_>>()
        });
        let network = Self::new(&initial.collect::<Weights>());
        let parameters = network.0.iter().map(|weight| weight.set_requires_grad(true)).collect();
        descend(parameters, steps, RATE, |_| Ok((network.score(points) - scores).square().mean(Kind::Float)))?;
        network.0.iter().map(numbers).collect()
    }

    /// What the score is linear in, `[n, WIDTH]`.
    pub fn features(&self, points: &Tensor) -> Tensor {
        let [w1, b1, w2, b2, ..] = &self.0;
        points.linear(w1, Some(b1)).relu().linear(w2, Some(b2)).relu()
    }

    /// `[n]`.
    pub fn score(&self, points: &Tensor) -> Tensor {
        let [.., weight, bias] = &self.0;
        self.features(points).linear(weight, Some(bias)).squeeze_dim(1)
    }
}
