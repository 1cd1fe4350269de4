//! Shape, device and kind checks: made once, when a batch is built.

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A tensor under the name by which a refusal calls it.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a> {
    pub name: &'static str,
    pub shape: &'static str,
    pub tensor: &'a Tensor,
}

impl<'a> Named<'a> {
    pub fn vector(name: &'static str, tensor: &'a Tensor) -> Self {
        Self { name, shape: "[batch]", tensor }
    }

    pub fn matrix(name: &'static str, shape: &'static str, tensor: &'a Tensor) -> Self {
        Self { name, shape, tensor }
    }

    /// Rank and element count.
    pub fn rank(self, rank: usize) -> Result<Self> {
        let found = self.tensor.size();
        if found.len() != rank {
            return Err(Error::Rank { tensor: self.name, expected: self.shape, found });
        }
        if self.tensor.numel() == 0 {
            return Err(Error::Empty { tensor: self.name, shape: self.shape });
        }
        Ok(self)
    }

    pub fn float(self) -> Result<Self> {
        let found = self.tensor.kind();
        if matches!(found, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) {
            Ok(self)
        } else {
            Err(Error::Kind { tensor: self.name, expected: "of a floating-point kind", found })
        }
    }

    /// f32 or f64: what losses are computed in.
    pub fn wide(self) -> Result<Self> {
        let found = self.tensor.kind();
        if matches!(found, Kind::Float | Kind::Double) {
            Ok(self)
        } else {
            Err(Error::Kind {
                tensor: self.name,
                expected: "Float or Double (losses lose their digits in half precision)",
                found,
            })
        }
    }

    pub fn length(self, axis: usize, dimension: &'static str, expected: i64) -> Result<Self> {
        let found = self.tensor.size()[axis];
        if found == expected {
            Ok(self)
        } else {
            Err(Error::Length { tensor: self.name, shape: self.shape, dimension, expected, found })
        }
    }

    pub fn device(self, expected: Device) -> Result<Self> {
        let found = self.tensor.device();
        if found == expected { Ok(self) } else { Err(Error::Device { tensor: self.name, expected, found }) }
    }

    /// The kind of another tensor that it is multiplied with.
    pub fn kind_of(self, other: &Tensor) -> Result<Self> {
        let found = self.tensor.kind();
        if found == other.kind() {
            Ok(self)
        } else {
            Err(Error::KindOf { tensor: self.name, expected: other.kind(), found })
        }
    }

    /// Same size along the last axis, same device and same kind as the first tensor of its batch.
    pub fn like(self, first: &Tensor) -> Result<Self> {
        let axis = self.tensor.dim() - 1;
        let expected = first.size().last().copied().unwrap_or_default();
        self.length(axis, "batch", expected)?.device(first.device())?;
        let found = self.tensor.kind();
        if found == first.kind() {
            Ok(self)
        } else {
            let expected = if first.kind() == Kind::Double {
                "Double like the rest of its batch"
            } else {
                "Float like the rest of its batch"
            };
            Err(Error::Kind { tensor: self.name, expected, found })
        }
    }

    /// Every element in its domain. Waits for the device once.
    pub fn elements(self, domain: &'static str, holds: &Tensor) -> Result<Self> {
        let holds = holds.flatten(0, -1);
        if bool::try_from(holds.all())? {
            return Ok(self);
        }
        let index = holds.to_kind(Kind::Int).argmin(0, false).int64_value(&[]);
        let value = self.tensor.flatten(0, -1).double_value(&[index]);
        Err(Error::Element { tensor: self.name, index, domain, value })
    }
}
