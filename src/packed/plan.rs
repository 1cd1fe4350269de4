//! Which queries of a packed row are computed with which keys, and which of them together.
//!
//! A block is a run of queries of one segment with the keys that they see: the prefix, and their own segment up to the last of them,
//! of which the last `queries` columns are causal. Long runs are cut, so that few scores lie behind the diagonal. A large block is
//! computed by itself on slices of the row; small ones of like shape are gathered, padded and computed together.
//!
//! Prefix and own segment side by side are a sequence from its first token on, so a column is a position: query i of a block sees, in a
//! sliding window of w, the columns c with keys − queries + i − w < c ≤ keys − queries + i. Columns before all of them are left out of the block.

use std::{collections::BTreeMap, num::NonZeroUsize, ops::Range};

use tch::{Device, Kind, Tensor};

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
    pub queries: Range<usize>,
    /// Their own segment, up to the last query, and the prefix, as rows of the key tensor.
    pub own: Range<usize>,
    pub prefix: Range<usize>,
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

    pub fn keys(&self) -> usize {
        self.own.len() + self.prefix.len()
    }

    fn scores(&self) -> usize {
        self.queries.len() * self.keys()
    }
}

/// Blocks that are computed together: indices of their rows, padded, and which scores count.
#[derive(Debug)]
pub(super) struct Bucket {
    pub blocks: i64,
    pub queries: i64,
    pub keys: i64,
    /// `[blocks · queries]` into the query rows; padding repeats a block's first.
    pub query_rows: Tensor,
    /// `[blocks · keys]` into the key rows.
    pub key_rows: Tensor,
    /// `[blocks, 1, queries, keys]`, true where a query must not look.
    pub hidden: Tensor,
    /// `[true queries]`: which of the padded queries are real, and where they belong in the query rows.
    pub real: Tensor,
    pub home: Tensor,
}

/// What is computed at a time.
#[derive(Debug)]
pub(super) enum Part {
    Single(Block),
    Many(Bucket),
}

/// Everything about a row that does not change from layer to layer.
#[derive(Debug)]
pub(super) struct Plan {
    pub parts: Vec<Part>,
    queries: usize,
    device: Device,
    /// Above the diagonal of a square of this many queries, true where a query must not look.
    pub above: BTreeMap<usize, Tensor>,
    /// The first columns of a block of this many queries and keys, true where they are out of a query's window.
    pub behind: BTreeMap<(usize, usize), Tensor>,
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
}

impl Part {
    /// Another handle on the same.
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
}
