//! `eval`: a policy against its reference, and reward models, on pairs that they were not trained on.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, RewardScores,
    data::{Cache, Column, PairDataset},
    diagnostics::{Metrics, batch_metrics},
    lm::CausalLm,
    pairs::UnpairedBatch,
    train::RunningMinimum,
};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    columns,
    flags::EvalFlags,
    loss::{LossSpec, Moving, Objective, Rewards, Transform},
    models, pairs, sample,
    score::{self, Verdict},
    sft::object,
    support::trial,
};

const HOST: (Kind, Device) = (Kind::Double, Device::Cpu);

pub fn run(flags: &EvalFlags) -> Result<ExitCode> {
    let (model, teachers) = (flags.model.model.as_path(), &flags.teachers);
    let members = models::family(&teachers.rewards)?;
    ensure!(
        flags.reference.is_some() || !members.is_empty(),
        "there is nothing to judge: --reference FOLDER judges the policy against it, --rewards FOLDER reward models"
    );
    if flags.reference.is_some() {
        is_measurable(&flags.loss)?;
    }
    let reads_scores = flags.loss.needs().rewards != Rewards::None;
    ensure!(
        !columns::are_scaled(teachers) || (reads_scores || !members.is_empty()) && flags.reference.is_some(),
        "--standardise and --reward-scale change the scores that the policy is judged by: give --rewards and --reference, or leave them out"
    );
    members.iter().chain(&flags.reference).try_for_each(|other| score::same_tokens(model, other))?;
    if let Some(out) = &flags.out {
        sample::room_for(out)?;
    }
    let held_out = flags.data.held_out.unwrap_or_default();
    let split = pairs::read(&flags.data, held_out, model, &models::config(model)?)?;
    let (part, pairs) = match &split.held_out {
        Some(held_out) => ("held-out", held_out),
        None => ("all", &split.train),
    };
    if flags.reference.is_some() {
        pairs::fit(pairs, &flags.loss)?;
    }
    let given = if reads_scores && members.is_empty() {
        Some(columns::given_rewards(&flags.loss, &[("judged", pairs)])?)
    } else {
        None
    };
    let place = models::place(&flags.model, None)?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = teachers.cache.clone().unwrap_or_else(|| scratch.path().to_owned());
    let judge = Judge { flags, part, pairs, place, folder };

    let mut report = Map::from_iter([("pairs".to_owned(), Value::from(pairs.len()))]);
    eprintln!("\n{} pairs", pairs.len());
    let scores = if members.is_empty() {
        given
    } else {
        let file = columns::file(&judge.folder, "scores", part);
        let cache = columns::score_cache(&file, &members, pairs, place, flags.batch_tokens)?;
        Some(columns::rewards(&[&cache])?)
    };
    if let Some(scores) = &scores {
        let family = Verdict::of(scores, pairs)?.report()?;
        eprintln!("\n{}", score::table(&family));
        report.insert("family".to_owned(), serde_json::to_value(&family)?);
    }
    if let Some(reference) = &flags.reference {
        if teachers.standardise {
            eprintln!("scores are divided by their deviation over these {} pairs", pairs.len());
        }
        let scores = scores.map(|scores| columns::scaled(scores, teachers)).transpose()?;
        let (loss, metrics) = judge.policy(reference, scores)?;
        let rows: Vec<Vec<String>> =
            metrics.iter().map(|(name, value)| vec![name.to_owned(), format!("{value:.4}")]).collect();
        eprintln!("\n{}", trial::table(&[&format!("loss {}", flags.loss), &format!("{loss:.4}")], &rows));
        report.insert("loss".to_owned(), json!({"name": flags.loss, "mean": loss}));
        report.insert("policy".to_owned(), Value::Object(object(&metrics)));
    }
    sample::deliver(flags.out.as_deref(), &format!("{:#}\n", Value::Object(report)))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what log-probabilities of the pairs, and scores, do not tell.
fn is_measurable(spec: &LossSpec) -> Result<()> {
    let needs = spec.needs();
    let reads = [
        (needs.reference_samples, "samples of the reference"),
        (needs.policy_samples, "samples of the policy"),
        (needs.student_scores, "a reward head of the policy's own"),
        (needs.policy_weights, "weights from all next-token distributions"),
        (needs.mismatched, "responses to other prompts"),
    ];
    if let Some((_, what)) = reads.iter().find(|(is_read, _)| *is_read) {
        bail!(
            "--loss {spec} reads {what}, which `eval` does not compute: `policy` logs it on held-out pairs as eval_loss"
        );
    }
    Ok(())
}

/// What the policy is judged on.
struct Judge<'a> {
    flags: &'a EvalFlags,
    part: &'static str,
    pairs: &'a PairDataset,
    place: (Device, Kind),
    /// Of the caches.
    folder: PathBuf,
}

