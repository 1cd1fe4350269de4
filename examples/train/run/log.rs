//! The log of a run, read again.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result};
use prefopt::diagnostics::Alarm;
use serde::Deserialize;

/// A line: what a step said, what was measured between steps, or an alarm.
#[derive(Debug, Deserialize)]
pub struct Line {
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    #[serde(default)]
    pub alarm: Option<Alarm>,
    /// `None` for one that was not finite.
    #[serde(flatten)]
    numbers: BTreeMap<String, Option<f64>>,
}

impl Line {
    /// Whether it tells of a step, and not of what was measured after it.
    pub fn is_step(&self) -> bool {
        self.numbers.contains_key("learning_rate")
    }

    /// By name; NaN for one that was not finite.
    pub fn numbers(self) -> impl Iterator<Item = (String, f64)> {
        self.numbers.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
    }
}

/// The lines of a log, one at a time: a long run's are not held in memory.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Line>> + use<>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let path = path.to_owned();
    Ok(BufReader::new(file).lines().enumerate().map(move |(index, line)| {
        let place = || format!("{}, line {}", path.display(), index + 1);
        serde_json::from_str(&line.with_context(place)?).with_context(place)
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use prefopt::{
        diagnostics::{AlarmKind, Metrics},
        train::{JsonLines, Observer, StepReport},
    };

    use super::*;

    #[test]
    fn what_was_written_is_read() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("log.jsonl");
        let mut log = JsonLines::create(&path)?;
        log.measured(0, &Metrics::default().with("eval_loss", 0.1 + 0.2));
        let metrics = Metrics::default().with("num_tokens", 12.0).with("margin", f64::INFINITY);
        log.on_step(&StepReport { step: 1, loss: 0.5, grad_norm: 1.5, learning_rate: 1e-6, metrics });
        let kind = AlarmKind::NonFinite;
        let alarm = Alarm { kind, signal: "margin".into(), step: 1, value: f64::INFINITY, threshold: 1e3 };
        log.on_alarm(&alarm);
        let read = lines(&path)?.collect::<Result<Vec<_>>>()?;
        assert_eq!(
            read.iter().map(|line| (line.step, line.is_step())).collect::<Vec<_>>(),
            [(0, false), (1, true), (1, false)]
        );
        assert_eq!(read[2].alarm.as_ref().map(|alarm| alarm.kind), Some(kind));
        let numbers: Vec<BTreeMap<_, _>> = read.into_iter().map(|line| line.numbers().collect()).collect();
        assert_eq!(numbers[0], BTreeMap::from([("eval_loss".to_owned(), 0.1 + 0.2)]));
        assert!(numbers[1]["margin"].is_nan() && numbers[1]["num_tokens"] == 12.0 && numbers[2].is_empty());

        fs::write(&path, "{\"step\":1,\"time\":0}\nnot json\n")?;
        let error = lines(&path)?.collect::<Result<Vec<_>>>().map(|lines| lines.len());
        assert!(error.is_err_and(|error| error.to_string().ends_with("log.jsonl, line 2")));
        Ok(())
    }
}
