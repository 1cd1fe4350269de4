use std::{num::NonZeroUsize, path::Path};

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{
    CausalLm, ModelConfig, ModelError, config,
    error::Loaded,
    model::is_buffer,
    source::{Fresh, Source, Start},
    weights,
};
use crate::{
    Result, RewardScores,
    packed::PackedRow,
    reward::{RewardScorer, pair_rewards_of, response_rewards_of},
};

const SCORE: &str = "score.weight";
const PADDING: &str = "pad_token_id";
/// What a seed is combined with, so that w is not drawn as an adapter or a trunk of the same seed is.
const STREAM: u64 = u64::from_be_bytes(*b"score.we");

/// A family of reward models on one decoder: r_m = w_m·h, with h `[width]` the hidden state of a response's last token
/// after the last norm, and w `[members, width]`.
///
/// The format is transformers' `…ForSequenceClassification` with a label for each member, so that of TRL's reward
/// models: the trunk under its own names, `score.weight` without a bias, no vocabulary head. `score.weight` is held and
/// written in f32 beside a trunk in half precision, lest the small steps of its training be rounded away.
///
/// **Members on one trunk** differ by their start, drawn from a seed, and by the weights that each gives to the pairs
/// ([`RewardBatch::with_member_weights`](crate::reward::RewardBatch::with_member_weights)), and by no more: given the
/// hidden states, the Bradley–Terry likelihood is concave in w, and members with equal weights go to the same w.
/// Models that have a trunk each differ by more; load them one after the other.
///
/// **Padding.** transformers reads a reward at the rightmost token that is not the padding token. Where responses end
/// with that token, it reads the one before. So [`save`](Self::save) writes no `pad_token_id` that is an end token
/// (`eos_token_id`) or none of the vocabulary; transformers then takes one sequence at a time, and says so. Name another
/// with [`with_padding`](Self::with_padding), one that no response ends with, or none with
/// [`without_padding`](Self::without_padding) where a tokenizer ends responses with the configuration's padding token.
/// A model that was trained with the end token as padding, as TRL does where a tokenizer has no padding token, has
/// learned to score the token before the end: give it responses without their end.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use std::num::NonZeroUsize;
/// use prefopt::{
///     lm::{CausalLm, ModelConfig, RewardModel}, packed::PackedRow,
///     reward::{BradleyTerry, RewardBatch, RewardObjective}, tch::{Device, Kind},
/// };
///
/// // In place of CausalLm::load(folder, device, kind)?.
/// let config = ModelConfig::from_json(
///     r#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
///         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#,
/// )?;
/// let members = NonZeroUsize::new(3).expect("3 is not 0");
/// let model = RewardModel::on(CausalLm::new(config, Device::Cpu, Kind::Float, 0)?, members, 1)?;
///
/// let (prompt, chosen, rejected) = ([1, 5, 6], [7, 2], [8, 9, 2]);
/// let row = PackedRow::pairs([(&prompt[..], &chosen[..], &rejected[..])], Device::Cpu)?;
/// let scores = model.scores(&row)?;
/// assert_eq!((scores.members(), scores.batch()), (3, 1));
/// BradleyTerry::new(0.0)?.mean(&RewardBatch::new(scores))?.backward();
/// assert!(model.parameters().iter().all(|(_, tensor)| tensor.grad().defined()));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RewardModel {
    trunk: CausalLm,
    score: Score,
    /// What is written as `pad_token_id`.
    padding: Option<i64>,
}

impl RewardModel {
    /// New members on a language model, whose vocabulary head is dropped and whose adapter is kept: w uniform with
    /// standard deviation .02, from a stream of its own: one seed may draw the trunk, its adapter and w.
    ///
    /// # Errors
    /// [`Torch`](ModelError::Torch) when there is no memory for it.
    pub fn on(model: CausalLm, members: NonZeroUsize, seed: u64) -> Result<Self, ModelError> {
        let size = [members.get() as i64, model.config().width()];
        let score = Fresh::new(seed ^ STREAM, (model.wide_kind(), model.device())).take(SCORE, &size, Start::MATRIX)?;
        Self::new(model.into_trunk(), &score)
    }

    /// Reads a folder as [`CausalLm::load`] does. `score.weight` says how many members there are.
    ///
    /// # Errors
    /// As there. A folder without `score.weight` is that of a language model: see [`on`](Self::on).
    pub fn load(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let (config, mut checkpoint) = CausalLm::open(folder, device, kind)?;
        let found = checkpoint.size(SCORE)?;
        let trunk = CausalLm::trunk(config, &mut checkpoint)?;
        let mut checkpoint = checkpoint.in_kind(trunk.wide_kind());
        let size = [found.first().copied().unwrap_or_default().max(1), trunk.config().width()];
        let score = checkpoint.take(SCORE, &size, Start::MATRIX)?;
        checkpoint.finish(is_buffer)?;
        Self::new(trunk, &score)
    }

