//! Attention over a packed row, block by block, with the scores computed again in the backward pass.
//!
//! A block is a run of queries of one segment with the keys that they see: the prefix, and their own segment up to the last of them,
//! of which the last `queries` columns are causal. Long runs are cut, so that few scores lie behind the diagonal. A large block is
//! computed by itself on slices of the row; small ones of like shape are gathered, padded and computed together.
//!
//! Prefix and own segment side by side are a sequence from its first token on, so a column is a position: query i of a block sees, in a
//! sliding window of w, the columns c with keys − queries + i − w < c ≤ keys − queries + i. Columns before all of them are left out of the block.

use std::{collections::BTreeMap, num::NonZeroUsize, ops::Range};

use tch::{Device, Kind, Tensor};

use crate::{
    Result,
    autograd::{Saved, custom},
    native::baddbmm_out,
};

/// Queries of a block at most: with longer runs more than a fifth of the scores of 512 tokens would be behind the diagonal.
const RUN: usize = 128;
/// Scores from which on a block is worth products of its own on a CPU.
const LARGE: usize = 64 * 128;
/// Padded scores for each true one that are worth a call saved.
const WASTE: f64 = 1.4;
/// Padded scores of a bucket at most, for each head.
const BUCKET: usize = 1 << 21;

/// A run of queries and what they see.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Rows of the query tensor.
    queries: Range<usize>,
    /// Their own segment, up to the last query, and the prefix, as rows of the key tensor.
    own: Range<usize>,
    prefix: Range<usize>,
}

impl Block {
    /// Queries that are the tokens `tokens` of the row and begin at row `first` of the query tensor.
    pub fn new(tokens: Range<usize>, first: usize, own: Range<usize>, prefix: Range<usize>) -> Self {
        debug_assert_eq!(tokens.end, own.end, "the last query sees itself and nothing after it");
        Self { queries: first..first + tokens.len(), own, prefix }
    }

    fn cut(self, window: Option<NonZeroUsize>) -> impl Iterator<Item = Self> {
        let (queries, behind) = (self.queries, self.own.end);
        let starts: Vec<usize> = queries.clone().step_by(RUN).collect();
        starts.into_iter().map(move |start| {
            let end = (start + RUN).min(queries.end);
            let own = self.own.start..behind - (queries.end - end);
            Self { queries: start..end, own, prefix: self.prefix.clone() }.within(window)
        })
    }

    /// Without the keys that not even its first query sees.
    fn within(mut self, window: Option<NonZeroUsize>) -> Self {
        let seen = window.map_or(usize::MAX, NonZeroUsize::get).saturating_add(self.queries.len() - 1);
        let unseen = self.keys().saturating_sub(seen);
        let of_prefix = unseen.min(self.prefix.len());
        self.prefix.start += of_prefix;
        self.own.start += unseen - of_prefix;
        self
    }

    fn keys(&self) -> usize {
        self.own.len() + self.prefix.len()
    }

    fn scores(&self) -> usize {
        self.queries.len() * self.keys()
    }
}

/// Blocks that are computed together: indices of their rows, padded, and which scores count.
#[derive(Debug)]
struct Bucket {
    blocks: i64,
    queries: i64,
    keys: i64,
    /// `[blocks · queries]` into the query rows; padding repeats a block's first.
    query_rows: Tensor,
    /// `[blocks · keys]` into the key rows.
    key_rows: Tensor,
    /// `[blocks, 1, queries, keys]`, true where a query must not look.
    hidden: Tensor,
    /// `[true queries]`: which of the padded queries are real, and where they belong in the query rows.
    real: Tensor,
    home: Tensor,
}

#[derive(Debug)]
enum Part {
    Single(Block),
    Many(Bucket),
}

/// Everything about a row that does not change from layer to layer.
#[derive(Debug)]
pub(super) struct Plan {
    parts: Vec<Part>,
    queries: usize,
    device: Device,
    /// Above the diagonal of a square of this many queries, true where a query must not look.
    above: BTreeMap<usize, Tensor>,
    /// The first columns of a block of this many queries and keys, true where they are out of a query's window.
    behind: BTreeMap<(usize, usize), Tensor>,
}

impl Plan {
    pub fn new(
        blocks: impl IntoIterator<Item = Block>,
        queries: usize,
        window: Option<NonZeroUsize>,
        device: Device,
    ) -> Self {
        let blocks = blocks.into_iter().flat_map(|block| block.cut(window));
        let alone = |block: &Block| device == Device::Cpu && block.scores() >= LARGE;
        let (large, mut small): (Vec<_>, Vec<_>) = blocks.partition(alone);
        small.sort_by_key(|block| (block.keys(), block.queries.len(), block.queries.start));
        let mut parts: Vec<Part> = large.into_iter().map(Part::Single).collect();
        let mut rest = small.as_slice();
        while let Some(longest) = rest.last() {
            let n = together(rest, longest.keys());
            let (before, bucket) = rest.split_at(rest.len() - n);
            parts.push(match bucket {
                [block] => Part::Single(block.clone()),
                several => Part::Many(Bucket::new(several, window, device)),
            });
            rest = before;
        }
        let (mut above, mut behind) = (BTreeMap::new(), BTreeMap::new());
        for part in &parts {
            let Part::Single(block) = part else { continue };
            let (n, keys) = (block.queries.len(), block.keys());
            above.entry(n).or_insert_with(|| above_diagonal(n as i64, device));
            if let Some(out) = window.and_then(|window| keys.checked_sub(window.get())).filter(|&out| out > 0) {
                let mask = || Tensor::ones([n as i64, out as i64], (Kind::Bool, device)).tril(out as i64 - n as i64);
                behind.entry((n, keys)).or_insert_with(mask);
            }
        }
        Self { parts, queries, device, above, behind }
    }

