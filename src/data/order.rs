use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::{DataError, PairDataset, Result, draws::Draws};

/// Every pair once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order(Vec<usize>);

impl Order {
    /// As they stand.
    #[must_use]
    pub fn sequential(pairs: usize) -> Self {
        Self((0..pairs).collect())
    }

    /// Shuffled, each of the `pairs`! orders as likely as another: the order of an epoch under a seed, the same on
    /// every machine and in every version of this crate.
    #[must_use]
    pub fn shuffled(pairs: usize, seed: u64, epoch: u64) -> Self {
        let mut order = Self::sequential(pairs);
        shuffle(&mut order.0, &mut Draws::new(b"prefopt order 1", seed, epoch));
        order
    }

    /// Their indices.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }
}

/// How large a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchSize {
    /// So many pairs; the last of an epoch may have fewer.
    Pairs(NonZeroUsize),
    /// As many pairs as this many [tokens](super::Pair::tokens) have room for.
    Tokens(NonZeroUsize),
}

/// How the pairs of an epoch become batches.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use std::num::NonZeroUsize;
/// use prefopt::data::{Batching, PairDataset, Place};
///
/// let mut pairs = PairDataset::default();
/// for token in 0..10 {
///     pairs.push(&[1], &[token], &[2, 2])?;
/// }
/// let batching = Batching::by_pairs(NonZeroUsize::new(4).expect("not 0"));
/// let mut steps = batching.steps(&pairs, 7, Place { epoch: 2, batch: 1 })?;
/// // The second batch of the third epoch, and what to save in order to go on after it.
/// let (after, batch) = steps.next().expect("epochs do not end");
/// assert_eq!((batch.len(), after), (4, Place { epoch: 2, batch: 2 }));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    size: BatchSize,
    /// Pairs that are sorted by length together.
    #[serde(default)]
    bucket: Option<NonZeroUsize>,
}

/// Where training stands: the batch that comes next. It, the seed, the batching and the data say all that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// From 0.
    pub epoch: u64,
    /// Index within the epoch, from 0.
    pub batch: usize,
}

impl Batching {
    /// Batches of so many pairs.
    #[must_use]
    pub fn by_pairs(pairs: NonZeroUsize) -> Self {
        Self { size: BatchSize::Pairs(pairs), bucket: None }
    }

    /// Batches of at most so many tokens: equal work and memory a batch, whatever the lengths.
    #[must_use]
    pub fn by_tokens(budget: NonZeroUsize) -> Self {
        Self { size: BatchSize::Tokens(budget), bucket: None }
    }

    /// Each `window` pairs of the shuffled order are sorted by length before they are cut into batches, so that a batch
    /// holds pairs of like length; the batches are shuffled again.
    #[must_use]
    pub fn bucketed(self, window: NonZeroUsize) -> Self {
        Self { bucket: Some(window), ..self }
    }

    /// The batches of an epoch. Each pair is in one of them.
    ///
    /// # Errors
    /// [`NoPairs`](DataError::NoPairs) of an empty data set; [`Budget`](DataError::Budget) for a pair that has more
    /// tokens than a batch.
    pub fn epoch(&self, data: &PairDataset, seed: u64, epoch: u64) -> Result<Batches> {
        let tokens: Vec<usize> = data.iter().map(|pair| pair.tokens()).collect();
        if tokens.is_empty() {
            return Err(DataError::NoPairs("the data set"));
        }
        if let BatchSize::Tokens(budget) = self.size {
            let budget = budget.get();
            if let Some((pair, &tokens)) = tokens.iter().enumerate().find(|(_, tokens)| **tokens > budget) {
                return Err(DataError::Budget { pair, tokens, budget });
            }
        }
        let Order(mut order) = Order::shuffled(data.len(), seed, epoch);
        if let Some(window) = self.bucket {
            // Stable: pairs of one length stay shuffled.
            order.chunks_mut(window.get()).for_each(|bucket| bucket.sort_by_key(|&pair| tokens[pair]));
        }
        let mut batches = cut(order, &tokens, self.size);
        if self.bucket.is_some() {
            shuffle(&mut batches, &mut Draws::new(b"prefopt batches 1", seed, epoch));
        }
        Ok(Batches(batches))
    }

    /// All batches from a place on, epoch after epoch without end: the place after each, and its pairs. A place beyond
    /// the end of its epoch is the start of the next.
    ///
    /// # Errors
    /// As [`epoch`](Self::epoch).
    pub fn steps<'a>(
        &self,
        data: &'a PairDataset,
        seed: u64,
        place: Place,
    ) -> Result<impl Iterator<Item = (Place, Vec<usize>)> + use<'a>> {
        let (batching, mut place) = (*self, place);
        let mut batches = batching.epoch(data, seed, place.epoch)?.0;
        Ok(std::iter::from_fn(move || {
            if place.batch >= batches.len() {
                place = Place { epoch: place.epoch + 1, batch: 0 };
                // It was not refused for the first epoch, and its lengths are the same in each.
                batches = batching.epoch(data, seed, place.epoch).ok()?.0;
            }
            let batch = batches.get_mut(place.batch).map(std::mem::take)?;
            place.batch += 1;
            Some((place, batch))
        }))
    }
}

/// The batches of an epoch, each the indices of its pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches(Vec<Vec<usize>>);

impl Batches {
    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // never empty: there is a pair
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One of them, where there is one.
    pub fn get(&self, batch: usize) -> Option<&[usize]> {
        self.0.get(batch).map(Vec::as_slice)
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[usize]> {
        self.0.iter().map(Vec::as_slice)
    }
}

fn cut(order: Vec<usize>, tokens: &[usize], size: BatchSize) -> Vec<Vec<usize>> {
    match size {
        BatchSize::Pairs(pairs) => order.chunks(pairs.get()).map(<[usize]>::to_vec).collect(),
        BatchSize::Tokens(budget) => {
            let (mut batches, mut batch, mut filled) = (Vec::new(), Vec::new(), 0);
            for pair in order {
                if filled + tokens[pair] > budget.get() {
                    batches.push(std::mem::take(&mut batch));
                    filled = 0;
                }
                filled += tokens[pair];
                batch.push(pair);
            }
            batches.push(batch);
            batches
        }
    }
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], draws: &mut Draws) {
    for last in (1..items.len()).rev() {
        items.swap(last, draws.below(last as u64 + 1) as usize);
    }
}
