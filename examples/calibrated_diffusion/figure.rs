//! The picture: gains of each judge, the smallest gain over β, samples in the plane and images before and after tuning.

use std::path::Path;

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::{ChartBuilder, Circle, Cross, DrawingArea, DrawingBackend, RGBColor, Rectangle},
    style::{BLACK, Color},
};

use crate::{
    gallery::SHOWN,
    methods::Method,
    report::Results,
    support::{
        chart::{Axis, COLOURS, FONT, Mark, Paint, Panel, Series, save},
        diffusion::data::SIDE,
    },
    world::{JUDGES, favourite},
};

const SIZE: (u32, u32) = (1520, 1270);
const CHARTS: i32 = 600;
const PLANES: i32 = 400;
/// Pixels of the picture for one of an image.
const PIXEL: i32 = 7;
const GAP: i32 = 5;

/// Writes `PATH.png` and `PATH.svg`.
pub fn draw(results: &Results, path: &Path) -> Result<()> {
    save(path, SIZE, results)
}

fn colour(method: Method) -> usize {
    match method {
        Method::Raw => 0,
        Method::CalibratedInRewards => 1,
        Method::Calibrated => 2,
        Method::Frontier => 3,
        Method::Dpo => 4,
        Method::Ipo => 5,
        Method::Standardised => 6,
        Method::Pessimistic => 7,
    }
}

impl Paint for Results {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (charts, rest) = area.split_vertically(CHARTS);
        let (planes, images) = rest.split_vertically(PLANES);
        for (panel, area) in [gains(self), over_betas(self)].iter().zip(charts.split_evenly((1, 2))) {
            panel.paint(&area)?;
        }
        let shown = [Method::Raw, Method::Calibrated, Method::Frontier];
        let samples = [("before tuning", self.before.as_slice())]
            .into_iter()
            .chain(shown.map(|method| (method.name(), self.shown(method))));
        for ((title, points), area) in samples.zip(planes.split_evenly((1, 4))) {
            plane(&area, title, points)?;
        }
        for (exhibit, area) in self.images.iter().zip(images.split_evenly((1, 4))) {
            strip(&area, exhibit.name, &exhibit.images)?;
        }
        Ok(())
    }
}

/// Side by side at each judge, so that error bars do not hide each other.
fn gains(results: &Results) -> Panel {
    let last = (JUDGES + 1) as f64 - 0.6;
    let zero = Series::exact("before tuning", 7, Mark::Dashed, &[(0.6, 0.0), (last, 0.0)]);
    let methods = Method::ALL.into_iter().enumerate().map(|(i, method)| {
        let offset = 0.06 * (i as f64 - 3.5);
        let points = (0..JUDGES).map(|judge| ((judge + 1) as f64 + offset, results.gain(method, judge)));
        Series::new(method.name(), colour(method), Mark::Points, points.collect())
    });
    Panel {
        title: "Gain of each judge's reward at the chosen beta",
        x: "judge (scale 10, 1 and 0.3)",
        y: "standard deviations under the pretrained model",
        axis: Axis::Linear,
        series: [zero].into_iter().chain(methods).collect(),
    }
}

fn over_betas(results: &Results) -> Panel {
    let selections = Method::ALL.into_iter().filter(|method| method.selects());
    let series = selections.map(|method| {
        let points = results.betas.iter().map(|&beta| (beta, results.smallest(method, beta)));
        Series::new(method.name(), colour(method), Mark::Line, points.collect())
    });
    Panel {
        title: "Smallest gain over the judges",
        x: "beta (a larger one stays nearer to the pretrained model)",
        y: "standard deviations under the pretrained model",
        axis: Axis::Log,
        series: series.collect(),
    }
}

/// Samples of the first condition, and a cross at each judge's favourite place.
fn plane<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, points: &[[f64; 2]]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Samples, {title}"), (FONT, 19))
        .margin(12)
        .build_cartesian_2d(-2.0..2.0, -2.0..2.0)?;
    chart.configure_mesh().light_line_style(BLACK.mix(0.0)).bold_line_style(BLACK.mix(0.08)).draw()?;
    let circle = |point: &[f64; 2]| Circle::new((point[0], point[1]), 2, COLOURS[2].mix(0.5).filled());
    chart.draw_series(points.iter().map(circle))?;
    let cross = |judge: usize| {
        let place = favourite(judge, 0);
        Cross::new((place[0], place[1]), 7, COLOURS[0].stroke_width(3))
    };
    chart.draw_series((0..JUDGES).map(cross))?;
    Ok(())
}

/// A row for each kind of shape.
fn strip<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, images: &[Vec<f64>]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let area = area.titled(&format!("Images, {title}"), (FONT, 19))?;
    let pitch = PIXEL * SIDE as i32 + GAP;
    for (i, image) in images.iter().enumerate() {
        let (left, top) = (10 + (i % SHOWN) as i32 * pitch, 10 + (i / SHOWN) as i32 * pitch);
        for (pixel, value) in image.iter().enumerate() {
            let grey = ((value + 1.0) * 127.5).clamp(0.0, 255.0) as u8;
            let corner = (left + (pixel % SIDE) as i32 * PIXEL, top + (pixel / SIDE) as i32 * PIXEL);
            let opposite = (corner.0 + PIXEL, corner.1 + PIXEL);
            area.draw(&Rectangle::new([corner, opposite], RGBColor(grey, grey, grey).filled()))?;
        }
    }
    Ok(())
}
