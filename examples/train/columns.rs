//! What frozen models say of the pairs, computed once and kept: the reference's log-probabilities, the scores of
//! reward models.

use std::{
    array, fs,
    num::NonZeroUsize,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use prefopt::{
    PairLogps, RewardScores,
    data::{Cache, CacheKey, CacheKind, Column, DataError, Digest, PairDataset, Values},
    lm::{CausalLm, RewardModel},
    logps::{response_logps_of, response_scores_of},
    packed::PackedRow,
    pairs::TokenLogps,
};
use tch::{Device, Kind, Tensor};

use crate::{
    flags::TeacherFlags,
    loss::{LossSpec, Rewards},
    models,
    support::progress,
};

/// Tokens that are computed together where no flag says how many: those of `score`.
pub const BATCH_TOKENS: NonZeroUsize = NonZeroUsize::new(8192).expect("8192 is not 0");

/// What the progress bar counts.
const UNIT: &str = "batches";

/// Of one part of the data.
pub struct Teachers {
    /// log π_ref, columns `chosen` and `rejected` `[pairs]`, nats.
    pub reference: Option<Cache>,
    /// Scores of reward models, columns `chosen` and `rejected` `[members, pairs]`.
    pub scores: Option<Cache>,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy)]
pub enum Kept {
    Reference,
    /// With the sums over the shared length.
    Shared,
    Scores,
    Samples,
}

impl Kept {
    /// Of pairs by a model whose weights are of this kind: those in bf16 give other numbers.
    pub fn key(self, weights: Kind, pairs: &PairDataset, model: Digest) -> CacheKey {
        let kind = match (self, weights) {
            (Self::Reference, Kind::BFloat16) => CacheKind::Other("reference log-probabilities in bf16"),
            (Self::Reference, _) => CacheKind::ReferenceLogps,
            (Self::Shared, Kind::BFloat16) => {
                CacheKind::Other("reference log-probabilities in bf16, whole and of the shared length")
            }
            (Self::Shared, _) => CacheKind::Other("reference log-probabilities, whole and of the shared length"),
            (Self::Scores, Kind::BFloat16) => CacheKind::Other("reward scores in bf16"),
            (Self::Scores, _) => CacheKind::RewardScores,
            (Self::Samples, Kind::BFloat16) => CacheKind::Other("samples of the reference in bf16"),
            (Self::Samples, _) => CacheKind::Other("samples of the reference"),
        };
        CacheKey { kind, data: pairs.digest(), model }
    }
}

/// The file of a part's columns: `reference-train.safetensors`, say.
pub fn file(folder: &Path, what: &str, part: &str) -> PathBuf {
    folder.join(format!("{what}-{part}.safetensors"))
}

/// log π_ref of both responses under a model as it is loaded, its adapter included. A new adapter changes nothing,
/// and the model without it may stand for the model with it.
pub fn reference_cache(
    file: &Path,
    model: &Path,
    pairs: &PairDataset,
    weights: Kind,
    load: impl FnOnce() -> Result<CausalLm>,
    batch_tokens: NonZeroUsize,
) -> Result<Cache> {
    let key = Kept::Reference.key(weights, pairs, models::weights_digest(model)?);
    kept(file, &key, || logps(&load()?, pairs, batch_tokens))
}

/// Scores of both responses under a family of reward models, of which one is in memory at a time.
pub fn score_cache(
    file: &Path,
    members: &[PathBuf],
    pairs: &PairDataset,
    place: (Device, Kind),
    batch_tokens: NonZeroUsize,
) -> Result<Cache> {
    let folders: Vec<&Path> = members.iter().map(PathBuf::as_path).collect();
    let key = Kept::Scores.key(place.1, pairs, models::digest_of(&folders)?);
    kept(file, &key, || {
        let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
        for folder in folders {
            let model = RewardModel::load(folder, place.0, place.1)?;
            let own = pass(pairs, batch_tokens, place.0, "scores", |row| {
                let scores = model.scores(row)?;
                Ok([scores.chosen().shallow_clone(), scores.rejected().shallow_clone()])
            });
            let [own_chosen, own_rejected] = own.with_context(|| folder.display().to_string())?;
            chosen.push(own_chosen);
            rejected.push(own_rejected);
        }
        cache([("chosen", Tensor::f_cat(&chosen, 0)?), ("rejected", Tensor::f_cat(&rejected, 0)?)])
    })
}

