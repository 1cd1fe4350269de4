//! What the commands write for each other: adapters, families, caches, samples, numbers.

use std::{collections::BTreeMap, fs};

use prefopt::{
    lm::{CausalLm, RewardModel},
    tch::{Device, Kind},
};
use serde_json::Value;

use super::Scene;

const POLICY: &str = "policy --model @model --data @pairs.jsonl --held-out 0.2 --kl-prompts 2 --sample-length 6";

/// Every number under a key, wherever it stands.
fn numbers(value: &Value, key: &str) -> Vec<f64> {
    match value {
        Value::Object(fields) => {
            let own = fields.get(key).and_then(Value::as_f64);
            own.into_iter().chain(fields.values().flat_map(|value| numbers(value, key))).collect()
        }
        Value::Array(list) => list.iter().flat_map(|value| numbers(value, key)).collect(),
        _ => Vec::new(),
    }
}

/// The first of them.
#[track_caller]
fn number(value: &Value, key: &str) -> f64 {
    let found = numbers(value, key);
    assert!(!found.is_empty(), "there is no {key} in {value}");
    found[0]
}

#[test]
fn an_adapter_is_written_and_read() {
    let scene = Scene::new();
    scene.succeeds(&format!("{POLICY} --loss dpo --lora 4 --learning-rate 1e-2 --max-steps 6 --out @run"));
    for (name, is_there) in
        [("adapter_config.json", true), ("adapter_model.safetensors", true), ("model.safetensors", false)]
    {
        assert_eq!(scene.path("run/model").join(name).exists(), is_there, "{name}");
    }
    let eval = "eval --model @model --reference @model --data @pairs.jsonl --held-out 0";
    scene.succeeds(&format!("{eval} --out @base.json"));
    scene.succeeds(&format!("{eval} --adapter @run/model --out @adapted.json"));
    assert_eq!(number(&scene.json("base.json"), "rewards/margins"), 0.0);
    assert!(number(&scene.json("adapted.json"), "rewards/margins") > 0.0, "{}", scene.json("adapted.json"));
    // It goes on being trained.
    scene.succeeds(&format!("{POLICY} --loss dpo --adapter @run/model --max-steps 2 --out @further"));
    assert!(scene.path("further/model/adapter_model.safetensors").exists());
    // Alone it is no model.
    for command in [
        "sft --data @pairs.jsonl --out @alone",
        "reward --data @pairs.jsonl --out @alone",
        "score --data @pairs.jsonl --cache @alone",
        "policy --data @pairs.jsonl --out @alone",
        "eval --reference @model --data @pairs.jsonl",
        "sample --prompt 'tell me about the red fox'",
    ] {
        scene.refuses(&format!("{command} --model @run/model"), &["model holds an adapter alone", "--adapter"]);
    }
    // Without it the policy is the reference, and to start elsewhere is no mistake.
    let apart = format!("{POLICY} --loss 'dpo + 0.1*reverse-kl' --adapter @run/model --reference @model");
    let ended = scene.succeeds(&format!("{apart} --max-steps 2 --out @apart"));
    assert!(!ended.err.contains("a second model"), "{}", ended.said());
    let log = scene.log("apart");
    let kinds: Vec<&Value> = log.iter().filter_map(|line| line.get("alarm")).map(|alarm| &alarm["kind"]).collect();
    assert!(kinds.iter().all(|kind| **kind != "reference_mismatch"), "{kinds:?}");
}

/// What weights in bf16 say is not what those in f32 say.
#[test]
fn a_cache_is_of_one_kind_of_weights() {
    let scene = Scene::new();
    let data = "--model @model --data @pairs.jsonl --cache @cache";
    scene.succeeds(&format!("score {data} --dtype bf16"));
    let again = scene.succeeds(&format!("score {data} --dtype bf16"));
    assert!(again.out.contains("was there"), "{}", again.out);
    scene.refuses(&format!("policy {data} --max-steps 1 --out @run"), &["bf16", "delete it"]);
}

/// Of a file that no model has seen.
#[test]
fn all_pairs_are_judged_unless_a_share_is_named() {
    let scene = Scene::new();
    let judged = |flags: &str| {
        let eval = "eval --model @model --reference @model --data @pairs.jsonl";
        scene.succeeds(&format!("{eval} {flags} --out @eval.json"));
        number(&scene.json("eval.json"), "pairs")
    };
    assert_eq!((judged(""), judged("--held-out 0")), (60.0, 60.0));
    assert!(judged("--held-out 0.2") < 60.0);
}

#[test]
fn a_tuned_model_is_a_whole_folder() {
    let scene = Scene::new();
    scene.succeeds("sft --model @model --data @pairs.jsonl --held-out 0.2 --max-steps 2 --out @sft");
    CausalLm::load(&scene.path("sft/model"), Device::Cpu, Kind::Float).expect("a model");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(scene.text(&format!("sft/model/{name}")), scene.text(&format!("model/{name}")), "{name}");
    }
    scene.succeeds(
        "policy --model @sft/model --data @pairs.jsonl --held-out 0.2 --max-steps 2 --kl-prompts 0 --out @dpo",
    );
    for name in ["summary.txt", "report.json", "policy.png", "policy.svg", "settings.json"] {
        assert!(scene.path("dpo").join(name).exists(), "{name}");
    }
}

