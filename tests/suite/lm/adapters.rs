//! LoRA: W + (α/r) B A written out, the reference that is the model without it, PEFT's files.

use std::{collections::BTreeSet, fs, num::NonZeroUsize};

use serde_json::{Value, json};

use prefopt::{
    Result,
    lm::{CausalLm, LoraConfig},
    logps::response_logps_of,
    packed::PackedRow,
    tch::{Device, Kind, Tensor, no_grad_guard},
};

use super::{
    Outcome, refused,
    tiny::{self, Golden, gradients},
};
use crate::{all_close, numbers};

const RANK: usize = 2;
const ALPHA: f64 = 3.0;

fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig::new(NonZeroUsize::new(RANK).expect("not 0"), ALPHA, targets.iter().copied()).expect("valid")
}

/// Some of the layers of either family.
fn targets(model: &CausalLm) -> &'static [&'static str] {
    let gpt2 = model.named_parameters().any(|(name, _)| name.starts_with("transformer."));
    if gpt2 { &["c_attn", "mlp.c_proj"] } else { &["q_proj", "v_proj", "o_proj", "down_proj"] }
}

/// With an adapter that changes something.
pub fn disturbed(model: CausalLm) -> Result<CausalLm> {
    let config = config(targets(&model));
    let model = model.with_lora(config, 5)?;
    let _no_grad = no_grad_guard();
    for (name, tensor) in model.parameters() {
        tensor.shallow_clone().copy_(&tiny::value(&name, &tensor.size()));
    }
    Ok(model)
}

fn row(golden: &Golden) -> Result<PackedRow> {
    let (a, b) = (&golden.tokens[0], &golden.tokens[1]);
    PackedRow::pairs([(&a[..4], &a[4..], &b[3..9]), (&b[..2], &b[2..], &a[1..7])], Device::Cpu)
}

#[test]
fn a_new_adapter_changes_nothing_and_is_all_that_is_trained() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for (name, case) in &golden.cases {
        let plain = tiny::model(&case.config, Kind::Double);
        let expected = numbers(&response_logps_of(&plain, &row)?.sums);
        let config = config(targets(&plain));
        let model = tiny::copied(&plain).with_lora(config, 5)?;
        let found = response_logps_of(&model, &row)?.sums;
        all_close(&numbers(&found), &expected, 1e-13, name);
        all_close(&numbers(&response_logps_of(&model.reference()?, &row)?.sums), &expected, 1e-13, name);

        assert!(model.named_parameters().all(|(_, tensor)| !tensor.requires_grad()), "{name}");
        found.sum(Kind::Double).backward();
        for (weight, gradient) in gradients(&model) {
            let norm = gradient.norm().double_value(&[]);
            // ∂/∂A = s Bᵀ(..), and B is 0.
            assert_eq!(norm > 0.0, weight.contains("lora_B"), "{name}: {weight} has a gradient of norm {norm}");
        }
    }
    Ok(())
}

/// A plain model of which each target's matrix is W + (α/r) B A.
fn written_out(adapted: &CausalLm) -> CausalLm {
    let model = tiny::copied(adapted);
    let adapter: std::collections::BTreeMap<_, _> = adapted.parameters().into_iter().collect();
    let _no_grad = no_grad_guard();
    for (name, tensor) in model.named_parameters() {
        let Some(layer) = name.strip_suffix(".weight") else { continue };
        let part = |which| adapter.get(&format!("base_model.model.{layer}.lora_{which}.weight"));
        if let (Some(a), Some(b)) = (part("A"), part("B")) {
            let change = b.matmul(a) * (ALPHA / RANK as f64);
            // GPT-2's matrices are the other way round.
            let change = if name.starts_with("transformer.") { change.tr() } else { change };
            tensor.shallow_clone().copy_(&(tensor + change));
        }
    }
    model
}

#[test]
fn an_adapter_is_a_change_of_matrices() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for (name, case) in &golden.cases {
        let plain = tiny::model(&case.config, Kind::Double);
        let model = disturbed(tiny::copied(&plain))?;
        let expected = written_out(&model);
        let [found, reference] = [model.logits(&golden.batch())?, model.reference()?.logits(&golden.batch())?];
        all_close(&numbers(&found), &numbers(&expected.logits(&golden.batch())?), 1e-11, name);
        assert_eq!(numbers(&reference), numbers(&plain.logits(&golden.batch())?), "{name}");
        assert_ne!(numbers(&found), numbers(&reference), "{name}");

        // The packed path takes query, keys and values apart in the last layer.
        let found = response_logps_of(&model, &row)?.sums;
        let expected = response_logps_of(&expected, &row)?.sums;
        all_close(&numbers(&found), &numbers(&expected), 1e-11, name);
        let reference = response_logps_of(&model.reference()?, &row)?.sums;
        all_close(&numbers(&reference), &numbers(&response_logps_of(&plain, &row)?.sums), 1e-13, name);
    }
    Ok(())
}

