//! What a run was begun with, so that what goes on is the same run.

use std::{fs, io, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{flags::After, support};

/// How long the run is.
const LENGTH: [&str; 2] = ["epochs", "max_steps"];
/// What moves no parameter elsewhere.
const FREE: [&str; 5] = ["eval_every", "save_every", "keep", "export", "stop_on_alarm"];

/// Compares the settings with those that the folder's run was begun with, or writes them; whether there was a run.
///
/// A run may be made longer or shorter, evaluated and saved at other steps; any other difference is refused, and
/// another length too where the learning rate depends on it. Nothing is written then.
pub fn agree(out: &Path, settings: &Value, schedule: After) -> Result<bool> {
    let path = out.join("settings.json");
    let write = || support::write(&path, format!("{settings:#}\n"));
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
            write()?;
            return Ok(false);
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
    if !differences.is_empty() {
        write()?;
    }
    Ok(true)
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
        assert!(!agree(&out, &settings(0.5, 1), After::Constant)?);
        assert!(agree(&out, &settings(0.5, 1), After::Cosine)?);
        assert!(agree(&out, &settings(0.5, 2), After::Constant)?);
        let refused = |settings, schedule| agree(&out, &settings, schedule).map_err(|error| error.to_string());
        let ways = "give another --out, or delete the folder";
        let whose = format!("the run in {} was begun with", out.display());
        assert_eq!(
            refused(settings(0.25, 2), After::Constant),
            Err(format!("{whose} run.learning_rate = 0.5, not 0.25: go on with run.learning_rate = 0.5, {ways}"))
        );
        let cosine = refused(settings(0.5, 3), After::Cosine);
        assert!(cosine.is_err_and(|error| error.contains("run.epochs = 2, not 3, and with a cosine schedule")));
        assert!(agree(&out, &settings(0.5, 2), After::Constant)?, "a refusal has changed nothing");

        fs::create_dir_all(out.join("checkpoints/000001-step-1"))?;
        fs::remove_file(out.join("settings.json"))?;
        assert!(refused(settings(0.5, 2), After::Constant).is_err_and(|error| error.contains("of which run")));
        assert!(!out.join("settings.json").exists());
        Ok(())
    }
}
