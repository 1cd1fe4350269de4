//! `cargo xtask`: everything about this checkout that has to work before libtorch is there.

mod bench;
mod check;
mod demo;
mod error;
mod interrupt;
mod process;
mod setup;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::setup::Flavour;
use crate::workspace::Workspace;

/// Set-up, demo, checks and benchmarks of prefopt.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make libtorch available to this checkout: the one you have, or a download of about 540 MB, once per user.
    Setup {
        /// The full set with CUDA: about 2.5 GB to download, 4 GB on disk.
        #[arg(long, conflicts_with = "cpu")]
        cuda: bool,
        /// Go back from CUDA to the CPU set.
        #[arg(long)]
        cpu: bool,
    },
    /// Set up, then run the example `length_bias`; all arguments go to it.
    #[command(disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Set up, then run every check CI runs.
    Test,
    /// Set up, then run `cargo bench`; all arguments go to it.
    #[command(disable_help_flag = true)]
    Bench {
        /// Install the Python systems (about 5 GB, once per user) and run the benchmark side_by_side, which takes the arguments.
        #[arg(long)]
        peers: bool,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::current();
    match task {
        Task::Setup { cuda: true, .. } => setup::setup(&workspace, Some(Flavour::Cuda))?,
        Task::Setup { cpu: true, .. } => setup::setup(&workspace, Some(Flavour::Cpu))?,
        Task::Setup { .. } => setup::setup(&workspace, None)?,
        Task::Demo { args } => demo::demo(&workspace, &args)?,
        Task::Test => return check::test(workspace),
        Task::Bench { peers, args } => bench::bench(&workspace, peers, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            // 130 is what a shell reports for a program ended by Ctrl-C.
            ExitCode::from(if matches!(error, Error::Interrupted) { 130 } else { 1 })
        }
    }
}
