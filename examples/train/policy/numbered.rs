//! The pairs under one numbering, and rows of their tokens.

use prefopt::{
    Result,
    data::{Column, DataError, Pair, PairDataset},
    packed::PackedRow,
};
use tch::Device;

use crate::pairs::Split;

/// Pairs to train on, and behind them those that are held out.
pub struct Numbered<'a> {
    train: &'a PairDataset,
    held_out: Option<&'a PairDataset>,
}

impl<'a> Numbered<'a> {
    pub fn new(split: &'a Split) -> Self {
        Self { train: &split.train, held_out: split.held_out.as_ref() }
    }

    /// Each part with its name in files.
    pub fn parts(&self) -> Vec<(&'static str, &'a PairDataset)> {
        let held_out = self.held_out.map(|pairs| ("held-out", pairs));
        [("train", self.train)].into_iter().chain(held_out).collect()
    }

    /// Those that are held out, or those to train on where there are none.
    pub fn judged(&self) -> &'a PairDataset {
        self.held_out.unwrap_or(self.train)
    }

    pub fn len(&self) -> usize {
        self.train.len() + self.held_out.map_or(0, PairDataset::len)
    }

    pub fn pair(&self, index: usize) -> Result<Pair<'a>> {
        let pair = match index.checked_sub(self.train.len()) {
            None => self.train.pair(index),
            Some(behind) => self.held_out.and_then(|pairs| pairs.pair(behind)),
        };
        Ok(pair.ok_or(DataError::NoPair { pair: index, pairs: self.len() })?)
    }

    /// Probability that the chosen response is the better one, `[pairs]`.
    pub fn labels(&self) -> Vec<f64> {
        self.parts().iter().flat_map(|(_, pairs)| pairs.labels()).copied().collect()
    }

    /// What each pair counts for, `[pairs]`, where the data say it: of all pairs then, see [`crate::pairs::read`].
    pub fn weights(&self) -> Option<Vec<f64>> {
        let parts = self.parts().into_iter().map(|(_, pairs)| pairs.column(Column::Weight).ok());
        parts.collect::<Option<Vec<_>>>().map(|parts| parts.concat())
    }

    pub fn prompts(&self, indices: &[usize]) -> Result<Vec<Vec<i64>>> {
        indices.iter().map(|&index| Ok(wide(self.pair(index)?.prompt))).collect()
    }
}

pub fn wide(tokens: &[u32]) -> Vec<i64> {
    tokens.iter().map(|&token| i64::from(token)).collect()
}

/// Prompts, each with so many of the responses.
pub fn row(prompts: &[Vec<i64>], responses: &[Vec<i64>], each: usize, device: Device) -> Result<PackedRow> {
    let own = responses.chunks(each).map(|own| own.iter().map(Vec::as_slice));
    PackedRow::groups(prompts.iter().map(Vec::as_slice).zip(own), device)
}
