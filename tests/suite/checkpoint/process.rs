//! Runs in processes of their own, which are killed or interrupted.

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use prefopt::{
    Result,
    tch::Kind,
    train::{Checkpoints, Flow, Interrupt, Observer},
};

use super::{Run, folder, names};

/// By which a process knows that it is a child, and where to run.
const FOLDER: &str = "PREFOPT_TEST_RUN";

/// This test as a process of its own.
fn spawn(test: &str, folder: &Path) -> Child {
    let mut again = Command::new(env::current_exe().expect("a test is a program"));
    again.args(["--exact", test]).env(FOLDER, folder).stdout(Stdio::null()).stderr(Stdio::null());
    again.spawn().expect("the same program starts again")
}

/// Waits until something holds, or the process has ended.
#[track_caller]
fn wait_until(child: &mut Child, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() && child.try_wait().expect("is ours").is_none() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

/// What a run of so many steps is after each.
fn straight(steps: u64) -> Result<Vec<Vec<Vec<u8>>>> {
    let (mut run, mut states) = (Run::new(Kind::Double)?, vec![]);
    for _ in 0..steps {
        run.step()?;
        states.push(run.bits());
    }
    Ok(states)
}

/// Goes on where the folder's run is.
fn begun(checkpoints: &mut Checkpoints) -> Result<Run> {
    match checkpoints.load_last()? {
        Some(loaded) => Run::resumed(Kind::Double, &loaded.checkpoint),
        None => Run::new(Kind::Double),
    }
}

/// Three times, at moments that are nobody's choice; whatever is there is whole, and the run ends as one that was never killed.
#[test]
fn killed_at_any_moment_it_loses_no_file() -> Result<()> {
    const STEPS: u64 = 24;
    if let Some(folder) = env::var_os(FOLDER) {
        let mut checkpoints = Checkpoints::open(folder)?;
        let mut run = begun(&mut checkpoints)?;
        for _ in run.trainer.descent().steps()..STEPS {
            run.step()?;
            checkpoints.save(&run.checkpoint()?)?;
        }
        return Ok(());
    }
    let (folder, expected) = (folder(), straight(STEPS)?);
    let whole = |name: &String| name.contains("-step-") && !name.ends_with(".partial");
    let newest = || names(folder.path()).into_iter().filter(whole).max();
    let test = "checkpoint::process::killed_at_any_moment_it_loses_no_file";
    for attempt in 1..=3 {
        let before = newest();
        let mut child = spawn(test, folder.path());
        wait_until(&mut child, || newest() > before);
        thread::sleep(Duration::from_micros(attempt * 1700));
        child.kill().expect("is ours");
        child.wait().expect("is ours");
        let loaded = Checkpoints::open(folder.path())?.load_last()?.expect("has saved one");
        assert!(loaded.skipped.is_empty(), "{:?}", loaded.skipped);
        let steps = loaded.checkpoint.steps();
        assert_eq!(
            Run::resumed(Kind::Double, &loaded.checkpoint)?.bits(),
            expected[steps as usize - 1],
            "step {steps}"
        );
    }
    assert!(spawn(test, folder.path()).wait().expect("is ours").success());
    let last = Checkpoints::open(folder.path())?.load_last()?.expect("has saved one").checkpoint;
    assert_eq!(last.steps(), STEPS);
    assert_eq!(Run::resumed(Kind::Double, &last)?.bits(), expected[STEPS as usize - 1]);
    assert_eq!(names(folder.path()).len(), 3, "two checkpoints and the file that names the last");
    Ok(())
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_step_and_saves() -> Result<()> {
    if let Some(folder) = env::var_os(FOLDER) {
        let mut interrupt = Interrupt::listen()?;
        let _second = Interrupt::listen()?;
        assert!(!interrupt.is_asked());
        let mut checkpoints = Checkpoints::open(&folder)?;
        let mut run = begun(&mut checkpoints)?;
        loop {
            let report = run.step()?;
            fs::write(Path::new(&folder).join("goes"), "").expect("a file of the test's");
            if interrupt.on_step(&report) == Flow::Stop {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        checkpoints.save(&run.checkpoint()?)?;
        interrupt.forget();
        assert!(!interrupt.is_asked());
        return Ok(());
    }
    let (folder, goes) = (folder(), "goes");
    let mut child = spawn("checkpoint::process::ctrl_c_finishes_the_step_and_saves", folder.path());
    wait_until(&mut child, || folder.path().join(goes).exists());
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(sent.expect("there is a shell").success());
    assert!(child.wait().expect("is ours").success(), "ends of itself");
    let checkpoint = Checkpoints::open(folder.path())?.load_last()?.expect("was saved").checkpoint;
    let steps = checkpoint.steps();
    assert_eq!(Run::resumed(Kind::Double, &checkpoint)?.bits(), straight(steps)?[steps as usize - 1]);
    Ok(())
}
