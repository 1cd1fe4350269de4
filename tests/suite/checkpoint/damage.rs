//! Files that are not as they were written, and files that are not ours.

use std::{
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use prefopt::{
    Error, Result,
    tch::Kind,
    train::{CheckpointError, Checkpoints},
};

use super::{Run, folder, names};

type Damage = fn(&Path) -> io::Result<()>;

const FILES: [&str; 4] = ["model.safetensors", "state.safetensors", "run.json", "checksums"];
const DAMAGES: [Damage; 4] = [flip, flip_first, cut, remove];

fn flip(path: &Path) -> io::Result<()> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes)
}

fn flip_first(path: &Path) -> io::Result<()> {
    let mut bytes = fs::read(path)?;
    bytes[0] ^= 1;
    fs::write(path, bytes)
}

fn cut(path: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    fs::write(path, &bytes[..bytes.len() / 2])
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// Two checkpoints, of steps 1 and 2.
fn two(folder: &Path) -> Result<[PathBuf; 2]> {
    let (mut run, checkpoints) = (Run::new(Kind::Double)?, Checkpoints::open(folder)?);
    let mut save = || {
        run.step()?;
        Ok::<_, Error>(checkpoints.save(&run.checkpoint()?)?.folder)
    };
    Ok([save()?, save()?])
}

fn copied(from: &Path) -> io::Result<tempfile::TempDir> {
    let to = folder();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.path().join(entry.file_name()));
        if path.is_file() {
            fs::copy(path, target)?;
            continue;
        }
        fs::create_dir(&target)?;
        for file in fs::read_dir(path)? {
            let file = file?;
            fs::copy(file.path(), target.join(file.file_name()))?;
        }
    }
    Ok(to)
}

#[test]
fn a_damaged_checkpoint_is_passed_over() -> Result<()> {
    let template = folder();
    two(template.path())?;
    for (file, damage) in FILES.into_iter().flat_map(|file| DAMAGES.map(|damage| (file, damage))) {
        let folder = copied(template.path()).expect("folders of the test's");
        let newest = folder.path().join("000002-step-2");
        damage(&newest.join(file)).expect("a file of the test's");
        let mut checkpoints = Checkpoints::open(folder.path())?.keeping(NonZeroUsize::MIN);
        let loaded = checkpoints.load_last()?.expect("the one before");
        assert_eq!(loaded.checkpoint.steps(), 1, "{file}");
        let [skipped] = loaded.skipped.try_into().expect("the newest");
        assert_eq!(skipped.folder, newest);
        assert!(skipped.error.to_string().contains(&newest.display().to_string()), "{file}: {}", skipped.error);
        // It is not removed, since a person may want to look; nor does it count as the one that is kept.
        let mut run = Run::resumed(Kind::Double, &loaded.checkpoint)?;
        run.step()?;
        checkpoints.save(&run.checkpoint()?)?;
        assert_eq!(names(folder.path()), ["000002-step-2", "000003-step-2", "last"], "{file}");
        assert_eq!(checkpoints.load_last()?.expect("is whole").checkpoint.steps(), 2);
    }
    Ok(())
}

#[test]
fn damage_is_named() -> Result<()> {
    let said = |file: &str, damage: Damage| -> Result<String> {
        let folder = folder();
        let [oldest, newest] = two(folder.path())?;
        for path in [&oldest, &newest] {
            damage(&path.join(file)).expect("a file of the test's");
        }
        let error = Checkpoints::open(folder.path())?.load_last().expect_err("both are damaged");
        assert!(matches!(&error, Error::Checkpoint(CheckpointError::NoneWhole { count: 2, .. })));
        let file = newest.join(file).display().to_string();
        Ok(error.to_string().replace(&file, "FILE").replace(&folder.path().display().to_string(), "RUN"))
    };
    let of = |what: &str| format!("none of the 2 checkpoints in RUN can be read. The newest: {what}");
    assert!(said("model.safetensors", flip)?.starts_with(&of("FILE is damaged: its CRC-32C is ")));
    assert!(said("state.safetensors", cut)?.starts_with(&of("FILE has ")));
    assert!(said("run.json", remove)?.starts_with(&of("cannot read FILE: ")));
    assert_eq!(
        said("checksums", |path| fs::write(path, ""))?,
        of("FILE does not say length and CRC-32C of model.safetensors")
    );
    Ok(())
}

/// Written anew with sums that are right.
#[test]
fn a_later_format_is_refused() -> Result<()> {
    let folder = folder();
    let [_, newest] = two(folder.path())?;
    let record = fs::read_to_string(newest.join("run.json")).expect("written");
    assert!(record.contains("\"format\": 1,"), "{record}");
    let record = record.replace("\"format\": 1,", "\"format\": 2,");
    fs::write(newest.join("run.json"), &record).expect("a file of the test's");
    let sums = fs::read_to_string(newest.join("checksums")).expect("written");
    let kept = sums.lines().filter(|line| !line.ends_with("run.json")).map(|line| format!("{line}\n"));
    let own = format!("{:08x} {} run.json\n", crc32c::crc32c(record.as_bytes()), record.len());
    fs::write(newest.join("checksums"), kept.chain([own]).collect::<String>()).expect("a file of the test's");
    let loaded = Checkpoints::open(folder.path())?.load_last()?.expect("the one before");
    let said = format!("{} is in format 2, this version reads format 1", newest.join("run.json").display());
    assert_eq!(loaded.skipped[0].error.to_string(), said);
    Ok(())
}

#[test]
fn what_else_lies_there_is_left_alone() -> Result<()> {
    let (folder, mut run) = (folder(), Run::new(Kind::Double)?);
    let mut checkpoints = Checkpoints::open(folder.path().join("runs/dpo"))?;
    assert!(checkpoints.load_last()?.is_none());
    for name in ["000009-step-9.partial", "notes", "x-step-y", "1-step-"] {
        fs::create_dir(checkpoints.folder().join(name)).expect("a folder of the test's");
    }
    assert!(checkpoints.load_last()?.is_none());
    run.step()?;
    checkpoints.save(&run.checkpoint()?)?;
    // What was written half is swept, and its number not used again.
    assert_eq!(names(checkpoints.folder()), ["000010-step-1", "1-step-", "last", "notes", "x-step-y"]);
    Ok(())
}
