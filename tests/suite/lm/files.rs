//! Folders: what was saved is loaded, shards are a whole, and what is damaged is refused by name.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
};

use serde_json::{Value, json};

use prefopt::{
    lm::{CausalLm, ModelError},
    tch::{Device, Kind, Tensor},
};

use super::{
    Outcome, refused,
    tiny::{self, Golden},
};
use crate::numbers;

pub const WEIGHTS: &str = "model.safetensors";

fn load(folder: &Path, kind: Kind) -> Result<CausalLm, ModelError> {
    CausalLm::load(folder, Device::Cpu, kind)
}

/// A saved case.
fn saved(name: &str, kind: Kind) -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    tiny::case(name, kind).save(folder.path())?;
    Ok(folder)
}

/// Writes the tensors of a model anew, after a change.
pub fn rewritten(folder: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> Result<(), prefopt::tch::TchError> {
    let mut tensors = Tensor::read_safetensors(folder.join(WEIGHTS))?;
    change(&mut tensors);
    Tensor::write_safetensors(&tensors, folder.join(WEIGHTS))
}

#[test]
fn what_was_saved_is_loaded() -> Outcome {
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
            let folder = tempfile::tempdir()?;
            let model = tiny::model(&case.config, kind);
            // A folder that is not there yet.
            let path = folder.path().join("new");
            model.save(&path)?;
            let again = load(&path, kind)?;
            for ((name, expected), (found_name, found)) in model.named_parameters().zip(again.named_parameters()) {
                assert_eq!((name, numbers(expected), kind), (found_name, numbers(found), found.kind()));
                assert!(found.requires_grad());
            }
            let left: Vec<_> =
                fs::read_dir(&path)?.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<_>>()?;
            assert_eq!(left.len(), 2, "{name}: {left:?}");
        }
    }
    Ok(())
}

#[test]
fn the_configuration_says_the_kind_and_is_else_as_it_was_read() -> Outcome {
    let mut read = Golden::read().cases["llama"].config.clone();
    let without = read.clone();
    read["torch_dtype"] = json!("float16");
    read["dtype"] = Value::Null;
    read["use_cache"] = json!(false);
    for read in [read, without] {
        for (kind, name) in [(Kind::Float, "float32"), (Kind::BFloat16, "bfloat16"), (Kind::Double, "float64")] {
            let folder = tempfile::tempdir()?;
            tiny::model(&read, kind).save(folder.path())?;
            let written: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("config.json"))?)?;
            let mut expected = read.clone();
            expected["torch_dtype"] = json!(name);
            expected["dtype"] = json!(name);
            assert_eq!(written, expected);
            let keys = |config: &Value| config.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
            assert!(keys(&written).starts_with(&keys(&read)), "{:?}", keys(&written));
            assert_eq!(load(folder.path(), kind)?.kind(), kind);
        }
    }
    Ok(())
}

#[test]
fn the_kind_is_the_callers() -> Outcome {
    let folder = saved("llama", Kind::BFloat16)?;
    let model = load(folder.path(), Kind::Float)?;
    assert_eq!(model.kind(), Kind::Float);
    let half = load(folder.path(), Kind::BFloat16)?;
    for ((name, wide), (_, half)) in model.named_parameters().zip(half.named_parameters()) {
        assert_eq!(numbers(wide), numbers(half), "{name}");
    }
    refused(load(folder.path(), Kind::Half), &["Half"]);
    Ok(())
}

#[test]
fn saving_replaces_what_was_there() -> Outcome {
    let folder = saved("llama", Kind::Float)?;
    let tensor = |model: &CausalLm| numbers(model.named_parameters().next().expect("a weight").1);
    let other = CausalLm::new(load(folder.path(), Kind::Float)?.config().clone(), Device::Cpu, Kind::Float, 7)?;
    other.save(folder.path())?;
    assert_eq!(tensor(&load(folder.path(), Kind::Float)?), tensor(&other));
    Ok(())
}

/// Two shards of every second tensor, and their index.
fn sharded(folder: &Path) -> Outcome {
    let mut tensors = Tensor::read_safetensors(folder.join(WEIGHTS))?;
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", part + 1);
        let own: Vec<_> = tensors.iter().skip(part).step_by(2).map(|(name, t)| (name, t)).collect();
        map.extend(own.iter().map(|(tensor, _)| ((*tensor).clone(), json!(name))));
        Tensor::write_safetensors(&own, folder.join(name))?;
    }
    fs::remove_file(folder.join(WEIGHTS))?;
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    Ok(())
}

