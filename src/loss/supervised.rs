use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result, domain::TokenCount};

const NAME: &str = "Sft";

/// Which response a likelihood is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demonstration {
    /// y_w.
    #[default]
    Chosen,
    /// A third response to the prompt, the column `gold`.
    Gold,
}

/// Over what a likelihood is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// All tokens of the batch: long responses count more. It couples the pairs, by their number of tokens.
    #[default]
    Batch,
    /// Each response's own tokens: all responses count alike.
    Response,
    /// Nothing: the sum over a response's tokens.
    None,
}

/// The negative log-likelihood of a response, `[batch]`, nats a token: supervised fine-tuning, alone or as a term.
///
/// −log π(y)/n, n the mean length of the batch's responses under its pair weights, so that the mean over pairs is −Σ log π / Σ |y|, the mean over
/// tokens; or another [`Average`]. Reads the column `lengths`; log-probabilities that are means already are refused.
///
/// The reference is not read; with `Average::None` it is, up to a constant, half of [`ForwardKl::OwnResponses`](super::ForwardKl::OwnResponses).
///
/// Source: as in RPO, MPO, CPO and ORPO. TRL: `loss_type="sft"`; `cpo_alpha` and `tpo_alpha` are the weights of such a term.
#[doc(alias = "sft")]
#[doc(alias = "nll")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sft {
    of: Demonstration,
    average: Average,
}

impl Sft {
    /// Of the chosen response, over all tokens of the batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of the gold response, over all tokens of the batch: TPO's term.
    #[must_use]
    pub fn of_gold() -> Self {
        Self { of: Demonstration::Gold, ..Self::default() }
    }

    /// The same over other tokens.
    #[must_use]
    pub fn with_average(self, average: Average) -> Self {
        Self { average, ..self }
    }

    /// log π(y), `[batch]`.
    fn logps(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(match self.of {
            Demonstration::Chosen => batch.logps().chosen().shallow_clone(),
            Demonstration::Gold => batch.require_gold(NAME)?.sums.shallow_clone(),
        })
    }

    /// |y|, `[batch]`, in the kind of the log-probabilities.
    fn tokens(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let lengths = match self.of {
            Demonstration::Chosen => {
                batch.logps().require_sums(NAME)?;
                batch.require_lengths(NAME)?.chosen()
            }
            Demonstration::Gold => &batch.require_gold(NAME)?.lengths,
        };
        Ok(lengths.to_kind(batch.logps().chosen().kind()))
    }
}

impl PreferenceLoss for Sft {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        let logps = self.logps(batch)?;
        Ok(match self.average {
            Average::Batch => -logps / batch.weighted_mean(&self.tokens(batch)?),
            Average::Response => -logps / self.tokens(batch)?,
            Average::None => -logps,
        })
    }

    fn is_coupled(&self) -> bool {
        self.average == Average::Batch
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        Ok(match self.average {
            Average::Batch => {
                let tokens = whole.weighted_mean(&self.tokens(whole)?).f_double_value(&[])?;
                Box::new(PerTokens { sft: *self, tokens: TokenCount::new(tokens)? })
            }
            Average::Response | Average::None => Box::new(self),
        })
    }
}

/// −log π(y)/n for an n that is known.
#[derive(Debug)]
struct PerTokens {
    sft: Sft,
    tokens: TokenCount,
}

impl PreferenceLoss for PerTokens {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(-self.sft.logps(batch)? / self.tokens.get())
    }
}
