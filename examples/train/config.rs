//! Flags from a TOML file, put in behind the command's name; those of the command line go before it.
//!
//!     model = "models/tiny"            # keys are long flags, with - or _
//!     data = ["a.jsonl", "b.jsonl"]    # several values are an array
//!     chat = true                      # a switch; false is as if it were not there
//!     [policy]                         # for this command alone, before what stands above
//!     loss = { name = "dpo", beta = 0.2, plus = [{ name = "forward-kl", weight = 0.001 }] }
//!
//! Paths are relative to where the program is started, as on the command line.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Arg, ArgAction, Command, CommandFactory};
use toml::{Table, Value};

use crate::{flags::Cli, nearest::nearest};

/// The program's arguments with the flags of `--config FILE`.
pub fn arguments() -> Result<Vec<OsString>> {
    merged(env::args_os().collect())
}

fn merged(mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let cli = Cli::command();
    let found = |(at, word): (usize, &OsString)| Some((at, cli.find_subcommand(word)?));
    let Some((at, command)) = arguments.iter().enumerate().skip(1).find_map(found) else { return Ok(arguments) };
    let given = &arguments[at + 1..];
    let helped = given.iter().any(|word| word == "--help" || word == "-h");
    let Some(file) = file(given).filter(|_| !helped) else { return Ok(arguments) };
    let flags = table(&file).and_then(|table| flags(&cli, command, table, long_names(given)));
    let flags = flags.with_context(|| file.display().to_string())?;
    let rest = arguments.split_off(at + 1);
    arguments.extend(flags.into_iter().chain(rest));
    Ok(arguments)
}

fn file(words: &[OsString]) -> Option<PathBuf> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(file) = word.to_string_lossy().strip_prefix("--config=") {
            return Some(PathBuf::from(file));
        }
    }
    None
}

/// Long flags among these words, without dashes and values.
fn long_names(words: &[OsString]) -> BTreeSet<String> {
    let name = |word: &OsString| {
        let word = word.to_string_lossy();
        let flag = word.strip_prefix("--")?;
        Some(flag.split('=').next().unwrap_or(flag).to_owned())
    };
    words.iter().filter_map(name).collect()
}

fn table(file: &Path) -> Result<Table> {
    let text = fs::read_to_string(file).context("cannot be read")?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count();
        anyhow!("line {line}: {}", error.message().replace('\n', " "))
    })
}

/// The file's flags for this command, without those that are `taken` and those that cannot stand beside them.
fn flags(cli: &Command, command: &Command, table: Table, mut taken: BTreeSet<String>) -> Result<Vec<OsString>> {
    let (mut own, mut common) = (Table::new(), Table::new());
    for (key, value) in table {
        match (cli.find_subcommand(&key), value) {
            (Some(section), Value::Table(keys)) => {
                for key in keys.keys() {
                    argument(cli, section, key)?;
                }
                if section.get_name() == command.get_name() {
                    own = keys;
                }
            }
            (_, value) => {
                common.insert(key, value);
            }
        }
    }
    let mut flags = Vec::new();
    for keys in [own, common] {
        let mut seen = BTreeSet::new();
        for (key, value) in &keys {
            let arg = argument(cli, command, key)?;
            let name = arg.get_long().unwrap_or_default();
            ensure!(seen.insert(name.to_owned()), "`{key}` is there twice, once with - and once with _");
            let words = words(arg, key, value)?;
            if !taken.contains(name) && !excluded(command, arg, &taken) {
                flags.extend(words);
            }
        }
        taken.extend(seen);
    }
    Ok(flags)
}

/// The flag of this name.
fn argument<'a>(cli: &Command, command: &'a Command, key: &str) -> Result<&'a Arg> {
    let name = key.replace('_', "-");
    let is_it = |arg: &Arg| arg.get_long() == Some(name.as_str());
    ensure!(name != "config", "`{key}` cannot stand in a file of flags");
    if let Some(arg) = command.get_arguments().find(|arg| is_it(arg)) {
        return Ok(arg);
    }
    let own = command.get_name();
    let others: Vec<&str> =
        cli.get_subcommands().filter(|other| other.get_arguments().any(is_it)).map(Command::get_name).collect();
    match others.as_slice() {
        [] => {
            let near = nearest(&name, command.get_arguments().filter_map(Arg::get_long)).join(", ");
            bail!("unknown key `{key}`: the nearest flags of `{own}` are {near}")
        }
        [first, ..] => {
            bail!("`{key}` is a flag of {} and not of `{own}`: put it under [{first}]", others.join(", "))
        }
    }
}

