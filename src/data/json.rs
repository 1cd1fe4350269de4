//! JSON as Python writes it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{
    Serializer,
    ser::{Formatter, PrettyFormatter},
};

/// `json.dumps`: `, ` and `: ` between things unless `separators` says otherwise, lines and spaces with `indent`.
pub(super) fn dumps(
    value: &impl Serialize,
    indent: Option<usize>,
    separators: Option<&[String]>,
) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    match indent {
        Some(spaces) => {
            let spaces = vec![b' '; spaces];
            value.serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(&spaces)))?;
        }
        None => {
            let (item, key) = match separators {
                Some([item, key]) => (item.as_str(), key.as_str()),
                _ => (", ", ": "),
            };
            value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced { item, key }))?;
        }
    }
    Ok(String::from_utf8(bytes).expect("a serializer of JSON writes UTF-8"))
}

/// `ensure_ascii`: other characters as `\u` and their UTF-16 units.
pub(super) fn ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        }
    }
    escaped
}

struct Spaced<'a> {
    item: &'a str,
    key: &'a str,
}

impl Spaced<'_> {
    fn separate<W: ?Sized + Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }
}

impl Formatter for Spaced<'_> {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}
