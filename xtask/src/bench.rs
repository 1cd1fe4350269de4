//! `cargo xtask bench`: the benchmarks, once there are some.

use std::ffi::OsString;

use crate::error::Result;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

pub fn bench(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::setup(workspace, None)?;
    if workspace.library()?.targets("bench").next().is_none() {
        println!("no benches yet");
        return Ok(());
    }
    process::become_it(process::cargo(workspace).arg("bench").args(args))
}
