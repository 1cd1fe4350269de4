//! Samples the corpus of short stories that the other examples learn from: the beginnings of texts of a small language
//! model, one a line, as `opening<TAB>continuation`. The opening is the first sentence, the continuation one to four more.
//!
//!     cargo run --release --example sample_corpus

mod support;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Device;

use support::llama::Llama;

const BATCH: usize = 256;
const MAX_TOKENS: usize = 160;
const MOST_SENTENCES: usize = 4;
const OPENING: std::ops::RangeInclusive<usize> = 20..=110;
const SENTENCE: std::ops::RangeInclusive<usize> = 12..=160;
const LONGEST_STORY: usize = 420;
/// Texts sampled for one story before we give up on the model.
const PATIENCE: usize = 10;

/// Samples short stories from a language model into a text file.
#[derive(Parser)]
struct Args {
    /// Hugging Face folder of a Llama model of stories
    #[arg(long, default_value = "../shared/models/stories260k")]
    model: PathBuf,
    /// How many stories to keep
    #[arg(long, default_value_t = 12_000)]
    stories: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = support::device)]
    device: Device,
    /// Folder of corpus.txt [default: examples/assets, with --quick target/examples-quick/sample_corpus]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Keep 64 stories, and skip when there is no model
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.model.is_dir() {
        let folder = args.model.display();
        ensure!(args.quick, "sampling needs a model, and there is no folder {folder}; name one with --model");
        println!("sample_corpus is skipped: there is no model folder {folder}.");
        return Ok(());
    }
    let (wanted, folder) = match args.quick {
        true => (64, "target/examples-quick/sample_corpus"),
        false => (args.stories, "examples/assets"),
    };
    let model = Llama::load(&args.model, args.device)?;
    let stories = collect(&model, wanted, ChaCha8Rng::seed_from_u64(args.seed))?;
    let path = args.out.unwrap_or_else(|| folder.into()).join("corpus.txt");
    support::write(&path, stories.join("\n") + "\n")?;
    println!("{} stories in {}", stories.len(), path.display());
    Ok(())
}

/// Samples until `wanted` texts have passed the filters, and says on stderr what became of the others.
fn collect(model: &Llama, wanted: usize, mut rng: ChaCha8Rng) -> Result<Vec<String>> {
    let bar = ProgressBar::new(wanted as u64).with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}")?);
    let (mut stories, mut seen) = (Vec::new(), HashSet::new());
    let (mut sampled, mut dropped) = (0, BTreeMap::new());
    while stories.len() < wanted {
        ensure!(sampled < PATIENCE * wanted.max(BATCH), "{sampled} texts gave {} stories: {dropped:?}", stories.len());
        for text in model.sample(BATCH, MAX_TOKENS, &mut rng)? {
            sampled += 1;
            match story(&text, rng.random_range(1..=MOST_SENTENCES), &mut seen) {
                Ok(story) => stories.push(story),
                Err(reason) => *dropped.entry(reason).or_insert(0_usize) += 1,
            }
        }
        bar.set_position(stories.len().min(wanted) as u64);
    }
    bar.finish_and_clear();
    report(sampled, stories.len(), &dropped);
    stories.truncate(wanted);
    Ok(stories)
}

fn report(sampled: usize, kept: usize, dropped: &BTreeMap<Refusal, usize>) {
    eprintln!("{sampled:>7} texts sampled");
    for (reason, count) in dropped {
        eprintln!("{count:>7} dropped: {}", reason.in_words());
    }
    eprintln!("{kept:>7} stories passed");
}

/// Why a text is not a story of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    NotAscii,
    TooFewSentences,
    Quotes,
    Opening,
    Sentence,
    Total,
    Duplicate,
}

impl Refusal {
    fn in_words(self) -> &'static str {
        match self {
            Self::NotAscii => "a character outside printable ASCII",
            Self::TooFewSentences => "too few complete sentences",
            Self::Quotes => "a double quote in the wrong place",
            Self::Opening => "length of the opening",
            Self::Sentence => "length of a sentence",
            Self::Total => "length of the story",
            Self::Duplicate => "a duplicate",
        }
    }
}

/// `opening<TAB>continuation` with `more` sentences after the opening, or why not. Remembers what it returned in `seen`.
fn story(text: &str, more: usize, seen: &mut HashSet<String>) -> Result<String, Refusal> {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentences: Vec<&str> = sentences(&line).take(1 + more).collect();
    keep(line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), Refusal::NotAscii)?;
    keep(sentences.len() == 1 + more, Refusal::TooFewSentences)?;
    keep(sentences.iter().all(|s| quotes_fit(s)), Refusal::Quotes)?;
    keep(OPENING.contains(&sentences[0].len()), Refusal::Opening)?;
    keep(sentences[1..].iter().all(|s| SENTENCE.contains(&s.len())), Refusal::Sentence)?;
    let story = format!("{}\t{}", sentences[0], sentences[1..].join(" "));
    keep(story.len() <= LONGEST_STORY, Refusal::Total)?;
    keep(seen.insert(story.clone()), Refusal::Duplicate)?;
    Ok(story)
}

fn keep(condition: bool, otherwise: Refusal) -> Result<(), Refusal> {
    if condition { Ok(()) } else { Err(otherwise) }
}

/// The complete sentences of a line: each ends where the next begins, so what comes last is never complete.
fn sentences(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let end = rest.match_indices(' ').map(|(space, _)| space).find(|&space| is_boundary(rest, space))?;
        let sentence = &rest[..end];
        rest = &rest[end + 1..];
        Some(sentence)
    })
}

/// Whether a sentence ends before the space at `space`: outside quotes, after a mark or a mark and a quote, before a capital or
/// a quote, and not after a title. So `"Hello!" she said.` and `"Stop. Look!" said Tom.` are one sentence each.
fn is_boundary(text: &str, space: usize) -> bool {
    let (before, after) = (&text[..space], &text[space + 1..]);
    let outside = before.matches('"').count() % 2 == 0;
    let marked = before.strip_suffix('"').unwrap_or(before).ends_with(['.', '!', '?']);
    let titled = ["Mr.", "Mrs.", "Ms.", "Dr."].contains(&before.rsplit([' ', '"']).next().unwrap_or(before));
    outside && marked && !titled && after.starts_with(|c: char| c.is_ascii_uppercase() || c == '"')
}

/// Whether the double quotes come in pairs, opening where a word may begin and closing where one has ended.
fn quotes_fit(sentence: &str) -> bool {
    let parts: Vec<&str> = sentence.split('"').collect();
    let opens = |part: &str| part.is_empty() || part.ends_with(' ');
    let quoted = |part: &str| !part.is_empty() && !part.starts_with(' ') && !part.ends_with(' ');
    parts.len() % 2 == 1
        && parts.iter().step_by(2).take(parts.len() / 2).all(|part| opens(part))
        && parts.iter().skip(1).step_by(2).all(|part| quoted(part))
}
