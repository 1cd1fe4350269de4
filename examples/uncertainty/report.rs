//! The table, its sentences and the picture.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    family::Check,
    methods::{Method, Setting},
    policy::Outcome,
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial::table,
    },
    world::Noise,
};

#[derive(Debug, Serialize)]
pub struct Results {
    pub seeds: Vec<u64>,
    pub setups: Vec<Setup>,
}

/// What one distribution of the noise gave.
#[derive(Debug, Serialize)]
pub struct Setup {
    pub noise: Noise,
    /// By seed.
    pub checks: Vec<Check>,
    pub rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub method: Method,
    pub name: &'static str,
    /// The best of the method's settings on the tuning worlds.
    pub setting: Setting,
    /// By seed.
    pub outcomes: Vec<Outcome>,
}

type Figure = fn(&Outcome) -> f64;

const OVERALL: Figure = |outcome| outcome.overall;
const PROMPTS: Figure = |outcome| outcome.prompts;
const PAIRS: Figure = |outcome| outcome.pairs;

impl Setup {
    fn check(&self, of: impl Fn(&Check) -> f64) -> Estimate {
        Estimate::of(&self.checks.iter().map(of).collect::<Vec<_>>())
    }

    fn values(&self, method: Method, figure: Figure) -> Vec<f64> {
        let rows = self.rows.iter().filter(|row| row.method == method);
        rows.flat_map(|row| &row.outcomes).map(figure).collect()
    }

    /// One method less another, paired by seed.
    fn less(&self, method: Method, other: Method, figure: Figure) -> Estimate {
        Estimate::paired(&self.values(method, figure), &self.values(other, figure))
    }

    fn outcomes(&self) -> String {
        let row = |row: &Row| {
            let mean = |figure: Figure| plain(Estimate::of(&self.values(row.method, figure)));
            let less = |figure: Figure| match row.method {
                Method::Dpo => String::new(),
                method => self.less(method, Method::Dpo, figure).to_string(),
            };
            let own = if row.setting.own > 0.0 { row.setting.own.to_string() } else { String::new() };
            let mut cells = vec![row.name.to_owned(), row.setting.beta.to_string(), own];
            cells.extend([OVERALL, PROMPTS, PAIRS].into_iter().flat_map(|figure| [mean(figure), less(figure)]));
            cells.push(mean(|outcome| outcome.scarce));
            cells
        };
        let headers =
            ["", "beta", "own", "overall", "less DPO", "prompts", "less DPO", "pairs", "less DPO", "scarce mass"];
        table(&headers, &self.rows.iter().map(row).collect::<Vec<_>>())
    }
}

impl Results {
    pub fn table(&self) -> String {
        let mut text = format!(
            "Uncertainty-penalised DPO on {} seed(s); means over seeds ± standard error, differences paired by seed.\n\n{}\n",
            self.seeds.len(),
            self.checks()
        );
        for setup in &self.setups {
            let _ = writeln!(text, "\nLabels are noisy {}:\n\n{}", setup.noise.name, setup.outcomes());
        }
        text.push_str(
            "\noverall: gold reward of the policy's response on held-out prompts, in nats above the reference's. prompts: the same on those\n\
             of the uncertain pairs, the quarter of the held-out pairs on whose margin the members disagree most. pairs: gold reward of\n\
             the policy's choice between the two responses of an uncertain pair, above the reference's. own: the penalty's weight, the\n\
             temperature or cDPO's flip rate. scarce mass: probability of a response of the scarce kind; the reference's is 0.1.\n\n",
        );
        text.push_str(&self.sentences());
        text
    }

    /// First whether disagreement knows wrong labels at all.
    fn checks(&self) -> String {
        type Of = fn(&Check) -> f64;
        let rows: [(&str, Of); 8] = [
            ("wrong labels: pairs with a scarce response", |c| c.wrong[0]),
            ("  other pairs", |c| c.wrong[1]),
            ("disagreement on the margin (nats): with a scarce response", |c| c.disagreement[0]),
            ("  other pairs", |c| c.disagreement[1]),
            ("wrong labels found (area under the curve): by disagreement on the margin", |c| c.margin),
            ("  by the sum of the responses' disagreements", |c| c.responses),
            ("  by disagreement on the margin, held-out pairs", |c| c.held_out),
            ("  by the label's loss under the members' mean", |c| c.loss),
        ];
        let cells = rows.map(|(name, of)| {
            let figures = self.setups.iter().map(|setup| plain(setup.check(of)));
            std::iter::once(name.to_owned()).chain(figures).collect::<Vec<_>>()
        });
        let names = self.setups.iter().map(|setup| setup.noise.name);
        table(&std::iter::once("Labels are noisy").chain(names).collect::<Vec<_>>(), &cells)
    }

