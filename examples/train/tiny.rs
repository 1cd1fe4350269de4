//! A world for seconds, by formula: a decoder of two layers, words for tokens, and pairs in which kind words win.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use prefopt::lm::{CausalLm, ModelConfig};
use serde_json::{Map, Value, json};
use tch::{Device, Kind};

/// Pairs, each with a prompt of its own.
const PAIRS: usize = 60;

const SPECIAL: [&str; 6] = ["<unk>", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"];
const GRAMMAR: [&str; 8] = ["tell", "me", "about", "the", "is", "and", "very", "too"];
const TRAITS: [&str; 10] = ["old", "young", "red", "grey", "small", "tall", "quiet", "wild", "shy", "lost"];
const ANIMALS: [&str; 20] = [
    "bear", "crow", "deer", "duck", "fox", "frog", "goat", "hare", "hen", "horse", "lynx", "mole", "mouse", "newt",
    "owl", "seal", "swan", "toad", "wolf", "wren",
];
const KIND: [&str; 20] = [
    "brave", "bright", "calm", "careful", "cheerful", "clever", "fair", "friendly", "gentle", "honest", "lively",
    "loyal", "merry", "noble", "patient", "polite", "strong", "tender", "warm", "wise",
];
const RUDE: [&str; 20] = [
    "bitter", "clumsy", "cold", "cruel", "dull", "false", "foul", "greedy", "grim", "lazy", "mean", "nasty", "rotten",
    "rough", "sly", "sour", "stupid", "vain", "vile", "weak",
];

const CHAT: &str = concat!(
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} {{ eos_token }} {% endfor %}",
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
);

/// A folder with `model/`, which is not trained, and `pairs.jsonl`.
#[derive(Debug)]
pub struct World {
    folder: PathBuf,
}

impl World {
    /// Writes them.
    pub fn make(folder: &Path) -> Result<Self> {
        let (world, vocabulary) = (Self { folder: folder.to_owned() }, vocabulary());
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            // Some more than there are tokens, as embeddings commonly have.
            "vocab_size": vocabulary.len().next_multiple_of(8),
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
        });
        let config = ModelConfig::from_json(&config.to_string())?;
        CausalLm::new(config, Device::Cpu, Kind::Float, 0)?.save(&world.path("model"))?;
        world.write("model/tokenizer.json", &tokenizer(&vocabulary).to_string())?;
        let special = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
            "unk_token": "<unk>", "chat_template": CHAT,
        });
        world.write("model/tokenizer_config.json", &special.to_string())?;
        let lines: Vec<String> = (0..PAIRS).map(|index| pair(index).to_string() + "\n").collect();
        world.write("pairs.jsonl", &lines.concat())?;
        Ok(world)
    }

    /// Of a file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The words of a command line: `@NAME` is a path in this folder, what stands between two `'` is one word.
    pub fn words(&self, line: &str) -> Vec<OsString> {
        let word = |word: &str| -> OsString {
            word.strip_prefix('@').map_or_else(|| word.into(), |name| self.path(name).into())
        };
        let mut words = Vec::new();
        for (index, piece) in line.split('\'').enumerate() {
            if index % 2 == 0 { words.extend(piece.split_whitespace().map(word)) } else { words.push(piece.into()) }
        }
        words
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.path(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

fn vocabulary() -> Vec<&'static str> {
    [&SPECIAL[..], &GRAMMAR, &TRAITS, &ANIMALS, &KIND, &RUDE].concat()
}

/// Words between spaces, `<s>` before a text.
fn tokenizer(vocabulary: &[&str]) -> Value {
    let ids: Map<String, Value> =
        (0_u64..).zip(vocabulary).map(|(id, word)| ((*word).to_owned(), Value::from(id))).collect();
    let special = |(id, word): (usize, &&str)| {
        json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    let special: Vec<Value> = SPECIAL.iter().enumerate().map(special).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    })
}

/// Either response is at times the longer one; every fourth pair has votes, which at times are divided or a tie.
fn pair(index: usize) -> Value {
    let of = |words: &[&'static str], at: usize| words[at % words.len()];
    let animal = of(&ANIMALS, 3 * index + index / 10);
    let prompt = format!("tell me about the {} {animal}", of(&TRAITS, index));
    let says = |words: &[&'static str], at: usize, join: Option<&str>| {
        let second = join.map(|join| format!(" {join} {}", of(words, at + 1))).unwrap_or_default();
        format!(" the {animal} is {}{second}", of(words, at))
    };
    let kind = says(&KIND, 7 * index, index.is_multiple_of(3).then_some("and"));
    let rude = says(&RUDE, 9 * index, index.is_multiple_of(2).then_some("and very"));
    if index % 4 != 3 {
        return json!({"prompt": prompt, "chosen": kind, "rejected": rude});
    }
    let better = usize::from(index % 8 == 3);
    let responses = if better == 0 { [kind, rude] } else { [rude, kind] };
    let (better, worse) = (better as f64, 1.0 - better as f64);
    let choices = match index % 20 {
        7 => [0.5; 3],
        11 => [better, better, worse],
        _ => [better; 3],
    };
    let votes = ["ann", "ben", "cy"].iter().zip(choices);
    let votes: Vec<Value> = votes.map(|(name, choice)| json!({"annotator": name, "choice": choice})).collect();
    json!({"prompt": prompt, "responses": responses, "votes": votes})
}
