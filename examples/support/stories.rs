//! The corpus, its tokenizer and the trained checkpoint.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use tch::{Device, nn};
use tokenizers::Tokenizer;

use super::gpt::{Gpt, GptConfig};

/// Where the embedded data lie.
pub const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets");

/// Id of the end-of-story token.
pub const END: i64 = 0;

/// Its text in the tokenizer.
pub const END_TEXT: &str = "<end>";

/// A story in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    pub opening: String,
    pub continuation: String,
}

/// Reads `opening<TAB>continuation` lines.
pub fn corpus(path: &Path) -> Result<Vec<Story>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let stories = text.lines().enumerate().map(|(i, line)| {
        let parts = line.split_once('\t');
        let (opening, continuation) = parts.with_context(|| format!("{}:{}: no tab", path.display(), i + 1))?;
        Ok(Story { opening: opening.into(), continuation: continuation.into() })
    });
    stories.collect()
}

/// The tokenizer of a folder.
pub fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).map_err(anyhow::Error::from_boxed);
    let tokenizer = tokenizer.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(tokenizer.token_to_id(END_TEXT) == Some(END as u32), "{} has no {END_TEXT} at id {END}", path.display());
    Ok(tokenizer)
}

/// Token ids of an opening.
pub fn encode_opening(tokenizer: &Tokenizer, opening: &str) -> Result<Vec<i64>> {
    let encoding = tokenizer.encode(opening, false).map_err(anyhow::Error::from_boxed)?;
    Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
}

/// Token ids of a continuation, with the space before it and the end token after it.
pub fn encode_continuation(tokenizer: &Tokenizer, continuation: &str) -> Result<Vec<i64>> {
    let mut ids = encode_opening(tokenizer, &format!(" {continuation}"))?;
    ids.push(END);
    Ok(ids)
}

/// Text of token ids, without the end token.
pub fn decode(tokenizer: &Tokenizer, ids: &[i64]) -> Result<String> {
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    let text = tokenizer.decode(&ids, true).map_err(anyhow::Error::from_boxed)?;
    Ok(text.trim().to_owned())
}

/// The trained network with its weights, ready to be trained further.
pub fn load(folder: &Path, device: Device) -> Result<(nn::VarStore, Gpt)> {
    let mut store = nn::VarStore::new(device);
    let gpt = Gpt::new(&store.root(), GptConfig::default());
    let path = folder.join("gpt.safetensors");
    store.load(&path).with_context(|| format!("cannot load {}", path.display()))?;
    store.float(); // the file holds f16
    Ok((store, gpt))
}
