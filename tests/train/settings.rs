//! What shapes a run: flags in a file or on the command line, the seed, and how a step is cut into parts.

use std::collections::BTreeMap;

use prefopt::tch::Tensor;
use serde_json::{Map, Value};

use super::{Scene, WEIGHTS};

const SFT: &str = "sft --model @model --data @pairs.jsonl --held-out 0.2";
const REWARD: &str = "reward --model @model --data @pairs.jsonl --held-out 0.2 --members 2";
const POLICY: &str = "policy --model @model --data @pairs.jsonl --held-out 0.2 --kl-prompts 2 --sample-length 6";

#[test]
fn a_file_of_flags_is_the_flags() {
    let scene = Scene::new();
    let quoted = |name: &str| Value::from(scene.path(name).display().to_string()).to_string();
    let file = [
        format!("model = {}", quoted("model")),
        format!("data = [{}]", quoted("pairs.jsonl")),
        "held-out = 0.2".to_owned(),
        "drop-ties = true".to_owned(),
        "keep-end = false".to_owned(),
        "max-steps = 3".to_owned(),
        "learning-rate = 1e-3".to_owned(),
        "lora = 2".to_owned(),
        "lora-targets = ['q_proj', 'v_proj']".to_owned(),
        "schedule = 'cosine'".to_owned(),
    ];
    scene.write("run.toml", file.join("\n"));
    let shape = "--lora 2 --lora-targets q_proj v_proj --schedule cosine";
    let flags = format!("{SFT} --drop-ties --max-steps 3 --learning-rate 1e-3 {shape}");

    scene.succeeds("sft --config @run.toml --out @file");
    scene.succeeds(&format!("{flags} --out @flags"));
    assert_eq!(scene.json("file/settings.json"), scene.json("flags/settings.json"));
    assert_eq!(scene.log("file"), scene.log("flags"));
    // The finished run, by the other way to say the same.
    let before = scene.bytes("file/log.jsonl");
    scene.succeeds(&format!("{flags} --out @file"));
    assert!(scene.bytes("file/log.jsonl") == before, "it is the same run");
}

#[test]
fn the_command_line_goes_before_the_file() {
    let scene = Scene::new();
    scene.write("run.toml", "max-steps = 3\nseed = 7\nlearning-rate = 5e-4\ndata = ['nowhere.jsonl']\n");
    let rest = "--max-steps 2 --learning-rate 1e-3";
    scene.succeeds(&format!("{SFT} {rest} --config @run.toml --out @both"));
    scene.succeeds(&format!("{SFT} {rest} --seed 7 --out @flags"));
    assert_eq!(scene.json("both/settings.json"), scene.json("flags/settings.json"));
    scene.same("both", "flags");
}

#[test]
fn a_run_may_be_made_longer() {
    let scene = Scene::new();
    let run = |steps: u64, out: &str| {
        scene.succeeds(&format!("{SFT} --learning-rate 1e-3 --eval-every 2 --max-steps {steps} --out @{out}"));
    };
    run(4, "run");
    run(8, "run");
    run(8, "straight");
    scene.same("run", "straight");
    // And not shorter than it is: its model would be that of all steps.
    let shorter = format!("{SFT} --learning-rate 1e-3 --eval-every 2 --max-steps 4 --out @run");
    scene.refuses(&shorter, &["8 steps", "4", "--max-steps"]);
    scene.same("run", "straight");
}

/// Labels and columns are what a run learns from, as tokens are.
#[test]
fn a_changed_label_is_another_run() {
    let scene = Scene::new();
    let run = format!("{POLICY} --loss matching:target=soft_labels --max-steps 2 --out @run");
    scene.succeeds(&run);
    scene.rewrite("pairs.jsonl", |_, mut line| {
        if let Some(votes) = line.get_mut("votes") {
            votes[2]["choice"] = votes[0]["choice"].clone();
        }
        Some(line)
    });
    scene.refuses(&run, &["digest_of_labels_and_columns", "--out"]);
}

