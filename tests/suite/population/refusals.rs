//! What votes, mixtures and games refuse, and what a configuration file may say.

use ndarray::{Array1, Array2, array};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    population::{
        AnnotatorMixture, Assignment, KMeans, PairWeights, PolicyMixture, Responsibilities, Votes, adjusted_rand_index,
        held_out_log_likelihood, min_max, regret_matrix,
    },
};

use super::{Cast, bounded_log_odds, soft};

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn votes_that_cannot_be() {
    let votes = |who: &[usize], on: &[usize], first: &[bool]| Votes::new(who, on, first, (3, 2));
    refused(votes(&[], &[], &[]), "annotators is empty: shape [votes] needs at least one element");
    refused(votes(&[0, 1], &[0], &[true; 2]), "pairs must have shape [votes] with votes = 2, got votes = 1");
    refused(votes(&[0], &[0], &[]), "first_preferred must have shape [votes] with votes = 1, got votes = 0");
    refused(votes(&[0, 3], &[0, 1], &[true; 2]), "annotators[1] must be below the number of annotators, got 3");
    refused(votes(&[0, 1, 2], &[0, 2, 1], &[true; 3]), "vote 1 is on pair 2, but there are 2, numbered from 0");
    let gap = "annotator 1 has no vote: number those who voted from 0 without a gap";
    refused(votes(&[0, 2], &[0, 1], &[true; 2]), gap);
    let last = "annotator 2 has no vote: number those who voted from 0 without a gap";
    refused(votes(&[1, 0], &[0, 1], &[true; 2]), last);
    let cast = Votes::new(&[0, 0], &[0, 1], &[true, false], (1, 2)).expect("fits");
    for share in [0.0, 1.0, -0.1, f64::NAN] {
        let said = format!("held-out share must be above 0 and below 1, got {share}");
        refused(cast.hold_out(share, &mut ChaCha8Rng::seed_from_u64(0)), &said);
    }
}

#[test]
fn mixtures_that_cannot_be() -> Result<()> {
    let votes = Cast::opposed((4, 3), 2, 0.8, 23).votes();
    let rng = &mut ChaCha8Rng::seed_from_u64(24);
    for outcome in [
        KMeans::new(5)?.by_votes(&votes, rng),
        KMeans::new(5)?.by_features(Array2::zeros((4, 2)).view(), rng),
        AnnotatorMixture::new(3)?
            .fit(&votes, Responsibilities::new(Array2::from_elem((4, 5), 0.2))?, bounded_log_odds)
            .map(|fit| fit.responsibilities),
    ] {
        refused(outcome, "5 types were asked for, but there are only 4 annotators");
    }
    refused(KMeans::new(2)?.by_features(array![[0.0], [f64::NAN]].view(), rng), "features[1] must be finite, got NaN");
    refused(KMeans::new(0), "types must be at least 1, got 0");
    refused(KMeans::new(2)?.with_restarts(0), "restarts must be at least 1, got 0");
    refused(AnnotatorMixture::new(0), "rounds must be at least 1, got 0");
    refused(AnnotatorMixture::new(1)?.with_tolerance(-1.0), "tolerance must be at least 0 and finite, got -1");

    refused(
        Responsibilities::new(array![[0.5, 0.5], [0.5, 0.25]]),
        "row 1 of responsibilities must sum to 1, got 0.75",
    );
    refused(
        Responsibilities::new(array![[0.5, 0.5], [-0.5, 1.5]]),
        "responsibilities[2] must be at least 0 and finite, got -0.5",
    );
    refused(
        Responsibilities::new(Array2::zeros((0, 2))),
        "responsibilities is empty: shape [annotators, types] needs at least one element",
    );

    let margins = Array2::zeros((2, 3));
    let shares = soft().expect(&votes, array![0.5, 0.75].view(), margins.view());
    refused(shares, "row 0 of proportions must sum to 1, got 1.25");
    refused(
        soft().expect(&votes, array![1.0].view(), margins.view()),
        "margins must have shape [types, pairs] with types = 1, got types = 2",
    );
    refused(
        soft().expect(&votes, array![0.5, 0.5].view(), Array2::zeros((2, 4)).view()),
        "margins must have shape [types, pairs] with pairs = 3, got pairs = 4",
    );
    refused(
        soft().expect(&votes, array![1.0].view(), array![[0.0, f64::INFINITY, 0.0]].view()),
        "margins[1] must be finite, got inf",
    );
    let few = Responsibilities::new(Array2::ones((3, 1)))?;
    let short = "responsibilities must have shape [annotators, types] with annotators = 4, got annotators = 3";
    refused(PairWeights::new(&votes, &few), short);
    refused(soft().fit(&votes, few.clone(), bounded_log_odds), short);
    refused(held_out_log_likelihood(&few, Array2::zeros((1, 3)).view(), &votes), short);
    refused(adjusted_rand_index(&[0, 1], &[0]), "second must have shape [n] with n = 2, got n = 1");

    // What the caller's training says passes through, whatever its type.
    let start = || Responsibilities::new(Array2::ones((4, 1)));
    let failed = soft().fit(&votes, start()?, |_| anyhow::bail!("the policy did not train"));
    assert_eq!(failed.expect_err("must fail").to_string(), "the policy did not train");
    refused(
        soft().fit(&votes, start()?, |_| Ok(Array2::zeros((2, 3)))),
        "margins must have shape [types, pairs] with types = 1, got types = 2",
    );
    Ok(())
}

