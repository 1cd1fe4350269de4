//! Wrong inputs: one clear sentence, an exit code that is not 0, and nothing on the disk that was not there before.

use std::{fs, path::Path};

use serde_json::Value;

use super::Scene;

const SFT: &str = "sft --model @model --data @pairs.jsonl";
const POLICY: &str = "policy --model @model --data @pairs.jsonl";

/// That a command into a new folder is refused in one line, or in clap's way, with these words in its first.
#[track_caller]
fn refused(scene: &Scene, line: &str, says: &[&str]) {
    let ended = scene.ended(&format!("{line} --out @run"));
    assert!(matches!(ended.code, Some(1 | 2)) && !ended.err.contains("panicked"), "train {line}\n{}", ended.said());
    let run = scene.path("run");
    // A cache is whole, and no hindrance to the corrected command, as settings would be.
    let left = fs::read_dir(&run).into_iter().flatten().map(|entry| entry.expect("can be read").file_name());
    let left: Vec<_> = left.filter(|name| name != "cache").collect();
    assert!(left.is_empty() && half_written(&run).is_empty(), "train {line} leaves {left:?}");
    let lines: Vec<&str> = ended.err.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    assert!(lines.len() == 1 || lines.len() > 1 && ended.code == Some(2), "train {line}\n{}", ended.said());
    for words in says {
        assert!(lines[0].contains(words), "train {line}\n{}\ndoes not say {words}", lines[0]);
    }
}

/// What lies below a folder and is called `.partial` or `.partial-old`.
pub fn half_written(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let of = |entry: fs::DirEntry| match entry.file_name().to_string_lossy().into_owned() {
        name if name.contains(".partial") => vec![name],
        _ => half_written(&entry.path()),
    };
    entries.flat_map(|entry| of(entry.expect("can be read"))).collect()
}

#[test]
fn paths_that_lead_nowhere() {
    let scene = Scene::new();
    refused(&scene, "sft --model @nowhere --data @pairs.jsonl", &["nowhere"]);
    refused(&scene, "sft --model @model --data @nowhere.jsonl", &["nowhere.jsonl"]);
    refused(&scene, "sft --model @model --data @pairs.jsonl @nowhere.jsonl", &["nowhere.jsonl"]);
    refused(&scene, &format!("{SFT} --eval-data @nowhere.jsonl"), &["nowhere.jsonl"]);
    refused(&scene, &format!("{SFT} --config @nowhere.toml"), &["nowhere.toml"]);
    refused(&scene, &format!("{POLICY} --adapter @nowhere"), &["nowhere"]);
    refused(&scene, &format!("{POLICY} --reference @nowhere"), &["nowhere"]);
    refused(&scene, &format!("{POLICY} --loss d-dpo --rewards @nowhere"), &["nowhere"]);
    scene.another_model("mute");
    fs::remove_file(scene.path("mute/tokenizer.json")).expect("a file of the test's");
    refused(&scene, "sft --model @mute --data @pairs.jsonl", &["mute", "tokenizer.json"]);
}

#[test]
fn a_file_is_no_folder_for_a_run() {
    let scene = Scene::new();
    let before = scene.bytes("pairs.jsonl");
    let ended = scene.ended(&format!("{SFT} --out @pairs.jsonl"));
    assert_eq!(ended.code, Some(1), "{}", ended.said());
    let last = ended.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains("pairs.jsonl"), "{}", ended.said());
    assert_eq!(scene.bytes("pairs.jsonl"), before);
}

