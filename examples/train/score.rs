//! `score`: what the reference and reward models say of pairs, into the caches that `policy` reads; and how a family is judged.

use std::{fs, num::NonZeroUsize, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array1, Array2, ArrayD, ArrayView1, Axis, Ix2};
use prefopt::{
    RewardScores,
    data::PairDataset,
    diagnostics::{FamilyReport, MemberReport, Reliability},
    lm::CausalLm,
};

use crate::{
    columns::{self, Kept},
    flags::ScoreFlags,
    models, pairs,
    policy::numbered::Numbered,
    sft,
    support::{
        chart::{self, Axis as Scale, Mark, Panel, Series},
        trial,
    },
};

pub fn run(flags: &ScoreFlags) -> Result<ExitCode> {
    let (teachers, model) = (&flags.teachers, flags.model.model.as_path());
    let Some(folder) = &teachers.cache else {
        bail!("--cache FOLDER is missing: what is computed is kept there, and `policy --cache FOLDER` finds it");
    };
    ensure!(
        !columns::are_scaled(teachers),
        "--standardise and --reward-scale are for `policy`: the caches keep scores as the reward models give them"
    );
    let members = models::family(&teachers.rewards)?;
    members.iter().try_for_each(|member| same_tokens(model, member))?;
    let split = pairs::read(&flags.data, flags.data.share(), model, &models::config(model)?)?;
    let place = models::place(&flags.model, None)?;
    let (parts, digest) = (Numbered::new(&split).parts(), sft::digest(&flags.model)?);

    let mut rows = Vec::new();
    {
        let mut reference: Option<CausalLm> = None;
        for &(part, pairs) in &parts {
            let file = columns::file(folder, "reference", part);
            let (is_there, begun) = (file.exists(), Instant::now());
            let key = Kept::Reference.key(place.1, pairs, digest);
            columns::kept(&file, &key, || {
                let model = match reference.take() {
                    Some(model) => model,
                    None => models::load(&flags.model, None, 0, false)?,
                };
                columns::logps(reference.insert(model), pairs, flags.batch_tokens)
            })?;
            let seconds = (!is_there).then(|| begun.elapsed().as_secs_f64());
            rows.push(work(&format!("reference, {part}"), pairs, 1, seconds));
        }
    }
    let mut tables = Vec::new();
    for &(part, pairs) in parts.iter().filter(|_| !members.is_empty()) {
        let file = columns::file(folder, "scores", part);
        let (is_there, begun) = (file.exists(), Instant::now());
        let cache = columns::score_cache(&file, &members, pairs, place, flags.batch_tokens)?;
        let seconds = (!is_there).then(|| begun.elapsed().as_secs_f64());
        rows.push(work(&format!("scores, {part}"), pairs, members.len(), seconds));
        let report = Verdict::of(&columns::rewards(&[&cache])?, pairs)?.report()?;
        tables.push(format!("{part}, {} pairs\n{}", pairs.len(), table(&report)));
    }

    println!("{}", trial::table(&["", "pairs", "tokens", "s", "tokens/s"], &rows));
    tables.iter().for_each(|table| println!("\n{table}"));
    println!("\nthe caches are in {}: `policy --cache {0}` reads them", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// What a cache has cost, if it was not there; the tokens are those of all passes.
fn work(name: &str, pairs: &PairDataset, passes: usize, seconds: Option<f64>) -> Vec<String> {
    let tokens = pairs.tokens() * passes;
    let [time, speed] = match seconds {
        Some(seconds) => [format!("{seconds:.1}"), format!("{:.0}", tokens as f64 / seconds)],
        None => ["was there".to_owned(), String::new()],
    };
    vec![name.to_owned(), pairs.len().to_string(), tokens.to_string(), time, speed]
}

/// Refuses two models that read different tokens: the numbers of one would be of other texts than those of the other.
pub fn same_tokens(model: &Path, other: &Path) -> Result<()> {
    let tokenizer = |folder: &Path| {
        let file = folder.join("tokenizer.json");
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    ensure!(
        tokenizer(model)? == tokenizer(other)?,
        "{} and {} do not read the same tokens: their tokenizer.json differ",
        model.display(),
        other.display()
    );
    Ok(())
}

/// What a family of reward models says of some pairs.
pub struct Verdict {
    /// Δr, `[members, pairs]`, units of reward.
    margins: Array2<f64>,
    /// p, `[pairs]`.
    labels: Array1<f64>,
    /// |y_w| − |y_l|, `[pairs]`, tokens.
    differences: Array1<f64>,
}

impl Verdict {
    /// By their scores, in f64 on the host.
    pub fn of(scores: &RewardScores, pairs: &PairDataset) -> Result<Self> {
        let margins: ArrayD<f64> = (&scores.margins()).try_into()?;
        Ok(Self {
            margins: margins.into_dimensionality::<Ix2>()?,
            labels: pairs.labels().iter().copied().collect(),
            differences: pairs.iter().map(|pair| pair.chosen.len() as f64 - pair.rejected.len() as f64).collect(),
        })
    }

    pub fn report(&self) -> Result<FamilyReport> {
        Ok(FamilyReport::new(self.margins.view(), self.labels.view(), Some(self.differences.view()))?)
    }

    /// `PATH.png` and `PATH.svg`: how often the members, and their mean, are right where they are so sure.
    pub fn draw(&self, path: &Path) -> Result<()> {
        const BINS: NonZeroUsize = NonZeroUsize::new(10).expect("10 is not 0");
        let curve = |margins: ArrayView1<f64>| -> Result<Vec<(f64, f64)>> {
            let reliability = Reliability::new(margins, self.labels.view(), BINS)?;
            Ok(reliability.bins.iter().map(|bin| (bin.predicted, bin.observed)).collect())
        };
        let members = self.margins.rows().into_iter().map(curve).collect::<Result<Vec<_>>>()?.concat();
        let mut series = vec![
            Series::exact("as sure as right", 6, Mark::Dashed, &[(0.5, 0.5), (1.0, 1.0)]),
            Series::exact("each member", 5, Mark::Points, &members),
        ];
        if let Some(mean) = self.margins.mean_axis(Axis(0)).filter(|_| self.margins.nrows() > 1) {
            series.push(Series::exact("mean of members", 2, Mark::Line, &curve(mean.view())?));
        }
        let panel = Panel {
            title: "Calibration of the reward models",
            x: "confidence σ(|Δr|), mean of a bin",
            y: "share of the labels for the preferred response",
            axis: Scale::Linear,
            series,
        };
        chart::draw(path, &[panel])
    }
}

/// A line a member, one of the members' mean, and how far they agree.
pub fn table(report: &FamilyReport) -> String {
    const HEADERS: [&str; 6] = ["", "accuracy", "log loss, nats", "ECE", "mean margin", "prefers longer"];
    let row = |name: String, of: &MemberReport| -> Vec<String> {
        let longer = of.prefers_longer.map_or_else(String::new, |share| format!("{share:.3}"));
        let numbers = [of.accuracy, of.log_loss, of.expected_calibration_error, of.margin];
        let numbers = numbers.into_iter().map(|number| format!("{number:.3}"));
        [name].into_iter().chain(numbers).chain([longer]).collect()
    };
    let members = report.members.iter().enumerate();
    let mut rows: Vec<Vec<String>> = members.map(|(index, of)| row(format!("member {index}"), of)).collect();
    rows.push(row("mean of members".to_owned(), &report.mean));
    let table = trial::table(&HEADERS, &rows);
    format!(
        "{table}\nagreement of two members {:.3}, unanimous on {:.3} of the pairs",
        report.agreement, report.unanimous
    )
}
