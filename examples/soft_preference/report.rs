//! The table, the sentences that its figures allow, and the picture.

use std::fmt::Write;

use anyhow::{Context, Result};
use prefopt::loss::ReverseKl;
use serde::Serialize;

use crate::{
    convergence::{ALPHAS, EVERY, LINES, Labels, Line, Objective},
    policy::{Anchor, Method, Outcome, Setting},
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial,
    },
    tuning::{Choice, FAMILIES, Family, KEPT, Tuned, front},
};

/// Total variation that counts as having arrived, with exact and with drawn labels: the latter move a policy to the last step.
const ARRIVED: f64 = 0.01;
const ARRIVED_DRAWN: f64 = 0.05;

/// A line of part 1 for one α.
#[derive(Debug, Serialize)]
pub struct Curve {
    pub line: Line,
    pub alpha: f64,
    /// Total variation to softmax(r/α), `[seeds][points]`.
    pub distances: Vec<Vec<f64>>,
}

impl Curve {
    fn at(&self, point: usize) -> Vec<f64> {
        self.distances.iter().map(|curve| curve[point]).collect()
    }

    fn last(&self) -> usize {
        self.distances[0].len() - 1
    }

    fn tolerance(&self) -> f64 {
        if self.line.labels == Labels::Exact { ARRIVED } else { ARRIVED_DRAWN }
    }
}

/// A row of part 2's table: which point of which grid, and by which estimate of the divergence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Entry {
    pub family: Family,
    pub choice: Choice,
    pub divergence: ReverseKl,
}

impl Entry {
    fn new(method: Method, anchor: Anchor, choice: Choice, divergence: ReverseKl) -> Self {
        Self { family: Family { method, anchor }, choice, divergence }
    }

    fn name(&self) -> String {
        let name = self.family.name();
        match (self.choice, self.divergence) {
            (Choice::MostGain, _) => format!("{name}, most gain"),
            (Choice::LeastDrift, ReverseKl::PolicySamples) => format!("{name}, samples"),
            (Choice::LeastDrift, ReverseKl::Exact) => format!("{name}, least drift"),
        }
    }

    pub fn row(self, tuned: &[Tuned]) -> Result<Row> {
        let chosen = self.choice.of(tuned, self.family)?;
        let setting = Setting { divergence: self.divergence, ..chosen };
        Ok(Row { entry: self, setting, outcomes: Vec::new() })
    }
}

/// The sampled divergence takes the point that is chosen with the exact one.
pub fn entries() -> Vec<Entry> {
    use Choice::{LeastDrift, MostGain};
    use Method::{Dpo, Spo};
    let mut entries = Vec::new();
    for choice in [MostGain, LeastDrift] {
        entries.extend([Dpo, Spo].map(|method| Entry::new(method, Anchor::None, choice, ReverseKl::Exact)));
    }
    for anchor in [Anchor::Pairs, Anchor::Unlabelled] {
        for divergence in [ReverseKl::Exact, ReverseKl::PolicySamples] {
            entries.extend([Dpo, Spo].map(|method| Entry::new(method, anchor, LeastDrift, divergence)));
        }
    }
    entries
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub entry: Entry,
    pub setting: Setting,
    /// One a test seed.
    pub outcomes: Vec<Outcome>,
}

impl Row {
    fn values(&self, of: fn(&Outcome) -> f64) -> Vec<f64> {
        self.outcomes.iter().map(of).collect()
    }

    fn estimate(&self, of: fn(&Outcome) -> f64) -> Estimate {
        Estimate::of(&self.values(of))
    }
}

fn gain(outcome: &Outcome) -> f64 {
    outcome.familiar.gain
}

/// KL on shifted prompts.
fn drift(outcome: &Outcome) -> f64 {
    outcome.shifted.kl
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub curves: Vec<Curve>,
    pub tuned: Vec<Tuned>,
    pub rows: Vec<Row>,
    pub refresh: usize,
}

impl Report {
    pub fn table(&self) -> Result<String> {
        let mut text = String::new();
        let seeds = self.curves.first().map_or(0, |curve| curve.distances.len());
        writeln!(
            text,
            "Part 1. Total variation between the policy and softmax(r/α); {seeds} seed(s), ± one standard error.\n"
        )?;
        writeln!(text, "{}\n", self.convergence())?;
        writeln!(text, "{}\n", self.arrival())?;
        writeln!(
            text,
            "Part 2. Gain: expected gold reward above the reference's, in the training region (prompts without labels) and on\n\
             shifted prompts; KL(π ‖ π_ref) in nats there. KL: λ·KL at the prompts of the pairs; wide KL: at unlabelled prompts of\n\
             both regions; samples: from on-policy samples drawn every {} steps, at the point chosen with the exact sum. Chosen on\n\
             other seeds: the most gain, or the least drift (KL on shifted prompts) that keeps {:.0} % of the best gain.\n",
            self.refresh,
            100.0 * KEPT
        )?;
        writeln!(text, "{}\n", self.drifts())?;
        write!(text, "{}", self.sentences()?)?;
        Ok(text)
    }

