use std::{
    io,
    path::{Path, PathBuf},
};

/// A file or folder that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn at(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source }
    }

    /// What the system said: [`StorageFull`](io::ErrorKind::StorageFull), say.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Of which file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
