//! The forms of a line, and what they become.

use serde::Deserialize;
use serde_json::Value;

use super::{Column, Message, Origin, Reason, Record, Texts, Vote, prefix};

const TEXT: &str = "text or a list of {role, content} messages";
const NUMBER: &str = "a number";
const VOTES: &str = "a list of {annotator, choice}";
const SHARE: &str = "in [0, 1]";

/// The fields that are read. Others are left where they are, without memory; a field that stands twice is an error of
/// the parser.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub(super) struct Line {
    prompt: Option<Value>,
    chosen: Option<Value>,
    rejected: Option<Value>,
    responses: Option<Value>,
    votes: Option<Value>,
    soft_label: Option<Value>,
    tools: Option<Value>,
    weight: Option<Value>,
    margin: Option<Value>,
    gold: Option<Value>,
    ref_chosen_logps: Option<Value>,
    ref_rejected_logps: Option<Value>,
    score_chosen: Option<Value>,
    score_rejected: Option<Value>,
}

/// A part as it stands in the file.
enum Part {
    Plain(String),
    Messages(Vec<Message>),
}

impl Line {
    /// The names of its fields: the columns of a table that are worth reading.
    #[cfg(feature = "parquet")]
    pub(super) fn fields() -> impl Iterator<Item = &'static str> {
        let others = ["prompt", "chosen", "rejected", "responses", "votes", "soft_label", "tools"];
        others.into_iter().chain(Column::ALL.map(Column::name))
    }

    /// One line of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(Reason::NotAnObject);
        }
        serde_json::from_slice(bytes).map_err(Reason::Json)
    }

    /// The pair that it says.
    pub(super) fn into_record(mut self, origin: Origin) -> Result<Record, Reason> {
        let prompt = self.prompt.take().map(|value| part("prompt", value)).transpose()?;
        let (first, second, neutral) = self.responses()?;
        let texts = with_tools(assemble(prompt, first, second)?, self.tools.take());
        let mut record = Record::new(texts);
        record.origin = origin;
        for column in Column::ALL {
            let Some(value) = self.number(column).take() else { continue };
            let (domain, holds) = column.domain();
            let value = number(column.name(), &value)?;
            if !holds(value) {
                return Err(Reason::Domain { field: column.name(), domain, value });
            }
            // Of two responses in no order these would not say which is meant.
            if neutral && !matches!(column, Column::Weight | Column::Gold) {
                return Err(Reason::Together("responses", column.name()));
            }
            record = record.with(column, value);
        }
        self.label(record, neutral)
    }

    fn number(&mut self, column: Column) -> &mut Option<Value> {
        match column {
            Column::Weight => &mut self.weight,
            Column::Margin => &mut self.margin,
            Column::Gold => &mut self.gold,
            Column::RefChosenLogps => &mut self.ref_chosen_logps,
            Column::RefRejectedLogps => &mut self.ref_rejected_logps,
            Column::ScoreChosen => &mut self.score_chosen,
            Column::ScoreRejected => &mut self.score_rejected,
        }
    }

    /// Both responses, and whether they stand in no order.
    fn responses(&mut self) -> Result<(Part, Part, bool), Reason> {
        let (chosen, rejected) = (self.chosen.take(), self.rejected.take());
        let Some(responses) = self.responses.take() else {
            let chosen = part("chosen", chosen.ok_or(Reason::Missing("chosen"))?)?;
            return Ok((chosen, part("rejected", rejected.ok_or(Reason::Missing("rejected"))?)?, false));
        };
        for (name, other) in [("chosen", &chosen), ("rejected", &rejected)] {
            if other.is_some() {
                return Err(Reason::Together(name, "responses"));
            }
        }
        let expected = "a list of two responses";
        let list = match responses {
            Value::Array(list) => list,
            other => return Err(Reason::Field { field: "responses", expected, found: kind(&other) }),
        };
        match <[Value; 2]>::try_from(list) {
            Ok([first, second]) => Ok((part("responses", first)?, part("responses", second)?, true)),
            Err(_) => Err(Reason::Field { field: "responses", expected, found: "a list of another length" }),
        }
    }

    /// The label of a record, and of responses in no order the one that is called chosen: the one that is the more
    /// likely to be better, the first of two that are equal.
    fn label(self, mut record: Record, neutral: bool) -> Result<Record, Reason> {
        let soft = self.soft_label.map(|value| share("soft_label", &value)).transpose()?;
        record.votes = self.votes.map_or(Ok(Vec::new()), votes)?;
        let mean = || record.votes.iter().map(|vote| vote.for_chosen).sum::<f64>() / record.votes.len() as f64;
        let known = match (soft, record.votes.is_empty()) {
            (Some(_), false) => return Err(Reason::Together("soft_label", "votes")),
            (Some(soft), true) => Some(soft),
            (None, false) => Some(mean()),
            (None, true) => None,
        };
        // In the file `gold` is the index of the better response, as a vote is.
        let gold = record.number(Column::Gold).map(|index| 1.0 - index);
        record.label = match (known, neutral) {
            (Some(label), _) => label,
            (None, false) => 1.0,
            (None, true) => gold.ok_or(Reason::Unlabelled)?,
        };
        if let Some(gold) = gold {
            record = record.with(Column::Gold, gold);
        }
        Ok(if neutral && record.label < 0.5 { swapped(record) } else { record })
    }
}

