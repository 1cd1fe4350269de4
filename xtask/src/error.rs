//! What can go wrong, each in one sentence that ends with the remedy.

use std::io;
use std::path::{Path, PathBuf};

use crate::setup::VERSION;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "ready-made libtorch {VERSION} exists here for x86_64 Linux with glibc only: install libtorch {VERSION} \
         yourself and set LIBTORCH to its folder"
    )]
    Platform,

    #[error(
        "python3, whose pip downloads libtorch, is not on the PATH: install it (Debian, Ubuntu: `apt install \
         python3-pip`) or set LIBTORCH to a libtorch {VERSION} you have"
    )]
    NoPython,

    #[error(
        "python3 has no pip, which downloads libtorch: install it (Debian, Ubuntu: `apt install python3-pip`) or set \
         LIBTORCH to a libtorch {VERSION} you have"
    )]
    NoPip,

    #[error(
        "pip cannot reach its package index ({reason}): check the network or proxy and run `cargo xtask setup` again"
    )]
    NoNetwork { reason: String },

    #[error(
        "pip's package index does not offer a wheel of libtorch's ({reason}): update pip (`python3 -m pip install \
         --upgrade pip`), check which index it is configured for, or set LIBTORCH to a libtorch {VERSION} you have"
    )]
    NotOffered { reason: String },

    #[error(
        "pip could not download libtorch ({reason}): mend that and run `cargo xtask setup` again, or set LIBTORCH to a \
         libtorch {VERSION} you have"
    )]
    Pip { reason: String },

    #[error(
        "there is not enough room in {}: free {needed} of disk space there, or set PREFOPT_CACHE to a folder on another \
         disk",
        folder.display()
    )]
    NoRoom { folder: PathBuf, needed: String },

    #[error(
        "neither PREFOPT_CACHE, XDG_CACHE_HOME nor HOME says where to keep libtorch: set PREFOPT_CACHE to a folder"
    )]
    NoCacheFolder,

    #[error(
        "the wheel {} cannot be unpacked ({reason}): run `cargo xtask setup` again, it downloads afresh",
        wheel.display()
    )]
    Wheel { wheel: PathBuf, reason: String },

    #[error(
        "{named_by} names {}, which is libtorch {found}, but {VERSION} is needed: point it at {VERSION}, or unset it and \
         `cargo xtask setup` downloads the right one",
        folder.display()
    )]
    WrongVersion { named_by: &'static str, folder: PathBuf, found: String },

    #[error(
        "{named_by} names {}, which is not a libtorch ({missing} is missing): correct it, or unset it and `cargo xtask \
         setup` downloads one",
        folder.display()
    )]
    NotLibtorch { named_by: &'static str, folder: PathBuf, missing: &'static str },

    #[error(
        "LIBTORCH_USE_PYTORCH is set, but {python} finds no torch: `pip install torch=={VERSION}` there, or unset it"
    )]
    NoPyTorch { python: &'static str },

    #[error("{named_by} names {}, a libtorch without CUDA: unset it to let `cargo xtask setup --cuda` take effect", folder.display())]
    NotCuda { named_by: &'static str, folder: PathBuf },

    #[error(
        "{} is a folder or file of your own, and setup needs a link in its place: move it away and run `cargo xtask setup` \
         again",
        path.display()
    )]
    LinkTaken { path: PathBuf },

    #[error("interrupted, and nothing half-installed is left: run the same command again to start over")]
    Interrupted,

    #[error("cannot {action} {} ({source}): mend that and run the same command again", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("cannot start {program} ({source}): install it, or put it on the PATH")]
    Start { program: String, source: io::Error },

    #[error("a command failed ({outcome}): see its output above, and repeat it with `{command}`")]
    Command { command: String, outcome: String },

    #[error("{command} gave an unexpected answer ({reason}): run it by hand to see why")]
    Answer { command: &'static str, reason: String },

    #[error("{} is {bytes} bytes, too much for the package (limit {limit}): shrink it, or take it out of `include`", file.display())]
    FileTooLarge { file: PathBuf, bytes: u64, limit: u64 },
}

impl Error {
    /// For `map_err`: names the action and the path that an `io::Error` leaves out.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_with_the_remedy() {
        let wrong =
            Error::WrongVersion { named_by: "LIBTORCH", folder: "/opt/libtorch".into(), found: "2.9.1".to_owned() };
        assert_eq!(
            wrong.to_string(),
            "LIBTORCH names /opt/libtorch, which is libtorch 2.9.1, but 2.13.0 is needed: point it at 2.13.0, or unset \
             it and `cargo xtask setup` downloads the right one"
        );
        let room = Error::NoRoom { folder: "/cache".into(), needed: "1.1 GB".to_owned() };
        assert_eq!(
            room.to_string(),
            "there is not enough room in /cache: free 1.1 GB of disk space there, or set PREFOPT_CACHE to a folder on \
             another disk"
        );
        let failed = Error::Command { command: "cargo test".to_owned(), outcome: "exit status: 101".to_owned() };
        assert_eq!(
            failed.to_string(),
            "a command failed (exit status: 101): see its output above, and repeat it with `cargo test`"
        );
    }
}
