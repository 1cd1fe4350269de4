//! TR-DPO: a reference that follows the policy. TRL's own numbers in `trl`.

use std::num::NonZeroU64;

use prefopt::{
    PairLogps, PreferenceBatch, Result,
    loss::Dpo,
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, ReferenceUpdate, Trainer},
};

use crate::{all_close, contrastive::refused, numbers};

fn every(steps: u64) -> NonZeroU64 {
    NonZeroU64::new(steps).expect("is not 0")
}

fn held(tensor: &Tensor) -> Vec<Tensor> {
    vec![tensor.shallow_clone()]
}

/// After n updates of a policy that stands still what is left of the first reference is (1 − α)ⁿ.
#[test]
fn soft_updates_forget_geometrically() -> Result<()> {
    let (policy, reference) = (Tensor::from_slice(&[1.0, -2.0]), Tensor::from_slice(&[5.0, 0.0]));
    let mut update = ReferenceUpdate::soft(held(&policy), held(&reference), 0.25, every(1))?;
    for n in 1..=4 {
        update.update();
        let left = 0.75_f64.powi(n);
        all_close(&numbers(&reference), &[1.0 + 4.0 * left, -2.0 + 2.0 * left], 1e-14, format_args!("{n} updates"));
    }
    assert_eq!(numbers(&policy), [1.0, -2.0]);
    Ok(())
}

#[test]
fn a_hard_update_is_a_copy() -> Result<()> {
    let (policy, reference) = (Tensor::from_slice(&[0.1, -0.7]), Tensor::from_slice(&[3.0, 3.0]));
    ReferenceUpdate::hard(held(&policy), held(&reference), every(1))?.update();
    assert_eq!(numbers(&reference), [0.1, -0.7]);
    assert_ne!(policy.data_ptr(), reference.data_ptr());
    Ok(())
}

#[test]
fn it_is_due_every_so_many_steps() -> Result<()> {
    let tensor = Tensor::from_slice(&[0.0]);
    let mut update = ReferenceUpdate::hard(held(&tensor), held(&tensor.copy()), every(3))?;
    assert_eq!([1, 2, 3, 4, 5, 6, 7].map(|step| update.after(step)), [false, false, true, false, false, true, false]);
    Ok(())
}

/// In a loop: between updates the reference stands still, at one it is where the policy then is, and training goes on from there with a
/// margin of 0. A model here is its log-probabilities.
#[test]
fn it_watches_a_loop() -> Result<()> {
    let policy = Tensor::from_slice(&[-1.0, -1.0]).set_requires_grad(true);
    let reference = policy.detach().copy();
    let (of_policy, of_reference) = (policy.shallow_clone(), reference.shallow_clone());
    let forward = move |_: &()| -> Result<PreferenceBatch> {
        let one = |model: &Tensor, response: i64| model.narrow(0, response, 1);
        // Not a view: what the loop writes to later must not move a batch.
        let frozen = of_reference.copy();
        let logps = PairLogps::new(one(&of_policy, 0), one(&of_policy, 1), one(&frozen, 0), one(&frozen, 1))?;
        Ok(PreferenceBatch::new(logps))
    };
    let descent = Descent::new(AdamW::new(held(&policy), AdamWConfig::default())?, 0.1)?;
    let mut trainer = PolicyTrainer::new(Dpo::new(1.0)?, forward, descent, 1.0)?;
    let mut follow = ReferenceUpdate::hard(held(&policy), held(&reference), every(2))?;
    trainer.fit([()], &mut [&mut follow])?;
    assert_eq!(numbers(&reference), [-1.0, -1.0]);
    trainer.fit([()], &mut [&mut follow])?;
    assert_eq!(numbers(&reference), numbers(&policy));
    assert!(numbers(&policy)[0] > -1.0);
    let report = trainer.fit([()], &mut [&mut follow])?.expect("took a step");
    assert_eq!(report.metrics.get("rewards/margins"), Some(0.0));
    assert!(!reference.grad().defined());
    Ok(())
}

#[test]
fn refusals() -> Result<()> {
    let t = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let update = |from: Vec<Tensor>, to: Vec<Tensor>, share: f64| ReferenceUpdate::soft(from, to, share, every(1));
    for share in [0.0, -0.5, 1.5, f64::NAN] {
        refused(
            update(vec![t(&[2])], vec![t(&[2])], share),
            &format!("share of the policy must be above 0 and at most 1, got {share}"),
        );
    }
    refused(
        update(vec![t(&[2]), t(&[3])], vec![t(&[2])], 0.5),
        "reference must have shape [tensors] with tensors = 2, got tensors = 1",
    );
    refused(
        update(vec![t(&[2, 3])], vec![t(&[3, 2])], 0.5),
        "reference must have shape of the policy's tensor beside it, got [3, 2]",
    );
    refused(
        update(vec![t(&[2])], vec![t(&[2]).to_kind(Kind::Double)], 0.5),
        "reference must be Float like the tensors it goes with, got Double",
    );
    let shown = format!("{:?}", update(vec![t(&[2])], vec![t(&[2])], 0.5)?);
    assert_eq!(shown, "ReferenceUpdate { tensors: 1, share: ReferenceShare(0.5), every: 1 }");
    Ok(())
}