    fn new(trunk: CausalLm, score: &Tensor) -> Loaded<Self> {
        let read = trunk.config().keys().get(PADDING).and_then(Value::as_i64);
        let padding = read.filter(|&token| harmless(trunk.config(), token).is_ok());
        Ok(Self { trunk, score: Score(score.f_set_requires_grad(true)?), padding })
    }

    /// Writes `config.json`, as it was read but for the class, the labels, the padding token, and `dtype` and
    /// `torch_dtype`, which name the kind of `score.weight`; and `model.safetensors`, in the model's kind: a folder
    /// that transformers loads without rounding, a trunk in half precision as f32. An adapter is folded into what is
    /// written, and stays as it is in memory. Each file is written beside the old one and replaces it when it is
    /// complete.
    ///
    /// # Errors
    /// [`Write`](ModelError::Write).
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let tensors = self.trunk.named_parameters().chain([(SCORE, &self.score.0)]);
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor));
        weights::save(folder, tensors, |name| self.trunk.merged_weight(name))?;
        weights::save_json(&folder.join(config::FILE), &self.keys())
    }

    /// The padding token that [`save`](Self::save) writes in place of the one that was read. Packed rows have none.
    ///
    /// # Errors
    /// [`Padding`](ModelError::Padding) for an end token or one outside the vocabulary.
    pub fn with_padding(self, token: i64) -> Result<Self, ModelError> {
        Ok(Self { padding: Some(harmless(self.config(), token)?), ..self })
    }

    /// [`save`](Self::save) writes no padding token, whichever was read: for a tokenizer that ends responses with that
    /// token, although `eos_token_id` is another.
    #[must_use]
    pub fn without_padding(self) -> Self {
        Self { padding: None, ..self }
    }

    /// As [`CausalLm::with_checkpointing`].
    #[must_use]
    pub fn with_checkpointing(self) -> Self {
        Self { trunk: self.trunk.with_checkpointing(), ..self }
    }

    /// The configuration that was read.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.trunk.config()
    }

    /// Where its weights are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.trunk.device()
    }

    /// What the trunk's weights are of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.trunk.kind()
    }

    /// Number of reward models.
    #[must_use]
    pub fn members(&self) -> i64 {
        self.score.members()
    }

    /// What is trained, under its name: the adapter if there is one, and else the trunk's weights; and `score.weight`.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut parameters = self.trunk.parameters();
        parameters.push((SCORE.to_owned(), self.score.0.shallow_clone()));
        parameters
    }

    /// r_m of each response of a row, `[members, responses]`, in units of reward, with a path to the
    /// [`parameters`](Self::parameters): f64 of a model in Double, and else f32.
    ///
    /// # Errors
    /// [`Element`](crate::Error::Element) for a token outside the vocabulary, [`Context`](ModelError::Context).
    pub fn response_scores(&self, row: &PackedRow) -> Result<Tensor> {
        response_rewards_of(&self.trunk, &self.score, row)
    }

    /// The same of a row of [pairs](PackedRow::pairs), `[members, pairs]` each.
    ///
    /// # Errors
    /// As [`response_scores`](Self::response_scores); [`Length`](crate::Error::Length) for an odd number of responses.
    pub fn scores(&self, row: &PackedRow) -> Result<RewardScores> {
        pair_rewards_of(&self.trunk, &self.score, row)
    }

    /// The keys of `config.json`.
    fn keys(&self) -> Map<String, Value> {
        let mut keys = self.config().keys_beside(self.trunk.wide_kind());
        let label = |member: i64| format!("LABEL_{member}");
        let labels = (0..self.members()).map(|member| (member.to_string(), Value::from(label(member))));
        let members = (0..self.members()).map(|member| (label(member), Value::from(member)));
        let class = format!("{}ForSequenceClassification", self.config().shape.class);
        let written = [
            ("architectures", Value::from(vec![class])),
            ("id2label", Value::Object(labels.collect())),
            ("label2id", Value::Object(members.collect())),
            // Without it transformers' pipeline puts a score through a sigmoid.
            ("problem_type", Value::from("regression")),
            (PADDING, Value::from(self.padding)),
        ];
        keys.extend(written.map(|(key, value)| (key.to_owned(), value)));
        // Said by the labels; another number is an error in transformers.
        keys.retain(|key, _| !matches!(key.as_str(), "num_labels" | "_num_labels"));
        keys
    }
}

/// The token, if transformers finds the end of a response that is padded with it.
fn harmless(config: &ModelConfig, token: i64) -> Loaded<i64> {
    let reason = if config.end_tokens().contains(&token) {
        "it ends a text, and transformers would read the token before it"
    } else if !(0..config.vocab()).contains(&token) {
        "it is not in the vocabulary"
    } else {
        return Ok(token);
    };
    Err(ModelError::Padding { token, reason })
}

/// w·h, w `[members, width]`.
#[derive(Debug)]
struct Score(Tensor);

impl RewardScorer for Score {
    fn members(&self) -> i64 {
        self.0.size()[0]
    }

    fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.0.f_matmul(&hidden.f_tr()?)?)
    }
}