/// Two of them, a broken bracket and a missing field.
fn with_broken_lines(scene: &Scene) {
    let pairs = scene.text("pairs.jsonl");
    let mut lines: Vec<&str> = pairs.lines().collect();
    lines.insert(1, r#"{"prompt": "tell me about the fox", "chosen""#);
    lines.insert(40, r#"{"prompt": "tell me about the fox", "chosen": " brave"}"#);
    scene.write("broken.jsonl", lines.join("\n"));
}

#[test]
fn all_broken_lines_are_listed() {
    let scene = Scene::new();
    with_broken_lines(&scene);
    for command in ["sft", "policy", "reward"] {
        let says = ["2 broken lines", "broken.jsonl:2: ", "broken.jsonl:41: there is no `rejected`", "--skip-bad"];
        refused(&scene, &format!("{command} --model @model --data @broken.jsonl"), &says);
    }
}

#[test]
fn broken_lines_are_left_out_and_counted() {
    let scene = Scene::new();
    with_broken_lines(&scene);
    let rest = "--held-out 0.2 --max-steps 2 --learning-rate 1e-3";
    let ended = scene.succeeds(&format!("sft --model @model --data @broken.jsonl --skip-bad {rest} --out @run"));
    assert!(ended.err.contains("60 pairs kept") && ended.err.contains("2 broken lines"), "{}", ended.said());
    scene.succeeds(&format!("{SFT} {rest} --out @whole"));
    scene.same("run", "whole");
}

#[test]
fn losses_that_there_are_not() {
    let scene = Scene::new();
    let cases: [(&str, &[&str]); 8] = [
        ("hinje", &["hinje", "hinge"]),
        ("dpo + 0.1*forwrd-kl", &["forwrd-kl", "forward-kl"]),
        ("dpo:betta=0.1", &["betta", "beta"]),
        ("dpo:beta=much", &["beta", "much"]),
        ("dpo:beta=-1", &["beta", "positive and finite", "-1"]),
        ("e-dpo:minimum=hul", &["minimum", "hul", "hull"]),
        ("dpo +", &[]),
        ("", &[]),
    ];
    for (loss, says) in cases {
        refused(&scene, &format!("{POLICY} --loss '{loss}'"), says);
    }
}

#[test]
fn numbers_outside_their_domain() {
    let scene = Scene::new();
    let cases: [(&str, &str, &[&str]); 12] = [
        (SFT, "--learning-rate=-1", &["learning", "-1"]),
        (SFT, "--weight-decay=-1", &["decay", "-1"]),
        (SFT, "--held-out 2", &["held", "2"]),
        (SFT, "--max-length 1", &["at least 2"]),
        (SFT, "--batch 0", &["--batch", "0"]),
        (SFT, "--batch-tokens 3", &["3"]),
        (SFT, "--device gpu", &["cpu, cuda or cuda:N"]),
        (SFT, "--device cuda:99", &["CUDA"]),
        (SFT, "--lora 2 --lora-alpha=-4", &["alpha", "-4"]),
        (SFT, "--lora 2 --lora-targets nothing", &["nothing"]),
        (SFT, "--lora 2 --adapter @model", &["--lora", "--adapter"]),
        ("reward --model @model --data @pairs.jsonl", "--centring=-1", &["centring", "-1"]),
    ];
    for (command, flag, says) in cases {
        refused(&scene, &format!("{command} {flag}"), says);
    }
}

#[test]
fn models_that_are_not_as_they_should_be() {
    let scene = Scene::new();
    let on = |model: &str| format!("sft --model @{model} --data @pairs.jsonl");

    scene.another_model("cut");
    let whole = scene.bytes("cut/model.safetensors");
    scene.write("cut/model.safetensors", &whole[..whole.len() / 2]);
    refused(&scene, &on("cut"), &["cut/model.safetensors"]);
    scene.write("cut/model.safetensors", "");
    refused(&scene, &on("cut"), &["cut/model.safetensors"]);

    scene.another_model("strange");
    let mut config = scene.json("strange/config.json");
    config["moe_experts"] = Value::from(4);
    scene.write("strange/config.json", config.to_string());
    refused(&scene, &on("strange"), &["strange/config.json", "`moe_experts`"]);

    scene.another_model("foreign");
    let mut tokenizer = scene.json("foreign/tokenizer.json");
    tokenizer["model"]["vocab"]["far"] = Value::from(1000);
    scene.write("foreign/tokenizer.json", tokenizer.to_string());
    refused(&scene, &on("foreign"), &["foreign", "1000", "do not belong together"]);

    refused(&scene, &format!("{POLICY} --loss d-dpo --rewards @model"), &["score.weight"]);
}

#[test]
fn data_of_which_nothing_is_left() {
    let scene = Scene::new();
    scene.write("empty.jsonl", "");
    scene.write("blank.jsonl", "\n  \n");
    for command in ["sft", "policy", "reward"] {
        let on = |data: &str| format!("{command} --model @model --data @{data}");
        refused(&scene, &on("empty.jsonl"), &["empty.jsonl"]);
        refused(&scene, &on("blank.jsonl"), &["blank.jsonl"]);
        // Every prompt has seven tokens.
        refused(&scene, &format!("{} --max-length 7", on("pairs.jsonl")), &["pairs.jsonl"]);
        refused(&scene, &format!("{} --max-prompt 6", on("pairs.jsonl")), &["pairs.jsonl"]);
    }
}

#[test]
fn losses_that_fit_neither_step_nor_data() {
    let scene = Scene::new();
    refused(&scene, &format!("{POLICY} --loss aot --accumulate 2"), &["--loss aot", "--accumulate"]);
    scene.rewrite("weighted.jsonl", |_, mut line| {
        line["weight"] = Value::from(2.0);
        Some(line)
    });
    refused(&scene, "policy --model @model --data @weighted.jsonl --loss aot", &["--loss aot", "`weight`"]);
    // Of records with votes there are no scores.
    scene.rewrite("scored.jsonl", |_, mut line| {
        line["score_chosen"] = Value::from(4.5);
        line["score_rejected"] = Value::from(0.5);
        line.get("votes").is_none().then_some(line)
    });
    let sppo = "policy --model @model --data @scored.jsonl --loss sppo:win_rate=rewards";
    refused(&scene, sppo, &["--loss sppo", "[0, 1]", "4.5"]);
    for command in ["policy", "eval --reference @model"] {
        let on = |loss: &str| format!("{command} --model @model --data @scored.jsonl --loss {loss}");
        refused(&scene, &on("sppo:win_rate=rewards"), &["--loss sppo", "[0, 1]", "4.5"]);
        refused(&scene, &on("e-dpo"), &["--loss e-dpo", "a family of reward models", "there is one", "--rewards"]);
    }
    refused(&scene, &format!("{POLICY} --standardise"), &["--standardise", "--rewards"]);
    refused(&scene, &format!("{POLICY} --reward-scale 2"), &["--reward-scale", "--rewards"]);
}

#[test]
fn weights_of_some_pairs() {
    let scene = Scene::new();
    scene.rewrite("partly.jsonl", |index, mut line| {
        if index != 2 {
            line["weight"] = Value::from(1.0);
        }
        Some(line)
    });
    for command in ["sft", "policy", "reward"] {
        refused(&scene, &format!("{command} --model @model --data @partly.jsonl"), &["partly.jsonl:3", "`weight`"]);
    }
    let eval = "eval --model @model --reference @model";
    refused(&scene, &format!("{eval} --data @partly.jsonl"), &["partly.jsonl:3", "`weight`"]);
    scene.rewrite("weightless.jsonl", |_, mut line| {
        line["weight"] = Value::from(0.0);
        Some(line)
    });
    refused(&scene, "sft --model @model --data @weightless.jsonl", &["weightless.jsonl", "weight 0"]);
}

/// Also where the first pair lacks it, or one part.
#[test]
fn margins_of_some_pairs() {
    let scene = Scene::new();
    let margins = |name: &str, lacking: Option<usize>| {
        scene.rewrite(name, |index, mut line| {
            if lacking != Some(index) {
                line["margin"] = Value::from(0.5);
            }
            // Of records with votes there are no margins.
            line.get("votes").is_none().then_some(line)
        });
    };
    margins("all.jsonl", None);
    let all_or_none = "give it to all pairs or to none";
    for lacking in [0, 2] {
        margins("partly.jsonl", Some(lacking));
        let pair = format!("pair {lacking} of the train pairs");
        let reward = "reward --model @model --data @partly.jsonl --held-out 0";
        refused(&scene, reward, &[&pair, "`margin`", all_or_none]);
    }
    let reward = "reward --model @model --data @all.jsonl --eval-data @pairs.jsonl";
    refused(&scene, reward, &["pair 0 of the held-out pairs", "`margin`", all_or_none]);
}

/// Killed before its last member, or before its report: it would be taken for a smaller one.
#[test]
fn a_family_that_is_not_finished() {
    let scene = Scene::new();
    let reward = "reward --model @model --data @pairs.jsonl --members 2 --max-steps 2";
    for (held_out, out) in [("0.2", "some"), ("0", "all")] {
        let reward = format!("{reward} --held-out {held_out} --out @{out}");
        let policy = format!("{POLICY} --loss e-dpo --rewards @{out} --max-steps 1");
        scene.succeeds(&reward);
        fs::remove_file(scene.path(out).join("report.json")).expect("a finished family has one");
        refused(&scene, &policy, &[out, "not finished", "`reward` again"]);
        fs::remove_dir_all(scene.path(out).join("member-1")).expect("was made");
        refused(&scene, &policy, &[out, "not finished", "`reward` again"]);
        scene.succeeds(&reward);
        scene.succeeds(&format!("{policy} --kl-prompts 0 --out @policy-{out}"));
    }
}

#[test]
fn rewards_that_a_loss_reads() {
    let scene = Scene::new();
    for loss in ["d-dpo", "e-dpo", "e-dpo:minimum=hull + 0.01*forward-kl:estimator=own_responses"] {
        refused(&scene, &format!("{POLICY} --loss '{loss}'"), &["--rewards"]);
    }
    let eval = "eval --model @model --reference @model --data @pairs.jsonl --loss d-dpo";
    refused(&scene, eval, &["--loss d-dpo", "--rewards", "pair 0", "`score_chosen`"]);
}

#[test]
fn files_of_flags() {
    let scene = Scene::new();
    let cases: [(&str, &[&str]); 4] = [
        ("learning-rte = 1e-3\n", &["run.toml", "learning-rte"]),
        ("max-steps = \n", &["run.toml"]),
        ("max-steps = 'many'\n", &["many"]),
        ("config = 'other.toml'\n", &["run.toml", "config"]),
    ];
    for (text, says) in cases {
        scene.write("run.toml", text);
        refused(&scene, &format!("{SFT} --config @run.toml"), says);
    }
}

#[test]
fn a_run_of_other_settings_is_left_alone() {
    let scene = Scene::new();
    let run = format!("{SFT} --held-out 0.2 --max-steps 2 --out @run");
    scene.succeeds(&format!("{run} --learning-rate 0.001"));
    let before = (scene.bytes("run/settings.json"), scene.bytes("run/log.jsonl"), scene.weights("run"));
    let ended = scene.ended(&format!("{run} --learning-rate 0.002"));
    assert_eq!(ended.code, Some(1), "{}", ended.said());
    let lines: Vec<&str> = ended.err.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    let [message] = lines[..] else { panic!("{}", ended.said()) };
    for words in ["learning", "0.001", "0.002", "--out"] {
        assert!(message.contains(words), "{message}\ndoes not say {words}");
    }
    assert!(before == (scene.bytes("run/settings.json"), scene.bytes("run/log.jsonl"), scene.weights("run")));
}
