//! Each family: values and gradients, packed and padded, with and without checkpointing, in every kind.

use std::collections::BTreeSet;

use serde_json::json;

use prefopt::{
    Result,
    lm::CausalLm,
    logps::{Decoder, response_logps_of},
    packed::PackedRow,
    tch::{Device, Kind, Tensor},
};

use super::{
    Outcome, refused,
    tiny::{self, Golden, gradients},
};
use crate::{all_close, close, numbers};

/// log π of each token but the first, `[batch, time − 1]`.
fn logps(model: &CausalLm, tokens: &Tensor) -> Result<Tensor> {
    let logits = model.logits(tokens)?;
    let (time, targets) = (tokens.size()[1], tokens.narrow(1, 1, tokens.size()[1] - 1));
    let log_softmax = logits.narrow(1, 0, time - 1).log_softmax(-1, None::<Kind>);
    Ok(log_softmax.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1))
}

/// Σ log π over the response, of each sequence by itself.
fn padded_sums(model: &CausalLm, sequences: &[(&[i64], &[i64])]) -> Result<Tensor> {
    let sum = |&(prompt, response): &(&[i64], &[i64])| -> Result<Tensor> {
        let tokens = Tensor::from_slice(&[prompt, response].concat()).unsqueeze(0);
        let (start, length) = (prompt.len() as i64 - 1, response.len() as i64);
        Ok(logps(model, &tokens)?.narrow(1, start, length).sum(Kind::Double))
    };
    Ok(Tensor::stack(&sequences.iter().map(sum).collect::<Result<Vec<_>>>()?, 0))
}

#[test]
fn values_and_gradients_are_those_of_transformers() -> Outcome {
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        let model = tiny::model(&case.config, Kind::Double);
        let logits = model.logits(&golden.batch())?;
        // What transformers computes in f32 in any case is good to that.
        all_close(&numbers(&logits.index_select(1, &Tensor::from_slice(&golden.shown))), &case.logits, 1e-5, name);
        let found = logps(&model, &golden.batch())?;
        all_close(&numbers(&found), &case.logps, 1e-5, name);

        found.sum(Kind::Double).backward();
        let found = gradients(&model);
        let names = |names: Vec<&String>| names.into_iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(found.keys().collect()), names(case.gradient_norms.keys().collect()), "{name}");
        for (weight, expected) in &case.gradient_norms {
            let norm = found[weight].norm().double_value(&[]);
            close(norm, *expected, 1e-4, 0.1, format_args!("{name}: gradient of {weight}"));
        }
    }
    Ok(())
}

#[test]
fn what_transformers_writes_is_read_as_the_same() -> Outcome {
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        let [hub, saved] = [&case.config, &case.saved_config].map(|config| tiny::model(config, Kind::Double));
        assert_eq!(numbers(&hub.logits(&golden.batch())?), numbers(&saved.logits(&golden.batch())?), "{name}");
    }
    Ok(())
}

/// Prompts of unlike lengths with one to three responses.
fn groups(tokens: &[Vec<i64>]) -> Vec<(&[i64], Vec<&[i64]>)> {
    let (a, b) = (&tokens[0], &tokens[1]);
    vec![(&a[..4], vec![&a[4..], &b[3..9]]), (&b[..1], vec![&b[1..]]), (&b[..7], vec![&a[..1], &a[2..6], &b[7..]])]
}

fn sequences<'a>(groups: &[(&'a [i64], Vec<&'a [i64]>)]) -> Vec<(&'a [i64], &'a [i64])> {
    groups.iter().flat_map(|(prompt, responses)| responses.iter().map(move |response| (*prompt, *response))).collect()
}

#[test]
fn packed_is_padded() -> Outcome {
    let golden = Golden::read();
    let groups = groups(&golden.tokens);
    for (name, case) in &golden.cases {
        let model = tiny::model(&case.config, Kind::Double);
        let row = PackedRow::groups(groups.iter().map(|(p, r)| (*p, r.iter().copied())), Device::Cpu)?;
        let packed = response_logps_of(&model, &row)?.sums;
        let padded = padded_sums(&model, &sequences(&groups))?;
        all_close(&numbers(&packed), &numbers(&padded), 1e-11, name);

        // Weights tell the responses apart.
        let weights = Tensor::arange(row.responses(), (Kind::Double, Device::Cpu)) + 1.0;
        (packed * &weights).sum(Kind::Double).backward();
        let of_packed = gradients(&model);
        (padded * &weights).sum(Kind::Double).backward();
        for (weight, expected) in gradients(&model) {
            all_close(
                &numbers(&of_packed[&weight]),
                &numbers(&expected),
                1e-10,
                format_args!("{name}: gradient of {weight}"),
            );
        }
    }
    Ok(())
}

#[test]
fn a_readout_is_a_part_of_everything() -> Outcome {
    let golden = Golden::read();
    let groups = groups(&golden.tokens);
    for (name, case) in &golden.cases {
        let model = tiny::model(&case.config, Kind::Double);
        let row = PackedRow::groups(groups.iter().map(|(p, r)| (*p, r.iter().copied())), Device::Cpu)?;
        let all = model.hidden(&row, row.everything())?;
        for readout in [row.predicting(), row.last()] {
            let part = model.hidden(&row, &readout)?;
            all_close(&numbers(&part), &numbers(&readout.select(&all)?), 1e-12, name);
        }
    }
    Ok(())
}

