//! Decoders in Hugging Face's format: GPT-2 and the Llama family, read, trained, sampled and saved.
//!
//! | | |
//! | --- | --- |
//! | families | `gpt2`; `llama` (Llama, SmolLM2), `mistral`, `qwen2` (biases), `qwen3` (norms of heads) |
//! | what of them | grouped queries, rotary positions (default, linear, llama3, yarn), sliding windows, tied or separate head, biases |
//! | files | `config.json`, `model.safetensors` or shards with an index; F64, F32, BF16 and F16 in the file, Float, BFloat16 or Double in memory and in what is saved, which names it in `dtype` |
//! | training | [`CausalLm`] is a [`Decoder`](crate::logps::Decoder): packed pairs, the chunked vocabulary head, checkpointing by layer |
//! | adapters | [`LoraConfig`]; with one, [`CausalLm::reference`] is the same model without it, so that no second one is held |
//! | reward models | [`RewardModel`]: a linear score for each member, in transformers' and TRL's format; [`reward`](crate::reward) has the objectives |
//! | sampling | [`Sampler`]: batched, with kept keys and values, seeded |
//!
//! What is not implemented is refused by name ([`ModelError`]); nothing is passed over that would change what is computed.
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use std::num::NonZeroUsize;
//! use prefopt::{
//!     PreferenceBatch, PreferenceLoss, logps::response_logps_of, loss::Dpo, packed::PackedRow,
//!     lm::{CausalLm, LoraConfig, ModelConfig}, tch::{Device, Kind},
//! };
//!
//! // In place of CausalLm::load(folder, device, kind)?.
//! let config = ModelConfig::from_json(
//!     r#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
//!         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#,
//! )?;
//! let rank = NonZeroUsize::new(4).expect("4 is not 0");
//! let model = CausalLm::new(config, Device::Cpu, Kind::Float, 0)?.with_lora(LoraConfig::new(rank, 8.0, ["q_proj", "v_proj"])?, 1)?;
//!
//! let (prompt, chosen, rejected) = ([1, 5, 6], [7, 2], [8, 9, 2]);
//! let row = PackedRow::pairs([(&prompt[..], &chosen[..], &rejected[..])], Device::Cpu)?;
//! let reference = {
//!     let _no_grad = prefopt::tch::no_grad_guard();
//!     response_logps_of(&model.reference()?, &row)?
//! };
//! let (logps, lengths) = response_logps_of(&model, &row)?.into_pairs(&reference)?;
//! let batch = PreferenceBatch::new(logps).with_lengths(lengths)?;
//! Dpo::new(0.1)?.mean(&batch)?.backward();
//! assert!(model.parameters().iter().all(|(_, tensor)| tensor.grad().defined()));
//! # Ok(()) }
//! ```

mod attention;
mod block;
mod config;
mod error;
mod family;
mod keys;
mod linear;
mod lora;
mod model;
mod norm;
mod reader;
mod reward;
mod rope;
mod sample;
mod source;
mod weights;

pub use config::ModelConfig;
pub use error::ModelError;
pub use lora::LoraConfig;
pub use model::CausalLm;
pub use reader::Reader;
pub use reward::RewardModel;
pub use sample::Sampler;
