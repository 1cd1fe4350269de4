use std::{collections::BTreeMap, path::Path, result};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use super::{Checkpoint, CheckpointError};
use crate::{Result, diagnostics::Metrics, train::Position};

/// Of the files, and of the folder's layout.
const FORMAT: u32 = 1;

/// What a checkpoint holds beside tensors.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub steps: u64,
    pub position: Position,
    metrics: Vec<(String, Number)>,
    pub values: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

impl Record {
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let metrics = checkpoint.metrics.iter().map(|(name, value)| (name.to_owned(), Number(value))).collect();
        let (position, values) = (checkpoint.position, checkpoint.values.clone());
        Self { format: FORMAT, steps: checkpoint.steps, position, metrics, values }
    }

    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let malformed = |source| CheckpointError::Record { path: path.to_owned(), source };
        let Version { format: found } = serde_json::from_slice(text).map_err(malformed)?;
        if found != FORMAT {
            return Err(CheckpointError::Format { path: path.to_owned(), found, known: FORMAT }.into());
        }
        Ok(serde_json::from_slice(text).map_err(malformed)?)
    }

    pub fn metrics(&self) -> Metrics {
        let one = |(name, Number(value)): &(String, Number)| Metrics::default().with("", *value).prefixed(name);
        self.metrics.iter().map(one).fold(Metrics::default(), Metrics::and)
    }

    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(own, _)| own == name).map(|(_, Number(value))| *value)
    }
}

/// A number that JSON gives back bit for bit; those that it does not know, as text.
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> result::Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Finite(f64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Finite(value) => Ok(Self(value)),
            Form::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}
