//! Preference data: files to records, records to tokens, tokens to batches, and caches of what a frozen model says
//! about them.
//!
//! > [`PreferenceReader`] → [`Record`] → [`tokenize`](fn@tokenize) → [`PairDataset`] → [`Batching`] → [`PackedRow`](crate::packed::PackedRow)
//!
//! | question | answer |
//! | --- | --- |
//! | which forms a file may have | [`PreferenceReader`] |
//! | where a prompt ends that the file does not set apart | with the last message, `\n\nAssistant:` turn or word that both responses share |
//! | where it ends in tokens | with the last token that prompt, prompt + chosen and prompt + rejected share ([`TextTokenizer::split`]) |
//! | which tokens are scored | the response's and the end-of-sequence token, never the prompt's |
//! | who writes the end-of-sequence token | we, once, for plain text; the chat template for conversations; nobody after a response that is cut |
//! | what is left out | counted by reason ([`Report`]); broken lines are listed with file, line and reason ([`BadLines`]) |
//! | what is in memory | the tokens, 4 bytes each, and the text of a thousand records |
//! | what a member of a family of reward models learns from | a [bootstrap](PairDataset::bootstrap), or pairs of [a given length bias](PairDataset::where_longer_wins) |
//! | what a resumed run needs | the data, a seed, a [`Batching`] and a [`Place`] |
//! | when a cache is stale | when a token of the data or a byte of the model is another ([`CacheKey`]) |
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use std::num::NonZeroUsize;
//! use prefopt::data::{BadLines, Batching, Limits, Place, Policy, PreferenceReader, TextTokenizer, tokenize};
//! use prefopt::tch::Device;
//!
//! # let folder = std::env::temp_dir().join(format!("prefopt-data-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).expect("a temporary folder");
//! # let tokenizer = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
//! #     "post_processor": null, "decoder": null, "model": {"type": "WordLevel", "unk_token": "?",
//! #     "vocab": {"?": 0, "</s>": 1, "2": 2, "+": 3, "=": 4, "4": 5}}}"#;
//! # std::fs::write(folder.join("tokenizer.json"), tokenizer).expect("a file");
//! # std::fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).expect("a file");
//! # let file = folder.join("pairs.jsonl");
//! std::fs::write(&file, r#"{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 2 2"}"#).expect("a file");
//!
//! let tokenizer = TextTokenizer::from_folder(&folder)?;
//! tokenizer.fits(6)?;
//! let tokenized =
//!     tokenize(PreferenceReader::open(&file)?, &tokenizer, Limits::new(512)?, Policy::default(), BadLines::default())?;
//! let pairs = tokenized.pairs;
//! assert_eq!(tokenized.report.to_string(), "1 pair kept (0 cut), 0 dropped");
//!
//! let batching = Batching::by_tokens(NonZeroUsize::new(4096).expect("not 0"));
//! for (_after, batch) in batching.steps(&pairs, 42, Place::default())?.take(2) {
//!     let row = pairs.row(&batch, Device::Cpu)?;
//!     assert_eq!(row.len(), 9);
//! }
//! # std::fs::remove_dir_all(&folder).expect("our own folder");
//! # Ok(()) }
//! ```

mod cache;
mod clock;
mod dataset;
mod digest;
mod draws;
mod error;
mod faults;
mod form;
mod json;
mod order;
mod policy;
mod prefix;
mod read;
mod record;
mod report;
mod resample;
mod special;
#[cfg(feature = "parquet")]
mod table;
mod template;
mod tokenize;
mod tokenizer;

pub use cache::{Cache, CacheKey, CacheKind, Values};
pub use dataset::{Pair, PairDataset, gather};
pub use digest::Digest;
pub use error::{DataError, Result};
pub use faults::{BadLine, Faults, Origin, Reason};
pub use order::{BatchSize, Batches, Batching, Order, Place};
pub use policy::{BadLines, EmptyResponse, Limits, LongPrompt, LongResponse, Policy, Tie};
pub use read::PreferenceReader;
pub use record::{Column, Message, Record, Texts, Vote};
pub use report::{Dropped, Report};
pub use special::SpecialTokens;
pub use template::{ChatTemplate, Ending};
pub use tokenize::{Tokenized, tokenize};
pub use tokenizer::{SplitPair, TextTokenizer};
pub use {minijinja, serde_json, tokenizers};
