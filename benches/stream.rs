//! A large file of pairs, read and tokenised: seconds, and memory beside the tokens.
//!
//!     cargo bench --features data --bench stream -- TOKENIZER_FOLDER [--pairs 1000000]

#[allow(dead_code)] // races and peers have no part here
#[path = "side_by_side/measure.rs"]
mod measure;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;
use prefopt::data::{BadLines, Limits, Policy, PreferenceReader, TextTokenizer, tokenize};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const WORDS: [&str; 16] = [
    "once", "there", "was", "a", "little", "girl", "who", "liked", "to", "play", "with", "her", "friend", "in", "the",
    "park",
];

#[derive(Parser)]
struct Args {
    /// Folder with tokenizer.json and tokenizer_config.json
    tokenizer: PathBuf,
    /// How many pairs
    #[arg(long, default_value_t = 1_000_000)]
    pairs: usize,
    /// Cargo passes it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pairs.jsonl");
    let bytes = write(&file, args.pairs)?;
    let tokenizer = TextTokenizer::from_folder(&args.tokenizer)?;
    let (mut seconds, mut tokens) = (0.0, 0);
    let peak = measure::peak(&mut || {
        let start = Instant::now();
        let (limits, policy, bad_lines) = (Limits::default(), Policy::default(), BadLines::default());
        let pairs = tokenize(PreferenceReader::open(&file)?, &tokenizer, limits, policy, bad_lines)?.pairs;
        (seconds, tokens) = (start.elapsed().as_secs_f64(), pairs.tokens());
        Ok(())
    })?
    .context("the system does not say how much memory a process takes")?;
    let mb = 1.0 / (1 << 20) as f64;
    println!(
        "{} pairs, {:.0} MB of text, {:.1} million tokens: {seconds:.1} s, {:.2} million tokens/s; {peak:.0} MB at the peak, of which tokens {:.0}",
        args.pairs,
        bytes as f64 * mb,
        tokens as f64 * 1e-6,
        tokens as f64 * 1e-6 / seconds,
        4.0 * tokens as f64 * mb,
    );
    Ok(())
}

/// Pairs of made-up sentences; gives the bytes written.
fn write(file: &PathBuf, pairs: usize) -> Result<u64> {
    let mut rng = StdRng::seed_from_u64(0);
    let mut out = BufWriter::new(File::create(file)?);
    for _ in 0..pairs {
        let mut sentence = |words: usize| {
            let words: Vec<&str> = (0..words).map(|_| WORDS[rng.random_range(0..WORDS.len())]).collect();
            words.join(" ")
        };
        let record = serde_json::json!({"prompt": sentence(20), "chosen": sentence(30), "rejected": sentence(30)});
        writeln!(out, "{record}")?;
    }
    out.flush()?;
    Ok(file.metadata()?.len())
}
