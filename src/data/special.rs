use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value};

use super::{DataError, Result};

/// What tokenizer_config.json says beside the vocabulary: the special tokens by name (`bos_token`, `eos_token`, …), and
/// the chat template.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecialTokens {
    named: BTreeMap<String, String>,
    add_begin: bool,
    chat_template: Option<String>,
}

impl SpecialTokens {
    /// Of a model's folder: tokenizer_config.json, and special_tokens_map.json for what it leaves out. A file that is
    /// not there says nothing.
    ///
    /// # Errors
    /// [`Io`](DataError::Io) or [`Json`](DataError::Json).
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = object(&folder.join("tokenizer_config.json"))?;
        let mut special = Self {
            named: BTreeMap::new(),
            add_begin: config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(false),
            chat_template: config.get("chat_template").and_then(template),
        };
        for fields in [object(&folder.join("special_tokens_map.json"))?, config] {
            let tokens = fields.iter().filter(|(name, _)| name.ends_with("_token"));
            // The later file wins.
            special.named.extend(tokens.filter_map(|(name, token)| Some((name.clone(), text(token)?.to_owned()))));
        }
        Ok(special)
    }

    /// With a token, such as `eos_token`.
    #[must_use]
    pub fn with(mut self, name: &str, token: &str) -> Self {
        self.named.insert(name.to_owned(), token.to_owned());
        self
    }

    /// The text of a token.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    pub(super) fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// Whether text begins with the begin-of-sequence token also where tokenizer.json does not put it there.
    pub(super) fn add_begin(&self) -> bool {
        self.add_begin
    }

    pub(super) fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

/// A token is its text, or an object with its `content`.
fn text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// A template is its source, or one of several with a name.
fn template(value: &Value) -> Option<String> {
    let default = |list: &Vec<Value>| {
        let named = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
        Some(named?.get("template")?.as_str()?.to_owned())
    };
    value.as_str().map(str::to_owned).or_else(|| default(value.as_array()?))
}

/// Empty where there is no such file.
fn object(file: &Path) -> Result<Map<String, Value>> {
    if !file.exists() {
        return Ok(Map::new());
    }
    let bytes = fs::read(file).map_err(|source| DataError::Io { file: file.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| DataError::Json { file: file.to_owned(), source })
}