/// The scores of all these parts, one after the other, `[members, pairs]` in f64 on the host.
pub fn rewards(parts: &[&Cache]) -> Result<RewardScores> {
    let options = (Kind::Double, Device::Cpu);
    Ok(RewardScores::new(column(parts, "chosen", options)?, column(parts, "rejected", options)?)?)
}

/// The scores that the data bring, for a loss that reads scores where no reward model is given, `[1, pairs]` in f64 on
/// the host, of all these parts, one after the other.
pub fn given_rewards(loss: &LossSpec, parts: &[(&str, &PairDataset)]) -> Result<RewardScores> {
    let side = |column: Column| -> Result<Tensor> {
        let mut numbers = Vec::new();
        for (part, pairs) in parts {
            match pairs.column(column) {
                Ok(own) => numbers.extend_from_slice(own),
                Err(DataError::MissingColumn { pair, .. }) => bail!(
                    "--loss {loss} reads rewards: give reward models with --rewards, or data of which every pair has `score_chosen` and `score_rejected` (pair {pair} of the {part} pairs has no `{}`)",
                    column.name()
                ),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Tensor::from_slice(&numbers))
    };
    Ok(RewardScores::single(&side(Column::ScoreChosen)?, &side(Column::ScoreRejected)?)?)
}

/// One member, the mean of all, where the loss takes one reward model; refused where it takes others than these.
pub fn as_the_loss_wants(loss: &LossSpec, rewards: RewardScores) -> Result<RewardScores> {
    let (reads, members) = (loss.needs().rewards, rewards.members());
    // Of one member the spread is 0: the loss would be another one without a sign of it.
    ensure!(
        reads != Rewards::Family || members > 1,
        "--loss {loss} reads a family of reward models, and there is one: give --rewards two or more"
    );
    let rewards = if reads == Rewards::One && members > 1 {
        eprintln!("--loss {loss} reads one reward model: the mean of the {members} is taken");
        rewards.averaged()
    } else {
        rewards
    };
    let all = Tensor::f_cat(&[rewards.chosen(), rewards.rejected()], 1)?;
    let (least, greatest) = (all.f_min()?.f_double_value(&[])?, all.f_max()?.f_double_value(&[])?);
    ensure!(
        !loss.reads_win_rates() || least >= 0.0 && greatest <= 1.0,
        "--loss {loss} takes scores for win rates, in [0, 1], and these go from {least} to {greatest}: give --rewards whose scores are win rates, or win_rate=hard or soft_labels"
    );
    Ok(rewards)
}

/// Scores of a whole data set, standardised over all of it and scaled as the flags say.
pub fn scaled(scores: RewardScores, flags: &TeacherFlags) -> Result<RewardScores> {
    let scale = scale(flags)?;
    let scores = if flags.standardise { scores.standardised() } else { scores };
    Ok(RewardScores::new(scores.chosen() * scale, scores.rejected() * scale)?)
}

/// Whether the flags want other scores than the reward models give.
pub fn are_scaled(flags: &TeacherFlags) -> bool {
    flags.standardise || flags.reward_scale != 1.0
}

/// Factor of all scores.
pub fn scale(flags: &TeacherFlags) -> Result<f64> {
    let scale = flags.reward_scale;
    ensure!(scale > 0.0 && scale.is_finite(), "--reward-scale must be positive and finite, got {scale}");
    Ok(scale)
}

/// A column of all these parts, one after the other, `[.., pairs]`.
pub fn column(parts: &[&Cache], name: &str, options: (Kind, Device)) -> Result<Tensor> {
    let whole = |part: &&Cache| {
        let pairs: Vec<usize> = (0..part.pairs().unwrap_or_default()).collect();
        part.gather(name, &pairs, options)
    };
    let whole = parts.iter().map(whole).collect::<prefopt::Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&whole, -1)?)
}

