use std::{num::NonZeroUsize, path::Path};

use serde_json::{Map, Value};
use tch::Kind;

use super::{
    error::{Loaded, ModelError},
    family,
    keys::Keys,
    rope::Rope,
    weights,
};

pub(super) const FILE: &str = "config.json";

/// The part of `config.json` that shapes the computation, and its text. [`save`](super::CausalLm::save) writes every key again, in its order;
/// `dtype` and `torch_dtype` then say what the saved weights are of.
///
/// Known are the families gpt2, llama, mistral, qwen2 and qwen3 with transformers' defaults. A key that is neither known nor known to be harmless
/// (dropout rates, which training here leaves off, are) is refused by name, and so is a known one with a value that is not implemented: a
/// model that computes something else would give no sign of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    text: String,
    pub(super) shape: Shape,
}

/// What the layers are made by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub architecture: Architecture,
    pub vocab: i64,
    pub width: i64,
    /// Width of the MLP.
    pub inner: i64,
    pub layers: usize,
    pub heads: i64,
    pub key_heads: i64,
    pub head_width: i64,
    /// Positions that there are.
    pub context: i64,
    /// ε of the norms.
    pub epsilon: f64,
    /// What scores are multiplied with.
    pub scale: f64,
    /// Whether the embedding is the vocabulary head too.
    pub tied: bool,
    /// Tokens that a layer looks back on, itself included, where that is not all.
    pub windows: Vec<Option<NonZeroUsize>>,
    /// Tokens that end a text.
    pub ends: Vec<i64>,
    /// What the names of the family's classes begin with in transformers.
    pub class: &'static str,
}

/// What differs beyond sizes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Architecture {
    /// Learned positions, layer norms, query, key and value in one product, a plain MLP with biases everywhere.
    Gpt2 {
        /// GELU as libtorch names it.
        gelu: &'static str,
    },
    /// Rotary positions, RMS norms, a gated MLP.
    Llama {
        rope: Rope,
        /// Of query, key and value.
        input_bias: bool,
        output_bias: bool,
        mlp_bias: bool,
        /// A norm of each head's query and key.
        head_norms: bool,
    },
}

impl ModelConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`ModelError`], naming the file and the key.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let (keys, text) = Keys::read(&folder.join(FILE))?;
        Ok(Self { shape: family::shape(keys)?, text })
    }

    /// The same from its text.
    ///
    /// # Errors
    /// As [`read`](Self::read); the file is called `config.json`.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        let keys = Keys::parse(Path::new(FILE), text)?;
        Ok(Self { shape: family::shape(keys)?, text: text.to_owned() })
    }

    pub(super) fn save(&self, folder: &Path, kind: Kind) -> Loaded<()> {
        weights::save_json(&folder.join(FILE), &self.keys_beside(kind))
    }

    /// Every key, in its order.
    pub(super) fn keys(&self) -> Map<String, Value> {
        serde_json::from_str(&self.text).expect("an object: the configuration was read from it")
    }

    /// The same beside weights of this kind.
    pub(super) fn keys_beside(&self, kind: Kind) -> Map<String, Value> {
        let dtype = match kind {
            Kind::Double => "float64",
            Kind::BFloat16 => "bfloat16",
            _ => "float32",
        };
        let mut keys = self.keys();
        // transformers rounds what it loads to `dtype`; early versions of 4 know it as `torch_dtype` alone.
        keys.extend(["dtype", "torch_dtype"].map(|key| (key.to_owned(), Value::from(dtype))));
        keys
    }

    /// Its text as it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tokens that there are.
    #[must_use]
    pub fn vocab(&self) -> i64 {
        self.shape.vocab
    }

    /// Width of a hidden state.
    #[must_use]
    pub fn width(&self) -> i64 {
        self.shape.width
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.shape.layers
    }

    /// The longest sequence, in tokens.
    #[must_use]
    pub fn context(&self) -> i64 {
        self.shape.context
    }

    /// Tokens that end a text (`eos_token_id`), none if it names none.
    #[must_use]
    pub fn end_tokens(&self) -> &[i64] {
        &self.shape.ends
    }
}

impl Shape {
    /// The window of those layers that have one; they share it.
    pub fn window(&self) -> Option<NonZeroUsize> {
        self.windows.iter().copied().flatten().next()
    }
}
