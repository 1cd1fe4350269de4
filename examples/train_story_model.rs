//! Trains the tokenizer and the small GPT of the examples from the corpus of short stories.
//!
//!     cargo run --release --example train_story_model

mod support;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use prefopt::{
    logps::response_logps_of,
    packed::PackedRow,
    train::{AdamW, AdamWConfig, Descent, Warmup},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use support::{
    gpt::{Gpt, GptConfig},
    stories::{self, END_TEXT, Story},
};
use tch::{Device, Kind, Tensor, nn};
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
};

const BATCH: usize = 64;
/// Share of the corpus that the loss is measured on and not trained on.
const HELD_OUT: usize = 20;

/// Trains the tokenizer and the small GPT of the examples.
#[derive(Parser)]
struct Args {
    /// Stories, one a line
    #[arg(long, default_value = "examples/assets/corpus.txt")]
    corpus: PathBuf,
    /// Passes over the corpus
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = support::device)]
    device: Device,
    /// Folder of tokenizer.json and gpt.safetensors
    #[arg(long, default_value = "examples/assets")]
    out: PathBuf,
    /// A few steps on a part of the corpus
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // The embedded files are only for the full form to replace.
    let out = if args.quick && args.out == Path::new("examples/assets") {
        "target/examples-quick/train_story_model".into()
    } else {
        args.out
    };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let mut corpus = stories::corpus(&args.corpus)?;
    let epochs = if args.quick { 1 } else { args.epochs };
    if args.quick {
        corpus.truncate(1500);
    }
    train_tokenizer(&corpus, &out)?;
    let encoded = encode(&corpus, &out)?;

    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    tch::manual_seed(args.seed as i64);
    let mut order: Vec<&Vec<i64>> = encoded.iter().collect();
    order.shuffle(&mut rng);
    let (held_out, train) = order.split_at_mut(encoded.len() / HELD_OUT);

    let mut store = nn::VarStore::new(args.device);
    let gpt = Gpt::new(&store.root(), GptConfig::default());
    let weights: i64 = store.trainable_variables().iter().map(|t| t.numel() as i64).sum();
    println!("{} stories, {weights} weights", corpus.len());
    let steps = (epochs * train.len().div_ceil(BATCH)) as u64;
    let optimizer = AdamW::new(store.trainable_variables(), AdamWConfig::new((0.9, 0.99), 1e-8, 0.05)?)?;
    let mut descent = Descent::new(optimizer, 3e-3)?.with_schedule(Warmup::new(steps / 20).then_cosine(steps + 1)?);

    let bar =
        ProgressBar::new(steps).with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {eta} left")?);
    for epoch in 1..=epochs {
        train.shuffle(&mut rng);
        for batch in train.chunks(BATCH) {
            descent.descend(&nats_per_token(&gpt, batch, args.device)?)?;
            bar.inc(1);
        }
        let _no_grad = tch::no_grad_guard();
        let loss = nats_per_token(&gpt, held_out, args.device)?.double_value(&[]);
        bar.suspend(|| println!("epoch {epoch} of {epochs}: {loss:.3} nats a token held out"));
    }
    bar.finish_and_clear();
    store.half(); // half the size, and the difference is far below that between two seeds
    let (aside, path) = (out.join("partial.safetensors"), out.join("gpt.safetensors"));
    store.save(&aside)?;
    std::fs::rename(&aside, &path)?;
    println!("{}", path.display());
    Ok(())
}

/// Byte-level BPE; the end token has id 0.
fn train_tokenizer(corpus: &[Story], out: &Path) -> Result<()> {
    let mut trainer = TrainerWrapper::BpeTrainer(
        BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(GptConfig::default().vocab as usize)
            .special_tokens(vec![AddedToken::from(END_TEXT, true)])
            .build(),
    );
    let bytes = || ByteLevel::new(false, true, true);
    let mut tokenizer: tokenizers::TokenizerImpl<
        tokenizers::ModelWrapper,
        NormalizerWrapper,
        ByteLevel,
        ByteLevel,
        ByteLevel,
    > = TokenizerBuilder::new()
        .with_model(BPE::default().into())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(bytes()))
        .with_post_processor(None)
        .with_decoder(Some(bytes()))
        .build()
        .map_err(anyhow::Error::from_boxed)?;
    let lines = corpus.iter().map(|story| format!("{} {}", story.opening, story.continuation));
    tokenizer.train(&mut trainer, lines).map_err(anyhow::Error::from_boxed)?;
    let text = tokenizer.to_string(false).map_err(anyhow::Error::from_boxed)?;
    support::write(&out.join("tokenizer.json"), text)
}

fn encode(corpus: &[Story], folder: &Path) -> Result<Vec<Vec<i64>>> {
    let tokenizer = stories::tokenizer(folder)?;
    let context = GptConfig::default().context as usize;
    let mut encoded = Vec::with_capacity(corpus.len());
    for story in corpus {
        let mut ids = stories::encode_opening(&tokenizer, &story.opening)?;
        ids.extend(stories::encode_continuation(&tokenizer, &story.continuation)?);
        if ids.len() <= context {
            encoded.push(ids);
        }
    }
    println!("{} of {} stories fit the context of {context} tokens", encoded.len(), corpus.len());
    Ok(encoded)
}

/// Mean of −log π over the tokens after each story's first.
fn nats_per_token(gpt: &Gpt, batch: &[&Vec<i64>], device: Device) -> Result<Tensor> {
    let row = PackedRow::sequences(batch.iter().map(|ids| ids.split_at(1)), device)?;
    let logps = response_logps_of(gpt, &row)?;
    Ok(-logps.sums.sum(Kind::Float) / logps.lengths.sum(Kind::Float))
}
