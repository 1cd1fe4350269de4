//! What a chat template writes behind the token that ends a reply: a line break, say.
//!
//! Responses of the data end with it, so a reward model has learned to be read there. A sample ends with the token that
//! ends it, and is judged with the tail that it would have in the data.

use anyhow::{Result, anyhow};
use prefopt::data::{Ending, Message, TextTokenizer};

/// Those tokens, and the one that they follow.
#[derive(Debug, Default)]
pub struct Tail {
    end: i64,
    tokens: Vec<i64>,
}

impl Tail {
    /// Of the tokenizer's chat template; nothing without one.
    pub fn of_template(tokenizer: &TextTokenizer) -> Result<Self> {
        if tokenizer.template().is_none() {
            return Ok(Self::default());
        }
        let messages = [Message::new("user", "a"), Message::new("assistant", "b")];
        let tokens = tokenizer.conversation(&messages, None, Ending::Complete).map_err(|error| anyhow!("{error}"))?;
        Ok(Self::of_responses(tokenizer.end(), [tokens.as_slice()]))
    }

    /// Of the first response that has an end; one that was cut has none.
    pub fn of_responses<'a>(end: u32, responses: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let behind = |response: &'a [u32]| {
            let last = response.iter().rposition(|&token| token == end)?;
            Some(response[last + 1..].iter().map(|&token| i64::from(token)).collect())
        };
        Self { end: i64::from(end), tokens: responses.into_iter().find_map(behind).unwrap_or_default() }
    }

    /// A sample as it would stand in the data, where there is room for so many tokens.
    pub fn complete(&self, sample: &[i64], room: usize) -> Vec<i64> {
        let ended = sample.last() == Some(&self.end) && sample.len() + self.tokens.len() <= room;
        let tail = if ended { self.tokens.as_slice() } else { &[] };
        [sample, tail].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_ended_gets_what_responses_have_behind_their_end() {
        let cut: &[u32] = &[5, 6, 7];
        let tail = Tail::of_responses(2, [cut, &[5, 2, 6, 2, 9, 8]]);
        assert_eq!(tail.complete(&[4, 2], 8), [4, 2, 9, 8]);
        // It did not end, or there is no room.
        assert_eq!(tail.complete(&[4, 3], 8), [4, 3]);
        assert_eq!(tail.complete(&[4, 2], 3), [4, 2]);
        for plain in [Tail::of_responses(2, [cut]), Tail::of_responses(2, [[5, 2].as_slice()])] {
            assert_eq!(plain.complete(&[4, 2], 8), [4, 2]);
        }
    }
}
