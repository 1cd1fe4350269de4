use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt, fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use super::{
    Checkpoint, CheckpointError,
    disk::{self, Disk, Local},
    files,
    record::Record,
};
use crate::{Error, Result, train::file::FileError};

/// Behind the name of what is not whole yet, or no longer.
const PARTIAL: &str = ".partial";

/// Which of two numbers is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// A loss.
    Lower,
    /// An accuracy.
    Higher,
}

/// The checkpoints of a run, in a folder of its own: `000007-step-700` is the seventh that was saved.
///
/// A checkpoint is written aside, `….partial`, made durable and then renamed, and only then is an old one removed: whenever the
/// process is killed or the power fails, the one before or the new one is whole. A full disk is an error, after which the old
/// ones are as they were. The last [`keeping`](Self::keeping) and the [best](Self::best_by) stay. The files `last` and `best`
/// hold the names of their folders, for other programs; here the folders themselves count.
///
/// In a folder `model.safetensors` is the model under its own names, as PyTorch reads it; `state.safetensors` the optimiser's
/// tensors; `run.json` the rest; `checksums` their lengths and CRC-32C, which loading holds them against.
///
/// One run at a time uses a folder.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: NonZeroUsize,
    best: Option<(Cow<'static, str>, Better)>,
    /// Serial numbers of those that could not be read: neither counted nor removed.
    broken: BTreeSet<u64>,
    disk: Box<dyn Disk + Send>,
}

/// A checkpoint that was saved. Displayed, it says how to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its folder.
    pub folder: PathBuf,
    /// Steps taken so far.
    pub steps: u64,
    /// Whether it is the best so far.
    pub is_best: bool,
}

/// A checkpoint that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What was saved.
    pub checkpoint: Checkpoint,
    /// Its folder.
    pub folder: PathBuf,
    /// Those that should have come before it and are damaged.
    pub skipped: Vec<Skipped>,
}

/// A checkpoint that could not be loaded. It is left where it is.
#[derive(Debug)]
pub struct Skipped {
    /// Its folder.
    pub folder: PathBuf,
    /// Why.
    pub error: Error,
}

/// A name in the folder.
struct Entry {
    serial: u64,
    name: String,
    partial: bool,
}

impl Entry {
    fn parse(name: &str) -> Option<Self> {
        let (stem, partial) = match name.strip_suffix(PARTIAL) {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        let (serial, steps) = stem.split_once("-step-")?;
        steps.parse::<u64>().ok()?;
        Some(Self { serial: serial.parse().ok()?, name: name.to_owned(), partial })
    }
}

impl Checkpoints {
    /// Opens the folder of a run, or makes it. Keeps the last two.
    ///
    /// # Errors
    /// [`File`](Error::File) when it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        Self::on(Local, folder.into())
    }

    pub(super) fn on(disk: impl Disk + Send + 'static, folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(FileError::at("create", &folder))?;
        let (disk, keep) = (Box::new(disk), NonZeroUsize::MIN.saturating_add(1));
        Ok(Self { folder, keep, best: None, broken: BTreeSet::new(), disk })
    }

    /// Keeps so many of the last ones: with one, a checkpoint that a disk damages later leaves nothing to fall back on.
    #[must_use]
    pub fn keeping(self, last: NonZeroUsize) -> Self {
        Self { keep: last, ..self }
    }

    /// Keeps the best too, by one of the [metrics](Checkpoint::with_metrics): the first of equals; one that lacks the metric or
    /// has one that is not finite is never the best.
    #[must_use]
    pub fn best_by(self, metric: impl Into<Cow<'static, str>>, better: Better) -> Self {
        Self { best: Some((metric.into(), better)), ..self }
    }

