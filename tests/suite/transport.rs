//! AOT: sorted against sorted. Golden values in `trl`.

use proptest::prelude::*;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result,
    loss::{Aot, AotUnpaired, Dpo, Sft},
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, Trainer},
};

use crate::{all_close, close, columns::Columns, contrastive::refused, identities::config, number, numbers, oracle};

const BETA: f64 = 0.25;

/// Without the column of weights, which `Columns::build` always adds.
fn bare(columns: &Columns) -> (PreferenceBatch, [Tensor; 2]) {
    let leaf = |x: &[f64]| Tensor::from_slice(x).set_requires_grad(true);
    let [chosen, rejected] = [leaf(&columns.chosen), leaf(&columns.rejected)];
    let [ref_chosen, ref_rejected] = [&columns.ref_chosen, &columns.ref_rejected].map(|x| Tensor::from_slice(x));
    let logps = PairLogps::new(chosen.shallow_clone(), rejected.shallow_clone(), ref_chosen, ref_rejected);
    (PreferenceBatch::new(logps.expect("of one length")), [chosen, rejected])
}

/// The two samples that a loss compares: of each pair of the batch, in its order.
fn compared(columns: &Columns, unpaired: bool) -> [Vec<f64>; 2] {
    let of = |f: &dyn Fn(usize) -> f64| (0..columns.len()).map(f).collect::<Vec<_>>();
    let c = columns;
    if unpaired {
        [of(&|i| c.chosen[i] - c.ref_chosen[i]), of(&|i| c.rejected[i] - c.ref_rejected[i])]
    } else {
        [of(&|i| c.chosen[i] - c.rejected[i]), of(&|i| c.ref_chosen[i] - c.ref_rejected[i])]
    }
}

fn loss(unpaired: bool, flip: f64) -> Box<dyn PreferenceLoss> {
    if unpaired {
        Box::new(AotUnpaired::new(BETA).expect("valid").with_flip_rate(flip).expect("valid"))
    } else {
        Box::new(Aot::new(BETA).expect("valid").with_flip_rate(flip).expect("valid"))
    }
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    let Some(last) = n.checked_sub(1) else { return vec![vec![]] };
    let shorter = permutations(last);
    let inserted = |at: usize| shorter.iter().map(move |p| [&p[..at], &[last], &p[at..]].concat());
    (0..n).flat_map(inserted).collect()
}

proptest! {
    #![proptest_config(config())]

    /// The sorted coupling is the cheapest of all: what makes it optimal transport, for a cost that is convex in the difference.
    #[test]
    fn no_coupling_is_cheaper(seed in any::<u64>(), unpaired in any::<bool>(), flip in 0.0..0.49_f64) {
        let columns = Columns::random(4, 1, seed);
        let [x, y] = compared(&columns, unpaired);
        let cost = |p: &Vec<usize>| (0..4).map(|i| oracle::dpo(BETA * (x[i] - y[p[i]]), flip)).sum::<f64>() / 4.0;
        let cheapest = permutations(4).iter().map(cost).fold(f64::INFINITY, f64::min);
        let found = number(&loss(unpaired, flip).mean(&bare(&columns).0).expect("no weights"));
        close(found, cheapest, 1e-12, 1.0, "cheapest of 24");
    }

    /// Each pair's gradient is that of the sorted loss by central differences, and its value stands where the pair does.
    #[test]
    fn gradients_and_places(seed in any::<u64>(), unpaired in any::<bool>()) {
        const STEP: f64 = 1e-6;
        let columns = Columns::random(5, 1, seed);
        let sorted = |columns: &Columns| {
            let [mut x, mut y] = compared(columns, unpaired);
            x.sort_by(f64::total_cmp);
            y.sort_by(f64::total_cmp);
            x.iter().zip(&y).map(|(x, y)| oracle::dpo(BETA * (x - y), 0.0)).sum::<f64>()
        };
        let (batch, leaves) = bare(&columns);
        let losses = loss(unpaired, 0.0).per_pair(&batch).expect("no weights");
        losses.sum(Kind::Double).backward();
        let [x, y] = compared(&columns, unpaired);
        let rank = |i: usize| x.iter().enumerate().filter(|(j, v)| **v < x[i] || (**v == x[i] && *j < i)).count();
        let mut ordered = y;
        ordered.sort_by(f64::total_cmp);
        let expected: Vec<f64> = (0..5).map(|i| oracle::dpo(BETA * (x[i] - ordered[rank(i)]), 0.0)).collect();
        all_close(&numbers(&losses), &expected, 1e-12, "in the order of the pairs");
        // Ties have no slope of their own.
        let gap = |v: &[f64]| (0..5).flat_map(|i| (0..i).map(move |j| (v[i] - v[j]).abs())).fold(f64::INFINITY, f64::min);
        prop_assume!(gap(&x) > 1e-3 && gap(&ordered) > 1e-3);
        for i in 0..5 {
            let moved = |chosen: f64, rejected: f64| {
                let mut moved = columns.clone();
                moved.chosen[i] += chosen;
                moved.rejected[i] += rejected;
                sorted(&moved)
            };
            let slope = (moved(STEP, 0.0) - moved(-STEP, 0.0)) / (2.0 * STEP);
            close(numbers(&leaves[0].grad())[i], slope, 1e-7, 1.0, "chosen");
            let slope = (moved(0.0, STEP) - moved(0.0, -STEP)) / (2.0 * STEP);
            close(numbers(&leaves[1].grad())[i], slope, 1e-7, 1.0, "rejected");
        }
    }
}

