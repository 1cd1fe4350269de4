//! `policy`: a model tuned on pairs, by any loss.

mod beside;
mod forward;
mod measure;
mod memory;
pub mod numbered;
mod reference;
mod samples;
mod self_play;
mod student;
mod tokens;
mod unpaired;

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
};

use anyhow::{Result, ensure};
use prefopt::{
    PreferenceLoss,
    diagnostics::{AlarmKind, Metrics, Thresholds},
    loss::{Gpo, UnpairedLoss},
    train::{Checkpoint, Descent, PolicyTrainer, RunningMean, StepReport, Trainer},
};
use serde_json::Value;
use tch::{Device, Kind};

use crate::{
    flags::PolicyFlags,
    loss::{Needs, Objective, Transform},
    models, pairs,
    run::{Done, Job, settings},
    score, sft,
    trainers::{FromLoss, Steps},
};
use beside::{Beside, Source};
use forward::{Forward, Policy, Setting};
use memory::Memory;
use numbered::Numbered;
use reference::Frozen;
use samples::Draw;
use self_play::{Judges, SelfPlay};
use student::Student;
use unpaired::{Baseline, Unpaired};

const NAME: &str = "policy";
/// Peak rates of all weights and of an adapter.
const RATE: f64 = 1e-6;
const ADAPTER_RATE: f64 = 1e-4;
/// What one further batch leaves of KTO's running baseline: a mean of about ten.
const RETENTION: f64 = 0.9;

/// An objective with what it reads besides the policy.
enum Task {
    Paired(Box<dyn PreferenceLoss>, Beside),
    Unpaired(Box<dyn UnpairedLoss>, Beside),
    SelfPlay(Gpo, Judges),
}

pub fn run(flags: &PolicyFlags) -> Result<ExitCode> {
    let (objective, needs) = (flags.loss.objective()?, flags.loss.needs());
    ensure!(
        !flags.loss.ranks() || flags.run.accumulate.get() == 1,
        "--loss {} couples all pairs of a step by their ranks, and takes them in one part: leave --accumulate out",
        flags.loss
    );
    let (model, out) = (flags.model.model.as_path(), flags.run.out.as_path());
    let config = models::config(model)?;
    let members = models::family(&flags.teachers.rewards)?;
    members.iter().chain(&flags.reference).try_for_each(|other| score::same_tokens(model, other))?;
    let split = pairs::read(&flags.data, flags.data.share(), model, &config)?;
    pairs::fit(&split.train, &flags.loss)?;
    let total = Job::total_steps(&flags.run, &split.train)?;
    let place = models::place(&flags.model, Some(out))?;
    let mut settings = settings::of(NAME, flags, &flags.model, &split)?;
    let [reference, rewards] = teachers(flags, &members)?;
    let from_reference = reference.as_ref().is_none_or(|reference| settings["digest_of_model"] == *reference);
    settings["digest_of_reference"] = Value::from(reference);
    settings["digest_of_rewards"] = Value::from(rewards);
    let made = out.join("model");
    if sft::is_finished(out, &made, &settings) {
        eprintln!("{NAME}: the run in {} is finished, {total} steps", out.display());
        return Ok(ExitCode::SUCCESS);
    }
    settings::compare(out, &settings, flags.run.schedule)?;

    let (numbered, draw) = (Numbered::new(&split), Draw::new(flags, &config)?);
    let folder = flags.teachers.cache.clone().unwrap_or_else(|| out.join("cache"));
    let source = Source { flags, needs, place, pairs: &numbered, members: &members, folder: &folder };
    let mut frozen = Frozen::new(flags, place);
    let task = match objective {
        Objective::Paired(loss) => Task::Paired(loss, source.columns(&mut frozen, &draw)?),
        Objective::Unpaired(loss) => Task::Unpaired(loss, source.columns(&mut frozen, &draw)?),
        Objective::SelfPlay(loss) => Task::SelfPlay(loss, Judges::load(flags, &members, &numbered, place)?),
    };
    let sampled = needs.reference && needs.policy_samples;
    let live = frozen.live(sampled.then_some("its log-probabilities of what the policy samples"))?;

    let model = models::load(&flags.model, Some(&flags.lora), flags.run.seed, flags.run.checkpointing)?;
    let student = needs.student_scores.then(|| Student::new(&model));
    let policy = Policy { model, student };
    let rate = if has_adapter(flags) { ADAPTER_RATE } else { RATE };
    let descent = models::descent(policy.parameters(), &flags.run, place.1, rate, total)?;
    let job = Job {
        name: NAME,
        flags: &flags.run,
        settings,
        pairs: &split.train,
        held_out: split.held_out.as_ref(),
        model: policy.parameters(),
        thresholds: thresholds(from_reference, place.1)?,
    };
    let setting = Setting { flags, policy, pairs: numbered, draw, live, from_reference, steps: Cell::new(0) };
    tell(flags, needs, &task);
    let done = train(&job, &setting, task, descent, place)?;
    if done.interrupted {
        return Ok(ExitCode::from(130));
    }
    models::publish(&made, |to| export(&setting, to))?;
    sft::finish(out, NAME, &job.settings, &done)?;
    println!("{} steps, {:.0} s; model, report and picture are in {}", done.steps, done.seconds, out.display());
    Ok(ExitCode::SUCCESS)
}

