//! What a run was begun with, so that what goes on is the same run.

use std::{
    fs, io, iter,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use prefopt::{
    data::{Column, Digest, PairDataset},
    matmul::{self, Product},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    flags::{After, Matmul, ModelFlags},
    pairs::Split,
    sft, support,
};

const FILE: &str = "settings.json";
/// Flags that name files and folders.
const PATHS: [&str; 6] = ["model", "adapter", "data", "eval_data", "rewards", "reference"];
/// How long the run is.
const LENGTH: [&str; 2] = ["epochs", "max_steps"];
/// What moves no parameter elsewhere.
const FREE: [&str; 6] = ["eval_every", "save_every", "keep", "export", "stop_on_alarm", "kl_prompts"];

/// All that shapes a run: the command, its flags, and what the model and the pairs that they name are today.
pub fn of(command: &str, flags: &impl Serialize, model: &ModelFlags, split: &Split) -> Result<Value> {
    let mut settings = serde_json::to_value(flags)?;
    for key in PATHS {
        if let Some(paths) = settings.get_mut(key) {
            normalise(paths);
        }
    }
    let digest = |pairs: &PairDataset| pairs.digest().to_string();
    settings["command"] = Value::from(command);
    settings["digest_of_model"] = Value::from(sft::digest(model)?.to_string());
    settings["digest_of_pairs"] = Value::from(digest(&split.train));
    settings["digest_of_held_out"] = Value::from(split.held_out.as_ref().map(digest));
    settings["digest_of_labels_and_columns"] = Value::from(numbers(split).to_string());
    settings["product"] = serde_json::to_value((model.matmul == Matmul::Fastest).then(matmul::current))?;
    Ok(settings)
}

/// `./runs//sft/` is `runs/sft`.
fn normalise(paths: &mut Value) {
    match paths {
        Value::String(path) => {
            let parts = Path::new(path.as_str()).components().filter(|part| *part != Component::CurDir);
            *path = parts.collect::<PathBuf>().display().to_string();
        }
        Value::Array(paths) => paths.iter_mut().for_each(normalise),
        _ => {}
    }
}

/// BLAKE3 of what [`PairDataset::digest`] leaves out: the labels, and the columns. One that some pairs lack shapes no
/// run.
fn numbers(split: &Split) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for pairs in iter::once(&split.train).chain(&split.held_out) {
        let columns = Column::ALL.into_iter().map(|column| pairs.column(column).unwrap_or_default());
        for numbers in iter::once(pairs.labels()).chain(columns) {
            hasher.update(&(numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|number| {
                hasher.update(&number.to_le_bytes());
            });
        }
    }
    hasher.finalize().into()
}

/// The f32 product that a run was begun with under `--matmul fastest`: timed anew it might be another one.
pub fn product(out: &Path) -> Option<Product> {
    let settings: Value = serde_json::from_slice(&fs::read(out.join(FILE)).ok()?).ok()?;
    serde_json::from_value(settings["product"].clone()).ok()
}

/// What there is of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Same,
    /// Of settings that may differ: to be [written](write) anew.
    Changed,
}

/// Compares the settings with those that the folder's run was begun with.
///
/// A run may be made longer, evaluated and saved at other steps; any other difference is refused, and another length
/// too where the learning rate depends on it.
pub fn compare(out: &Path, settings: &Value, schedule: After) -> Result<Found> {
    let path = out.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let checkpoints = out.join("checkpoints");
            ensure!(
                !fs::read_dir(&checkpoints).is_ok_and(|mut entries| entries.next().is_some()),
                "{} has something in it, but there is no {} to say of which run: give another --out, or delete the folder",
                checkpoints.display(),
                path.display()
            );
            return Ok(Found::Nothing);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let before: Value = serde_json::from_str(&text).with_context(|| {
        format!("{} is not the settings of a run: give another --out, or delete the folder", path.display())
    })?;
    let differences = differences("", Some(&before), Some(settings));
    if let Some(Difference { key, before, now }) = differences.iter().find(|found| !found.may_differ(schedule)) {
        let why = if LENGTH.contains(&last(key)) {
            ", and with a cosine schedule the number of steps is part of the schedule"
        } else {
            ""
        };
        bail!(
            "the run in {} was begun with {key} = {before}, not {now}{why}: go on with {key} = {before}, give another --out, or delete the folder",
            out.display()
        );
    }
    Ok(if differences.is_empty() { Found::Same } else { Found::Changed })
}