/// Which reference, or which rejected response, lies beside which pair says nothing.
#[test]
fn the_other_side_may_be_shuffled() -> Result<()> {
    let columns = Columns::random(5, 1, 3);
    let rotated = |x: &[f64]| [&x[2..], &x[..2]].concat();
    let paired = Columns {
        ref_chosen: rotated(&columns.ref_chosen),
        ref_rejected: rotated(&columns.ref_rejected),
        ..columns.clone()
    };
    let unpaired = Columns {
        rejected: rotated(&columns.rejected),
        ref_rejected: rotated(&columns.ref_rejected),
        ..columns.clone()
    };
    for (is_unpaired, shuffled) in [(false, paired), (true, unpaired)] {
        let of = |columns: &Columns| -> Result<Vec<f64>> {
            Ok(numbers(&loss(is_unpaired, 0.1).per_pair(&bare(columns).0)?))
        };
        all_close(&of(&shuffled)?, &of(&columns)?, 1e-13, format_args!("unpaired: {is_unpaired}"));
    }
    Ok(())
}

#[test]
fn of_one_pair_is_dpo() -> Result<()> {
    let (batch, _) = bare(&Columns::random(1, 1, 4));
    let dpo = number(&Dpo::new(BETA)?.with_flip_rate(0.1)?.mean(&batch)?);
    for unpaired in [false, true] {
        close(number(&loss(unpaired, 0.1).mean(&batch)?), dpo, 1e-14, 0.0, format_args!("unpaired: {unpaired}"));
    }
    Ok(())
}

/// Three equal policy differences against three reference ones: each pair gets one of them, the first the smallest.
#[test]
fn a_tie_takes_each_counterpart_once() -> Result<()> {
    let columns = Columns {
        chosen: vec![-10.0; 3],
        rejected: vec![-11.0; 3],
        ref_chosen: vec![-10.0, -9.0, -12.0],
        ref_rejected: vec![-11.0; 3],
        ..Columns::random(3, 1, 5)
    };
    let expected = [-1.0, 1.0, 2.0].map(|reference| oracle::dpo(BETA * (1.0 - reference), 0.0));
    all_close(&numbers(&loss(false, 0.0).per_pair(&bare(&columns).0)?), &expected, 1e-14, "ties");
    Ok(())
}

#[test]
fn weights_are_refused() -> Result<()> {
    let weighted = Columns::random(3, 1, 6).batch();
    let said = |loss: &str| {
        format!(
            "{loss} couples the sorted pairs of its batch, where a pair's weight would fall on another: give it a batch without weights"
        )
    };
    refused(loss(false, 0.0).per_pair(&weighted), &said("Aot"));
    refused(loss(true, 0.0).mean(&weighted), &said("AotUnpaired"));
    refused(Aot::new(0.0), "beta must be positive and finite, got 0");
    refused(AotUnpaired::new(0.1)?.with_flip_rate(0.5), "flip_rate must be at least 0 and below 0.5, got 0.5");
    Ok(())
}

/// A gradient of its parts would be another loss's: refused before anything moves, alone and inside a sum. In one part it trains.
#[test]
fn a_step_of_several_parts_is_refused() -> Result<()> {
    let columns = Columns::random(4, 1, 8);
    let (_, [leaf, other]) = bare(&columns);
    let (chosen, rejected) = (leaf.shallow_clone(), other.shallow_clone());
    let [ref_chosen, ref_rejected] = [&columns.ref_chosen, &columns.ref_rejected].map(|x| Tensor::from_slice(x));
    let forward = move |range: &(i64, i64)| -> Result<PreferenceBatch> {
        let of = |x: &Tensor| x.narrow(0, range.0, range.1);
        Ok(PreferenceBatch::new(PairLogps::new(of(&chosen), of(&rejected), of(&ref_chosen), of(&ref_rejected))?))
    };
    let descent = Descent::new(AdamW::new(vec![leaf.shallow_clone(), other], AdamWConfig::default())?, 0.1)?;
    for unpaired in [false, true] {
        assert!(loss(unpaired, 0.0).is_coupled());
    }
    let aot = Dpo::new(BETA)?.plus(0.5, Aot::new(BETA)?);
    let mut trainer = PolicyTrainer::new(aot, forward, descent, BETA)?;
    refused(
        trainer.step_over(&[(0, 2), (2, 2)]),
        "Aot couples each pair of its batch with another one, by ranks that move with the policy: give it the whole batch in one part",
    );
    assert_eq!(numbers(&leaf), columns.chosen);
    assert_eq!(trainer.step(&(0, 4))?.step, 1);
    assert_ne!(numbers(&leaf), columns.chosen);
    Ok(())
}

/// The likelihood beside it settles, AOT does not: no half of a sum is dropped.
#[test]
fn a_sum_does_not_settle_by_halves() -> Result<()> {
    let (batch, _) = bare(&Columns::random(3, 1, 9));
    let tokens = || Tensor::ones([3], (Kind::Int64, Device::Cpu));
    let batch = batch.with_lengths(prefopt::ResponseLengths::new(tokens(), tokens())?)?;
    let sum = Sft::new().plus(1.0, AotUnpaired::new(BETA)?);
    assert!(sum.is_coupled() && sum.per_pair(&batch).is_ok());
    refused(
        sum.settled(&batch),
        "AotUnpaired couples each pair of its batch with another one, by ranks that move with the policy: give it the whole batch in one part",
    );
    Ok(())
}
