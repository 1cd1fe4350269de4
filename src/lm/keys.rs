use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::error::{Loaded, ModelError};

/// A JSON object that is read key by key: what nobody has asked for at the end is refused. `null` is a key that is not there.
#[derive(Debug)]
pub(super) struct Keys {
    file: PathBuf,
    /// Keys above, with a dot behind each.
    above: String,
    rest: Map<String, Value>,
}

impl Keys {
    /// The object in a file, and its text.
    pub fn read(file: &Path) -> Loaded<(Self, String)> {
        let text = fs::read_to_string(file).map_err(|cause| ModelError::Read { file: file.to_owned(), cause })?;
        Ok((Self::parse(file, &text)?, text))
    }

    pub fn parse(file: &Path, text: &str) -> Loaded<Self> {
        let rest = serde_json::from_str(text).map_err(|cause| ModelError::Json { file: file.to_owned(), cause })?;
        Ok(Self { file: file.to_owned(), above: String::new(), rest })
    }

    pub fn contains(&self, key: &str) -> bool {
        self.rest.contains_key(key)
    }

    pub fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { file: self.file.clone(), key: self.path(key) }
    }

    pub fn unsupported(&self, key: &str, value: impl Into<Value>, supported: &'static str) -> ModelError {
        let (file, key) = (self.file.clone(), self.path(key));
        ModelError::UnsupportedValue { file, key, value: Box::new(value.into()), supported }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.above)
    }

    fn take<T>(&mut self, key: &str, supported: &'static str, read: impl Fn(&Value) -> Option<T>) -> Loaded<Option<T>> {
        match self.rest.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(found) => Ok(Some(found)),
                None => Err(self.unsupported(key, value, supported)),
            },
        }
    }

    /// A positive whole number.
    pub fn size(&mut self, key: &str) -> Loaded<Option<i64>> {
        self.take(key, "a positive whole number", |value| value.as_i64().filter(|&size| size > 0))
    }

    /// As [`size`](Self::size), and it has to be there.
    pub fn required_size(&mut self, key: &str) -> Loaded<i64> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`size`](Self::size), for what counts in memory.
    pub fn count(&mut self, key: &str) -> Loaded<Option<NonZeroUsize>> {
        self.take(key, "a positive whole number", |value| {
            value.as_i64().and_then(|count| usize::try_from(count).ok()).and_then(NonZeroUsize::new)
        })
    }

    /// A whole number that is not negative.
    pub fn index(&mut self, key: &str) -> Loaded<Option<usize>> {
        self.take(key, "a whole number", |value| value.as_u64().and_then(|index| usize::try_from(index).ok()))
    }

    /// A positive number.
    pub fn positive(&mut self, key: &str) -> Loaded<Option<f64>> {
        self.take(key, "a positive number", |value| value.as_f64().filter(|&number| number > 0.0))
    }

    /// As [`positive`](Self::positive), and it has to be there.
    pub fn required_positive(&mut self, key: &str) -> Loaded<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn flag(&mut self, key: &str, default: bool) -> Loaded<bool> {
        Ok(self.take(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub fn word(&mut self, key: &str) -> Loaded<Option<String>> {
        self.take(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub fn words(&mut self, key: &str) -> Loaded<Option<Vec<String>>> {
        self.take(key, "a list of strings", |value| {
            value.as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
        })
    }

    /// One token id, or several.
    pub fn tokens(&mut self, key: &str) -> Loaded<Vec<i64>> {
        let tokens = self.take(key, "a token id or a list of them", |value| match value {
            Value::Array(several) => several.iter().map(Value::as_i64).collect(),
            one => Some(vec![one.as_i64()?]),
        })?;
        Ok(tokens.unwrap_or_default())
    }

    /// An object inside this one.
    pub fn nested(&mut self, key: &str) -> Loaded<Option<Self>> {
        let (file, above) = (self.file.clone(), self.path(key) + ".");
        let rest = self.take(key, "an object", |value| value.as_object().cloned())?;
        Ok(rest.map(|rest| Self { file, above, rest }))
    }

    /// A key whose other values are not implemented.
    pub fn only(&mut self, key: &str, allowed: &[Value], supported: &'static str) -> Loaded<()> {
        self.take(key, supported, |value| allowed.contains(value).then_some(()))?;
        Ok(())
    }

    /// The rest must be of these keys, whose values do not matter.
    pub fn finish(self, harmless: &[&str]) -> Loaded<()> {
        let unknown = |(key, value): &(&String, &Value)| !value.is_null() && !harmless.contains(&key.as_str());
        match self.rest.iter().find(unknown) {
            Some((key, _)) => Err(ModelError::UnsupportedKey { file: self.file.clone(), key: self.path(key) }),
            None => Ok(()),
        }
    }

    /// The rest must be of these keys, or say that what they switch on is off: `null`, `false`, or empty.
    pub fn finish_off(mut self, harmless: &[&str]) -> Loaded<()> {
        self.rest.retain(|_, value| match value {
            Value::Null => false,
            Value::Bool(on) => *on,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Number(_) | Value::String(_) => true,
        });
        self.finish(harmless)
    }
}