    fn convergence(&self) -> String {
        let rows = self.curves.iter().map(|curve| {
            let at = |point| plain(&Estimate::of(&curve.at(point)));
            let half = curve.last() / 2;
            vec![curve.line.name.to_owned(), curve.alpha.to_string(), at(0), at(half), at(curve.last())]
        });
        trial::table(&["", "α, β", "at the start", "half-way", "at the end"], &rows.collect::<Vec<_>>())
    }

    /// Whether every line of SPO is nearer to softmax(r/α) in the end than its tolerance, by two standard errors.
    fn arrival(&self) -> String {
        let of = |wanted: fn(&Line) -> bool| self.curves.iter().filter(move |curve| wanted(&curve.line));
        let end = |curve: &Curve| Estimate::of(&curve.at(curve.last()));
        let excess = |curve: &Curve| {
            let tolerance = curve.tolerance();
            Estimate::of(&curve.at(curve.last()).iter().map(|d| d - tolerance).collect::<Vec<_>>())
        };
        let verdicts: Vec<_> =
            of(|line| line.objective != Objective::Dpo).map(|curve| verdict(&excess(curve))).collect();
        let worst = |labels: Labels| {
            let spo = self.curves.iter().filter(|c| c.line.objective != Objective::Dpo && c.line.labels == labels);
            spo.map(|curve| end(curve).mean).fold(0.0, f64::max)
        };
        let dpo =
            of(|line| line.objective == Objective::Dpo).map(|curve| end(curve).mean).fold(f64::INFINITY, f64::min);
        format!(
            "SPO ends at softmax(r/α): the claim {}. In the end it is at most {:.4} away with exact labels (less than {ARRIVED}\n\
             counts as arrived) and {:.4} with drawn ones ({ARRIVED_DRAWN}), with either weight. DPO keeps its reference: its own\n\
             minimiser is π_ref e^(r/β), at least {dpo:.2} away.",
            weakest(&verdicts),
            worst(Labels::Exact),
            worst(Labels::Drawn),
        )
    }

