//! Calibration of implicit probabilities.

use std::num::NonZeroUsize;

use ndarray::{Array1, array, aview1};
use prefopt::{Result, diagnostics::Reliability};
use proptest::prelude::*;

use crate::{all_close, close};

const TEN: NonZeroUsize = NonZeroUsize::new(10).expect("is not 0");

#[test]
fn reliability_by_hand() -> Result<()> {
    let logit = |p: f64| (p / (1.0 - p)).ln();
    // Confidences .6, .6, .9 for the first, the second and the first response.
    let margins = array![logit(0.6), -logit(0.6), logit(0.9)];
    let labels = array![1.0, 0.5, 0.6];
    let found = Reliability::new(margins.view(), labels.view(), NonZeroUsize::new(4).expect("is not 0"))?;
    let bins: Vec<f64> = found.bins.iter().flat_map(|bin| [bin.weight, bin.predicted, bin.observed]).collect();
    all_close(&bins, &[2.0, 0.6, 0.75, 1.0, 0.9, 0.6], 1e-13, "bins");
    close(found.expected_error, (2.0 * 0.15 + 0.3) / 3.0, 1e-13, 0.0, "expected error");
    close(found.overconfidence, (-2.0 * 0.15 + 0.3) / 3.0, 1e-13, 1.0, "overconfidence");
    close(found.brier, (0.16 + 0.01 + 0.09) / 3.0, 1e-13, 0.0, "brier");
    Ok(())
}

/// Full certainty and indifference have a bin too; votes count as that many pairs.
#[test]
fn reliability_at_the_ends_and_by_votes() -> Result<()> {
    let ends = Reliability::new(aview1(&[0.0, 800.0, -800.0]), aview1(&[0.3, 1.0, 1.0]), TEN)?;
    assert_eq!(
        ends.bins.iter().map(|bin| (bin.weight, bin.predicted, bin.observed)).collect::<Vec<_>>(),
        [(1.0, 0.5, 0.5), (2.0, 1.0, 0.5)]
    );
    let (margins, shares, votes) = ([0.3, -1.0, 2.0], [0.5, 0.25, 1.0], [2.0, 4.0, 1.0]);
    let voted = Reliability::of_votes(aview1(&margins), aview1(&shares), aview1(&votes), TEN)?;
    let times: Vec<usize> = vec![0, 0, 1, 1, 1, 1, 2];
    let [m, p] = [margins, shares].map(|column| times.iter().map(|&i| column[i]).collect::<Array1<f64>>());
    let repeated = Reliability::new(m.view(), p.view(), TEN)?;
    all_close(
        &[voted.expected_error, voted.overconfidence, voted.brier],
        &[repeated.expected_error, repeated.overconfidence, repeated.brier],
        1e-13,
        "votes",
    );
    assert_eq!(voted.bins.len(), repeated.bins.len());
    Ok(())
}

#[test]
fn reliability_refuses_what_is_no_probability() {
    let said = |outcome: Result<Reliability>| outcome.expect_err("must be refused").to_string();
    let of = |margins: &[f64], labels: &[f64]| Reliability::new(aview1(margins), aview1(labels), TEN);
    assert_eq!(said(of(&[], &[])), "margins is empty: shape [pairs] needs at least one element");
    assert_eq!(said(of(&[1.0, f64::NAN], &[0.5; 2])), "margins[1] must be finite, got NaN");
    assert_eq!(said(of(&[1.0], &[1.5])), "labels[0] must be in [0, 1], got 1.5");
    assert_eq!(said(of(&[1.0], &[0.5; 2])), "labels must have shape [pairs] with pairs = 1, got pairs = 2");
    let votes = Reliability::of_votes(aview1(&[1.0]), aview1(&[0.5]), aview1(&[0.0]), TEN);
    assert_eq!(said(votes), "votes[0] must be positive and finite, got 0");
}

proptest! {
    /// Which response is called chosen does not matter.
    #[test]
    fn reliability_does_not_see_the_order_of_a_pair(
        pairs in prop::collection::vec((-6.0..6.0_f64, 0.0..1.0_f64, any::<bool>()), 1..30),
    ) {
        let of = |turned: bool| {
            let turn = |swap: bool| turned && swap;
            let margins: Array1<f64> = pairs.iter().map(|&(m, _, swap)| if turn(swap) { -m } else { m }).collect();
            let labels: Array1<f64> = pairs.iter().map(|&(_, p, swap)| if turn(swap) { 1.0 - p } else { p }).collect();
            Reliability::new(margins.view(), labels.view(), TEN).expect("valid")
        };
        let (plain, turned) = (of(false), of(true));
        close(turned.expected_error, plain.expected_error, 1e-9, 1.0, "expected error");
        close(turned.brier, plain.brier, 1e-9, 1.0, "brier");
        prop_assert!(plain.expected_error >= plain.overconfidence.abs() - 1e-12);
    }
}
