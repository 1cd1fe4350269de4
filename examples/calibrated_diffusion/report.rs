//! The numbers of all runs, and the table made of them.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use crate::{
    gallery::{Exhibit, Gallery},
    methods::Method,
    support::{estimate::Estimate, trial},
    world::{SCALES, World},
};

/// What one tuning did.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub method: Method,
    pub seed: u64,
    pub beta: f64,
    /// Gain of each judge's reward, in standard deviations under the pretrained model.
    pub gains: Vec<f64>,
    /// Change of the mean log p(sample) under the data, nats.
    pub density: f64,
    /// Samples of the first condition.
    #[serde(skip)]
    pub shown: Vec<[f64; 2]>,
}

impl Outcome {
    fn smallest(&self) -> f64 {
        self.gains.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn mean(&self) -> f64 {
        self.gains.iter().sum::<f64>() / self.gains.len() as f64
    }
}

/// β of largest mean gain over the judges, for each method.
pub fn best(tried: &[Outcome], betas: &[f64]) -> BTreeMap<&'static str, f64> {
    let of_method = |method: Method| {
        let gain = |beta: f64| -> f64 {
            tried.iter().filter(|o| o.method == method && o.beta == beta).map(Outcome::mean).sum()
        };
        let best = betas.iter().copied().max_by(|&a, &b| gain(a).total_cmp(&gain(b)));
        (method.name(), best.unwrap_or(f64::NAN))
    };
    Method::ALL.into_iter().map(of_method).collect()
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    pub betas: Vec<f64>,
    chosen: BTreeMap<&'static str, f64>,
    seeds: Vec<u64>,
    /// Mean log p(sample) of each seed's pretrained model under the data, nats.
    densities: Vec<f64>,
    outcomes: Vec<Outcome>,
    pub images: Vec<Exhibit>,
    /// Samples of the first seed's pretrained model.
    #[serde(skip)]
    pub before: Vec<[f64; 2]>,
}

impl Results {
    pub fn new(
        betas: &[f64],
        chosen: BTreeMap<&'static str, f64>,
        worlds: &[World],
        outcomes: Vec<Outcome>,
        gallery: Gallery,
    ) -> Self {
        Self {
            betas: betas.to_vec(),
            chosen,
            seeds: worlds.iter().map(|world| world.seed).collect(),
            densities: worlds.iter().map(|world| world.before.density).collect(),
            outcomes,
            images: gallery.exhibits,
            before: worlds.first().map(|world| world.before.shown.clone()).unwrap_or_default(),
        }
    }

    /// One number of a method at a β for each seed.
    fn values(&self, method: Method, beta: f64, of: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.outcomes.iter().filter(|o| o.method == method && o.beta == beta).map(of).collect()
    }

    fn at_best(&self, method: Method, of: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.values(method, self.chosen[method.name()], of)
    }

    /// A judge's gain at the method's chosen β.
    pub fn gain(&self, method: Method, judge: usize) -> Estimate {
        Estimate::of(&self.at_best(method, |o| o.gains[judge]))
    }

    /// The smallest of the judges' gains, of each seed, at this β.
    pub fn smallest(&self, method: Method, beta: f64) -> Estimate {
        Estimate::of(&self.values(method, beta, Outcome::smallest))
    }

    /// Samples of the first seed's tuned model.
    pub fn shown(&self, method: Method) -> &[[f64; 2]] {
        let found = self.outcomes.iter().find(|o| o.method == method && o.beta == self.chosen[method.name()]);
        found.map(|outcome| outcome.shown.as_slice()).unwrap_or_default()
    }

    /// The smallest gain of one method less another's, paired by seed.
    fn difference(&self, a: Method, b: Method) -> Estimate {
        Estimate::paired(&self.at_best(a, Outcome::smallest), &self.at_best(b, Outcome::smallest))
    }

