//! One AdamW step on the shapes of a language model of 135 million weights.

use anyhow::Result;
use prefopt::train::{AdamW, AdamWConfig};
use tch::{Device, Kind, Tensor};

use crate::measure::{Table, add_peer, race};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// SmolLM2-135M: 30 layers, 576 wide, three key heads of 64, MLP of 1536, tied embedding.
fn shapes() -> Vec<Vec<i64>> {
    let layer: [&[i64]; 9] =
        [&[576], &[576, 576], &[192, 576], &[192, 576], &[576, 576], &[576], &[1536, 576], &[1536, 576], &[576, 1536]];
    let mut shapes: Vec<Vec<i64>> = (0..30).flat_map(|_| layer.map(<[i64]>::to_vec)).collect();
    shapes.extend([vec![49152, 576], vec![576]]);
    shapes
}

pub fn run(table: &mut Table) -> Result<()> {
    let parameters: Vec<Tensor> =
        shapes().iter().map(|shape| (Tensor::randn(shape.as_slice(), F32) * 0.02).set_requires_grad(true)).collect();
    let weights: usize = parameters.iter().map(Tensor::numel).sum();
    table.heading(&format!("AdamW on {:.1} million weights", weights as f64 / 1e6));
    let whole = parameters.iter().map(|p| (p * p.detach()).sum(Kind::Float)).reduce(|a, b| a + b);
    whole.expect("parameters").f_backward()?;
    let mut optimizer = AdamW::new(parameters, AdamWConfig::default())?;
    let [before] = race(10, [&mut || Ok(optimizer.step(1e-6, 1.0)?)])?;
    table.row("optimiser", "prefopt", before, None);
    let theirs =
        add_peer(table, "optimiser", "peer: torch.optim.AdamW, fused", &["adamw", "smollm2", "--variant", "fused"])?;
    let [after] = race(10, [&mut || Ok(optimizer.step(1e-6, 1.0)?)])?;
    let [clipped] = race(10, [&mut || Ok(optimizer.step(1e-6, 0.999)?)])?;
    table.row("optimiser", "prefopt, again", after, None);
    table.row("optimiser", "prefopt, with gradients scaled for clipping", clipped, None);
    if let Some(theirs) = theirs {
        table.ratio("prefopt / peer", f64::midpoint(before, after), theirs);
    }
    Ok(())
}
