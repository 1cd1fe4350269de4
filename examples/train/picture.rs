//! What a run has done, out of its log: a picture and a table.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};
use plotters::{
    coord::Shift,
    prelude::{DrawingArea, DrawingBackend},
};
use prefopt::diagnostics::Alarm;

use crate::{
    run::log,
    support::{
        self,
        chart::{self, Axis, Mark, Paint, Panel, Series},
        estimate::Estimate,
        trial,
    },
};

/// Pixels of one panel.
const PANEL: (u32, u32) = (760, 560);
/// Panels beside each other.
const ACROSS: usize = 3;
/// Points of a line at most: more are not seen.
const POINTS: usize = 1000;

/// What a panel shows.
struct Quantity {
    title: &'static str,
    y: &'static str,
    curves: &'static [Curve],
}

/// A number of each step, and of each evaluation.
struct Curve {
    /// What it is of, where a panel has two.
    of: &'static str,
    /// In the table.
    row: &'static str,
    /// Its names, one for each kind of run.
    names: &'static [&'static str],
    /// On the training pairs, and on those held out.
    colours: [usize; 2],
}

const QUANTITIES: [Quantity; 4] = [
    Quantity { title: "Loss", y: "loss", curves: &[Curve { of: "", row: "loss", names: &["loss"], colours: [2, 0] }] },
    Quantity {
        title: "Margin",
        y: "reward of the chosen less that of the rejected",
        curves: &[Curve { of: "", row: "margin", names: &["rewards/margins", "margin"], colours: [2, 0] }],
    },
    Quantity {
        title: "Log-probabilities",
        y: "nats a response",
        curves: &[
            Curve { of: "chosen", row: "log π(chosen), nats", names: &["logps/chosen"], colours: [3, 5] },
            Curve { of: "rejected", row: "log π(rejected), nats", names: &["logps/rejected"], colours: [0, 1] },
        ],
    },
    Quantity {
        title: "Accuracy",
        y: "share of the pairs, or of the tokens",
        curves: &[Curve {
            of: "",
            row: "accuracy",
            names: &["rewards/accuracies", "accuracy", "mean_token_accuracy"],
            colours: [2, 0],
        }],
    },
];

const KL: &str = "samples/reverse_kl";

/// Reads `log.jsonl`, writes `NAME.png`, `NAME.svg` and `summary.txt` beside it, and returns the latter's text.
pub fn summary(out: &Path, name: &str) -> Result<String> {
    let path = out.join("log.jsonl");
    let history = History::read(&path)?;
    ensure!(history.last > 0, "{} tells of no step", path.display());
    let panels = history.panels();
    if !panels.is_empty() {
        let sheet = Sheet(panels);
        chart::save(&out.join(name), sheet.size(), &sheet)?;
    }
    let text = history.table();
    support::write(&out.join("summary.txt"), format!("{text}\n"))?;
    Ok(text)
}

/// Steps with a number, in their order.
type Points = Vec<(u64, f64)>;

/// A log, number by number.
#[derive(Debug, Default)]
struct History {
    steps: BTreeMap<String, Points>,
    measured: BTreeMap<String, Points>,
    alarms: Vec<Alarm>,
    /// The last step.
    last: u64,
    /// From the first line to the last, pauses between starts with them.
    seconds: f64,
    /// Tokens a second of each step that follows on another: a median over them is not moved by evaluations and pauses.
    speeds: Vec<f64>,
}

impl History {
    fn read(path: &Path) -> Result<Self> {
        let mut history = Self::default();
        let (mut first, mut step_before) = (None, None);
        for line in log::lines(path)? {
            let mut line = line?;
            let (step, time, is_step) = (line.step, line.time, line.is_step());
            history.last = history.last.max(step);
            history.seconds = time - *first.get_or_insert(time);
            let numbers = if is_step { &mut history.steps } else { &mut history.measured };
            if let Some(alarm) = line.alarm.take() {
                history.alarms.push(alarm);
                continue;
            }
            for (name, value) in line.numbers() {
                if name == "num_tokens" && is_step {
                    let seconds = step_before.map(|before: f64| time - before).filter(|seconds| *seconds > 0.0);
                    history.speeds.extend(seconds.map(|seconds| value / seconds));
                }
                numbers.entry(name).or_default().push((step, value));
            }
            step_before = is_step.then_some(time);
        }
        Ok(history)
    }

