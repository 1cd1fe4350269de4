//! `reward`: reward models from preferences, one or a family, each a whole model or all of them heads on one trunk.

mod forward;

use std::{
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, ensure};
use prefopt::{
    data::{PairDataset, SpecialTokens},
    diagnostics::{FamilyReport, Metrics, Thresholds},
    lm::{ModelConfig, RewardModel},
    reward::BradleyTerry,
    train::RewardTrainer,
};
use serde::Serialize;
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::{
    columns::{self, BATCH_TOKENS},
    flags::{Family, RewardFlags, RunFlags},
    models,
    pairs::{self, Split},
    policy::numbered::Numbered,
    run::{Job, settings},
    score::{self, Verdict},
    sft, support,
};
use forward::Forward;

const NAME: &str = "reward";
/// Peak rate.
const RATE: f64 = 1e-4;
/// The least share of pairs in which the longer response wins, and the range of shares, in a family by length.
const LENGTH_SHARES: [f64; 2] = [0.2, 0.6];

pub fn run(flags: &RewardFlags) -> Result<ExitCode> {
    let (folder, out) = (flags.model.model.as_path(), flags.run.out.as_path());
    let members = flags.members.get();
    ensure!(
        flags.family != Family::Length || members > 1,
        "--family length has a member for each share of pairs in which the longer response wins: give --members 2 or more"
    );
    let objective = BradleyTerry::new(flags.centring).context("--centring")?;
    let runs = if flags.shared_trunk { 1 } else { members };
    let more = made(out, runs);
    ensure!(
        !more.exists(),
        "{} is there already, and belongs to a family of more models: give another --out, or delete it",
        more.display()
    );
    let split = pairs::read(&flags.data, flags.data.share(), folder, &models::config(folder)?)?;
    forward::check_margins(&Numbered::new(&split))?;
    let place = models::place(&flags.model, Some(&run_of(&made(out, 0))))?;
    if flags.family == Family::Bootstrap && members == 1 {
        eprintln!("one reward model alone learns from all pairs; of a family each has a resample of its own");
    }
    let work = Work { flags, split: &split, objective, place };
    for number in 0..runs {
        if !work.train(number)? {
            return Ok(ExitCode::from(130));
        }
    }
    work.judge(&(0..runs).map(|number| made(out, number)).collect::<Vec<_>>())?;
    println!("reward models are in {}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// The folder of a finished model.
fn made(out: &Path, number: usize) -> PathBuf {
    out.join(format!("member-{number}"))
}

/// That of its run, beside it.
fn run_of(made: &Path) -> PathBuf {
    made.with_extension("run")
}

/// Which of the pairs to train on a member learns from, as often as they are in it.
struct Resample {
    name: String,
    /// All once where there is none.
    pairs: Option<Vec<usize>>,
}

impl Resample {
    fn of(flags: &RewardFlags, member: usize, train: &PairDataset) -> Result<Self> {
        let (members, seed) = (flags.members.get(), seed(flags, member));
        if members == 1 || flags.family == Family::Seed {
            return Ok(Self { name: "all pairs".to_owned(), pairs: None });
        }
        if flags.family == Family::Bootstrap {
            return Ok(Self { name: "bootstrap".to_owned(), pairs: Some(train.bootstrap(seed)) });
        }
        let [least, range] = LENGTH_SHARES;
        let share = least + range * member as f64 / (members - 1) as f64;
        let pairs = train.where_longer_wins(share, seed).map_err(|error| anyhow!("--family length: {error}"))?;
        Ok(Self { name: format!("the longer response wins in a share of {share:.3}"), pairs: Some(pairs) })
    }

    /// What each pair counts for, with a mean of 1.
    fn weights(&self, pairs: usize) -> Vec<f64> {
        let Some(drawn) = &self.pairs else { return vec![1.0; pairs] };
        let (mut weights, each) = (vec![0.0; pairs], pairs as f64 / drawn.len() as f64);
        drawn.iter().for_each(|&pair| weights[pair] += each);
        weights
    }
}

/// Of no other member of any family: with sums those of `--seed 0` and of `--seed 1` would share all but one.
fn seed(flags: &RewardFlags, member: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&flags.run.seed.to_le_bytes()).update(&(member as u64).to_le_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

struct Work<'a> {
    flags: &'a RewardFlags,
    split: &'a Split,
    objective: BradleyTerry,
    place: (Device, Kind),
}

impl Work<'_> {
    /// A whole model, or the trunk with all heads; false where the run was interrupted.
    fn train(&self, number: usize) -> Result<bool> {
        let (flags, made) = (self.flags, made(&self.flags.run.out, number));
        let out = run_of(&made);
        let members = if flags.shared_trunk { 0..flags.members.get() } else { number..number + 1 };
        let resamples = members.map(|member| Resample::of(flags, member, &self.split.train));
        let resamples = resamples.collect::<Result<Vec<_>>>()?;

        let selected = match resamples.as_slice() {
            [Resample { pairs: Some(drawn), .. }] if !flags.shared_trunk => {
                let train = self.split.train.select(drawn).map_err(|error| anyhow!("{error}"))?;
                Some(Split { train, held_out: self.split.held_out.clone() })
            }
            _ => None,
        };
        let split = selected.as_ref().unwrap_or(self.split);
        let settings = self.settings(number, &resamples, split)?;
        if sft::is_finished(&out, &made, &settings) {
            eprintln!("{} is there and finished", made.display());
            return Ok(true);
        }
        settings::compare(&out, &settings, flags.run.schedule)?;
        self.begin()?;

        let run = RunFlags { out: out.clone(), seed: seed(flags, number), ..flags.run };
        let total = Job::total_steps(&run, &split.train)?;
        let model = self.model(&run)?;
        let descent = models::descent(model.parameters(), &run, self.place.1, RATE, total)?;
        let forward = Forward::new(&model, split, if flags.shared_trunk { &resamples } else { &[] });
        let mut trainer = RewardTrainer::new(self.objective, |numbers: &Vec<usize>| forward.batch(numbers), descent);
        let job = Job {
            name: NAME,
            flags: &run,
            settings,
            pairs: &split.train,
            held_out: split.held_out.as_ref(),
            model: model.parameters(),
            thresholds: Thresholds::default(),
        };
        let done = job.run(&mut trainer, |_| Ok(Metrics::default()), |_, _| Ok(()), Ok)?;
        if done.interrupted {
            return Ok(false);
        }
        models::publish(&made, |to| {
            model.save(to)?;
            models::copy_tokenizer(&flags.model.model, to)
        })?;
        println!("{}", made.display());
        sft::finish(&out, NAME, &job.settings, &done)?;
        Ok(true)
    }

    /// A family of which a member is trained is not finished.
    fn begin(&self) -> Result<()> {
        let report = self.flags.run.out.join(models::REPORT);
        match fs::remove_file(&report) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", report.display()))
            }
            _ => Ok(()),
        }
    }

    /// The number of members is none of a whole model's: a family may grow.
    fn settings(&self, number: usize, resamples: &[Resample], split: &Split) -> Result<Value> {
        let flags = self.flags;
        let mut settings = settings::of(NAME, flags, &flags.model, split)?;
        if !flags.shared_trunk {
            settings["members"] = Value::Null;
        }
        settings["member"] = Value::from(number);
        settings["learns_from"] = resamples.iter().map(|resample| resample.name.as_str()).collect();
        Ok(settings)
    }

    fn model(&self, run: &RunFlags) -> Result<RewardModel> {
        let flags = self.flags;
        let heads = if flags.shared_trunk { flags.members } else { NonZeroUsize::MIN };
        let trunk = models::load(&flags.model, Some(&flags.lora), run.seed, run.checkpointing)?;
        let model = RewardModel::on(trunk, heads, run.seed)?;
        Ok(match padding(&flags.model.model, model.config())? {
            Some(token) => model.with_padding(token)?,
            None => model.without_padding(),
        })
    }

    /// All members on the same pairs, those that none of them has seen.
    fn judge(&self, members: &[PathBuf]) -> Result<()> {
        #[derive(Serialize)]
        struct Judged {
            pairs: usize,
            #[serde(flatten)]
            report: FamilyReport,
        }
        let path = self.flags.run.out.join(models::REPORT);
        let Some(held_out) = &self.split.held_out else {
            eprintln!("no pairs are held out to judge the reward models by");
            return support::write(&path, format!("{:#}\n", json!({"pairs": 0})));
        };
        // The run's own: another start may find other members.
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let file = columns::file(scratch.path(), "scores", "held-out");
        let scores = columns::score_cache(&file, members, held_out, self.place, BATCH_TOKENS)?;
        let verdict = Verdict::of(&columns::rewards(&[&scores])?, held_out)?;
        let out = &self.flags.run.out;
        verdict.draw(&out.join(NAME))?;
        let report = verdict.report()?;
        let table = format!("{} pairs that are held out\n{}", held_out.len(), score::table(&report));
        support::write(&out.join("summary.txt"), format!("{table}\n"))?;
        let judged = serde_json::to_string_pretty(&Judged { pairs: held_out.len(), report })?;
        println!("{table}");
        support::write(&path, judged + "\n")
    }
}

