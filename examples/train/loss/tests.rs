use prefopt::{
    PairLogps, PreferenceBatch, ResponseLengths, Result as Checked, RewardScores,
    loss::{Dpo, FDivergence, ForwardKl, Kto, MarginLoss, OddsRatio, Sft, SimPo, Sppo, UncertaintyWeighted},
    pairs::UnpairedBatch,
    tch::Tensor,
};

use super::{
    catalogue::{LOSSES, REFUSED, names},
    *,
};

fn spec(text: &str) -> LossSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

fn refusal(text: &str) -> String {
    match text.parse::<LossSpec>() {
        Ok(spec) => panic!("{text} is taken for {spec}"),
        Err(error) => error.to_string(),
    }
}

fn paired(text: &str) -> Box<dyn PreferenceLoss> {
    match spec(text).objective() {
        Ok(Objective::Paired(loss)) => loss,
        other => panic!("{text}: {other:?}"),
    }
}

fn vector<const N: usize>(values: [f64; N]) -> Tensor {
    Tensor::from_slice(&values)
}

/// Two pairs with lengths and the scores of two members.
fn batch() -> Checked<PreferenceBatch> {
    let logps =
        PairLogps::new(vector([-12.0, -9.0]), vector([-11.0, -14.0]), vector([-12.5, -8.0]), vector([-10.5, -14.5]))?;
    let lengths = || Tensor::from_slice(&[4_i64, 6]);
    let scores = RewardScores::new(
        Tensor::from_slice2(&[[0.4, 0.9], [0.1, 0.7]]),
        Tensor::from_slice2(&[[0.1, 0.3], [0.2, 0.0]]),
    )?;
    PreferenceBatch::new(logps).with_lengths(ResponseLengths::new(lengths(), lengths())?)?.with_rewards(scores)
}

fn numbers(loss: &dyn PreferenceLoss) -> Vec<f64> {
    let losses = batch().and_then(|batch| loss.per_pair(&batch)).expect("the batch has what the loss reads");
    Vec::try_from(losses).expect("f64")
}

#[test]
fn every_name_builds_and_reads_its_own_text() {
    for name in names() {
        let spec = spec(name);
        spec.objective().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let text = spec.to_string();
        assert_eq!(text.parse::<LossSpec>().expect("its own text"), spec, "{text}");
        assert_eq!(text.parse::<LossSpec>().expect("its own text").to_string(), text);
        assert_eq!(serde_json::to_value(&spec).expect("a string"), Value::from(text));
        assert!(listing().contains(&format!("  {name} ")), "{name} is not listed");
    }
}

/// A key that the enum did not know would be dropped in silence.
#[test]
fn every_key_reaches_the_loss() {
    for entry in LOSSES {
        let text = spec(entry.name).to_string();
        for key in entry.keys.iter().filter(|key| key.name != "ratio") {
            assert!(text.contains(&format!("{}=", key.name)), "{}: {text}", key.name);
        }
        for key in entry.keys {
            let keys::Takes::Word(words) = key.takes else { continue };
            for word in words {
                let text = format!("{}:{}={word}", entry.name, key.name);
                assert!(spec(&text).to_string().contains(&format!("{}={word}", key.name)), "{text}");
            }
        }
    }
}

