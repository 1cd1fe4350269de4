//! Runs that are interrupted or killed, and started again: each is the run that was not.

use std::{
    fs,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use super::{Ended, Scene, WEIGHTS, wrong::half_written};

/// Of steps that take some milliseconds.
const STEPS: usize = 120;
const SFT: &str = "sft --model @model --data @pairs.jsonl";
const POLICY: &str = "policy --model @model --data @pairs.jsonl --kl-prompts 2 --sample-length 6";

/// Logs and models in the folder of a command, of which the last is interrupted.
type Parts = &'static [(&'static str, &'static str)];
const ONE: Parts = &[("", "model")];
const FAMILY: Parts = &[("member-0.run", "member-0"), ("member-1.run", "member-1")];

/// A run that is long enough to be hit, with its folder.
fn run(command: &str, out: &str) -> String {
    let often = "--save-every 5 --eval-every 40 --learning-rate 1e-3";
    format!("{command} --held-out 0.2 --batch 2 --max-steps {STEPS} {often} --out @{out}")
}

/// Waits until something holds, or the process has ended.
#[track_caller]
fn wait_until(child: &mut Child, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() && child.try_wait().expect("is ours").is_none() {
        assert!(begin.elapsed() < Duration::from_secs(120), "it does not come");
        thread::sleep(Duration::from_micros(200));
    }
}

impl Scene {
    /// Lines of the log so far.
    fn lines(&self, out: &str) -> usize {
        let log = fs::read(self.path(out).join("log.jsonl")).unwrap_or_default();
        log.iter().filter(|&&byte| byte == b'\n').count()
    }

    /// How often the run has saved: its checkpoints are numbered on, also by the process that goes on.
    fn saves(&self, out: &str) -> usize {
        let entries = fs::read_dir(self.path(out).join("checkpoints")).expect("has saved");
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.split_once("-step-")?.0.parse().ok();
        entries.filter_map(|entry| number(entry.expect("can be read"))).max().unwrap_or_default()
    }
}

#[track_caller]
fn interrupted(scene: &Scene, command: &str, parts: Parts) {
    scene.succeeds(&run(command, "straight"));
    let line = run(command, "run");
    let (last, model) = parts[parts.len() - 1];
    let [last, straight] = ["run", "straight"].map(|out| format!("{out}/{last}"));
    let same = || {
        for (log, model) in parts {
            let [found, expected] = ["run", "straight"].map(|out| scene.log(&format!("{out}/{log}")));
            assert_eq!(found, expected, "log of {model}");
            let [found, expected] = ["run", "straight"].map(|out| scene.bytes(&format!("{out}/{model}/{WEIGHTS}")));
            assert!(found == expected, "weights of {model}");
        }
    };

    let mut child = scene.start(&line);
    wait_until(&mut child, || scene.lines(&last) >= 30);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("there is kill").success());
    let ended: Ended = child.wait_with_output().expect("is ours").into();
    assert_eq!(ended.code, Some(130), "{}", ended.said());
    assert!(ended.err.contains("started again, goes on from there"), "{}", ended.said());
    assert!(!scene.path("run").join(model).exists() && scene.lines(&last) < STEPS);

    scene.succeeds(&line);
    same();
    // Begun anew it would have saved six times more.
    assert!(scene.saves(&last) <= scene.saves(&straight) + 1, "it goes on from where it was");

    let left = || (scene.bytes(&format!("{last}/log.jsonl")), scene.saves(&last));
    let before = left();
    scene.succeeds(&line);
    assert!(before == left(), "a finished run is not trained again");
    same();
}

#[test]
fn ctrl_c_in_fine_tuning() {
    interrupted(&Scene::new(), SFT, ONE);
}

#[test]
fn ctrl_c_in_the_second_of_a_family() {
    interrupted(&Scene::new(), "reward --model @model --data @pairs.jsonl --members 2", FAMILY);
}

#[test]
fn ctrl_c_in_a_policy_with_a_running_mean() {
    interrupted(&Scene::new(), &format!("{POLICY} --loss bco:shift=running"), ONE);
}

/// From a checkpoint of between two evaluations, after which one is due by other flags.
#[test]
fn a_run_that_goes_on_evaluates_by_what_it_remembers() {
    let scene = Scene::new();
    let run = |steps: usize, every: usize, out: &str| {
        let often = format!("--save-every 1 --eval-every {every} --learning-rate 1e-3 --held-out 0.2");
        scene.succeeds(&format!("{POLICY} --loss bco:shift=running --max-steps {steps} {often} --out @{out}"));
    };
    run(4, 2, "straight");
    run(3, 9, "run");
    fs::remove_dir_all(scene.path("run/checkpoints/000003-step-3")).expect("was saved last");
    run(4, 2, "run");
    scene.same("run", "straight");
    // Once more with what was measured, lest a further start measure it again.
    assert_eq!(scene.saves("run"), scene.saves("straight") + 1);
}

/// The best reward model so far is remembered.
#[test]
fn ctrl_c_in_a_policy_with_a_running_minimum() {
    let scene = Scene::new();
    let rewards = "reward --model @model --data @pairs.jsonl --held-out 0.2 --members 2 --max-steps 4";
    scene.succeeds(&format!("{rewards} --out @rewards"));
    interrupted(&scene, &format!("{POLICY} --loss e-dpo:minimum=dataset --rewards @rewards"), ONE);
}

/// One moment after the other, in one run: each process goes on with what the one before has left.
#[track_caller]
fn killed(command: &str) {
    let scene = Scene::new();
    scene.succeeds(&run(command, "straight"));
    let line = run(command, "run");
    let saving = || !half_written(&scene.path("run/checkpoints")).is_empty();
    let moments: [&dyn Fn() -> bool; 9] = [
        &|| true,
        &|| scene.path("run").exists(),
        &|| scene.path("run/settings.json").exists(),
        &|| scene.lines("run") > 0,
        &saving,
        &|| scene.lines("run") >= STEPS / 2,
        &saving,
        &|| scene.lines("run") >= STEPS && !half_written(&scene.path("run")).is_empty(),
        &|| scene.path("run/model").exists(),
    ];
    for (moment, holds) in moments.into_iter().enumerate() {
        let mut child = scene.start(&line);
        wait_until(&mut child, holds);
        child.kill().expect("is ours");
        let ended: Ended = child.wait_with_output().expect("is ours").into();
        // By the signal, or at its end.
        assert!(matches!(ended.code, None | Some(0)), "moment {moment}: {}", ended.said());
        if scene.path("run/model").exists() {
            assert!(scene.weights("run") == scene.weights("straight"), "moment {moment}: a model that is not whole");
        }
    }
    scene.succeeds(&line);
    scene.same("run", "straight");
    assert!(half_written(&scene.path("run")).is_empty(), "{:?}", half_written(&scene.path("run")));
    for name in ["summary.txt", "report.json"] {
        assert!(scene.path("run").join(name).exists(), "{name}");
    }
}

#[test]
fn killed_at_any_moment_in_fine_tuning() {
    killed(SFT);
}

#[test]
fn killed_at_any_moment_in_a_policy() {
    killed(&format!("{POLICY} --loss bco:shift=running"));
}