#[test]
fn its_gradients_are_those_of_the_matrices() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for name in ["gpt2", "llama_biases_llama3"] {
        let model = disturbed(tiny::case(name, Kind::Double))?;
        let plain = written_out(&model);
        response_logps_of(&model, &row)?.sums.sum(Kind::Double).backward();
        response_logps_of(&plain, &row)?.sums.sum(Kind::Double).backward();
        let (found, of_matrices) = (gradients(&model), gradients(&plain));
        let parameters: std::collections::BTreeMap<_, _> = model.parameters().into_iter().collect();
        for (weight, found) in &found {
            let stem = weight.trim_start_matches("base_model.model.");
            let (layer, which) = stem.split_once(".lora_").expect("an adapter's name");
            let whole = &of_matrices[&format!("{layer}.weight")];
            let whole = if name == "gpt2" { whole.tr() } else { whole.shallow_clone() };
            let other = |which: &str| parameters[&format!("base_model.model.{layer}.lora_{which}.weight")].detach();
            let scale = ALPHA / RANK as f64;
            let expected = match which {
                "A.weight" => other("B").tr().matmul(&whole) * scale,
                _ => whole.matmul(&other("A").tr()) * scale,
            };
            all_close(&numbers(found), &numbers(&expected), 1e-10, format_args!("{name}: {weight}"));
        }
        let sparing = disturbed(tiny::case(name, Kind::Double))?.with_checkpointing();
        response_logps_of(&sparing, &row)?.sums.sum(Kind::Double).backward();
        for (weight, gradient) in gradients(&sparing) {
            all_close(&numbers(&gradient), &numbers(&found[&weight]), 1e-12, format_args!("{name}: {weight}"));
        }
    }
    Ok(())
}

#[test]
fn files_are_those_of_peft() -> Outcome {
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        let folder = tempfile::tempdir()?;
        let model = disturbed(tiny::model(&case.config, Kind::Float))?;
        model.save_adapter(folder.path())?;

        let tensors = Tensor::read_safetensors(folder.path().join("adapter_model.safetensors"))?;
        let names: BTreeSet<_> = tensors.iter().map(|(name, _)| name.clone()).collect();
        let first = match name.starts_with("gpt2") {
            true => "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
            false => "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        };
        assert!(names.contains(first), "{name}: {names:?}");
        assert_eq!(names.len(), 2 * 2 * targets(&model).len(), "{name}: A and B of each target in two layers");
        let text = fs::read_to_string(folder.path().join("adapter_config.json"))?;
        let config: Value = serde_json::from_str(&text)?;
        assert_eq!(config["peft_type"], json!("LORA"));
        assert_eq!(config["task_type"], json!("CAUSAL_LM"));
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(3)));
        assert_eq!(config["target_modules"], json!(targets(&model)));
        assert_eq!(config["fan_in_fan_out"], json!(name.starts_with("gpt2")));

        let again = tiny::model(&case.config, Kind::Float).load_adapter(folder.path())?;
        assert_eq!(numbers(&again.logits(&golden.batch())?), numbers(&model.logits(&golden.batch())?), "{name}");
        assert!(again.parameters().iter().all(|(_, tensor)| tensor.requires_grad()));
        let shapes =
            |model: &CausalLm| -> Vec<_> { model.parameters().into_iter().map(|(n, t)| (n, t.size())).collect() };
        assert_eq!(shapes(&again), shapes(&model));
    }
    Ok(())
}

#[test]
fn half_precision_is_adapted_in_single() -> Outcome {
    let golden = Golden::read();
    let model = disturbed(tiny::case("llama", Kind::BFloat16))?;
    assert!(model.parameters().iter().all(|(_, tensor)| tensor.kind() == Kind::Float));
    let expected = disturbed(tiny::case("llama", Kind::Double))?.logits(&golden.batch())?;
    let found = model.logits(&golden.batch())?;
    assert_eq!(found.kind(), Kind::BFloat16);
    let off = (found.to_kind(Kind::Double) - expected).abs().mean(Kind::Double).double_value(&[]);
    assert!(off < 0.1, "{off}");
    response_logps_of(&model, &row(&golden)?)?.sums.sum(Kind::Float).backward();
    assert!(model.parameters().iter().all(|(_, tensor)| tensor.grad().norm().double_value(&[]) > 0.0));
    Ok(())
}