/// Whether what is taken excludes this flag, or the other way round.
fn excluded(command: &Command, arg: &Arg, taken: &BTreeSet<String>) -> bool {
    let is_taken = |arg: &Arg| arg.get_long().is_some_and(|name| taken.contains(name));
    let excludes = |one: &Arg, other: &Arg| {
        command.get_arg_conflicts_with(one).iter().any(|found| found.get_id() == other.get_id())
    };
    command.get_arguments().filter(|other| is_taken(other)).any(|other| excludes(arg, other) || excludes(other, arg))
}

/// A key of the file as words of a command line.
fn words(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>> {
    let name = arg.get_long().unwrap_or_default();
    let word = |value: &Value| -> Result<OsString> {
        match value {
            Value::Table(loss) if name == "loss" => Ok(OsString::from(format!("--loss={}", sum(loss)?))),
            value => {
                let text = text(value)
                    .with_context(|| format!("`{key}` must be a string or a number, got {}", value.type_str()))?;
                Ok(OsString::from(format!("--{name}={text}")))
            }
        }
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(vec![OsString::from(format!("--{name}"))]),
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(vec![]),
        (ArgAction::SetTrue, value) => bail!("`{key}` must be true or false, got {}", value.type_str()),
        (ArgAction::Append, Value::Array(values)) => values.iter().map(word).collect(),
        (_, Value::Array(_)) => bail!("`{key}` must be one value, got an array"),
        (_, value) => Ok(vec![word(value)?]),
    }
}

/// A string or a number as text that reads back.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(format!("{number:?}")),
        _ => None,
    }
}

/// The text of a loss that is a table.
fn sum(loss: &Table) -> Result<String> {
    let mut sum = term(loss, "plus")?;
    let further: &[Value] = match loss.get("plus") {
        None => &[],
        Some(Value::Array(terms)) => terms.as_slice(),
        Some(_) => bail!("`plus` of a loss must be an array of losses"),
    };
    for further in further {
        let further = further.as_table().context("`plus` of a loss must be an array of tables")?;
        let weight = further.get("weight").map_or(Some("1".to_owned()), text).context("`weight` must be a number")?;
        sum.push_str(&format!(" + {weight}*{}", term(further, "weight")?));
    }
    Ok(sum)
}