    pub fn queries(&self) -> usize {
        self.queries
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// A backward pass may run on another thread, and tensors are not shared between threads.
    pub fn shallow_clone(&self) -> Self {
        Self {
            parts: self.parts.iter().map(Part::shallow_clone).collect(),
            queries: self.queries,
            device: self.device,
            above: self.above.iter().map(|(&n, mask)| (n, mask.shallow_clone())).collect(),
            behind: self.behind.iter().map(|(&size, mask)| (size, mask.shallow_clone())).collect(),
        }
    }
}

/// How many blocks from the end of a list sorted by keys go into one bucket.
fn together(blocks: &[Block], keys: usize) -> usize {
    let (mut queries, mut scores) = (0, 0);
    for (n, block) in blocks.iter().rev().enumerate() {
        queries = queries.max(block.queries.len());
        scores += block.scores();
        let padded = (n + 1) * queries * keys;
        if n > 0 && (padded as f64 > WASTE * scores as f64 || padded > BUCKET) {
            return n;
        }
    }
    blocks.len()
}

fn above_diagonal(n: i64, device: Device) -> Tensor {
    Tensor::ones([n, n], (Kind::Bool, device)).triu(1)
}

impl Bucket {
    fn new(blocks: &[Block], window: Option<NonZeroUsize>, device: Device) -> Self {
        let queries = blocks.iter().map(|b| b.queries.len()).max().unwrap_or(0);
        let keys = blocks.iter().map(Block::keys).max().unwrap_or(0);
        let (mut query_rows, mut key_rows, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let (mut real, mut home) = (Vec::new(), Vec::new());
        for (b, block) in blocks.iter().enumerate() {
            for i in 0..queries {
                let row = block.queries.start + if i < block.queries.len() { i } else { 0 };
                query_rows.push(row as i64);
                if i < block.queries.len() {
                    real.push((b * queries + i) as i64);
                    home.push(row as i64);
                }
                // Query i sees the prefix and its own segment up to itself; a padded one looks where the first does.
                let i = if i < block.queries.len() { i } else { 0 };
                seen.push((block.keys() - block.queries.len() + i + 1) as i64);
            }
            let padding = std::iter::repeat_n(block.own.start, keys - block.keys());
            key_rows.extend(block.prefix.clone().chain(block.own.clone()).chain(padding).map(|row| row as i64));
        }
        let (blocks, queries, keys) = (blocks.len() as i64, queries as i64, keys as i64);
        let index = |rows: Vec<i64>| Tensor::from_slice(&rows).to(device);
        let (columns, seen) = (Tensor::arange(keys, (Kind::Int64, device)), index(seen).view([blocks, 1, queries, 1]));
        let after = columns.ge_tensor(&seen);
        let hidden = match window {
            Some(window) => after.logical_or(&columns.lt_tensor(&(seen - window.get() as i64))),
            None => after,
        };
        Self {
            blocks,
            queries,
            keys,
            query_rows: index(query_rows),
            key_rows: index(key_rows),
            hidden,
            real: index(real),
            home: index(home),
        }
    }

    /// `[blocks · queries, key heads, heads for each, width]` to `[blocks · key heads, heads for each · queries, width]`.
    fn side_by_side(&self, rows: &Tensor) -> Tensor {
        let size = rows.size();
        rows_last(&rows.view([self.blocks, self.queries, size[1], size[2], size[3]]))
    }
}

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
    fn shallow_clone(&self) -> Self {
        match self {
            Self::Single(block) => Self::Single(block.clone()),
            Self::Many(bucket) => Self::Many(Bucket {
                query_rows: bucket.query_rows.shallow_clone(),
                key_rows: bucket.key_rows.shallow_clone(),
                hidden: bucket.hidden.shallow_clone(),
                real: bucket.real.shallow_clone(),
                home: bucket.home.shallow_clone(),
                ..*bucket
            }),
        }
    }

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

fn narrow(tensor: &Tensor, rows: &Range<usize>) -> Tensor {
    tensor.narrow(0, rows.start as i64, rows.len() as i64)
}

/// `[blocks, queries, key heads, heads for each, width]` to `[blocks · key heads, heads for each · queries, width]`.
fn rows_last(queries: &Tensor) -> Tensor {
    let size = queries.size();
    queries.permute([0, 2, 3, 1, 4]).reshape([size[0] * size[2], size[3] * size[1], size[4]])
}
