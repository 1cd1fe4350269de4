//! The user's cache: one libtorch for all checkouts, and never half of one.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use indicatif::DecimalBytes;
use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::interrupt;

use super::wheels::Flavour;

const PARTIAL: &str = ".partial-";

pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub fn open() -> Result<Self> {
        let folder = folder(|name| env::var_os(name)).ok_or(Error::NoCacheFolder)?;
        let folder = std::path::absolute(&folder).map_err(Error::io("find", &folder))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One setup at a time. The system lets go of the lock however this process ends.
    pub fn lock(&self) -> Result<File> {
        let path = self.folder.join(".lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut waiting = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) => {
                    if !waiting {
                        eprintln!("waiting for another `cargo xtask setup` to finish");
                        waiting = true;
                    }
                    interrupt::check()?;
                    thread::sleep(Duration::from_millis(200));
                }
                Err(Errno::INTR) => interrupt::check()?,
                Err(error) => return Err(Error::io("lock", &path)(error.into())),
            }
        }
    }

    /// Removes what killed setups left. Call it under the lock: then no living one has a partial folder.
    pub fn remove_leftovers(&self) -> Result<()> {
        let entries = fs::read_dir(&self.folder).map_err(Error::io("read", &self.folder))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_dir_all(entry.path()).map_err(Error::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    pub fn require_room(&self, flavour: Flavour) -> Result<()> {
        let disk =
            statvfs(&self.folder).map_err(|error| Error::io("measure the disk of", &self.folder)(error.into()))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < flavour.needed_bytes() {
            return Err(self.no_room(flavour));
        }
        Ok(())
    }

    /// A folder for work in progress, removed with the value.
    pub fn partial(&self) -> Result<Partial> {
        let path = self.folder.join(format!("{PARTIAL}{}", std::process::id()));
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(Partial { path })
    }

    /// Somebody else may fill the disk after it was measured.
    pub fn explain(&self, error: Error, flavour: Flavour) -> Error {
        match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => self.no_room(flavour),
            Error::Pip { reason } if reason.contains("No space left on device") => self.no_room(flavour),
            other => other,
        }
    }

    fn no_room(&self, flavour: Flavour) -> Error {
        Error::NoRoom { folder: self.folder.clone(), needed: DecimalBytes(flavour.needed_bytes()).to_string() }
    }
}

pub struct Partial {
    path: PathBuf,
}

impl Partial {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // A pip that was just killed may take a moment to stop writing. What even this leaves, the next setup removes.
        for _ in 0..20 {
            if fs::remove_dir_all(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The XDG specification has relative values ignored.
    let xdg = || path("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("prefopt"));
    path("PREFOPT_CACHE").or_else(xdg).or_else(|| path("HOME").map(|home| home.join(".cache/prefopt")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_prefopt_cache_then_xdg_then_home() {
        let chosen = |set: &[(&str, &str)]| {
            folder(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
        };
        let all = [("PREFOPT_CACHE", "/big"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/u")];
        assert_eq!(chosen(&all), Some("/big".into()));
        assert_eq!(chosen(&all[1..]), Some("/xdg/prefopt".into()));
        assert_eq!(chosen(&all[2..]), Some("/home/u/.cache/prefopt".into()));
        assert_eq!(
            chosen(&[("PREFOPT_CACHE", ""), ("XDG_CACHE_HOME", "x"), ("HOME", "/h")]),
            Some("/h/.cache/prefopt".into())
        );
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn leftovers_go_and_the_rest_stays() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let cache = Cache { folder: folder.path().to_owned() };
        fs::create_dir_all(folder.path().join(".partial-17/wheels"))?;
        fs::create_dir(folder.path().join("libtorch-2.13.0-cpu"))?;
        assert!(cache.remove_leftovers().is_ok());
        assert!(!folder.path().join(".partial-17").exists());
        assert!(folder.path().join("libtorch-2.13.0-cpu").exists());
        Ok(())
    }

    #[test]
    fn a_partial_folder_goes_with_its_value() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let cache = Cache { folder: folder.path().to_owned() };
        let partial = cache.partial().map_err(std::io::Error::other)?;
        let path = partial.path().to_owned();
        fs::write(path.join("half"), "half")?;
        drop(partial);
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn a_disk_that_fills_on_the_way_is_told_as_such() {
        let cache = Cache { folder: "/cache".into() };
        let full = Error::Pip { reason: "[Errno 28] No space left on device".to_owned() };
        assert_eq!(
            cache.explain(full, Flavour::Cpu).to_string(),
            "there is not enough room in /cache: free 1.10 GB of disk space there, or set PREFOPT_CACHE to a folder on \
             another disk"
        );
    }
}
