//! What does not fit a model or an optimiser, and what a checkpoint cannot hold.

use std::collections::BTreeMap;

use prefopt::{
    Result,
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Checkpoint, Checkpoints, Descent},
};

use super::{Run, folder, names};

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() -> Result<()> {
    let mut run = Run::new(Kind::Double)?;
    run.steps(2)?;
    let checkpoint = run.checkpoint()?;
    let mut other = Run::new(Kind::Double)?;
    other.step()?;
    let before = other.bits();
    let mut into = |edit: fn(&mut Vec<(String, Tensor)>)| {
        let mut named = other.named();
        edit(&mut named);
        checkpoint.restore(named, other.trainer.descent_mut())
    };
    refused(into(|named| named.push(("head".into(), tensor(&[1.0])))), "the checkpoint has no tensor `head`");
    let unnamed = "parameter 1 of the optimiser, of shape [1], is not among the named tensors of the model: its moments would be saved without it";
    refused(into(|named| named.truncate(1)), unnamed);
    refused(into(|named| named[1] = ("bias".into(), tensor(&[0.0]))), unnamed);
    // A checkpoint of a larger model, of another shape, of another kind.
    let mut with = |name: &str, value: Tensor| -> Result<()> {
        let named = run.named().into_iter().filter(|(own, _)| own != name);
        let larger = named.chain([(name.to_owned(), value)]);
        let descent = Descent::new(AdamW::new(vec![run.model[0].1.shallow_clone()], AdamWConfig::default())?, 0.1)?;
        let larger = Checkpoint::of(larger, &descent)?;
        larger.restore(other.named(), other.trainer.descent_mut())
    };
    refused(with("head", tensor(&[1.0])), "the checkpoint has a tensor `head`, for which there is no place");
    refused(with("bias", tensor(&[1.0, 2.0])), "`bias` must have shape [1], the checkpoint's has [2]");
    refused(with("bias", tensor(&[1.0]).to_kind(Kind::Float)), "`bias` must be Double, the checkpoint's is Float");
    // The same model, of which less is trained.
    refused(with("bias", tensor(&[1.0])), "the checkpoint has no tensor `first_moment/bias`");
    assert_eq!(other.bits(), before);

    let mut whole = Run::new(Kind::Double)?;
    let mut half = Run::new(Kind::BFloat16)?;
    whole.step()?;
    half.step()?;
    refused(
        half.checkpoint()?.restore(whole.named(), whole.trainer.descent_mut()),
        "`bias` must be Double, the checkpoint's is BFloat16",
    );
    Ok(())
}

#[test]
fn what_a_checkpoint_lacks_or_cannot_hold_is_said() -> Result<()> {
    let (folder, mut run) = (folder(), Run::new(Kind::Double)?);
    run.step()?;
    let checkpoint = run.checkpoint()?.with_value("β", &0.5)?;
    refused(checkpoint.value::<f64>("beta"), "the checkpoint has no value `beta`");
    refused(checkpoint.tensor("reference"), "the checkpoint has no tensor `reference`");
    assert_eq!(checkpoint.value::<f64>("β")?, 0.5);
    let wrong = checkpoint.value::<String>("β").expect_err("a number").to_string();
    assert!(wrong.starts_with("value `β`: invalid type"), "{wrong}");
    let keys = BTreeMap::from([([1, 2], 3)]);
    let error = run.checkpoint()?.with_value("table", &keys).expect_err("keys are no text").to_string();
    assert!(error.starts_with("value `table`: "), "{error}");

    let complex = Tensor::zeros([2], (Kind::ComplexDouble, Device::Cpu));
    let checkpoints = Checkpoints::open(folder.path())?;
    let outcome = checkpoints.save(&checkpoint.with_tensor("roots", &complex));
    refused(outcome, "`own/roots` is ComplexDouble, which a checkpoint cannot hold");
    assert!(names(folder.path()).is_empty(), "what was begun is swept");
    Ok(())
}

#[test]
fn an_optimiser_takes_only_a_state_of_its_own_form() -> Result<()> {
    let of = |shapes: &[i64], kind: Kind| -> Result<AdamW> {
        let leaf = |&size: &i64| Tensor::zeros([size], (kind, Device::Cpu)).set_requires_grad(true);
        AdamW::new(shapes.iter().map(leaf).collect(), AdamWConfig::default())
    };
    let mut own = of(&[2, 3], Kind::BFloat16)?;
    let into = |own: &mut AdamW, other: AdamW| own.restore(&other.state());
    refused(
        into(&mut own, of(&[2], Kind::BFloat16)?),
        "the optimiser's state must have shape [parameters] with parameters = 2, got parameters = 1",
    );
    refused(
        into(&mut own, of(&[2, 4], Kind::BFloat16)?),
        "first_moment must have shape of the parameter that it belongs to, got [4]",
    );
    refused(
        into(&mut own, of(&[2, 3], Kind::BFloat16)?.with_masters()),
        "first_moment must be BFloat16 like the tensors it goes with, got Float",
    );
    into(&mut own, of(&[2, 3], Kind::BFloat16)?)?;
    let mut descent = Descent::new(own, 0.1)?;
    let mut state = descent.state();
    state.steps = 41;
    descent.restore(&state)?;
    assert_eq!(descent.steps(), 41);
    state.moments.pop();
    state.steps = 3;
    assert!(descent.restore(&state).is_err() && descent.steps() == 41);
    Ok(())
}
