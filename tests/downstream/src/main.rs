fn main() -> prefopt::Result<()> {
    let loss = downstream::compute()?;
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-12);
    println!("downstream: DPO at the reference costs {loss} nats");
    Ok(())
}
