//! What is done to one tile of logits, `[rows, columns]` of a matrix `[tokens, vocab]` that is never held whole.
//!
//! Over tiles, each row keeps m = max l, s = Σ e^{l−m}, u = Σ e^{l−m}(l − m) and its target's l. Then log Z = m + log s, the target's
//! log-probability is (l − m) − log s, and the entropy is log s − u/s. When a tile raises the maximum by δ = m′ − m, what was summed
//! shrinks: s ← e^{−δ}s, u ← e^{−δ}(u − δs).
//!
//! In f32 on the CPU a kernel of `native/` does this in one pass; elsewhere ATen's operations do.

use tch::{Device, Kind, Tensor};

use crate::{
    Result,
    native::{self, has_kernel},
};

const LAST: &[i64] = &[-1];

/// First index and length along an axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub start: i64,
    pub length: i64,
}

impl Span {
    /// Cuts `0..whole` into parts of `length`, the last one shorter.
    pub fn parts(whole: i64, length: i64) -> impl Iterator<Item = Self> {
        (0..whole).step_by(length as usize).map(move |start| Self { start, length: length.min(whole - start) })
    }

    pub fn of(self, tensor: &Tensor) -> Tensor {
        tensor.narrow(0, self.start, self.length)
    }
}

/// Statistics of rows over the tiles seen so far, `[tokens]` each.
#[derive(Debug)]
pub(super) struct Rows {
    max: Tensor,
    sum: Tensor,
    moment: Option<Tensor>,
    target: Tensor,
}

impl Rows {
    /// Of rows that have seen no tile. With `moment`, [`entropy`](Self::entropy) will be known.
    pub fn new(tokens: i64, moment: bool, options: (Kind, Device)) -> Self {
        let lowest = Tensor::full([tokens], f64::NEG_INFINITY, options);
        Self {
            target: lowest.copy(),
            max: lowest,
            sum: Tensor::zeros([tokens], options),
            moment: moment.then(|| Tensor::zeros([tokens], options)),
        }
    }

    /// log π of each row's target. Not l − log Z: at logits of 10⁴ the sum m + log s would be rounded to a thousandth in f32.
    pub fn logps(&self) -> Tensor {
        (&self.target - &self.max) - self.sum.log()
    }

    /// The two parts of log Z, m and log s.
    pub fn log_z(&self) -> [Tensor; 2] {
        [self.max.shallow_clone(), self.sum.log()]
    }

    /// Σ e^{l−m}.
    pub fn sum(&self) -> &Tensor {
        &self.sum
    }

    /// Logit of each row's target.
    pub fn target(&self) -> &Tensor {
        &self.target
    }

    /// Entropy of each row in nats.
    pub fn entropy(&self) -> Option<Tensor> {
        self.moment.as_ref().map(|moment| self.sum.log() - moment / &self.sum)
    }

    /// Whether no logit is above the target's; equal ones count as a hit.
    pub fn hits(&self) -> Tensor {
        self.target.ge_tensor(&self.max)
    }

    /// Takes in a tile whose columns begin at `start` of the vocabulary, for the rows of `span`. With `correction`, `[rows]`, the
    /// tile becomes e^{l−m} and the correction e^{m before − m}: what sums over earlier tiles have to be multiplied with.
    pub fn absorb(
        &self,
        span: Span,
        tile: &Tensor,
        start: i64,
        targets: &Tensor,
        correction: Option<&Tensor>,
    ) -> Result<()> {
        let (max, mut sum, mut target) = (span.of(&self.max), span.of(&self.sum), span.of(&self.target));
        let mut moment = self.moment.as_ref().map(|moment| span.of(moment));
        if has_kernel(tile.kind(), tile.device()) {
            let into = native::Running { max: &max, sum: &sum, moment: moment.as_ref(), target: &target };
            return native::absorb(tile, start, targets, &into, correction);
        }
        let (inside, local) = inside(targets, start, tile);
        let found = tile.gather(1, &local, false).squeeze_dim(1);
        target.copy_(&found.where_self(&inside, &target));

        let now = tile.amax([1].as_slice(), false).maximum(&max);
        // A row of which every logit so far is −∞ has summed nothing, and −∞ − (−∞) would be NaN.
        let level = now.masked_fill(&now.eq(f64::NEG_INFINITY), 0.0);
        let below = tile - level.unsqueeze(1);
        let mass = below.exp();
        let shrink = (&max - &level).exp();
        let kind = tile.kind();
        if let Some(moment) = &mut moment {
            // e^{−∞}·(−∞) is 0 here; any finite number serves for −∞.
            let added = (&mass * below.clamp_min(-1e4)).sum_dim_intlist(LAST, false, kind);
            let before = &*moment + &sum * (&max - &level);
            let shrunk = (before * &shrink).where_self(&max.gt(f64::NEG_INFINITY), &sum.zeros_like());
            moment.copy_(&(shrunk + added));
        }
        sum.copy_(&(&sum * &shrink + mass.sum_dim_intlist(LAST, false, kind)));
        let mut max = max;
        max.copy_(&now);
        if let Some(correction) = correction {
            correction.shallow_clone().copy_(&shrink);
            tile.shallow_clone().copy_(&mass);
        }
        Ok(())
    }
}

/// l becomes g·(δ(target) − e^{l − log Z}), the gradient of Σ g·log π with respect to each logit.
pub(super) fn slope(
    tile: &Tensor,
    start: i64,
    targets: &Tensor,
    log_z: [&Tensor; 2],
    cotangent: &Tensor,
) -> Result<()> {
    if has_kernel(tile.kind(), tile.device()) {
        return native::slope(tile, start, targets, log_z, cotangent);
    }
    let mut tile = tile.shallow_clone();
    let [max, log_sum] = log_z.map(|part| part.unsqueeze(1));
    let _ = tile.g_sub_(&max).g_sub_(&log_sum).exp_().g_mul_(&(-cotangent).unsqueeze(1));
    let (inside, local) = inside(targets, start, &tile);
    let at_target = cotangent.where_self(&inside, &cotangent.zeros_like());
    let _ = tile.scatter_add_(1, &local, &at_target.unsqueeze(1));
    Ok(())
}

/// Which targets lie in the tile, and their columns in it, `[rows, 1]`, any column for the others.
fn inside(targets: &Tensor, start: i64, tile: &Tensor) -> (Tensor, Tensor) {
    let (local, columns) = (targets - start, tile.size()[1]);
    (local.ge(0).logical_and(&local.lt(columns)), local.clamp(0, columns - 1).unsqueeze(1))
}
