//! Tables, panels, and the sentences that the figures allow.

use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use crate::{
    COVERAGE, NOISES,
    classify::{self, Rule, coverages},
    policies::{self, BETAS, Method},
    preferences::{Labels, Setting},
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial,
    },
};

#[derive(Serialize)]
pub struct Results {
    classified: Vec<classify::Outcome>,
    reward_steps: usize,
    labels: Vec<Labels>,
    chosen: Vec<(Method, f64)>,
    tuned: Vec<policies::Outcome>,
}

impl Results {
    pub fn new(
        classified: Vec<classify::Outcome>,
        reward_steps: usize,
        settings: &[Setting],
        chosen: Vec<(Method, f64)>,
        tuned: Vec<policies::Outcome>,
    ) -> Result<Self> {
        let labels = settings.iter().map(Setting::labels).collect::<Result<_>>()?;
        Ok(Self { classified, reward_steps, labels, chosen, tuned })
    }

    /// A number of every classifier at one noise, in the order of the seeds.
    fn classifiers(&self, noise: f64, of: impl Fn(&classify::Outcome) -> f64) -> Vec<f64> {
        self.classified.iter().filter(|outcome| outcome.noise == noise).map(of).collect()
    }

    fn judgements(&self, noise: f64, rule: Rule, of: impl Fn(&classify::Judgement) -> f64) -> Vec<f64> {
        let judged = |outcome: &classify::Outcome| outcome.rules.iter().find(|j| j.rule == rule).map_or(f64::NAN, &of);
        self.classifiers(noise, judged)
    }

    /// A number of every policy of a method at one β, in the order of the seeds.
    fn policies(&self, method: Method, beta: f64, of: impl Fn(&policies::Outcome) -> f64) -> Vec<f64> {
        self.tuned.iter().filter(|outcome| outcome.method == method && outcome.beta == beta).map(of).collect()
    }

    fn beta(&self, method: Method) -> f64 {
        self.chosen.iter().find(|(m, _)| *m == method).map_or(f64::NAN, |(_, beta)| *beta)
    }

    /// Gold at the chosen β.
    fn gold(&self, method: Method) -> Vec<f64> {
        self.policies(method, self.beta(method), |outcome| outcome.gold)
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        for noise in NOISES {
            self.classification(&mut text, noise);
        }
        self.labels(&mut text);
        self.tuning(&mut text);
        for sentence in self.sentences() {
            text.push_str(&sentence);
            text.push('\n');
        }
        text
    }

    fn classification(&self, text: &mut String, noise: f64) {
        let all = percent(&self.classifiers(noise, |outcome| outcome.accuracy));
        let temperature = mean(&self.classifiers(noise, |outcome| outcome.temperature));
        let _ = writeln!(
            text,
            "Classifier, {:.0} % of its labels flipped: accuracy in % by clean test labels, all accepted {all}; \
             T {temperature:.2}.",
            100.0 * noise
        );
        let headers =
            ["accepting 80 %", "accuracy", "less Chow's", "by held-out limit", "at coverage", "ratio at limit"];
        let rows: Vec<Vec<String>> = Rule::ALL
            .into_iter()
            .map(|rule| {
                let threshold = mean(&self.judgements(noise, rule, |j| j.threshold.unwrap_or(f64::NAN)));
                vec![
                    rule.name().into(),
                    percent(&self.judgements(noise, rule, |j| j.matched)),
                    format!("{:.2}", self.less_chow(noise, rule)),
                    percent(&self.judgements(noise, rule, |j| j.accepted)),
                    percent(&self.judgements(noise, rule, |j| j.coverage)),
                    if threshold.is_finite() { format!("{threshold:.3}") } else { String::new() },
                ]
            })
            .collect();
        let _ = writeln!(text, "\n{}\n", trial::table(&headers, &rows));
    }