pub fn write(out: &Path, settings: &Value) -> Result<()> {
    support::write(&out.join(FILE), format!("{settings:#}\n"))
}

#[derive(Debug, PartialEq)]
struct Difference {
    /// Names of objects on the way, with dots between.
    key: String,
    before: Value,
    now: Value,
}

impl Difference {
    fn may_differ(&self, schedule: After) -> bool {
        let name = last(&self.key);
        FREE.contains(&name) || LENGTH.contains(&name) && schedule == After::Constant
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// In the order of `now`. What is not there is as `null`, so that a flag that a later version adds changes nothing
/// while it is not given.
fn differences(key: &str, before: Option<&Value>, now: Option<&Value>) -> Vec<Difference> {
    let (before, now) = (before.unwrap_or(&Value::Null), now.unwrap_or(&Value::Null));
    if before == now {
        return vec![];
    }
    let (Value::Object(old), Value::Object(new)) = (before, now) else {
        return vec![Difference { key: key.to_owned(), before: before.clone(), now: now.clone() }];
    };
    let gone = old.keys().filter(|name| !new.contains_key(name.as_str()));
    let of = |name: &String| {
        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        differences(&key, old.get(name), new.get(name))
    };
    new.keys().chain(gone).flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found_by_their_way() {
        let before = json!({"a": 1, "b": {"c": [1, 2], "d": 0.1, "gone": true}, "null": null});
        let now = json!({"a": 1, "b": {"c": [1, 3], "d": 0.1}, "new": null, "e": "f"});
        let found = differences("", Some(&before), Some(&now));
        let difference = |key: &str, before, now| Difference { key: key.to_owned(), before, now };
        let expected = [
            difference("b.c", json!([1, 2]), json!([1, 3])),
            difference("b.gone", json!(true), Value::Null),
            difference("e", Value::Null, json!("f")),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn another_run_is_refused_and_a_longer_one_is_not() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("run");
        let settings = |rate: f64, epochs: u64| json!({"run": {"learning_rate": rate, "epochs": epochs}});
        let agree = |settings: &Value, schedule| -> Result<Found> {
            let found = compare(&out, settings, schedule)?;
            write(&out, settings)?;
            Ok(found)
        };
        assert_eq!(agree(&settings(0.5, 1), After::Constant)?, Found::Nothing);
        assert_eq!(agree(&settings(0.5, 1), After::Cosine)?, Found::Same);
        assert_eq!(agree(&settings(0.5, 2), After::Constant)?, Found::Changed);
        let refused =
            |settings, schedule| compare(&out, &settings, schedule).map(drop).map_err(|error| error.to_string());
        let ways = "give another --out, or delete the folder";
        let whose = format!("the run in {} was begun with", out.display());
        assert_eq!(
            refused(settings(0.25, 2), After::Constant),
            Err(format!("{whose} run.learning_rate = 0.5, not 0.25: go on with run.learning_rate = 0.5, {ways}"))
        );
        let cosine = refused(settings(0.5, 3), After::Cosine);
        assert!(cosine.is_err_and(|error| error.contains("run.epochs = 2, not 3, and with a cosine schedule")));
        assert_eq!(compare(&out, &settings(0.5, 2), After::Constant)?, Found::Same);

        fs::create_dir_all(out.join("checkpoints/000001-step-1"))?;
        fs::remove_file(out.join("settings.json"))?;
        assert!(refused(settings(0.5, 2), After::Constant).is_err_and(|error| error.contains("of which run")));
        Ok(())
    }

    #[test]
    fn a_folder_has_one_name() {
        let mut paths = json!(["./runs//sft/", "/data/./sft", "sft", "../sft/"]);
        normalise(&mut paths);
        assert_eq!(paths, json!(["runs/sft", "/data/sft", "sft", "../sft"]));
    }
}
