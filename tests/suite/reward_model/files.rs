//! Folders in transformers' format: what is written, what is read again, what is refused.

use std::{collections::BTreeSet, error::Error, fs, path::Path};

use serde_json::{Value, json};

use prefopt::{
    Result,
    lm::{CausalLm, ModelConfig, ModelError, RewardModel},
    tch::{Device, Kind, Tensor},
};

use super::{SCORE, case, load, on, row, sequences};
use crate::{
    lm::{
        Outcome,
        adapters::disturbed,
        files::{WEIGHTS, rewritten},
        refused,
        tiny::{self, Golden},
    },
    numbers,
};

fn named(model: &RewardModel) -> Vec<(String, Kind, Vec<f64>)> {
    model.parameters().into_iter().map(|(name, tensor)| (name, tensor.kind(), numbers(&tensor))).collect()
}

#[test]
fn what_was_saved_is_loaded() -> Outcome {
    let golden = Golden::read();
    let row = row(&golden)?;
    for (name, case) in &golden.cases {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
            let folder = tempfile::tempdir()?;
            let model = on(tiny::model(&case.config, kind))?;
            // A folder that is not there yet.
            let path = folder.path().join("new");
            model.save(&path)?;
            let again = load(&path, kind)?;
            assert_eq!(named(&again), named(&model), "{name}");
            assert!(again.parameters().iter().all(|(_, tensor)| tensor.requires_grad()), "{name}");
            let scores = |model: &RewardModel| model.response_scores(&row).map(|scores| numbers(&scores));
            assert_eq!(scores(&again)?, scores(&model)?, "{name}");
            assert_eq!(fs::read_dir(&path)?.count(), 2, "{name}");
        }
    }
    Ok(())
}

#[test]
fn names_are_those_of_transformers() -> Outcome {
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        let folder = tempfile::tempdir()?;
        on(tiny::model(&case.config, Kind::Float))?.save(folder.path())?;
        let saved = Tensor::read_safetensors(folder.path().join(WEIGHTS))?;
        let found: BTreeSet<&str> = saved.iter().map(|(name, _)| name.as_str()).collect();
        // Those of a causal model, from transformers itself.
        let trunk = case.gradient_norms.keys().map(String::as_str).filter(|&name| name != "lm_head.weight");
        assert_eq!(found, trunk.chain([SCORE]).collect::<BTreeSet<_>>(), "{name}");

        // As transformers writes the configuration of TRL's reward models.
        let mut config = case.saved_config.clone();
        config["id2label"] = json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"});
        config["label2id"] = json!({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2});
        config["dtype"] = json!("float32");
        config["pad_token_id"] = json!(2);
        fs::write(folder.path().join("config.json"), config.to_string())?;
        assert_eq!(load(folder.path(), Kind::Float)?.members(), 3, "{name}");
    }
    Ok(())
}

#[test]
fn early_gpt2_files_lack_a_prefix_and_carry_masks() -> Outcome {
    let (folder, model) = saved("gpt2")?;
    rewritten(folder.path(), |tensors| {
        for (name, _) in tensors.iter_mut() {
            *name = name.trim_start_matches("transformer.").to_owned();
        }
        tensors.push(("h.0.attn.bias".to_owned(), Tensor::ones([1, 1, 64, 64], (Kind::Float, Device::Cpu))));
    })?;
    assert_eq!(named(&load(folder.path(), Kind::Float)?), named(&model));
    Ok(())
}

/// `config.json` as it is saved on a trunk of this one.
fn written(
    config: &Value,
    change: impl FnOnce(RewardModel) -> Result<RewardModel, ModelError>,
) -> Result<Value, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    change(on(tiny::model(config, Kind::Float))?)?.save(folder.path())?;
    Ok(serde_json::from_str(&fs::read_to_string(folder.path().join("config.json"))?)?)
}

#[test]
fn the_configuration_is_that_of_a_classifier() -> Outcome {
    let golden = Golden::read();
    for (name, class) in [
        ("gpt2", "GPT2ForSequenceClassification"),
        ("llama", "LlamaForSequenceClassification"),
        ("mistral_window", "MistralForSequenceClassification"),
        ("qwen2_yarn", "Qwen2ForSequenceClassification"),
        ("qwen3_yarn", "Qwen3ForSequenceClassification"),
    ] {
        let plain = &golden.cases[name].config;
        let mut read = plain.clone();
        read["torch_dtype"] = json!("bfloat16");
        read["architectures"] = json!(["SomethingElse"]);
        read["num_labels"] = json!(2);
        read["problem_type"] = json!("single_label_classification");
        let written = written(&read, Ok)?;
        assert_eq!(written["architectures"], json!([class]));
        assert_eq!(written["id2label"], json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}));
        assert_eq!(written["label2id"], json!({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}));
        assert_eq!(written["problem_type"], json!("regression"));
        assert_eq!(written.get("pad_token_id"), Some(&Value::Null));
        assert_eq!(written.get("num_labels"), None, "transformers refuses one that is not that of the labels");
        assert_eq!([&written["dtype"], &written["torch_dtype"]], ["float32", "float32"]);
        for (key, value) in plain.as_object().expect("an object") {
            assert_eq!(written[key], *value, "{name}: {key}");
        }
        ModelConfig::from_json(&written.to_string())?;
    }
    Ok(())
}

/// transformers loads a model in one kind, which must not round `score.weight`.
#[test]
fn the_configuration_says_the_kind_of_the_score() -> Outcome {
    for (kind, name) in [(Kind::Float, "float32"), (Kind::BFloat16, "float32"), (Kind::Double, "float64")] {
        let folder = tempfile::tempdir()?;
        case("llama", kind)?.save(folder.path())?;
        let written: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("config.json"))?)?;
        assert_eq!([&written["dtype"], &written["torch_dtype"]], [name, name], "{kind:?}");
    }
    Ok(())
}

