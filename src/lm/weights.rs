//! Weights in and out: safetensors, in one file or in shards with an index.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{
    error::{Loaded, ModelError},
    source::{Source, Start},
};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// One file, of which the header has been read. Tensors are read one at a time, so that no more than one is in memory twice.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    data: u64,
}

impl Shard {
    fn open(path: PathBuf) -> Loaded<Self> {
        let failed = |cause| ModelError::Read { file: path.clone(), cause };
        let mut file = File::open(&path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        let short = |expected| ModelError::Truncated { file: path.clone(), expected, found };
        if found < 8 {
            return Err(short(8));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER || found - 8 < length {
            return Err(short(length.saturating_add(8)));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(failed)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|cause| ModelError::Json { file: path.clone(), cause })?;
        let data = 8 + length;
        let expected = data.saturating_add(header.data_len() as u64);
        if found != expected {
            return Err(short(expected));
        }
        Ok(Self { path, file, header, data })
    }

    /// The tensor as it lies in the file.
    fn tensor(&mut self, name: &str, size: &[i64]) -> Loaded<Tensor> {
        let file = || self.path.clone();
        let Some(info) = self.header.info(name) else {
            return Err(ModelError::MissingTensor { file: file(), tensor: name.to_owned() });
        };
        let found = shape(info);
        if found != size {
            return Err(ModelError::Shape { file: file(), tensor: name.to_owned(), expected: size.to_vec(), found });
        }
        let Some(kind) = kind(info.dtype) else {
            return Err(ModelError::Dtype { file: file(), tensor: name.to_owned(), found: info.dtype.to_string() });
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let read = self.file.seek(SeekFrom::Start(self.data + start as u64));
        read.and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|cause| ModelError::Read { file: self.path.clone(), cause })?;
        Ok(Tensor::f_from_data_size(&bytes, size, kind)?)
    }
}

fn shape(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|&n| n as i64).collect()
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F64 => Some(Kind::Double),
        Dtype::F32 => Some(Kind::Float),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        _ => None,
    }
}

/// The tensors of a folder or of a file.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// The file that names them all.
    file: PathBuf,
    shards: Vec<Shard>,
    /// Which shard has a tensor.
    places: HashMap<String, usize>,
    taken: HashSet<String>,
    /// What names begin with that is not written in the file.
    prefix: &'static str,
    options: (Kind, Device),
}

impl Checkpoint {
    /// Of `model.safetensors`, or of the shards in `model.safetensors.index.json`.
    pub fn open(folder: &Path, options: (Kind, Device)) -> Loaded<Self> {
        let (whole, index) = (folder.join(WHOLE), folder.join(INDEX));
        if whole.exists() {
            Self::file(whole, options)
        } else if index.exists() {
            Self::index(folder, index, options)
        } else {
            Err(ModelError::NoWeights { folder: folder.to_owned() })
        }
    }

    pub fn file(file: PathBuf, options: (Kind, Device)) -> Loaded<Self> {
        let shard = Shard::open(file.clone())?;
        let places = shard.header.tensors().into_keys().map(|name| (name, 0)).collect();
        Ok(Self { file, shards: vec![shard], places, taken: HashSet::new(), prefix: "", options })
    }

