//! `cargo xtask demo`: the first thing to look at.

use std::ffi::OsString;

use crate::error::Result;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

pub fn demo(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::setup(workspace, None)?;
    let mut cargo = process::cargo(workspace);
    cargo.args(["run", "--release", "--example", "length_bias", "--"]).args(args);
    process::become_it(&mut cargo)
}
