use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::{Column, DataError, Digest, Record, Result, SplitPair};
use crate::{packed::PackedRow, population::Votes};

/// Pairs in tokens: 4 bytes a token, some dozens a pair, no text.
///
/// Pairs are counted from 0 in the order in which they came.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{data::PairDataset, tch::Device};
///
/// let mut pairs = PairDataset::default();
/// pairs.push(&[1, 5, 6], &[7, 2], &[8, 8, 2])?;
/// assert_eq!(pairs.pair(0).map(|pair| pair.tokens()), Some(8));
/// assert_eq!(pairs.row(&[0], Device::Cpu)?.len(), 8);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct PairDataset {
    tokens: Vec<u32>,
    /// Where prompt, chosen and rejected response of each end in `tokens`; a prompt begins where the pair before it ends.
    ends: Vec<[usize; 3]>,
    /// 8 bytes of the digest of each prompt's own tokens, of which its responses may take the last ones.
    own_prompts: Vec<u64>,
    labels: Vec<f64>,
    /// Of each column a number a pair, NaN where it has none; empty where no pair has one.
    numbers: [Vec<f64>; Column::ALL.len()],
    votes: Vec<Ballot>,
    annotators: Vec<String>,
    known: HashMap<String, usize>,
}

/// The numbers of a batch out of those of all pairs, such as soft labels or weights, `[batch]`.
///
/// # Errors
/// [`NoPair`](DataError::NoPair).
pub fn gather(values: &[f64], pairs: &[usize], options: (Kind, Device)) -> Result<Tensor> {
    let of = |&pair: &usize| values.get(pair).copied().ok_or(DataError::NoPair { pair, pairs: values.len() });
    let batch = pairs.iter().map(of).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::from_slice(&batch).to_kind(options.0).to_device(options.1))
}

/// A vote, in the order of the pairs.
#[derive(Debug, Clone, Copy)]
struct Ballot {
    pair: usize,
    annotator: usize,
    for_chosen: f64,
}

/// The tokens of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Of the prompt.
    pub prompt: &'a [u32],
    /// Of the response that was liked better.
    pub chosen: &'a [u32],
    /// Of the other one.
    pub rejected: &'a [u32],
}

impl Pair<'_> {
    /// Tokens of a packed row that holds it: the prompt once, and both responses.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

impl PairDataset {
    /// Adds a pair with the label 1.
    ///
    /// # Errors
    /// [`EmptyPart`](DataError::EmptyPart).
    pub fn push(&mut self, prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Result<()> {
        self.add(Pair { prompt, chosen, rejected }, Digest::of_prompt(prompt).head())
    }

    fn add(&mut self, Pair { prompt, chosen, rejected }: Pair<'_>, own_prompt: u64) -> Result<()> {
        let parts = [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)];
        if let Some((part, _)) = parts.into_iter().find(|(_, tokens)| tokens.is_empty()) {
            return Err(DataError::EmptyPart { part, pair: self.len() });
        }
        self.ends.push(parts.map(|(_, tokens)| {
            self.tokens.extend_from_slice(tokens);
            self.tokens.len()
        }));
        self.own_prompts.push(own_prompt);
        self.labels.push(1.0);
        self.numbers.iter_mut().filter(|column| !column.is_empty()).for_each(|column| column.push(f64::NAN));
        Ok(())
    }

    /// Adds a pair with what its record says beside the text.
    pub(super) fn push_record(&mut self, split: &SplitPair, record: &Record) -> Result<()> {
        let pair = self.len();
        let SplitPair { prompt, chosen, rejected, own_prompt, .. } = split;
        self.add(Pair { prompt, chosen, rejected }, *own_prompt)?;
        self.labels[pair] = record.label;
        for column in Column::ALL {
            if let Some(value) = record.number(column) {
                self.set(column, pair, value);
            }
        }
        for vote in &record.votes {
            let annotator = self.annotator(&vote.annotator);
            self.votes.push(Ballot { pair, annotator, for_chosen: vote.for_chosen });
        }
        Ok(())
    }

    fn set(&mut self, column: Column, pair: usize, value: f64) {
        let numbers = &mut self.numbers[column as usize];
        numbers.resize(self.labels.len(), f64::NAN);
        numbers[pair] = value;
    }

    fn annotator(&mut self, name: &str) -> usize {
        if let Some(&index) = self.known.get(name) {
            return index;
        }
        self.known.insert(name.to_owned(), self.annotators.len());
        self.annotators.push(name.to_owned());
        self.annotators.len() - 1
    }

