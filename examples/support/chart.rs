//! What charts share: an embedded font, so that no system fonts are needed, and colours.

use anyhow::Result;
use plotters::style::{FontStyle, RGBColor, register_font};

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

/// Must come before the first chart.
pub fn use_embedded_font() -> Result<()> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| anyhow::anyhow!("the embedded font is not a font"))
}
