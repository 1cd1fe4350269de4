//! The picture: gold reward against length bias, and how DPO's log-probabilities fall.

use std::path::Path;

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::{
        AreaSeries, ChartBuilder, DashedLineSeries, DrawingArea, DrawingBackend, LineSeries, PathElement, Polygon,
        RGBColor, SeriesLabelPosition, WHITE,
    },
    style::{BLACK, Color},
};

use crate::{
    RHOS,
    methods::Method,
    report::Results,
    support::chart::{COLOURS, FONT, Paint, save},
};

const SIZE: (u32, u32) = (1500, 640);

type Line = (Method, RGBColor, u32);

const LINES: [Line; 9] = [
    (Method::Dpo, COLOURS[0], 3),
    (Method::Ipo, COLOURS[1], 3),
    (Method::Distillation, COLOURS[2], 3),
    (Method::Pessimistic, COLOURS[3], 4),
    (Method::AnchoredDpo, COLOURS[4], 3),
    (Method::AnchoredDistillation, COLOURS[5], 3),
    (Method::MeanOfFamily, COLOURS[6], 1),
    (Method::Hull, COLOURS[3], 1),
    (Method::Pooled, COLOURS[7], 1),
];

/// Index of the ρ without bias.
const MIDDLE: usize = RHOS.len() / 2;

/// Whether the right-hand chart shows this policy's log-probabilities over training: following them costs a fifth of it.
pub fn follows(method: Method, bias: usize) -> bool {
    bias == MIDDLE && matches!(method, Method::Dpo | Method::AnchoredDpo | Method::Distillation | Method::Pessimistic)
}

/// Those whose methods were run.
fn lines(results: &Results) -> Vec<Line> {
    LINES.into_iter().filter(|(method, ..)| results.methods().any(|run| run == *method)).collect()
}

/// Writes `PATH.png` and `PATH.svg`.
pub fn draw(results: &Results, path: &Path) -> Result<()> {
    save(path, SIZE, results)
}

impl Paint for Results {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (left, right) = area.split_horizontally(SIZE.0 * 54 / 100);
        gold(&left, self)?;
        displacement(&right, self)
    }
}

fn gold<B: DrawingBackend>(area: &DrawingArea<B, Shift>, results: &Results) -> Result<()>
where
    B::ErrorType: 'static,
{
    let lines = lines(results);
    let over_biases = |(method, ..): &Line| (0..results.rhos.len()).map(|i| results.gold(*method, i)).collect();
    let estimates: Vec<Vec<_>> = lines.iter().map(over_biases).collect();
    let error = |e: f64| if e.is_finite() { e } else { 0.0 };
    let all = || estimates.iter().flatten();
    let low = all().map(|e| e.mean - error(e.error)).fold(results.reference().mean, f64::min);
    let high = all().map(|e| e.mean + error(e.error)).fold(f64::NEG_INFINITY, f64::max);
    let (first, last) = (results.rhos[0], results.rhos[results.rhos.len() - 1]);
    let mut chart = ChartBuilder::on(area)
        .caption("Gold reward of the tuned policy", (FONT, 24))
        .margin(14)
        .x_label_area_size(52)
        .y_label_area_size(66)
        // The key stands to the right of the lines.
        .build_cartesian_2d(first..last + 0.62 * (last - first), low - 0.05..high + 0.1)?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.04))
        .x_desc("share of pairs in which the preferred response is the longer one")
        .y_desc("cheerful less gloomy words")
        .x_labels(9)
        .x_label_formatter(&|x| if *x <= last + 1e-9 { format!("{x:.1}") } else { String::new() })
        .label_style((FONT, 16))
        .axis_desc_style((FONT, 17))
        .draw()?;
    let reference = results.reference().mean;
    chart
        .draw_series(DashedLineSeries::new(
            [(first, reference), (last, reference)],
            4,
            4,
            BLACK.mix(0.6).stroke_width(1),
        ))?
        .label("before tuning")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], BLACK.mix(0.6)));
    for ((method, colour, width), estimates) in lines.into_iter().zip(&estimates) {
        let point =
            |sign: f64| results.rhos.iter().zip(estimates).map(move |(&rho, e)| (rho, e.mean + sign * error(e.error)));
        let band: Vec<_> = point(1.0).chain(point(-1.0).collect::<Vec<_>>().into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, colour.mix(0.12))])?;
        chart
            .draw_series(LineSeries::new(point(0.0), colour.stroke_width(width)))?
            .label(method.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(width)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font((FONT, 16))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

fn displacement<B: DrawingBackend>(area: &DrawingArea<B, Shift>, results: &Results) -> Result<()>
where
    B::ErrorType: 'static,
{
    let shown: Vec<Line> = lines(results).into_iter().filter(|(method, ..)| follows(*method, MIDDLE)).collect();
    let traces: Vec<_> = shown.iter().map(|(method, ..)| results.trace(*method, MIDDLE)).collect();
    let points = || traces.iter().flatten();
    let low = points().map(|p| p.1.min(p.2)).fold(0.0, f64::min);
    let high = points().map(|p| p.1.max(p.2)).fold(0.0, f64::max);
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let room = 0.08 * (high - low) + 0.1;
    let mut chart = ChartBuilder::on(area)
        .caption("Change of log-probability on the training pairs", (FONT, 24))
        .margin(14)
        .x_label_area_size(52)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..last, low - room..high + 3.0 * room)?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.04))
        .x_desc(format!(
            "step, longer preferred with probability {} (solid: chosen, dashed: rejected)",
            results.rhos[MIDDLE]
        ))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .y_desc("nats since the reference")
        .label_style((FONT, 16))
        .axis_desc_style((FONT, 17))
        .draw()?;
    chart.draw_series(AreaSeries::new([(0.0, 0.0), (last, 0.0)], 0.0, BLACK.mix(0.0)).border_style(BLACK.mix(0.5)))?;
    for ((method, colour, width), trace) in shown.into_iter().zip(&traces) {
        chart
            .draw_series(LineSeries::new(trace.iter().map(|p| (p.0, p.1)), colour.stroke_width(width)))?
            .label(method.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(width)));
        let rejected: Vec<_> = trace.iter().map(|p| (p.0, p.2)).collect();
        chart.draw_series(DashedLineSeries::new(rejected, 7, 5, colour.stroke_width(width)))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font((FONT, 16))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