#[test]
fn the_text_is_canonical() {
    for (text, canonical) in [
        ("dpo", "dpo:beta=0.1,flip_rate=0"),
        (" DPO : flip-rate = .25 , beta=1e-1 ", "dpo:beta=0.1,flip_rate=0.25"),
        ("cdpo", "dpo:beta=0.1,flip_rate=0.1"),
        ("cdpo:flip_rate=0.2", "dpo:beta=0.1,flip_rate=0.2"),
        ("dpo:per_token", "dpo:beta=0.1,flip_rate=0,per_token=true"),
        ("dpo:wpo=false", "dpo:beta=0.1,flip_rate=0"),
        ("exo_pair", "exo:beta=0.1,label_smoothing=0.001"),
        ("simpo", "simpo:beta=2,margin=1,flip_rate=0"),
        ("simpo:beta=4,ratio=0.25", "simpo:beta=4,margin=1,flip_rate=0"),
        ("simpo:margin=0.3", "simpo:beta=2,margin=0.3,flip_rate=0"),
        ("orpo", "sft:average=batch + 0.1*odds-ratio"),
        (
            "mpo:beta=0.2,bco=0.5,average=response",
            "dpo:beta=0.2,flip_rate=0 + 0.5*bco:beta=0.2,shift=0 + 1.25*sft:average=response",
        ),
        ("cpo:sft=0.5,beta=0.2", "cpo-preference:beta=0.2,flip_rate=0 + 0.5*sft:average=batch"),
        (
            "dpo+0.5*p-dpo:gamma=1e-2",
            "dpo:beta=0.1,flip_rate=0 + 0.5*dpo:beta=0.1,flip_rate=0 + 0.005*forward-kl:estimator=own_responses",
        ),
        ("dpo + 1e+2*sft", "dpo:beta=0.1,flip_rate=0 + 100*sft:average=batch"),
        ("bco:shift=+2", "bco:beta=0.1,shift=2"),
        ("bco:shift=running", "bco:beta=0.1,shift=running"),
        ("apo-zero-unpaired", "kto:beta=0.1,desirable_weight=1,undesirable_weight=1,baseline=0"),
        ("ld-dpo:tail_weight=0.3", "dpo:beta=0.1,flip_rate=0,transform=length_desensitised,tail_weight=0.3"),
        ("ipo:under=alpha-divergence", "ipo:tau=0.1,under=alpha_divergence,alpha=0.5"),
        ("hinge:weighted=uncertainty", "hinge:beta=0.1,weighted=uncertainty,temperature=1"),
    ] {
        assert_eq!(spec(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn needs_are_those_of_all_terms() {
    let (free, reference) = (Needs::default(), Needs { reference: true, ..Needs::default() });
    for (text, needs) in [
        ("dpo", reference),
        ("dpo:transform=reference_free", free),
        ("dpo:transform=reference_free + 0.1*reverse-kl", Needs { policy_samples: true, ..reference }),
        ("orpo", free),
        ("simpo + 1*sft", free),
        ("simpo + 0.1*dpo", reference),
        ("spo + 0.1*reverse-kl", Needs { policy_samples: true, ..reference }),
        ("drdo", Needs { rewards: Rewards::One, student_scores: true, ..free }),
        ("d-dpo", Needs { rewards: Rewards::One, ..reference }),
        ("matching", Needs { rewards: Rewards::One, ..reference }),
        ("matching:target=soft_labels", reference),
        ("sppo", reference),
        ("sppo:win_rate=rewards", Needs { rewards: Rewards::One, ..reference }),
        (
            "e-dpo + 0.001*forward-kl:estimator=reference_samples",
            Needs { rewards: Rewards::Family, reference_samples: true, ..reference },
        ),
        ("sft + 1*e-dpo", Needs { rewards: Rewards::Family, ..reference }),
        ("updpo", Needs { rewards: Rewards::Family, ..reference }),
        ("simpo:weighted=uncertainty", Needs { rewards: Rewards::Family, ..free }),
        ("ipo + 0.1*simpo:wpo=true", Needs { policy_weights: true, ..reference }),
        ("kto", Needs { mismatched: true, ..reference }),
        ("apo-zero-unpaired", reference),
        ("gpo", Needs { rewards: Rewards::One, policy_samples: true, ..free }),
        ("ld-dpo", Needs { tail_weight: Some(0.5), ..reference }),
    ] {
        assert_eq!(spec(text).needs(), needs, "{text}");
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    for (text, expected) in [
        ("dpoo", "unknown loss `dpoo`: the nearest are dpo, dpop; `train --losses` lists all"),
        (
            "dpo:bta=1",
            "dpo has no key `bta`: it has beta, flip_rate, under, alpha, per_token, weighted, temperature, wpo, \
             transform, tail_weight",
        ),
        ("gpo:wpo=true", "gpo has no key `wpo`: it has beta, centring"),
        (
            "orpo:beta=1",
            "orpo has no key `beta`: it has odds_ratio, average, weighted, temperature, wpo, transform, tail_weight",
        ),
        (
            "cpo:estimator=own_responses",
            "cpo has no key `estimator`: it has sft, beta, flip_rate, weighted, temperature, wpo, transform, \
             tail_weight, average",
        ),
        ("p-dpo:gamma=-1", "gamma of p-dpo must be at least 0, got `-1`"),
        ("orpo:odds_ratio=-0.1", "odds_ratio of orpo must be at least 0, got `-0.1`"),
        ("mpo:sft=-1", "sft of mpo must be at least 0, got `-1`"),
        ("dpo + 1*cpo:sft=x", "sft of cpo must be a finite number, got `x`"),
        ("dpo:beta=-1", "dpo: beta must be positive and finite, got -1"),
        ("dpo:beta=nan", "beta of dpo must be a finite number, got `nan`"),
        ("dpo:beta", "beta of dpo must be a finite number, got `true`"),
        ("dpo:flip_rate=0.5", "dpo: flip_rate must be at least 0 and below 0.5, got 0.5"),
        (
            "ipo:beta=1",
            "ipo has no key `beta`: it has tau, under, alpha, per_token, weighted, temperature, wpo, \
             transform, tail_weight",
        ),
        ("simpo:ratio=-1", "simpo: margin must be at least 0 and finite, got -2"),
        ("simpo:ratio=1,margin=1", "simpo has `margin`, or `ratio` for margin/beta, and not both"),
        ("bco:shift=walking", "shift of bco must be a finite number or `running`, got `walking`"),
        ("kto:baseline=-1", "kto: baseline must be at least 0 and finite, got -1"),
        ("dpo:weighted=uncertainty,temperature=0", "dpo: temperature must be positive and finite, got 0"),
        ("dpo:temperature=1", "dpo: `temperature` is that of weighted=…, which is not given"),
        ("dpo:alpha=1", "dpo: `alpha` is the order of under=alpha_divergence, which is not given"),
        ("dpo:tail_weight=1", "`tail_weight` is that of transform=length_desensitised, which is not given"),
        ("ld-dpo:tail_weight=2", "tail_weight: ld_alpha must be at least 0 and at most 1, got 2"),
        ("e-dpo:minimum=mean", "minimum of e-dpo must be one of batch, pair, hull, dataset, got `mean`"),
        ("dpo:beta=1,beta=2", "dpo has the key `beta` twice"),
        ("dpo:", "dpo has a key without a name: write dpo:KEY=VALUE,KEY=VALUE"),
        ("0.5*dpo", "the first loss has weight 1: write `dpo` without `0.5*`"),
        ("dpo + x*sft", "a weight must be a finite number, got `x`"),
        ("dpo + ", "a loss has the form NAME:KEY=VALUE,… + WEIGHT*NAME…, and a term of it has no name"),
        ("dpo + 0.1*kto", "kto is a loss of single responses: it stands alone, in no sum"),
        ("gpo + 0.1*sft", "gpo is a loss of a prompt's samples: it stands alone, in no sum"),
        (
            "dpo + 0.1*sft:transform=per_token",
            "`transform` is of the whole batch: give it with the first term, not with sft",
        ),
        (
            "apo-zero:under=forward_kl",
            "`under` fits losses of the log-ratio margin alone (dpo, robust-dpo, ipo, hinge, exo, discopop), and \
             apo-zero is none",
        ),
        ("d-dpo + 0.1*e-dpo", "d-dpo reads one reward model and e-dpo a family of them: they do not go together"),
        (
            "d-dpo:weighted=uncertainty",
            "d-dpo reads one reward model and its weight a family of them: they do not go together",
        ),
        (
            "e-dpo:minimum=dataset + 1*bco:shift=running",
            "at most one of minimum=dataset and shift=running can follow the run, and there are 2",
        ),
        ("simpo:transform=per_token", "simpo divides by the responses' lengths: leave `transform=per_token` out"),
        (
            "dpo:per_token=true,transform=per_token",
            "dpo divides by the responses' lengths: leave `transform=per_token` out",
        ),
        (
            "simpo:transform=length_desensitised",
            "simpo divides by the responses' lengths: leave `transform=length_desensitised` out",
        ),
        (
            "orpo:transform=length_desensitised",
            "sft divides by the responses' lengths: leave `transform=length_desensitised` out",
        ),
        ("ld-dpo:per_token=true", "dpo divides by the responses' lengths: leave `transform=length_desensitised` out"),
        ("drdo:transform=per_token", "drdo divides by the responses' lengths: leave `transform=per_token` out"),
    ] {
        assert_eq!(refusal(text), expected, "{text}");
    }
    spec("drdo:likelihood=sum,transform=per_token");
    spec("sft:average=none,transform=per_token");
    spec("ld-dpo + 0.1*sft:average=none");
}

#[test]
fn what_the_library_has_and_this_program_has_not_is_refused() {
    for refused in REFUSED {
        let text =
            refused.key.map_or(refused.name.to_owned(), |(key, value)| format!("{}:{key}={value}", refused.name));
        assert_eq!(refusal(&text), format!("`{text}` cannot be trained here: {}", refused.why));
        assert!(listing().contains(&text), "{text} is not listed");
    }
}

#[test]
fn a_spec_is_the_library_s_loss() -> Checked<()> {
    let weighted = UncertaintyWeighted::new(Dpo::new(0.2)?, 2.0)?;
    let mpo = Dpo::new(0.1)?.plus(0.25, BcoPair::new(0.1)?).plus(1.25, Sft::new());
    let losses: [(&str, Box<dyn PreferenceLoss>); 8] = [
        ("dpo:beta=0.2 + 0.5*forward-kl", Box::new(Dpo::new(0.2)?.plus(0.5, ForwardKl::OwnResponses))),
        ("simpo", Box::new(SimPo::with_ratio(2.0, 0.5)?)),
        ("orpo", Box::new(Sft::new().plus(0.1, OddsRatio))),
        ("mpo", Box::new(mpo)),
        ("dpo:under=js_divergence,per_token", Box::new(Dpo::new(0.1)?.under(FDivergence::JensenShannon).per_token())),
        ("dpo:beta=0.2,weighted=uncertainty,temperature=2", Box::new(weighted)),
        ("p-dpo:beta=0.2,gamma=0.5", Box::new(Dpo::new(0.2)?.plus(0.5, ForwardKl::OwnResponses))),
        ("sppo:beta=2", Box::new(Sppo::hard(2.0)?)),
    ];
    for (text, expected) in &losses {
        assert_eq!(numbers(&paired(text)), numbers(expected), "{text}");
    }
    Ok(())
}

#[test]
fn what_moves_is_put_in() {
    let family = spec("e-dpo:minimum=dataset + 0.1*sft");
    assert_eq!(family.moving(), Some(Moving::DatasetMinimum));
    assert!(family.pessimistic().expect("checked").is_some() && family.bco().expect("checked").is_none());
    let member = |member| numbers(&family.with_member(member).expect("checked"));
    assert_eq!(member(0), numbers(&paired("e-dpo:minimum=dataset + 0.1*sft")));
    assert_ne!(member(0), member(1));
    let shifting = spec("bco:shift=running");
    assert_eq!(shifting.moving(), Some(Moving::RewardShift));
    assert!(shifting.pessimistic().expect("checked").is_none() && shifting.bco().expect("checked").is_some());
    assert_eq!(numbers(&shifting.with_shift(0.3).expect("checked")), numbers(&paired("bco:shift=0.3")));
    assert_eq!(spec("e-dpo").moving(), None);
}

#[test]
fn beta_is_the_first_loss_s() {
    for (text, beta) in
        [("dpo:beta=0.3", 0.3), ("ipo:tau=0.5", 0.1), ("simpo + 1*dpo", 2.0), ("orpo", 0.1), ("kto:beta=1", 1.0)]
    {
        assert_eq!(spec(text).beta(), beta, "{text}");
    }
}

#[test]
fn scores_that_are_no_win_rates_are_refused() -> Checked<()> {
    let one = |best: f64| batch()?.with_rewards(RewardScores::single(&vector([0.5, best]), &vector([0.5, 0.0]))?);
    let loss = paired("sppo:win_rate=rewards");
    let _ = loss.per_pair(&one(1.0)?)?;
    let error = loss.per_pair(&one(1.5)?).expect_err("no win rate").to_string();
    assert!(error.starts_with("chosen_scores[1] must be in [0, 1]") && error.ends_with("got 1.5"), "{error}");
    Ok(())
}

#[test]
fn a_baseline_of_the_loss_goes_before_the_batch_s() -> Checked<()> {
    let batch = |baseline: f64| UnpairedBatch::of_pairs(batch()?.logps()).with_baseline(baseline);
    let Ok(Objective::Unpaired(loss)) = spec("kto:baseline=0.2").objective() else { panic!("kto is unpaired") };
    let numbers = |losses: Tensor| Vec::<f64>::try_from(losses).expect("f64");
    let expected = numbers(Kto::new(0.1)?.per_response(&batch(0.2)?)?);
    assert_eq!(numbers(loss.per_response(&batch(0.7)?)?), expected);
    Ok(())
}
