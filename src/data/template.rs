use std::{fs, path::Path, time::SystemTime};

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value, context,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;

use super::{DataError, Message, Result, clock, json, special::SpecialTokens};

const NAME: &str = "chat_template";

/// What follows the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: the messages are the whole.
    Complete,
    /// The head of a reply that is to be written (`add_generation_prompt`).
    Reply,
}

/// A chat template as Hugging Face's `apply_chat_template` reads it, by minijinja.
///
/// Blocks are trimmed (`trim_blocks`, `lstrip_blocks`); there are `break` and `continue`, Python's methods of strings,
/// lists and dictionaries, `raise_exception`, `tojson` with Python's spaces and options, and the special tokens by
/// name; `{% generation %}` marks nothing. None, True and False are written as Python writes them.
///
/// `strftime_now` is undefined unless [`with_time`](Self::with_time) says what now is: templates that ask whether it is
/// defined then take a date of their own, and the tokens of a data set are the same tomorrow.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// From its source and the special tokens that it may name.
    ///
    /// # Errors
    /// [`Template`](DataError::Template) where it cannot be compiled, with the line.
    pub fn new(source: &str, special: &SpecialTokens) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(as_python);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        for (name, token) in special.named() {
            environment.add_global(name.to_owned(), token);
        }
        environment.add_template_owned(NAME, without_generation(source))?;
        Ok(Self { environment })
    }

    /// The template of a model's folder: chat_template.jinja, or `chat_template` of tokenizer_config.json; of several
    /// the one called `default`.
    ///
    /// # Errors
    /// [`NoTemplate`](DataError::NoTemplate) where there is none; [`Io`](DataError::Io), [`Json`](DataError::Json),
    /// [`Template`](DataError::Template).
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        Self::found_in(folder, &SpecialTokens::from_folder(folder)?)?.ok_or(DataError::NoTemplate)
    }

    pub(super) fn found_in(folder: &Path, special: &SpecialTokens) -> Result<Option<Self>> {
        let file = folder.join("chat_template.jinja");
        if file.exists() {
            let source = fs::read_to_string(&file).map_err(|source| DataError::Io { file, source })?;
            return Self::new(&source, special).map(Some);
        }
        special.chat_template().map(|source| Self::new(source, special)).transpose()
    }

    /// With a value that the template may read, such as `enable_thinking`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: impl Serialize) -> Self {
        self.environment.add_global(name.to_owned(), Value::from_serialize(value));
        self
    }

    /// With a time for `strftime_now`, read in UTC.
    #[must_use]
    pub fn with_time(mut self, time: SystemTime) -> Self {
        let moment = clock::Moment::of(time);
        let strftime_now = move |format: String| -> std::result::Result<String, Error> {
            let unknown = |directive: char| {
                Error::new(ErrorKind::InvalidOperation, format!("strftime_now knows no directive %{directive}"))
            };
            moment.format(&format).map_err(unknown)
        };
        self.environment.add_function("strftime_now", strftime_now);
        self
    }

    /// The text of some messages.
    ///
    /// # Errors
    /// What the template raises.
    pub fn render(
        &self,
        messages: &[&Message],
        tools: Option<&serde_json::Value>,
        ending: Ending,
    ) -> std::result::Result<String, Error> {
        // What Hugging Face passes in any case is there, if only as None.
        let context = context! {
            messages => messages,
            tools => tools,
            documents => (),
            add_generation_prompt => ending == Ending::Reply,
        };
        self.environment.get_template(NAME)?.render(context)
    }
}

fn raise_exception(message: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn as_python(out: &mut Output, state: &State, value: &Value) -> std::result::Result<(), Error> {
    if value.is_none() {
        Ok(out.write_str("None")?)
    } else if value.kind() == ValueKind::Bool {
        Ok(out.write_str(if value.is_true() { "True" } else { "False" })?)
    } else {
        minijinja::escape_formatter(out, state, value)
    }
}

/// `json.dumps(value, ensure_ascii, indent, separators)`.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, "no JSON").with_source(error);
    let text = json::dumps(value, indent, separators.as_deref()).map_err(failed)?;
    Ok(Value::from(if ascii == Some(true) { json::ascii(&text) } else { text }))
}

/// The blocks by which Hugging Face finds the assistant's part, as blocks that are always filled in.
fn without_generation(source: &str) -> String {
    let (mut plain, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start + 2..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start..start + 2 + end + 2]);
        plain.push_str(before);
        match tag[2..2 + end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => plain.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => plain.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => plain.push_str(tag),
        }
        rest = &rest[start + 2 + end + 2..];
    }
    plain.push_str(rest);
    plain
}
