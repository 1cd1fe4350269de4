//! Attention over a packed row, part by part of its [plan](super::plan), with the scores computed again in the backward pass.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::plan::{Bucket, Part, Plan};
use crate::{
    Result,
    autograd::{Saved, custom},
    native::baddbmm_out,
};

/// softmax(scale·q kᵀ) v for checked shapes; see [`Readout::attend`](super::Readout::attend).
pub(super) fn attend(plan: &Plan, query: &Tensor, key: &Tensor, value: &Tensor, scale: f64) -> Result<Tensor> {
    let guard = tch::no_grad_guard();
    let heads = Heads::of(query, key);
    let [q, k, v] = [heads.queries(&query.detach()), key.detach().contiguous(), value.detach().contiguous()];
    let output = q.empty_like();
    for part in &plan.parts {
        let pieces = part.pieces(&q, &k, &v)?;
        let weights = part.weights(plan, &pieces, scale)?;
        part.put_queries(&output, &weights.f_bmm(&pieces.v)?)?;
    }
    // Detached, since it is a view of what was computed, by which nobody else goes.
    let output = output.view_as(query).detach();
    drop(guard);

    let saved = [Saved::new("query", query), Saved::new("key", key), Saved::new("value", value)];
    let plan = plan.shallow_clone();
    custom(&[query, key, value], output, move |cotangent, _| {
        let [q, k, v] = [heads.queries(saved[0].get()?), saved[1].get()?.contiguous(), saved[2].get()?.contiguous()];
        let cotangent = heads.queries(cotangent);
        let (dq, dk, dv) = (q.empty_like(), k.zeros_like(), v.zeros_like());
        for part in &plan.parts {
            let pieces = part.pieces(&q, &k, &v)?;
            let g = part.cotangents(&cotangent)?;
            let weights = part.weights(&plan, &pieces, scale)?;
            part.add_keys(&dv, &weights.transpose(1, 2).f_bmm(&g)?)?;
            let slopes = g.f_bmm(&pieces.v.transpose(1, 2))?;
            let slopes = Tensor::f_internal_softmax_backward_data(&slopes, &weights, -1, slopes.kind())? * scale;
            part.put_queries(&dq, &slopes.f_bmm(&pieces.k)?)?;
            part.add_keys(&dk, &slopes.transpose(1, 2).f_bmm(&pieces.q)?)?;
        }
        Ok(vec![Some(dq.view_as(saved[0].get()?)), Some(dk), Some(dv)])
    })
}

/// How many key heads there are, and how many heads each serves.
#[derive(Debug, Clone, Copy)]
struct Heads {
    keys: i64,
    each: i64,
}

impl Heads {
    fn of(query: &Tensor, key: &Tensor) -> Self {
        let keys = key.size()[1];
        Self { keys, each: query.size()[1] / keys }
    }

    /// `[rows, heads, width]` to `[rows, key heads, heads for each, width]`.
    fn queries(self, tensor: &Tensor) -> Tensor {
        tensor.contiguous().view([tensor.size()[0], self.keys, self.each, -1])
    }
}

/// One part's queries `[batch, heads · queries, width]` and keys and values `[batch, keys, width]`; batch is key heads · blocks.
struct Pieces {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Part {
    fn pieces(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Pieces> {
        Ok(Pieces { q: self.queries(q)?, k: self.keys(k)?, v: self.keys(v)? })
    }

    /// From `[rows, key heads, heads for each, width]`.
    fn queries(&self, q: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Single(block) => rows_last(&narrow(q, &block.queries).unsqueeze(0)),
            Self::Many(bucket) => bucket.side_by_side(&q.f_index_select(0, &bucket.query_rows)?),
        })
    }

    /// As [`queries`](Self::queries), but 0 at padded ones: their weights are not, and the keys must not hear of them.
    fn cotangents(&self, g: &Tensor) -> Result<Tensor> {
        match self {
            Self::Single(_) => self.queries(g),
            Self::Many(bucket) => {
                let mut size = g.size();
                size[0] = bucket.blocks * bucket.queries;
                let real = g.f_index_select(0, &bucket.home)?;
                let rows = Tensor::zeros(size, (g.kind(), g.device())).f_index_copy_(0, &bucket.real, &real)?;
                Ok(bucket.side_by_side(&rows))
            }
        }
    }

