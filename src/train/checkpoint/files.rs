use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::Path,
};

use crc32c::Crc32cReader;

use super::{
    Checkpoint, CheckpointError,
    disk::{self, Disk, Sum},
    record::Record,
    tensors::{self, Named},
};
use crate::{Result, train::file::FileError};

/// The model, for whoever reads safetensors.
const MODEL: &str = "model.safetensors";
/// Tensors of the optimiser and of the run.
const STATE: &str = "state.safetensors";
/// Everything else.
const RECORD: &str = "run.json";
/// CRC-32C, length and name of the three, a line each: what tells a damaged checkpoint from a whole one. Not against forgery.
const SUMS: &str = "checksums";

const OPTIMISER: &str = "optimiser/";
const OWN: &str = "own/";

/// Writes a checkpoint into a folder that is there and empty, and makes it durable.
pub(super) fn write(disk: &dyn Disk, folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let mut state = Named::new();
    for (prefix, tensors) in [(OPTIMISER, &checkpoint.optimiser), (OWN, &checkpoint.own)] {
        state.extend(tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())));
    }
    let [model_path, state_path, record_path, sums_path] = [MODEL, STATE, RECORD, SUMS].map(|file| folder.join(file));
    let record = serde_json::to_vec_pretty(&Record::of(checkpoint))
        .map_err(|source| CheckpointError::Record { path: record_path.clone(), source })?;
    let sums = [
        (MODEL, disk::write(disk, &model_path, |out| tensors::write(&checkpoint.model, &model_path, out))?),
        (STATE, disk::write(disk, &state_path, |out| tensors::write(&state, &state_path, out))?),
        (RECORD, disk::write(disk, &record_path, |out| whole(&record, &record_path, out))?),
    ];
    let list = sums.map(|(file, Sum { bytes, crc })| format!("{crc:08x} {bytes} {file}\n")).concat();
    disk::write(disk, &sums_path, |out| whole(list.as_bytes(), &sums_path, out))?;
    Ok(disk.sync_folder(folder).map_err(FileError::at("write", folder))?)
}

/// Writes bytes that are at hand.
pub(super) fn whole(bytes: &[u8], path: &Path, out: &mut dyn Write) -> Result<()> {
    Ok(out.write_all(bytes).map_err(FileError::at("write", path))?)
}

/// Reads a checkpoint, of which every byte must be as it was written.
pub(super) fn read(folder: &Path) -> Result<Checkpoint> {
    let list = list(folder)?;
    let model = checked(folder, &list, MODEL, tensors::read)?;
    let (mut optimiser, mut own) = (Named::new(), Named::new());
    for (name, tensor) in checked(folder, &list, STATE, tensors::read)? {
        match (name.strip_prefix(OPTIMISER), name.strip_prefix(OWN)) {
            (Some(name), _) => optimiser.insert(name.to_owned(), tensor),
            (None, Some(name)) => own.insert(name.to_owned(), tensor),
            (None, None) => return Err(CheckpointError::NoPlace { name: name.clone() }.into()),
        };
    }
    let record = checked(folder, &list, RECORD, parse)?;
    let (metrics, Record { steps, position, values, .. }) = (record.metrics(), record);
    Ok(Checkpoint { steps, model, optimiser, own, position, metrics, values })
}

/// What a checkpoint holds beside tensors.
pub(super) fn record(folder: &Path) -> Result<Record> {
    checked(folder, &list(folder)?, RECORD, parse)
}

fn list(folder: &Path) -> Result<String> {
    let path = folder.join(SUMS);
    Ok(fs::read_to_string(&path).map_err(FileError::at("read", path))?)
}

fn listed(list: &str, file: &str) -> Option<Sum> {
    let line = list.lines().find_map(|line| line.strip_suffix(file)?.strip_suffix(' '))?;
    let (crc, bytes) = line.split_once(' ')?;
    Some(Sum { bytes: bytes.parse().ok()?, crc: u32::from_str_radix(crc, 16).ok()? })
}

fn checked<T>(
    folder: &Path,
    list: &str,
    file: &'static str,
    parse: impl FnOnce(&Path, u64, &mut dyn Read) -> Result<T>,
) -> Result<T> {
    let path = folder.join(file);
    let unlisted = || CheckpointError::Unlisted { path: folder.join(SUMS), file };
    let Sum { bytes: expected, crc } = listed(list, file).ok_or_else(unlisted)?;
    let opened = File::open(&path).map_err(FileError::at("read", &path))?;
    let found = opened.metadata().map_err(FileError::at("read", &path))?.len();
    if found != expected {
        return Err(CheckpointError::Length { path, expected, found }.into());
    }
    let mut reader = Crc32cReader::new(BufReader::new(opened));
    let parsed = parse(&path, found, &mut reader);
    // The digest says more than what a parser makes of damage, and wants the rest of the file.
    io::copy(&mut reader, &mut io::sink()).map_err(FileError::at("read", &path))?;
    if reader.crc32c() != crc {
        return Err(CheckpointError::Digest { path, expected: crc, found: reader.crc32c() }.into());
    }
    parsed
}

fn parse(path: &Path, length: u64, from: &mut dyn Read) -> Result<Record> {
    let mut text = Vec::with_capacity(length as usize);
    from.read_to_end(&mut text).map_err(FileError::at("read", path))?;
    Record::parse(path, &text)
}
