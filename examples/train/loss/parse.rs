//! `NAME:KEY=VALUE,… + WEIGHT*NAME:…` as terms.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::{
    LossSpec, Term, Transform,
    around::Around,
    catalogue::{ALIASES, LOSSES, OF_MARGIN, REFUSED, SUMS, entry, names},
    keys::{Addend, Entry, Of, Sum},
    named::Named,
};
use crate::nearest::nearest;

/// A term as it stands in the text, `_` of its name as `-` and `-` of its keys as `_`.
#[derive(Debug, Clone)]
struct Written {
    weight: f64,
    name: String,
    keys: Vec<(String, String)>,
}

/// The values of a term's keys, each of the kind that its key takes.
#[derive(Debug, Default)]
pub struct Given(BTreeMap<&'static str, Value>);

impl Given {
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.take(key)?.as_f64()
    }

    pub fn word(&mut self, key: &str) -> Option<String> {
        Some(self.take(key)?.as_str()?.to_owned())
    }

    pub fn switch(&mut self, key: &str) -> bool {
        self.take(key).is_some_and(|value| value == true)
    }
}

pub fn spec(text: &str) -> Result<LossSpec> {
    let (mut terms, mut transform) = (Vec::new(), Transform::None);
    for written in sum(text)? {
        for written in expanded(written)? {
            let entry = entry(&written.name).with_context(|| unknown(&written.name))?;
            let mut given = given(entry, &written)?;
            let of_batch = Transform::read(&mut given)?;
            if terms.is_empty() {
                transform = of_batch;
            } else if of_batch != Transform::None {
                bail!("`transform` is of the whole batch: give it with the first term, not with {}", entry.name);
            }
            let named = Named::read(entry, &mut given)?;
            let around = Around::read(&mut given).map_err(|error| anyhow!("{}: {error}", entry.name))?;
            terms.push(Term { weight: written.weight, named, around });
        }
    }
    Ok(LossSpec { terms, transform })
}

fn sum(text: &str) -> Result<Vec<Written>> {
    plus_signs(text).into_iter().enumerate().map(|(index, part)| term(part.trim(), index == 0)).collect()
}

/// What stands between the signs, but for that of an exponent.
fn plus_signs(text: &str) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (at, _) in text.match_indices('+') {
        let before = &text.as_bytes()[..at];
        let exponent = matches!(before, [.., b'0'..=b'9' | b'.', b'e' | b'E']);
        // A value may have a sign.
        let sign = matches!(before.last(), Some(b'='));
        if !exponent && !sign {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

fn term(text: &str, first: bool) -> Result<Written> {
    let (weight, rest) = match text.split_once('*') {
        None => (1.0, text),
        Some((weight, rest)) => {
            let number = weight.trim().parse::<f64>().ok().filter(|weight| weight.is_finite());
            let weight =
                number.with_context(|| format!("a weight must be a finite number, got `{}`", weight.trim()))?;
            (weight, rest.trim())
        }
    };
    let (name, keys) = rest.split_once(':').map_or((rest, None), |(name, keys)| (name, Some(keys)));
    let name = name.trim().to_lowercase().replace('_', "-");
    ensure!(!name.is_empty(), "a loss has the form NAME:KEY=VALUE,… + WEIGHT*NAME…, and a term of it has no name");
    ensure!(!first || weight == 1.0, "the first loss has weight 1: write `{name}` without `{weight}*`");
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in keys.into_iter().flat_map(|keys| keys.split(',')) {
        // A switch needs no value.
        let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
        let key = key.trim().replace('-', "_");
        ensure!(!key.is_empty(), "{name} has a key without a name: write {name}:KEY=VALUE,KEY=VALUE");
        ensure!(pairs.iter().all(|(given, _)| *given != key), "{name} has the key `{key}` twice");
        pairs.push((key, value.trim().to_owned()));
    }
    Ok(Written { weight, name, keys: pairs })
}

/// The losses that a name stands for.
fn expanded(mut written: Written) -> Result<Vec<Written>> {
    refuse(&written)?;
    if let Some(sum) = SUMS.iter().find(|sum| sum.name == written.name) {
        return summed(sum, written);
    }
    if let Some(alias) = ALIASES.iter().find(|alias| alias.name == written.name) {
        written.name = alias.loss.to_owned();
        for &(key, value) in alias.keys {
            if written.keys.iter().all(|(given, _)| given != key) {
                written.keys.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    Ok(vec![written])
}

fn refuse(written: &Written) -> Result<()> {
    for refused in REFUSED.iter().filter(|refused| refused.name == written.name) {
        let Some((key, value)) = refused.key else {
            bail!("`{}` cannot be trained here: {}", refused.name, refused.why)
        };
        if written.keys.iter().any(|given| given.0 == key && given.1 == value) {
            bail!("`{}:{key}={value}` cannot be trained here: {}", refused.name, refused.why);
        }
    }
    Ok(())
}

/// Each loss with its own keys, the first also with those of every loss of its kind.
fn summed(sum: &Sum, written: Written) -> Result<Vec<Written>> {
    let first = entry(sum.first).with_context(|| unknown(sum.first))?;
    let mut losses = vec![(sum.first, 1.0, first.all_keys().map(|key| key.name).collect::<Vec<_>>())];
    for &Addend { weight, loss } in sum.rest {
        let given = written.keys.iter().find(|(key, _)| key == weight.name).map(|(_, text)| text.as_str());
        let text = given.or(weight.default).unwrap_or_default();
        let number = weight.read(sum.name, text)?.as_f64().unwrap_or_default();
        ensure!(number >= 0.0, "{} of {} must be at least 0, got `{text}`", weight.name, sum.name);
        let own = entry(loss).with_context(|| unknown(loss))?.keys;
        losses.push((loss, number, own.iter().map(|key| key.name).collect()));
    }
    let mut known: Vec<&str> = sum.rest.iter().map(|addend| addend.weight.name).collect();
    for key in losses.iter().flat_map(|(_, _, keys)| keys.iter().copied()) {
        if !known.contains(&key) {
            known.push(key);
        }
    }
    if let Some((key, _)) = written.keys.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        bail!(no_key(key, sum.name, known.into_iter()));
    }
    let term = |(loss, weight, takes): (&str, f64, Vec<&str>)| Written {
        weight: written.weight * weight,
        name: loss.to_owned(),
        keys: written.keys.iter().filter(|(key, _)| takes.contains(&key.as_str())).cloned().collect(),
    };
    Ok(losses.into_iter().map(term).collect())
}

fn given(entry: &Entry, written: &Written) -> Result<Given> {
    let mut given = Given::default();
    for (key, text) in &written.keys {
        match entry.all_keys().find(|known| known.name == key) {
            Some(known) => given.0.insert(known.name, known.read(entry.name, text)?),
            None if entry.of == Of::Pair && OF_MARGIN.iter().any(|known| known.name == key) => {
                let fit: Vec<&str> =
                    LOSSES.iter().filter(|entry| entry.of == Of::Margin).map(|entry| entry.name).collect();
                bail!(
                    "`{key}` fits losses of the log-ratio margin alone ({}), and {} is none",
                    fit.join(", "),
                    entry.name
                )
            }
            None => bail!(no_key(key, entry.name, entry.all_keys().map(|known| known.name))),
        };
    }
    Ok(given)
}

fn no_key<'a>(key: &str, loss: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    format!("{loss} has no key `{key}`: it has {}", known.join(", "))
}

fn unknown(name: &str) -> String {
    let near = nearest(name, names()).join(", ");
    format!("unknown loss `{name}`: the nearest are {near}; `train --losses` lists all")
}
