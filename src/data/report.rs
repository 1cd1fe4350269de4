use std::fmt;

use serde::Serialize;

use super::Faults;

/// Pairs that were dropped, by the first reason that held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Dropped {
    /// The label is ½.
    pub tied: u64,
    /// Both responses are the same, perhaps only after both were cut.
    pub identical: u64,
    /// A response is empty.
    pub empty_response: u64,
    /// The prompt has no token, so nothing predicts a response's first.
    pub empty_prompt: u64,
    /// The prompt is over its limit, or leaves no room for a response.
    pub long_prompt: u64,
    /// A response is over its limit.
    pub long_response: u64,
}

impl Dropped {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    fn by_reason(&self) -> [(&'static str, u64); 6] {
        [
            ("tied", self.tied),
            ("with identical responses", self.identical),
            ("with an empty response", self.empty_response),
            ("with an empty prompt", self.empty_prompt),
            ("with a prompt too long", self.long_prompt),
            ("with a response too long", self.long_response),
        ]
    }
}

/// What became of the records.
#[derive(Debug, Default)]
pub struct Report {
    /// Pairs kept.
    pub kept: u64,
    /// Pairs dropped.
    pub dropped: Dropped,
    /// Pairs kept with a response or the prompt cut.
    pub cut: u64,
    /// Pairs kept whose prompt ends with a token that goes on into a response, so that it counts as the response's
    /// ([`SplitPair::moved`](super::SplitPair::moved)).
    pub moved: u64,
    /// Broken lines left out.
    pub skipped: Faults,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.kept == 1 { "" } else { "s" };
        write!(f, "{} pair{s} kept ({} cut), {} dropped", self.kept, self.cut, self.dropped.total())?;
        for (reason, count) in self.dropped.by_reason().into_iter().filter(|(_, count)| *count > 0) {
            write!(f, "\n  {count} {reason}")?;
        }
        if self.skipped.total() > 0 { write!(f, "\n{}", self.skipped) } else { Ok(()) }
    }
}