/// Digests of the folders of the reference and of the reward models, where there are some.
fn teachers(flags: &PolicyFlags, members: &[PathBuf]) -> Result<[Option<String>; 2]> {
    let digest = |folders: &[&Path]| -> Result<Option<String>> {
        if folders.is_empty() { Ok(None) } else { Ok(Some(models::digest_of(folders)?.to_string())) }
    };
    let [reference, members] = [flags.reference.as_slice(), members].map(|folders| {
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        digest(&folders)
    });
    Ok([reference?, members?])
}

/// A policy that starts elsewhere differs from its reference from the first step on.
fn thresholds(from_reference: bool, weights: Kind) -> Result<Thresholds> {
    const MISMATCH: AlarmKind = AlarmKind::ReferenceMismatch;
    let thresholds = Thresholds::default();
    Ok(match (from_reference, weights) {
        (false, _) => thresholds.without(MISMATCH),
        // What bf16 loses between two ways to the same log-probability.
        (true, Kind::BFloat16) => thresholds.with(MISMATCH, 0.01, 1)?,
        (true, _) => thresholds,
    })
}

fn has_adapter(flags: &PolicyFlags) -> bool {
    flags.lora.lora.is_some() || flags.model.adapter.is_some()
}

/// What the flags do not say and a reader of the numbers should know.
fn tell(flags: &PolicyFlags, needs: Needs, task: &Task) {
    match flags.loss.transform() {
        Transform::None | Transform::ReferenceFree => {}
        Transform::PerToken => {
            eprintln!("rewards and log-probabilities in the metrics are means over tokens, as in the loss");
        }
        Transform::LengthDesensitised(_) => {
            eprintln!("rewards and log-probabilities in the metrics are length-desensitised, as in the loss");
        }
    }
    if needs.student_scores {
        eprintln!(
            "the reward head starts at 0, takes a second pass through the model, and is kept beside it as student_head.safetensors"
        );
    }
    if let Task::Unpaired(_, Beside { weights: Some(_), .. }) = task {
        eprintln!("--loss {} is of single responses: the pairs' weights are not read", flags.loss);
    }
}

fn train(job: &Job, setting: &Setting, task: Task, descent: Descent, place: (Device, Kind)) -> Result<Done> {
    let spec = &setting.flags.loss;
    let (needs, transform, beta) = (spec.needs(), spec.transform(), spec.beta());
    match task {
        Task::Paired(loss, beside) => {
            let forward = Forward { setting, beside: &beside, needs, transform };
            let trainer = PolicyTrainer::new(loss, |indices: &Vec<usize>| forward.batch(indices), descent, beta)?;
            let (trainer, memory) = Memory::of(trainer, spec)?;
            drive(job, trainer, setting, &memory, place, |trainer, checkpoint| {
                memory.resumed(checkpoint, setting.device())?;
                if let Some(loss) = memory.loss(spec)? {
                    *trainer.loss_mut() = loss;
                }
                Ok(())
            })
        }
        Task::Unpaired(loss, beside) => {
            let forward = Forward { setting, beside: &beside, needs, transform };
            let (baseline, memory) = baseline(setting, needs)?;
            let unpaired = Unpaired { forward, loss, baseline, beta };
            let trainer = FromLoss::new(descent, |indices: &[usize]| unpaired.measured(indices));
            drive(job, trainer, setting, &memory, place, |_, checkpoint| memory.resumed(checkpoint, setting.device()))
        }
        Task::SelfPlay(loss, judges) => {
            let game = SelfPlay { setting, loss, judges };
            let trainer = FromLoss::new(descent, |indices: &[usize]| game.measured(indices));
            drive(job, trainer, setting, &Memory::Nothing, place, |_, _| Ok(()))
        }
    }
}