/// The same pair with the other response called chosen.
fn swapped(mut record: Record) -> Record {
    match &mut record.texts {
        Texts::Plain { chosen, rejected, .. } => std::mem::swap(chosen, rejected),
        Texts::Conversation { chosen, rejected, .. } => std::mem::swap(chosen, rejected),
    }
    record.label = 1.0 - record.label;
    record.votes.iter_mut().for_each(|vote| vote.for_chosen = 1.0 - vote.for_chosen);
    match record.number(Column::Gold) {
        Some(gold) => record.with(Column::Gold, 1.0 - gold),
        None => record,
    }
}

/// The prompt, explicit or not, and the responses without it.
fn assemble(prompt: Option<Part>, chosen: Part, rejected: Part) -> Result<Texts, Reason> {
    use Part::{Messages, Plain};
    let reply = |text: String| vec![Message::new("assistant", &text)];
    Ok(match (prompt, chosen, rejected) {
        (None, Plain(chosen), Plain(rejected)) => prefix::split_text(chosen, &rejected)?,
        (None, Messages(chosen), Messages(rejected)) => prefix::split_messages(chosen, rejected)?,
        (Some(Plain(prompt)), Plain(chosen), Plain(rejected)) => Texts::Plain { prompt, chosen, rejected },
        (Some(Messages(prompt)), Plain(chosen), Plain(rejected)) => {
            conversation(prompt, reply(chosen), reply(rejected))
        }
        (Some(Messages(prompt)), Messages(mut chosen), Messages(mut rejected)) => {
            // Whole conversations that repeat the prompt.
            if !prompt.is_empty() && chosen.starts_with(&prompt) && rejected.starts_with(&prompt) {
                chosen.drain(..prompt.len());
                rejected.drain(..prompt.len());
            }
            conversation(prompt, chosen, rejected)
        }
        (Some(Plain(prompt)), Messages(chosen), Messages(rejected)) => {
            // A prompt that whole conversations repeat as a message, or replies to it.
            let common = &chosen[..prefix::shared(&chosen, &rejected)];
            let repeated = common.iter().any(|message| message.content().is_some_and(|content| *content == *prompt));
            let reply = |messages: &[Message]| messages.first().is_none_or(|first| first.role() == "assistant");
            if repeated {
                prefix::split_messages(chosen, rejected)?
            } else if reply(&chosen) && reply(&rejected) {
                conversation(vec![Message::new("user", &prompt)], chosen, rejected)
            } else {
                return Err(Reason::OtherPrompt);
            }
        }
        (_, Plain(_), Messages(_)) | (_, Messages(_), Plain(_)) => return Err(Reason::Mixed),
    })
}

fn conversation(prompt: Vec<Message>, chosen: Vec<Message>, rejected: Vec<Message>) -> Texts {
    Texts::Conversation { prompt, chosen, rejected, tools: None }
}

fn with_tools(texts: Texts, given: Option<Value>) -> Texts {
    match texts {
        Texts::Conversation { prompt, chosen, rejected, .. } => {
            Texts::Conversation { prompt, chosen, rejected, tools: given }
        }
        plain => plain,
    }
}

fn part(field: &'static str, value: Value) -> Result<Part, Reason> {
    let wrong = |found| Reason::Field { field, expected: TEXT, found };
    match value {
        Value::String(text) => Ok(Part::Plain(text)),
        Value::Array(list) => {
            let message = |entry| match entry {
                Value::Object(fields) => Message::try_from(fields).ok(),
                _ => None,
            };
            let messages: Option<Vec<_>> = list.into_iter().map(message).collect();
            messages.map(Part::Messages).ok_or_else(|| wrong("a list of something else"))
        }
        other => Err(wrong(kind(&other))),
    }
}

fn number(field: &'static str, value: &Value) -> Result<f64, Reason> {
    value.as_f64().ok_or_else(|| Reason::Field { field, expected: NUMBER, found: kind(value) })
}

fn share(field: &'static str, value: &Value) -> Result<f64, Reason> {
    let share = number(field, value)?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(Reason::Domain { field, domain: SHARE, value: share }) }
}

/// A choice is the index of the better response, 0 or 1, or a number between.
fn votes(value: Value) -> Result<Vec<Vote>, Reason> {
    let wrong = |found| Reason::Field { field: "votes", expected: VOTES, found };
    let list = match value {
        Value::Array(list) => list,
        other => return Err(wrong(kind(&other))),
    };
    let one = |vote: Value| {
        let (Some(annotator), Some(choice)) = (vote.get("annotator"), vote.get("choice")) else {
            return Err(wrong("a list of something else"));
        };
        let annotator = match annotator {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(wrong(kind(other))),
        };
        Ok(Vote { annotator, for_chosen: 1.0 - share("choice", choice)? })
    };
    list.into_iter().map(one).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
