use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::{self, File},
    io::Write,
    path::Path,
};

use ndarray::{Array1, Array2, ArrayD, Axis, IxDyn};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tch::{Device, Kind, Tensor};

use super::{DataError, Digest, Result};
use crate::Error;

/// Of the file's own form and of what its numbers mean: another one is stale.
const FORMAT: &str = "1";
const SHAPE: &str = "[pairs] or [members, pairs]";

/// What the numbers of a cache are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// log π_ref of both responses, nats.
    ReferenceLogps,
    /// r of both responses, by one reward model or a family.
    RewardScores,
    /// Something else.
    Other(&'static str),
}

impl CacheKind {
    /// As the file has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReferenceLogps => "reference log-probabilities",
            Self::RewardScores => "reward scores",
            Self::Other(name) => name,
        }
    }
}

/// All that the numbers of a cache depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheKey {
    /// What they are.
    pub kind: CacheKind,
    /// Of the pairs: [`PairDataset::digest`](super::PairDataset::digest).
    pub data: Digest,
    /// Of the model: [`Digest::of_files`].
    pub model: Digest,
}

impl CacheKey {
    /// Entries of the file: name, what it is called in a message, value.
    fn entries(&self) -> [(&'static str, &'static str, String); 4] {
        [
            ("prefopt.format", "format", FORMAT.to_owned()),
            ("prefopt.kind", "kind", self.kind.name().to_owned()),
            ("prefopt.data", "data digest", self.data.to_string()),
            ("prefopt.model", "model digest", self.model.to_string()),
        ]
    }
}

/// Numbers of a column, `[pairs]` or `[members, pairs]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// In f32.
    Single(ArrayD<f32>),
    /// In f64.
    Double(ArrayD<f64>),
}

impl From<Array1<f64>> for Values {
    fn from(array: Array1<f64>) -> Self {
        Self::Double(array.into_dyn())
    }
}

impl From<Array2<f64>> for Values {
    fn from(array: Array2<f64>) -> Self {
        Self::Double(array.into_dyn())
    }
}

/// From any device, without its gradient.
impl TryFrom<&Tensor> for Values {
    type Error = Error;
    fn try_from(tensor: &Tensor) -> crate::Result<Self> {
        let host = tensor.detach().to_device(Device::Cpu);
        match host.kind() {
            Kind::Float => Ok(Self::Single((&host).try_into()?)),
            Kind::Double => Ok(Self::Double((&host).try_into()?)),
            found => Err(Error::Kind { tensor: "cached values", expected: "Float or Double", found }),
        }
    }
}

impl Values {
    /// `[pairs]` or `[members, pairs]`.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Single(array) => array.shape(),
            Self::Double(array) => array.shape(),
        }
    }

    fn first_not_finite(&self) -> Option<usize> {
        match self {
            Self::Single(array) => array.iter().position(|x| !x.is_finite()),
            Self::Double(array) => array.iter().position(|x| !x.is_finite()),
        }
    }

    fn bytes(&self) -> (Dtype, Vec<u8>) {
        match self {
            Self::Single(array) => (Dtype::F32, array.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::Double(array) => (Dtype::F64, array.iter().flat_map(|x| x.to_le_bytes()).collect()),
        }
    }

    fn of_bytes(name: &str, view: &TensorView) -> Result<Self> {
        let sized = "a file whose sizes were checked";
        let (shape, bytes) = (IxDyn(view.shape()), view.data());
        match view.dtype() {
            Dtype::F32 => {
                let numbers = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
                Ok(Self::Single(ArrayD::from_shape_vec(shape, numbers).expect(sized)))
            }
            Dtype::F64 => {
                let numbers = bytes.as_chunks::<8>().0.iter().map(|word| f64::from_le_bytes(*word)).collect();
                Ok(Self::Double(ArrayD::from_shape_vec(shape, numbers).expect(sized)))
            }
            other => Err(DataError::Cached { name: name.to_owned(), expected: "F32 or F64", found: other.to_string() }),
        }
    }
}

/// Columns that cost a model's pass over the data: computed once, kept in a safetensors file, refused when data or
/// model are others.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::data::{Cache, CacheKey, CacheKind, Digest, PairDataset};
/// use prefopt::{ndarray::array, tch::{Device, Kind}};
///
/// # let folder = std::env::temp_dir().join(format!("prefopt-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder).expect("a temporary folder");
/// # let (weights, file) = (folder.join("model.safetensors"), folder.join("reference.safetensors"));
/// # std::fs::write(&weights, b"weights").expect("a file");
/// # let mut pairs = PairDataset::default();
/// # for token in 0..3 { pairs.push(&[1], &[token], &[5])?; }
/// let key = CacheKey { kind: CacheKind::ReferenceLogps, data: pairs.digest(), model: Digest::of_files(&[&weights])? };
/// let cache = Cache::open_or(&file, &key, || {
///     Ok(Cache::default().with("chosen", array![-7.0, -9.5, -3.0])?.with("rejected", array![-8.0, -9.0, -4.0])?)
/// })?;
/// let batch = cache.gather("chosen", &[2, 0], (Kind::Float, Device::Cpu))?;
/// assert_eq!(Vec::<f64>::try_from(batch)?, [-3.0, -7.0]);
/// # std::fs::remove_dir_all(&folder).expect("our own folder");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cache {
    columns: BTreeMap<String, Values>,
}

