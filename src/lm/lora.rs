use std::{num::NonZeroUsize, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::{
    CausalLm, ModelError,
    block::Block,
    error::Loaded,
    keys::Keys,
    linear::{Adapter, Layout, Linear},
    source::{Fresh, Source, Start},
    weights::{self, Checkpoint},
};
use crate::{Result, domain::LoraAlpha};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Keys of PEFT's configuration that change nothing of what is computed here: names and files, dropout (left off), how A and B began.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// A low-rank change to linear layers: W becomes W + (α/r) B A, with A `[r, inputs]` and B `[outputs, r]`.
///
/// A layer is a target if its name, or what follows a dot in it, is among `targets`: `q_proj`, `down_proj`, `c_attn`, `layers.0.self_attn.q_proj`.
/// The embedding and the vocabulary head are none. No dropout.
///
/// Source: Hu et al. 2021, "LoRA". PEFT: `LoraConfig(r=, lora_alpha=, target_modules=)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    rank: NonZeroUsize,
    alpha: LoraAlpha,
    targets: Vec<String>,
}

impl LoraConfig {
    /// Of rank r, with the change multiplied by α/r.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless α is positive and finite.
    pub fn new<T: Into<String>>(rank: NonZeroUsize, alpha: f64, targets: impl IntoIterator<Item = T>) -> Result<Self> {
        let targets = targets.into_iter().map(Into::into).collect();
        Ok(Self { rank, alpha: LoraAlpha::new(alpha)?, targets })
    }

    /// r.
    #[must_use]
    pub fn rank(&self) -> NonZeroUsize {
        self.rank
    }

