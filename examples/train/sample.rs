//! `sample`: continuations of prompts, one line of JSON a prompt, with their log-probabilities and rewards.

use std::{
    collections::HashSet,
    fs,
    io::{self, Write},
    iter,
    path::Path,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use prefopt::{
    data::{DataError, Ending, Message, PreferenceReader, Reason, Record, TextTokenizer, Texts},
    lm::{CausalLm, ModelConfig, RewardModel, Sampler},
    logps::response_logps_of,
    packed::PackedRow,
};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind};

use crate::{
    flags::SampleFlags,
    models, score,
    support::{self, progress},
    tail::Tail,
};

/// A prompt as it stands in the file, and in tokens.
struct Prompt {
    shown: Value,
    ids: Vec<i64>,
    /// Whether the chat template wrote it.
    is_chat: bool,
}

/// A prompt with its continuations: a line of the output.
#[derive(Serialize)]
struct Line {
    prompt: Value,
    samples: Vec<Sample>,
}

#[derive(Serialize)]
struct Sample {
    text: String,
    ids: Vec<i64>,
    /// log π at temperature 1, summed over its tokens, nats.
    logp: f64,
    /// Whether the last token is an end, and not the last that there was room for.
    ended: bool,
    /// Of each reward model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rewards: Vec<f64>,
}

pub fn run(flags: &SampleFlags) -> Result<ExitCode> {
    let folder = &flags.model.model;
    let config = models::config(folder)?;
    let tokenizer = models::tokenizer(folder)?;
    tokenizer.fits(config.vocab() as usize).map_err(|error| anyhow!("{}: {error}", folder.display()))?;
    let judges = models::family(&flags.rewards)?;
    for judge in &judges {
        score::same_tokens(folder, judge)?;
    }
    let ends: Vec<i64> = config.end_tokens().iter().copied().chain([i64::from(tokenizer.end())]).collect();
    let sampler = sampler(flags, &ends)?;
    let prompts = prompts(flags, &tokenizer)?;
    let longest = flags.max_new.get() as i64;
    // Before the samples that a judge found wanting afterwards would cost.
    let contexts = judges.iter().map(|judge| Ok(ModelConfig::read(judge)?.context())).collect::<Result<Vec<_>>>()?;
    let context = contexts.into_iter().fold(config.context(), i64::min);
    for (number, prompt) in prompts.iter().enumerate() {
        let (tokens, number) = (prompt.ids.len() as i64, number + 1);
        ensure!(tokens > 0, "prompt {number} has no token, so there is nothing to continue");
        ensure!(
            tokens.saturating_add(longest) <= context,
            "prompt {number} has {tokens} tokens, which with --max-new {longest} do not fit the context of {context} of the model and its judges"
        );
    }
    if let Some(out) = &flags.out {
        room_for(out)?;
    }

    let place = models::place(&flags.model, None)?;
    let model = models::load(&flags.model, None, flags.seed, false)?;
    let tail = if judges.is_empty() { Tail::default() } else { Tail::of_template(&tokenizer)? };
    let writer = Writer { model, tokenizer, sampler, ends, samples: flags.samples.get() };
    let begun = Instant::now();
    let mut lines = writer.lines(&prompts, flags.batch.get(), flags.seed)?;
    let seconds = begun.elapsed().as_secs_f64();
    // One model in memory at a time.
    drop(writer);
    for judge in &judges {
        scored(&mut lines, &prompts, &tail, judge, place, flags.batch.get())?;
    }

    let written = lines.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    deliver(flags.out.as_deref(), &(written.join("\n") + "\n"))?;
    let drawn = || lines.iter().flat_map(|line| &line.samples);
    let (samples, tokens) = (drawn().count(), drawn().map(|sample| sample.ids.len()).sum::<usize>());
    eprintln!(
        "{} prompts, {samples} continuations, {:.0} % of them ended, {:.1} tokens each, {:.0} tokens/s",
        lines.len(),
        100.0 * drawn().filter(|sample| sample.ended).count() as f64 / samples as f64,
        tokens as f64 / samples as f64,
        tokens as f64 / seconds,
    );
    Ok(ExitCode::SUCCESS)
}

fn sampler(flags: &SampleFlags, ends: &[i64]) -> Result<Sampler> {
    let mut sampler = Sampler::new(flags.max_new)
        .with_temperature(flags.temperature)
        .context("--temperature")?
        .with_stop(ends.to_vec());
    if let Some(k) = flags.top_k {
        sampler = sampler.with_top_k(k);
    }
    match flags.top_p {
        Some(p) => sampler.with_top_p(p).context("--top-p"),
        None => Ok(sampler),
    }
}

