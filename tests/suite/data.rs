//! Preference data: every form of a line, splits in tokens, templates against transformers', orders and digests against
//! another implementation, caches, refusals by message.

mod cache;
mod dataset;
mod faults;
mod forms;
mod order;
mod reading;
#[cfg(feature = "parquet")]
mod table;
mod templates;
mod tokens;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use prefopt::data::{
    BadLines, ChatTemplate, Limits, Message, Policy, PreferenceReader, Record, Result, SpecialTokens, TextTokenizer,
    Tokenized, serde_json::Value, tokenize, tokenizers::Tokenizer,
};

/// A folder of one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("prefopt-data-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder for temporary files");
        Self(folder)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, content).expect("room for a small file");
        file
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All that a file of these lines says.
fn read(lines: &str) -> Vec<Result<Record>> {
    let folder = Folder::new();
    PreferenceReader::open(folder.file("pairs.jsonl", lines)).expect("a file that was just written").collect()
}

/// The record of one line that is as it should be.
#[track_caller]
fn record(line: &str) -> Record {
    let mut records = read(line);
    assert_eq!(records.len(), 1, "{line}");
    records.remove(0).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// tokenizer.json: a token a character of ASCII, `<unk>` 0, `<s>` 1, `</s>` 2 and what is merged; `<s>` before a text
/// if `begin`.
fn tokenizer_json(merges: &[(&str, &str)], begin: bool) -> String {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "\n"].map(str::to_owned).to_vec();
    tokens.extend((' '..='~').map(String::from));
    tokens.extend(merges.iter().map(|(a, b)| [*a, *b].concat()));
    let vocab: BTreeMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let special = |id: usize| {
        serde_json::json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let before = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    serde_json::json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [special(0), special(1), special(2)], "normalizer": null, "pre_tokenizer": null,
        "post_processor": if begin { before } else { Value::Null }, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges}
    })
    .to_string()
}

fn special() -> SpecialTokens {
    SpecialTokens::default().with("bos_token", "<s>").with("eos_token", "</s>")
}

/// Characters with merges, `<s>` before a text.
fn tokenizer(merges: &[(&str, &str)]) -> TextTokenizer {
    let tokenizer = Tokenizer::from_bytes(tokenizer_json(merges, true)).expect("a tokenizer of characters");
    TextTokenizer::new(tokenizer, &special()).expect("its special tokens are in its vocabulary")
}

/// The same with a chat template.
fn chat(template: &str) -> TextTokenizer {
    tokenizer(&[]).with_template(ChatTemplate::new(template, &special()).expect("a template that can be compiled"))
}

/// Tokens by their texts, `|` between them.
fn spell(tokenizer: &TextTokenizer, tokens: &[u32]) -> String {
    let texts = tokens.iter().map(|&token| tokenizer.inner().id_to_token(token).expect("a token of its vocabulary"));
    texts.collect::<Vec<_>>().join("|")
}

/// Under the usual policy and a limit that nothing meets.
fn tokenized(records: Vec<Record>, tokenizer: &TextTokenizer) -> Tokenized {
    under(records, tokenizer, Limits::default(), Policy::default()).expect("records without a fault")
}

fn under(records: Vec<Record>, tokenizer: &TextTokenizer, limits: Limits, policy: Policy) -> Result<Tokenized> {
    tokenize(records.into_iter().map(Ok), tokenizer, limits, policy, BadLines::default())
}

fn say(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

/// The message of an error.
#[track_caller]
fn refusal<T>(result: std::result::Result<T, impl std::fmt::Display>) -> String {
    match result {
        Ok(_) => panic!("nothing was refused"),
        Err(error) => error.to_string(),
    }
}

/// What tests/golden/data.py found.
static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/data.json")).expect("what data.py writes"));
