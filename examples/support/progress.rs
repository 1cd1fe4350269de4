//! How far a long job is: a bar on a terminal, a plain line now and then elsewhere.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over this many pieces of work, called `unit`.
pub fn bar(pieces: u64, unit: &str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template(&format!(
        "{{msg:32}} {{bar:40}} {{pos}}/{{len}} {unit}, {{elapsed}} gone, {{eta}} left"
    ))?;
    let bar = ProgressBar::new(pieces).with_style(style);
    // Redrawing more often would cost what it shows.
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
    Ok(bar)
}

/// One piece more.
pub fn done(bar: &ProgressBar, unit: &str) {
    bar.inc(1);
    let (done, all) = (bar.position(), bar.length().unwrap_or_default());
    if bar.is_hidden() && (done % 25 == 0 || done == all) {
        eprintln!("{done} of {all} {unit}, {} s gone, about {} s left", bar.elapsed().as_secs(), bar.eta().as_secs());
    }
}
