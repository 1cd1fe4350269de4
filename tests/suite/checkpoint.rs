//! A run that was interrupted, killed or cut off from its disk is the run that was not.

use std::{fs, path::Path};

use prefopt::{
    Error, Result,
    diagnostics::Metrics,
    tch::{Kind, Tensor},
    train::{Better, Checkpoints, Loaded},
};

mod damage;
mod masters;
mod process;
mod refusals;
mod run;

use run::Run;

/// Of a run of 20: in the midst of a pass over the data.
const HALF: u64 = 10;

fn bits(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

/// Names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("is there").map(|entry| entry.expect("can be read"));
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_run_that_goes_on_is_the_run_that_was_not_interrupted() -> Result<()> {
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        let mut straight = Run::new(kind)?;
        let expected = straight.steps(2 * HALF)?;

        let folder = folder();
        let mut first = Run::new(kind)?;
        let mut found = first.steps(HALF)?;
        assert!(first.at.batch > 0, "in the midst of a pass");
        Checkpoints::open(folder.path())?.save(&first.checkpoint()?)?;
        // What the first one does afterwards is not saved.
        first.steps(3)?;
        drop(first);

        let loaded = Checkpoints::open(folder.path())?.load_last()?.expect("was saved");
        assert!(loaded.skipped.is_empty() && loaded.checkpoint.steps() == HALF);
        let mut second = Run::resumed(kind, &loaded.checkpoint)?;
        found.extend(second.steps(HALF)?);
        assert_eq!(found, expected, "{kind:?}");
        assert_eq!(second.bits(), straight.bits(), "{kind:?}");
        assert_ne!(bits(&second.model[0].1), bits(&Run::new(kind)?.model[0].1), "it learns");
    }
    Ok(())
}

#[test]
fn restoring_forgets_what_was_done_meanwhile() -> Result<()> {
    let (folder, mut run) = (folder(), Run::new(Kind::Double)?);
    run.steps(4)?;
    let before = bits(&run.model[0].1);
    let mut checkpoints = Checkpoints::open(folder.path())?;
    checkpoints.save(&run.checkpoint()?)?;
    let expected = run.step()?;
    run.steps(2)?;
    let checkpoint = checkpoints.load_last()?.expect("was saved").checkpoint;
    checkpoint.restore(run.named(), run.trainer.descent_mut())?;
    assert_eq!((bits(&run.model[0].1), run.trainer.descent().steps()), (before, 4));
    let again = Run::resumed(Kind::Double, &checkpoint)?.step()?;
    assert_eq!(again, expected);
    Ok(())
}

/// Any bytes, of every kind and of shapes that are easily lost: a number, nothing, a transposed matrix, more than is copied at
/// once.
#[test]
fn tensors_of_every_kind_are_kept_bit_for_bit() -> Result<()> {
    const KINDS: [Kind; 15] = [
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
        Kind::Half,
        Kind::Float,
        Kind::Double,
        Kind::ComplexFloat,
        Kind::Bool,
        Kind::BFloat16,
        Kind::Float8e5m2,
        Kind::Float8e4m3fn,
        Kind::Float8e5m2fnuz,
        Kind::Float8e4m3fnuz,
    ];
    let (folder, mut run) = (folder(), Run::new(Kind::Double)?);
    run.step()?;
    let mut checkpoint = run.checkpoint()?;
    let any = |numel: usize, kind: Kind| -> Vec<u8> {
        let range = if kind == Kind::Bool { 2 } else { 256 };
        (0..numel * kind.elt_size_in_bytes()).map(|i| ((i * i + 7 * i + 0xf8) % range) as u8).collect()
    };
    let mut kept = vec![];
    for kind in KINDS {
        let of = |shape: &[i64]| {
            let numel = shape.iter().product::<i64>() as usize;
            Tensor::from_data_size(&any(numel, kind), shape, kind)
        };
        for (shape, tensor) in
            [("number", of(&[])), ("nothing", of(&[0, 3])), ("matrix", of(&[2, 3])), ("transposed", of(&[5, 2]).tr())]
        {
            kept.push((format!("{kind:?} {shape}"), tensor));
        }
    }
    let long = (1 << 22) + 7;
    kept.push(("long".to_owned(), Tensor::from_data_size(&any(long, Kind::Uint8), &[long as i64], Kind::Uint8)));
    for (name, tensor) in &kept {
        checkpoint = checkpoint.with_tensor(name.as_str(), tensor);
    }
    let mut checkpoints = Checkpoints::open(folder.path())?;
    checkpoints.save(&checkpoint)?;
    let loaded = checkpoints.load_last()?.expect("was saved").checkpoint;
    for (name, expected) in &kept {
        let found = loaded.tensor(name)?;
        assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{name}");
        assert!(bits(found) == bits(expected), "{name}");
    }
    Ok(())
}

