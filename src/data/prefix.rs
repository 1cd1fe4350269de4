//! Where an implicit prompt ends: the longest common prefix of messages, of turns, of words, of tokens.

use super::{Message, Reason, Texts};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// How many elements two slices begin with in common.
pub(super) fn shared<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The messages that both begin with are the prompt; at least one is left to each.
pub(super) fn split_messages(mut chosen: Vec<Message>, mut rejected: Vec<Message>) -> Result<Texts, Reason> {
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    let cut = shared(&chosen, &rejected).min(most);
    if cut == 0 {
        return Err(Reason::NoPrompt);
    }
    rejected.drain(..cut);
    let response = chosen.split_off(cut);
    Ok(Texts::Conversation { prompt: chosen, chosen: response, rejected, tools: None })
}

/// HH-style text: up to the last `\n\nAssistant:` that both have in common. Other text: up to the last common word, and
/// the space after it goes to the responses, where tokenizers want it.
pub(super) fn split_text(mut chosen: String, rejected: &str) -> Result<Texts, Reason> {
    let common = chosen.char_indices().zip(rejected.chars()).find(|((_, a), b)| a != b);
    let common = common.map_or(chosen.len().min(rejected.len()), |((at, _), _)| at);
    let cut = if chosen.contains(ASSISTANT) && rejected.contains(ASSISTANT) {
        chosen[..common].rfind(ASSISTANT).map(|at| at + ASSISTANT.len()).ok_or(Reason::NoPrompt)?
    } else {
        let goes_on = |text: &str| text[common..].starts_with(char::is_alphanumeric);
        let whole = &chosen[..common];
        let words =
            if goes_on(&chosen) || goes_on(rejected) { whole.trim_end_matches(char::is_alphanumeric) } else { whole };
        words.strip_suffix(' ').unwrap_or(words).len()
    };
    let response = chosen.split_off(cut);
    Ok(Texts::Plain { prompt: chosen, chosen: response, rejected: rejected[cut..].to_owned() })
}

/// The turns of HH-style text; `None` unless it begins with one.
pub(super) fn turns(text: &str) -> Option<Vec<Message>> {
    let starts = |text: &str| text.starts_with(HUMAN) || text.starts_with(ASSISTANT);
    if !starts(text) {
        return None;
    }
    let (mut messages, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (role, after) = match rest.strip_prefix(HUMAN) {
            Some(after) => ("user", after),
            None => ("assistant", &rest[ASSISTANT.len()..]),
        };
        let end = [HUMAN, ASSISTANT].into_iter().filter_map(|turn| after.find(turn)).min().unwrap_or(after.len());
        messages.push(Message::new(role, after[..end].trim()));
        rest = &after[end..];
    }
    Some(messages)
}

/// A response to HH-style text, with the turns after it if there are any.
pub(super) fn replies(response: &str) -> Vec<Message> {
    turns(&[ASSISTANT, response].concat()).unwrap_or_default()
}
