//! Data that need no download: rings of normal modes in the plane, and small images of drawn shapes.

use std::f64::consts::TAU;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::network::normal;

/// For each condition a ring of modes and one mode in its middle, all of one weight and deviation; a condition's ring is turned
/// against the others'.
#[derive(Debug, Clone)]
pub struct Rings {
    pub conditions: usize,
    /// Modes on a ring.
    pub modes: usize,
    pub radius: f64,
    pub deviation: f64,
}

impl Rings {
    /// By which angle a condition's ring is turned: the shares of one gap between modes.
    pub fn turn(&self, condition: usize) -> f64 {
        TAU * condition as f64 / (self.modes * self.conditions) as f64
    }

    fn mode(&self, condition: usize, k: usize) -> [f64; 2] {
        // One past the ring is the middle.
        let radius = if k == self.modes { 0.0 } else { self.radius };
        let angle = TAU * k as f64 / self.modes as f64 + self.turn(condition);
        [radius * angle.cos(), radius * angle.sin()]
    }

    /// A point of each condition, `[n, 2]` flattened.
    pub fn draw(&self, conditions: &[usize], rng: &mut ChaCha8Rng) -> Vec<f64> {
        let mut points = normal(rng, 2 * conditions.len());
        for (point, &condition) in points.chunks_exact_mut(2).zip(conditions) {
            let mode = self.mode(condition, rng.random_range(0..=self.modes));
            point.iter_mut().zip(mode).for_each(|(x, centre)| *x = centre + self.deviation * *x);
        }
        points
    }

    /// log p(point | condition), nats.
    pub fn log_density(&self, point: &[f64], condition: usize) -> f64 {
        let variance = self.deviation.powi(2);
        let exponents = (0..=self.modes).map(|k| {
            let mode = self.mode(condition, k);
            -((point[0] - mode[0]).powi(2) + (point[1] - mode[1]).powi(2)) / (2.0 * variance)
        });
        let exponents: Vec<f64> = exponents.collect();
        let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = exponents.iter().map(|e| (e - largest).exp()).sum();
        largest + sum.ln() - ((self.modes + 1) as f64 * TAU * variance).ln()
    }
}

/// Pixels along a side of an image.
pub const SIDE: usize = 8;

/// Kinds of shapes: a square, a cross, a frame.
pub const KINDS: usize = 3;

/// One image of each kind, `[n, SIDE²]` flattened, from −1 (black) to 1: a shape of random place and brightness.
pub fn shapes(kinds: &[usize], rng: &mut ChaCha8Rng) -> Vec<f64> {
    kinds.iter().flat_map(|&kind| shape(kind, rng)).collect()
}

fn shape(kind: usize, rng: &mut ChaCha8Rng) -> [f64; SIDE * SIDE] {
    let brightness = rng.random_range(0.0..1.0);
    let (row, column) = (rng.random_range(2..SIDE - 2), rng.random_range(2..SIDE - 2));
    std::array::from_fn(|pixel| {
        let (down, across) = ((pixel / SIDE).abs_diff(row), (pixel % SIDE).abs_diff(column));
        let inside = match kind {
            0 => down.max(across) <= 1,
            1 => down.min(across) == 0 && down.max(across) <= 2,
            _ => down.max(across) == 2,
        };
        if inside { brightness } else { -1.0 }
    })
}
