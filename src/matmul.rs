//! Which of libtorch's two f32 matrix products the CPU uses.
//!
//! libtorch multiplies with MKL unless told otherwise; on AMD's processors that runs at about half of what the machine can do, and
//! oneDNN, which libtorch also holds, is faster. The switch for it *permits* oneDNN to round its inputs to bfloat16, which on some
//! processors (those with AMX) it then does. So neither is right everywhere, and nothing here changes anything unasked:
//! [`choose`] tries both on this processor, refuses the one that loses precision, and takes the faster.
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! let report = prefopt::matmul::choose()?;
//! println!("{report}"); // f32 products by oneDNN: 372 GFLOP/s (MKL: 190 GFLOP/s)
//! # Ok(()) }
//! ```

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{Result, native};

/// Who multiplies f32 matrices on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// libtorch's default.
    Mkl,
    /// oneDNN, which may round its inputs to bfloat16 where the processor multiplies those faster.
    OneDnn,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mkl => "MKL",
            Self::OneDnn => "oneDNN",
        })
    }
}

/// What was measured of one product.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Floating-point operations a second, in 10⁹.
    pub gflops: f64,
    /// Largest error against f64, relative to the largest entry.
    pub error: f64,
}

/// What [`choose`] found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Report {
    /// What is in use now.
    pub chosen: Product,
    /// MKL's trial.
    pub mkl: Trial,
    /// oneDNN's trial, `None` where libtorch multiplies with MKL all the same: it takes oneDNN's only on processors with AVX-512.
    pub onednn: Option<Trial>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gflops = |trial: &Trial| format!("{:.0} GFLOP/s", trial.gflops);
        match (self.chosen, &self.onednn) {
            (Product::OneDnn, Some(onednn)) => {
                write!(f, "f32 products by oneDNN: {} (MKL: {})", gflops(onednn), gflops(&self.mkl))
            }
            (_, Some(onednn)) if onednn.error > TOLERANCE => {
                let (mkl, onednn, error) = (gflops(&self.mkl), gflops(onednn), onednn.error);
                write!(f, "f32 products by MKL: {mkl} (oneDNN: {onednn}, refused for its error of {error:.0e})")
            }
            (_, Some(onednn)) => write!(f, "f32 products by MKL: {} (oneDNN: {})", gflops(&self.mkl), gflops(onednn)),
            (_, None) => write!(f, "f32 products by MKL: {} (oneDNN's need AVX-512)", gflops(&self.mkl)),
        }
    }
}

/// Errors of f32 on a product of this depth are below a millionth; with inputs rounded to bfloat16 they are above a thousandth.
const TOLERANCE: f64 = 5e-6;
/// What has to be gained for leaving the default.
const GAIN: f64 = 1.05;
/// Rows, depth and columns of the trial: large enough that a product's start is not what is timed, a few milliseconds each.
const SIZE: [i64; 3] = [512, 576, 2048];
const TRIALS: usize = 5;

static MEASURED: Mutex<Option<(Trial, Option<Trial>)>> = Mutex::new(None);

/// Tries both products once a process, at the present number of threads, and puts the faster one that keeps f32's precision to use.
///
/// Takes some tens of milliseconds the first time; later calls choose by the same figures. Only the CPU is concerned. Call it before other
/// threads compute: during the trials their products are tried too.
///
/// # Errors
/// libtorch's, if it refuses an operation.
pub fn choose() -> Result<Report> {
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    let (mkl, onednn) = match *measured {
        Some(trials) => trials,
        None => {
            let before = current();
            let trials = trials();
            // Whatever comes of it, nothing has been decided yet.
            set(before)?;
            *measured.insert(trials?)
        }
    };
    let better = |onednn: Trial| onednn.error <= TOLERANCE && onednn.gflops > GAIN * mkl.gflops;
    let chosen = if onednn.is_some_and(better) { Product::OneDnn } else { Product::Mkl };
    set(chosen)?;
    Ok(Report { chosen, mkl, onednn })
}

/// Uses this product from now on, for all threads of the process, whatever precision libtorch was told to use for oneDNN's products before.
///
/// # Errors
/// libtorch's, if it refuses.
pub fn set(product: Product) -> Result<()> {
    native::set_onednn_products(product == Product::OneDnn)
}

/// The product in use.
#[must_use]
pub fn current() -> Product {
    if native::onednn_products() { Product::OneDnn } else { Product::Mkl }
}

fn trials() -> Result<(Trial, Option<Trial>)> {
    let _no_grad = tch::no_grad_guard();
    let [rows, depth, columns] = SIZE;
    // Without libtorch's generator, whose state is the caller's.
    let wave = |n: i64, m: i64, step: f64| {
        let angles = Tensor::arange(n * m, (Kind::Double, Device::Cpu)) * step;
        angles.sin().view([n, m]).to_kind(Kind::Float)
    };
    let (a, b) = (wave(rows, depth, 1.3), wave(depth, columns, 0.7));
    let exact = a.to_kind(Kind::Double).f_matmul(&b.to_kind(Kind::Double))?;
    let scale = exact.abs().max().double_value(&[]);
    let mut best = [Trial { gflops: 0.0, error: 0.0 }; 2];
    let mut found = [Tensor::new(), Tensor::new()];
    // Turn by turn, so that what else the machine does falls on both.
    for _ in 0..TRIALS {
        for ((product, best), found) in [Product::Mkl, Product::OneDnn].into_iter().zip(&mut best).zip(&mut found) {
            set(product)?;
            let start = Instant::now();
            *found = a.f_matmul(&b)?;
            let seconds = start.elapsed().as_secs_f64();
            best.gflops = best.gflops.max(2e-9 * (rows * depth * columns) as f64 / seconds);
            let error = (found.to_kind(Kind::Double) - &exact).abs().max().double_value(&[]) / scale;
            best.error = best.error.max(error);
        }
    }
    // Two libraries sum in different orders: equal bits mean that one of them did both.
    Ok((best[0], (!found[0].f_equal(&found[1])?).then_some(best[1])))
}
