use std::{num::NonZeroUsize, ops::Range};

use tch::{Device, Kind, Tensor};

use super::{
    attention::attend,
    plan::{Block, Plan},
};
use crate::{Error, Result, pairs::check::Named};

/// A prompt or a response in the row.
#[derive(Debug, Clone)]
struct Segment {
    /// Its tokens.
    own: Range<usize>,
    /// The tokens before it that it sees: its prompt's, or none.
    prefix: Range<usize>,
}

/// A batch of prompts with their responses as one row of tokens. See the [module](super).
///
/// Responses are counted from 0 in the order in which they were put in: of pairs, chosen and rejected of the first, then of the second.
#[derive(Debug)]
pub struct PackedRow {
    tokens: Tensor,
    positions: Tensor,
    ids: Vec<i64>,
    segments: Vec<Segment>,
    /// Segments of the responses.
    responses: Vec<usize>,
    everything: Readout,
}

impl PackedRow {
    /// Pairs: prompt, chosen and rejected token ids. The prompt is scored once for both.
    ///
    /// ```
    /// # fn main() -> prefopt::Result<()> {
    /// use prefopt::{packed::PackedRow, tch::Device};
    ///
    /// let (prompt, chosen, rejected) = ([5, 6, 7], [8, 0], [9, 9, 0]);
    /// let row = PackedRow::pairs([(&prompt[..], &chosen[..], &rejected[..])], Device::Cpu)?;
    /// assert_eq!(row.len(), 8);
    /// assert_eq!(Vec::<i64>::try_from(row.positions())?, [0, 1, 2, 3, 4, 3, 4, 5]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NoTokens`](Error::NoTokens) for an empty prompt or response, [`Empty`](Error::Empty) without a pair.
    pub fn pairs<'a, I>(pairs: I, device: Device) -> Result<Self>
    where
        I: IntoIterator<Item = (&'a [i64], &'a [i64], &'a [i64])>,
    {
        Self::groups(pairs.into_iter().map(|(prompt, chosen, rejected)| (prompt, [chosen, rejected])), device)
    }

    /// Unpaired sequences: prompt and response, nothing shared.
    ///
    /// # Errors
    /// As [`pairs`](Self::pairs).
    pub fn sequences<'a, I>(sequences: I, device: Device) -> Result<Self>
    where
        I: IntoIterator<Item = (&'a [i64], &'a [i64])>,
    {
        Self::groups(sequences.into_iter().map(|(prompt, response)| (prompt, [response])), device)
    }

    /// Prompts, each with any number of responses: pairs with samples of the reference, say.
    ///
    /// # Errors
    /// As [`pairs`](Self::pairs).
    pub fn groups<'a, I, R>(groups: I, device: Device) -> Result<Self>
    where
        I: IntoIterator<Item = (&'a [i64], R)>,
        R: IntoIterator<Item = &'a [i64]>,
    {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut segments, mut responses) = (Vec::new(), Vec::new());
        for (group, (prompt, of_group)) in groups.into_iter().enumerate() {
            if prompt.is_empty() {
                let reason = "the first token of a response is predicted by the last of its prompt; give it a begin-of-sequence token";
                return Err(Error::NoTokens { part: "prompt", group, reason });
            }
            let prefix = ids.len()..ids.len() + prompt.len();
            ids.extend(prompt);
            positions.extend(0..prompt.len() as i64);
            segments.push(Segment { own: prefix.clone(), prefix: 0..0 });
            let before = responses.len();
            for response in of_group {
                if response.is_empty() {
                    let reason = "it has no log-probability; an end-of-sequence token is the least";
                    return Err(Error::NoTokens { part: "response", group, reason });
                }
                responses.push(segments.len());
                segments.push(Segment { own: ids.len()..ids.len() + response.len(), prefix: prefix.clone() });
                ids.extend(response);
                positions.extend((0..response.len()).map(|i| (prompt.len() + i) as i64));
            }
            if responses.len() == before {
                return Err(Error::NoTokens { part: "response", group, reason: "there is none at all" });
            }
        }
        if responses.is_empty() {
            return Err(Error::Empty { tensor: "a packed row", shape: "[tokens]" });
        }
        let block = |s: &Segment| Block::new(s.own.clone(), s.own.start, s.own.clone(), s.prefix.clone());
        let blocks: Vec<Block> = segments.iter().map(block).collect();
        let plan = Plan::new(blocks.iter().cloned(), ids.len(), None, device);
        let everything = Readout { rows: None, blocks, plan, tokens: ids.len() };
        Ok(Self {
            tokens: Tensor::from_slice(&ids).to(device),
            positions: Tensor::from_slice(&positions).to(device),
            ids,
            segments,
            responses,
            everything,
        })
    }

    /// Token ids, `[tokens]`, Int64.
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Position of each token in its own sequence, `[tokens]`, Int64: a response's go on from its prompt's.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Number of tokens in the row.
    #[allow(clippy::len_without_is_empty)] // never empty: refused at construction
    pub fn len(&self) -> i64 {
        self.ids.len() as i64
    }

    /// Number of responses.
    pub fn responses(&self) -> i64 {
        self.responses.len() as i64
    }

    /// All tokens: what the inner layers of a decoder read.
    pub fn everything(&self) -> &Readout {
        &self.everything
    }

    /// The tokens whose hidden states predict the responses' tokens: the last of each prompt, and each response's but its last.
    ///
    /// A decoder's last layer needs queries, output projection and MLP for these alone.
    pub fn predicting(&self) -> Readout {
        self.readout(|segment, is_prompt| {
            let end = segment.end - 1;
            if is_prompt { end..end + 1 } else { segment.start..end }
        })
    }

    /// The last token of each response, where a reward head reads: one row for each, in their order.
    pub fn last(&self) -> Readout {
        self.readout(
            |segment, is_prompt| if is_prompt { segment.start..segment.start } else { segment.end - 1..segment.end },
        )
    }

    fn readout(&self, wanted: impl Fn(&Range<usize>, bool) -> Range<usize>) -> Readout {
        let (mut rows, mut blocks) = (Vec::new(), Vec::new());
        for segment in &self.segments {
            let tokens = wanted(&segment.own, segment.prefix.is_empty());
            if tokens.is_empty() {
                continue;
            }
            let own = segment.own.start..tokens.end;
            blocks.push(Block::new(tokens.clone(), rows.len(), own, segment.prefix.clone()));
            rows.extend(tokens.map(|token| token as i64));
        }
        let device = self.tokens.device();
        let plan = Plan::new(blocks.iter().cloned(), rows.len(), None, device);
        Readout { rows: Some(Tensor::from_slice(&rows).to(device)), blocks, plan, tokens: self.ids.len() }
    }

    /// What scores the responses, for each of their tokens.
    pub(crate) fn scored(&self) -> Scored {
        let (mut predictors, mut targets, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        // Rows of `predicting` come segment by segment, as it makes them.
        let (mut next, mut last_of_prompt, mut response) = (0, 0, 0);
        for segment in &self.segments {
            if segment.prefix.is_empty() {
                last_of_prompt = next;
                next += 1;
                continue;
            }
            for (i, &id) in self.ids[segment.own.clone()].iter().enumerate() {
                predictors.push(if i == 0 { last_of_prompt } else { next + i as i64 - 1 });
                targets.push(id);
                owners.push(response);
            }
            next += segment.own.len() as i64 - 1;
            response += 1;
        }
        let [predictors, targets, owners] =
            [predictors, targets, owners].map(|column| Tensor::from_slice(&column).to(self.tokens.device()));
        Scored { predictors, targets, owners, responses: response }
    }

    /// Tokens of each response, `[responses]`, Int64.
    pub fn lengths(&self) -> Tensor {
        let lengths: Vec<i64> = self.responses.iter().map(|&s| self.segments[s].own.len() as i64).collect();
        Tensor::from_slice(&lengths).to(self.tokens.device())
    }
}

/// The tokens of all responses, `[scored]` each.
#[derive(Debug)]
pub(crate) struct Scored {
    /// The row of [`PackedRow::predicting`] that predicts the token.
    pub predictors: Tensor,
    /// The token.
    pub targets: Tensor,
    /// Its response.
    owners: Tensor,
    responses: i64,
}

impl Scored {
    /// A number of each token summed for each response, `[responses]`. In f64: a sum of a thousand tokens in f32 would lose a
    /// thousandth of a nat, and on a GPU, which adds in any order, not always the same one.
    pub fn sums(&self, values: &Tensor) -> Result<Tensor> {
        let zeros = Tensor::zeros([self.responses], (Kind::Double, values.device()));
        Ok(zeros.f_index_add(0, &self.owners, &values.to_kind(Kind::Double))?.to_kind(values.kind()))
    }
}

/// Some tokens of a packed row, whose hidden states are asked for.
#[derive(Debug)]
pub struct Readout {
    rows: Option<Tensor>,
    /// Runs of queries and what they see, before the plan cuts them.
    blocks: Vec<Block>,
    plan: Plan,
    tokens: usize,
}

impl Readout {
    /// Number of tokens.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> i64 {
        self.plan.queries() as i64
    }

    /// The same tokens, of which each sees itself and the `window` − 1 tokens before it in its sequence, its prompt's included: a sliding
    /// window. It takes the place of one that was there. Plan it once for all layers.
    ///
    /// Source: Beltagy et al. 2020, "Longformer"; Mistral's `sliding_window`.
    #[must_use]
    pub fn within(&self, window: NonZeroUsize) -> Self {
        // More than there are tokens is all of them.
        let window = window.min(NonZeroUsize::new(self.tokens).unwrap_or(NonZeroUsize::MIN));
        let plan = Plan::new(self.blocks.iter().cloned(), self.plan.queries(), Some(window), self.plan.device());
        let (rows, blocks) = (self.rows.as_ref().map(Tensor::shallow_clone), self.blocks.clone());
        Self { rows, blocks, plan, tokens: self.tokens }
    }

    /// Another handle on the same, for a closure that has to own one ([`checkpoint`](crate::autograd::checkpoint)'s, say).
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let (rows, blocks) = (self.rows.as_ref().map(Tensor::shallow_clone), self.blocks.clone());
        Self { rows, blocks, plan: self.plan.shallow_clone(), tokens: self.tokens }
    }

