use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crc32c::crc32c_append;

use crate::{Result, train::file::FileError};

/// What saving does to a disk, an operation a method, so that the tests can let each fail.
pub(super) trait Disk: fmt::Debug {
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>>;
    /// Makes durable which names a folder holds.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub(super) trait Sink: Write {
    /// Makes durable what was written.
    fn sync(&mut self) -> io::Result<()>;
}

#[derive(Debug)]
pub(super) struct Local;

impl Disk for Local {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(File::create(path)?))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // Windows has no such thing, and some network file systems refuse it.
        if cfg!(not(unix)) {
            return Ok(());
        }
        match File::open(path)?.sync_all() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            outcome => outcome,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Length and digest of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub bytes: u64,
    pub crc: u32,
}

/// Counts and digests what goes through it.
struct Measured {
    sink: Box<dyn Sink>,
    sum: Sum,
}

impl Write for Measured {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(buffer)?;
        self.sum.bytes += written as u64;
        self.sum.crc = crc32c_append(self.sum.crc, &buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Writes a file and makes it durable.
pub(super) fn write(disk: &dyn Disk, path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Sum> {
    let sink = disk.create(path).map_err(FileError::at("create", path))?;
    let mut file = Measured { sink, sum: Sum { bytes: 0, crc: 0 } };
    fill(&mut file)?;
    file.sink.sync().map_err(FileError::at("write", path))?;
    Ok(file.sum)
}
