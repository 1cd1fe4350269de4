//! The picture: when which alarm fired in one run of each kind, and what log-probabilities and margins did meanwhile.

use std::path::Path;

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, DrawingArea, DrawingBackend, PathElement, RGBColor, SeriesLabelPosition, Text, WHITE,
    },
    style::{BLACK, Color},
};
use prefopt::diagnostics::AlarmKind;

use crate::{
    plants::Plant,
    report::Results,
    run::{Outcome, Point},
    support::chart::{Axis, COLOURS, FONT, Mark, Paint, Panel, Series, save},
};

const SIZE: (u32, u32) = (2280, 640);
/// Where log-probabilities are cut, nats.
const FLOOR: f64 = -60.0;
/// And margins.
const BOUND: f64 = 6.0;

/// Writes `PATH.png` and `PATH.svg`.
pub fn draw(results: &Results, path: &Path) -> Result<()> {
    save(path, SIZE, results)
}

impl Paint for Results {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (left, right) = area.split_horizontally(SIZE.0 * 44 / 100);
        timeline(&left, self)?;
        let panels = [logps(self), margins(self)];
        for (panel, area) in panels.iter().zip(right.split_evenly((1, panels.len()))) {
            panel.paint(&area)?;
        }
        Ok(())
    }
}

/// The run of the first seed.
fn shown(results: &Results, plant: Plant) -> Option<&Outcome> {
    results.of(plant).next()
}

/// One line a run, from top to bottom in the table's order, a point at the first alarm of each kind.
fn timeline<B: DrawingBackend>(area: &DrawingArea<B, Shift>, results: &Results) -> Result<()>
where
    B::ErrorType: 'static,
{
    let (last, rows) = (results.steps as f64, Plant::ALL.len() as f64);
    let outcomes: Vec<(f64, &Outcome)> = Plant::ALL
        .into_iter()
        .enumerate()
        .filter_map(|(row, plant)| Some((rows - row as f64, shown(results, plant)?)))
        .collect();
    let first =
        |outcome: &Outcome, kind: AlarmKind| outcome.alarms.iter().find(|alarm| alarm.kind == kind).map(|a| a.step);
    let kinds: Vec<AlarmKind> = AlarmKind::ALL
        .into_iter()
        .filter(|kind| outcomes.iter().any(|(_, outcome)| first(outcome, *kind).is_some()))
        .collect();

    let mut chart = ChartBuilder::on(area)
        .caption("First alarms of each kind, one run a line", (FONT, 22))
        .margin(14)
        .x_label_area_size(52)
        .build_cartesian_2d(-0.95 * last..1.45 * last, 0.2..rows + 0.8)?;
    let label = |x: &f64| if (0.0..=last).contains(x) { format!("{x:.0}") } else { String::new() };
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(0)
        .x_labels(14)
        .x_label_formatter(&label)
        .x_desc("step (0: before training; a black point: a typed error)")
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 16))
        .draw()?;
    let line = |row: f64| PathElement::new([(0.0, row), (last, row)], BLACK.mix(0.15));
    chart.draw_series(outcomes.iter().map(|(row, _)| line(*row)))?;
    let name = |row: f64, plant: Plant| Text::new(plant.name(), (-0.93 * last, row + 0.18), (FONT, 15));
    chart.draw_series(outcomes.iter().map(|(row, outcome)| name(*row, outcome.plant)))?;
    let refused = outcomes.iter().filter_map(|(row, o)| o.refusal.as_ref().map(|refusal| (refusal.after as f64, *row)));
    chart.draw_series(refused.map(|point| Circle::new(point, 6, BLACK.filled())))?;
    for (index, kind) in kinds.into_iter().enumerate() {
        let colour: RGBColor = COLOURS[index % COLOURS.len()];
        // Alarms of one step stand above each other, and hollow ones are those that take a colour a second time.
        let lift = 0.09 * (index % 4) as f64 - 0.13;
        let style = if index < COLOURS.len() { colour.filled() } else { colour.stroke_width(2) };
        let points = outcomes.iter().filter_map(|(row, o)| Some((first(o, kind)? as f64, row + lift)));
        chart
            .draw_series(points.map(|point| Circle::new(point, 6, style)))?
            .label(kind.name())
            .legend(move |(x, y)| Circle::new((x + 11, y), 6, style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font((FONT, 15))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

/// Means of up to five steps: batches are small.
fn smoothed(trace: &[Point], of: impl Fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let mean = |points: &[Point]| points.iter().map(&of).sum::<f64>() / points.len() as f64;
    (0..trace.len()).map(|last| (trace[last].step as f64, mean(&trace[last.saturating_sub(4)..=last]))).collect()
}

/// A line of a run, and points where its alarms fired.
fn followed(outcome: &Outcome, name: &str, colour: usize, mark: Mark, of: impl Fn(&Point) -> f64) -> [Series; 2] {
    let line = smoothed(&outcome.trace, of);
    let at = |step: u64| line.iter().find(|(x, _)| *x == step.max(1) as f64).copied();
    let marks: Vec<(f64, f64)> = outcome.alarms.iter().filter_map(|alarm| at(alarm.step)).collect();
    let alarms = Series::exact(format!("  {} alarm(s)", marks.len()), colour, Mark::Points, &marks);
    [Series::exact(name, colour, mark, &line), alarms]
}

fn logps(results: &Results) -> Panel {
    let mut series = Vec::new();
    for (plant, name, colour) in [(Plant::Dpo, "healthy", 2), (Plant::RateTimes100, "rate x 100", 0)] {
        if let Some(outcome) = shown(results, plant) {
            let cut = |x: f64| x.clamp(FLOOR, -FLOOR);
            series.extend(followed(outcome, &format!("{name}: chosen"), colour, Mark::Line, |p| cut(p.chosen)));
            let [rejected, _] =
                followed(outcome, &format!("{name}: rejected"), colour, Mark::Dashed, |p| cut(p.rejected));
            series.push(rejected);
        }
    }
    Panel {
        title: "Change of log-probability",
        x: "step",
        y: "nats since the reference, cut at 60",
        axis: Axis::Linear,
        series,
    }
}

fn margins(results: &Results) -> Panel {
    let runs = [
        (Plant::Dpo, "healthy", 2),
        (Plant::LabelsReversed, "labels reversed", 1),
        (Plant::ReferenceTrained, "reference trained", 3),
        (Plant::OpposedDuplicates, "opposite labels", 4),
        (Plant::RateTimes100, "rate x 100", 0),
    ];
    let mut series = Vec::new();
    for (plant, name, colour) in runs {
        if let Some(outcome) = shown(results, plant) {
            series.extend(followed(outcome, name, colour, Mark::Line, |p| p.margin.clamp(-BOUND, BOUND)));
        }
    }
    Panel {
        title: "Implicit margin on the training pairs",
        x: "step",
        y: "nats, cut at 6; points: alarms",
        axis: Axis::Linear,
        series,
    }
}
