//! Real votes, one pair a line: `{"responses": [a, b], "votes": [{"annotator", "choice"}]}`, choice 0 for the first response, 1 for the second,
//! between them for neither.
//!
//! Without a model of the responses a policy for each type would have a free log-odds for each pair: with three votes a pair that is not
//! identified, and would fit anything. What can be estimated is what few numbers explain. Here a type's margin is a + b · log(length of the
//! first / length of the second): a preference for the first place, and one for length.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, ArrayView1};
use prefopt::population::{AnnotatorMixture, Fit, KMeans, PairWeights, Votes, held_out_log_likelihood};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::support::trial::table;

const HELD_OUT: f64 = 0.2;
const MOST: usize = 3;
const ROUNDS: usize = 200;
/// Precision of the normal prior on a and b, which keeps a type of few votes finite.
const RIDGE: f64 = 1.0;
/// By how many nats in all more types have to explain the held-out votes better.
const WORTH: f64 = 1.0;
/// Fewer annotators than this are persons, not a population.
const POPULATION: usize = 30;

#[derive(Debug, Deserialize)]
struct Line {
    responses: [String; 2],
    votes: Vec<Ballot>,
}

#[derive(Debug, Deserialize)]
struct Ballot {
    annotator: Id,
    choice: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(u64),
    Name(String),
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A file's votes, and what is known of its pairs.
struct File {
    votes: Votes,
    /// In the order of their numbers.
    annotators: Vec<Id>,
    /// log (1 + length of the first) − log (1 + length of the second), in characters.
    lengths: Vec<f64>,
    ties: usize,
    /// Pairs with an empty response.
    empty: usize,
}

/// What the file says of its annotators.
pub fn describe(path: &Path) -> Result<String> {
    let file = read(path)?;
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let (kept, held_out) = file.votes.hold_out(HELD_OUT, rng)?;
    ensure!(held_out.len() > 0, "{}: too few votes to hold any out", path.display());
    let mut rows = Vec::new();
    let mut best: Option<(f64, usize)> = None;
    for types in 1..=MOST.min(file.annotators.len()) {
        let fit = fit(&kept, types, &file.lengths, rng)?;
        let total = held_out_log_likelihood(&fit.responsibilities, fit.margins.view(), &held_out)?.sum();
        let last = fit.trace.last().copied().unwrap_or(f64::NAN);
        let each = [total / held_out.len() as f64, last / kept.len() as f64];
        rows.push(vec![
            types.to_string(),
            format!("{:.4}", each[0]),
            format!("{:.4}", each[1]),
            fit.trace.len().to_string(),
        ]);
        if best.is_none_or(|(most, _)| total > most + WORTH) {
            best = Some((total, types));
        }
    }
    let types = best.map_or(1, |(_, types)| types);
    let chosen = fit(&file.votes, types, &file.lengths, rng)?;
    let mut text = format!(
        "{}: {} pairs, {} annotators, {} votes; {} ties left out; {} pairs with an empty response.\n\n{}\n\n",
        path.display(),
        file.votes.pairs(),
        file.annotators.len(),
        file.votes.len(),
        file.ties,
        file.empty,
        file.persons(),
    );
    text += &format!(
        "Types with margins a + b log(length ratio), fitted to {} votes and judged by {} held out, nats a vote:\n{}\n\n{}\n",
        kept.len(),
        held_out.len(),
        table(&["types", "held out", "fitted", "rounds"], &rows),
        file.types(&chosen),
    );
    let n = file.annotators.len();
    if n < POPULATION {
        text += &format!(
            "\nWith {n} annotators a type is a person or two: this describes them, and says nothing of a population's types. Whether EM-DPO \
             recovers types is shown by planted ones, without --votes.\n"
        );
    }
    Ok(text)
}

fn read(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut numbers, mut annotators) = (BTreeMap::new(), Vec::new());
    let (mut who, mut on, mut first) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lengths, mut ties, mut empty) = (Vec::new(), 0, 0);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line = parse(line).with_context(|| format!("{}:{}", path.display(), number + 1))?;
        for Ballot { annotator, choice } in line.votes {
            if choice == 0.5 {
                ties += 1;
                continue;
            }
            let next = numbers.len();
            let number = *numbers.entry(annotator.clone()).or_insert(next);
            if number == next {
                annotators.push(annotator);
            }
            who.push(number);
            on.push(lengths.len());
            first.push(choice < 0.5);
        }
        let characters = line.responses.each_ref().map(|response| response.chars().count());
        empty += usize::from(characters.contains(&0));
        let [a, b] = characters.map(|n| (n as f64).ln_1p());
        lengths.push(a - b);
    }
    let votes = Votes::new(&who, &on, &first, (annotators.len(), lengths.len()));
    let votes = votes.with_context(|| format!("{} has no votes that are not ties", path.display()))?;
    Ok(File { votes, annotators, lengths, ties, empty })
}

fn parse(line: &str) -> Result<Line> {
    let line: Line = serde_json::from_str(line)?;
    for ballot in &line.votes {
        let Ballot { annotator, choice } = ballot;
        ensure!((0.0..=1.0).contains(choice), "choice of annotator {annotator} must be between 0 and 1, got {choice}");
    }
    Ok(line)
}

