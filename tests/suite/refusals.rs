//! Every refusal by its message. Those of a missing column are in `values`, of a step in `steps`.

use prefopt::{
    Error, PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, ResponseTable, Result, RewardScores,
    diagnostics::preference_metrics,
    logps::{response_logps, token_logps},
    loss::{
        Dpo, Hinge, Ipo, Minimum, PessimisticDistillation, ProbabilityMatching, RewardDistillation, RobustDpo, from_fn,
    },
    reward::{BradleyTerry, EnsembleHead, RewardBatch, RewardScorer, ScalarHead},
    tch::{Device, Kind, Tensor, nn},
    train::{AdamW, AdamWConfig, Descent, RunningMinimum, Warmup},
};

use crate::columns::Columns;

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}

fn batch() -> PreferenceBatch {
    PreferenceBatch::new(PairLogps::new(zeros(&[3]), zeros(&[3]), zeros(&[3]), zeros(&[3])).expect("fits"))
}

fn descent() -> Result<Descent> {
    Descent::new(AdamW::new(vec![zeros(&[1]).set_requires_grad(true)], AdamWConfig::default())?, 0.1)
}

#[test]
fn numbers_outside_their_domain_through_new() {
    for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let said = format!("beta must be positive and finite, got {beta}");
        refused(Dpo::new(beta), &said);
        refused(RobustDpo::new(beta, 0.1), &said);
        refused(Hinge::new(beta), &said);
        refused(RewardDistillation::new(beta), &said);
        refused(ProbabilityMatching::to_rewards(beta), &said);
        refused(ProbabilityMatching::to_soft_labels(beta), &said);
        refused(PessimisticDistillation::new(beta), &said);
        refused(preference_metrics(&batch(), beta), &said);
        refused(Ipo::new(beta), &format!("tau must be positive and finite, got {beta}"));
    }
    for rate in [-0.1, 0.5, 1.0, f64::NAN] {
        let said = format!("flip_rate must be at least 0 and below 0.5, got {rate}");
        refused(Dpo::new(0.1).and_then(|dpo| dpo.with_flip_rate(rate)), &said);
        refused(RobustDpo::new(0.1, rate), &said);
    }
    for weight in [f64::NAN, f64::INFINITY] {
        let sum = Dpo::new(0.1).expect("in its domain").plus(weight, Hinge::new(0.1).expect("in its domain"));
        refused(sum.per_pair(&batch()), &format!("weight must be finite, got {weight}"));
    }
    refused(BradleyTerry::new(-0.1), "centring must be at least 0 and finite, got -0.1");
    refused(descent().and_then(|d| d.with_max_norm(Some(0.0))), "max_norm must be positive, got 0");
    let rate = Descent::new(
        AdamW::new(vec![zeros(&[1]).set_requires_grad(true)], AdamWConfig::default()).expect("a leaf"),
        -1.0,
    );
    refused(rate, "learning_rate must be at least 0 and finite, got -1");
    refused(AdamWConfig::new((1.0, 0.9), 1e-8, 0.0), "decay must be at least 0 and below 1, got 1");
    refused(AdamWConfig::new((0.9, -0.5), 1e-8, 0.0), "decay must be at least 0 and below 1, got -0.5");
    refused(AdamWConfig::new((0.9, 0.9), 0.0, 0.0), "epsilon must be positive and finite, got 0");
    refused(AdamWConfig::new((0.9, 0.9), 1e-8, -1.0), "weight_decay must be at least 0 and finite, got -1");
    refused(Warmup::new(5).then_cosine(5), "last step must be after the warm-up, got 5");
}