    fn drifts(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let estimate = |of: fn(&Outcome) -> f64| row.estimate(of).to_string();
            let Setting { strength, lambda, .. } = row.setting;
            vec![
                row.entry.name(),
                strength.to_string(),
                if lambda == 0.0 { String::new() } else { lambda.to_string() },
                estimate(gain),
                plain(&row.estimate(|o| o.familiar.kl)),
                estimate(|o| o.shifted.gain),
                plain(&row.estimate(drift)),
            ]
        });
        let headers = ["", "α, β", "λ", "gain", "KL", "gain, shifted", "KL, shifted"];
        trial::table(&headers, &rows.collect::<Vec<_>>())
    }

    fn row(&self, entry: Entry) -> Result<&Row> {
        self.rows.iter().find(|row| row.entry == entry).context("a row that is compared but was not run")
    }

    fn sentences(&self) -> Result<String> {
        use Anchor::{Pairs, Unlabelled};
        use Choice::{LeastDrift, MostGain};
        use Method::{Dpo, Spo};
        let find = |method, anchor, choice, divergence| self.row(Entry::new(method, anchor, choice, divergence));
        let exact = |method, anchor, choice| find(method, anchor, choice, ReverseKl::Exact);
        let [dpo, spo] = [exact(Dpo, Anchor::None, MostGain)?, exact(Spo, Anchor::None, MostGain)?];
        let [dpo_wide, spo_wide] = [exact(Dpo, Unlabelled, LeastDrift)?, exact(Spo, Unlabelled, LeastDrift)?];
        let [spo_narrow, spo_alone] = [exact(Spo, Pairs, LeastDrift)?, exact(Spo, Anchor::None, LeastDrift)?];
        let spo_sampled = find(Spo, Unlabelled, LeastDrift, ReverseKl::PolicySamples)?;

        let compared = [
            ("SPO, λ = 0, less DPO (both at most gain)", spo, dpo),
            ("SPO + wide KL less DPO (at most gain)", spo_wide, dpo),
            ("SPO + wide KL less SPO, λ = 0 (at most gain)", spo_wide, spo),
            ("SPO + wide KL less DPO + the same", spo_wide, dpo_wide),
            ("SPO + KL at the pairs' prompts less SPO with a larger α", spo_narrow, spo_alone),
            ("SPO + wide KL, samples less the exact sum", spo_sampled, spo_wide),
        ];
        let differ = |a: &Row, b: &Row, of: fn(&Outcome) -> f64| Estimate::paired(&a.values(of), &b.values(of));
        let rows = compared.map(|(name, a, b)| {
            let drift = differ(a, b, drift);
            vec![name.to_owned(), drift.to_string(), drift.errors(), differ(a, b, gain).to_string()]
        });
        let table = trial::table(&["Paired by seed", "KL, shifted", "", "gain"], &rows);

        let (held, cost) = (differ(spo_wide, dpo, drift), differ(spo_wide, dpo, gain));
        let same = differ(spo_wide, dpo_wide, drift);
        let cause = match verdict(&same) {
            HOLDS => format!(
                "it is nearer than DPO with the divergence too, {same}, each at its own λ: that says nothing of the contrast\nunless the grids' curves differ"
            ),
            FAILS => format!(
                "not so because of SPO's contrast: DPO with the same divergence stays nearer, SPO's less DPO's {same}"
            ),
            _ => format!("it is the divergence that does it: DPO with the same one is as near, {same}"),
        };
        Ok(format!(
            "{table}\n\n\
             SPO with the divergence at unlabelled prompts stays nearer to the reference on shifted prompts than DPO: the claim\n\
             {}: {held} nats, at {cost} of gain in the training region; {cause}.\n\
             Without the divergence SPO drifts as DPO does: the claim {}: {}.\n",
            verdict(&held),
            alike(&differ(spo, dpo, drift)),
            differ(spo, dpo, drift),
        ))
    }

    pub fn panels(&self) -> Vec<Panel> {
        // In the order of FAMILIES: DPO's warm, SPO's cold.
        const COLOURS: [usize; 6] = [0, 2, 1, 5, 4, 3];
        let lines = LINES.iter().enumerate().filter_map(|(i, line)| {
            let curve = self.curves.iter().find(|curve| curve.line == *line && curve.alpha == ALPHAS[0])?;
            let point = |p: usize| ((p * EVERY) as f64, Estimate::of(&curve.at(p)));
            let mark = if line.labels == Labels::Exact { Mark::Line } else { Mark::Dashed };
            Some(Series::new(line.name, [2, 3, 5, 4, 0][i], mark, (0..=curve.last()).map(point).collect()))
        });
        let points = FAMILIES.iter().zip(COLOURS).map(|(family, colour)| {
            let own = self.rows.iter().filter(|row| row.entry.family == *family);
            let points = own.map(|row| (row.estimate(gain).mean, row.estimate(drift))).collect();
            Series::new(family.name(), colour, Mark::Points, points)
        });
        let fronts = FAMILIES.iter().zip(COLOURS);
        let fronts = fronts.map(|(f, colour)| Series::exact(f.name(), colour, Mark::Line, &front(&self.tuned, *f)));
        vec![
            Panel {
                title: "Total variation to softmax(r/α), α = 0.5",
                x: "step",
                y: "total variation",
                axis: Axis::Linear,
                series: lines.collect(),
            },
            Panel {
                title: "Test seeds: drift against gain, chosen points",
                x: "gain in gold reward, training region",
                y: "KL(π ‖ π_ref) on shifted prompts, nats",
                axis: Axis::Linear,
                series: points.collect(),
            },
            Panel {
                title: "Tuning seeds: best points of each grid",
                x: "gain in gold reward, training region",
                y: "KL(π ‖ π_ref) on shifted prompts, nats",
                axis: Axis::Linear,
                series: fronts.collect(),
            },
        ]
    }
}

const HOLDS: &str = "holds";
const OPEN: &str = "is not established";
const FAILS: &str = "fails";

/// Of the claim that something is negative, by two standard errors.
fn verdict(difference: &Estimate) -> &'static str {
    match difference.mean.abs() > 2.0 * difference.error {
        true if difference.mean < 0.0 => HOLDS,
        true => FAILS,
        false => OPEN,
    }
}

/// Of the claim that two things are alike: it can only fail, or stand for want of a difference.
fn alike(difference: &Estimate) -> &'static str {
    match verdict(difference) {
        _ if difference.error.is_nan() => OPEN,
        OPEN => "stands, within two standard errors",
        _ => FAILS,
    }
}

/// A claim of several parts is as good as its weakest.
fn weakest(verdicts: &[&'static str]) -> &'static str {
    [FAILS, OPEN].into_iter().find(|bad| verdicts.contains(bad)).unwrap_or(HOLDS)
}

/// Without the sign that a difference has.
fn plain(estimate: &Estimate) -> String {
    let Estimate { mean, error } = estimate;
    if error.is_finite() { format!("{mean:.3}±{error:.3}") } else { format!("{mean:.3}") }
}
