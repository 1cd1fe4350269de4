//! Every flag of every command. A TOML file given by `--config` has the same names as keys.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Serialize, Serializer};

use crate::loss::LossSpec;

/// Tunes Hugging Face decoders on human preferences.
#[derive(Debug, Parser)]
#[command(name = "train", version, subcommand_required = false, arg_required_else_help = true)]
pub struct Cli {
    /// All commands one after the other on a tiny model and made-up pairs, seconds: checks that they run, shows nothing
    #[arg(long)]
    pub quick: bool,
    /// Folder of the quick form
    #[arg(long, requires = "quick")]
    pub out: Option<PathBuf>,
    /// The losses by name, with their numbers and defaults
    #[arg(long)]
    pub losses: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Likelihood of the chosen responses: supervised fine-tuning
    Sft(SftFlags),
    /// Reward models from preferences, one or a family
    Reward(RewardFlags),
    /// Scores of reward models, and the reference's log-probabilities, for a file of pairs: computed once, kept in caches
    Score(ScoreFlags),
    /// The policy, by any loss
    Policy(PolicyFlags),
    /// Continuations of prompts
    Sample(SampleFlags),
    /// A policy or reward models on pairs that they were not trained on
    Eval(EvalFlags),
}

/// Where a TOML file with more flags is.
#[derive(Debug, Args, Serialize)]
pub struct ConfigFlag {
    /// TOML file of flags, by their long names; those of the command line go before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// The model and where it is computed.
#[derive(Debug, Args, Serialize)]
pub struct ModelFlags {
    /// Folder of a model: config.json, model.safetensors or shards, tokenizer.json, tokenizer_config.json
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// An adapter in PEFT's format to load on top
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// What the weights are held in; bf16 is trained with masters in f32
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// Which of libtorch's f32 products to use; a run that goes on keeps its own
    #[arg(long, value_enum, default_value_t = Matmul::Default)]
    pub matmul: Matmul,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Matmul {
    /// libtorch's own
    Default,
    /// The faster one of those that are as exact, measured at the start
    Fastest,
}

/// The pairs.
#[derive(Debug, Args, Serialize)]
pub struct DataFlags {
    /// Preference pairs: JSON Lines, plain or gzipped, or parquet
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub data: Vec<PathBuf>,
    /// Held-out pairs of their own
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "held_out")]
    pub eval_data: Vec<PathBuf>,
    /// Share of the prompts that is held out, where there are no pairs for it; 0 for none [default: 0.1, but `eval`
    /// judges all pairs; with a share it judges those held out alone]
    #[arg(long, value_name = "SHARE")]
    #[serde(serialize_with = "share")]
    pub held_out: Option<f64>,
    /// Seed of the split
    #[arg(long, default_value_t = 0)]
    pub split_seed: u64,
    /// Longest prompt and response together, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub max_length: usize,
    /// Longest prompt, in tokens
    #[arg(long, value_name = "TOKENS")]
    pub max_prompt: Option<usize>,
    /// Longest response, in tokens: what is longer is cut and has no end
    #[arg(long, value_name = "TOKENS")]
    pub max_response: Option<usize>,
    /// A prompt over its limit keeps its end; otherwise its pair is dropped
    #[arg(long)]
    pub keep_end: bool,
    /// Write plain prompts and responses with the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// Leave pairs out whose votes are a tie
    #[arg(long)]
    pub drop_ties: bool,
    /// Leave broken lines out and count them
    #[arg(long)]
    pub skip_bad: bool,
    /// The first so many records alone
    #[arg(long, value_name = "RECORDS")]
    pub limit: Option<usize>,
}

/// Of the prompts, where no flag says how many.
const HELD_OUT: f64 = 0.1;

impl DataFlags {
    /// Of the prompts that are held out where models are trained, and where scores are kept for that.
    pub fn share(&self) -> f64 {
        self.held_out.unwrap_or(HELD_OUT)
    }
}

