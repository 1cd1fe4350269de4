//! Charts: panels of lines with their standard errors, in an embedded font, so that no system fonts are needed.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use plotters::{
    coord::Shift,
    prelude::{
        BitMapBackend, ChartBuilder, Circle, DashedLineSeries, DrawingArea, DrawingBackend, IntoDrawingArea,
        LineSeries, PathElement, Polygon, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
    },
    style::{BLACK, Color, FontStyle, register_font},
};

use super::estimate::Estimate;

pub const FONT: &str = "sans-serif";

/// Distinguishable also without colour vision (Okabe and Ito 2008).
pub const COLOURS: [RGBColor; 8] = [
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(160, 160, 160),
];

/// Pixels of one panel.
const PANEL: (u32, u32) = (760, 600);

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Line,
    Dashed,
    Points,
}

/// One row of the key.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    /// Index into [`COLOURS`].
    pub colour: usize,
    pub mark: Mark,
    /// x, and y with its standard error (NaN for none).
    pub points: Vec<(f64, Estimate)>,
}

impl Series {
    pub fn new(name: impl Into<String>, colour: usize, mark: Mark, points: Vec<(f64, Estimate)>) -> Self {
        Self { name: name.into(), colour, mark, points }
    }

    /// Without errors.
    pub fn exact(name: impl Into<String>, colour: usize, mark: Mark, points: &[(f64, f64)]) -> Self {
        let points = points.iter().map(|&(x, mean)| (x, Estimate { mean, error: f64::NAN }));
        Self::new(name, colour, mark, points.collect())
    }
}

/// The horizontal axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    Linear,
    /// In decades; x is positive.
    Log,
}

/// One chart with its key at the right.
#[derive(Debug, Clone)]
pub struct Panel {
    pub title: &'static str,
    pub x: &'static str,
    pub y: &'static str,
    pub axis: Axis,
    pub series: Vec<Series>,
}

/// Writes `PATH.png` and `PATH.svg`, the panels side by side.
pub fn draw(path: &Path, panels: &[Panel]) -> Result<()> {
    save(path, (PANEL.0 * panels.len() as u32, PANEL.1), &Panels(panels))
}

/// What can be painted on any backend.
pub trait Paint {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static;
}

/// Writes `PATH.png` and `PATH.svg`, aside and then renamed.
pub fn save(path: &Path, size: (u32, u32), picture: &impl Paint) -> Result<()> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| anyhow::anyhow!("the embedded font is not a font"))?;
    let aside = |extension: &str| path.with_file_name(format!("partial.{extension}"));
    let (png, svg) = (aside("png"), aside("svg"));
    let bitmap = BitMapBackend::new(&png, size).into_drawing_area();
    bitmap.fill(&WHITE)?;
    picture.paint(&bitmap)?;
    bitmap.present()?;
    let vector = SVGBackend::new(&svg, size).into_drawing_area();
    vector.fill(&WHITE)?;
    picture.paint(&vector)?;
    vector.present()?;
    for (aside, extension) in [(&png, "png"), (&svg, "svg")] {
        let done = path.with_extension(extension);
        fs::rename(aside, &done).with_context(|| format!("cannot write {}", done.display()))?;
    }
    Ok(())
}

struct Panels<'a>(&'a [Panel]);

impl Paint for Panels<'_> {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        for (panel, area) in self.0.iter().zip(area.split_evenly((1, self.0.len()))) {
            panel.paint(&area)?;
        }
        Ok(())
    }
}

impl Paint for Panel {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let place = |x: f64| if self.axis == Axis::Log { x.log10() } else { x };
        let error = |e: &Estimate| if e.error.is_finite() { e.error } else { 0.0 };
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|(_, e)| e.mean.is_finite());
        let xs = || points().map(|(x, _)| place(*x));
        let (first, last) = (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
        let last = if last > first { last } else { first + 1.0 };
        let low = points().map(|(_, e)| e.mean - error(e)).fold(f64::INFINITY, f64::min);
        let high = points().map(|(_, e)| e.mean + error(e)).fold(f64::NEG_INFINITY, f64::max);
        let room = 0.06 * (high - low).max(1e-6);
        let longest = self.series.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
        // The key stands to the right of the lines, in the room that its longest name takes.
        let key = (last - first) * (0.12 + 0.021 * longest as f64);
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 22))
            .margin(14)
            .x_label_area_size(52)
            .y_label_area_size(70)
            .build_cartesian_2d(first..last + key, low - room..high + room)?;
        let label = |x: &f64| match self.axis {
            _ if *x > last + 1e-9 * last.abs() => String::new(),
            Axis::Log => short(10_f64.powf(*x)),
            Axis::Linear => short(*x),
        };
        chart
            .configure_mesh()
            .light_line_style(BLACK.mix(0.04))
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(8)
            .x_label_formatter(&label)
            .y_label_formatter(&|y| short(*y))
            .label_style((FONT, 15))
            .axis_desc_style((FONT, 16))
            .draw()?;
        for series in &self.series {
            let colour = COLOURS[series.colour % COLOURS.len()];
            let finite = || series.points.iter().filter(|(_, e)| e.mean.is_finite());
            let at = |sign: f64| finite().map(move |(x, e)| (place(*x), e.mean + sign * error(e)));
            let line: Vec<_> = at(0.0).collect();
            let drawn = match series.mark {
                Mark::Points => {
                    for (low, high) in at(-1.0).zip(at(1.0)) {
                        chart.draw_series([PathElement::new([low, high], colour.mix(0.6).stroke_width(2))])?;
                    }
                    chart.draw_series(line.iter().map(|&point| Circle::new(point, 4, colour.filled())))?
                }
                mark => {
                    let band: Vec<_> = at(1.0).chain(at(-1.0).collect::<Vec<_>>().into_iter().rev()).collect();
                    chart.draw_series([Polygon::new(band, colour.mix(0.12))])?;
                    if mark == Mark::Dashed {
                        chart.draw_series(DashedLineSeries::new(line, 7, 5, colour.stroke_width(3)))?
                    } else {
                        chart.draw_series(LineSeries::new(line, colour.stroke_width(3)))?
                    }
                }
            };
            let half = if series.mark == Mark::Dashed { 9 } else { 22 };
            drawn
                .label(series.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + half, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .label_font((FONT, 15))
            .background_style(WHITE.mix(0.8))
            .draw()?;
        Ok(())
    }
}

/// Three digits at most, and no more than the number needs.
fn short(x: f64) -> String {
    // An axis reaches 0 by adding, and may miss it.
    let x = if x.abs() < 1e-12 { 0.0 } else { x };
    let digits =
        if x == 0.0 || x.abs() >= 100.0 { 0 } else { (2 - x.abs().log10().floor() as i32).clamp(0, 4) as usize };
    let text = format!("{x:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
