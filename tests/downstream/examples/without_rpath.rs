//! The same without the build script's line: cargo itself leads it to libtorch.

fn main() -> prefopt::Result<()> {
    let loss = downstream::compute()?;
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-12);
    println!("without_rpath: DPO at the reference costs {loss} nats");
    Ok(())
}
