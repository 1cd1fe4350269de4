//! What a loss by name has: keys, and what may stand after them.

use std::fmt;

use anyhow::{Result, anyhow};
use serde_json::Value;

use super::catalogue::{OF_MARGIN, OF_PAIR};

/// What stands after a key's `=`.
#[derive(Debug, Clone, Copy)]
pub enum Takes {
    Number,
    /// A number, or this word.
    NumberOr(&'static str),
    Word(&'static [&'static str]),
    Switch,
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number => write!(f, "a finite number"),
            Self::NumberOr(word) => write!(f, "a finite number or `{word}`"),
            Self::Word(words) => write!(f, "one of {}", words.join(", ")),
            Self::Switch => write!(f, "true or false"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    pub takes: Takes,
    /// `None` where the key may be absent.
    pub default: Option<&'static str>,
}

impl Key {
    pub const fn number(name: &'static str, default: &'static str) -> Self {
        Self { name, takes: Takes::Number, default: Some(default) }
    }

    pub const fn number_or(name: &'static str, word: &'static str, default: &'static str) -> Self {
        Self { name, takes: Takes::NumberOr(word), default: Some(default) }
    }

    /// The first word is the default.
    pub const fn word(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, takes: Takes::Word(words), default: Some(words[0]) }
    }

    pub const fn optional(name: &'static str, takes: Takes) -> Self {
        Self { name, takes, default: None }
    }

    /// `text` as this key's value; `loss` is named in the refusal.
    pub fn read(&self, loss: &str, text: &str) -> Result<Value> {
        let number = || text.parse::<f64>().ok().filter(|x| x.is_finite()).map(Value::from);
        let value = match self.takes {
            Takes::Number => number(),
            Takes::NumberOr(word) if text == word => Some(Value::from(word)),
            Takes::NumberOr(_) => number(),
            Takes::Word(words) => {
                let wanted = text.replace('-', "_");
                words.iter().find(|&&word| word == wanted).map(|&word| Value::from(word))
            }
            Takes::Switch => text.parse::<bool>().ok().map(Value::from),
        };
        value.ok_or_else(|| anyhow!("{} of {loss} must be {}, got `{text}`", self.name, self.takes))
    }
}

/// What a loss is a loss of, and so what may stand around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The log-ratio margin of a pair alone.
    Margin,
    Pair,
    Response,
    /// All samples of a prompt.
    Prompt,
}

#[derive(Debug)]
pub struct Entry {
    pub name: &'static str,
    pub of: Of,
    pub equation: &'static str,
    pub keys: &'static [Key],
}

impl Entry {
    /// Its own keys, then those of every loss of its kind.
    pub fn all_keys(&self) -> impl Iterator<Item = &'static Key> {
        let (margin, pair): (&'static [Key], &'static [Key]) = match self.of {
            Of::Margin => (OF_MARGIN, OF_PAIR),
            Of::Pair => (&[], OF_PAIR),
            Of::Response | Of::Prompt => (&[], &[]),
        };
        let own: &'static [Key] = self.keys;
        own.iter().chain(margin).chain(pair)
    }
}

/// Another name of a loss, with keys that it sets unless they are given.
#[derive(Debug)]
pub struct Alias {
    pub name: &'static str,
    pub loss: &'static str,
    pub keys: &'static [(&'static str, &'static str)],
}

/// `first` + weight · loss + …, by one name.
#[derive(Debug)]
pub struct Sum {
    pub name: &'static str,
    pub first: &'static str,
    pub rest: &'static [Addend],
}

#[derive(Debug)]
pub struct Addend {
    /// What the weight is called, and its default.
    pub weight: Key,
    pub loss: &'static str,
}

/// What the library has and this program does not: a name, or the value of a key.
#[derive(Debug)]
pub struct Refused {
    pub name: &'static str,
    pub key: Option<(&'static str, &'static str)>,
    pub why: &'static str,
}