/// `NAME:KEY=VALUE,…` of all keys but `except`.
fn term(table: &Table, except: &str) -> Result<String> {
    let name = table.get("name").and_then(Value::as_str).context("a loss that is a table needs a `name`")?;
    let mut keys = Vec::new();
    for (key, value) in table.iter().filter(|(key, _)| *key != "name" && *key != except) {
        let value = value.as_bool().map(|on| on.to_string()).or_else(|| text(value));
        let value = value.with_context(|| format!("`{key}` of {name} must be a number, a word, true or false"))?;
        keys.push(format!("{key}={value}"));
    }
    Ok(if keys.is_empty() { name.to_owned() } else { format!("{name}:{}", keys.join(",")) })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{flags, loss::LossSpec};

    const MODEL: &str = "model = 'm'\ndata = ['a', 'b']\n";

    /// `line` with this text as the file FILE.
    fn merge(text: &str, line: &str) -> Result<Vec<String>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("flags.toml");
        fs::write(&file, text)?;
        let line = line.replace("FILE", &file.display().to_string());
        let merged = merged(line.split_whitespace().map(OsString::from).collect())?;
        Ok(merged.into_iter().map(|word| word.to_string_lossy().into_owned()).collect())
    }

    fn policy(text: &str, line: &str) -> flags::PolicyFlags {
        let words = merge(text, &format!("train policy --config FILE --out o {line}")).expect("merges");
        match Cli::try_parse_from(words).expect("parses").command {
            Some(flags::Command::Policy(flags)) => flags,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(text: &str) -> String {
        let error = merge(&format!("{MODEL}{text}"), "train policy --config=FILE").expect_err(text);
        let shown = format!("{error:#}");
        shown.split_once("flags.toml: ").expect("names the file").1.to_owned()
    }

    #[test]
    fn a_file_s_flags_are_flags() {
        let text =
            "chat = true\nkeep_end = false\nlearning-rate = 1e-5\nbatch = 3\nloss = 'ipo:tau=0.5'\ndtype = 'bf16'\n";
        let flags = policy(&format!("{MODEL}{text}"), "");
        assert_eq!(flags.data.data, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(flags.data.chat && !flags.data.keep_end);
        assert_eq!((flags.run.learning_rate, flags.run.batch.get()), (Some(1e-5), 3));
        assert_eq!(flags.loss.to_string(), "ipo:tau=0.5");
        assert_eq!(flags.model.dtype, flags::Dtype::Bf16);
    }

    #[test]
    fn the_command_line_goes_first_and_then_the_command_s_table() {
        let text = format!(
            "{MODEL}seed = 1\nepochs = 2\nbatch = 4\n[policy]\nepochs = 3\nbatch_tokens = 64\n[eval]\nout = 'e'\n"
        );
        let flags = policy(&text, "--seed=7 --data c");
        assert_eq!((flags.run.seed, flags.run.epochs, flags.data.data), (7, 3, vec![PathBuf::from("c")]));
        // What the nearer place excludes is left out of the farther one.
        assert_eq!(flags.run.batch_tokens.map(|tokens| tokens.get()), Some(64));
        let flags = policy(&text, "--batch 5");
        assert_eq!((flags.run.batch.get(), flags.run.batch_tokens), (5, None));
        let flags = policy(&format!("{MODEL}held_out = 0.5"), "--eval-data h");
        assert_eq!(flags.data.eval_data, [PathBuf::from("h")]);
    }

    #[test]
    fn a_loss_may_be_a_table() {
        let table = "[policy.loss]\nname = 'dpo'\nbeta = 0.2\nper_token = true\nplus = [{ name = 'sft' }, \
                     { name = 'forward-kl', weight = 1e-3 }]";
        let expected: LossSpec = "dpo:beta=0.2,per_token=true + 1*sft + 0.001*forward-kl".parse().expect("a loss");
        assert_eq!(policy(&format!("{MODEL}{table}"), "").loss, expected);
    }

    #[test]
    fn without_a_file_nothing_changes() -> Result<()> {
        for line in [
            "train",
            "train --losses",
            "train policy --model m",
            "train policy --config",
            "train policy --config none --help",
        ] {
            assert_eq!(merge("", line)?.join(" "), line);
        }
        Ok(())
    }

    #[test]
    fn refusals_name_file_and_key() {
        for (text, expected) in [
            ("lerning_rate = 1", "unknown key `lerning_rate`: the nearest flags of `policy` are learning-rate"),
            ("members = 2", "`members` is a flag of reward and not of `policy`: put it under [reward]"),
            ("[reward]\nloss = 'dpo'", "`loss` is a flag of policy, eval and not of `reward`: put it under [policy]"),
            ("config = 'x'", "`config` cannot stand in a file of flags"),
            ("chat = 1", "`chat` must be true or false, got integer"),
            ("seed = true", "`seed` must be a string or a number, got boolean"),
            ("seed = [1]", "`seed` must be one value, got an array"),
            ("max-steps = 1\nmax_steps = 2", "`max_steps` is there twice, once with - and once with _"),
            ("loss = { beta = 1 }", "a loss that is a table needs a `name`"),
            ("loss = { name = 'dpo', beta = [1] }", "`beta` of dpo must be a number, a word, true or false"),
            ("loss = { name = 'dpo', plus = 1 }", "`plus` of a loss must be an array of losses"),
        ] {
            assert_eq!(refusal(text), expected, "{text}");
        }
        assert!(refusal("seed = = 1").starts_with("line 3: "), "{}", refusal("seed = = 1"));
        let missing = merged(["train", "sft", "--config", "no/such.toml"].map(OsString::from).to_vec());
        let missing = format!("{:#}", missing.expect_err("no file"));
        assert!(missing.starts_with("no/such.toml: cannot be read: "), "{missing}");
    }
}
