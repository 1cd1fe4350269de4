use std::borrow::Cow;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Origin, Reason, prefix};

/// One message of a conversation: `role`, `content`, and whatever else the chat template reads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Message(Map<String, Value>);

/// Keys that are null are left out: a table of messages has every key in every row, and a template asks whether one is
/// defined.
impl TryFrom<Map<String, Value>> for Message {
    type Error = Reason;
    fn try_from(mut fields: Map<String, Value>) -> Result<Self, Reason> {
        fields.retain(|_, value| !value.is_null());
        if !fields.get("role").is_some_and(Value::is_string) {
            return Err(Reason::Missing("role"));
        }
        if fields.get("content").is_none_or(|content| content.is_string() || content.is_array()) {
            Ok(Self(fields))
        } else {
            Err(Reason::Field { field: "content", expected: "text or a list of parts", found: "something else" })
        }
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Message {
    /// Text of a role: `system`, `user` or `assistant`, commonly.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        let entry = |key: &str, value: &str| (key.to_owned(), Value::from(value));
        Self(Map::from_iter([entry("role", role), entry("content", content)]))
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said: the text, or the `text` of all parts. `None` for a message without, such as a bare tool call.
    pub fn content(&self) -> Option<Cow<'_, str>> {
        match self.0.get("content")? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Array(parts) => {
                Some(Cow::Owned(parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect()))
            }
            _ => None,
        }
    }

    /// Whether it says nothing and calls nothing.
    pub(super) fn is_silent(&self) -> bool {
        self.content().is_none_or(|content| content.trim().is_empty()) && !self.0.contains_key("tool_calls")
    }
}

/// Prompt and responses, as text or as messages.
#[derive(Debug, Clone, PartialEq)]
pub enum Texts {
    /// Text that is tokenised as it stands.
    Plain {
        /// What is answered.
        prompt: String,
        /// The answer that was liked better.
        chosen: String,
        /// The other one.
        rejected: String,
    },
    /// Messages that a chat template turns into text.
    Conversation {
        /// What is answered.
        prompt: Vec<Message>,
        /// The answer that was liked better; one message, commonly.
        chosen: Vec<Message>,
        /// The other one.
        rejected: Vec<Message>,
        /// What the template gets as `tools`.
        tools: Option<Value>,
    },
}

/// A number that a pair may bring with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// `weight`: what the pair counts for, at least 0.
    Weight,
    /// `margin`: by how much the chosen response is better, in the annotator's units.
    Margin,
    /// `gold`: probability that the chosen response is better, by a judge who stands above the votes. In a file it is
    /// the index of the better response, as in a vote: 0 for the first, or the chosen one.
    Gold,
    /// `ref_chosen_logps`: log π_ref(y_w|x), nats.
    RefChosenLogps,
    /// `ref_rejected_logps`: log π_ref(y_l|x), nats.
    RefRejectedLogps,
    /// `score_chosen`: r(y_w) of some reward model.
    ScoreChosen,
    /// `score_rejected`: r(y_l).
    ScoreRejected,
}

impl Column {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 7] = [
        Self::Weight,
        Self::Margin,
        Self::Gold,
        Self::RefChosenLogps,
        Self::RefRejectedLogps,
        Self::ScoreChosen,
        Self::ScoreRejected,
    ];

    /// The field of the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Margin => "margin",
            Self::Gold => "gold",
            Self::RefChosenLogps => "ref_chosen_logps",
            Self::RefRejectedLogps => "ref_rejected_logps",
            Self::ScoreChosen => "score_chosen",
            Self::ScoreRejected => "score_rejected",
        }
    }

    /// What it may be, in words, and the test of it.
    pub(super) fn domain(self) -> (&'static str, fn(f64) -> bool) {
        match self {
            Self::Weight => ("at least 0 and finite", |x| x >= 0.0 && x.is_finite()),
            Self::Gold => ("in [0, 1]", |x| (0.0..=1.0).contains(&x)),
            Self::Margin | Self::RefChosenLogps | Self::RefRejectedLogps | Self::ScoreChosen | Self::ScoreRejected => {
                ("finite", f64::is_finite)
            }
        }
    }
}

/// One annotator's vote on a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Vote {
    /// Who.
    pub annotator: String,
    /// How far the response called chosen was preferred: 1, 0 for the other one, ½ a tie, or between.
    pub for_chosen: f64,
}

/// One pair, whatever form it had in its file.
///
/// ```
/// use prefopt::data::{Record, Texts};
///
/// let text = |x: &str| x.to_owned();
/// let texts = Texts::Plain { prompt: text("2 + 2 ="), chosen: text(" 4"), rejected: text(" 5") };
/// assert_eq!(Record::new(texts).label, 1.0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it comes from.
    pub origin: Origin,
    /// Prompt and responses.
    pub texts: Texts,
    /// Probability that the chosen response is the better one: 1 for a plain pair, the share of the votes where there
    /// are some.
    pub label: f64,
    /// The votes it comes from.
    pub votes: Vec<Vote>,
    numbers: [Option<f64>; Column::ALL.len()],
}

impl Record {
    /// A pair without votes or numbers.
    #[must_use]
    pub fn new(texts: Texts) -> Self {
        Self { origin: Origin::default(), texts, label: 1.0, votes: Vec::new(), numbers: Default::default() }
    }

    /// With a number.
    #[must_use]
    pub fn with(mut self, column: Column, value: f64) -> Self {
        self.numbers[column as usize] = Some(value);
        self
    }

    /// Without what the file says of the reference: a response that was cut has another log-probability.
    pub(super) fn without_reference(mut self) -> Self {
        for column in [Column::RefChosenLogps, Column::RefRejectedLogps] {
            self.numbers[column as usize] = None;
        }
        self
    }

    /// A number, where it has one.
    pub fn number(&self, column: Column) -> Option<f64> {
        self.numbers[column as usize]
    }

    /// Plain text as messages, for a chat template: HH-style `\n\nHuman:` and `\n\nAssistant:` turns become messages of
    /// `user` and `assistant`; any other prompt becomes one message of `user`, a response one of `assistant`. A
    /// conversation stays what it is.
    #[must_use]
    pub fn into_conversation(mut self) -> Self {
        if let Texts::Plain { prompt, chosen, rejected } = self.texts {
            self.texts = match prefix::turns(&prompt) {
                Some(mut turns) => {
                    // The turn that the responses fill.
                    if turns.last().is_some_and(|turn| turn.role() == "assistant" && turn.is_silent()) {
                        turns.pop();
                    }
                    let [chosen, rejected] = [chosen, rejected].map(|response| prefix::replies(&response));
                    Texts::Conversation { prompt: turns, chosen, rejected, tools: None }
                }
                None => {
                    let [chosen, rejected] =
                        [chosen, rejected].map(|response| vec![Message::new("assistant", &response)]);
                    Texts::Conversation { prompt: vec![Message::new("user", &prompt)], chosen, rejected, tools: None }
                }
            };
        }
        self
    }
}
