//! A small GPT-2: learned positions, layer norm before each block, GELU, the embedding as vocabulary head.

use prefopt::{
    Error, Result,
    logps::{Decoder, VocabularyHead},
    packed::{PackedRow, Readout},
};
use tch::{
    Kind, Tensor,
    nn::{self, Module},
};

/// Size of the network; the defaults have 0.3 million weights.
#[derive(Debug, Clone, Copy)]
pub struct GptConfig {
    pub vocab: i64,
    pub context: i64,
    pub width: i64,
    pub heads: i64,
    pub layers: i64,
}

impl Default for GptConfig {
    fn default() -> Self {
        Self { vocab: 768, context: 96, width: 80, heads: 5, layers: 3 }
    }
}

#[derive(Debug)]
struct Block {
    norm1: nn::LayerNorm,
    attention_in: nn::Linear,
    attention_out: nn::Linear,
    norm2: nn::LayerNorm,
    up: nn::Linear,
    down: nn::Linear,
    heads: i64,
}

/// Keys and values of what has been read, `[batch, heads, time, head width]` each, one pair a layer.
pub type Cache = Vec<(Tensor, Tensor)>;

impl Block {
    fn new(vs: &nn::Path, config: &GptConfig) -> Self {
        // GPT-2's initialisation: residual projections start smaller the deeper the network is.
        let linear = |name: &str, input: i64, output: i64, std: f64| {
            let config = nn::LinearConfig {
                ws_init: nn::Init::Randn { mean: 0.0, stdev: std },
                bs_init: Some(nn::Init::Const(0.0)),
                bias: true,
            };
            nn::linear(vs / name, input, output, config)
        };
        let (width, residual) = (config.width, 0.02 / (2.0 * config.layers as f64).sqrt());
        Self {
            norm1: nn::layer_norm(vs / "norm1", vec![width], nn::LayerNormConfig::default()),
            attention_in: linear("attention_in", width, 3 * width, 0.02),
            attention_out: linear("attention_out", width, width, residual),
            norm2: nn::layer_norm(vs / "norm2", vec![width], nn::LayerNormConfig::default()),
            up: linear("up", width, 4 * width, 0.02),
            down: linear("down", 4 * width, width, residual),
            heads: config.heads,
        }
    }

    /// `[batch, time, width]` to the same, after what the cache holds; `mask` `[batch, 1, time, read]` is what each token may see.
    fn read(&self, x: &Tensor, mask: &Tensor, (keys, values): &mut (Tensor, Tensor)) -> Tensor {
        let size = x.size();
        let (batch, time, width) = (size[0], size[1], size[2]);
        let split = |part: &Tensor| part.view([batch, time, self.heads, width / self.heads]).transpose(1, 2);
        let parts = self.attention_in.forward(&self.norm1.forward(x)).chunk(3, -1);
        *keys = Tensor::cat(&[&*keys, &split(&parts[1])], 2);
        *values = Tensor::cat(&[&*values, &split(&parts[2])], 2);
        let seen =
            Tensor::scaled_dot_product_attention(&split(&parts[0]), keys, values, Some(mask), 0.0, false, None, false);
        self.after_attention(x, &seen.transpose(1, 2).reshape([batch, time, width]))
    }

    /// Packed tokens `[tokens, width]` to those of `readout`: a last layer has no use for the others, beyond their keys and values.
    fn packed(&self, x: &Tensor, readout: &Readout) -> Result<Tensor> {
        let width = x.size()[1];
        let head_width = width / self.heads;
        let normed = self.norm1.forward(x);
        let project = |x: &Tensor, first: i64, parts: i64| {
            let (weight, bias) = (&self.attention_in.ws, self.attention_in.bs.as_ref());
            let rows = |tensor: &Tensor| tensor.narrow(0, first * width, parts * width);
            x.linear(&rows(weight), bias.map(rows))
        };
        let split = |part: &Tensor| part.view([-1, self.heads, head_width]);
        let query = project(&readout.select(&normed)?, 0, 1);
        let rest = project(&normed, 1, 2).chunk(2, -1);
        let scale = (head_width as f64).sqrt().recip();
        let seen =
            readout.attend(&split(&query), &split(&rest[0].contiguous()), &split(&rest[1].contiguous()), scale)?;
        Ok(self.after_attention(&readout.select(x)?, &seen.reshape([-1, width])))
    }

    fn after_attention(&self, x: &Tensor, seen: &Tensor) -> Tensor {
        let x = x + self.attention_out.forward(seen);
        let up = self.up.forward(&self.norm2.forward(&x)).gelu("tanh");
        x + self.down.forward(&up)
    }
}

impl Decoder for Gpt {
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
        let longest = row.positions().max().int64_value(&[]) + 1;
        if longest > self.config.context {
            let (expected, found) = (self.config.context, longest);
            return Err(Error::Length {
                tensor: "positions",
                shape: "[tokens]",
                dimension: "context",
                expected,
                found,
            });
        }
        let mut x = self.embedding.forward(row.tokens()) + self.positions.forward(row.positions());
        let last = self.blocks.len() - 1;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.packed(&x, if i < last { row.everything() } else { readout })?;
        }
        Ok(self.norm.forward(&x))
    }

    fn head(&self) -> Result<VocabularyHead> {
        VocabularyHead::new(&self.embedding.ws)
    }
}

/// The network. Its head is its embedding, so a row of logits is `hidden · embeddingᵀ`.
#[derive(Debug)]
pub struct Gpt {
    pub config: GptConfig,
    embedding: nn::Embedding,
    positions: nn::Embedding,
    blocks: Vec<Block>,
    norm: nn::LayerNorm,
}

impl Gpt {
    pub fn new(vs: &nn::Path, config: GptConfig) -> Self {
        let small = nn::EmbeddingConfig { ws_init: nn::Init::Randn { mean: 0.0, stdev: 0.02 }, ..Default::default() };
        Self {
            config,
            embedding: nn::embedding(vs / "embedding", config.vocab, config.width, small),
            positions: nn::embedding(vs / "positions", config.context, config.width, small),
            blocks: (0..config.layers).map(|i| Block::new(&(vs / format!("block{i}")), &config)).collect(),
            norm: nn::layer_norm(vs / "norm", vec![config.width], nn::LayerNormConfig::default()),
        }
    }

    /// Logits `[.., vocab]` of hidden states `[.., width]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.matmul(&self.embedding.ws.tr())
    }

    /// An empty cache for `batch` sequences.
    pub fn cache(&self, batch: i64) -> Cache {
        let GptConfig { heads, width, .. } = self.config;
        let device = self.embedding.ws.device();
        let empty = || Tensor::zeros([batch, heads, 0, width / heads], (Kind::Float, device));
        self.blocks.iter().map(|_| (empty(), empty())).collect()
    }

    /// Logits of the last token, `[batch, vocab]`, after reading more tokens `[batch, time]` at the given positions; `mask`
    /// `[batch, 1, time, read]` says which of all tokens read so far each of them may see.
    pub fn read(&self, tokens: &Tensor, positions: &Tensor, mask: &Tensor, cache: &mut Cache) -> Tensor {
        let mut x = self.embedding.forward(tokens) + self.positions.forward(positions);
        for (block, cache) in self.blocks.iter().zip(cache) {
            x = block.read(&x, mask, cache);
        }
        self.logits(&self.norm.forward(&x.select(1, -1)))
    }
}
