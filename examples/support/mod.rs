//! What the examples share: the small GPT with its tokenizer, checkpoint and gold reward; trials, small networks, charts.

// Each example uses its own part.
#![allow(dead_code)]

pub mod chart;
pub mod diffusion;
pub mod estimate;
pub mod gold;
pub mod gpt;
pub mod llama;
pub mod network;
pub mod progress;
pub mod sampling;
pub mod stories;
pub mod trial;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use tch::Device;

/// `cpu`, `cuda` or `cuda:N`, for a command line.
pub fn device(name: &str) -> Result<Device> {
    let device = match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => Device::Cpu,
        ("cuda", index) => Device::Cuda(index.parse().context("expected a number after cuda:")?),
        _ => bail!("expected cpu, cuda or cuda:N"),
    };
    let found = tch::Cuda::device_count();
    match device {
        Device::Cuda(index) if index as i64 >= found => {
            bail!(
                "libtorch sees {found} CUDA devices, numbered from 0 (with none: was it set up by `cargo xtask setup --cuda`?)"
            )
        }
        _ => Ok(device),
    }
}

/// Writes a file aside and renames it, so that an interruption leaves the old one or the new one.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let aside = path.with_extension("partial");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    fs::write(&aside, contents)
        .and_then(|()| fs::rename(&aside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
