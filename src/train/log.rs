use std::{
    fmt,
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};

use super::{Flow, Observer, StepReport, file::FileError};
use crate::{
    Error, Result,
    diagnostics::{Alarm, Metrics},
};

/// A log in JSON Lines: an object for each step with `step`, `time` (seconds since 1970), `loss`, `grad_norm`, `learning_rate`
/// and the metrics under their names; for each [measurement](Self::measured) between steps; and for each alarm, under `alarm`.
/// A number that is not finite is `null`.
///
/// Each line is written at once. When that fails the loop ends with the error; in a loop of one's own [`take_error`](Self::take_error) has it.
pub struct JsonLines {
    out: Box<dyn Write + Send>,
    path: PathBuf,
    clock: Box<dyn FnMut() -> SystemTime + Send>,
    error: Option<FileError>,
}

impl JsonLines {
    /// A new file.
    ///
    /// # Errors
    /// [`File`](Error::File) when there is one of that name, or it cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::create_new(&path).map_err(FileError::at("create", &path))?;
        Ok(Self::new(file, path))
    }

    /// Goes on after step `step` of a file, or makes it. What it says of later steps, which a killed run had taken after its
    /// last checkpoint, is cut off, so that a run that was interrupted has the log of one that was not; so is a last line that
    /// was not written to its end.
    ///
    /// # Errors
    /// [`File`](Error::File) when it cannot be read and written, or is no such log: then it is left as it is.
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<Self> {
        let path = path.into();
        let open = || -> io::Result<File> {
            let mut file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let kept = up_to(&mut BufReader::new(&file), step)?;
            file.set_len(kept)?;
            file.seek(SeekFrom::Start(kept))?;
            Ok(file)
        };
        let file = open().map_err(FileError::at("go on with", &path))?;
        Ok(Self::new(file, path))
    }

    /// To wherever `out` leads, which errors call `path`.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static, path: impl Into<PathBuf>) -> Self {
        Self { out: Box::new(out), path: path.into(), clock: Box::new(SystemTime::now), error: None }
    }

    /// By another clock than the system's.
    #[must_use]
    pub fn with_clock(self, clock: impl FnMut() -> SystemTime + Send + 'static) -> Self {
        Self { clock: Box::new(clock), ..self }
    }

    /// A line with numbers that were measured after `step` steps, between it and the next.
    pub fn measured(&mut self, step: u64, metrics: &Metrics) -> Flow {
        self.line(step, metrics.iter(), None)
    }

    /// What went wrong, once.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take().map(Error::from)
    }

    fn line<'a>(&mut self, step: u64, numbers: impl Iterator<Item = (&'a str, f64)>, alarm: Option<&'a Alarm>) -> Flow {
        let line = Line { step, time: seconds((self.clock)()), numbers: numbers.collect(), alarm };
        let written = serde_json::to_vec(&line).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            // In one piece, so that a reader or a killed process leaves no half of it.
            self.out.write_all(&text)?;
            self.out.flush()
        });
        keep(written, &self.path, &mut self.error)
    }
}

impl Observer for JsonLines {
    fn failure(&mut self) -> Option<Error> {
        self.take_error()
    }

    fn on_step(&mut self, report: &StepReport) -> Flow {
        self.line(report.step, numbers(report), None)
    }

    fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
        self.line(alarm.step, std::iter::empty(), Some(alarm))
    }
}

/// Keeps the first error of a log, after which it says stop.
pub(super) fn keep(written: io::Result<()>, path: &Path, error: &mut Option<FileError>) -> Flow {
    match written {
        Ok(()) => Flow::Continue,
        Err(new) => {
            error.get_or_insert_with(|| FileError::at("write", path)(new));
            Flow::Stop
        }
    }
}

/// All that a report says, by name.
pub(super) fn numbers(report: &StepReport) -> impl Iterator<Item = (&str, f64)> {
    let own = [("loss", report.loss), ("grad_norm", report.grad_norm), ("learning_rate", report.learning_rate)];
    own.into_iter().chain(report.metrics.iter())
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> f64 {
    // A clock that stands before 1970 is wrong anyway.
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

struct Line<'a> {
    step: u64,
    time: f64,
    numbers: Vec<(&'a str, f64)>,
    alarm: Option<&'a Alarm>,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("time", &self.time)?;
        for (name, value) in &self.numbers {
            map.serialize_entry(name, value)?;
        }
        if let Some(alarm) = self.alarm {
            map.serialize_entry("alarm", alarm)?;
        }
        map.end()
    }
}

/// How a line begins.
const HEAD: &[u8] = b"{\"step\":";

/// Bytes of a log that tell of steps up to `step`.
fn up_to(log: &mut impl BufRead, step: u64) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Stepped {
        step: u64,
    }
    let (mut kept, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let length = log.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            // The end, or a torn line; but a file that begins otherwise than ours is somebody else's.
            let ours = kept > 0 || line.starts_with(HEAD) || HEAD.starts_with(&line);
            return if ours { Ok(kept) } else { Err(io::ErrorKind::InvalidData.into()) };
        }
        if serde_json::from_slice::<Stepped>(&line)?.step > step {
            return Ok(kept);
        }
        kept += length as u64;
    }
}

impl fmt::Debug for JsonLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").field("path", &self.path).field("error", &self.error).finish_non_exhaustive()
    }
}
