//! Starting cargo and programs, and showing how to repeat what was started.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::interrupt;
use crate::setup;
use crate::workspace::Workspace;

/// Cargo in the workspace's root, in the environment the user's own `cargo` would have there.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace.root());
    // Cargo sets these for xtask. Handed on, they make build scripts that watch them run again on every change between
    // `cargo xtask …` and plain `cargo …`.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    if setup::libtorch_is_our_link(workspace.root()) {
        command.env_remove("LIBTORCH");
    }
    command
}

/// Runs the command with nothing to read, and fails with how to repeat it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().map_err(|source| cannot_start(command, source))?;
    interrupt::check()?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: as_typed(command), outcome: status.to_string() })
}

/// Becomes the command, so that its exit code, its terminal and Ctrl-C are its own.
pub fn become_it(command: &mut Command) -> Result<()> {
    let source = command.exec();
    Err(cannot_start(command, source))
}

/// Runs the command for its standard output.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| cannot_start(command, source))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command { command: as_typed(command), outcome: output.status.to_string() })
}

fn cannot_start(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// The command as somebody would type it in the workspace's root.
fn as_typed(command: &Command) -> String {
    let program = command.get_program();
    let program = if program == env::var_os("CARGO").unwrap_or_default() { OsStr::new("cargo") } else { program };
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let set = set.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(value)));
    set.chain([quoted(program)]).chain(command.get_args().map(quoted)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains(' ') || word.is_empty() { format!("'{word}'") } else { word.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("cargo");
        command.args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings").env_remove("LIBTORCH");
        assert_eq!(as_typed(&command), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
    }

    #[test]
    fn a_failure_says_how_to_repeat_it() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err("a command failed (exit status: 3): see its output above, and repeat it with `sh -c 'exit 3'`"
                .to_owned())
        );
    }
}