    fn sentences(&self) -> String {
        let mut text = String::new();
        for setup in &self.setups {
            let above = setup.check(|check| check.margin - 0.5);
            let verdict = match side(&above) {
                Side::Above => "finds wrong labels",
                Side::Below => "is larger on right labels",
                Side::Open => "is not shown to know wrong labels",
            };
            let _ = writeln!(
                text,
                "Noise {}: disagreement {verdict} (area under the curve less one half {above}); the true noise as weight, less DPO: {}; \
                 the weight less its shuffled self: {}.",
                setup.noise.name,
                setup.less(Method::Informed, Method::Dpo, OVERALL),
                setup.less(Method::Weighted, Method::Shuffled, OVERALL),
            );
        }
        for setup in &self.setups {
            let _ = writeln!(text, "Better than DPO overall and on uncertain pairs, noise {}:", setup.noise.name);
            for method in Method::FORMS {
                let _ = writeln!(text, "  {}", setup.claim(method));
            }
        }
        let settled = |verdict: &str| {
            let of = |setup: &Setup| Method::FORMS.iter().filter(|m| setup.verdict(**m) == verdict).count();
            self.setups.iter().map(of).sum::<usize>()
        };
        let _ = writeln!(
            text,
            "Of {} comparisons (three forms, three noises, without a correction for their number) the claim holds in {}, is not \
             established in {} and fails in {}.",
            Method::FORMS.len() * self.setups.len(),
            settled(HOLDS),
            settled(OPEN),
            settled(FAILS),
        );
        text
    }

    pub fn panels(&self) -> Vec<Panel> {
        let fifths = self.setups.iter().enumerate().map(|(colour, setup)| {
            let share = |fifth: usize| (fifth as f64 + 1.0, setup.check(|check| check.fifths[fifth]));
            Series::new(setup.noise.name, colour, Mark::Line, (0..5).map(share).collect())
        });
        let disagreement = Panel {
            title: "Do members disagree on wrong labels? Labels are noisy …",
            x: "fifths of the training pairs, from least to most disagreement",
            y: "share of labels that contradict the gold reward",
            axis: Axis::Linear,
            series: fifths.collect(),
        };
        vec![
            disagreement,
            self.panel("Gold reward less DPO's, all held-out prompts", OVERALL),
            self.panel("Gold reward less DPO's, choices in the most uncertain pairs", PAIRS),
        ]
    }

    /// Every method's lead over DPO against where the noise is.
    fn panel(&self, title: &'static str, figure: Figure) -> Panel {
        let line = |method: Method, colour: usize| {
            let mark = if Method::FORMS.contains(&method) { Mark::Line } else { Mark::Dashed };
            let mut points: Vec<_> =
                self.setups.iter().map(|s| (s.noise.scarce, s.less(method, Method::Dpo, figure))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series::new(method.name(), colour, mark, points)
        };
        let series = Method::ALL.into_iter().skip(1).enumerate().map(|(colour, method)| line(method, colour));
        Panel {
            title,
            x: "flip rate of labels on scarce responses (one in ten over all pairs)",
            y: "nats above DPO",
            axis: Axis::Linear,
            series: series.collect(),
        }
    }
}

const HOLDS: &str = "holds";
const OPEN: &str = "is not established";
const FAILS: &str = "fails";

impl Setup {
    /// Holds if the form is ahead of DPO in both figures, fails if it is behind in one.
    fn verdict(&self, method: Method) -> &'static str {
        match [OVERALL, PAIRS].map(|figure| side(&self.less(method, Method::Dpo, figure))) {
            [Side::Above, Side::Above] => HOLDS,
            [Side::Below, _] | [_, Side::Below] => FAILS,
            _ => OPEN,
        }
    }

    fn claim(&self, method: Method) -> String {
        let [overall, prompts, pairs] = [OVERALL, PROMPTS, PAIRS].map(|figure| self.less(method, Method::Dpo, figure));
        let (name, verdict) = (method.name(), self.verdict(method));
        format!("{name}: the claim {verdict}: overall {overall}, uncertain pairs {pairs} (their prompts {prompts})")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Above,
    Below,
    Open,
}

/// Against two standard errors; open for one seed.
fn side(estimate: &Estimate) -> Side {
    if estimate.mean > 2.0 * estimate.error {
        Side::Above
    } else if estimate.mean < -2.0 * estimate.error {
        Side::Below
    } else {
        Side::Open
    }
}

/// Without the sign of a difference.
fn plain(estimate: Estimate) -> String {
    if estimate.error.is_finite() {
        format!("{:.2}±{:.2}", estimate.mean, estimate.error)
    } else {
        format!("{:.2}", estimate.mean)
    }
}