    fn index(folder: &Path, file: PathBuf, options: (Kind, Device)) -> Loaded<Self> {
        let text = fs::read_to_string(&file).map_err(|cause| ModelError::Read { file: file.clone(), cause })?;
        let index: Index =
            serde_json::from_str(&text).map_err(|cause| ModelError::Json { file: file.clone(), cause })?;
        let (mut shards, mut opened, mut places) = (Vec::new(), HashMap::new(), HashMap::new());
        for (tensor, name) in index.weight_map {
            let shard = match opened.get(&name) {
                Some(&shard) => shard,
                None => {
                    if Path::new(&name).file_name().is_none_or(|own| own != name.as_str()) {
                        return Err(ModelError::Shard { file, shard: name });
                    }
                    shards.push(Shard::open(folder.join(&name))?);
                    opened.insert(name, shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[shard].header.info(&tensor).is_none() {
                return Err(ModelError::MissingTensor { file: shards[shard].path.clone(), tensor });
            }
            places.insert(tensor, shard);
        }
        Ok(Self { file, shards, places, taken: HashSet::new(), prefix: "", options })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The size of a tensor.
    pub fn size(&self, name: &str) -> Loaded<Vec<i64>> {
        let info = self.places.get(name).and_then(|&shard| self.shards[shard].header.info(name));
        let missing = || ModelError::MissingTensor { file: self.file.clone(), tensor: name.to_owned() };
        info.map(shape).ok_or_else(missing)
    }

    /// Tensors that are still to be taken become of this kind.
    pub fn in_kind(self, kind: Kind) -> Self {
        Self { options: (kind, self.options.1), ..self }
    }

    /// For a file in which names lack this beginning.
    pub fn without(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    /// Nothing may be left but what `ignored` says.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Loaded<()> {
        let mut rest: Vec<&String> = self.places.keys().filter(|name| !self.taken.contains(*name)).collect();
        rest.sort_unstable();
        match rest.into_iter().find(|name| !ignored(name)) {
            Some(name) => Err(ModelError::UnexpectedTensor { file: self.file.clone(), tensor: name.clone() }),
            None => Ok(()),
        }
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Source for Checkpoint {
    fn take(&mut self, name: &str, size: &[i64], _start: Start) -> Loaded<Tensor> {
        let stored = name.strip_prefix(self.prefix).unwrap_or(name);
        let Some(&shard) = self.places.get(stored) else {
            return Err(ModelError::MissingTensor { file: self.file.clone(), tensor: stored.to_owned() });
        };
        let tensor = self.shards[shard].tensor(stored, size)?;
        self.taken.insert(stored.to_owned());
        Ok(tensor.f_to_kind(self.options.0)?.f_to_device(self.options.1)?)
    }
}

/// Writes `model.safetensors`. `changed` makes what is written in a tensor's place, of its size and kind, when its turn comes, so that no more than
/// one is held.
pub(super) fn save<'a>(
    folder: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
    changed: impl Fn(&str) -> Loaded<Option<Tensor>>,
) -> Loaded<()> {
    write(&folder.join(WHOLE), tensors, changed)
}

/// Writes a file of this format.
pub(super) fn save_file<'a>(file: &Path, tensors: impl IntoIterator<Item = (String, &'a Tensor)>) -> Loaded<()> {
    write(file, tensors, |_| Ok(None))
}

/// Writes a file beside the old one and puts it in its place when it is complete.
fn write<'a>(
    file: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
    changed: impl Fn(&str) -> Loaded<Option<Tensor>>,
) -> Loaded<()> {
    let mut tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, tensor, dtype(tensor))).collect();
    // The format's order, by which every tensor is aligned.
    tensors.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, tensor, dtype)| {
        let start = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        (name.clone(), TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) })
    });
    // transformers refuses a file that does not say so.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos.collect()).expect("offsets that follow each other");
    let mut header = serde_json::to_vec(&header).map_err(|cause| ModelError::Json { file: file.to_owned(), cause })?;
    header.resize(header.len().next_multiple_of(8), b' ');
    aside(file, |out| {
        let failed = |cause| ModelError::Write { file: file.to_owned(), cause };
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        out.write_all(&header).map_err(failed)?;
        for (name, tensor, _) in &tensors {
            let changed = changed(name)?;
            let tensor = changed.as_ref().unwrap_or(tensor).f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
            let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
            out.write_all(&bytes).map_err(failed)?;
        }
        Ok(())
    })
}

/// Of the kinds in which a model or an adapter is held.
fn dtype(tensor: &Tensor) -> Dtype {
    match tensor.kind() {
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// Writes a JSON object in the same way.
pub(super) fn save_json(file: &Path, object: &Map<String, Value>) -> Loaded<()> {
    let text =
        serde_json::to_string_pretty(object).map_err(|cause| ModelError::Json { file: file.to_owned(), cause })?;
    aside(file, |out| {
        out.write_all((text + "\n").as_bytes()).map_err(|cause| ModelError::Write { file: file.to_owned(), cause })
    })
}

fn aside(file: &Path, write: impl FnOnce(&mut File) -> Loaded<()>) -> Loaded<()> {
    let failed = |cause| ModelError::Write { file: file.to_owned(), cause };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut out = File::create(&partial).map_err(failed)?;
    let written = write(&mut out)
        .and_then(|()| out.sync_all().map_err(failed))
        .and_then(|()| fs::rename(&partial, file).map_err(failed));
    if written.is_err() {
        // What was there before stays; half of a file helps nobody.
        let _ = fs::remove_file(&partial);
    }
    written
}