    /// Accuracy at 80 % coverage of the test rows, less Chow's on the same model, in points.
    fn less_chow(&self, noise: f64, rule: Rule) -> Estimate {
        let points = |rule| self.judgements(noise, rule, |j| 100.0 * j.matched);
        Estimate::paired(&points(rule), &points(Rule::Chow))
    }

    fn labels(&self, text: &mut String) {
        let of = |of: fn(&Labels) -> f64| percent(&self.labels.iter().map(of).collect::<Vec<_>>());
        let temperature = mean(&self.labels.iter().flat_map(|labels| labels.temperatures).collect::<Vec<_>>());
        let _ = writeln!(
            text,
            "Preference labels, 25 % flipped after Bradley-Terry draws: which % gold agrees with. Judges of {} steps, \
             T {temperature:.2}.\n\n\
             all {}   80 % kept by the given label's loss {}   80 % kept by entropy {}\n",
            self.reward_steps,
            of(|labels| labels.all),
            of(|labels| labels.given),
            of(|labels| labels.entropy),
        );
    }

    fn tuning(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "Policies on those labels: E gold on new prompts above the reference, in standard deviations of gold; \
             beta chosen on other worlds."
        );
        let grid = BETAS.map(|beta| format!("at beta {beta}"));
        let mut headers = vec!["", "beta", "gold", "less all labels", "KL"];
        headers.extend(grid.iter().map(String::as_str));
        let rows: Vec<Vec<String>> = Method::ALL
            .into_iter()
            .map(|method| {
                let beta = self.beta(method);
                let mut row = vec![
                    method.name().to_owned(),
                    beta.to_string(),
                    format!("{:.2}", Estimate::of(&self.gold(method))),
                    format!("{:.3}", Estimate::paired(&self.gold(method), &self.gold(Method::All))),
                    format!("{:.2}", mean(&self.policies(method, beta, |outcome| outcome.kl))),
                ];
                let at = |beta| format!("{:+.2}", mean(&self.policies(method, beta, |outcome| outcome.gold)));
                row.extend(BETAS.map(at));
                row
            })
            .collect();
        let _ = writeln!(text, "\n{}\n", trial::table(&headers, &rows));
    }

    fn sentences(&self) -> Vec<String> {
        let percent = 100.0 * COVERAGE;
        let mut sentences: Vec<String> = NOISES
            .iter()
            .map(|&noise| {
                let difference = self.less_chow(noise, Rule::Kl);
                format!(
                    "At {percent:.0} % coverage and {:.0} % label noise, the entropy's density ratio is at least as \
                     accurate as Chow's rule: {} ({difference:.2} points). \
                     On 1 - max p the two are one rule ({:.2}).",
                    100.0 * noise,
                    at_least(difference),
                    self.less_chow(noise, Rule::KlOfError),
                )
            })
            .collect();
        let kept: Vec<f64> = self.labels.iter().map(|labels| labels.given - labels.entropy).collect();
        let kept = Estimate::of(&kept);
        sentences.push(format!(
            "The loss of the given label keeps more right labels than entropy does: {} ({:+.1} points).",
            above(kept),
            100.0 * kept.mean
        ));
        for (method, what) in [
            (Method::DropByLabel, "Dropping labels by their loss"),
            (Method::DropByEntropy, "Dropping labels by entropy"),
            (Method::DownWeight, "Down-weighting them"),
        ] {
            let gain = Estimate::paired(&self.gold(method), &self.gold(Method::All));
            sentences.push(format!("{what} makes a better policy than all labels: {} ({gain:.3}).", above(gain)));
        }
        for (method, what) in
            [(Method::FlipRate, "cDPO told the flip rate"), (Method::Distilled, "distilling the judges")]
        {
            let gain = Estimate::paired(&self.gold(Method::DropByLabel), &self.gold(method));
            sentences.push(format!("Dropping by label loss is better than {what}: {} ({gain:.3}).", above(gain)));
        }
        sentences
    }

    pub fn panels(&self) -> Vec<Panel> {
        vec![self.curves(), self.differences(), self.gold_over_beta()]
    }

    /// A curve's points, each an estimate over seeds.
    fn curve(&self, of: impl Fn(usize) -> Estimate) -> Vec<(f64, Estimate)> {
        coverages().enumerate().map(|(i, coverage)| (coverage, of(i))).collect()
    }

    fn curves(&self) -> Panel {
        let mut series = Vec::new();
        for (noise, mark, label) in [(NOISES[0], Mark::Line, "no noise"), (NOISES[1], Mark::Dashed, "25 % noise")] {
            for (colour, rule) in [(0, Rule::Kl), (2, Rule::Chow), (6, Rule::Confidence)] {
                let points = self.curve(|i| Estimate::of(&self.judgements(noise, rule, |j| j.curve[i])));
                series.push(Series::new(format!("{}, {label}", rule.name()), colour, mark, points));
            }
        }
        Panel {
            title: "Accuracy of what a classifier accepts",
            x: "coverage",
            y: "accuracy by clean labels",
            axis: Axis::Linear,
            series,
        }
    }

    fn differences(&self) -> Panel {
        let mut series = Vec::new();
        for (noise, mark, label) in [(NOISES[0], Mark::Line, "no noise"), (NOISES[1], Mark::Dashed, "25 % noise")] {
            for (colour, rule) in [(0, Rule::Kl), (6, Rule::Confidence)] {
                let at = |rule, i: usize| self.judgements(noise, rule, |j| 100.0 * j.curve[i]);
                let points = self.curve(|i| Estimate::paired(&at(rule, i), &at(Rule::Chow, i)));
                series.push(Series::new(format!("{}, {label}", rule.name()), colour, mark, points));
            }
        }
        Panel {
            title: "The same, less Chow's rule on the same model",
            x: "coverage",
            y: "accuracy less Chow's, points",
            axis: Axis::Linear,
            series,
        }
    }

    fn gold_over_beta(&self) -> Panel {
        let series = Method::ALL.into_iter().enumerate().map(|(colour, method)| {
            let at = |beta| (beta, Estimate::of(&self.policies(method, beta, |outcome| outcome.gold)));
            let mark = if matches!(method, Method::FlipRate | Method::Distilled) { Mark::Dashed } else { Mark::Line };
            Series::new(method.name(), colour, mark, BETAS.map(at).to_vec())
        });
        Panel {
            title: "Policies tuned on labels of which 25 % are flipped",
            x: "beta",
            y: "gold above the reference, standard deviations",
            axis: Axis::Log,
            series: series.collect(),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    Estimate::of(values).mean
}

/// A share as a percentage, without the sign of a difference.
fn percent(shares: &[f64]) -> String {
    let Estimate { mean, error } = Estimate::of(&shares.iter().map(|share| 100.0 * share).collect::<Vec<_>>());
    if error.is_finite() { format!("{mean:.1}±{error:.1}") } else { format!("{mean:.1}") }
}

/// What two standard errors allow to say of a claim that a difference is not negative.
fn at_least(difference: Estimate) -> &'static str {
    let Estimate { mean, error } = difference;
    if mean == 0.0 && error == 0.0 {
        "holds, they are equal"
    } else if !error.is_finite() {
        "one seed says nothing"
    } else if mean <= -2.0 * error {
        "fails"
    } else if mean >= 2.0 * error {
        "holds, it is ahead"
    } else {
        "not contradicted, no difference is established"
    }
}

/// Of a claim that it is positive.
fn above(difference: Estimate) -> &'static str {
    let Estimate { mean, error } = difference;
    if !error.is_finite() {
        "one seed says nothing"
    } else if mean >= 2.0 * error && mean > 0.0 {
        "holds"
    } else if mean <= -2.0 * error && mean < 0.0 {
        "fails, it is worse"
    } else {
        "is not established"
    }
}
