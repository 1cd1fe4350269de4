//! Times in turn, peak memory, and the Python side.

use std::{env, fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use prefopt::matmul::{self, Product};
use serde::Serialize;
use serde_json::Value;

/// Flags of every comparison.
#[derive(clap::Args)]
pub struct Common {
    /// Also write the figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Threads of all sides
    #[arg(long, default_value_t = 2)]
    pub threads: i32,
    /// Cargo passes it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Common {
    /// Sets threads and seed, and says which product is in use.
    pub fn begin(&self) -> Result<()> {
        tch::set_num_threads(self.threads);
        tch::manual_seed(0);
        println!("{} threads; {}", self.threads, matmul::choose()?);
        Ok(())
    }

    pub fn write(&self, figures: &impl Serialize) -> Result<()> {
        match &self.json {
            Some(path) => Ok(fs::write(path, serde_json::to_string_pretty(figures)?)?),
            None => Ok(()),
        }
    }
}

/// Everything that was measured, printed as it comes.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub struct Table(Vec<Row>);

#[derive(Serialize)]
struct Row {
    part: String,
    what: String,
    seconds: f64,
    peak_mb: Option<f64>,
}

impl Table {
    pub fn heading(&self, text: &str) {
        println!("\n{text}");
    }

    pub fn row(&mut self, part: &str, what: &str, seconds: f64, peak_mb: Option<f64>) {
        let memory = peak_mb.map_or(String::new(), |mb| format!("{mb:9.0} MB"));
        println!("  {what:58} {seconds:11.6} s{memory}");
        self.0.push(Row { part: part.into(), what: what.into(), seconds, peak_mb });
    }

    pub fn ratio(&self, what: &str, of: f64, to: f64) {
        println!("  {what:58} {:11.3}", of / to);
    }
}

/// The products that this processor has, so that a ratio never hides whose product made it.
pub fn products() -> Result<Vec<Product>> {
    let both = matmul::choose()?.onednn.is_some();
    Ok(if both { vec![Product::Mkl, Product::OneDnn] } else { vec![Product::Mkl] })
}

/// Median seconds of each closure, run turn by turn, so that what else the machine does falls on all of them. The first turn is not
/// counted.
pub fn race<const N: usize>(turns: usize, mut runners: [&mut dyn FnMut() -> Result<()>; N]) -> Result<[f64; N]> {
    let mut seconds = [const { Vec::new() }; N];
    for turn in 0..=turns {
        for (runner, seconds) in runners.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            runner()?;
            if turn > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds.map(median))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

unsafe extern "C" {
    fn malloc_trim(pad: usize) -> i32;
}

fn status(key: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// By how much the resident memory grows at its peak during `run`, MB; `None` where the system does not say.
pub fn peak(run: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
    // What earlier runs have freed is still resident, and would hide what this one takes.
    // SAFETY: gives free memory back to the system.
    unsafe { malloc_trim(0) };
    let before = status("VmRSS:");
    let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
    run()?;
    Ok(if reset { before.and_then(|before| Some(status("VmHWM:")? - before)) } else { None })
}

/// Runs with one of the products in use, and puts the earlier one back.
pub fn with_product<T>(product: Product, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = matmul::current();
    matmul::set(product)?;
    let result = run();
    matmul::set(before)?;
    result
}

/// The name under which peer.py knows a product.
pub fn peer_product(product: Product) -> &'static str {
    match product {
        Product::Mkl => "default",
        Product::OneDnn => "onednn",
    }
}

/// What a peer measured of itself: its JSON lines, or none without a Python that has it.
pub fn peer(arguments: &[&str]) -> Result<Vec<Value>> {
    let Some(python) = env::var_os("PREFOPT_PEER_PYTHON") else { return Ok(Vec::new()) };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/peer.py");
    let output = Command::new(&python).arg(script).args(arguments).output();
    let output = output.with_context(|| format!("cannot start {}", python.display()))?;
    ensure!(output.status.success(), "peer.py {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Adds a peer's rows and gives its median seconds.
pub fn add_peer(table: &mut Table, part: &str, what: &str, arguments: &[&str]) -> Result<Option<f64>> {
    let mut last = None;
    for line in peer(arguments)? {
        let seconds = line["seconds"].as_f64().context("peer.py gave no seconds")?;
        table.row(part, what, seconds, line["peak_mb"].as_f64());
        last = last.or(Some(seconds));
    }
    Ok(last)
}