impl Cache {
    /// With one column more.
    ///
    /// # Errors
    /// [`Cached`](DataError::Cached) unless it is `[pairs]` or `[members, pairs]`, with as many pairs as the others,
    /// and finite.
    pub fn with(mut self, name: &str, values: impl Into<Values>) -> Result<Self> {
        let values = values.into();
        let wrong = |expected, found| DataError::Cached { name: name.to_owned(), expected, found };
        let Some(&pairs) = values.shape().last().filter(|_| values.shape().len() <= 2) else {
            return Err(wrong(SHAPE, format!("{:?}", values.shape())));
        };
        if self.pairs().is_some_and(|others| others != pairs) {
            return Err(wrong("of as many pairs as the other columns", format!("{pairs} pairs")));
        }
        if let Some(index) = values.first_not_finite() {
            return Err(wrong("finite", format!("another number at index {index} of {:?}", values.shape())));
        }
        self.columns.insert(name.to_owned(), values);
        Ok(self)
    }

    /// Number of pairs, `None` without a column.
    pub fn pairs(&self) -> Option<usize> {
        self.columns.values().next()?.shape().last().copied()
    }

    /// Names and numbers, by name.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Values)> {
        self.columns.iter().map(|(name, values)| (name.as_str(), values))
    }

    /// One column.
    ///
    /// # Errors
    /// [`NoCached`](DataError::NoCached) names those that there are.
    pub fn column(&self, name: &str) -> Result<&Values> {
        let missing = || DataError::NoCached { name: name.to_owned(), names: self.columns.keys().cloned().collect() };
        self.columns.get(name).ok_or_else(missing)
    }

    /// A batch of a column, `[batch]` or `[members, batch]`, as [`PairLogps`](crate::PairLogps) and
    /// [`RewardScores`](crate::RewardScores) take it.
    ///
    /// # Errors
    /// [`NoCached`](DataError::NoCached), [`NoPair`](DataError::NoPair).
    pub fn gather(&self, name: &str, pairs: &[usize], options: (Kind, Device)) -> crate::Result<Tensor> {
        let values = self.column(name)?;
        let (axis, there) = (Axis(values.shape().len() - 1), self.pairs().unwrap_or_default());
        if let Some(&pair) = pairs.iter().find(|pair| **pair >= there) {
            return Err(DataError::NoPair { pair, pairs: there }.into());
        }
        let batch = match values {
            Values::Single(array) => Tensor::try_from(&array.select(axis, pairs).as_standard_layout())?,
            Values::Double(array) => Tensor::try_from(&array.select(axis, pairs).as_standard_layout())?,
        };
        Ok(batch.to_kind(options.0).to_device(options.1))
    }

    /// Writes the file beside its place and moves it there: there is never half a cache.
    ///
    /// # Errors
    /// [`Io`](DataError::Io) or [`Cache`](DataError::Cache).
    pub fn write(&self, file: impl AsRef<Path>, key: &CacheKey) -> Result<()> {
        let file = file.as_ref();
        let broken = |source| DataError::Cache { file: file.to_owned(), source };
        let mut entries: HashMap<_, _> =
            key.entries().into_iter().map(|(entry, _, value)| (entry.to_owned(), value)).collect();
        entries.insert("prefopt.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let columns: Vec<_> =
            self.columns.iter().map(|(name, values)| (name, values.shape(), values.bytes())).collect();
        let views = columns.iter().map(|(name, shape, (dtype, bytes))| {
            TensorView::new(*dtype, shape.to_vec(), bytes).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(broken)?;
        let bytes = safetensors::serialize(views, Some(entries)).map_err(broken)?;
        let mut aside = OsString::from(".");
        aside.push(file.file_name().unwrap_or_default());
        aside.push(format!(".{}", std::process::id()));
        let aside = file.with_file_name(aside);
        let written = File::create(&aside)
            .and_then(|mut out| out.write_all(&bytes).and_then(|()| out.sync_all()))
            .and_then(|()| fs::rename(&aside, file));
        written.map_err(|source| {
            // What the first error left; a second one would say nothing new.
            let _ = fs::remove_file(&aside);
            DataError::Io { file: file.to_owned(), source }
        })
    }

    /// Reads a file that was written for this key.
    ///
    /// # Errors
    /// [`Stale`](DataError::Stale) says what differs; [`Io`](DataError::Io), [`Cache`](DataError::Cache),
    /// [`Cached`](DataError::Cached).
    pub fn open(file: impl AsRef<Path>, key: &CacheKey) -> Result<Self> {
        let file = file.as_ref();
        let bytes = fs::read(file).map_err(|source| DataError::Io { file: file.to_owned(), source })?;
        let broken = |source| DataError::Cache { file: file.to_owned(), source };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let none = HashMap::new();
        let entries = header.metadata().as_ref().unwrap_or(&none);
        for (entry, what, expected) in key.entries() {
            let found = entries.get(entry).map_or("absent", String::as_str);
            if found != expected {
                return Err(DataError::Stale { file: file.to_owned(), what, expected, found: found.to_owned() });
            }
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(broken)?;
        tensors.iter().try_fold(Self::default(), |cache, (name, view)| cache.with(name, Values::of_bytes(name, &view)?))
    }

    /// Opens the file, or computes what it should hold and writes it where there is none. A stale file is refused, not
    /// replaced.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`write`](Self::write); those of `compute`.
    pub fn open_or(
        file: impl AsRef<Path>,
        key: &CacheKey,
        compute: impl FnOnce() -> crate::Result<Self>,
    ) -> crate::Result<Self> {
        let file = file.as_ref();
        if file.exists() {
            return Ok(Self::open(file, key)?);
        }
        if let Some(folder) = file.parent() {
            // Before what may take hours.
            fs::create_dir_all(folder).map_err(|source| DataError::Io { file: file.to_owned(), source })?;
        }
        let cache = compute()?;
        cache.write(file, key)?;
        Ok(cache)
    }
}
