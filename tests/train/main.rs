//! The example `train` as a user starts it: what it says, with which code it ends, and what it leaves on the disk.
//!
//! Each test has a world of its own: a model that is not trained, and sixty pairs (`examples/train/tiny.rs`).

mod commands;
mod interrupted;
mod losses;
mod settings;
#[path = "../../examples/train/tiny.rs"]
mod tiny;
mod wrong;

use std::{
    env::{self, consts::EXE_SUFFIX},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::{Map, Value};
use tempfile::TempDir;

use tiny::World;

/// In the folder of a model.
const WEIGHTS: &str = "model.safetensors";

/// Cargo builds examples beside tests, into `examples` beside the tests' `deps`.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = env::current_exe().expect("a test is a program");
    let profile =
        test.parent().and_then(Path::parent).expect("cargo puts tests into deps, inside the profile's folder");
    let program = profile.join("examples").join(format!("train{EXE_SUFFIX}"));
    let build = "cargo build --features lm,data,run --example train";
    assert!(
        program.is_file(),
        "there is no {}: `{build}` makes it, as `cargo test` without --test does",
        program.display()
    );
    program
});

/// A world in a folder that goes with the test.
struct Scene {
    world: World,
    _folder: TempDir,
}

/// How a process ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        Self { world: World::make(folder.path()).expect("a tiny world"), _folder: folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let file = self.path(name);
        fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).expect("text")
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).expect("a file of the test's");
    }

    /// The pairs in another file, line by line changed or left out.
    fn rewrite(&self, name: &str, change: impl Fn(usize, Value) -> Option<Value>) {
        let text = self.text("pairs.jsonl");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of the world's"));
        let changed = lines.enumerate().filter_map(|(index, line)| change(index, line));
        self.write(name, changed.map(|line| format!("{line}\n")).collect::<String>());
    }

    /// The model under another name, to be spoilt.
    fn another_model(&self, name: &str) {
        fs::create_dir(self.path(name)).expect("a folder of the test's");
        for entry in fs::read_dir(self.path("model")).expect("was made") {
            let entry = entry.expect("can be read");
            fs::copy(entry.path(), self.path(name).join(entry.file_name())).expect("a file of the test's");
        }
    }

    /// `train` with these words, of [`World::words`]. One thread a process: the tests themselves run side by side.
    fn train(&self, line: &str) -> Command {
        let mut train = Command::new(&*PROGRAM);
        train.args(self.world.words(line)).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        train
    }

    fn start(&self, line: &str) -> Child {
        let mut train = self.train(line);
        train.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    fn ended(&self, line: &str) -> Ended {
        self.train(line).output().expect("the program starts").into()
    }

    /// That a command into a folder with something in it is refused, with these words.
    #[track_caller]
    fn refuses(&self, line: &str, says: &[&str]) {
        let ended = self.ended(line);
        assert_eq!(ended.code, Some(1), "train {line}\n{}", ended.said());
        for words in says {
            assert!(ended.err.contains(words), "train {line}\n{}\ndoes not say {words}", ended.said());
        }
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> Ended {
        let ended = self.ended(line);
        assert_eq!(ended.code, Some(0), "train {line}\n{}", ended.said());
        ended
    }

    /// What a run's log says, without the time.
    fn log(&self, run: &str) -> Vec<Map<String, Value>> {
        let line = |line: &str| {
            let mut line: Map<String, Value> = serde_json::from_str(line).expect("a line of the log is JSON");
            line.remove("time").expect("every line of the log has a time");
            line
        };
        self.text(&format!("{run}/log.jsonl")).lines().map(line).collect()
    }

    /// The weights of a run's model.
    fn weights(&self, run: &str) -> Vec<u8> {
        self.bytes(&format!("{run}/model/{WEIGHTS}"))
    }

    /// That two runs, the one interrupted and the other not, or both alike, are the same run, bit for bit.
    #[track_caller]
    fn same(&self, found: &str, expected: &str) {
        assert_eq!(self.log(found), self.log(expected), "log of {found}");
        assert!(self.weights(found) == self.weights(expected), "weights of {found}");
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ended {
    fn said(&self) -> String {
        format!("ended with {:?} and said\n{}\n{}", self.code, self.out, self.err)
    }
}