/// A configuration file must not walk around `new`.
#[test]
fn numbers_outside_their_domain_through_serde() {
    fn said<T: json::Parsed>(json: &str) -> String {
        T::refusal(json)
    }
    let beta = "beta must be positive and finite, got -1";
    for message in [
        said::<Dpo>(r#"{"beta": -1}"#),
        said::<RobustDpo>(r#"{"beta": -1, "flip_rate": 0.1}"#),
        said::<Hinge>(r#"{"beta": -1}"#),
        said::<RewardDistillation>(r#"{"beta": -1}"#),
        said::<ProbabilityMatching>(r#"{"beta": -1, "target": "rewards"}"#),
        said::<PessimisticDistillation>(r#"{"beta": -1}"#),
    ] {
        assert!(message.starts_with(beta), "{message}");
    }
    for (message, start) in [
        (said::<Ipo>(r#"{"tau": 0}"#), "tau must be positive and finite, got 0"),
        (said::<Dpo>(r#"{"beta": 1, "flip_rate": 0.5}"#), "flip_rate must be at least 0 and below 0.5, got 0.5"),
        (said::<BradleyTerry>(r#"{"centring": -2}"#), "centring must be at least 0 and finite, got -2"),
        (said::<AdamWConfig>(r#"{"beta1": 1}"#), "decay must be at least 0 and below 1, got 1"),
        (said::<AdamWConfig>(r#"{"epsilon": 0}"#), "epsilon must be positive and finite, got 0"),
        (said::<AdamWConfig>(r#"{"weight_decay": -1}"#), "weight_decay must be at least 0 and finite, got -1"),
        (said::<Dpo>(r#"{"beta": 1, "label_smoothing": 0.1}"#), "unknown field `label_smoothing`"),
        (said::<Ipo>(r#"{"tau": 1, "beta": 1}"#), "unknown field `beta`"),
        (said::<PessimisticDistillation>(r#"{"beta": 1, "min": "pair"}"#), "unknown field `min`"),
        (said::<Warmup>(r#"{"steps": 1, "until": 4}"#), "unknown field `until`"),
        (said::<Hinge>("{}"), "missing field `beta`"),
    ] {
        assert!(message.starts_with(start), "{message}");
    }
}

mod json {
    /// What a type says to a JSON text that it must refuse.
    pub trait Parsed {
        fn refusal(json: &str) -> String;
    }

    macro_rules! parsed {
        ($($name:ty),*) => { $(impl Parsed for $name {
            fn refusal(json: &str) -> String {
                serde_json::from_str::<$name>(json).expect_err("must be refused").to_string()
            }
        })* };
    }

    use prefopt::{loss::*, reward::BradleyTerry, train::*};
    parsed!(
        Dpo,
        RobustDpo,
        Hinge,
        RewardDistillation,
        ProbabilityMatching,
        PessimisticDistillation,
        Ipo,
        BradleyTerry,
        AdamWConfig,
        Warmup
    );
}

#[test]
fn shapes_of_log_probabilities() {
    let z = zeros;
    let pairs = |a: &[i64], b: &[i64], c: &[i64], d: &[i64]| PairLogps::new(z(a), z(b), z(c), z(d));
    refused(pairs(&[3, 1], &[3], &[3], &[3]), "chosen_logps must have shape [batch], got [3, 1]");
    refused(pairs(&[], &[3], &[3], &[3]), "chosen_logps must have shape [batch], got []");
    refused(pairs(&[3], &[2], &[3], &[3]), "rejected_logps must have shape [batch] with batch = 3, got batch = 2");
    refused(pairs(&[3], &[3], &[1, 3], &[3]), "ref_chosen_logps must have shape [batch], got [1, 3]");
    refused(pairs(&[3], &[3], &[3], &[1]), "ref_rejected_logps must have shape [batch] with batch = 3, got batch = 1");
    let empty = "chosen_logps is empty: shape [batch] needs at least one element";
    refused(pairs(&[0], &[0], &[0], &[0]), empty);
}

#[test]
fn kinds_of_log_probabilities() {
    let of = |kind| Tensor::zeros([3], (kind, Device::Cpu));
    let pairs = |first, second| PairLogps::new(of(first), of(second), of(first), of(first));
    let half = "chosen_logps must be Float or Double (losses lose their digits in half precision), got ";
    for kind in [Kind::Half, Kind::BFloat16, Kind::Int64] {
        refused(pairs(kind, kind), &format!("{half}{kind:?}"));
    }
    refused(pairs(Kind::Double, Kind::Float), "rejected_logps must be Double like the rest of its batch, got Float");
    refused(pairs(Kind::Float, Kind::Double), "rejected_logps must be Float like the rest of its batch, got Double");
}

#[test]
fn columns_that_do_not_fit() {
    let scores = |a: &[i64], b: &[i64]| RewardScores::new(zeros(a), zeros(b));
    refused(scores(&[3], &[3]), "chosen_scores must have shape [members, batch], got [3]");
    refused(
        scores(&[2, 3], &[1, 3]),
        "rejected_scores must have shape [members, batch] with members = 2, got members = 1",
    );
    refused(scores(&[2, 3], &[2, 4]), "rejected_scores must have shape [members, batch] with batch = 3, got batch = 4");
    refused(RewardScores::single(&zeros(&[1, 3]), &zeros(&[3])), "chosen_scores must have shape [batch], got [1, 3]");
    refused(
        scores(&[2, 4], &[2, 4]).and_then(|s| batch().with_rewards(s)),
        "chosen_scores must have shape [members, batch] with batch = 3, got batch = 4",
    );
    let table = |a: &[i64], b: &[i64]| ResponseTable::new(zeros(a), zeros(b));
    refused(table(&[3], &[3]), "policy_logps must have shape [batch, responses], got [3]");
    refused(
        table(&[3, 2], &[3, 1]),
        "reference_logps must have shape [batch, responses] with responses = 2, got responses = 1",
    );
    refused(
        table(&[3, 2], &[1, 2]),
        "reference_logps must have shape [batch, responses] with batch = 3, got batch = 1",
    );
    let mixed = ResponseTable::new(zeros(&[3, 2]), zeros(&[3, 2]).to_kind(Kind::Float));
    refused(mixed, "reference_logps must be of the kind of policy_logps, got Float");
    let short = "policy_logps must have shape [batch, responses] with batch = 3, got batch = 2";
    refused(table(&[2, 2], &[2, 2]).and_then(|t| batch().with_reference_samples(t)), short);
    refused(table(&[2, 2], &[2, 2]).and_then(|t| batch().with_all_responses(t)), short);
    let narrow = ResponseTable::new(zeros(&[3, 2]).to_kind(Kind::Float), zeros(&[3, 2]).to_kind(Kind::Float));
    refused(
        narrow.and_then(|t| batch().with_all_responses(t)),
        "policy_logps must be of the kind of chosen_logps, got Float",
    );
    refused(batch().with_weights(zeros(&[3, 1])), "weights must have shape [batch], got [3, 1]");
    refused(batch().with_soft_labels(zeros(&[2])), "soft_labels must have shape [batch] with batch = 3, got batch = 2");
    let margin =
        RewardScores::new(zeros(&[1, 3]), zeros(&[1, 3])).and_then(|s| RewardBatch::new(s).with_margin(zeros(&[2])));
    refused(margin, "margin must have shape [batch] with batch = 3, got batch = 2");
}

#[test]
fn elements_outside_their_domain() {
    let t = |x: [f64; 3]| Tensor::from_slice(&x);
    refused(batch().with_weights(t([1.0, -0.5, 1.0])), "weights[1] must be at least 0 and finite, got -0.5");
    refused(batch().with_weights(t([1.0, 1.0, f64::NAN])), "weights[2] must be at least 0 and finite, got NaN");
    refused(batch().with_weights(t([f64::INFINITY, 1.0, 1.0])), "weights[0] must be at least 0 and finite, got inf");
    refused(batch().with_weights(t([0.0; 3])), "sum of weights must be positive, got 0");
    let family = RewardScores::new(zeros(&[2, 3]), zeros(&[2, 3])).expect("fit each other");
    refused(
        batch().with_student_scores(family),
        "with_student_scores takes one reward model, got 2: choose one with RewardScores::member, or average with RewardScores::averaged",
    );
    refused(batch().with_soft_labels(t([0.0, 1.0, 1.5])), "soft_labels[2] must be in [0, 1], got 1.5");
    refused(batch().with_soft_labels(t([f64::NAN, 1.0, 0.5])), "soft_labels[0] must be in [0, 1], got NaN");
    let n = |x: [i64; 3]| Tensor::from_slice(&x);
    let empty = "rejected_lengths[1] must be at least 1 token (an empty response has no mean), got 0";
    refused(ResponseLengths::new(n([1, 2, 3]), n([4, 0, 6])), empty);
    refused(ResponseLengths::new(t([1.0; 3]), n([4, 0, 6])), "chosen_lengths must be Int64, got Double");
    let two =
        ResponseLengths::new(Tensor::from_slice(&[1_i64, 2]), Tensor::from_slice(&[1_i64, 2])).expect("fit each other");
    let said = "chosen_lengths must have shape [batch] with batch = 3, got batch = 2";
    refused(batch().map_logps(|logps| logps.per_token(&two)), said);
    refused(batch().with_lengths(two), said);
}

#[test]
fn families_of_the_wrong_size() -> Result<()> {
    let family = Columns::random(2, 3, 1).batch();
    let one = |loss| {
        format!(
            "{loss} takes one reward model, got 3: choose one with RewardScores::member, or average with RewardScores::averaged"
        )
    };
    refused(RewardDistillation::new(0.1)?.per_pair(&family), &one("RewardDistillation"));
    refused(ProbabilityMatching::to_rewards(0.1)?.per_pair(&family), &one("ProbabilityMatching"));
    for index in [-1, 3] {
        let said = format!("reward model {index} was asked for, but the batch has 3, numbered from 0");
        let loss = PessimisticDistillation::new(0.1)?.with_minimum(Minimum::Dataset { member: index });
        refused(loss.per_pair(&family), &said);
        refused(family.rewards().expect("scores").member(index), &said);
    }
    let tracker = RunningMinimum::new();
    refused(tracker.member(), "the running minimum has seen no batch since its last reset");
    refused(tracker.means(), "the running minimum has seen no batch since its last reset");
    Ok(())
}

/// `[batch, 1]` would broadcast without a word to `[batch, batch]`.
#[test]
fn columns_from_closures() -> Result<()> {
    let column = |b: &PreferenceBatch| b.logps().chosen().unsqueeze(1);
    refused(Dpo::new(0.1)?.weighted_by(column).per_pair(&batch()), "weight must have shape [batch], got [3, 1]");
    let scalar = |b: &PreferenceBatch| b.logps().chosen().get(0);
    refused(Dpo::new(0.1)?.weighted_by(scalar).per_pair(&batch()), "weight must have shape [batch], got []");
    refused(
        from_fn(|b| Ok(b.logps().chosen().unsqueeze(1))).mean(&batch()),
        "loss of the closure must have shape [batch], got [3, 1]",
    );
    refused(
        from_fn(|_| Err(Error::NothingObserved)).mean(&batch()),
        "the running minimum has seen no batch since its last reset",
    );
    Ok(())
}

#[test]
fn logits_and_masks() {
    let ints = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int64, Device::Cpu));
    let mask = |shape: &[i64]| Tensor::zeros(shape, (Kind::Bool, Device::Cpu));
    let score = |logits: &Tensor, tokens: &Tensor, response: &Tensor| response_logps(logits, tokens, response);
    let logits = zeros(&[2, 4, 5]);
    refused(
        score(&zeros(&[2, 5]), &ints(&[2, 4]), &mask(&[2, 4])),
        "logits must have shape [batch, time, vocab], got [2, 5]",
    );
    refused(
        score(&ints(&[2, 4, 5]), &ints(&[2, 4]), &mask(&[2, 4])),
        "logits must be of a floating-point kind, got Int64",
    );
    refused(
        score(&logits, &ints(&[2, 3]), &mask(&[2, 4])),
        "tokens must have shape [batch, time] with time = 4, got time = 3",
    );
    refused(
        score(&logits, &ints(&[2, 4]), &mask(&[1, 4])),
        "response must have shape [batch, time] with batch = 2, got batch = 1",
    );
    refused(score(&logits, &zeros(&[2, 4]), &mask(&[2, 4])), "tokens must be Int64, got Double");
    refused(score(&logits, &ints(&[2, 4]), &ints(&[2, 4])), "response must be Bool, got Int64");
    refused(token_logps(&logits, &zeros(&[2, 4])), "targets must be Int64, got Double");
    let beyond = token_logps(&logits, &(ints(&[2, 4]) + 5)).expect_err("no such token");
    assert!(matches!(beyond, Error::Torch(_)));
}

#[test]
fn hidden_states_of_another_width() -> Result<()> {
    let vs = nn::VarStore::new(Device::Cpu);
    let heads: [Box<dyn RewardScorer>; 2] = [
        Box::new(ScalarHead::new(&(vs.root() / "one"), 4)),
        Box::new(EnsembleHead::new(&(vs.root() / "many"), 4, 3, 2)),
    ];
    for head in heads {
        refused(head.scores(&zeros(&[2, 5])), "hidden must have shape [batch, width] with width = 4, got width = 5");
        refused(head.scores(&zeros(&[4])), "hidden must have shape [batch, width], got [4]");
    }
    Ok(())
}

/// The only refusal that this suite cannot provoke everywhere.
#[test]
fn tensors_on_two_devices() -> Result<()> {
    if !prefopt::tch::Cuda::is_available() {
        eprintln!("skipped: no CUDA device");
        return Ok(());
    }
    let there = zeros(&[3]).to_device(Device::Cuda(0));
    let said = "rejected_logps is on Cuda(0), expected Cpu like the tensors it goes with";
    refused(PairLogps::new(zeros(&[3]), there, zeros(&[3]), zeros(&[3])), said);
    Ok(())
}