fn fit(votes: &Votes, types: usize, lengths: &[f64], rng: &mut ChaCha8Rng) -> Result<Fit> {
    let start = KMeans::new(types)?.by_votes(votes, rng)?;
    AnnotatorMixture::new(ROUNDS)?.with_tolerance(1e-9)?.fit(votes, start, |weights: &PairWeights| {
        let mut margins = Array2::<f64>::zeros((weights.types(), weights.pairs()));
        for (kind, mut row) in margins.outer_iter_mut().enumerate() {
            let [a, b] = coefficients(weights.first().row(kind), weights.second().row(kind), lengths);
            row.iter_mut().zip(lengths).for_each(|(margin, length)| *margin = a + b * length);
        }
        anyhow::Ok(margins)
    })
}

/// M-step: logistic regression of weighted votes on 1 and the log ratio of lengths, by Newton's method.
fn coefficients(first: ArrayView1<f64>, second: ArrayView1<f64>, lengths: &[f64]) -> [f64; 2] {
    let [mut a, mut b]: [f64; 2] = [0.0; 2];
    for _ in 0..30 {
        let (mut slope_a, mut slope_b) = (-RIDGE * a, -RIDGE * b);
        let (mut aa, mut ab, mut bb) = (RIDGE, 0.0_f64, RIDGE);
        for ((n_first, n_second), x) in first.iter().zip(second).zip(lengths) {
            let (n, p) = (n_first + n_second, 1.0 / (1.0 + (-(a + b * x)).exp()));
            let (residual, curvature) = (n_first - n * p, n * p * (1.0 - p));
            slope_a += residual;
            slope_b += residual * x;
            aa += curvature;
            ab += curvature * x;
            bb += curvature * x * x;
        }
        let determinant = aa * bb - ab * ab;
        a += (bb * slope_a - ab * slope_b) / determinant;
        b += (aa * slope_b - ab * slope_a) / determinant;
    }
    [a, b]
}

impl File {
    /// Each annotator's habits, and how often two agree where both decided.
    fn persons(&self) -> String {
        let by_pair: Vec<BTreeMap<usize, bool>> =
            (0..self.annotators.len()).map(|i| self.votes.of(i).collect()).collect();
        let agreement = |i: usize, j: usize| {
            let both = by_pair[i].iter().filter_map(|(pair, first)| by_pair[j].get(pair).map(|other| other == first));
            share(both)
        };
        let mut headers =
            vec!["annotator".to_owned(), "votes".into(), "first preferred".into(), "longer preferred".into()];
        // A matrix of many annotators is no table.
        let others = self.annotators.len().min(8);
        headers.extend(self.annotators[..others].iter().map(|id| format!("agrees with {id}")));
        let row = |(i, id): (usize, &Id)| {
            let firsts = share(self.votes.of(i).map(|(_, first)| first));
            let unequal = self.votes.of(i).filter(|(pair, _)| self.lengths[*pair] != 0.0);
            let longer = share(unequal.map(|(pair, first)| first == (self.lengths[pair] > 0.0)));
            let mut row = vec![id.to_string(), self.votes.of(i).count().to_string(), firsts, longer];
            row.extend((0..others).map(|j| if i == j { String::new() } else { agreement(i, j) }));
            row
        };
        let rows: Vec<_> = self.annotators.iter().enumerate().take(20).map(row).collect();
        table(&headers.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
    }

    /// a, b and the likeliest annotators of each type.
    fn types(&self, fit: &Fit) -> String {
        let assigned = fit.responsibilities.most_likely();
        let row = |(kind, margins): (usize, ArrayView1<f64>)| {
            // Two pairs of different lengths give the line back.
            let (shortest, longest) = extremes(&self.lengths);
            let run = self.lengths[longest] - self.lengths[shortest];
            let b = if run > 0.0 { (margins[longest] - margins[shortest]) / run } else { 0.0 };
            let a = margins[shortest] - b * self.lengths[shortest];
            let own: Vec<_> =
                (0..assigned.len()).filter(|&i| assigned[i] == kind).map(|i| self.annotators[i].to_string()).collect();
            let who = if own.len() > 12 { format!("{} of them", own.len()) } else { own.join(", ") };
            vec![kind.to_string(), format!("{:.2}", fit.proportions[kind]), format!("{a:+.2}"), format!("{b:+.2}"), who]
        };
        let rows: Vec<_> = fit.margins.outer_iter().enumerate().map(row).collect();
        format!(
            "The number of types that held-out votes favour, fitted to all votes (a and b in nats of log-odds):\n{}",
            table(&["type", "share", "a, first place", "b, length", "annotators"], &rows)
        )
    }
}

fn extremes(values: &[f64]) -> (usize, usize) {
    let order = |&a: &usize, &b: &usize| values[a].total_cmp(&values[b]);
    let indices = || 0..values.len();
    (indices().min_by(order).unwrap_or_default(), indices().max_by(order).unwrap_or_default())
}

/// Share of `true`.
fn share(values: impl Iterator<Item = bool>) -> String {
    let (mut yes, mut all) = (0.0, 0.0);
    for value in values {
        yes += f64::from(value);
        all += 1.0;
    }
    if all > 0.0 { format!("{:.3}", yes / all) } else { "none".into() }
}