#[test]
fn targets_are_names_or_their_ends() -> Outcome {
    let adapted = |targets: &[&str]| tiny::case("llama", Kind::Float).with_lora(config(targets), 0);
    let one = adapted(&["layers.1.mlp.up_proj"])?;
    let names: Vec<_> = one.parameters().into_iter().map(|(name, _)| name).collect();
    let expected = ["A", "B"].map(|which| format!("base_model.model.model.layers.1.mlp.up_proj.lora_{which}.weight"));
    assert_eq!(names, expected);
    for target in ["proj", "p_proj", "lm_head", "embed_tokens", "model.layers.2.mlp.up_proj", ""] {
        refused(adapted(&["q_proj", target]), &[&format!("target `{target}`")]);
    }
    Ok(())
}

#[test]
fn misuse_is_refused() -> Outcome {
    let plain = tiny::case("llama", Kind::Float);
    refused(plain.reference(), &["no adapter to switch off"]);
    refused(plain.save_adapter(std::env::temp_dir().as_path()), &["no adapter"]);
    let model = plain.with_lora(config(&["q_proj"]), 0)?;
    refused(model.with_lora(config(&["q_proj"]), 0), &["an adapter already"]);
    let rank = NonZeroUsize::new(1).expect("not 0");
    refused(LoraConfig::new(rank, 0.0, ["q_proj"]), &["lora_alpha must be positive and finite, got 0"]);

    let text = r#"{"rank":2,"alpha":3.0,"targets":["q_proj"]}"#;
    let read: LoraConfig = serde_json::from_str(text)?;
    assert_eq!((&read, serde_json::to_string(&read)?.as_str()), (&config(&["q_proj"]), text));
    for broken in [text.replace(":2", ":0"), text.replace("3.0", "-3.0"), text.replace("rank", "r")] {
        assert!(serde_json::from_str::<LoraConfig>(&broken).is_err(), "{broken}");
    }
    Ok(())
}

#[test]
fn options_of_peft_that_change_the_function_are_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    disturbed(tiny::case("llama", Kind::Float))?.save_adapter(folder.path())?;
    let file = folder.path().join("adapter_config.json");
    let whole: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let load = || tiny::case("llama", Kind::Float).load_adapter(folder.path());

    // What PEFT 0.21.2 writes besides, and a dropout.
    let mut config = whole.clone();
    let off =
        ["ensure_weight_tying", "lora_bias", "use_dora", "use_qalora", "use_rslora"].map(|key| (key, json!(false)));
    let empty = ["alpha_pattern", "loftq_config", "rank_pattern"].map(|key| (key, json!({})));
    let none = ["arrow_config", "layer_replication", "layers_to_transform", "modules_to_save", "target_parameters"];
    let said = [
        ("base_model_name_or_path", json!("somebody/model")),
        ("lora_dropout", json!(0.05)),
        ("megatron_core", json!("megatron.core")),
        ("peft_version", json!("0.21.2")),
        ("qalora_group_size", json!(16)),
    ];
    for (key, value) in off.into_iter().chain(empty).chain(none.map(|key| (key, Value::Null))).chain(said) {
        config[key] = value;
    }
    fs::write(&file, config.to_string())?;
    load()?;

    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("rank_pattern", json!({"q_proj": 4})),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("peft_type", json!("IA3")),
        ("init_lora_weights", json!("pissa")),
        ("target_modules", json!("all-linear")),
        ("r", json!(0)),
    ] {
        let mut config = whole.clone();
        config[key] = value;
        fs::write(&file, config.to_string())?;
        refused(load(), &["adapter_config.json", key]);
    }

    let mut config = whole.clone();
    config["r"] = json!(3);
    fs::write(&file, config.to_string())?;
    refused(load(), &["adapter_model.safetensors", "q_proj.lora_A.weight", "[3, 12]", "[2, 12]"]);
    config["r"] = json!(2);
    config["target_modules"] = json!(["q_proj", "v_proj", "o_proj"]);
    fs::write(&file, config.to_string())?;
    refused(load(), &["adapter_model.safetensors", "down_proj.lora_A.weight", "no place"]);
    config["target_modules"] = json!(["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"]);
    fs::write(&file, config.to_string())?;
    refused(load(), &["adapter_model.safetensors has no tensor", "up_proj.lora_A.weight"]);
    Ok(())
}
