//! Losses by name, one of each kind of what they read: every one takes its steps and leaves a model.

use super::Scene;

const POLICY: &str =
    "policy --model @model --data @pairs.jsonl --held-out 0.2 --max-steps 2 --kl-prompts 2 --sample-length 6";

#[track_caller]
fn each(scene: &Scene, losses: &[&str], more: &str) {
    for (index, loss) in losses.iter().enumerate() {
        scene.succeeds(&format!("{POLICY} --loss '{loss}' {more} --out @run-{index}"));
        assert!(scene.path(&format!("run-{index}/model/config.json")).exists(), "{loss}");
        let losses: Vec<_> =
            scene.log(&format!("run-{index}")).iter().filter_map(|line| line.get("loss").cloned()).collect();
        assert!(losses.len() == 2 && losses.iter().all(serde_json::Value::is_f64), "{loss}: {losses:?}");
    }
}

#[test]
fn of_pairs_alone() {
    let losses = [
        "dpo",
        "ipo:per_token=true",
        "dpo:under=forward_kl",
        "ld-dpo:tail_weight=0.5",
        "wpo",
        "bco:shift=running",
        "aot",
        "simpo",
        "orpo",
        "matching:target=soft_labels",
        "kto",
        "spo + 0.1*reverse-kl",
        "dpo + 0.1*forward-kl:estimator=reference_samples",
    ];
    each(&Scene::new(), &losses, "");
}

#[test]
fn of_rewards() {
    let scene = Scene::new();
    let rewards = "reward --model @model --data @pairs.jsonl --held-out 0.2 --members 2 --max-steps 4";
    scene.succeeds(&format!("{rewards} --out @rewards"));
    let of_families = [
        "e-dpo:minimum=dataset",
        "e-dpo:minimum=hull + 0.01*forward-kl:estimator=own_responses",
        "updpo",
        "dpo:weighted=uncertainty",
    ];
    each(&scene, &of_families, "--rewards @rewards --standardise");
}

#[test]
fn of_one_reward_model() {
    let scene = Scene::new();
    scene.succeeds("reward --model @model --data @pairs.jsonl --held-out 0.2 --max-steps 4 --out @rewards");
    each(&scene, &["d-dpo", "matching", "drdo", "gpo"], "--rewards @rewards");
}