/// Given or not, it is one and the same run.
fn share<S: Serializer>(held_out: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(held_out.unwrap_or(HELD_OUT))
}

/// Batches, steps, checkpoints.
#[derive(Debug, Args, Serialize)]
pub struct RunFlags {
    /// Folder of the run: checkpoints, logs, picture, the model. A run that is there goes on
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip)]
    pub out: PathBuf,
    /// Passes over the pairs
    #[arg(long, default_value_t = 1)]
    pub epochs: u64,
    /// Steps after which to stop, whatever the epochs
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<u64>,
    /// Pairs of a batch
    #[arg(long, value_name = "PAIRS", default_value = "8", conflicts_with = "batch_tokens")]
    pub batch: NonZeroUsize,
    /// Tokens of a batch in place of a number of pairs
    #[arg(long, value_name = "TOKENS")]
    pub batch_tokens: Option<NonZeroUsize>,
    /// Batches of a step, one after the other: the memory of one, the gradient of all
    #[arg(long, value_name = "BATCHES", default_value = "1")]
    pub accumulate: NonZeroUsize,
    /// Pairs that are sorted by length together, so that those of a batch are alike
    #[arg(long, value_name = "PAIRS")]
    pub bucket: Option<NonZeroUsize>,
    /// Peak learning rate [default: 1e-6 for a policy, 1e-4 for an adapter and for reward models, 1e-5 for sft]
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Steps of linear warm-up
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub warmup: u64,
    /// What comes after the warm-up
    #[arg(long, value_enum, default_value_t = After::Constant)]
    pub schedule: After,
    /// Largest norm of the gradient; 0 for none
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub max_norm: f64,
    #[arg(long, value_name = "DECAY", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Fixes order, new weights and samples
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Compute layers again in the backward pass: less memory, a third more time
    #[arg(long)]
    pub checkpointing: bool,
    /// Steps between evaluations [default: ten in a run]
    #[arg(long, value_name = "STEPS")]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints [default: as evaluations]
    #[arg(long, value_name = "STEPS")]
    pub save_every: Option<u64>,
    /// Checkpoints that are kept besides the best
    #[arg(long, value_name = "CHECKPOINTS", default_value = "2")]
    pub keep: NonZeroUsize,
    /// Which checkpoint becomes the model
    #[arg(long, value_enum, default_value_t = Export::Last)]
    pub export: Export,
    /// Stop at the first alarm
    #[arg(long)]
    pub stop_on_alarm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    Constant,
    /// A half cosine down to 0 at the last step
    Cosine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    Last,
    /// Of smallest held-out loss at an evaluation: a checkpoint is saved at each
    Best,
}

/// A low-rank adapter in place of all weights.
#[derive(Debug, Args, Serialize)]
pub struct LoraFlags {
    /// Train an adapter of this rank; the reference is then the model without it
    #[arg(long, value_name = "RANK", conflicts_with = "adapter")]
    pub lora: Option<NonZeroUsize>,
    /// α of the adapter [default: twice the rank]
    #[arg(long, value_name = "ALPHA", requires = "lora")]
    pub lora_alpha: Option<f64>,
    /// Layers that it changes [default: all linear ones of the blocks]
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "lora")]
    pub lora_targets: Vec<String>,
}

#[derive(Debug, Args, Serialize)]
pub struct SftFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub config: ConfigFlag,
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunFlags,
}

/// How the members of a family come to differ, besides their seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Order of the data and start of the head alone
    Seed,
    /// Each from its own draw of the pairs with replacement
    Bootstrap,
    /// Each from pairs in which the longer response wins with its own frequency, .2 to .8
    Length,
}

#[derive(Debug, Args, Serialize)]
pub struct RewardFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub config: ConfigFlag,
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataFlags,
    /// Reward models of the family
    #[arg(long, default_value = "1")]
    pub members: NonZeroUsize,
    #[arg(long, value_enum, default_value_t = Family::Bootstrap)]
    pub family: Family,
    /// One trunk for all members, each with a head of its own; otherwise each is a whole model
    #[arg(long)]
    pub shared_trunk: bool,
    /// Weight of (r_w + r_l)², which keeps scores near zero
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.01)]
    pub centring: f64,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunFlags,
}