#[test]
fn numbers_are_kept_bit_for_bit() -> Result<()> {
    let (folder, mut run) = (folder(), Run::new(Kind::Double)?);
    run.step()?;
    let mut values = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 3.0, 0.1 + 0.2, 5e-324, f64::MAX];
    // Digits that a hasty parser rounds otherwise.
    values.extend((1..2000).map(|i| (f64::from(i) * 0.618).sin() * 10_f64.powi(i % 60 - 30)));
    let metrics = values.iter().map(|&value| Metrics::default().with("eval_value", value));
    let metrics = metrics.fold(Metrics::default(), Metrics::and);
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let checkpoint = run.checkpoint()?.with_metrics(metrics).with_value("finite", &finite)?;
    let mut checkpoints = Checkpoints::open(folder.path())?;
    checkpoints.save(&checkpoint)?;
    let loaded = checkpoints.load_last()?.expect("was saved").checkpoint;
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let (names, found): (Vec<_>, Vec<_>) = loaded.metrics().iter().unzip();
    assert!(names.iter().all(|name| *name == "eval_value") && found[0].is_nan());
    assert_eq!(bits(&found[1..]), bits(&values[1..]));
    assert_eq!(bits(&loaded.value::<Vec<f64>>("finite")?), bits(&finite));
    Ok(())
}

#[test]
fn the_model_is_a_file_for_others() -> Result<()> {
    let (folder, mut run) = (folder(), Run::new(Kind::BFloat16)?);
    run.step()?;
    let saved = Checkpoints::open(folder.path())?.save(&run.checkpoint()?)?;
    let mut read = Tensor::read_safetensors(saved.folder.join("model.safetensors"))?;
    read.sort_by(|a, b| a.0.cmp(&b.0));
    let found: Vec<_> = read.iter().map(|(name, tensor)| (name.as_str(), tensor.kind(), bits(tensor))).collect();
    let expected = [1, 0].map(|i| (run.model[i].0, Kind::BFloat16, bits(&run.model[i].1)));
    assert_eq!(found, expected);
    Ok(())
}

/// Five checkpoints, of which the second is the best, the third's score no number, and the fifth's equal to the best.
#[test]
fn the_last_and_the_best_are_kept() -> Result<()> {
    let (folder, mut run) = (folder(), Run::new(Kind::Double)?);
    let open = || Ok::<_, Error>(Checkpoints::open(folder.path())?.best_by("eval_loss", Better::Lower));
    for (step, (score, is_best)) in
        (1_u32..).zip([(0.5, true), (0.25, true), (f64::NAN, false), (0.375, false), (0.25, false)])
    {
        run.step()?;
        let metrics = Metrics::default().with("eval_accuracy", f64::from(step)).with("eval_loss", score);
        // Each time anew, as by a process of its own.
        let saved = open()?.save(&run.checkpoint()?.with_metrics(metrics))?;
        assert_eq!((saved.steps, saved.is_best), (u64::from(step), is_best));
        let name = format!("{step:06}-step-{step}");
        assert_eq!(saved.folder, folder.path().join(&name));
        let best = if is_best { ", the best so far" } else { "" };
        let said = format!("saved step {step} in {}{best}: the same run, started", saved.folder.display());
        assert_eq!(saved.to_string(), format!("{said} again, goes on from there"));
        assert_eq!(fs::read_to_string(folder.path().join("last")).expect("written"), format!("{name}\n"));
    }
    assert_eq!(names(folder.path()), ["000002-step-2", "000004-step-4", "000005-step-5", "best", "last"]);
    assert_eq!(fs::read_to_string(folder.path().join("best")).expect("written"), "000002-step-2\n");
    let steps = |loaded: Option<Loaded>| loaded.map(|loaded| loaded.checkpoint.steps());
    assert_eq!(steps(open()?.load_best()?), Some(2));
    assert_eq!(steps(open()?.load_last()?), Some(5));
    // By another metric, or by none.
    let mut higher = Checkpoints::open(folder.path())?.best_by("eval_accuracy", Better::Higher);
    assert_eq!(steps(higher.load_best()?), Some(5));
    assert_eq!(steps(Checkpoints::open(folder.path())?.load_best()?), None);
    assert_eq!(steps(Checkpoints::open(folder.path())?.best_by("loss", Better::Lower).load_best()?), None);
    Ok(())
}
