//! `cargo xtask test`: every check CI runs, in the order in which they fail fastest.

use std::fs;
use std::io;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::process;
use crate::setup;
use crate::workspace::{Library, Workspace};

/// Of a file in the published package.
const LARGEST_FILE: u64 = 4_000_000;

const DOWNSTREAM: &str = "tests/downstream/Cargo.toml";

struct Checks {
    workspace: Workspace,
    library: Library,
}

type Step = (&'static str, fn(&Checks) -> Result<()>);

const STEPS: [Step; 7] = [
    ("format", Checks::format),
    ("clippy", Checks::clippy),
    ("docs, without libtorch", Checks::docs),
    ("tests and doc-tests", Checks::tests),
    ("a downstream crate", Checks::downstream),
    ("examples in quick form", Checks::examples),
    ("size of the package's files", Checks::package),
];

/// Runs the steps, stops at the first that fails and tells how to repeat it, and closes with their count.
pub fn test(workspace: Workspace) -> Result<ExitCode> {
    setup::setup(&workspace, None)?;
    let library = workspace.library()?;
    let checks = Checks { workspace, library };
    let start = Instant::now();
    let mut passed = 0;
    let mut failure = None;
    for (name, step) in STEPS {
        println!("[{}/{} at {}] {name}", passed + 1, STEPS.len(), clock(start.elapsed()));
        if let Err(error) = step(&checks) {
            failure = Some(error);
            break;
        }
        passed += 1;
    }
    if let Some(error) = &failure {
        eprintln!("error: {error}");
    }
    println!("[finished at {}]", clock(start.elapsed()));
    println!("steps: {passed} passed, {} failed", usize::from(failure.is_some()));
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(Error::Interrupted) => Err(Error::Interrupted),
        Some(_) => Ok(ExitCode::FAILURE),
    }
}

fn clock(elapsed: Duration) -> String {
    format!("{}:{:02}", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
}

// The library and xtask are always selected one by one, never with `--workspace`: cargo would then unify the features of
// their dependencies and build tch a second time beside the one that plain `cargo test` built.
impl Checks {
    fn cargo(&self, args: &[&str]) -> Command {
        let mut cargo = process::cargo(&self.workspace);
        cargo.args(args);
        cargo
    }

    fn format(&self) -> Result<()> {
        process::run(&mut self.cargo(&["fmt", "--all", "--check"]))?;
        process::run(&mut self.cargo(&["fmt", "--check", "--manifest-path", DOWNSTREAM]))
    }

    fn clippy(&self) -> Result<()> {
        let features = self.library.features();
        process::run(&mut self.cargo(&["clippy", "--all-targets", "--features", &features, "--", "-Dwarnings"]))?;
        process::run(&mut self.cargo(&["clippy", "--package", "xtask", "--all-targets", "--", "-Dwarnings"]))
    }

    /// As docs.rs builds them: the path is there to fail if anything looks for libtorch.
    fn docs(&self) -> Result<()> {
        let features = format!("doc-only,{}", self.library.features());
        let target = self.library.target_folder.join("doc-only");
        let mut docs = self.cargo(&["doc", "--no-deps", "--features", &features, "--target-dir"]);
        docs.arg(target).env("RUSTDOCFLAGS", "-Dwarnings").env("LIBTORCH", "/no/libtorch");
        process::run(docs.env_remove("LIBTORCH_USE_PYTORCH"))?;
        process::run(self.cargo(&["doc", "--no-deps", "--package", "xtask"]).env("RUSTDOCFLAGS", "-Dwarnings"))
    }

    fn tests(&self) -> Result<()> {
        let features = self.library.features();
        process::run(&mut self.cargo(&["test", "--features", &features]))?;
        // As a program it is built by the line above and run by tests/train; cargo builds an example as one or the other.
        process::run(&mut self.cargo(&["test", "--features", &features, "--example", "train"]))?;
        process::run(&mut self.cargo(&["test", "--package", "xtask"]))
    }

    /// A user's own crate finds libtorch: under cargo with no build script, and as a bare binary with the one-line one.
    fn downstream(&self) -> Result<()> {
        let root = self.workspace.root();
        let lock = root.join("tests/downstream/Cargo.lock");
        // The same versions, and the same target folder: torch-sys takes minutes to compile and is there already.
        fs::copy(root.join("Cargo.lock"), &lock).map_err(Error::io("write", &lock))?;
        let target = &self.library.target_folder;
        for subject in [&["--example", "without_rpath"] as &[&str], &["--bin", "downstream"]] {
            let mut run = self.cargo(&["run", "--manifest-path", DOWNSTREAM, "--target-dir"]);
            process::run(run.arg(target).args(subject).env_remove("LD_LIBRARY_PATH"))?;
        }
        process::run(Command::new(target.join("debug/downstream")).env_clear())
    }

    fn examples(&self) -> Result<()> {
        let features = self.library.features();
        for name in self.library.targets("example") {
            println!("example {name}");
            let out = self.library.target_folder.join("examples-quick").join(name);
            fs::create_dir_all(&out).map_err(Error::io("create", &out))?;
            let mut run = self.cargo(&["run", "--release", "--features", &features, "--example", name]);
            process::run(run.args(["--", "--quick", "--out"]).arg(out))?;
        }
        Ok(())
    }

    fn package(&self) -> Result<()> {
        let list = process::output(&mut self.cargo(&["package", "--allow-dirty", "--no-verify", "--list"]))?;
        for name in String::from_utf8_lossy(&list).lines() {
            let file = self.workspace.root().join(name);
            match fs::metadata(&file) {
                Ok(found) if found.len() > LARGEST_FILE => {
                    return Err(Error::FileTooLarge { file, bytes: found.len(), limit: LARGEST_FILE });
                }
                Ok(_) => {}
                // Cargo writes a few of its own into the package.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &file)(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shown_as_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(135)), "2:15");
        assert_eq!(clock(Duration::from_millis(1900)), "0:01");
    }
}