/// The tokenizer's padding token, where no response ends with it.
fn padding(folder: &Path, config: &ModelConfig) -> Result<Option<i64>> {
    let special = SpecialTokens::from_folder(folder).map_err(|error| anyhow!("{error}"))?;
    let tokenizer = models::tokenizer(folder)?;
    let token = special.get("pad_token").and_then(|token| tokenizer.inner().token_to_id(token));
    let is_end = |token: u32| token == tokenizer.end() || config.end_tokens().contains(&i64::from(token));
    Ok(token.filter(|&token| !is_end(token)).map(i64::from))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: RewardFlags,
    }

    fn flags(words: &str) -> RewardFlags {
        let line = format!("reward --model m --data d --out o {words}");
        Line::parse_from(line.split_whitespace()).flags
    }

    /// Four pairs with the longer response chosen, two with the shorter one.
    fn pairs() -> Result<PairDataset> {
        let mut pairs = PairDataset::default();
        for token in 0..6 {
            let (longer, shorter) = ([7, token, 2], [8, 2]);
            if token < 4 { pairs.push(&[1], &longer, &shorter)? } else { pairs.push(&[1], &shorter, &longer)? }
        }
        Ok(pairs)
    }

    #[test]
    fn members_learn_from_resamples_of_their_own() -> Result<()> {
        let (pairs, family) = (pairs()?, flags("--members 3 --family length"));
        for (member, expected) in [0.2, 0.5, 0.8].into_iter().enumerate() {
            let weights = Resample::of(&family, member, &pairs)?.weights(6);
            assert!((weights.iter().sum::<f64>() - 6.0).abs() < 1e-12);
            let longer = weights[..4].iter().sum::<f64>() / 6.0;
            assert!((longer - expected).abs() <= 1.0 / 12.0 + 1e-12, "{longer} is not {expected}");
        }
        let bootstrap = flags("--members 2");
        let drawn = |member| -> Result<_> { Ok(Resample::of(&bootstrap, member, &pairs)?.pairs) };
        assert!(drawn(0)?.is_some() && drawn(0)? != drawn(1)?);
        assert_ne!(seed(&flags("--seed 0"), 1), seed(&flags("--seed 1"), 0));
        for alone in ["", "--members 2 --family seed"] {
            let resample = Resample::of(&flags(alone), 0, &pairs)?;
            assert_eq!((&resample.pairs, resample.weights(6)), (&None, vec![1.0; 6]));
        }
        Ok(())
    }
}
