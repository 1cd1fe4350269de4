use std::{
    fmt,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use crc32c::crc32c;

use super::{
    Flow, Observer, StepReport,
    file::FileError,
    log::{keep, numbers, seconds},
};
use crate::{
    Error, Result,
    diagnostics::{Alarm, Metrics},
};

/// An event file that TensorBoard shows while it grows: a curve for each number, alarms as text.
///
/// Tags are those of TRL's runs: `train/loss`, and `eval/loss` for a metric `eval_loss`. When writing fails the loop ends with
/// the error; in a loop of one's own [`take_error`](Self::take_error) has it.
///
/// A record is a protobuf message `Event` between its length and masked CRC-32C of both (TensorFlow's record format). The
/// messages used here are of three kinds, so they are written by hand: the crate `tensorboard-rs` would bring protobuf 2 and an
/// image library of 2020.
pub struct TensorBoard {
    out: Box<dyn Write + Send>,
    path: PathBuf,
    clock: Box<dyn FnMut() -> SystemTime + Send>,
    error: Option<FileError>,
    /// While the head of the file is still to be written: the step after which a run goes on, if it does.
    begins: Option<Option<u64>>,
}

impl TensorBoard {
    /// A new file in this folder, which is made if it is not there. Runs in folders of their own beside each other are compared.
    ///
    /// # Errors
    /// [`File`](Error::File) when it cannot be made.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self> {
        Self::open(folder.into(), None)
    }

    /// A further file in the folder of a run that goes on after step `step`: TensorBoard drops what earlier files say of later
    /// steps.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn resume(folder: impl Into<PathBuf>, step: u64) -> Result<Self> {
        Self::open(folder.into(), Some(step))
    }

    fn open(folder: PathBuf, after: Option<u64>) -> Result<Self> {
        static FILES: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&folder).map_err(FileError::at("create", &folder))?;
        // TensorBoard reads files in the order of their names, so the time comes first.
        let (now, process) = (seconds(SystemTime::now()) as u64, process::id());
        let name = format!("events.out.tfevents.{now:010}.prefopt.{process}.{}", FILES.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(FileError::at("create", &path))?;
        Ok(Self { begins: Some(after), ..Self::new(file, path) })
    }

    /// To wherever `out` leads, which errors call `path`.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static, path: impl Into<PathBuf>) -> Self {
        let (out, clock) = (Box::new(out), Box::new(SystemTime::now));
        Self { out, path: path.into(), clock, error: None, begins: Some(None) }
    }

    /// By another clock than the system's.
    #[must_use]
    pub fn with_clock(self, clock: impl FnMut() -> SystemTime + Send + 'static) -> Self {
        Self { clock: Box::new(clock), ..self }
    }

    /// Points of numbers that were measured after `step` steps, between it and the next.
    pub fn measured(&mut self, step: u64, metrics: &Metrics) -> Flow {
        self.scalars(step, metrics.iter())
    }

    /// What went wrong, once.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take().map(Error::from)
    }

    fn scalars<'a>(&mut self, step: u64, numbers: impl Iterator<Item = (&'a str, f64)>) -> Flow {
        let mut summary = Message::default();
        for (name, value) in numbers {
            let tag = match name.strip_prefix("eval_") {
                Some(name) => format!("eval/{name}"),
                None => format!("train/{name}"),
            };
            // Summary.value, of which 1 is the tag and 2 a simple value.
            summary = summary.message(1, Message::default().text(1, &tag).float(2, value as f32));
        }
        self.event(step, summary)
    }

    fn event(&mut self, step: u64, summary: Message) -> Flow {
        let time = seconds((self.clock)());
        // Event: 1 time, 2 step, 3 version, 5 summary, 7 a word on the session, of which status 1 is its start.
        let head = |step| Message::default().double(1, time).integer(2, step);
        let mut bytes = Vec::new();
        if let Some(begins) = self.begins.take() {
            bytes.extend(record(&head(0).text(3, "brain.Event:2")));
            if let Some(begins) = begins {
                bytes.extend(record(&head(begins + 1).message(7, Message::default().integer(1, 1))));
            }
        }
        bytes.extend(record(&head(step).message(5, summary)));
        let written = self.out.write_all(&bytes).and_then(|()| self.out.flush());
        keep(written, &self.path, &mut self.error)
    }
}

impl Observer for TensorBoard {
    fn failure(&mut self) -> Option<Error> {
        self.take_error()
    }

    fn on_step(&mut self, report: &StepReport) -> Flow {
        self.scalars(report.step, numbers(report))
    }

    fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
        let text = format!("{alarm}. {} {}", alarm.reason(), alarm.remedy());
        // Value: 1 the tag, 8 a tensor of one string, 9 the plugin that shows it.
        let plugin = Message::default().message(1, Message::default().text(1, "text"));
        let shape = Message::default().message(2, Message::default().integer(1, 1));
        let tensor = Message::default().integer(1, 7).message(2, shape).text(8, &text);
        let value = Message::default().text(1, "alarms").message(9, plugin).message(8, tensor);
        self.event(alarm.step, Message::default().message(1, value))
    }
}

/// Length, its digest, message, its digest.
fn record(Message(message): &Message) -> Vec<u8> {
    let masked = |bytes: &[u8]| crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let (length, message) = ((message.len() as u64).to_le_bytes(), message.as_slice());
    [length.as_slice(), masked(&length).as_slice(), message, masked(message).as_slice()].concat()
}

/// A protobuf message, field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn integer(self, field: u8, value: u64) -> Self {
        self.key(field, 0).varint(value)
    }

    fn double(self, field: u8, value: f64) -> Self {
        self.key(field, 1).raw(&value.to_le_bytes())
    }

    fn float(self, field: u8, value: f32) -> Self {
        self.key(field, 5).raw(&value.to_le_bytes())
    }

    fn text(self, field: u8, text: &str) -> Self {
        self.key(field, 2).varint(text.len() as u64).raw(text.as_bytes())
    }

    fn message(self, field: u8, Self(message): Self) -> Self {
        self.key(field, 2).varint(message.len() as u64).raw(&message)
    }

    /// Fields up to 15 have a key of one byte.
    fn key(self, field: u8, wire: u8) -> Self {
        self.raw(&[(field << 3) | wire])
    }

    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.raw(&[value as u8])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

impl fmt::Debug for TensorBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorBoard").field("path", &self.path).field("error", &self.error).finish_non_exhaustive()
    }
}