    /// Those on the training pairs, and those on the pairs held out.
    fn points(&self, curve: &Curve) -> [&[(u64, f64)]; 2] {
        fn of<'a>(numbers: &'a BTreeMap<String, Points>, name: &str) -> &'a [(u64, f64)] {
            numbers.get(name).map_or(&[], Vec::as_slice)
        }
        let mut found =
            curve.names.iter().map(|name| [of(&self.steps, name), of(&self.measured, &format!("eval_{name}"))]);
        found.find(|both| both.iter().any(|points| is_seen(points))).unwrap_or_default()
    }

    fn panels(&self) -> Vec<Panel> {
        let panel = |title, y, series: Vec<Series>| {
            let x = "step (training pairs: moving mean over a twentieth of the steps)";
            (!series.is_empty()).then_some(Panel { title, x, y, axis: Axis::Linear, series })
        };
        let quantity = |quantity: &Quantity| {
            let series = quantity.curves.iter().flat_map(|curve| self.series(curve)).collect();
            panel(quantity.title, quantity.y, series)
        };
        let kl = self.kl();
        let points: Vec<_> = kl.iter().map(|&(step, estimate)| (step as f64, estimate)).collect();
        let samples = Series::new("samples", 2, Mark::Points, points);
        let divergence = if kl.is_empty() { vec![] } else { vec![samples] };
        let mut panels: Vec<Panel> = QUANTITIES.iter().filter_map(quantity).collect();
        panels.extend(panel("Divergence from the reference", "KL of the policy's samples, nats", divergence));
        panels
    }

    fn series(&self, curve: &Curve) -> Vec<Series> {
        let [training, held_out] = self.points(curve);
        let of = |what: &str| if curve.of.is_empty() { what.to_owned() } else { format!("{}, {what}", curve.of) };
        let mut series = Vec::new();
        if is_seen(training) {
            series.push(Series::exact(of("training"), curve.colours[0], Mark::Line, &smooth(training)));
        }
        if is_seen(held_out) {
            let points: Vec<_> = held_out.iter().map(|&(step, value)| (step as f64, value)).collect();
            series.push(Series::exact(of("held out"), curve.colours[1], Mark::Points, &points));
        }
        series
    }

    /// KL(π ‖ π_ref) on samples, with its standard error where there is one.
    fn kl(&self) -> Vec<(u64, Estimate)> {
        let of = |name: &str| self.measured.get(name).into_iter().flatten().copied();
        let errors: BTreeMap<u64, f64> = of(&format!("{KL}_error")).collect();
        let estimate =
            |(step, mean): (u64, f64)| (step, Estimate { mean, error: errors.get(&step).copied().unwrap_or(f64::NAN) });
        of(KL).filter(|(_, mean)| mean.is_finite()).map(estimate).collect()
    }

    fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        for curve in QUANTITIES.iter().flat_map(|quantity| quantity.curves) {
            let [training, held_out] = self.points(curve);
            if is_seen(training) || is_seen(held_out) {
                let tenth = training.len().div_ceil(10);
                let [first, last] = [&training[..tenth], &training[training.len() - tenth..]].map(mean);
                let evaluated =
                    [held_out.first(), held_out.last()].map(|point| point.map_or(f64::NAN, |(_, value)| *value));
                let numbers = [first, last].into_iter().chain(evaluated).map(number);
                rows.push([curve.row.to_owned()].into_iter().chain(numbers).collect());
            }
        }
        let kl = self.kl();
        if let (Some((_, first)), Some((_, last))) = (kl.first(), kl.last()) {
            let row = "KL(policy ‖ reference) on samples, nats".to_owned();
            rows.push(vec![row, String::new(), String::new(), with_error(first), with_error(last)]);
        }
        let headers = ["", "first tenth", "last tenth", "held out, first", "held out, last"];
        let lines = [trial::table(&headers, &rows), String::new(), self.work()];
        lines.into_iter().chain(self.warnings()).collect::<Vec<_>>().join("\n")
    }

    fn work(&self) -> String {
        let mut text = format!("{} steps, {:.0} s from the first to the last line of the log", self.last, self.seconds);
        if let Some(tokens) = self.steps.get("num_tokens") {
            text += &format!(", {:.0} tokens", tokens.iter().map(|(_, tokens)| tokens).sum::<f64>());
        }
        let mut speeds = self.speeds.clone();
        speeds.sort_by(f64::total_cmp);
        if let Some(median) = speeds.get(speeds.len() / 2) {
            text += &format!(", {} tokens/s in the median step", number(*median));
        }
        text
    }

    fn warnings(&self) -> Vec<String> {
        if self.alarms.is_empty() {
            return vec!["no alarm".to_owned()];
        }
        self.alarms.iter().map(|alarm| format!("alarm at {alarm}. {}", alarm.remedy())).collect()
    }
}

