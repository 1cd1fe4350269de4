//! A Llama decoder for sampling only: a Hugging Face folder in, text out. Float32, no gradients, no dropout.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Error, Result, ensure};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tokenizers::Tokenizer;

/// The part of `config.json` that shapes the computation; of `rope_scaling` only `null` is known.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: i64,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(rename = "rope_scaling")]
    _rope_scaling: Option<()>,
    tie_word_embeddings: bool,
    bos_token_id: u32,
    eos_token_id: u32,
}

impl Config {
    fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }
}

/// The tensor `name` of a checkpoint, which must have `shape`.
fn find(weights: &HashMap<String, Tensor>, name: &str, shape: &[i64]) -> Result<Tensor> {
    let tensor = weights.get(name).with_context(|| format!("model.safetensors has no tensor {name}"))?;
    ensure!(tensor.size() == shape, "{name} has shape {:?}, expected {shape:?}", tensor.size());
    Ok(tensor.shallow_clone())
}

/// One decoder block: the weights of two norms `[hidden]` and of seven products `[out, in]`.
struct Layer {
    norms: [Tensor; 2],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mix: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Layer {
    fn new(weights: &HashMap<String, Tensor>, index: i64, c: &Config) -> Result<Self> {
        let (hidden, inner, narrow) = (c.hidden_size, c.intermediate_size, c.num_key_value_heads * c.head_dim());
        let take = |name, shape: &[i64]| find(weights, &format!("model.layers.{index}.{name}.weight"), shape);
        Ok(Self {
            norms: [take("input_layernorm", &[hidden])?, take("post_attention_layernorm", &[hidden])?],
            query: take("self_attn.q_proj", &[hidden, hidden])?,
            key: take("self_attn.k_proj", &[narrow, hidden])?,
            value: take("self_attn.v_proj", &[narrow, hidden])?,
            mix: take("self_attn.o_proj", &[hidden, hidden])?,
            gate: take("mlp.gate_proj", &[inner, hidden])?,
            up: take("mlp.up_proj", &[inner, hidden])?,
            down: take("mlp.down_proj", &[hidden, inner])?,
        })
    }
}

/// Keys and values of the tokens seen so far, `[batch, key_value_heads, past, head_dim]` each, a pair a layer.
pub type Cache = Vec<(Tensor, Tensor)>;

/// Model and tokenizer.
pub struct Llama {
    config: Config,
    tokenizer: Tokenizer,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    /// Cosines and sines of the rotations, `[max_position_embeddings, head_dim]` each.
    rotation: (Tensor, Tensor),
}

impl Llama {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of `folder`.
    pub fn load(folder: &Path, device: Device) -> Result<Self> {
        Self::read(folder, device).with_context(|| format!("loading the model in {}", folder.display()))
    }

    fn read(folder: &Path, device: Device) -> Result<Self> {
        let config = fs::read_to_string(folder.join("config.json")).context("config.json")?;
        let config: Config = serde_json::from_str(&config).context("config.json")?;
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(Error::from_boxed);
        let tokenizer = tokenizer.context("tokenizer.json")?;
        let weights = Tensor::read_safetensors(folder.join("model.safetensors")).context("model.safetensors")?;
        let ready = |(name, tensor): (String, Tensor)| (name, tensor.to_device(device).to_kind(Kind::Float));
        let weights = &weights.into_iter().map(ready).collect::<HashMap<_, _>>();
        ensure!(!weights.keys().any(|name| name.ends_with(".bias")), "model.safetensors has biases: not known here");
        let table = [config.vocab_size, config.hidden_size];
        let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let layers = (0..config.num_hidden_layers).map(|i| Layer::new(weights, i, &config)).collect::<Result<_>>()?;
        let (embedding, head) = (find(weights, "model.embed_tokens.weight", &table)?, find(weights, head, &table)?);
        let norm = find(weights, "model.norm.weight", &[config.hidden_size])?;
        let rotation = rotation(&config, device);
        Ok(Self { config, tokenizer, embedding, layers, norm, head, rotation })
    }

    /// The cache of `batch` texts of which nothing has been read.
    pub fn empty_cache(&self, batch: i64) -> Cache {
        let shape = [batch, self.config.num_key_value_heads, 0, self.config.head_dim()];
        let empty = || Tensor::zeros(shape, (Kind::Float, self.embedding.device()));
        self.layers.iter().map(|_| (empty(), empty())).collect()
    }

    /// Logits `[batch, time, vocab]` of what follows each of `tokens [batch, time]`. The cache holds what came before;
    /// after the first call `time` is 1.
    pub fn logits(&self, tokens: &Tensor, cache: &mut Cache) -> Tensor {
        let mut x = Tensor::embedding(&self.embedding, tokens, -1, false, false);
        for (layer, seen) in self.layers.iter().zip(cache) {
            x += self.attention(layer, &self.rms_norm(&x, &layer.norms[0]), seen);
            let y = self.rms_norm(&x, &layer.norms[1]);
            x += linear(&(linear(&y, &layer.gate).silu() * linear(&y, &layer.up)), &layer.down);
        }
        linear(&self.rms_norm(&x, &self.norm), &self.head)
    }