/// Those of `--prompt`, then those of the files, each different one once.
fn prompts(flags: &SampleFlags, tokenizer: &TextTokenizer) -> Result<Vec<Prompt>> {
    let (mut prompts, mut seen) = (Vec::new(), HashSet::new());
    for text in &flags.prompt {
        let prompt = tokenized(alone(text), tokenizer, flags.chat)?;
        if seen.insert(prompt.ids.clone()) {
            prompts.push(prompt);
        }
    }
    let most = flags.limit.map_or(usize::MAX, |limit| prompts.len().saturating_add(limit));
    for file in &flags.data {
        for (number, texts) in texts_of(file)?.into_iter().enumerate() {
            if prompts.len() >= most {
                break;
            }
            let prompt = tokenized(texts, tokenizer, flags.chat)
                .with_context(|| format!("{}, prompt {}", file.display(), number + 1))?;
            if seen.insert(prompt.ids.clone()) {
                prompts.push(prompt);
            }
        }
    }
    ensure!(!prompts.is_empty(), "--limit 0 leaves no prompt");
    Ok(prompts)
}

/// A prompt without responses.
fn alone(prompt: &str) -> Texts {
    Texts::Plain { prompt: prompt.to_owned(), chosen: String::new(), rejected: String::new() }
}

/// The prompts of pairs, or of JSON Lines with `prompt` alone.
fn texts_of(file: &Path) -> Result<Vec<Texts>> {
    let mut texts = Vec::new();
    // Not as sources here and below: the text of these errors has their cause in it already.
    for record in PreferenceReader::open(file).map_err(|error| anyhow!("{error}"))? {
        match record {
            Ok(record) => texts.push(record.texts),
            Err(DataError::Line(bad)) if texts.is_empty() && matches!(bad.reason, Reason::Missing("chosen")) => {
                return prompts_alone(file);
            }
            Err(error) => bail!("{error}"),
        }
    }
    ensure!(!texts.is_empty(), "there is no prompt in {}", file.display());
    Ok(texts)
}

fn prompts_alone(file: &Path) -> Result<Vec<Texts>> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("{} has no pairs, and prompts alone are read from plain JSON Lines", file.display())
    })?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let one = |(index, line): (usize, &str)| {
        let at = || format!("{}:{}", file.display(), index + 1);
        let line: Value = serde_json::from_str(line).with_context(at)?;
        match line.get("prompt") {
            Some(Value::String(prompt)) => Ok(alone(prompt)),
            Some(messages @ Value::Array(_)) => {
                let prompt = Vec::<Message>::deserialize(messages).with_context(at)?;
                let tools = line.get("tools").cloned();
                Ok(Texts::Conversation { prompt, chosen: Vec::new(), rejected: Vec::new(), tools })
            }
            _ => bail!("{}: there is no `prompt`, text or a list of messages", at()),
        }
    };
    lines.map(one).collect()
}

fn tokenized(texts: Texts, tokenizer: &TextTokenizer, chat: bool) -> Result<Prompt> {
    let texts = if chat { Record::new(texts).into_conversation().texts } else { texts };
    let is_chat = matches!(texts, Texts::Conversation { .. });
    let (shown, tokens) = match texts {
        Texts::Plain { prompt, .. } => {
            let mut tokens = tokenizer.plain(&prompt).map_err(|error| anyhow!("{error}"))?;
            // A tokenizer that ends every text by itself would leave nothing to say.
            tokens.truncate(tokens.len() - usize::from(tokens.len() > 1 && tokens.last() == Some(&tokenizer.end())));
            (Value::from(prompt), tokens)
        }
        Texts::Conversation { prompt, tools, .. } => {
            let tokens = tokenizer.conversation(&prompt, tools.as_ref(), Ending::Reply);
            (serde_json::to_value(&prompt)?, tokens.map_err(|error| anyhow!("{error}"))?)
        }
    };
    Ok(Prompt { shown, ids: tokens.into_iter().map(i64::from).collect(), is_chat })
}

/// What continues prompts.
struct Writer {
    model: CausalLm,
    tokenizer: TextTokenizer,
    sampler: Sampler,
    ends: Vec<i64>,
    samples: usize,
}

