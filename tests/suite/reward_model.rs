//! Reward models: on any decoder, on a packed row as on each sequence alone, and in transformers' format.

mod decoders;
mod files;
mod merged;

use std::{collections::BTreeSet, num::NonZeroUsize, path::Path};

use prefopt::{
    Result,
    lm::{CausalLm, LoraConfig, ModelError, RewardModel},
    logps::Decoder,
    packed::PackedRow,
    tch::{Device, Kind, Tensor, no_grad_guard},
};

use crate::{
    all_close,
    lm::{
        Outcome, refused,
        tiny::{self, Golden, gradients, gradients_of},
    },
    numbers,
};

const SCORE: &str = "score.weight";
const MEMBERS: usize = 3;

fn members() -> NonZeroUsize {
    NonZeroUsize::new(MEMBERS).expect("not 0")
}

/// w by formula, `[members, width]`.
fn score(width: i64, kind: Kind) -> Tensor {
    tiny::value(SCORE, &[MEMBERS as i64, width]).to_kind(kind)
}

/// On a language model, with w by formula.
fn on(model: CausalLm) -> Result<RewardModel, ModelError> {
    let model = RewardModel::on(model, members(), 0)?;
    let (_, weight) = model.parameters().pop().expect("w");
    let _no_grad = no_grad_guard();
    weight.shallow_clone().copy_(&score(model.config().width(), weight.kind()));
    Ok(model)
}

fn case(name: &str, kind: Kind) -> Result<RewardModel, ModelError> {
    on(tiny::case(name, kind))
}

fn load(folder: &Path, kind: Kind) -> Result<RewardModel, ModelError> {
    RewardModel::load(folder, Device::Cpu, kind)
}

/// Prompt and response of two pairs, of unlike lengths. Responses end with 2, the end of a text, or were cut off.
fn sequences(golden: &Golden) -> [(&[i64], &[i64]); 4] {
    let (a, b) = (&golden.tokens[0], &golden.tokens[1]);
    [(&a[4..], &a[1..4]), (&a[4..], &b[1..2]), (&b[2..9], &b[9..]), (&b[2..9], &a[..4])]
}

fn row(golden: &Golden) -> Result<PackedRow> {
    let [first, second, third, fourth] = sequences(golden);
    PackedRow::pairs([(first.0, first.1, second.1), (third.0, third.1, fourth.1)], Device::Cpu)
}

/// w·h of each sequence read by itself, at its last token, `[members, responses]`.
fn by_hand(trunk: &CausalLm, weight: &Tensor, golden: &Golden) -> Result<Tensor> {
    let last = |&(prompt, response): &(&[i64], &[i64])| -> Result<Tensor> {
        let row = PackedRow::sequences([(prompt, response)], Device::Cpu)?;
        let hidden = trunk.hidden(&row, row.everything())?;
        Ok(weight.matmul(&hidden.get(row.len() - 1)))
    };
    Ok(Tensor::stack(&sequences(golden).iter().map(last).collect::<Result<Vec<_>>>()?, 1))
}