    /// Gives back what growing took too much.
    pub(super) fn shrink(&mut self) {
        self.tokens.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.own_prompts.shrink_to_fit();
        self.labels.shrink_to_fit();
        self.numbers.iter_mut().for_each(Vec::shrink_to_fit);
        self.votes.shrink_to_fit();
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens of all pairs.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// A pair, where there is one.
    pub fn pair(&self, index: usize) -> Option<Pair<'_>> {
        let &[prompt, chosen, rejected] = self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before][2]);
        let part = |from: usize, to: usize| &self.tokens[from..to];
        Some(Pair { prompt: part(start, prompt), chosen: part(prompt, chosen), rejected: part(chosen, rejected) })
    }

    /// All pairs.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Pair<'_>> {
        (0..self.len()).map(|index| self.pair(index).expect("an index below the length"))
    }

    fn existing(&self, index: usize) -> Result<Pair<'_>> {
        self.pair(index).ok_or(DataError::NoPair { pair: index, pairs: self.len() })
    }

    /// Probability that the response called chosen is the better one, `[pairs]`: 1, a soft label, or the share of the
    /// votes, at least ½ where votes said which one to call so.
    pub fn labels(&self) -> &[f64] {
        &self.labels
    }

    /// The numbers of a column, `[pairs]`.
    ///
    /// # Errors
    /// [`MissingColumn`](DataError::MissingColumn) names the first pair without one.
    pub fn column(&self, column: Column) -> Result<&[f64]> {
        let numbers = self.numbers[column as usize].as_slice();
        let lacking = if numbers.is_empty() { Some(0) } else { numbers.iter().position(|number| number.is_nan()) };
        lacking.map_or(Ok(numbers), |pair| Err(DataError::MissingColumn { column, pair }))
    }

    /// Whether a pair has a number of this column: [`column`](Self::column) is an error then for those that lack it.
    pub fn has_some(&self, column: Column) -> bool {
        self.numbers[column as usize].iter().any(|number| !number.is_nan())
    }

    /// The votes, ties left out, and the names of the annotators in them; the first response of a pair is the one
    /// called chosen.
    ///
    /// # Errors
    /// [`Empty`](crate::Error::Empty) without a vote.
    pub fn votes(&self) -> crate::Result<(Votes, Vec<&str>)> {
        // Who only ever called ties has no vote and no number.
        let (mut numbers, mut names) = (vec![None; self.annotators.len()], Vec::new());
        let (mut annotators, mut pairs, mut first_preferred) = (Vec::new(), Vec::new(), Vec::new());
        for vote in self.votes.iter().filter(|vote| vote.for_chosen != 0.5) {
            let number = *numbers[vote.annotator].get_or_insert_with(|| {
                names.push(self.annotators[vote.annotator].as_str());
                names.len() - 1
            });
            annotators.push(number);
            pairs.push(vote.pair);
            first_preferred.push(vote.for_chosen > 0.5);
        }
        Ok((Votes::new(&annotators, &pairs, &first_preferred, (names.len(), self.len()))?, names))
    }

    /// A batch as one row of tokens, in the order given.
    ///
    /// # Errors
    /// [`NoPair`](DataError::NoPair) for an index beyond the last; those of [`PackedRow::pairs`].
    pub fn row(&self, pairs: &[usize], device: Device) -> crate::Result<PackedRow> {
        let wide = |tokens: &[u32]| tokens.iter().map(|&token| i64::from(token)).collect::<Vec<_>>();
        let parts = pairs.iter().map(|&index| {
            let pair = self.existing(index)?;
            Ok::<_, DataError>([wide(pair.prompt), wide(pair.chosen), wide(pair.rejected)])
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        PackedRow::pairs(
            parts.iter().map(|[prompt, chosen, rejected]| (&prompt[..], &chosen[..], &rejected[..])),
            device,
        )
    }

    /// BLAKE3 of all tokens and of where each part ends: what log-probabilities and scores depend on. Labels do not enter.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"prefopt pairs 1");
        let mut bytes = Vec::new();
        for pair in self.iter() {
            bytes.clear();
            for part in [pair.prompt, pair.chosen, pair.rejected] {
                bytes.extend((part.len() as u64).to_le_bytes());
                bytes.extend(part.iter().flat_map(|token| token.to_le_bytes()));
            }
            hasher.update(&bytes);
        }
        hasher.finalize().into()
    }

    /// Some of the pairs, in the order given.
    ///
    /// # Errors
    /// [`NoPair`](DataError::NoPair) for an index beyond the last.
    pub fn select(&self, pairs: &[usize]) -> Result<Self> {
        let mut part = Self { annotators: self.annotators.clone(), known: self.known.clone(), ..Self::default() };
        for (to, &from) in pairs.iter().enumerate() {
            part.add(self.existing(from)?, self.own_prompts[from])?;
            part.labels[to] = self.labels[from];
            for column in Column::ALL {
                if let Some(value) = self.numbers[column as usize].get(from).filter(|value| !value.is_nan()) {
                    part.set(column, to, *value);
                }
            }
            let first = self.votes.partition_point(|vote| vote.pair < from);
            let own = self.votes[first..].iter().take_while(|vote| vote.pair == from);
            part.votes.extend(own.map(|vote| Ballot { pair: to, ..*vote }));
        }
        part.shrink();
        Ok(part)
    }

    /// Pairs to train on, and a share of about `held_out` to judge by. All pairs of a prompt are on one side, which its
    /// own tokens, before a response takes the last ones or a limit cuts them, and the seed decide: more data move no
    /// pair to the other side.
    ///
    /// # Errors
    /// [`Share`](DataError::Share) unless 0 < `held_out` < 1, [`NoPairs`](DataError::NoPairs) where a side is empty.
    pub fn split(&self, held_out: f64, seed: u64) -> Result<[Self; 2]> {
        if !(held_out > 0.0 && held_out < 1.0) {
            return Err(DataError::Share(held_out));
        }
        let is_out = |&pair: &usize| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"prefopt split 2").update(&seed.to_le_bytes()).update(&self.own_prompts[pair].to_le_bytes());
            Digest::from(hasher.finalize()).head() as f64 / 2f64.powi(64) < held_out
        };
        let (out, rest): (Vec<_>, Vec<_>) = (0..self.len()).partition(is_out);
        for (part, indices) in [("the training part", &rest), ("the held-out part", &out)] {
            if indices.is_empty() {
                return Err(DataError::NoPairs(part));
            }
        }
        Ok([self.select(&rest)?, self.select(&out)?])
    }
}
