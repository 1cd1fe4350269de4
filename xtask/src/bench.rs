//! `cargo xtask bench`: the benchmarks, with the Python systems beside ours if asked for.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::process;
use crate::setup::{self, Cache};
use crate::workspace::Workspace;

/// Names the packages and versions of the peers, from which their environment is made.
const REQUIREMENTS: &str = "benches/peers/requirements.txt";

/// What the benchmark side_by_side looks for.
const PYTHON_VARIABLE: &str = "PREFOPT_PEER_PYTHON";

pub fn bench(workspace: &Workspace, peers: bool, args: &[OsString]) -> Result<()> {
    setup::setup(workspace, None)?;
    let mut cargo = process::cargo(workspace);
    cargo.arg("bench");
    if peers {
        let python = environment(workspace)?;
        println!("peers' Python: {}", python.display());
        cargo.args(["--bench", "side_by_side", "--"]).env(PYTHON_VARIABLE, python);
    }
    process::become_it(cargo.args(args))
}

/// The Python of a virtual environment in the user's cache that has the peers, made if it is not there: about 5 GB.
fn environment(workspace: &Workspace) -> Result<PathBuf> {
    let requirements = workspace.root().join(REQUIREMENTS);
    let wanted = fs::read_to_string(&requirements).map_err(Error::io("read", &requirements))?;
    let cache = Cache::open()?;
    let home = cache.folder().join("peers");
    let (python, done) = (home.join("bin/python"), home.join("requirements.txt"));
    // Written last, so that it says both that the environment is whole and what is in it.
    let ready = || fs::read_to_string(&done).is_ok_and(|installed| installed == wanted);
    if ready() {
        return Ok(python);
    }
    interrupt::watch()?;
    let _lock = cache.lock()?;
    // Another one may have finished while this one waited.
    if ready() {
        return Ok(python);
    }
    if home.exists() {
        fs::remove_dir_all(&home).map_err(Error::io("remove the damaged", &home))?;
    }
    println!("installing the peers of {REQUIREMENTS}, about 5 GB, once per user; Ctrl-C stops");
    process::run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
    let mut pip = Command::new(&python);
    process::run(pip.args(["-m", "pip", "install", "--disable-pip-version-check", "-r"]).arg(&requirements))?;
    fs::write(&done, wanted).map_err(Error::io("write", &done))?;
    Ok(python)
}