#[test]
fn reward_models_trained_anew_are_others() {
    let scene = Scene::new();
    let reward = "reward --model @model --data @pairs.jsonl --held-out 0.2 --max-steps 2";
    scene.succeeds(&format!("{reward} --out @rewards"));
    scene.succeeds(&format!("{reward} --seed 1 --out @others"));
    let run = format!("{POLICY} --loss d-dpo --max-steps 2 --out @run");
    scene.succeeds(&format!("{run} --rewards @rewards"));
    let again = scene.succeeds(&format!("{run} --rewards @rewards/"));
    assert!(again.err.contains("is finished"), "{}", again.said());
    scene.write("rewards/member-0/model.safetensors", scene.bytes("others/member-0/model.safetensors"));
    scene.refuses(&format!("{run} --rewards @rewards"), &["digest_of_rewards"]);
}

/// Timed anew it might be the other one.
#[test]
fn a_run_keeps_its_product() {
    let scene = Scene::new();
    let run = |steps: u64| scene.succeeds(&format!("{SFT} --matmul fastest --max-steps {steps} --out @run"));
    let first = run(1);
    assert!(!first.err.contains("as the run was begun"), "{}", first.said());
    let product = scene.json("run/settings.json")["product"].clone();
    let second = run(2);
    assert!(second.err.contains("as the run was begun"), "{}", second.said());
    assert!(product.is_string() && scene.json("run/settings.json")["product"] == product);
}

/// Also new weights, of heads and adapters.
#[test]
fn a_seed_fixes_a_run() {
    let scene = Scene::new();
    let commands = [
        (SFT.to_owned(), "model/model.safetensors"),
        (format!("{SFT} --lora 2"), "model/adapter_model.safetensors"),
        (REWARD.to_owned(), "member-1/model.safetensors"),
    ];
    for (index, (command, weights)) in commands.iter().enumerate() {
        let run = |seed: u64, out: &str| {
            let steps = format!("--learning-rate 1e-3 --max-steps 6 --seed {seed}");
            scene.succeeds(&format!("{command} {steps} --out @{out}-{index}"));
            scene.bytes(&format!("{out}-{index}/{weights}"))
        };
        let first = run(1, "first");
        assert!(run(1, "again") == first, "{command}: the same seed is the same run");
        assert!(run(2, "other") != first, "{command}: another seed is another run");
    }
}

/// Of the policy and of the reference.
#[test]
fn a_seed_fixes_samples() {
    let scene = Scene::new();
    let losses = "dpo + 0.1*reverse-kl + 0.1*forward-kl:estimator=reference_samples";
    let run = |seed: u64, out: &str| {
        let steps = format!("--learning-rate 1e-3 --max-steps 6 --seed {seed}");
        scene.succeeds(&format!("{POLICY} --loss '{losses}' {steps} --out @{out}"));
    };
    run(1, "first");
    run(1, "again");
    run(2, "other");
    scene.same("again", "first");
    assert!(scene.weights("first") != scene.weights("other"), "another seed is another run");
}

/// Numbers of each step, by name.
fn steps(scene: &Scene, run: &str, name: &str) -> Vec<f64> {
    let number = |line: Map<String, Value>| line.get(name).and_then(Value::as_f64);
    scene.log(run).into_iter().filter_map(number).collect()
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], what: &str) {
    assert!(found.len() == expected.len() && !found.is_empty(), "{what}: {found:?}, expected {expected:?}");
    let off = found.iter().zip(expected).map(|(f, e)| (f - e).abs() / (1.0 + e.abs())).fold(0.0, f64::max);
    assert!(off <= 1e-5, "{what}: {found:?}, expected {expected:?}");
}