#[test]
fn no_padding_token_ends_a_text() -> Outcome {
    let golden = Golden::read();
    let config = |end: Value, padding: Value| {
        let mut config = golden.cases["llama"].config.clone();
        config["eos_token_id"] = end;
        config["pad_token_id"] = padding;
        config
    };
    for (end, padding, expected) in [
        (json!(2), json!(0), json!(0)),
        (json!(2), json!(2), json!(null)),
        (json!([2, 3]), json!(3), json!(null)),
        // -1 of the first Llama files, and a token that was added to the tokenizer alone.
        (json!(2), json!(-1), json!(null)),
        (json!(2), json!(13), json!(null)),
        (json!(2), json!(null), json!(null)),
        (json!(null), json!(2), json!(2)),
    ] {
        assert_eq!(written(&config(end.clone(), padding.clone()), Ok)?["pad_token_id"], expected, "{end} {padding}");
    }
    for padding in [0, 2] {
        let config = config(json!(2), json!(padding));
        assert_eq!(written(&config, |model| model.with_padding(12))?["pad_token_id"], json!(12));
    }
    // A tokenizer that ends responses with 2, whatever the configuration says.
    let disagreeing = config(json!(0), json!(2));
    assert_eq!(written(&disagreeing, Ok)?["pad_token_id"], json!(2));
    assert_eq!(written(&disagreeing, |model| Ok(model.without_padding()))?["pad_token_id"], Value::Null);
    assert_eq!(written(&disagreeing, |model| model.without_padding().with_padding(12))?["pad_token_id"], json!(12));

    let named = |token: i64| -> Result<RewardModel, ModelError> {
        on(tiny::model(&config(json!([2, 3]), json!(null)), Kind::Float))?.with_padding(token)
    };
    refused(named(3), &["3 cannot be the padding token", "ends a text"]);
    refused(named(13), &["13 cannot be the padding token", "not in the vocabulary"]);
    refused(named(-1), &["-1 cannot be the padding token", "not in the vocabulary"]);
    Ok(())
}

/// A saved case, and what was saved.
fn saved(name: &str) -> Result<(tempfile::TempDir, RewardModel), Box<dyn Error>> {
    let (folder, model) = (tempfile::tempdir()?, case(name, Kind::Float)?);
    model.save(folder.path())?;
    Ok((folder, model))
}

#[test]
fn folders_that_do_not_fit_are_named() -> Outcome {
    let folder = tempfile::tempdir()?;
    for name in ["gpt2", "llama"] {
        tiny::case(name, Kind::Float).save(folder.path())?;
        refused(load(folder.path(), Kind::Float), &["model.safetensors has no tensor `score.weight`"]);
    }

    let (folder, _) = saved("llama")?;
    let scored = |weight: Tensor| {
        rewritten(folder.path(), |tensors| {
            tensors.retain(|(name, _)| name != SCORE);
            tensors.push((SCORE.to_owned(), weight));
        })
    };
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    scored(zeros(&[2, 11]))?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors", SCORE, "[2, 12]", "[2, 11]"]);
    scored(zeros(&[12]))?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors", SCORE, "[12, 12]", "[12]"]);
    scored(zeros(&[5, 12]))?;
    assert_eq!(load(folder.path(), Kind::Float)?.members(), 5);
    refused(load(folder.path(), Kind::Half), &["Half"]);

    // A head with a bias, and a language model's besides.
    for extra in ["score.bias", "lm_head.weight"] {
        let (folder, _) = saved("llama")?;
        rewritten(folder.path(), |tensors| tensors.push((extra.to_owned(), zeros(&[3]))))?;
        refused(load(folder.path(), Kind::Float), &["model.safetensors", extra, "no place"]);
    }
    refused(CausalLm::load(folder.path(), Device::Cpu, Kind::Float), &["no tensor `lm_head.weight`"]);
    Ok(())
}

/// Saved models and their scores for `tests/lm/check_transformers.py`, in the folder that a variable names.
#[test]
fn saved_for_transformers() -> Outcome {
    let Some(folder) = std::env::var_os("PREFOPT_LM_EXPORT") else {
        eprintln!("skipped: PREFOPT_LM_EXPORT names no folder");
        return Ok(());
    };
    let golden = Golden::read();
    let row = row(&golden)?;
    let whole = sequences(&golden).map(|(prompt, response)| [prompt, response].concat());
    for (name, case) in &golden.cases {
        // A padding token that would be read over: 2 ends the text here. It is left out, or another is named.
        let mut config = case.config.clone();
        config["eos_token_id"] = json!(2);
        config["pad_token_id"] = json!(2);
        config["torch_dtype"] = json!("bfloat16");
        let plain = on(tiny::model(&config, Kind::Float))?.with_padding(0)?;
        let adapted = on(disturbed(tiny::model(&config, Kind::Float))?)?;
        let half = on(tiny::model(&config, Kind::BFloat16))?;
        for (kind, model, padding) in [("plain", plain, Some(0)), ("adapted", adapted, None), ("half", half, None)] {
            let path = Path::new(&folder).join(format!("{name}-reward-{kind}"));
            model.save(&path)?;
            // As transformers computes: in the kind of the score.
            let scores = load(&path, Kind::Float)?.response_scores(&row)?.tr().contiguous();
            let shown = json!({"sequences": whole, "padding": padding, "scores": numbers(&scores)});
            fs::write(path.join("scores.json"), shown.to_string())?;
        }
    }
    Ok(())
}