#[test]
fn a_packed_row_scores_as_each_sequence_alone() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for (name, case) in &golden.cases {
        let trunk = tiny::model(&case.config, Kind::Double);
        let expected = numbers(&by_hand(&trunk, &score(trunk.config().width(), Kind::Double), &golden)?);
        let model = on(trunk)?;
        assert_eq!((model.members(), model.kind(), model.device()), (3, Kind::Double, Device::Cpu));

        let found = model.response_scores(&row)?;
        assert_eq!((found.size(), found.kind()), (vec![3, 4], Kind::Double));
        all_close(&numbers(&found), &expected, 1e-11, name);
        let pairs = model.scores(&row)?;
        assert_eq!((pairs.members(), pairs.batch()), (3, 2));
        let every_second = |first| expected.iter().skip(first).step_by(2).copied().collect::<Vec<_>>();
        all_close(&numbers(pairs.chosen()), &every_second(0), 1e-11, name);
        all_close(&numbers(pairs.rejected()), &every_second(1), 1e-11, name);

        let distinct: BTreeSet<String> = expected.iter().map(|score| format!("{score:.6}")).collect();
        assert_eq!(distinct.len(), 12, "{name}: scores that differ, or the order would not show");
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_each_sequence_alone() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    let cotangent = tiny::value("cotangent", &[MEMBERS as i64, 4]);
    for name in golden.cases.keys() {
        let trunk = tiny::case(name, Kind::Double);
        let weight = score(trunk.config().width(), Kind::Double).set_requires_grad(true);
        (by_hand(&trunk, &weight, &golden)? * &cotangent).sum(Kind::Double).backward();
        let mut expected = gradients(&trunk);
        expected.remove("lm_head.weight");
        expected.insert(SCORE.to_owned(), weight.grad());

        for model in [case(name, Kind::Double)?, case(name, Kind::Double)?.with_checkpointing()] {
            (model.response_scores(&row)? * &cotangent).sum(Kind::Double).backward();
            let found = gradients_of(model.parameters());
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
            for (weight, found) in &found {
                let what = format!("{name}: {weight}");
                all_close(&numbers(found), &numbers(&expected[weight]), 1e-10, &what);
                assert!(found.norm().double_value(&[]) > 0.0, "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn new_members_are_drawn_from_the_seed() -> Outcome {
    let drawn = |seed, kind| -> Result<Tensor, ModelError> {
        let model = RewardModel::on(tiny::case("llama", kind), members(), seed)?;
        Ok(model.parameters().pop().expect("w").1)
    };
    let first = drawn(1, Kind::Double)?;
    assert_eq!((first.size(), first.requires_grad()), (vec![3, 12], true));
    assert_eq!(numbers(&first), numbers(&drawn(1, Kind::Double)?));
    assert_ne!(numbers(&first), numbers(&drawn(2, Kind::Double)?));
    assert_ne!(numbers(&first.get(0)), numbers(&first.get(1)));
    assert!(numbers(&first).iter().all(|w| w.abs() < 0.034_642));
    assert_eq!(drawn(1, Kind::BFloat16)?.kind(), Kind::Float);
    Ok(())
}

#[test]
fn one_seed_draws_members_an_adapter_and_a_trunk_apart() -> Outcome {
    let config = tiny::case("llama", Kind::Double).config().clone();
    let trunk = CausalLm::new(config, Device::Cpu, Kind::Double, 7)?;
    let embedding = trunk.named_parameters().next().expect("an embedding").1.shallow_clone();
    let trunk = trunk.with_lora(LoraConfig::new(members(), 6.0, ["q_proj"])?, 7)?;
    let model = RewardModel::on(trunk, members(), 7)?;
    let of = |name: &str| {
        model.parameters().into_iter().find(|(found, _)| found.ends_with(name)).expect("a parameter of this name").1
    };
    let score = of(SCORE).get(0);
    for (name, other) in [("A", of("lora_A.weight")), ("the embedding", embedding)] {
        let other = other.get(0);
        let cosine = (score.dot(&other) / (score.norm() * other.norm())).double_value(&[]);
        assert!(cosine.abs() < 0.99, "w and {name} have the cosine {cosine}");
    }
    Ok(())
}

#[test]
fn half_precision_scores_in_single() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for name in ["gpt2", "llama"] {
        let half = case(name, Kind::BFloat16)?;
        let found = half.response_scores(&row)?;
        assert_eq!((half.kind(), found.kind()), (Kind::BFloat16, Kind::Float));
        let off = (found.to_kind(Kind::Double) - case(name, Kind::Double)?.response_scores(&row)?).abs();
        assert!(off.max().double_value(&[]) < 0.1, "{name}: {off:?}");
        half.scores(&row)?.margins().sum(Kind::Float).backward();
        assert!(half.parameters().iter().all(|(_, tensor)| tensor.grad().defined()), "{name}");
    }
    Ok(())
}

#[test]
fn rows_that_do_not_fit_are_named() -> Outcome {
    let model = case("llama", Kind::Float)?;
    let single = PackedRow::sequences([(&[1, 5][..], &[9, 2][..])], Device::Cpu)?;
    assert_eq!(model.response_scores(&single)?.size(), [3, 1]);
    refused(model.scores(&single), &["scores", "[members, 2 · pairs]", "responses = 2", "responses = 1"]);
    let unknown = PackedRow::sequences([(&[1, 13][..], &[2][..])], Device::Cpu)?;
    refused(model.response_scores(&unknown), &["vocabulary", "13"]);
    Ok(())
}
