//! The Python systems on the same pairs.

use std::{env, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Args, measure::peer_product, ours::Figures};

/// Between losses of the same step: systems that differ by more have not done the same work.
const TOLERANCE: f64 = 1e-3;

/// As benches/peers/dpo_step.py calls them.
const SYSTEMS: [&str; 3] = ["trl", "trl_precompute", "plain"];

pub fn run(args: &Args, ours: &Figures) -> Result<Vec<Figures>> {
    let Some(python) = env::var_os("PREFOPT_PEER_PYTHON") else { return Ok(Vec::new()) };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/dpo_step.py");
    let one = |system: &&str| {
        let mut command = Command::new(&python);
        command.arg(script).arg(system).arg(&args.model).arg(&args.pairs_file);
        let numbers = [
            ("--pairs", args.pairs.get()),
            ("--batch", args.batch.get()),
            ("--max-length", args.max_length),
            ("--threads", args.common.threads as usize),
        ];
        command.args(numbers.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]));
        command.args(["--product", peer_product(prefopt::matmul::current())]);
        let output = command.output().with_context(|| format!("cannot start {}", python.display()))?;
        ensure!(output.status.success(), "dpo_step.py {system}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let last = text.lines().last().context("dpo_step.py printed nothing")?;
        let line: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
        let list = |key: &str| -> Result<Vec<f64>> {
            let numbers = line[key].as_array().with_context(|| format!("dpo_step.py printed no {key}"))?;
            Ok(numbers.iter().filter_map(Value::as_f64).collect())
        };
        let figures = Figures {
            system: (*system).to_owned(),
            step_s: list("step_s")?,
            loss: list("loss")?,
            peak_rss_mb: line["peak_rss_mb"].as_f64().context("dpo_step.py printed no peak_rss_mb")?,
            tokens: list("tokens")?,
        };
        figures.print();
        let off = figures.loss.iter().zip(&ours.loss).map(|(theirs, ours)| (theirs - ours).abs()).fold(0.0, f64::max);
        ensure!(off <= TOLERANCE, "{system}'s losses are {off} off ours: it is not the same work");
        let seconds = |figures: &Figures| figures.step_s.iter().sum::<f64>();
        println!(
            "{:24} {:24.3} of its time a step, {:.3} of its memory, are ours",
            "",
            seconds(ours) / seconds(&figures),
            ours.peak_rss_mb / figures.peak_rss_mb
        );
        Ok(figures)
    };
    SYSTEMS.iter().map(one).collect()
}
