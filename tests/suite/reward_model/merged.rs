//! Adapters folded into the weights, of language models and of reward models.

use std::collections::BTreeSet;

use prefopt::tch::{Kind, no_grad_guard};

use super::{SCORE, load, on, row};
use crate::{
    all_close,
    lm::{
        Outcome,
        adapters::disturbed,
        refused,
        tiny::{self, Golden, gradients_of},
    },
    numbers,
};

#[test]
fn merged_weights_compute_what_the_adapter_did() -> Outcome {
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        let adapted = disturbed(tiny::model(&case.config, Kind::Double))?;
        let expected = numbers(&adapted.logits(&golden.batch())?);
        let plain = numbers(&adapted.reference()?.logits(&golden.batch())?);
        assert!(expected.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3), "{name}: the adapter does something");

        let merged = adapted.merged()?;
        let found = merged.logits(&golden.batch())?;
        all_close(&numbers(&found), &expected, 1e-10, name);
        refused(merged.reference(), &["no adapter"]);
        assert!(merged.named_parameters().all(|(_, tensor)| tensor.requires_grad()), "{name}");
        let names: BTreeSet<String> = merged.parameters().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, case.gradient_norms.keys().cloned().collect::<BTreeSet<_>>(), "{name}");
        found.sum(Kind::Double).backward();
        assert!(merged.parameters().iter().all(|(_, tensor)| tensor.grad().defined()), "{name}");
    }
    refused(tiny::case("llama", Kind::Float).merged(), &["no adapter", "merge"]);
    Ok(())
}

#[test]
fn half_precision_is_merged_in_single() -> Outcome {
    let wide = disturbed(tiny::case("gpt2", Kind::BFloat16))?;
    // The same weights and adapter in f32.
    let expected = disturbed(tiny::case("gpt2", Kind::Float))?;
    for ((_, to), (_, from)) in expected.named_parameters().zip(wide.named_parameters()) {
        let _no_grad = no_grad_guard();
        to.shallow_clone().copy_(from);
    }
    let (found, expected) = (wide.merged()?, expected.merged()?);
    for ((name, found), (_, expected)) in found.named_parameters().zip(expected.named_parameters()) {
        assert_eq!(found.kind(), Kind::BFloat16);
        assert_eq!(numbers(found), numbers(&expected.to_kind(Kind::BFloat16)), "{name}");
    }
    Ok(())
}

#[test]
fn an_adapter_is_merged_into_what_is_saved_alone() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for (name, case) in &golden.cases {
        let model = on(disturbed(tiny::model(&case.config, Kind::Double))?)?;
        let before = numbers(&model.response_scores(&row)?);
        let folder = tempfile::tempdir()?;
        model.save(folder.path())?;
        assert_eq!(numbers(&model.response_scores(&row)?), before, "{name}: in memory it is as it was");
        let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
        let (last, adapter) = names.split_last().expect("w");
        assert_eq!(last, SCORE);
        assert!(!adapter.is_empty() && adapter.iter().all(|name| name.contains(".lora_")), "{name}: {names:?}");

        let again = load(folder.path(), Kind::Double)?;
        all_close(&numbers(&again.response_scores(&row)?), &before, 1e-10, name);
        assert!(again.parameters().iter().all(|(name, _)| !name.contains("lora")), "{name}");

        model.scores(&row)?.margins().sum(Kind::Double).backward();
        for (weight, gradient) in gradients_of(model.parameters()) {
            assert!(gradient.norm().double_value(&[]) > 0.0, "{name}: {weight}");
        }
    }
    Ok(())
}