#[test]
fn shards_are_a_whole() -> Outcome {
    for case in ["gpt2", "qwen3_yarn"] {
        let folder = saved(case, Kind::Float)?;
        let whole = load(folder.path(), Kind::Float)?;
        sharded(folder.path())?;
        let parts = load(folder.path(), Kind::Float)?;
        for ((name, expected), (_, found)) in whole.named_parameters().zip(parts.named_parameters()) {
            assert_eq!(numbers(found), numbers(expected), "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_broken_index_is_refused() -> Outcome {
    let folder = saved("llama", Kind::Float)?;
    sharded(folder.path())?;
    let file = folder.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&file)?;

    fs::write(&file, text.replace("model-00002-of-00002", "../model-00002-of-00002"))?;
    refused(load(folder.path(), Kind::Float), &["index.json", "../model-00002-of-00002.safetensors"]);
    fs::write(&file, text.replace("model.norm.weight", "model.norm.weights"))?;
    refused(load(folder.path(), Kind::Float), &["-of-00002.safetensors has no tensor `model.norm.weights`"]);
    fs::write(&file, "{}")?;
    refused(load(folder.path(), Kind::Float), &["index.json is malformed", "weight_map"]);
    fs::write(&file, &text)?;
    fs::remove_file(folder.path().join("model-00001-of-00002.safetensors"))?;
    refused(load(folder.path(), Kind::Float), &["model-00001-of-00002.safetensors cannot be read"]);
    Ok(())
}

#[test]
fn early_gpt2_files_lack_a_prefix_and_carry_masks() -> Outcome {
    let folder = saved("gpt2", Kind::Float)?;
    let expected = load(folder.path(), Kind::Float)?;
    rewritten(folder.path(), |tensors| {
        for (name, _) in tensors.iter_mut() {
            *name = name.trim_start_matches("transformer.").to_owned();
        }
        tensors.push(("h.0.attn.bias".to_owned(), Tensor::ones([1, 1, 64, 64], (Kind::Float, Device::Cpu))));
    })?;
    let found = load(folder.path(), Kind::Float)?;
    for ((name, expected), (found_name, found)) in expected.named_parameters().zip(found.named_parameters()) {
        assert_eq!((name, numbers(expected)), (found_name, numbers(found)));
    }
    Ok(())
}

#[test]
fn a_copy_of_a_tied_head_is_passed_over() -> Outcome {
    let folder = saved("qwen3_yarn", Kind::Float)?;
    rewritten(folder.path(), |tensors| {
        tensors.push(("lm_head.weight".to_owned(), Tensor::zeros([13, 12], (Kind::Float, Device::Cpu))));
    })?;
    load(folder.path(), Kind::Float)?;
    Ok(())
}

fn find(tensors: &[(String, Tensor)], name: &str) -> usize {
    tensors.iter().position(|(found, _)| found == name).expect("a tensor of this name")
}

#[test]
fn tensors_that_do_not_fit_are_named() -> Outcome {
    let name = "model.layers.1.mlp.down_proj.weight";

    let folder = saved("llama", Kind::Float)?;
    rewritten(folder.path(), |tensors| {
        let at = find(tensors, name);
        drop(tensors.remove(at));
    })?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors has no tensor", name]);

    let folder = saved("llama", Kind::Float)?;
    rewritten(folder.path(), |tensors| {
        let at = find(tensors, name);
        tensors[at].1 = tensors[at].1.tr().contiguous();
    })?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors", name, "[12, 10]", "[10, 12]"]);

    let folder = saved("llama", Kind::Float)?;
    rewritten(folder.path(), |tensors| {
        let at = find(tensors, name);
        tensors[at].1 = tensors[at].1.to_kind(Kind::Int8);
    })?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors", name, "I8", "BF16"]);

    let folder = saved("llama", Kind::Float)?;
    let bias = "model.layers.0.self_attn.q_proj.bias";
    rewritten(folder.path(), |tensors| {
        tensors.push((bias.to_owned(), Tensor::zeros([12], (Kind::Float, Device::Cpu))));
    })?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors", bias, "no place"]);
    Ok(())
}

#[test]
fn a_truncated_file_is_named() -> Outcome {
    let folder = saved("llama", Kind::Float)?;
    let (file, whole) = (folder.path().join(WEIGHTS), fs::read(folder.path().join(WEIGHTS))?);
    for length in [0, 4, 8, 100, whole.len() - 1] {
        OpenOptions::new().write(true).open(&file)?.set_len(length as u64)?;
        refused(load(folder.path(), Kind::Float), &["model.safetensors is truncated", &length.to_string()]);
        fs::write(&file, &whole)?;
    }
    fs::write(&file, [&whole[..], &[0; 16]].concat())?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors is truncated or damaged"]);
    let mut garbled = whole.clone();
    garbled[20] = b'}';
    fs::write(&file, garbled)?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors is malformed"]);
    // A page of HTML, as a failed download leaves it.
    fs::write(&file, "<!DOCTYPE html><html><body>404</body></html>")?;
    refused(load(folder.path(), Kind::Float), &["model.safetensors is truncated or damaged"]);
    fs::write(&file, &whole)?;
    load(folder.path(), Kind::Float)?;
    Ok(())
}

#[test]
fn an_empty_folder_is_named() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().display().to_string();
    refused(load(folder.path(), Kind::Float), &[&path, "config.json cannot be read"]);
    fs::write(folder.path().join("config.json"), tiny::case("llama", Kind::Float).config().text())?;
    refused(load(folder.path(), Kind::Float), &[&path, "neither model.safetensors nor model.safetensors.index.json"]);
    Ok(())
}

/// Saved models and their logits for `tests/lm/check_transformers.py`, in the folder that a variable names.
#[test]
fn saved_for_transformers() -> Outcome {
    let Some(folder) = std::env::var_os("PREFOPT_LM_EXPORT") else {
        eprintln!("skipped: PREFOPT_LM_EXPORT names no folder");
        return Ok(());
    };
    let golden = Golden::read();
    for (name, case) in &golden.cases {
        let path = Path::new(&folder).join(name);
        let mut config = case.config.clone();
        // To which transformers would round what is saved if it still said so.
        config["torch_dtype"] = json!("bfloat16");
        let model = tiny::model(&config, Kind::Float);
        model.save(&path)?;
        let mut shown = json!({"tokens": golden.tokens, "logits": numbers(&model.logits(&golden.batch())?)});
        let adapted = super::adapters::disturbed(model)?;
        adapted.save_adapter(&path.join("adapter"))?;
        shown["adapter_logits"] = json!(numbers(&adapted.logits(&golden.batch())?));
        fs::write(path.join("logits.json"), shown.to_string())?;
    }
    Ok(())
}
