//! The quick form: every command on the tiny world, by its own flags, and what each must leave.

use std::{
    ffi::OsString,
    fs, iter,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use prefopt::lm::{CausalLm, RewardModel};
use serde_json::Value;
use tch::{Device, Kind};

use crate::{flags::Cli, models, run::log, tiny::World};

/// By which the folder of an earlier quick run is known.
const MARK: &str = "made_by_quick";

const STEPS: usize = 4;
const PAIRS: &str = "--data @pairs.jsonl --held-out 0.2";

pub fn run(out: &Path) -> Result<ExitCode> {
    let begun = Instant::now();
    let quick = Quick { world: World::make(&fresh(out)?)? };
    quick.tuned()?;
    quick.rewards()?;
    quick.policies()?;
    quick.samples()?;
    println!("{:.1} s; all of it is in {}", begun.elapsed().as_secs_f64(), quick.world.path("").display());
    Ok(ExitCode::SUCCESS)
}

/// An empty folder below `out`: what is removed for it was made here.
fn fresh(out: &Path) -> Result<PathBuf> {
    let folder = out.join("quick");
    let mark = folder.join(MARK);
    if folder.exists() {
        ensure!(mark.exists(), "{} is there and is not of a quick run: it stays, give another --out", folder.display());
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    fs::write(&mark, "").with_context(|| format!("cannot write {}", mark.display()))?;
    Ok(folder)
}

struct Quick {
    world: World,
}

impl Quick {
    fn command(&self, line: &str) -> Result<()> {
        let begun = Instant::now();
        let words = iter::once(OsString::from("train")).chain(self.world.words(line));
        let command = Cli::try_parse_from(words)?.command.with_context(|| format!("no command in {line}"))?;
        let code = command.run().with_context(|| format!("train {line}"))?;
        ensure!(code == ExitCode::SUCCESS, "train {line} has ended with {code:?}");
        println!("{:4.1} s  train {line}", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// A run, and what every run leaves: in its folder, and log and settings in `logged`.
    fn train(&self, name: &str, flags: &str, out: &str, logged: &str) -> Result<()> {
        let steps = format!("--max-steps {STEPS} --eval-every 2 --learning-rate 1e-3");
        self.command(&format!("{name} {PAIRS} {steps} {flags} --out @{out}"))?;
        let pictures = ["png", "svg"].map(|form| format!("{name}.{form}"));
        for file in ["summary.txt", "report.json"].map(str::to_owned).iter().chain(&pictures) {
            self.has(&format!("{out}/{file}"))?;
        }
        self.has(&format!("{logged}/settings.json"))?;
        let losses = self.losses(logged)?;
        let all = losses.len() == STEPS && losses.iter().all(|loss| loss.is_finite());
        ensure!(all, "the losses of {logged} are {losses:?}, where {STEPS} finite ones should be");
        Ok(())
    }

    fn has(&self, name: &str) -> Result<()> {
        let path = self.world.path(name);
        let size = fs::metadata(&path).with_context(|| format!("there is no {}", path.display()))?.len();
        ensure!(size > 0, "{} is empty", path.display());
        Ok(())
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.world.path(name);
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Of each step.
    fn losses(&self, out: &str) -> Result<Vec<f64>> {
        let mut losses = Vec::new();
        for line in log::lines(&self.world.path(out).join("log.jsonl"))? {
            let line = line?;
            if line.is_step() {
                losses.extend(line.numbers().filter(|(name, _)| name == "loss").map(|(_, loss)| loss));
            }
        }
        Ok(losses)
    }

    fn tuned(&self) -> Result<()> {
        self.train("sft", "--model @model", "sft", "sft")?;
        CausalLm::load(&self.world.path("sft/model"), Device::Cpu, Kind::Float)?;
        let left = |name: &str| self.bytes(&format!("sft/{name}"));
        let before = [left("log.jsonl")?, left("model/model.safetensors")?];
        self.train("sft", "--model @model", "sft", "sft")?;
        ensure!(
            before == [left("log.jsonl")?, left("model/model.safetensors")?],
            "a finished run that is started again was trained again"
        );
        Ok(())
    }

    /// Whole models, and heads on one trunk.
    fn rewards(&self) -> Result<()> {
        let family = "--model @sft/model --members 3 --family bootstrap";
        self.train("reward", family, "rewards", "rewards/member-2.run")?;
        self.train("reward", &format!("{family} --shared-trunk"), "heads", "heads/member-0.run")?;
        for out in ["rewards", "heads"] {
            let mut members = 0;
            for folder in models::family(&[self.world.path(out)])? {
                members += RewardModel::load(&folder, Device::Cpu, Kind::Float)?.members();
            }
            ensure!(members == 3, "{out} has {members} reward models in place of 3");
        }
        self.command(&format!("score --model @sft/model {PAIRS} --rewards @rewards --cache @cache"))?;
        self.has("cache/scores-train.safetensors")?;
        self.has("cache/reference-train.safetensors")
    }

    /// On what `score` has kept, and an adapter on tokens of the chat template.
    fn policies(&self) -> Result<()> {
        let train = |loss: &str, flags: &str, out: &str| {
            let flags = format!("--model @sft/model --kl-prompts 2 --sample-length 8 --loss '{loss}' {flags}");
            self.train("policy", &flags, out, out)
        };
        let pessimistic = "e-dpo:minimum=hull + 0.01*forward-kl:estimator=own_responses";
        for (loss, rewards, out) in
            [("dpo", "", "dpo"), ("d-dpo", "--rewards @rewards", "d-dpo"), (pessimistic, "--rewards @rewards", "e-dpo")]
        {
            train(loss, &format!("{rewards} --cache @cache"), out)?;
            CausalLm::load(&self.world.path(out).join("model"), Device::Cpu, Kind::Float)?;
        }
        train("dpo", "--lora 4 --chat", "lora")?;
        let tuned = CausalLm::load(&self.world.path("sft/model"), Device::Cpu, Kind::Float)?;
        tuned.load_adapter(&self.world.path("lora/model"))?;
        Ok(())
    }

    fn samples(&self) -> Result<()> {
        let judged = "--model @dpo/model --rewards @rewards";
        self.command(&format!("sample {judged} --data @pairs.jsonl --limit 4 --max-new 8 --out @samples.jsonl"))?;
        let text = String::from_utf8(self.bytes("samples.jsonl")?)?;
        let lines = text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        ensure!(lines.len() == 4, "{} lines of samples in place of 4", lines.len());
        self.command(&format!("eval {judged} --reference @sft/model {PAIRS} --cache @cache --out @eval.json"))?;
        let report: Value = serde_json::from_slice(&self.bytes("eval.json")?)?;
        for part in ["family", "policy"] {
            ensure!(report.get(part).is_some_and(Value::is_object), "eval.json has no {part}: {report}");
        }
        Ok(())
    }
}