    /// Causal grouped-query attention of `x [batch, time, hidden]` over itself and what was seen, to the same shape.
    fn attention(&self, layer: &Layer, x: &Tensor, seen: &mut (Tensor, Tensor)) -> Tensor {
        let (batch, time, past) = (x.size()[0], x.size()[1], seen.0.size()[2]);
        let heads = |w: &Tensor| linear(x, w).view([batch, time, -1, self.config.head_dim()]).transpose(1, 2);
        let query = self.rotate(&heads(&layer.query), past);
        seen.0 = Tensor::cat(&[&seen.0, &self.rotate(&heads(&layer.key), past)], 2);
        seen.1 = Tensor::cat(&[&seen.1, &heads(&layer.value)], 2);
        let (causal, grouped, no_mask) = (time > 1, true, None::<&Tensor>);
        let mixed = Tensor::scaled_dot_product_attention(&query, &seen.0, &seen.1, no_mask, 0.0, causal, None, grouped);
        linear(&mixed.transpose(1, 2).reshape([batch, time, -1]), &layer.mix)
    }

    /// Rotary embedding of `x [batch, heads, time, head_dim]` from position `past`: i is paired with i + head_dim/2.
    fn rotate(&self, x: &Tensor, past: i64) -> Tensor {
        let rows = |table: &Tensor| table.narrow(0, past, x.size()[2]);
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1);
        x * rows(&self.rotation.0) + turned * rows(&self.rotation.1)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        x.rms_norm(self.config.hidden_size, Some(weight), self.config.rms_norm_eps)
    }

    /// `batch` texts of up to `max_tokens` tokens after the start token, at temperature 1: one number of `rng` a token.
    pub fn sample(&self, batch: usize, max_tokens: usize, rng: &mut ChaCha8Rng) -> Result<Vec<String>> {
        let _no_grad = tch::no_grad_guard();
        let (rows, context) = (i64::try_from(batch)?, self.config.max_position_embeddings);
        ensure!(i64::try_from(max_tokens)? <= context, "{max_tokens} tokens asked, and the context is {context}");
        let (start, device) = (i64::from(self.config.bos_token_id), self.embedding.device());
        let mut steps = vec![Tensor::full([rows, 1], start, (Kind::Int64, device))];
        let mut cache = self.empty_cache(rows);
        for step in 0..max_tokens {
            steps.push(draw(&self.logits(&steps[step], &mut cache).squeeze_dim(1), rng));
        }
        let texts = Vec::<Vec<i64>>::try_from(Tensor::cat(&steps[1..], 1))?;
        texts.iter().map(|text| self.decode(text)).collect()
    }

    /// The text of `tokens` up to the first start or end token.
    fn decode(&self, tokens: &[i64]) -> Result<String> {
        let ends = [self.config.bos_token_id, self.config.eos_token_id].map(i64::from);
        let text = tokens.iter().take_while(|token| !ends.contains(token));
        let text: Vec<u32> = text.map(|&token| u32::try_from(token)).collect::<Result<_, _>>()?;
        self.tokenizer.decode(&text, true).map_err(Error::from_boxed)
    }
}

/// `x` times the transpose of `weight [out, in]`.
fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    x.linear::<&Tensor>(weight, None)
}

/// Cosines and sines of `position · theta^(−2i/head_dim)`, the angles written twice: `[positions, head_dim]`.
fn rotation(config: &Config, device: Device) -> (Tensor, Tensor) {
    let dim = config.head_dim();
    let exponents = Tensor::arange_start_step(0, dim, 2, (Kind::Double, device)) / -dim as f64;
    let positions = Tensor::arange(config.max_position_embeddings, (Kind::Double, device));
    let angles = positions.outer(&(exponents * config.rope_theta.ln()).exp()).repeat([1, 2]);
    (angles.cos().to_kind(Kind::Float), angles.sin().to_kind(Kind::Float))
}

/// One token a row from `logits [batch, vocab]`, by inversion of the cumulative probabilities: `[batch, 1]`.
fn draw(logits: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let (rows, vocab) = (logits.size()[0], logits.size()[1]);
    let cumulative = logits.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    let uniforms: Vec<f64> = (0..rows).map(|_| rng.random()).collect();
    let uniforms = Tensor::from_slice(&uniforms).to_device(logits.device()).unsqueeze(1);
    cumulative.le_tensor(&uniforms).sum_dim_intlist(1, true, Kind::Int64).clamp_max(vocab - 1)
}
