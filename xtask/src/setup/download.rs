//! The wheels, through pip: it knows the user's index, proxy and certificates, and checks what it gets.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use indicatif::DecimalBytes;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Result};
use crate::interrupt;

use super::progress::Progress;
use super::wheels::{Flavour, VERSION};

/// What the shell and pyenv's stand-ins answer for a program that is not there.
const NOT_FOUND: i32 = 127;

/// Downloads into folders of its own inside `partial` and returns the wheels.
pub fn download(flavour: Flavour, partial: &Path) -> Result<Vec<PathBuf>> {
    let (wheels, aside) = (partial.join("wheels"), partial.join("pip"));
    for folder in [&wheels, &aside] {
        fs::create_dir(folder).map_err(Error::io("create", folder))?;
    }
    let child = pip(flavour, &wheels, &aside).spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoPython,
        _ => Error::Start { program: "python3".to_owned(), source: error },
    })?;
    let size = DecimalBytes(flavour.download_bytes());
    eprintln!("downloading libtorch {VERSION} ({flavour}), about {size}, once for all checkouts; Ctrl-C stops cleanly");
    let (status, messages) = watch(child, flavour, &aside)?;
    if !status.success() {
        return Err(if status.code() == Some(NOT_FOUND) { Error::NoPython } else { refusal(&messages) });
    }
    let entries = fs::read_dir(&wheels).map_err(Error::io("read", &wheels))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn pip(flavour: Flavour, wheels: &Path, aside: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--progress-bar", "off"]);
    // The wheels for Python 3.12, whichever Python runs pip: all of them hold the same libtorch.
    pip.args(["--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.12"]);
    // Told a platform, pip takes it literally and does not add the older ones a machine can run as well.
    for glibc in (17..=39).rev() {
        pip.arg("--platform").arg(format!("manylinux_2_{glibc}_x86_64"));
    }
    pip.args(["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]);
    pip.arg("--dest").arg(wheels).args(flavour.wheels());
    // Pip downloads into its temporary folder first: beside the rest, where room was checked for and progress is watched.
    pip.env("TMPDIR", aside).env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PIP_REQUIRE_VIRTUALENV", "0");
    // Messages are matched in English.
    pip.env("LC_ALL", "C.UTF-8").env("PIP_NO_COLOR", "1").env("PIP_NO_INPUT", "1");
    pip.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: `python3` may be a script that starts the real one, and both have to go when the user says so.
    pip.process_group(0);
    pip
}

/// Shows how far the download is until pip ends, and ends pip when the user asks for it.
fn watch(mut child: Child, flavour: Flavour, aside: &Path) -> Result<(ExitStatus, String)> {
    let mut stderr = child.stderr.take();
    let reader = thread::spawn(move || {
        let mut messages = Vec::new();
        if let Some(stderr) = &mut stderr {
            // What was read until an error is still worth showing.
            let _ = stderr.read_to_end(&mut messages);
        }
        String::from_utf8_lossy(&messages).into_owned()
    });
    let mut progress = Progress::new("downloading", flavour.download_bytes());
    let status = loop {
        let ended = child.try_wait().map_err(|source| Error::Start { program: "pip".to_owned(), source })?;
        if let Err(stop) = interrupt::check() {
            // Both fail only for a child that is gone already.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
            return Err(stop);
        }
        if let Some(status) = ended {
            break status;
        }
        progress.reach(size_of(aside));
        thread::sleep(Duration::from_millis(100));
    };
    progress.finish(status.success());
    Ok((status, reader.join().unwrap_or_default()))
}

/// Files that vanish while being counted count as nothing: pip moves them about.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// What pip's messages mean.
fn refusal(messages: &str) -> Error {
    let says = |signs: &[&str]| signs.iter().any(|sign| messages.contains(sign));
    if says(&["No module named pip", "No module named 'pip'"]) {
        return Error::NoPip;
    }
    if says(&["No space left on device"]) {
        return Error::Pip { reason: "No space left on device".to_owned() };
    }
    // Before the next: with no network pip tries again, gives up, and concludes that there is no such version.
    let network = ["connection", "Connection", "Retrying", "timed out", "resolve host", "IncompleteRead", "SSLError"];
    let reason = reason(messages);
    if says(&network) {
        return Error::NoNetwork { reason };
    }
    if says(&["Could not find a version", "No matching distribution"]) {
        return Error::NotOffered { reason };
    }
    Error::Pip { reason }
}

/// The most telling line.
fn reason(messages: &str) -> String {
    // `… Failed to establish a new connection: [Errno 111] Connection refused')': /simple/torch/`
    let system = messages.split_once("[Errno").and_then(|(_, rest)| rest.split('\'').next());
    if let Some(error) = system {
        return format!("[Errno{}", error.lines().next().unwrap_or(error).trim_end_matches(['"', ')']));
    }
    // The first: pip follows "could not find a version" with the less telling "no matching distribution".
    let mut lines = messages.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = messages.lines().find_map(|line| line.trim().strip_prefix("ERROR: "));
    error.or_else(|| lines.next_back()).unwrap_or("pip said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pip_is_recognised() {
        assert!(matches!(refusal("/usr/bin/python3: No module named pip\n"), Error::NoPip));
    }

    #[test]
    fn no_network_is_recognised_although_pip_concludes_otherwise() {
        let messages = "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after \
            connection broken by 'NewConnectionError('<HTTPSConnection>: Failed to establish a new connection: \
            [Errno 111] Connection refused')': /simple/torch/\n\
            ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n\
            ERROR: No matching distribution found for torch==2.13.0\n";
        assert_eq!(
            refusal(messages).to_string(),
            "pip cannot reach its package index ([Errno 111] Connection refused): check the network or proxy and run \
             `cargo xtask setup` again"
        );
    }

    #[test]
    fn a_missing_version_is_recognised() {
        let messages = "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: 2.9.0)\n\
             ERROR: No matching distribution found for torch==2.13.0\n";
        assert!(
            matches!(refusal(messages), Error::NotOffered { reason } if reason.ends_with("(from versions: 2.9.0)"))
        );
    }

    #[test]
    fn a_full_disk_is_passed_on() {
        let messages = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        assert!(matches!(refusal(messages), Error::Pip { reason } if reason == "No space left on device"));
    }

    #[test]
    fn anything_else_shows_what_pip_said() {
        assert!(
            matches!(refusal("Usage:\n\nno such option: --platform\n"), Error::Pip { reason } if reason == "no such option: --platform")
        );
        assert!(matches!(refusal(""), Error::Pip { reason } if reason == "pip said nothing"));
    }
}
