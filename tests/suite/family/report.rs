//! What is said of a family on pairs that it has not seen.

use ndarray::{Array1, Array2, ArrayView1, Axis, arr2, array, aview1};
use prefopt::{
    Result, RewardScores,
    diagnostics::{FamilyReport, MemberReport},
    reward::{BradleyTerry, RewardBatch, RewardObjective},
    tch::Tensor,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::refused;
use crate::{all_close, close, number, oracle};

/// Every number of a member but its mean margin, which is the only one that a swap changes.
fn judged(report: &MemberReport) -> [f64; 4] {
    let longer = report.prefers_longer.unwrap_or(-1.0);
    [report.accuracy, report.log_loss, report.expected_calibration_error, longer]
}

/// Σ |Σ confidence − Σ label of what is preferred| over ten bins, by the definition.
fn calibration_error(margins: ArrayView1<f64>, labels: ArrayView1<f64>) -> f64 {
    let mut gaps = [0.0; 10];
    for (&margin, &label) in margins.iter().zip(labels) {
        let confidence = oracle::sigmoid(margin.abs());
        let preferred = match margin {
            m if m > 0.0 => label,
            m if m < 0.0 => 1.0 - label,
            _ => 0.5,
        };
        let bin = (0..10_u8).rev().find(|&bin| confidence >= 0.5 + 0.05 * f64::from(bin)).expect("at least ½");
        gaps[usize::from(bin)] += confidence - preferred;
    }
    gaps.iter().map(|gap: &f64| gap.abs()).sum::<f64>() / margins.len() as f64
}

#[test]
fn three_members_by_hand() -> Result<()> {
    let margins = array![[2.0, -1.0, 0.5, 0.0], [1.0, 1.0, -0.5, -3.0], [0.5, -2.0, -1.0, 1.0]];
    let labels = array![1.0, 0.25, 0.0, 1.0];
    let differences = array![3.0, -2.0, 0.0, -1.0];
    let report = FamilyReport::new(margins.view(), labels.view(), Some(differences.view()))?;

    // Signs +++, −+−, +−−, 0−+: of three pairs of members 3, 1, 1, and two halves.
    close(report.agreement, (1.0 + 1.0 / 3.0 + 1.0 / 3.0 + 1.0 / 3.0) / 4.0, 1e-14, 0.0, "agreement");
    assert_eq!(report.unanimous, 0.25);
    let accuracy = [(1.0 + 0.75 + 0.5) / 4.0, (1.0 + 0.25 + 1.0) / 4.0, (1.0 + 0.75 + 1.0 + 1.0) / 4.0];
    // The longer response is the chosen one of the first pair, the rejected one of the second and the fourth.
    let longer = [2.5 / 3.0, 2.0 / 3.0, 2.0 / 3.0];
    let mean = array![3.5 / 3.0, -2.0 / 3.0, -1.0 / 3.0, -2.0 / 3.0];
    let rows = margins.rows().into_iter().chain([mean.view()]);
    let accuracies = accuracy.into_iter().chain([(1.0 + 0.75 + 1.0) / 4.0]);
    let means = [0.375, -0.375, -0.375, -0.125];
    let found = report.members.iter().chain([&report.mean]);
    for (((member, row), accuracy), (margin, longer)) in
        found.zip(rows).zip(accuracies).zip(means.into_iter().zip(longer.into_iter().chain([1.0])))
    {
        let loss = |i: usize| oracle::matching(labels[i], 1.0 - labels[i], row[i]);
        close(member.accuracy, accuracy, 1e-15, 0.0, "accuracy");
        close(member.log_loss, oracle::mean((0..4).map(loss)), 1e-14, 0.0, "log loss");
        let error = calibration_error(row, labels.view());
        close(member.expected_calibration_error, error, 1e-14, 1.0, "calibration");
        close(member.margin, margin, 1e-14, 0.0, "margin");
        close(member.prefers_longer.expect("has lengths"), longer, 1e-15, 0.0, "longer");
    }
    Ok(())
}

#[test]
fn one_member_is_its_own_mean_and_of_one_mind() -> Result<()> {
    let report = FamilyReport::new(array![[1.5, 0.0, -2.0]].view(), aview1(&[1.0, 0.5, 0.25]), None)?;
    assert_eq!(report.members, [report.mean]);
    assert_eq!((report.agreement, report.unanimous), (1.0, 2.0 / 3.0));
    Ok(())
}

#[test]
fn twins_agree_and_opposites_do_not() -> Result<()> {
    let (labels, margins) = (aview1(&[1.0; 3]), [1.5, -0.5, 2.0]);
    let of = |second: [f64; 3]| FamilyReport::new(arr2(&[margins, second]).view(), labels, None);
    let twins = of(margins)?;
    assert_eq!((twins.agreement, twins.unanimous), (1.0, 1.0));
    assert_eq!(twins.members[1], twins.mean);
    let opposed = of(margins.map(|margin| -margin))?;
    assert_eq!((opposed.agreement, opposed.unanimous), (0.0, 0.0));
    // What is left of both prefers nothing.
    assert_eq!((opposed.mean.accuracy, opposed.mean.margin, opposed.mean.expected_calibration_error), (0.5, 0.0, 0.0));
    close(opposed.mean.log_loss, 2.0_f64.ln(), 1e-15, 0.0, "log loss");
    let undecided = of([0.0; 3])?;
    assert_eq!((undecided.agreement, undecided.unanimous), (0.5, 0.0));
    Ok(())
}

#[test]
fn a_preference_for_length_needs_lengths_that_differ() -> Result<()> {
    let (margins, labels) = (array![[1.0, -2.0]], aview1(&[1.0; 2]));
    let of = |differences: Option<[f64; 2]>| -> Result<Option<f64>> {
        let differences = differences.as_ref().map(|differences| aview1(differences));
        let report = FamilyReport::new(margins.view(), labels, differences)?;
        assert_eq!(report.mean.prefers_longer, report.members[0].prefers_longer);
        Ok(report.mean.prefers_longer)
    };
    assert_eq!([of(None)?, of(Some([0.0, 0.0]))?], [None, None]);
    assert_eq!(
        [of(Some([5.0, 0.0]))?, of(Some([0.0, 5.0]))?, of(Some([5.0, 5.0]))?],
        [Some(1.0), Some(0.0), Some(0.5)]
    );
    // The least margin there is has a sign too.
    let faint = FamilyReport::new(array![[5e-324]].view(), aview1(&[1.0]), Some(aview1(&[-0.25])))?;
    assert_eq!(faint.mean.prefers_longer, Some(0.0));
    Ok(())
}

/// Labels drawn as σ(Δr) says; the second member is thrice as sure, the third a third.
#[test]
fn an_honest_member_is_told_from_one_that_is_too_sure() -> Result<()> {
    const PAIRS: usize = 20_000;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let honest: Vec<f64> = (0..PAIRS).map(|_| rng.random_range(-3.0..3.0)).collect();
    let hard: Array1<f64> =
        honest.iter().map(|&margin| if rng.random::<f64>() < oracle::sigmoid(margin) { 1.0 } else { 0.0 }).collect();
    let scales = [1.0, 3.0, 1.0 / 3.0];
    let margins = Array2::from_shape_fn((3, PAIRS), |(member, pair)| scales[member] * honest[pair]);

    let report = FamilyReport::new(margins.view(), hard.view(), None)?;
    let errors = [0, 1, 2].map(|member: usize| report.members[member].expected_calibration_error);
    // In numpy, over five seeds: .005 to .009, .13 to .14, .16 to .17.
    assert!(errors[0] < 0.02 && errors[1] > 0.1 && errors[2] > 0.1, "{errors:?}");
    assert!((0.76..0.81).contains(&report.members[0].accuracy), "{}", report.members[0].accuracy);
    let losses = [0, 1, 2].map(|member: usize| report.members[member].log_loss);
    assert!(losses[0] + 0.05 < losses[1].min(losses[2]), "honesty is the least loss: {losses:?}");
    assert_eq!((report.agreement, report.unanimous), (1.0, 1.0));

    let soft: Array1<f64> = honest.iter().map(|&margin| oracle::sigmoid(margin)).collect();
    let exact = FamilyReport::new(margins.view(), soft.view(), None)?;
    assert!(exact.members[0].expected_calibration_error < 1e-12);
    Ok(())
}

#[test]
fn a_certain_member_has_a_finite_loss() -> Result<()> {
    let report = FamilyReport::new(array![[800.0, -800.0]].view(), aview1(&[1.0, 0.75]), None)?;
    assert_eq!((report.mean.log_loss, report.mean.accuracy), (300.0, 0.625));
    Ok(())
}

#[test]
fn a_report_is_read_by_others() -> Result<()> {
    let report = FamilyReport::new(array![[0.0]].view(), aview1(&[1.0]), None)?;
    let member = r#"{"accuracy":0.5,"log_loss":0.6931471805599453,"expected_calibration_error":0.0,"margin":0.0,"prefers_longer":null}"#;
    let text = format!(r#"{{"members":[{member}],"mean":{member},"agreement":1.0,"unanimous":0.0}}"#);
    assert_eq!(serde_json::to_string(&report).expect("plain data"), text);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() {
    let of = |margins: Array2<f64>, labels: &[f64], differences: Option<&[f64]>| {
        FamilyReport::new(margins.view(), aview1(labels), differences.map(aview1))
    };
    let one = || array![[1.0, -1.0]];
    let empty = "margins is empty: shape [members, pairs] needs at least one element";
    refused(of(Array2::zeros((0, 2)), &[1.0; 2], None), empty);
    refused(of(Array2::zeros((2, 0)), &[], None), empty);
    refused(of(array![[0.0, 0.0], [0.0, f64::NAN]], &[1.0; 2], None), "margins[3] must be finite, got NaN");
    refused(of(one(), &[1.0; 3], None), "labels must have shape [pairs] with pairs = 2, got pairs = 3");
    refused(of(one(), &[1.0, -0.5], None), "labels[1] must be in [0, 1], got -0.5");
    refused(of(one(), &[f64::NAN, 0.5], None), "labels[0] must be in [0, 1], got NaN");
    let short = "length_differences must have shape [pairs] with pairs = 2, got pairs = 1";
    refused(of(one(), &[1.0; 2], Some(&[3.0])), short);
    let infinite = "length_differences[1] must be finite, got inf";
    refused(of(one(), &[1.0; 2], Some(&[3.0, f64::INFINITY])), infinite);
}

/// Margins `[members, pairs]`, labels and differences of lengths, with ties in each.
fn families() -> impl Strategy<Value = (Array2<f64>, Array1<f64>, Array1<f64>)> {
    let pair = |members: usize| (prop::collection::vec(-8..9_i32, members), 0..17_i32, -2..3_i32);
    let pairs = (1..6_usize).prop_flat_map(move |members| prop::collection::vec(pair(members), 1..20));
    pairs.prop_map(|pairs| {
        let margins = |(member, pair): (usize, usize)| f64::from(pairs[pair].0[member]) / 4.0;
        (
            Array2::from_shape_fn((pairs[0].0.len(), pairs.len()), margins),
            pairs.iter().map(|(_, label, _)| f64::from(*label) / 16.0).collect(),
            pairs.iter().map(|(_, _, difference)| f64::from(*difference)).collect(),
        )
    })
}

proptest! {
    #[test]
    fn which_response_is_called_chosen_changes_the_mean_margin_alone(
        (margins, labels, differences) in families(),
        swaps: u32,
    ) {
        let swap = |pair: usize| (swaps >> pair) & 1 == 1;
        let sign = |pair: usize| if swap(pair) { -1.0 } else { 1.0 };
        let turned = (
            Array2::from_shape_fn(margins.dim(), |(member, pair)| sign(pair) * margins[(member, pair)]),
            Array1::from_shape_fn(labels.len(), |pair| if swap(pair) { 1.0 - labels[pair] } else { labels[pair] }),
            Array1::from_shape_fn(labels.len(), |pair| sign(pair) * differences[pair]),
        );
        let plain = FamilyReport::new(margins.view(), labels.view(), Some(differences.view())).expect("valid");
        let other = FamilyReport::new(turned.0.view(), turned.1.view(), Some(turned.2.view())).expect("valid");
        for (other, plain) in other.members.iter().chain([&other.mean]).zip(plain.members.iter().chain([&plain.mean])) {
            all_close(&judged(other), &judged(plain), 1e-12, "judged");
        }
        all_close(&[other.agreement, other.unanimous], &[plain.agreement, plain.unanimous], 1e-12, "of one mind");
    }

    /// By the definition, over pairs of members; whatever their order.
    #[test]
    fn members_are_compared_in_pairs((margins, labels, _) in families()) {
        let (members, pairs) = margins.dim();
        let couples: Vec<(usize, usize)> = (0..members).flat_map(|m| (0..m).map(move |k| (m, k))).collect();
        let agree = |a: f64, b: f64| {
            if a == 0.0 || b == 0.0 { 0.5 } else { f64::from(u8::from((a > 0.0) == (b > 0.0))) }
        };
        let of_pair = |pair: usize| {
            let column = margins.column(pair);
            let agreements = couples.iter().map(|&(m, k)| agree(column[m], column[k]));
            if members == 1 { 1.0 } else { oracle::mean(agreements) }
        };
        let report = FamilyReport::new(margins.view(), labels.view(), None).expect("valid");
        close(report.agreement, oracle::mean((0..pairs).map(of_pair)), 1e-12, 1.0, "agreement");
        let same = |pair: &usize| {
            let column = margins.column(*pair);
            column.iter().all(|&margin| margin > 0.0) || column.iter().all(|&margin| margin < 0.0)
        };
        close(report.unanimous, (0..pairs).filter(same).count() as f64 / pairs as f64, 1e-12, 1.0, "unanimous");
        prop_assert!(report.unanimous <= report.agreement + 1e-12);

        let reversed = margins.select(Axis(0), &(0..members).rev().collect::<Vec<_>>());
        let reversed = FamilyReport::new(reversed.view(), labels.view(), None).expect("valid");
        let backwards: Vec<MemberReport> = report.members.iter().rev().copied().collect();
        prop_assert_eq!(&reversed.members, &backwards);
        prop_assert_eq!((reversed.agreement, reversed.unanimous), (report.agreement, report.unanimous));
    }

    /// And of convex losses the mean model's is at most the members' mean.
    #[test]
    fn the_log_loss_is_what_members_are_trained_on((margins, labels, _) in families()) {
        let report = FamilyReport::new(margins.view(), labels.view(), None).expect("valid");
        let rows: Vec<Vec<f64>> = margins.rows().into_iter().map(|row| row.to_vec()).collect();
        let chosen = Tensor::from_slice2(&rows);
        let scores = RewardScores::new(chosen.shallow_clone(), chosen.zeros_like()).expect("fit");
        let batch = RewardBatch::new(scores).with_soft_labels(Tensor::from_slice(&labels.to_vec())).expect("fits");
        let trained = BradleyTerry::new(0.0).and_then(|objective| objective.mean(&batch)).expect("a loss");
        let members = oracle::mean(report.members.iter().map(|member| member.log_loss));
        close(members, number(&trained), 1e-12, 1.0, "log loss");
        prop_assert!(report.mean.log_loss <= members + 1e-12);
    }
}