    /// The folder of the run.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Saves a checkpoint, and removes those that are to be kept no longer.
    ///
    /// # Errors
    /// [`File`](Error::File) when the disk is full or refuses something else: at least the checkpoint before is whole.
    /// [`Kind`](CheckpointError::Kind) for a tensor that safetensors cannot hold.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<Saved> {
        let serial = 1 + self.entries()?.iter().map(|entry| entry.serial).max().unwrap_or(0);
        let name = format!("{serial:06}-step-{}", checkpoint.steps());
        let partial = self.folder.join(format!("{name}{PARTIAL}"));
        if let Err(error) = self.write(&partial, &name, checkpoint) {
            // Room for others. What went wrong before is the error, not this.
            let _ = self.disk.remove_folder(&partial);
            return Err(error);
        }
        self.point("last", &name)?;
        let best = self.ranked()?.into_iter().next();
        if let Some(best) = &best {
            self.point("best", &best.name)?;
        }
        self.prune(best.as_ref())?;
        let is_best = best.is_some_and(|best| best.serial == serial);
        Ok(Saved { folder: self.folder.join(name), steps: checkpoint.steps(), is_best })
    }

    /// The last one that is whole; `None` when nothing has been saved yet.
    ///
    /// # Errors
    /// [`NoneWhole`](CheckpointError::NoneWhole) when there are some and every one is damaged; [`File`](Error::File) when the
    /// folder cannot be read.
    pub fn load_last(&mut self) -> Result<Option<Loaded>> {
        let mut entries = self.entries()?;
        entries.retain(|entry| !entry.partial);
        entries.reverse();
        self.load(entries)
    }

    /// The best one that is whole; `None` when none is known to be, as without [`best_by`](Self::best_by).
    ///
    /// # Errors
    /// As [`load_last`](Self::load_last).
    pub fn load_best(&mut self) -> Result<Option<Loaded>> {
        let entries = self.ranked()?;
        self.load(entries)
    }

    /// The first that is whole.
    fn load(&mut self, entries: Vec<Entry>) -> Result<Option<Loaded>> {
        let mut skipped = Vec::new();
        for Entry { serial, name, .. } in entries {
            let folder = self.folder.join(name);
            match files::read(&folder) {
                Ok(checkpoint) => return Ok(Some(Loaded { checkpoint, folder, skipped })),
                Err(error) => {
                    self.broken.insert(serial);
                    skipped.push(Skipped { folder, error });
                }
            }
        }
        let (count, folder) = (skipped.len(), self.folder.clone());
        match skipped.into_iter().next() {
            Some(Skipped { error, .. }) => {
                Err(CheckpointError::NoneWhole { folder, count, newest: Box::new(error) }.into())
            }
            None => Ok(None),
        }
    }

    /// In the order in which they were saved.
    fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(FileError::at("read", &self.folder))? {
            let name = entry.map_err(FileError::at("read", &self.folder))?.file_name();
            entries.extend(name.to_str().and_then(Entry::parse));
        }
        entries.sort_by_key(|entry| entry.serial);
        Ok(entries)
    }

    /// Those that count, in the order in which they were saved. One whose record cannot be read is left where it is.
    fn counted(&self) -> Result<Vec<(Entry, Record)>> {
        let counts = |entry: &Entry| !entry.partial && !self.broken.contains(&entry.serial);
        let record = |entry: Entry| files::record(&self.folder.join(&entry.name)).ok().map(|record| (entry, record));
        Ok(self.entries()?.into_iter().filter(counts).filter_map(record).collect())
    }

    /// Those with a score, the best first.
    fn ranked(&self) -> Result<Vec<Entry>> {
        let Some((metric, better)) = &self.best else { return Ok(Vec::new()) };
        let score = |(entry, record): (Entry, Record)| {
            record.metric(metric).filter(|score| score.is_finite()).map(|score| (score, entry))
        };
        let mut scored: Vec<(f64, Entry)> = self.counted()?.into_iter().filter_map(score).collect();
        scored.sort_by(|(a, _), (b, _)| match better {
            Better::Lower => a.total_cmp(b),
            Better::Higher => b.total_cmp(a),
        });
        Ok(scored.into_iter().map(|(_, entry)| entry).collect())
    }

    fn write(&self, partial: &Path, name: &str, checkpoint: &Checkpoint) -> Result<()> {
        self.disk.create_folder(partial).map_err(FileError::at("create", partial))?;
        files::write(&*self.disk, partial, checkpoint)?;
        self.rename(partial, name)
    }

    /// Gives what is whole the name that says so.
    fn rename(&self, from: &Path, name: &str) -> Result<()> {
        let to = self.folder.join(name);
        self.disk.rename(from, &to).map_err(FileError::at("write", to))?;
        Ok(self.disk.sync_folder(&self.folder).map_err(FileError::at("write", &self.folder))?)
    }

    /// Has a file hold a name.
    fn point(&self, file: &str, name: &str) -> Result<()> {
        let partial = self.folder.join(format!("{file}{PARTIAL}"));
        let text = format!("{name}\n");
        disk::write(&*self.disk, &partial, |out| files::whole(text.as_bytes(), &partial, out))?;
        self.rename(&partial, file)
    }

    /// Removes the old ones, and what others before us have left half-written.
    fn prune(&self, best: Option<&Entry>) -> Result<()> {
        let counted = self.counted()?;
        let old = counted.len().saturating_sub(self.keep.get());
        for (entry, _) in counted.iter().take(old).filter(|(entry, _)| best.is_none_or(|b| b.serial != entry.serial)) {
            // No longer whole before it loses a file.
            self.rename(&self.folder.join(&entry.name), &format!("{}{PARTIAL}", entry.name))?;
        }
        for entry in self.entries()?.iter().filter(|entry| entry.partial) {
            let path = self.folder.join(&entry.name);
            self.disk.remove_folder(&path).map_err(FileError::at("remove", &path))?;
        }
        Ok(())
    }
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folder, steps, is_best } = self;
        let best = if *is_best { ", the best so far" } else { "" };
        write!(f, "saved step {steps} in {}{best}: the same run, started again, goes on from there", folder.display())
    }
}
