use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{
    ModelConfig, ModelError, Reader,
    block::Block,
    config::Architecture,
    error::Loaded,
    lora::LoraConfig,
    norm::Norm,
    source::{Builder, Fresh, Source, Start},
    weights::{self, Checkpoint},
};
use crate::{
    Result,
    logps::{Decoder, VocabularyHead},
    packed::{PackedRow, Readout},
};

const HEAD: &str = "lm_head.weight";

/// A causal language model in Hugging Face's format.
///
/// It is a [`Decoder`], so [`response_logps_of`](crate::logps::response_logps_of) scores packed pairs with it. There is no dropout. Weights in
/// BFloat16 are trained with masters in f32 ([`AdamW::with_masters`](crate::train::AdamW::with_masters)), or small steps round to nothing; an
/// adapter is held in f32 beside them.
#[derive(Debug)]
pub struct CausalLm {
    pub(super) config: ModelConfig,
    pub(super) embedding: Tensor,
    /// Learned ones.
    pub(super) positions: Option<Tensor>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    pub(super) head: Tensor,
    named: Vec<(String, Tensor)>,
    pub(super) lora: Option<LoraConfig>,
    pub(super) checkpointing: bool,
}

impl CausalLm {
    /// Reads `config.json` and `model.safetensors`, or the shards of `model.safetensors.index.json`, of a folder. The weights become of this kind,
    /// whatever that of the file.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor: an unsupported configuration, a missing, misshapen or superfluous tensor, a truncated
    /// file.
    pub fn load(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let (config, mut checkpoint) = Self::open(folder, device, kind)?;
        let model = Self::build(config, &mut checkpoint)?;
        let tied = model.config.shape.tied;
        checkpoint.finish(|name| is_buffer(name) || (tied && name == HEAD))?;
        Ok(model)
    }

    /// The configuration and the weights of a folder.
    pub(super) fn open(folder: &Path, device: Device, kind: Kind) -> Loaded<(ModelConfig, Checkpoint)> {
        let config = ModelConfig::read(folder)?;
        let checkpoint = Checkpoint::open(folder, options(kind, device)?)?;
        // The first GPT-2 files leave the beginning of their names away.
        let short = matches!(config.shape.architecture, Architecture::Gpt2 { .. }) && checkpoint.contains("wte.weight");
        Ok((config, if short { checkpoint.without("transformer.") } else { checkpoint }))
    }

    /// A new one: matrices uniform with standard deviation .02, norms 1, biases 0.
    ///
    /// # Errors
    /// [`Kind`](ModelError::Kind) for a kind in which no model is held.
    pub fn new(config: ModelConfig, device: Device, kind: Kind, seed: u64) -> Result<Self, ModelError> {
        Self::build(config, &mut Fresh::new(seed, options(kind, device)?))
    }

    fn build(config: ModelConfig, source: &mut dyn Source) -> Loaded<Self> {
        let mut model = Self::trunk(config, source)?;
        let shape = &model.config.shape;
        if !shape.tied {
            let mut builder = Builder::new(source);
            model.head = builder.take(HEAD.to_owned(), &[shape.vocab, shape.width], Start::MATRIX)?;
            model.named.extend(builder.finish());
        }
        Ok(model)
    }

    /// One whose head, if not the embedding, is still to come.
    pub(super) fn trunk(config: ModelConfig, source: &mut dyn Source) -> Loaded<Self> {
        let (shape, mut builder) = (&config.shape, Builder::new(source));
        let (table, context) = ([shape.vocab, shape.width], [shape.context, shape.width]);
        let learned = matches!(shape.architecture, Architecture::Gpt2 { .. });
        let mut take = |name: &str, size: &[i64]| builder.take(name.to_owned(), size, Start::MATRIX);
        let (embedding, positions) = match learned {
            true => (take("transformer.wte.weight", &table)?, Some(take("transformer.wpe.weight", &context)?)),
            false => (take("model.embed_tokens.weight", &table)?, None),
        };
        let blocks =
            (0..shape.layers).map(|layer| Block::new(&mut builder, shape, layer)).collect::<Loaded<Vec<_>>>()?;
        let norm = match learned {
            true => Norm::layer(&mut builder, "transformer.ln_f", shape.width, shape.epsilon)?,
            false => Norm::root_mean_square(&mut builder, "model.norm", shape.width, shape.epsilon)?,
        };
        let (head, named) = (embedding.shallow_clone(), builder.finish());
        Ok(Self { config, embedding, positions, blocks, norm, head, named, lora: None, checkpointing: false })
    }

    /// The same without a head of its own.
    pub(super) fn into_trunk(mut self) -> Self {
        self.named.retain(|(name, _)| name != HEAD);
        self.head = self.embedding.shallow_clone();
        self
    }

    /// Computes each layer again in the backward pass instead of keeping what it needs: less memory, a third more time.
    #[must_use]
    pub fn with_checkpointing(self) -> Self {
        Self { checkpointing: true, ..self }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where its weights are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// What they are of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// Its weights under Hugging Face's names, without an adapter's. A tied head is the embedding and does not stand twice.
    pub fn named_parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.named.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// What is trained, under its name: the adapter if there is one, under PEFT's names, and else all weights.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        match self.lora {
            Some(_) => self.adapter_parameters(),
            None => self.named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect(),
        }
    }

    /// Writes `config.json`, as it was read but for `dtype` and `torch_dtype`, which name the model's kind, and `model.safetensors`, in that kind and
    /// without an adapter: a folder that transformers loads without rounding. Each file is written beside the old one and replaces it when it is
    /// complete. Tokenizer files are not the model's.
    ///
    /// # Errors
    /// [`Write`](ModelError::Write).
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        weights::save(folder, self.named.iter().map(|(name, tensor)| (name.clone(), tensor)), |_| Ok(None))?;
        self.config.save(folder, self.kind())
    }

    /// Logits `[batch, time, vocab]` of what follows each of `tokens` `[batch, time]` (Int64), unpadded.
    ///
    /// # Errors
    /// [`Rank`](crate::Error::Rank), [`Element`](crate::Error::Element) for a token outside the vocabulary, [`Context`](ModelError::Context).
    pub fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        Reader::from(self).logits(tokens)
    }

    /// The model with its adapter switched off: what it was before, without a second copy of it.
    ///
    /// # Errors
    /// [`NoAdapter`](ModelError::NoAdapter) without one: it would be the policy itself.
    pub fn reference(&self) -> Result<Reader<'_>, ModelError> {
        match self.lora {
            Some(_) => Ok(Reader::without_adapter(self)),
            None => Err(ModelError::NoAdapter),
        }
    }

    pub(super) fn train_weights(&self, trained: bool) -> Loaded<()> {
        for (_, tensor) in &self.named {
            let _ = tensor.f_set_requires_grad(trained)?;
        }
        Ok(())
    }
}

/// Whether early files have a tensor of this name beside the weights: what is computed here.
pub(super) fn is_buffer(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"].iter().any(|end| name.ends_with(end))
}

fn options(kind: Kind, device: Device) -> Loaded<(Kind, Device)> {
    match kind {
        Kind::Float | Kind::BFloat16 | Kind::Double => Ok((kind, device)),
        _ => Err(ModelError::Kind { found: kind }),
    }
}

impl Decoder for CausalLm {
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
        Reader::from(self).hidden(row, readout)
    }

    fn head(&self) -> Result<VocabularyHead> {
        Reader::from(self).head()
    }
}