    /// α.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha.get()
    }

    /// Names of the layers.
    #[must_use]
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    fn scale(&self) -> f64 {
        self.alpha.get() / self.rank.get() as f64
    }

    fn read(folder: &Path) -> Loaded<Self> {
        let (mut keys, _) = Keys::read(&folder.join(CONFIG))?;
        keys.only("peft_type", &["LORA".into()], "LORA")?;
        keys.only("bias", &["none".into()], "none")?;
        keys.only("init_lora_weights", &[true.into(), false.into(), "gaussian".into()], "true, false or gaussian")?;
        let rank = keys.count("r")?.ok_or_else(|| keys.missing("r"))?;
        let alpha = keys.required_positive("lora_alpha")?;
        let targets = keys.words("target_modules")?.ok_or_else(|| keys.missing("target_modules"))?;
        let alpha = LoraAlpha::new(alpha).map_err(|_| keys.unsupported("lora_alpha", alpha, "a finite number"))?;
        keys.finish_off(HARMLESS)?;
        Ok(Self { rank, alpha, targets })
    }

    fn save(&self, folder: &Path, layout: Layout) -> Loaded<()> {
        let alpha = self.alpha.get();
        // PEFT declares a whole number.
        let alpha = if alpha.fract() == 0.0 && alpha < 1e15 { Value::from(alpha as i64) } else { Value::from(alpha) };
        let object = Map::from_iter(
            [
                ("peft_type", "LORA".into()),
                ("task_type", "CAUSAL_LM".into()),
                ("base_model_name_or_path", Value::Null),
                ("r", Value::from(self.rank.get())),
                ("lora_alpha", alpha),
                ("lora_dropout", Value::from(0.0)),
                ("target_modules", Value::from(self.targets.clone())),
                ("bias", "none".into()),
                ("fan_in_fan_out", Value::from(layout == Layout::Conv1d)),
                ("init_lora_weights", Value::from(true)),
                ("inference_mode", Value::from(true)),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        weights::save_json(&folder.join(CONFIG), &object)
    }

    /// Whether a target means the layer of this name.
    fn means(target: &str, name: &str) -> bool {
        name.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    }

    fn targets_layer(&self, name: &str) -> bool {
        self.targets.iter().any(|target| Self::means(target, name))
    }
}

impl CausalLm {
    /// Freezes the weights and adds an adapter that changes nothing yet: A uniform in ±1/√inputs, B 0. [`parameters`](Self::parameters) are then
    /// the adapter's, held in f32 beside weights of half precision, and [`reference`](Self::reference) is the model without it.
    ///
    /// # Errors
    /// [`NoTarget`](ModelError::NoTarget) for a target that no layer has; [`SecondAdapter`](ModelError::SecondAdapter).
    pub fn with_lora(self, config: LoraConfig, seed: u64) -> Result<Self, ModelError> {
        let mut source = Fresh::new(seed, (self.wide_kind(), self.device()));
        self.adapted(config, &mut source)
    }

    /// The same with an adapter in PEFT's format: `adapter_config.json` and `adapter_model.safetensors` of a folder.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the key or tensor: options beyond rank, α and targets are not implemented.
    pub fn load_adapter(self, folder: &Path) -> Result<Self, ModelError> {
        let config = LoraConfig::read(folder)?;
        let mut source = Checkpoint::file(folder.join(WEIGHTS), (self.wide_kind(), self.device()))?;
        let model = self.adapted(config, &mut source)?;
        source.finish(|_| false)?;
        Ok(model)
    }

    /// Writes the adapter in that format.
    ///
    /// # Errors
    /// [`NoAdapter`](ModelError::NoAdapter) without one, [`Write`](ModelError::Write).
    pub fn save_adapter(&self, folder: &Path) -> Result<(), ModelError> {
        let config = self.lora.as_ref().ok_or(ModelError::NoAdapter)?;
        let parameters = self.adapter_parameters();
        weights::save_file(&folder.join(WEIGHTS), parameters.iter().map(|(name, tensor)| (name.clone(), tensor)))?;
        let layout = self.linears().next().map_or(Layout::Linear, Linear::layout);
        config.save(folder, layout)
    }

    /// Folds the adapter into the weights: W + (α/r) B A, rounded to their kind. Then there is none, all weights are trained, and
    /// [`save`](Self::save) writes what was tuned.
    ///
    /// # Errors
    /// [`NoAdapter`](ModelError::NoAdapter) without one.
    pub fn merged(mut self) -> Result<Self, ModelError> {
        if self.lora.take().is_none() {
            return Err(ModelError::NoAdapter);
        }
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            linear.merge()?;
        }
        self.train_weights(true)?;
        Ok(self)
    }

    /// The weight of this name with the adapter folded in; `None` where none changes it.
    pub(super) fn merged_weight(&self, name: &str) -> Loaded<Option<Tensor>> {
        let layer = name.strip_suffix(".weight");
        let adapted = self.linears().find(|linear| layer == Some(linear.name()));
        adapted.map_or(Ok(None), Linear::merged)
    }

    pub(super) fn adapter_parameters(&self) -> Vec<(String, Tensor)> {
        let of = |linear: &Linear| {
            let Adapter { down, up, .. } = linear.adapter()?;
            let [a, b] = names(linear.name());
            Some([(a, down.shallow_clone()), (b, up.shallow_clone())])
        };
        self.linears().filter_map(of).flatten().collect()
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// Of what is trained beside weights of half precision.
    pub(super) fn wide_kind(&self) -> Kind {
        if self.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    fn adapted(mut self, config: LoraConfig, source: &mut dyn Source) -> Loaded<Self> {
        if self.lora.is_some() {
            return Err(ModelError::SecondAdapter);
        }
        for target in &config.targets {
            if !self.linears().any(|linear| LoraConfig::means(target, linear.name())) {
                return Err(ModelError::NoTarget { target: target.clone() });
            }
        }
        let (rank, scale) = (config.rank.get() as i64, config.scale());
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            if config.targets_layer(linear.name()) {
                let ([outputs, inputs], [down, up]) = (linear.size(), names(linear.name()));
                let spread = Start::Uniform((inputs as f64).sqrt().recip());
                let down = source.take(&down, &[rank, inputs], spread)?.f_set_requires_grad(true)?;
                let up = source.take(&up, &[outputs, rank], Start::Constant(0.0))?.f_set_requires_grad(true)?;
                linear.set_adapter(Adapter { down, up, scale });
            }
        }
        self.train_weights(false)?;
        self.lora = Some(config);
        Ok(self)
    }
}

/// PEFT's names of A and B.
fn names(layer: &str) -> [String; 2] {
    ["A", "B"].map(|which| format!("base_model.model.{layer}.lora_{which}.weight"))
}
