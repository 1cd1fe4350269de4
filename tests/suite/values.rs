//! Every row of the table against its oracle: at ordinary sizes, far out, in both precisions, and on a GPU where there is one.

use prefopt::{
    Error, PairLogps, PreferenceBatch, PreferenceLoss, Result,
    loss::ProbabilityMatching,
    tch::{Cuda, Device, Kind},
};

use crate::{
    close,
    columns::Columns,
    number, numbers,
    table::{BETA, Row, table},
};

fn agrees(row: &Row, columns: &Columns, kind: Kind, device: Device, tolerance: f64) -> Result<()> {
    let batch = columns.build(kind, device)?.batch;
    let (found, expected) = (numbers(&row.loss.per_pair(&batch)?), (row.oracle)(columns));
    assert_eq!(found.len(), expected.len(), "{}", row.name);
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        close(*f, *e, tolerance, row.floor, format_args!("{} in {kind:?}, pair {i} of {columns:?}", row.name));
    }
    let mean = number(&row.loss.mean(&batch)?);
    close(mean, columns.mean(&expected), tolerance, row.floor, format_args!("mean of {} in {kind:?}", row.name));
    Ok(())
}

/// Margins with |βh| from 1e-1 to 1e4 and of both signs.
fn far(row: &Row, seed: u64) -> Columns {
    let logits = [0.125, 1.0, 20.0, 36.0, 100.0, 1e3, 1e4];
    let margins: Vec<f64> = logits.iter().flat_map(|l| [l / BETA, -l / BETA]).collect();
    let mut columns = Columns::random(margins.len(), row.members, seed).with_margins(&margins);
    columns.all[0][0][0] = -4e4;
    columns.samples[0][0][0] = -4e4;
    columns
}

#[test]
fn ordinary_sizes() -> Result<()> {
    for row in table()? {
        for seed in 0..50 {
            let columns = Columns::random(1 + seed as usize % 7, row.members, seed);
            for columns in [columns.clone(), columns.unweighted()] {
                agrees(&row, &columns, Kind::Double, Device::Cpu, 1e-12)?;
                agrees(&row, &columns, Kind::Float, Device::Cpu, 1e-5)?;
            }
        }
    }
    Ok(())
}

#[test]
fn far_out() -> Result<()> {
    for row in table()?.iter().filter(|row| row.extremes) {
        for seed in 0..5 {
            agrees(row, &far(row, seed), Kind::Double, Device::Cpu, 1e-12)?;
            agrees(row, &far(row, seed), Kind::Float, Device::Cpu, 1e-5)?;
        }
    }
    Ok(())
}

#[test]
fn values_and_gradients_stay_finite_far_out() -> Result<()> {
    for row in table()?.iter().filter(|row| row.extremes) {
        let built = far(row, 1).build(Kind::Float, Device::Cpu)?;
        let losses = row.loss.per_pair(&built.batch)?;
        assert!(numbers(&losses).iter().all(|x| x.is_finite()), "{}: {losses:?}", row.name);
        row.loss.mean(&built.batch)?.backward();
        for gradient in built.policy.iter().map(|p| p.grad()).filter(|g| g.defined()) {
            assert!(numbers(&gradient).iter().all(|x| x.is_finite()), "{}: {gradient:?}", row.name);
        }
    }
    Ok(())
}

/// 1 − σ(Δr) is 0 in f32 from Δr = 17 on, and the pull back from a βh far beyond Δr would be lost with it.
#[test]
fn matching_keeps_the_small_share_of_a_sure_reward() -> Result<()> {
    let columns = Columns::random(1, 1, 0).with_margins(&[4e4]).with_reward_margins(&[vec![20.0]]);
    let batch = columns.build(Kind::Float, Device::Cpu)?.batch;
    let found = number(&ProbabilityMatching::to_rewards(BETA)?.per_pair(&batch)?);
    close(found, 1e4 * (-20.0_f64).exp(), 1e-5, 0.0, "σ(−Δr)·βh");
    Ok(())
}

#[test]
fn without_weights_the_mean_is_plain() -> Result<()> {
    for row in table()? {
        let columns = Columns::random(5, row.members, 3).unweighted();
        let logps = columns.batch();
        let losses = numbers(&row.loss.per_pair(&logps)?);
        let expected = losses.iter().sum::<f64>() / 5.0;
        close(number(&row.loss.mean(&logps)?), expected, 1e-12, 1.0, row.name);
    }
    Ok(())
}

#[test]
fn shape_and_kind_are_those_of_the_batch() -> Result<()> {
    for row in table()? {
        for kind in [Kind::Float, Kind::Double] {
            // A batch of one is where a squeeze too many would show.
            for batch in [1, 4] {
                let built = Columns::random(batch, row.members, 9).build(kind, Device::Cpu)?;
                let losses = row.loss.per_pair(&built.batch)?;
                assert_eq!((losses.size(), losses.kind()), (vec![batch as i64], kind), "{}", row.name);
                assert_eq!(row.loss.mean(&built.batch)?.size(), [] as [i64; 0], "{}", row.name);
            }
        }
    }
    Ok(())
}

#[test]
fn a_missing_column_is_named() -> Result<()> {
    for row in table()? {
        let built = Columns::random(3, row.members, 4).build(Kind::Double, Device::Cpu)?;
        let [chosen, rejected] = [0, 1].map(|i| built.policy[i].shallow_clone());
        let [ref_chosen, ref_rejected] = [0, 1].map(|i| built.data[i].1.shallow_clone());
        let mut bare = PreferenceBatch::new(PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?);
        // A closure that reads a column by itself is the caller's to write with care.
        if row.name == "weighted ipo" {
            continue;
        }
        // dp-DPO meets the lack of scores first.
        if row.name == "dp-dpo" {
            bare = bare.with_rewards(built.batch.rewards().expect("scores").detached())?;
        }
        match (row.needs, row.loss.per_pair(&bare)) {
            (None, Ok(_)) => {}
            (Some((column, loss)), Err(error @ Error::MissingColumn { .. })) => {
                let said = format!(
                    "{loss} needs the column `{column}`, which this batch lacks: add it with PreferenceBatch::with_{column}"
                );
                assert_eq!(error.to_string(), said);
            }
            (needs, outcome) => panic!("{} needs {needs:?} and gave {outcome:?}", row.name),
        }
    }
    Ok(())
}

#[test]
fn the_gpu_agrees() -> Result<()> {
    if !Cuda::is_available() {
        eprintln!("skipped: no CUDA device");
        return Ok(());
    }
    for row in table()? {
        let columns = Columns::random(6, row.members, 11);
        agrees(&row, &columns, Kind::Double, Device::Cuda(0), 1e-12)?;
        agrees(&row, &columns, Kind::Float, Device::Cuda(0), 1e-5)?;
        if row.extremes {
            agrees(&row, &far(&row, 2), Kind::Float, Device::Cuda(0), 1e-5)?;
        }
        row.loss.mean(&columns.build(Kind::Float, Device::Cuda(0))?.batch)?.backward();
    }
    Ok(())
}
