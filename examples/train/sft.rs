//! `sft`: a model tuned to say the chosen responses; and how a run ends that leaves one model.

use std::{fs, iter, path::Path, process::ExitCode};

use anyhow::Result;
use prefopt::{
    data::{Digest, gather},
    diagnostics::{Metrics, Thresholds},
    lm::CausalLm,
    logps::response_scores_of,
};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::{
    flags::{ModelFlags, SftFlags},
    models, pairs, picture,
    policy::numbered::{self, Numbered, wide},
    run::{Done, Job, settings},
    support,
    trainers::{FromLoss, Measured},
};

const NAME: &str = "sft";
/// Peak rates of all weights and of an adapter.
const RATE: f64 = 1e-5;
const ADAPTER_RATE: f64 = 1e-4;

pub fn run(flags: &SftFlags) -> Result<ExitCode> {
    let (folder, out) = (flags.model.model.as_path(), flags.run.out.as_path());
    let split = pairs::read(&flags.data, flags.data.share(), folder, &models::config(folder)?)?;
    let total = Job::total_steps(&flags.run, &split.train)?;
    let place = models::place(&flags.model, Some(out))?;
    let settings = settings::of(NAME, flags, &flags.model, &split)?;
    let made = out.join("model");
    if is_finished(out, &made, &settings) {
        eprintln!("{NAME}: the run in {} is finished, {total} steps", out.display());
        return Ok(ExitCode::SUCCESS);
    }
    settings::compare(out, &settings, flags.run.schedule)?;

    let model = models::load(&flags.model, Some(&flags.lora), flags.run.seed, flags.run.checkpointing)?;
    let has_adapter = flags.lora.lora.is_some() || flags.model.adapter.is_some();
    let rate = if has_adapter { ADAPTER_RATE } else { RATE };
    let descent = models::descent(model.parameters(), &flags.run, place.1, rate, total)?;
    let numbered = Numbered::new(&split);
    let weights = numbered.weights();
    let loss = |numbers: &[usize]| measured(&model, &numbered, weights.as_deref(), numbers);
    let mut trainer = FromLoss::new(descent, loss);
    let job = Job {
        name: NAME,
        flags: &flags.run,
        settings,
        pairs: &split.train,
        held_out: split.held_out.as_ref(),
        model: model.parameters(),
        thresholds: Thresholds::default(),
    };
    let done = job.run(&mut trainer, |_| Ok(Metrics::default()), |_, _| Ok(()), Ok)?;
    if done.interrupted {
        return Ok(ExitCode::from(130));
    }
    models::publish(&made, |to| {
        match has_adapter {
            true => model.save_adapter(to)?,
            false => model.save(to)?,
        }
        models::copy_tokenizer(folder, to)
    })?;
    finish(out, NAME, &job.settings, &done)?;
    println!("{} steps, {:.0} s; model, report and picture are in {}", done.steps, done.seconds, out.display());
    Ok(ExitCode::SUCCESS)
}

/// −Σ w log π(y_w) / Σ w |y_w|, nats a token, with the pairs' weights w, and beside it the share of tokens that are the
/// most likely ones and the mean entropy.
fn measured(
    model: &CausalLm,
    pairs: &Numbered,
    weights: Option<&[f64]>,
    numbers: &[usize],
) -> prefopt::Result<Measured> {
    const NAMES: [&str; 3] = ["mean_token_accuracy", "entropy", "logps/chosen"];
    let chosen = |&number: &usize| Ok::<_, prefopt::Error>(wide(pairs.pair(number)?.chosen));
    let chosen = numbers.iter().map(chosen).collect::<prefopt::Result<Vec<_>>>()?;
    let row = numbered::row(&pairs.prompts(numbers)?, &chosen, 1, model.device())?;
    let (logps, scores) = response_scores_of(model, &row)?;
    let tokens = chosen.iter().map(Vec::len).sum::<usize>() as f64;

    let means = [scores.hits.to_kind(Kind::Double), scores.entropy, logps.sums.detach()];
    let means = Tensor::f_stack(&means.map(|values| values.mean(Kind::Double)), 0)?;
    let means = NAMES.into_iter().zip(Vec::<f64>::try_from(means)?);
    let counts = Metrics::default().with("num_tokens", tokens).with("num_pairs", numbers.len() as f64);
    let metrics = means.fold(counts, |metrics, (name, mean)| metrics.with(name, mean));
    let (sum, weight) = match weights {
        None => (logps.sums.sum(Kind::Double), tokens),
        Some(weights) => {
            let own = gather(weights, numbers, (Kind::Double, model.device()))?;
            let weighted = |(&number, response): (&usize, &Vec<i64>)| weights[number] * response.len() as f64;
            ((logps.sums * own).sum(Kind::Double), numbers.iter().zip(&chosen).map(weighted).sum())
        }
    };
    Ok(Measured { loss: -sum / weight, weight, metrics })
}

/// Of a model's weights, with those of the adapter that is loaded on top.
pub fn digest(flags: &ModelFlags) -> Result<Digest> {
    let folders: Vec<&Path> = iter::once(flags.model.as_path()).chain(flags.adapter.as_deref()).collect();
    models::digest_of(&folders)
}

/// Whether a run with these very settings has left its model, and its report after it.
pub fn is_finished(out: &Path, made: &Path, settings: &Value) -> bool {
    let report = fs::read(out.join("report.json")).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    made.is_dir() && report.is_some_and(|report| report["settings"] == *settings)
}

/// The summary, which is printed too, the picture, and at the very end the report.
pub fn finish(out: &Path, name: &str, settings: &Value, done: &Done) -> Result<()> {
    println!("{}", picture::summary(out, name)?);
    let report = json!({
        "settings": settings, "steps": done.steps, "seconds": done.seconds, "evaluation": object(&done.metrics),
    });
    support::write(&out.join("report.json"), format!("{report:#}\n"))
}

/// Numbers by name; one that is not finite is `null`.
pub fn object(metrics: &Metrics) -> Map<String, Value> {
    metrics.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}