#[test]
fn long_rows_have_windows_too() -> Outcome {
    // Longer than a run of queries; windows that are shorter and longer than one, and longer than a response.
    let ids: Vec<i64> = (0..600).map(|i| (i * i + 3 * i) % 13).collect();
    let groups = [(&ids[..300], vec![&ids[300..450], &ids[450..579]]), (&ids[5..7], vec![&ids[20..40], &ids[9..10]])];
    for window in [1, 2, 37, 128, 200, 449, 450, 1000] {
        let mut config = Golden::read().cases["mistral_window"].config.clone();
        config["sliding_window"] = json!(window);
        config["max_position_embeddings"] = json!(450);
        let model = tiny::model(&config, Kind::Double);
        let row = PackedRow::groups(groups.iter().map(|(p, r)| (*p, r.iter().copied())), Device::Cpu)?;
        let packed = response_logps_of(&model, &row)?.sums;
        let padded = padded_sums(&model, &sequences(&groups))?;
        all_close(&numbers(&packed), &numbers(&padded), 1e-11, window);

        packed.sum(Kind::Double).backward();
        let of_packed = gradients(&model);
        padded.sum(Kind::Double).backward();
        for (weight, expected) in gradients(&model) {
            all_close(&numbers(&of_packed[&weight]), &numbers(&expected), 1e-9, format_args!("{window}: {weight}"));
        }
    }
    Ok(())
}

#[test]
fn checkpointing_changes_no_gradient() -> Outcome {
    let golden = Golden::read();
    let groups = groups(&golden.tokens);
    for (name, case) in &golden.cases {
        let plain = tiny::model(&case.config, Kind::Double);
        let sparing = tiny::model(&case.config, Kind::Double).with_checkpointing();
        let row = PackedRow::groups(groups.iter().map(|(p, r)| (*p, r.iter().copied())), Device::Cpu)?;
        let run = |model: &CausalLm| -> Result<_> {
            let sums = response_logps_of(model, &row)?.sums;
            sums.sum(Kind::Double).backward();
            Ok((numbers(&sums), gradients(model)))
        };
        let ((expected, of_plain), (found, of_sparing)) = (run(&plain)?, run(&sparing)?);
        assert_eq!(found, expected, "{name}");
        for (weight, expected) in of_plain {
            all_close(&numbers(&of_sparing[&weight]), &numbers(&expected), 1e-13, format_args!("{name}: {weight}"));
        }
    }
    Ok(())
}

#[test]
fn half_precision_is_near() -> Outcome {
    let golden = Golden::read();
    let groups = groups(&golden.tokens);
    for (name, case) in &golden.cases {
        let [wide, single, half] =
            [Kind::Double, Kind::Float, Kind::BFloat16].map(|kind| tiny::model(&case.config, kind));
        assert_eq!(half.kind(), Kind::BFloat16);
        let row = PackedRow::groups(groups.iter().map(|(p, r)| (*p, r.iter().copied())), Device::Cpu)?;
        let expected = response_logps_of(&wide, &row)?.sums;
        let found = response_logps_of(&single, &row)?.sums;
        all_close(&numbers(&found), &numbers(&expected), 1e-5, format_args!("{name} in f32"));
        let found = response_logps_of(&half, &row)?.sums;
        assert_eq!(found.kind(), Kind::Float, "{name}");
        all_close(&numbers(&found), &numbers(&expected), 0.05, format_args!("{name} in bf16"));
        let (found, expected) = (half.logits(&golden.batch())?, wide.logits(&golden.batch())?);
        let off = (found.to_kind(Kind::Double) - expected).abs().mean(Kind::Double).double_value(&[]);
        assert!(off < 0.1, "{name}: logits in bf16 are off by {off}");
    }
    Ok(())
}

#[test]
fn a_seed_is_a_model() -> Outcome {
    let config = tiny::case("llama", Kind::Float).config().clone();
    let new = |seed| CausalLm::new(config.clone(), Device::Cpu, Kind::Float, seed);
    let tokens = Golden::read().batch();
    let [a, b, c] = [new(1)?, new(1)?, new(2)?].map(|model| model.logits(&tokens));
    let (a, b, c) = (numbers(&a?), numbers(&b?), numbers(&c?));
    assert_eq!(a, b);
    assert_ne!(a, c);
    let model = new(3)?;
    let weight = model.named_parameters().find(|(name, _)| name.ends_with("gate_proj.weight"));
    let std = weight.expect("a gated MLP").1.std(true).double_value(&[]);
    close(std, 0.02, 0.15, 0.0, "standard deviation");
    Ok(())
}

#[test]
fn tokens_and_lengths_beyond_the_model_are_refused() -> Outcome {
    for name in ["gpt2", "llama"] {
        let model = tiny::case(name, Kind::Float);
        refused(
            model.logits(&Tensor::from_slice2(&[[1_i64, 13]])),
            &["tokens[1]", "an index into the vocabulary", "13"],
        );
        refused(model.logits(&Tensor::from_slice2(&[[-1_i64, 2]])), &["tokens[0]", "-1"]);
        refused(model.logits(&Tensor::from_slice(&[1_i64])), &["tokens must have shape [batch, time]"]);
        let long = [1_i64; 65];
        refused(model.logits(&Tensor::from_slice2(&[long])), &["65 tokens", "context of 64"]);
        let row = PackedRow::sequences([(&long[..60], &long[..5])], Device::Cpu)?;
        refused(response_logps_of(&model, &row), &["65 tokens", "context of 64"]);
        let row = PackedRow::sequences([(&long[..60], &long[..4])], Device::Cpu)?;
        response_logps_of(&model, &row)?;
    }
    refused(
        CausalLm::new(tiny::case("llama", Kind::Float).config().clone(), Device::Cpu, Kind::Half, 0),
        &["Float, BFloat16 or Double", "Half"],
    );
    Ok(())
}