/// The losses are a mean over tokens, over pairs, and one that couples the pairs of a step.
#[test]
fn two_halves_of_a_step_are_the_step() {
    let scene = Scene::new();
    scene.succeeds(&format!("{REWARD} --max-steps 4 --out @rewards"));
    let commands =
        [SFT.to_owned(), format!("{POLICY} --loss dpo"), format!("{POLICY} --loss e-dpo --rewards @rewards")];
    for (index, command) in commands.iter().enumerate() {
        // In small steps: AdamW's first ones go by a gradient's sign, also where it is 0 but for rounding.
        let run = |cut: &str, out: &str| {
            scene.succeeds(&format!("{command} --learning-rate 1e-5 --max-steps 4 {cut} --out @{out}"));
        };
        let [whole, halves] = ["whole", "halves"].map(|cut| format!("{cut}-{index}"));
        run("--batch 8", &whole);
        run("--batch 4 --accumulate 2", &halves);
        for name in ["loss", "grad_norm"] {
            close(&steps(&scene, &halves, name), &steps(&scene, &whole, name), &format!("{command}: {name}"));
        }
        let weights = |run: String| -> BTreeMap<String, Tensor> {
            let file = scene.path(&run).join("model").join(WEIGHTS);
            Tensor::read_safetensors(file).expect("a model was written").into_iter().collect()
        };
        let [whole, halves] = [whole, halves].map(weights);
        for ((name, whole), (found, halves)) in whole.iter().zip(&halves) {
            let off = (whole - halves).abs().max().double_value(&[]);
            assert!(name == found && off <= 1e-5, "{command}: {name} is off by {off:e}");
        }
    }
}

/// One of weight 0 counts for nothing.
#[test]
fn pairs_count_for_their_weights() {
    let scene = Scene::new();
    let weighed = |name: &str, weight: fn(usize) -> usize| {
        scene.rewrite(name, |index, mut line| {
            line["weight"] = Value::from(weight(index) as f64);
            Some(line)
        });
    };
    weighed("even.jsonl", |index| 2 * ((index + 1) % 2));
    weighed("uneven.jsonl", |index| 1 + index % 3);
    scene.rewrite("half.jsonl", |index, line| (index % 2 == 0).then_some(line));
    for (command, log) in [("sft", ""), ("reward", "/member-0.run"), ("policy --kl-prompts 0", "")] {
        let name = command.split(' ').next().unwrap_or_default();
        let losses = |data: &str| {
            let (shape, out) = ("--held-out 0.2 --learning-rate 1e-5 --max-steps 3", format!("{name}-{data}"));
            let ended = scene.succeeds(&format!("{command} --model @model --data @{data}.jsonl {shape} --out @{out}"));
            (steps(&scene, &format!("{out}{log}"), "loss"), ended)
        };
        let (even, ended) = losses("even");
        assert!(ended.err.contains("weight of 0: 30"), "{}", ended.said());
        close(&even, &losses("half").0, command);
        assert_ne!(losses("uneven").0, losses("pairs").0, "{command}");
    }
}

/// −log σ(Δr − m) lies above −log σ(Δr), by m at most.
#[test]
fn a_chosen_response_is_to_win_by_its_margin() {
    let scene = Scene::new();
    let losses = |name: &str, margin: Option<f64>| {
        scene.rewrite(&format!("{name}.jsonl"), |_, mut line| {
            if let Some(margin) = margin {
                line["margin"] = Value::from(margin);
            }
            // Of records with votes there are no margins.
            line.get("votes").is_none().then_some(line)
        });
        // A member of a family by resamples, and heads on one trunk.
        let of = |shape: &str, out: &str| {
            let reward = format!("reward --model @model --data @{name}.jsonl --held-out 0.2 --members 2 {shape}");
            let ended = scene.succeeds(&format!("{reward} --learning-rate 1e-5 --max-steps 1 --out @{out}"));
            assert_eq!(ended.err.contains("`margin`"), margin.is_some(), "{}", ended.said());
            steps(&scene, &format!("{out}/member-0.run"), "loss")
        };
        [of("", &format!("{name}-own")), of("--shared-trunk --family seed", &format!("{name}-heads"))].concat()
    };
    let (without, of_zero, of_two) = (losses("without", None), losses("zero", Some(0.0)), losses("two", Some(2.0)));
    assert_eq!((without.len(), &without), (2, &of_zero));
    let above: Vec<f64> = of_two.iter().zip(&without).map(|(of_two, without)| of_two - without).collect();
    assert!(above.len() == 2 && above.iter().all(|&above| above > 0.0 && above < 2.0), "{of_two:?}, {without:?}");
}
