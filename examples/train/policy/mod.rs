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
    path::Path,
    process::ExitCode,
    rc::Rc,
};

use anyhow::Result;
use prefopt::{
    PreferenceLoss,
    diagnostics::Metrics,
    lm::ModelConfig,
    loss::{Gpo, UnpairedLoss},
    train::{Descent, PolicyTrainer, RunningMean, StepReport, Trainer},
};
use tch::{Device, Kind};

use crate::{
    flags::PolicyFlags,
    loss::{Needs, Objective, Transform},
    models, pairs,
    run::{Done, Job},
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
    let (model, out) = (flags.model.model.as_path(), flags.run.out.as_path());
    let config = ModelConfig::read(model)?;
    if let Some(reference) = &flags.reference {
        score::same_tokens(model, reference)?;
    }
    let split = pairs::read(&flags.data, model, &config)?;
    let total = Job::total_steps(&flags.run, &split.train)?;
    let settings = sft::settings(flags, &flags.model, &split.train, split.held_out.as_ref())?;
    let made = out.join("model");
    if sft::is_finished(out, &made, &settings) {
        eprintln!("{NAME}: the run in {} is finished, {total} steps", out.display());
        return Ok(ExitCode::SUCCESS);
    }

    let place = models::place(&flags.model)?;
    let (numbered, draw) = (Numbered::new(&split), Draw::new(flags, &config)?);
    let folder = flags.teachers.cache.clone().unwrap_or_else(|| out.join("cache"));
    let source = Source { flags, needs, place, pairs: &numbered, folder: &folder };
    let mut frozen = Frozen::new(flags, place);
    let task = match objective {
        Objective::Paired(loss) => Task::Paired(loss, source.columns(&mut frozen, &draw)?),
        Objective::Unpaired(loss) => Task::Unpaired(loss, source.columns(&mut frozen, &draw)?),
        Objective::SelfPlay(loss) => Task::SelfPlay(loss, Judges::load(flags, place)?),
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
    };
    let setting = Setting { flags, policy, pairs: numbered, draw, live, steps: Cell::new(0) };
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
            drive(job, trainer, setting, &memory, place)
        }
        Task::Unpaired(loss, beside) => {
            let forward = Forward { setting, beside: &beside, needs, transform };
            let (baseline, memory) = baseline(setting, needs)?;
            let unpaired = Unpaired { forward, loss, baseline, beta };
            let trainer = FromLoss::new(descent, |indices: &[usize]| unpaired.measured(indices));
            drive(job, trainer, setting, &memory, place)
        }
        Task::SelfPlay(loss, judges) => {
            let game = SelfPlay { setting, loss, judges };
            let trainer = FromLoss::new(descent, |indices: &[usize]| game.measured(indices));
            drive(job, trainer, setting, &Memory::Nothing, place)
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

fn drive<T: Steps>(job: &Job, trainer: T, setting: &Setting, memory: &Memory, place: (Device, Kind)) -> Result<Done> {
    let prompts = measure::prompts(setting.pairs.judged(), setting.flags.kl_prompts);
    job.run(
        &mut Counted { trainer, steps: &setting.steps },
        |_| measure::divergence(setting, &prompts, place),
        |checkpoint| memory.resumed(checkpoint, setting.device()),
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

    fn evaluate(&self, batch: &Vec<usize>) -> prefopt::Result<Metrics> {
        self.steps.set(self.trainer.descent().steps());
        self.trainer.evaluate(batch)
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