impl Writer {
    fn lines(&self, prompts: &[Prompt], batch: usize, seed: u64) -> Result<Vec<Line>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let bar = progress::bar(prompts.len() as u64, "prompts")?;
        let mut lines = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(batch) {
            lines.extend(self.batch(prompts, &mut rng)?);
            prompts.iter().for_each(|_| progress::done(&bar, "prompts"));
        }
        bar.finish_and_clear();
        Ok(lines)
    }

    fn batch(&self, prompts: &[Prompt], rng: &mut StdRng) -> Result<Vec<Line>> {
        let _no_grad = tch::no_grad_guard();
        let repeated: Vec<&[i64]> =
            prompts.iter().flat_map(|prompt| iter::repeat_n(prompt.ids.as_slice(), self.samples)).collect();
        let drawn = self.sampler.sample(&self.model, &repeated, rng)?;
        let groups = prompts.iter().zip(drawn.chunks(self.samples));
        let groups = groups.map(|(prompt, drawn)| (prompt.ids.as_slice(), drawn.iter().map(Vec::as_slice)));
        let row = PackedRow::groups(groups, self.model.device())?;
        let logps = Vec::<f64>::try_from(&response_logps_of(&self.model, &row)?.sums)?;
        let mut samples = drawn.into_iter().zip(logps).map(|(ids, logp)| self.sample(ids, logp));
        let line = |prompt: &Prompt| {
            let samples = samples.by_ref().take(self.samples).collect::<Result<_>>()?;
            Ok(Line { prompt: prompt.shown.clone(), samples })
        };
        prompts.iter().map(line).collect()
    }

    fn sample(&self, ids: Vec<i64>, logp: f64) -> Result<Sample> {
        let tokens: Vec<u32> = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>()?;
        let text = self.tokenizer.decode(&tokens).map_err(|error| anyhow!("{error}"))?;
        let ended = ids.last().is_some_and(|last| self.ends.contains(last));
        Ok(Sample { text, ids, logp, ended, rewards: Vec::new() })
    }
}

/// Adds the scores of a reward model, of each of its heads: of a sample in a conversation with the [`Tail`] behind it.
fn scored(
    lines: &mut [Line],
    prompts: &[Prompt],
    tail: &Tail,
    judge: &Path,
    place: (Device, Kind),
    batch: usize,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let model = RewardModel::load(judge, place.0, place.1)?;
    let context = model.config().context() as usize;
    let whole = |prompt: &Prompt, sample: &Sample| match prompt.is_chat {
        true => tail.complete(&sample.ids, context - prompt.ids.len()),
        false => sample.ids.clone(),
    };
    for (lines, prompts) in lines.chunks_mut(batch).zip(prompts.chunks(batch)) {
        let of = |(prompt, line): (&Prompt, &Line)| -> Vec<Vec<i64>> {
            line.samples.iter().map(|sample| whole(prompt, sample)).collect()
        };
        let samples: Vec<_> = prompts.iter().zip(lines.iter()).map(of).collect();
        let groups = prompts.iter().zip(&samples);
        let groups = groups.map(|(prompt, own)| (prompt.ids.as_slice(), own.iter().map(Vec::as_slice)));
        let row = PackedRow::groups(groups, place.0)?;
        let scores = model.response_scores(&row).with_context(|| judge.display().to_string())?;
        let members = Vec::<Vec<f64>>::try_from(&scores)?;
        for (index, sample) in lines.iter_mut().flat_map(|line| &mut line.samples).enumerate() {
            sample.rewards.extend(members.iter().map(|member| member[index]));
        }
    }
    Ok(())
}

/// Refuses a file that could not be written, before the work that it is for.
pub fn room_for(out: &Path) -> Result<()> {
    ensure!(!out.is_dir(), "--out {} is a folder, where a file is to be written", out.display());
    match out.parent() {
        Some(folder) => {
            fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
        }
        None => Ok(()),
    }
}

/// Writes a file aside and renames it, or prints where there is none.
pub fn deliver(out: Option<&Path>, text: &str) -> Result<()> {
    match out {
        Some(out) => support::write(out, text),
        None => io::stdout().write_all(text.as_bytes()).context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &str) -> Result<Vec<Texts>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("prompts.jsonl");
        fs::write(&file, lines)?;
        texts_of(&file)
    }

    #[test]
    fn prompts_stand_in_pairs_or_alone() -> Result<()> {
        let pairs = texts("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n")?;
        assert!(matches!(&pairs[..], [Texts::Plain { prompt, chosen, .. }] if prompt == "a" && chosen == "b"));
        let prompts = texts(concat!(
            "{\"prompt\": \"a\", \"samples\": []}\n\n",
            "{\"prompt\": [{\"role\": \"user\", \"content\": \"b\"}]}\n"
        ))?;
        assert_eq!(prompts[0], alone("a"));
        assert!(matches!(&prompts[1], Texts::Conversation { prompt, .. } if prompt[..] == [Message::new("user", "b")]));
        let refused = |lines| texts(lines).err().map(|error| format!("{error:#}"));
        assert!(refused("").is_some_and(|error| error.starts_with("there is no prompt in")));
        let lines = "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n";
        assert!(refused(lines).is_some_and(|error| error.contains(":2: there is no `prompt`")));
        Ok(())
    }
}