impl Judge<'_> {
    /// The loss of all pairs together, so that one that couples them sees them all, and TRL's metrics and more: of sums over tokens and
    /// against the reference, whatever the loss reads.
    fn policy(&self, reference: &Path, scores: Option<RewardScores>) -> Result<(f64, Metrics)> {
        let (spec, pairs, most) = (&self.flags.loss, self.pairs, self.flags.batch_tokens);
        // What is refused comes before what takes long.
        let of_loss = scores.as_ref().map(|scores| columns::as_the_loss_wants(spec, scores.detached())).transpose()?;
        let tail = spec.needs().tail_weight;
        let own = {
            let model = models::load(&self.flags.model, None, 0, false)?;
            let pass = if tail.is_some() { columns::shared_logps } else { columns::logps };
            pass(&model, pairs, most)?
        };
        let load = || -> Result<CausalLm> { Ok(CausalLm::load(reference, self.place.0, self.place.1)?) };
        let frozen = match tail {
            Some(_) => columns::shared_logps(&load()?, pairs, most)?,
            None => {
                let file = columns::file(&self.folder, "reference", self.part);
                columns::reference_cache(&file, reference, pairs, self.place.1, load, most)?
            }
        };

        let batch = |of_tail: Option<f64>| -> Result<PreferenceBatch> {
            let ([chosen, rejected], [ref_chosen, ref_rejected]) = (sums(&own, of_tail)?, sums(&frozen, of_tail)?);
            let batch = PreferenceBatch::new(PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?);
            let labels = Tensor::from_slice(pairs.labels());
            let batch = batch.with_lengths(lengths(pairs)?)?.with_soft_labels(labels)?;
            match pairs.column(Column::Weight) {
                Ok(weights) => Ok(batch.with_weights(Tensor::from_slice(weights))?),
                Err(_) => Ok(batch),
            }
        };
        let with_rewards = |batch: PreferenceBatch, scores: Option<RewardScores>| match scores {
            Some(scores) => batch.with_rewards(scores),
            None => Ok(batch),
        };
        let judged = with_rewards(batch(tail)?, of_loss)?;
        let judged = match spec.transform() {
            Transform::PerToken => {
                let lengths = lengths(pairs)?;
                judged.map_logps(|logps| logps.per_token(&lengths))?
            }
            Transform::ReferenceFree => judged.map_logps(|logps| Ok(logps.reference_free()))?,
            Transform::None | Transform::LengthDesensitised(_) => judged,
        };
        let whole = with_rewards(batch(None)?, scores)?;
        let metrics = batch_metrics(&whole, spec.beta())?.and(log_ratio(&whole, pairs)?);
        Ok((loss(spec, &judged)?, metrics))
    }
}

/// log π of both responses, `[pairs]` each, nats; with a weight for what is longer than the other response as LD-DPO sums it.
fn sums(cache: &Cache, tail: Option<f64>) -> Result<[Tensor; 2]> {
    let side = |whole: &str, shared: &str| -> Result<Tensor> {
        let whole = columns::column(&[cache], whole, HOST)?;
        match tail {
            Some(weight) => Ok(columns::column(&[cache], shared, HOST)? * (1.0 - weight) + whole * weight),
            None => Ok(whole),
        }
    };
    Ok([side("chosen", "chosen_shared")?, side("rejected", "rejected_shared")?])
}

fn lengths(pairs: &PairDataset) -> Result<ResponseLengths> {
    let (chosen, rejected): (Vec<i64>, Vec<i64>) =
        pairs.iter().map(|pair| (pair.chosen.len() as i64, pair.rejected.len() as i64)).unzip();
    Ok(ResponseLengths::new(Tensor::from_slice(&chosen), Tensor::from_slice(&rejected))?)
}