#[test]
fn games_that_cannot_be() -> Result<()> {
    let regrets =
        |shape: (usize, usize), weights: Array1<f64>| regret_matrix(Array2::zeros(shape).view(), weights.view());
    refused(
        regrets((3, 2), array![1.0, 1.0, 1.0]),
        "log_ratios must have shape [types, columns] with columns = 3, got columns = 2",
    );
    refused(regrets((2, 2), array![1.0]), "weights must have shape [types] with types = 2, got types = 1");
    refused(regrets((2, 2), array![1.0, -1.0]), "weights[1] must be at least 0 and finite, got -1");
    refused(
        regrets((0, 2), Array1::zeros(0)),
        "log_ratios is empty: shape [types, columns] needs at least one element",
    );
    refused(
        regret_matrix(array![[f64::NEG_INFINITY]].view(), array![1.0].view()),
        "log_ratios[0] must be finite, got -inf",
    );
    let payoff = array![[0.0, 2.0], [-4.0, 0.0]];
    refused(min_max(payoff.view(), 0, None), "rounds must be at least 1, got 0");
    refused(
        min_max(Array2::zeros((0, 2)).view(), 5, None),
        "payoff is empty: shape [types, policies] needs at least one element",
    );
    refused(min_max(array![[f64::NAN]].view(), 5, None), "payoff[0] must be finite, got NaN");
    for step in [0.0, -0.01, 0.063, f64::NAN] {
        let said = format!("step must be positive and at most 1/(4 max |payoff|), got {step}");
        refused(min_max(payoff.view(), 5, Some(step)), &said);
    }
    assert!(min_max(payoff.view(), 5, Some(0.0625)).is_ok());

    refused(PolicyMixture::new(vec![0.5, 0.75]), "row 0 of weights must sum to 1, got 1.25");
    refused(PolicyMixture::new(Vec::new()), "row 0 of weights must sum to 1, got 0");
    refused(PolicyMixture::new(vec![1.5, -0.5]), "weights[1] must be at least 0 and finite, got -0.5");
    let two = PolicyMixture::new(vec![0.5, 0.5])?;
    refused(
        two.log_probability(Array2::zeros((1, 3)).view()),
        "members must have shape [members, responses] with members = 2, got members = 1",
    );
    refused(
        two.log_probability(array![[0.0], [f64::NAN]].view()),
        "members[1] must be a number below infinity, got NaN",
    );
    Ok(())
}

#[test]
fn configurations_survive_a_file() -> Result<()> {
    let mixture = AnnotatorMixture::new(20)?.with_tolerance(1e-4)?.with_assignment(Assignment::Hard);
    let text = serde_json::to_string(&mixture).expect("serialises");
    assert_eq!(text, r#"{"rounds":20,"tolerance":0.0001,"assignment":"hard"}"#);
    assert_eq!(serde_json::from_str::<AnnotatorMixture>(&text).expect("valid"), mixture);
    assert_eq!(serde_json::from_str::<AnnotatorMixture>(r#"{"rounds":5}"#).expect("valid"), AnnotatorMixture::new(5)?);
    assert_eq!(serde_json::from_str::<KMeans>(r#"{"types":3}"#).expect("valid"), KMeans::new(3)?);
    let weights = PolicyMixture::new(vec![0.25, 0.75])?;
    assert_eq!(serde_json::to_string(&weights).expect("serialises"), "[0.25,0.75]");
    assert_eq!(serde_json::from_str::<PolicyMixture>("[0.25,0.75]").expect("valid"), weights);
    assert!(serde_json::from_str::<PolicyMixture>("[0.25,0.25]").is_err());
    let said = |json: &str| serde_json::from_str::<AnnotatorMixture>(json).expect_err("must be refused").to_string();
    assert!(said(r#"{"rounds":0}"#).starts_with("invalid value: integer `0`"), "{}", said(r#"{"rounds":0}"#));
    assert!(said(r#"{"rounds":1,"tolerance":-1}"#).starts_with("tolerance must be at least 0 and finite, got -1"));
    assert!(said(r#"{"rounds":1,"restarts":3}"#).starts_with("unknown field `restarts`"));
    Ok(())
}