    /// From `[rows, key heads, width]`.
    fn keys(&self, k: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Single(block) if block.prefix.is_empty() => narrow(k, &block.own).transpose(0, 1),
            Self::Single(block) => {
                Tensor::f_cat(&[narrow(k, &block.prefix), narrow(k, &block.own)], 0)?.transpose(0, 1)
            }
            Self::Many(bucket) => {
                let size = k.size();
                let rows = k.f_index_select(0, &bucket.key_rows)?.view([bucket.blocks, bucket.keys, size[1], size[2]]);
                rows.transpose(1, 2).reshape([bucket.blocks * size[1], bucket.keys, size[2]])
            }
        })
    }

    /// softmax(scale·q kᵀ) over the keys that each query sees, `[batch, heads · queries, keys]`.
    fn weights(&self, plan: &Plan, pieces: &Pieces, scale: f64) -> Result<Tensor> {
        let (batch, queries, keys) = (pieces.q.size()[0], pieces.q.size()[1], pieces.k.size()[1]);
        let scores = Tensor::empty([batch, queries, keys], (pieces.q.kind(), pieces.q.device()));
        baddbmm_out(&scores, &scores, &pieces.q, &pieces.k.transpose(1, 2), 0.0, scale)?;
        match self {
            Self::Single(block) => {
                let n = block.queries.len() as i64;
                let each = scores.view([batch, -1, n, keys]);
                let mut square = each.narrow(3, keys - n, n);
                let _ = square.f_masked_fill_(&plan.above[&block.queries.len()], f64::NEG_INFINITY)?;
                if let Some(mask) = plan.behind.get(&(block.queries.len(), block.keys())) {
                    let mut first = each.narrow(3, 0, mask.size()[1]);
                    let _ = first.f_masked_fill_(mask, f64::NEG_INFINITY)?;
                }
            }
            Self::Many(bucket) => {
                let each = scores.view([bucket.blocks, -1, bucket.queries, keys]);
                let _ = each.shallow_clone().f_masked_fill_(&bucket.hidden, f64::NEG_INFINITY)?;
            }
        }
        Ok(scores.f_softmax(-1, None::<Kind>)?)
    }

    /// Writes `[batch, heads · queries, width]` into the part's rows of `[rows, key heads, heads for each, width]`.
    fn put_queries(&self, whole: &Tensor, found: &Tensor) -> Result<()> {
        let size = whole.size();
        match self {
            Self::Single(block) => {
                let found = found.view([size[1], size[2], -1, size[3]]).permute([2, 0, 1, 3]);
                narrow(whole, &block.queries).copy_(&found);
            }
            Self::Many(bucket) => {
                let found = found.view([bucket.blocks, size[1], size[2], bucket.queries, size[3]]);
                let rows = found.permute([0, 3, 1, 2, 4]).reshape([-1, size[1], size[2], size[3]]);
                let _ = whole.shallow_clone().f_index_copy_(0, &bucket.home, &rows.f_index_select(0, &bucket.real)?)?;
            }
        }
        Ok(())
    }

    /// Adds `[batch, keys, width]` to the part's rows of `[rows, key heads, width]`.
    fn add_keys(&self, whole: &Tensor, found: &Tensor) -> Result<()> {
        match self {
            Self::Single(block) => {
                let (rows, prefix) = (found.transpose(0, 1), block.prefix.len() as i64);
                let _ = narrow(whole, &block.own).g_add_(&rows.narrow(0, prefix, block.own.len() as i64));
                if prefix > 0 {
                    let _ = narrow(whole, &block.prefix).g_add_(&rows.narrow(0, 0, prefix));
                }
            }
            Self::Many(bucket) => {
                let size = whole.size();
                let rows = found.view([bucket.blocks, size[1], bucket.keys, size[2]]).transpose(1, 2);
                let rows = rows.reshape([-1, size[1], size[2]]);
                let _ = whole.shallow_clone().f_index_add_(0, &bucket.key_rows, &rows)?;
            }
        }
        Ok(())
    }
}

impl Bucket {
    /// `[blocks · queries, key heads, heads for each, width]` to `[blocks · key heads, heads for each · queries, width]`.
    fn side_by_side(&self, rows: &Tensor) -> Tensor {
        let size = rows.size();
        rows_last(&rows.view([self.blocks, self.queries, size[1], size[2], size[3]]))
    }
}

fn narrow(tensor: &Tensor, rows: &Range<usize>) -> Tensor {
    tensor.narrow(0, rows.start as i64, rows.len() as i64)
}

/// `[blocks, queries, key heads, heads for each, width]` to `[blocks · key heads, heads for each · queries, width]`.
fn rows_last(queries: &Tensor) -> Tensor {
    let size = queries.size();
    queries.permute([0, 2, 3, 1, 4]).reshape([size[0] * size[2], size[3] * size[1], size[4]])
}