/// log π − log π_ref, averaged over all responses, nats, and over all their tokens, nats a token.
fn log_ratio(batch: &PreferenceBatch, pairs: &PairDataset) -> Result<Metrics> {
    let logps = batch.logps();
    let sum = (logps.chosen_log_ratio() + logps.rejected_log_ratio()).sum(Kind::Double).f_double_value(&[])?;
    let tokens: usize = pairs.iter().map(|pair| pair.chosen.len() + pair.rejected.len()).sum();
    let responses = 2.0 * pairs.len() as f64;
    Ok(Metrics::default().with("log_ratio/response", sum / responses).with("log_ratio/token", sum / tokens as f64))
}

/// What moves in a run is settled by all pairs: the member of the minimum, BCO's shift.
fn loss(spec: &LossSpec, batch: &PreferenceBatch) -> Result<f64> {
    let paired = match spec.moving() {
        Some(Moving::DatasetMinimum) => {
            let distillation = spec.pessimistic()?.context("a minimum over the data set is of a family's losses")?;
            let mut minimum = RunningMinimum::new();
            minimum.observe(&distillation, batch)?;
            spec.with_member(minimum.member()?)?
        }
        Some(Moving::RewardShift) => {
            let bco = spec.bco()?.context("a running shift is BCO's")?;
            spec.with_shift(bco.mean_reward(batch)?)?
        }
        None => match spec.objective()? {
            Objective::Paired(loss) => loss,
            Objective::Unpaired(loss) => {
                return Ok(loss.mean(&UnpairedBatch::of_pairs(batch.logps()))?.f_double_value(&[])?);
            }
            Objective::SelfPlay(_) => bail!("--loss {spec} reads samples of the policy, which `eval` does not draw"),
        },
    };
    Ok(paired.mean(batch)?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use ndarray::Array1;

    use super::*;

    fn refusal(spec: &str) -> Result<Option<String>> {
        Ok(is_measurable(&spec.parse()?).err().map(|error| error.to_string()))
    }

    #[test]
    fn what_cannot_be_measured_is_refused() -> Result<()> {
        assert_eq!(refusal("dpo")?, None);
        assert!(refusal("kto")?.is_some_and(|error| error.contains("responses to other prompts")));
        assert_eq!(refusal("d-dpo")?, None);
        let mut scoreless = PairDataset::default();
        scoreless.push(&[1], &[5], &[7])?;
        let given = columns::given_rewards(&"d-dpo".parse()?, &[("judged", &scoreless)]);
        assert!(given.is_err_and(|error| error.to_string().contains("--rewards")));
        Ok(())
    }

    #[test]
    fn the_tail_counts_by_its_weight() -> Result<()> {
        let column = |values: [f64; 2]| Array1::from(values.to_vec());
        let cache = Cache::default()
            .with("chosen", column([-3.0, -4.0]))?
            .with("rejected", column([-5.0, -2.0]))?
            .with("chosen_shared", column([-1.0, -4.0]))?
            .with("rejected_shared", column([-5.0, -1.0]))?;
        let numbers = |tail| -> Result<[Vec<f64>; 2]> {
            let [chosen, rejected] = sums(&cache, tail)?;
            Ok([Vec::try_from(chosen)?, Vec::try_from(rejected)?])
        };
        assert_eq!(numbers(None)?, [[-3.0, -4.0], [-5.0, -2.0]]);
        assert_eq!(numbers(Some(0.5))?, [[-2.0, -4.0], [-5.0, -1.5]]);
        Ok(())
    }

    /// Two pairs, of which the second policy response has gained a nat and the first rejected one has lost two.
    #[test]
    fn log_ratios_are_averaged_over_responses_and_tokens() -> Result<()> {
        let mut pairs = PairDataset::default();
        pairs.push(&[1], &[5, 6], &[7])?;
        pairs.push(&[1], &[5], &[7])?;
        let column = |values: [f64; 2]| Tensor::from_slice(&values);
        let logps =
            PairLogps::new(column([-4.0, -2.0]), column([-5.0, -3.0]), column([-4.0, -3.0]), column([-3.0, -3.0]))?;
        let measured = log_ratio(&PreferenceBatch::new(logps), &pairs)?;
        assert_eq!(measured.get("log_ratio/response"), Some(-0.25));
        assert_eq!(measured.get("log_ratio/token"), Some(-0.2));
        Ok(())
    }
}