/// What the file holds for this key, or what `compute` gives, which is then kept in it. A file of another key is
/// refused.
pub fn kept(file: &Path, key: &CacheKey, compute: impl FnOnce() -> Result<Cache>) -> Result<Cache> {
    if file.exists() {
        return Cache::open(file, key).map_err(|error| anyhow!("{error}"));
    }
    if let Some(folder) = file.parent() {
        // Before what may take hours.
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let cache = compute()?;
    cache.write(file, key).map_err(|error| anyhow!("{error}"))?;
    Ok(cache)
}

/// log π of both responses of each pair, columns `chosen` and `rejected`, nats.
pub fn logps(model: &CausalLm, pairs: &PairDataset, batch_tokens: NonZeroUsize) -> Result<Cache> {
    let [chosen, rejected] = pass(pairs, batch_tokens, model.device(), "reference", |row| {
        let sums = response_logps_of(model, row)?.sums.view([-1, 2]);
        Ok([sums.select(1, 0), sums.select(1, 1)])
    })?;
    cache([("chosen", chosen), ("rejected", rejected)])
}

/// The same, and of each response's first min(|y_w|, |y_l|) tokens, columns `chosen_shared` and `rejected_shared`:
/// all that LD-DPO reads of a reference, at any α.
pub fn shared_logps(model: &CausalLm, pairs: &PairDataset, batch_tokens: NonZeroUsize) -> Result<Cache> {
    let columns = pass(pairs, batch_tokens, model.device(), "reference", |row| {
        let (whole, tokens) = response_scores_of(model, row)?;
        let [chosen, rejected] = TokenLogps::of_packed_pairs(&tokens.logps, &tokens.logps, &whole.lengths)?;
        let shared = PairLogps::length_desensitised(&chosen, &rejected, 0.0)?;
        let sums = whole.sums.view([-1, 2]);
        let [chosen, rejected] = [shared.chosen(), shared.rejected()].map(Tensor::shallow_clone);
        Ok([sums.select(1, 0), sums.select(1, 1), chosen, rejected])
    })?;
    let [chosen, rejected, chosen_shared, rejected_shared] = columns;
    cache([
        ("chosen", chosen),
        ("rejected", rejected),
        ("chosen_shared", chosen_shared),
        ("rejected_shared", rejected_shared),
    ])
}

fn cache<const N: usize>(columns: [(&str, Tensor); N]) -> Result<Cache> {
    columns.into_iter().try_fold(Cache::default(), |cache, (name, column)| {
        cache.with(name, Values::try_from(&column)?).map_err(|error| anyhow!("{error}"))
    })
}

/// Columns of all pairs, `[.., pairs]` in f64 on the host, from what `of` says of a row of some of them.
fn pass<const N: usize>(
    pairs: &PairDataset,
    batch_tokens: NonZeroUsize,
    device: Device,
    what: &'static str,
    of: impl Fn(&PackedRow) -> prefopt::Result<[Tensor; N]>,
) -> Result<[Tensor; N]> {
    let _no_grad = tch::no_grad_guard();
    let runs = runs(pairs.iter().map(|pair| pair.tokens()), batch_tokens);
    let bar = progress::bar(runs.len() as u64, UNIT)?;
    bar.set_message(what);
    let mut columns: [Vec<Tensor>; N] = array::from_fn(|_| Vec::with_capacity(runs.len()));
    for run in runs {
        let row = pairs.row(&run.collect::<Vec<_>>(), device)?;
        for (column, part) in columns.iter_mut().zip(of(&row)?) {
            column.push(part.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?);
        }
        progress::done(&bar, UNIT);
    }
    bar.finish_and_clear();
    Ok(columns.map(|parts| Tensor::cat(&parts, -1)))
}

/// Runs of pieces of at most so many tokens together; a piece of more is a run of its own.
pub fn runs(tokens: impl IntoIterator<Item = usize>, most: NonZeroUsize) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut end, mut filled) = (Vec::new(), 0, 0, 0);
    for tokens in tokens {
        if end > start && filled + tokens > most.get() {
            runs.push(start..end);
            (start, filled) = (end, 0);
        }
        filled += tokens;
        end += 1;
    }
    if end > start {
        runs.push(start..end);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_all_pieces_within_the_limit() -> Result<()> {
        let most = NonZeroUsize::new(10).context("10 is not 0")?;
        assert_eq!(runs([4, 6, 1, 12, 3, 7, 1], most), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert!(runs([], most).is_empty());
        Ok(())
    }
}