/// Whether there is anything to draw.
fn is_seen(points: &[(u64, f64)]) -> bool {
    points.iter().any(|(_, value)| value.is_finite())
}

/// Of those that are finite; NaN of none.
fn mean(points: &[(u64, f64)]) -> f64 {
    let finite = || points.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
    finite().sum::<f64>() / finite().count() as f64
}

/// A centred mean over a twentieth of the points, over fewer at the ends.
fn smooth(points: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 40;
    let at = |index: usize| {
        let (from, to) = (index.saturating_sub(half), (index + half + 1).min(points.len()));
        (points[index].0 as f64, mean(&points[from..to]))
    };
    (0..points.len()).step_by(points.len().div_ceil(POINTS).max(1)).map(at).collect()
}

/// Four digits, or as many as a whole number has.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return String::new();
    }
    let decimals = if value.abs() < 1.0 { 4 } else { 3_usize.saturating_sub(value.abs().log10() as usize) };
    format!("{value:.decimals$}")
}

fn with_error(estimate: &Estimate) -> String {
    match number(estimate.error) {
        error if error.is_empty() => number(estimate.mean),
        error => format!("{}±{error}", number(estimate.mean)),
    }
}

/// Panels in rows.
struct Sheet(Vec<Panel>);

impl Sheet {
    /// Rows and columns, as even as can be.
    fn grid(&self) -> (usize, usize) {
        let rows = self.0.len().div_ceil(ACROSS).max(1);
        (rows, self.0.len().div_ceil(rows))
    }

    fn size(&self) -> (u32, u32) {
        let (rows, columns) = self.grid();
        (PANEL.0 * columns as u32, PANEL.1 * rows as u32)
    }
}

impl Paint for Sheet {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        for (panel, area) in self.0.iter().zip(area.split_evenly(self.grid())) {
            panel.paint(&area)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn points(values: &[f64]) -> Points {
        (1..).zip(values.iter().copied()).collect()
    }

    #[test]
    fn a_moving_mean_keeps_what_is_straight() {
        let line: Vec<f64> = (0..500).map(f64::from).collect();
        let smoothed = smooth(&points(&line));
        assert_eq!(smoothed.len(), 500);
        assert_eq!((smoothed[250], smoothed[5]), ((251.0, 250.0), (6.0, 8.5)));
        // At the ends there are thirteen in place of twenty-five.
        assert_eq!((smoothed[0], smoothed[499]), ((1.0, 6.0), (500.0, 493.0)));
        assert_eq!(smooth(&points(&[3.0, f64::NAN])).len(), 2);
        assert_eq!(smooth(&points(&vec![1.0; 2500])).len(), 834);
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn numbers_have_four_digits() {
        let found = [0.693_147, -12.345_67, 123.456, 98_765.4, 0.0, f64::NAN].map(number);
        assert_eq!(found, ["0.6931", "-12.35", "123.5", "98765", "0.0000", ""]);
    }

    #[test]
    fn the_table_has_starts_and_ends() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut text =
            r#"{"step":0,"time":100,"eval_loss":0.75,"samples/reverse_kl":0,"samples/reverse_kl_error":0}"#.to_owned();
        for step in 1..=20 {
            let time = 100 + 2 * step;
            text += &format!(
                "\n{{\"step\":{step},\"time\":{time},\"loss\":{step},\"grad_norm\":1,\"learning_rate\":1,\"num_tokens\":50,\"margin\":null}}"
            );
        }
        text += "\n{\"step\":20,\"time\":900,\"eval_loss\":0.5,\"samples/reverse_kl\":1.5,\"samples/reverse_kl_error\":0.25}\n";
        fs::write(folder.path().join("log.jsonl"), text)?;
        let table = summary(folder.path(), "test")?;
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["loss", "1.500", "19.50", "0.7500", "0.5000"]);
        assert_eq!(lines[2][6..], ["0.0000±0.0000", "1.500±0.2500"]);
        assert!(table.contains("20 steps, 800 s") && table.contains("1000 tokens, 25.00 tokens/s"), "{table}");
        assert!(table.ends_with("no alarm") && !table.contains("margin"), "what has no number is left out");
        for file in ["summary.txt", "test.png", "test.svg"] {
            assert!(fs::metadata(folder.path().join(file))?.len() > 0, "{file}");
        }
        Ok(())
    }
}
