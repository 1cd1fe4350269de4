//! The frozen reference: a folder's model, or the policy's at its start.

use std::{fs, path::Path};

use anyhow::Result;
use prefopt::{data::Digest, lm::CausalLm, logps::response_logps_of, packed::PackedRow};
use tch::{Device, Kind, Tensor};

use crate::{flags::PolicyFlags, models, sft};

/// The reference's model: read when it is first asked for, so that a run whose columns are kept never does.
pub struct Frozen<'a> {
    flags: &'a PolicyFlags,
    place: (Device, Kind),
    model: Option<CausalLm>,
}

impl<'a> Frozen<'a> {
    pub fn new(flags: &'a PolicyFlags, place: (Device, Kind)) -> Self {
        Self { flags, place, model: None }
    }

    pub fn digest(&self) -> Result<Digest> {
        match &self.flags.reference {
            Some(folder) => models::weights_digest(folder),
            None => sft::digest(&self.flags.model),
        }
    }

    /// The model, read at the first call and held from then on.
    pub fn model(&mut self) -> Result<&CausalLm> {
        let model = match self.model.take() {
            Some(model) => model,
            None => read(self.flags, self.place)?,
        };
        Ok(self.model.insert(model))
    }

    /// Lets the model go, or holds it on where `wanted` says what for.
    pub fn live(mut self, wanted: Option<&str>) -> Result<Option<Live>> {
        if is_policy_without_adapter(self.flags) {
            return Ok(Some(Live::AdapterOff));
        }
        let Some(why) = wanted else { return Ok(None) };
        eprintln!("a second model is held, the reference, for {why}; with --lora it is the policy without its adapter");
        self.model()?;
        Ok(self.model.map(|model| Live::Held(Box::new(model))))
    }
}

/// The reference's model, for whoever drops it again.
pub fn read(flags: &PolicyFlags, place: (Device, Kind)) -> Result<CausalLm> {
    match &flags.reference {
        Some(folder) => Ok(CausalLm::load(folder, place.0, place.1)?),
        None => models::load(&flags.model, None, 0, false),
    }
}

/// Whether the policy without its adapter is the reference: the adapter was made here, or the reference is what it was
/// made for.
fn is_policy_without_adapter(flags: &PolicyFlags) -> bool {
    let same = |a: &Path, b: &Path| match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    let is_new = flags.lora.lora.is_some();
    match &flags.reference {
        None => is_new,
        Some(folder) => (is_new || flags.model.adapter.is_some()) && same(folder, &flags.model.model),
    }
}

/// A reference that can be asked while the policy is trained.
pub enum Live {
    /// The policy without its adapter.
    AdapterOff,
    Held(Box<CausalLm>),
}

impl Live {
    /// log π_ref of the responses of a row, `[responses]`, nats, without a gradient.
    pub fn logps(&self, policy: &CausalLm, row: &PackedRow) -> prefopt::Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let logps = match self {
            Self::AdapterOff => response_logps_of(&policy.reference()?, row)?,
            Self::Held(model) => response_logps_of(&**model, row)?,
        };
        Ok(logps.sums)
    }
}