/// What a frozen model says about the pairs.
#[derive(Debug, Args, Serialize)]
pub struct TeacherFlags {
    /// Folders of reward models, or one folder that `reward` has made: the family
    #[arg(long, value_name = "FOLDER", num_args = 1..)]
    pub rewards: Vec<PathBuf>,
    /// Scores of each member divided by their standard deviation over all pairs: those of a run, held out or not, those
    /// that `eval` judges
    #[arg(long)]
    pub standardise: bool,
    /// Factor of all scores
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub reward_scale: f64,
    /// Folder of the caches [default: `cache` beside the run]
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip)]
    pub cache: Option<PathBuf>,
}

#[derive(Debug, Args, Serialize)]
pub struct ScoreFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub config: ConfigFlag,
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub teachers: TeacherFlags,
    /// Tokens that are computed together
    #[arg(long, value_name = "TOKENS", default_value = "8192")]
    pub batch_tokens: NonZeroUsize,
}

#[derive(Debug, Args, Serialize)]
pub struct PolicyFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub config: ConfigFlag,
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataFlags,
    /// NAME, or NAME:KEY=VALUE,… + WEIGHT*NAME:…; `train --losses` lists them
    #[arg(long, default_value = "dpo")]
    pub loss: LossSpec,
    #[command(flatten)]
    #[serde(flatten)]
    pub teachers: TeacherFlags,
    /// Folder of the reference [default: the model itself as it is before training]
    #[arg(long, value_name = "FOLDER")]
    pub reference: Option<PathBuf>,
    /// Samples of the reference, or of the policy, for each prompt, where the loss reads them
    #[arg(long, default_value = "2")]
    pub samples: NonZeroUsize,
    /// Longest of these samples, and of those by which the divergence is measured, in tokens
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    pub sample_length: NonZeroUsize,
    /// Held-out prompts on which each evaluation samples the policy, for its divergence; 0 for none
    #[arg(long, value_name = "PROMPTS", default_value_t = 8)]
    pub kl_prompts: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunFlags,
}

#[derive(Debug, Args, Serialize)]
pub struct SampleFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub config: ConfigFlag,
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelFlags,
    /// A prompt; several by several flags
    #[arg(long, value_name = "TEXT", required_unless_present = "data")]
    pub prompt: Vec<String>,
    /// File of pairs whose prompts are continued, each once, or JSON Lines with `prompt` alone
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// The first so many prompts of the file alone
    #[arg(long, value_name = "PROMPTS", requires = "data")]
    pub limit: Option<usize>,
    /// Write prompts with the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// Continuations of each prompt
    #[arg(long, default_value = "1")]
    pub samples: NonZeroUsize,
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,
    #[arg(long)]
    pub top_k: Option<NonZeroUsize>,
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Longest continuation, in tokens
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    pub max_new: NonZeroUsize,
    /// Prompts that are continued together
    #[arg(long, default_value = "16")]
    pub batch: NonZeroUsize,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Reward models that score the samples
    #[arg(long, value_name = "FOLDER", num_args = 1..)]
    pub rewards: Vec<PathBuf>,
    /// JSON Lines file of the samples [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args, Serialize)]
pub struct EvalFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub config: ConfigFlag,
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub teachers: TeacherFlags,
    /// Folder of the reference; without one only reward models are judged
    #[arg(long, value_name = "FOLDER")]
    pub reference: Option<PathBuf>,
    /// NAME:KEY=VALUE,…: the loss that is measured, of the policy against the reference
    #[arg(long, default_value = "dpo", requires = "reference")]
    pub loss: LossSpec,
    /// Tokens that are computed together
    #[arg(long, value_name = "TOKENS", default_value = "8192")]
    pub batch_tokens: NonZeroUsize,
    /// JSON file of the numbers [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