#[test]
fn a_family_is_scored_and_judged() {
    let scene = Scene::new();
    let reward = "reward --model @model --data @pairs.jsonl --held-out 0.2 --learning-rate 1e-2 --max-steps 12";
    for (family, out) in [("--family seed", "seeds"), ("--family length", "lengths"), ("--shared-trunk", "heads")] {
        scene.succeeds(&format!("{reward} --members 3 {family} --out @{out}"));
        let members =
            (0..).map(|member| scene.path(&format!("{out}/member-{member}"))).take_while(|path| path.exists());
        let heads = members.map(|path| RewardModel::load(&path, Device::Cpu, Kind::Float).expect("a model").members());
        assert_eq!(heads.sum::<i64>(), 3, "{family}");
        let report = scene.json(&format!("{out}/report.json"));
        for key in ["accuracy", "expected_calibration_error", "agreement"] {
            let found = numbers(&report, key);
            assert!(!found.is_empty() && found.iter().all(|share| (0.0..=1.0).contains(share)), "{key}: {report}");
        }
    }
    let data = "--model @model --data @pairs.jsonl";
    let scored = scene.succeeds(&format!("score {data} --rewards @seeds --cache @cache"));
    // Pairs that the reward models have learnt from are judged apart from the others.
    for part in ["train, ", "held-out, "] {
        assert_eq!(scored.out.lines().filter(|line| line.starts_with(part)).count(), 1, "{part}{}", scored.said());
    }
    assert_eq!(scored.out.matches("mean of members").count(), 2, "{}", scored.said());
    let cached = || {
        let entries = fs::read_dir(scene.path("cache")).expect("was made").map(|entry| entry.expect("can be read"));
        let when = |entry: fs::DirEntry| Some((entry.file_name(), entry.metadata().ok()?.modified().ok()?));
        entries.map(|entry| when(entry).expect("there are times of files")).collect::<BTreeMap<_, _>>()
    };
    let files = cached();
    assert!(!files.is_empty());
    let again = scene.succeeds(&format!("score {data} --rewards @seeds --cache @cache"));
    assert!(again.out.contains("was there"), "{}", again.out);
    scene.succeeds(&format!("policy {data} --loss e-dpo --rewards @seeds --cache @cache --max-steps 2 --out @e-dpo"));
    assert_eq!(cached(), files, "nothing is computed twice");
    scene.succeeds(&format!("eval {data} --rewards @seeds @heads --out @eval.json"));
    assert!(!numbers(&scene.json("eval.json"), "accuracy").is_empty());
}

/// As a reward model of its own, before they are scaled.
#[test]
fn scores_of_the_data_are_judged() {
    let scene = Scene::new();
    // Of records with votes there are no scores.
    scene.rewrite("scored.jsonl", |index, mut line| {
        line["score_chosen"] = Value::from(if index % 5 == 0 { -1.0 } else { 1.0 });
        line["score_rejected"] = Value::from(0.0);
        line.get("votes").is_none().then_some(line)
    });
    let eval = "eval --model @model --reference @model --data @scored.jsonl --loss d-dpo --out @eval.json";
    let losses = ["", "--reward-scale 2"].map(|scale| {
        scene.succeeds(&format!("{eval} {scale}"));
        let report = scene.json("eval.json");
        assert_eq!(report["family"]["members"].as_array().map(Vec::len), Some(1), "{report}");
        // Of 45 pairs 9 have the lower score for the chosen response.
        for (key, expected) in [("accuracy", 0.8), ("margin", 0.6)] {
            assert!((number(&report["family"], key) - expected).abs() < 1e-9, "{key}: {report}");
        }
        number(&report["loss"], "mean")
    });
    assert_ne!(losses[0], losses[1]);
}

#[test]
fn samples_are_a_line_a_prompt() {
    let scene = Scene::new();
    let sample = "sample --model @model --max-new 6";
    scene.succeeds(&format!("{sample} --data @pairs.jsonl --limit 5 --samples 2 --seed 3 --out @file.jsonl"));
    let lines: Vec<Value> =
        scene.text("file.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line["samples"].as_array().is_some_and(|samples| samples.len() == 2)));
    let of = |rest: &str| scene.succeeds(&format!("{sample} {rest}")).out;
    let first = of("--data @pairs.jsonl --limit 5 --samples 2 --seed 3");
    assert_eq!(first, scene.text("file.jsonl"), "the same seed is the same text, wherever it is written");
    // However the prompts are put together.
    let texts = |lines: &str| {
        let line = |line: &str| serde_json::from_str::<Value>(line).expect("JSON");
        let texts = |line: Value| {
            line["samples"].as_array().expect("a list").iter().map(|s| s["text"].clone()).collect::<Vec<_>>()
        };
        lines.lines().map(line).map(texts).collect::<Vec<_>>()
    };
    assert_eq!(texts(&of("--data @pairs.jsonl --limit 5 --samples 2 --seed 3 --batch 2")), texts(&first));
    assert_ne!(texts(&of("--data @pairs.jsonl --limit 5 --samples 2 --seed 4")), texts(&first));
    assert_eq!(of("--prompt 'tell me about the red fox' --prompt 'tell me about the old owl'").lines().count(), 2);
    assert_eq!(of("--prompt 'tell me about the red fox' --chat --temperature 0").lines().count(), 1);
}
