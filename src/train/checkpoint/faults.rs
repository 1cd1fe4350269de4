//! A disk that fails at any operation, a process that dies there, a power cut: a checkpoint is whole all the same.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tch::{Kind, Tensor};

use super::{
    Checkpoint, Checkpoints,
    disk::{Disk, Sink},
};
use crate::{
    Error, Result,
    train::{AdamW, AdamWConfig, Descent},
};

/// What follows the operation that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Others that do not: a disk that was full for a moment.
    Once,
    /// None that does not: a process that was killed.
    Forever,
}

/// A disk that knows what would be lost without power. It makes nothing durable in fact, which takes time.
#[derive(Debug, Clone)]
struct Faulty {
    at: usize,
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    operations: usize,
    /// Files that were written to since they were made durable.
    contents: BTreeSet<PathBuf>,
    /// Names that are new since their folder was made durable.
    names: BTreeSet<PathBuf>,
    /// Renames, likewise.
    renames: Vec<(PathBuf, PathBuf)>,
}

impl Faulty {
    fn new(at: usize, fault: Fault) -> Self {
        Self { at, fault, state: Arc::default() }
    }

    fn sound() -> Self {
        Self::new(usize::MAX, Fault::Once)
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("no panic under it"))
    }

    fn operate(&self) -> io::Result<()> {
        let operation = self.state(|state| {
            state.operations += 1;
            state.operations - 1
        });
        let fails = operation == self.at || (self.fault == Fault::Forever && operation > self.at);
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Leaves what was made durable: the rest of the files is cut, new names are gone, renames undone.
    fn lose_power(&self) -> io::Result<()> {
        self.state(|state| {
            for path in state.contents.iter().filter(|path| path.exists()) {
                let file = File::options().write(true).open(path)?;
                file.set_len(file.metadata()?.len() / 2)?;
            }
            for path in state.names.iter().filter(|path| path.exists()) {
                if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
            for (from, to) in state.renames.iter().rev().filter(|(from, to)| to.exists() && !from.exists()) {
                fs::rename(to, from)?;
            }
            Ok(())
        })
    }
}

impl Disk for Faulty {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.operate()?;
        self.state(|state| state.names.insert(path.to_owned()));
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        self.operate()?;
        self.state(|state| {
            state.names.insert(path.to_owned());
            state.contents.insert(path.to_owned());
        });
        Ok(Box::new(FaultyFile { file: File::create(path)?, path: path.to_owned(), disk: self.clone() }))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.operate()?;
        self.state(|state| {
            state.names.retain(|name| name.parent() != Some(path));
            state.renames.retain(|(_, to)| to.parent() != Some(path));
        });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate()?;
        self.state(|state| {
            for paths in [&mut state.contents, &mut state.names] {
                let moved = |path: &PathBuf| match path.strip_prefix(from) {
                    // `join` with nothing would add a slash.
                    Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
                    Ok(rest) => to.join(rest),
                    Err(_) => path.clone(),
                };
                *paths = paths.iter().map(moved).collect();
            }
            state.renames.push((from.to_owned(), to.to_owned()));
        });
        fs::rename(from, to)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        if let Err(error) = self.operate() {
            // Half of the work was done.
            if let Some(first) = fs::read_dir(path)?.next() {
                fs::remove_file(first?.path())?;
            }
            return Err(error);
        }
        fs::remove_dir_all(path)
    }
}

struct FaultyFile {
    file: File,
    path: PathBuf,
    disk: Faulty,
}

impl Write for FaultyFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.disk.operate() {
            self.file.write_all(&buffer[..buffer.len() / 2])?;
            return Err(error);
        }
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.operate()?;
        self.disk.state(|state| state.contents.remove(&self.path));
        Ok(())
    }
}

fn checkpoint(steps: u64) -> Result<Checkpoint> {
    let x = Tensor::from_slice(&[1.0, -2.0]).set_requires_grad(true);
    let mut descent = Descent::new(AdamW::new(vec![x.shallow_clone()], AdamWConfig::default())?, 0.1)?;
    for _ in 0..steps {
        descent.descend(&x.square().sum(Kind::Double))?;
    }
    Checkpoint::of([("x".to_owned(), x)], &descent)
}

fn numbers(checkpoint: &Checkpoint) -> Vec<f64> {
    Vec::try_from(checkpoint.model["x"].detach()).expect("a vector of f64")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("is there").map(|entry| entry.expect("can be read"));
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A second checkpoint is saved beside a first one that it replaces, with every operation failing in turn.
fn a_checkpoint_survives(fault: Fault, power_fails: bool) -> Result<()> {
    const ONE: NonZeroUsize = NonZeroUsize::MIN;
    let [old, new, next] = [checkpoint(1)?, checkpoint(2)?, checkpoint(3)?];
    for at in 0.. {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let open =
            |disk: &Faulty| Ok::<_, Error>(Checkpoints::on(disk.clone(), folder.path().to_owned())?.keeping(ONE));
        open(&Faulty::sound())?.save(&old)?;
        let disk = Faulty::new(at, fault);
        let outcome = open(&disk)?.save(&new);
        if power_fails {
            disk.lose_power().expect("a sound disk below");
        }
        let failed = disk.state(|state| state.operations) > at;
        match &outcome {
            Ok(saved) => assert!(!failed && saved.steps == 2),
            Err(Error::File(error)) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
            Err(other) => panic!("operation {at}: {other}"),
        }

        let mut after = open(&Faulty::sound())?;
        let loaded = after.load_last()?.expect("one of the two");
        assert!(loaded.skipped.is_empty(), "operation {at}: {:?}", loaded.skipped);
        let expected = match (loaded.checkpoint.steps(), failed) {
            (1, true) => &old,
            (2, _) => &new,
            (other, _) => panic!("operation {at}: step {other}"),
        };
        assert_eq!(numbers(&loaded.checkpoint), numbers(expected), "operation {at}");

        // What was left lying is swept by the next one.
        let saved = after.save(&next)?;
        let name = saved.folder.file_name().expect("has a name").to_string_lossy().into_owned();
        assert_eq!(names(folder.path()), [name.as_str(), "last"], "operation {at}");
        if !failed {
            assert!(at > 20, "all operations have failed once, {at} of them");
            return Ok(());
        }
    }
    unreachable!("there are fewer operations than numbers")
}

#[test]
fn a_disk_that_was_full() -> Result<()> {
    a_checkpoint_survives(Fault::Once, false)
}

#[test]
fn a_process_that_was_killed() -> Result<()> {
    a_checkpoint_survives(Fault::Forever, false)
}

#[test]
fn a_power_cut() -> Result<()> {
    a_checkpoint_survives(Fault::Once, true)?;
    a_checkpoint_survives(Fault::Forever, true)
}