    /// The table, in text.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, t: &mut String) -> std::fmt::Result {
        writeln!(
            t,
            "Gain of each judge's reward over the pretrained model, in its standard deviations there; {} seed(s).",
            self.seeds.len()
        )?;
        writeln!(
            t,
            "The judges' scales are {SCALES:?}. log p: change of the samples' mean log-density under the data,"
        )?;
        writeln!(
            t,
            "nats, from {}. beta: the one of largest mean gain on other seeds.\n",
            Estimate::of(&self.densities)
        )?;
        let rows: Vec<Vec<String>> = Method::ALL
            .into_iter()
            .map(|method| {
                let estimates = (0..SCALES.len()).map(|judge| self.gain(method, judge)).chain([
                    Estimate::of(&self.at_best(method, Outcome::smallest)),
                    Estimate::of(&self.at_best(method, Outcome::mean)),
                    Estimate::of(&self.at_best(method, |o| o.density)),
                ]);
                [method.name().to_owned(), self.chosen[method.name()].to_string()]
                    .into_iter()
                    .chain(estimates.map(|e| e.to_string()))
                    .collect()
            })
            .collect();
        let headers = ["pairs", "beta", "judge 1", "judge 2", "judge 3", "smallest", "mean", "log p"];
        writeln!(t, "{}\n", trial::table(&headers, &rows))?;

        writeln!(t, "Smallest gain at each beta:")?;
        let betas: Vec<String> = self.betas.iter().map(f64::to_string).collect();
        let headers: Vec<&str> = ["pairs"].into_iter().chain(betas.iter().map(String::as_str)).collect();
        let selections = Method::ALL.into_iter().filter(|method| method.selects());
        let rows: Vec<Vec<String>> = selections
            .map(|method| {
                let each = self.betas.iter().map(|&beta| self.smallest(method, beta).to_string());
                [method.name().to_owned()].into_iter().chain(each).collect()
            })
            .collect();
        writeln!(t, "{}\n", trial::table(&headers, &rows))?;

        writeln!(t, "Smallest gain of the first less that of the second, paired by seed:")?;
        for (a, b) in COMPARED {
            let difference = self.difference(a, b);
            let names = format!("{} - {}", a.name(), b.name());
            writeln!(t, "  {names:44} {:>12}   {}", difference.to_string(), difference.errors())?;
        }
        writeln!(t, "\nImages (one seed, one beta): gain of brightness (x 20) and of symmetry")?;
        for image in self.images.iter().skip(1) {
            writeln!(t, "  {:24} {:+.2} {:+.2}", image.name, image.gains[0], image.gains[1])?;
        }
        writeln!(t)?;
        for method in [Method::Calibrated, Method::Frontier] {
            writeln!(t, "{}", self.claim(method))?;
        }
        writeln!(t, "{}", self.credit())
    }

    /// Several rewards improve together where the raw sum trades one off: its smallest gain is above 0 and above the raw sum's.
    fn claim(&self, method: Method) -> String {
        let smallest = Estimate::of(&self.at_best(method, Outcome::smallest));
        let raw = Estimate::of(&self.at_best(Method::Raw, Outcome::smallest));
        let difference = self.difference(method, Method::Raw);
        let verdict = if above(smallest) && above(difference) {
            "holds"
        } else if below(smallest) || below(difference) {
            "fails"
        } else {
            "is not established"
        };
        format!(
            "The claim {verdict} for {}: its smallest gain is {smallest}, the raw sum's {raw}, the difference {difference}.",
            method.name()
        )
    }

    /// Which ingredient did it.
    fn credit(&self) -> String {
        let said = |difference: Estimate, what: &str| {
            let verdict = if above(difference) {
                "is better"
            } else if below(difference) {
                "is worse"
            } else {
                "makes no established difference"
            };
            format!("{what} {verdict} ({difference}).")
        };
        let frontier = said(
            self.difference(Method::Frontier, Method::Calibrated),
            "The frontier in place of the calibrated sum's extremes",
        );
        let standardised = said(
            self.difference(Method::Calibrated, Method::Standardised),
            "Calibrating in place of standardising each reward",
        );
        let unit = said(
            self.difference(Method::Calibrated, Method::CalibratedInRewards),
            "A temperature of one deviation of each judge in place of one unit of reward",
        );
        [frontier, standardised, unit].join("\n")
    }
}

const COMPARED: [(Method, Method); 8] = [
    (Method::Calibrated, Method::Raw),
    (Method::Frontier, Method::Raw),
    (Method::Frontier, Method::Calibrated),
    (Method::Calibrated, Method::Standardised),
    (Method::Calibrated, Method::CalibratedInRewards),
    (Method::Dpo, Method::Calibrated),
    (Method::Ipo, Method::Calibrated),
    (Method::Pessimistic, Method::Calibrated),
];

/// By more than two standard errors; false for one seed.
fn above(estimate: Estimate) -> bool {
    estimate.mean > 2.0 * estimate.error
}

fn below(estimate: Estimate) -> bool {
    estimate.mean < -2.0 * estimate.error
}