/// KTO's: responses to other prompts need a reference at hand, which costs nothing where it is the policy without its
/// adapter.
fn baseline<'a>(setting: &'a Setting, needs: Needs) -> Result<(Baseline<'a>, Memory)> {
    if !needs.mismatched {
        return Ok((Baseline::None, Memory::Nothing));
    }
    if let Some(live) = &setting.live {
        return Ok((Baseline::Mismatched(live), Memory::Nothing));
    }
    eprintln!(
        "--loss {}: a baseline from mismatched responses needs the reference at every step, a second model here; in its place stands a running mean of the pairs' own log-ratios, 0 where that is negative (--lora gives the mismatched one, baseline=0 none)",
        setting.flags.loss
    );
    let mean = Rc::new(RefCell::new(RunningMean::new().with_retention(RETENTION)?));
    Ok((Baseline::Running(Rc::clone(&mean)), Memory::Mean(mean)))
}

fn drive<T: Steps>(
    job: &Job,
    trainer: T,
    setting: &Setting,
    memory: &Memory,
    place: (Device, Kind),
    resumed: impl Fn(&mut T, &Checkpoint) -> Result<()>,
) -> Result<Done> {
    let prompts = measure::prompts(setting.pairs.judged(), setting.flags.kl_prompts);
    job.run(
        &mut Counted { trainer, steps: &setting.steps },
        |step| measure::divergence(setting, step, &prompts, place),
        |counted, checkpoint| resumed(&mut counted.trainer, checkpoint),
        |checkpoint| memory.saving(checkpoint),
    )
}

/// A trainer that says how many steps there were, by which samples are seeded: a run that goes on draws what it would
/// have drawn.
struct Counted<'a, T> {
    trainer: T,
    steps: &'a Cell<u64>,
}

impl<T: Steps> Trainer for Counted<'_, T> {
    type Batch = Vec<usize>;

    fn step_over(&mut self, parts: &[Vec<usize>]) -> prefopt::Result<StepReport> {
        self.steps.set(self.trainer.descent().steps());
        self.trainer.step_over(parts)
    }

    fn evaluate_over(&self, parts: &[Vec<usize>]) -> prefopt::Result<Metrics> {
        self.steps.set(self.trainer.descent().steps());
        self.trainer.evaluate_over(parts)
    }
}

impl<T: Steps> Steps for Counted<'_, T> {
    fn descent(&self) -> &Descent {
        self.trainer.descent()
    }

    fn descent_mut(&mut self) -> &mut Descent {
        self.trainer.descent_mut()
    }
}

/// The model, or its adapter, and what belongs to it.
fn export(setting: &Setting, to: &Path) -> Result<()> {
    let Setting { flags, policy, .. } = setting;
    match has_adapter(flags) {
        true => policy.model.save_adapter(to)?,
        false => policy.model.save(to)?,
    }
    if let Some(student) = &policy.student {
        student.save(to)?;
    }
    models::copy_tokenizer(&flags.model.model, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_with_the_reference_is_none_elsewhere() -> Result<()> {
        let limit = |from_reference, kind| -> Result<Option<f64>> {
            Ok(thresholds(from_reference, kind)?.get(AlarmKind::ReferenceMismatch).map(|limit| limit.threshold()))
        };
        assert_eq!(limit(true, Kind::Float)?, Some(1e-3));
        // Also where only an adapter in f32 is trained.
        assert_eq!(limit(true, Kind::BFloat16)?, Some(1e-2));
        assert_eq!(limit(false, Kind::Float)?, None);
        Ok(())
    }
}
