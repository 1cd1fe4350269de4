//! What every claim's example does: read its flags, run independent jobs on all cores, keep table, numbers and picture.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use rayon::prelude::*;
use serde::Serialize;

use super::progress;

/// Flags that every claim's example has.
#[derive(Debug, Args)]
pub struct Trial {
    /// Independent repetitions: data, labels, reward models and policies
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: Option<u64>,
    /// A small form of everything, a few seconds: checks that it runs, shows nothing
    #[arg(long)]
    pub quick: bool,
    /// Folder of the table, the numbers and the picture [default: runs/NAME]
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(skip = Instant::now())]
    start: Instant,
}

impl Trial {
    /// The seeds: as many as asked for, or `full`, or one in the quick form.
    pub fn seeds(&self, full: u64) -> Vec<u64> {
        (1..=self.seeds.unwrap_or(if self.quick { 1 } else { full })).collect()
    }

    /// `full`, or `quick` in the quick form.
    pub fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// The work of each job, in the jobs' order, several at a time: small networks gain nothing from a second thread, two jobs do.
    pub fn run<J: Sync, T: Send>(&self, jobs: &[J], work: impl Fn(&J) -> Result<T> + Sync) -> Result<Vec<T>> {
        let bar = progress::bar(jobs.len() as u64, "runs")?;
        let results = jobs.par_iter().map(|job| {
            tch::set_num_threads(1);
            let result = work(job);
            progress::done(&bar, "runs");
            result
        });
        let results = results.collect();
        bar.finish_and_clear();
        results
    }

    /// Prints the table and writes it beside the numbers and the picture: `table.txt`, `results.json`, `NAME.png`, `NAME.svg`.
    pub fn finish(
        &self,
        name: &str,
        table: &str,
        results: &impl Serialize,
        draw: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs").join(name));
        super::write(&out.join("table.txt"), table)?;
        super::write(&out.join("results.json"), serde_json::to_string_pretty(results)?)?;
        draw(&out.join(name))?;
        println!("{table}");
        println!("{} s; table, numbers and pictures are in {}", self.start.elapsed().as_secs(), out.display());
        Ok(())
    }
}

/// Text in columns: the first to the left, the others to the right.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headers.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
