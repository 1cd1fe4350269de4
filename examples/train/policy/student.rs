//! DRDO's reward head on the policy's own hidden states.

use std::path::Path;

use anyhow::{Context, Result};
use prefopt::{
    RewardScores,
    lm::CausalLm,
    packed::PackedRow,
    reward::{ScalarHead, response_rewards_of},
};
use tch::{Tensor, nn};

/// A linear score of a response's last token, in f32; it starts at 0.
pub struct Student {
    head: ScalarHead,
    store: nn::VarStore,
}

impl Student {
    pub fn new(model: &CausalLm) -> Self {
        let store = nn::VarStore::new(model.device());
        Self { head: ScalarHead::new(&store.root(), model.config().width()), store }
    }

    /// What is trained of it, always in the same order.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let named = self.store.variables().into_iter();
        let mut parameters: Vec<_> = named.map(|(name, tensor)| (format!("student_head.{name}"), tensor)).collect();
        parameters.sort_by(|(a, _), (b, _)| a.cmp(b));
        parameters
    }

    /// Scores of the first two responses of each prompt, of `each`, `[1, pairs]`: a second pass through the trunk, as
    /// it reads other tokens than those that predict.
    pub fn scores(&self, model: &CausalLm, row: &PackedRow, each: i64) -> prefopt::Result<RewardScores> {
        let scores = response_rewards_of(model, &self.head, row)?.f_view([1, -1, each])?;
        RewardScores::new(scores.select(2, 0), scores.select(2, 1))
    }

    pub fn save(&self, folder: &Path) -> Result<()> {
        let file = folder.join("student_head.safetensors");
        let parameters = self.parameters();
        Tensor::write_safetensors(&parameters, &file).with_context(|| format!("cannot write {}", file.display()))
    }
}