    /// Their rows of `[tokens, ..]`: `[len, ..]`.
    ///
    /// # Errors
    /// [`Length`](Error::Length) or [`Device`](Error::Device) when these are not states of all tokens of the row.
    pub fn select(&self, states: &Tensor) -> Result<Tensor> {
        let named = Named::matrix("states", "[tokens, ..]", states);
        named.length(0, "tokens", self.tokens as i64)?.device(self.plan.device())?;
        match &self.rows {
            Some(rows) => Ok(states.f_index_select(0, rows)?),
            None => Ok(states.shallow_clone()),
        }
    }

    /// Attention of these tokens over what each may see: softmax(s·q kᵀ) v, `[len, heads, head width]`.
    ///
    /// `query` `[len, heads, head width]`, `key` and `value` `[tokens, key heads, head width]` of **all** tokens of the row; with fewer key heads
    /// than heads, each serves heads/key heads of them in turn (grouped queries). `scale` is s, commonly 1/√(head width). Rotary
    /// embeddings are applied before, at [`positions`](PackedRow::positions).
    ///
    /// Scores are held for one block of queries at a time, or for several small ones, in the backward pass too, where they are computed
    /// again.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Device`](Error::Device) or [`KindOf`](Error::KindOf) naming the tensor.
    pub fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, scale: f64) -> Result<Tensor> {
        const QUERY: &str = "[tokens read, heads, head width]";
        const KEY: &str = "[tokens, key heads, head width]";
        Named::matrix("query", QUERY, query)
            .rank(3)?
            .float()?
            .length(0, "tokens read", self.len())?
            .device(self.plan.device())?;
        Named::matrix("key", KEY, key).rank(3)?.length(0, "tokens", self.tokens as i64)?;
        let (q, k) = (query.size(), key.size());
        for (name, tensor) in [("key", key), ("value", value)] {
            let named = Named::matrix(name, KEY, tensor).rank(3)?.device(query.device())?.kind_of(query)?;
            named.length(0, "tokens", k[0])?.length(1, "key heads", k[1])?.length(2, "head width", q[2])?;
        }
        if q[1] % k[1] != 0 {
            let (expected, found) = (k[1] * (q[1] / k[1]).max(1), q[1]);
            return Err(Error::Length { tensor: "query", shape: QUERY, dimension: "heads", expected, found });
        }
        attend(&self.plan, query, key, value, scale)
    }
}
