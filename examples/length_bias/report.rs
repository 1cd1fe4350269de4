//! Means, standard errors, differences paired by seed, in words and numbers.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;
use tch::Device;

use crate::{
    family::Quality,
    methods::Method,
    policy::{self, Outcome, Setting},
    support::{
        estimate::Estimate,
        stories::{self, ASSETS},
    },
};

/// Samples before tuning, with their judgement.
#[derive(Debug, Serialize)]
struct Before {
    gold: f64,
    length: f64,
    examples: Vec<(String, String)>,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    pub rhos: Vec<f64>,
    seeds: u64,
    before: Vec<Before>,
    reward_models: Vec<Vec<Quality>>,
    margin_spread: Vec<f64>,
    outcomes: Vec<Outcome>,
}

impl Results {
    pub fn new(rhos: &[f64], seeds: u64) -> Self {
        Self {
            rhos: rhos.into(),
            seeds,
            before: vec![],
            reward_models: vec![],
            margin_spread: vec![],
            outcomes: vec![],
        }
    }

    /// Adds a seed.
    pub fn add(&mut self, setting: &Setting, device: Device, outcomes: Vec<Outcome>) -> Result<()> {
        let (_store, reference) = stories::load(ASSETS.as_ref(), device)?;
        let (gold, _, length, examples) = policy::judge(setting, &reference, &setting.world.test, device)?;
        self.before.push(Before { gold, length, examples });
        self.reward_models.push(setting.members.iter().map(|m| m.quality.clone()).collect());
        let members: Vec<_> = setting.members.iter().collect();
        self.margin_spread.push(crate::family::scores(&members, device)?.margin_spread());
        self.outcomes.extend(outcomes);
        Ok(())
    }

    /// One number of a method for each seed at one ρ.
    fn at(&self, method: Method, bias: usize, value: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        let bias = if method == Method::Pooled { 0 } else { bias };
        self.outcomes.iter().filter(|o| o.method == method && o.bias == bias).map(value).collect()
    }

    /// Gold reward of a method at one ρ over seeds.
    pub fn gold(&self, method: Method, bias: usize) -> Estimate {
        Estimate::of(&self.at(method, bias, |o| o.gold))
    }

    /// A method's worst gold reward over ρ, for each seed.
    fn worst(&self, method: Method) -> Vec<f64> {
        let columns: Vec<Vec<f64>> = (0..self.rhos.len()).map(|bias| self.at(method, bias, |o| o.gold)).collect();
        (0..columns[0].len()).map(|seed| columns.iter().map(|c| c[seed]).fold(f64::INFINITY, f64::min)).collect()
    }

    /// The methods that were run, in the table's order.
    pub fn methods(&self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(|&method| self.outcomes.iter().any(|o| o.method == method))
    }

    fn over_biases(&self, method: Method, value: impl Fn(&Outcome) -> f64 + Copy) -> Estimate {
        let all: Vec<f64> = (0..self.rhos.len()).flat_map(|bias| self.at(method, bias, value)).collect();
        Estimate { mean: all.iter().sum::<f64>() / all.len() as f64, error: f64::NAN }
    }

    /// Change of log-probabilities over training at one ρ, averaged over seeds: step, chosen, rejected.
    pub fn trace(&self, method: Method, bias: usize) -> Vec<(f64, f64, f64)> {
        let traces: Vec<_> =
            self.outcomes.iter().filter(|o| o.method == method && o.bias == bias).map(|o| &o.trace).collect();
        let mean = |i: usize, part: fn(&(usize, f64, f64)) -> f64| {
            traces.iter().map(|t| part(&t[i])).sum::<f64>() / traces.len() as f64
        };
        let points = traces.first().map_or(0, |t| t.len());
        (0..points).map(|i| (mean(i, |p| p.0 as f64), mean(i, |p| p.1), mean(i, |p| p.2))).collect()
    }

    /// Gold reward of the reference.
    pub fn reference(&self) -> Estimate {
        Estimate::of(&self.before.iter().map(|b| b.gold).collect::<Vec<_>>())
    }

    /// The table, in text.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, t: &mut String) -> std::fmt::Result {
        let lengths: Vec<f64> = self.before.iter().map(|b| b.length).collect();
        writeln!(
            t,
            "Gold reward (cheerful less gloomy words) of each policy's own samples on held-out openings; {} seed(s).",
            self.seeds
        )?;
        writeln!(t, "Before tuning: {} at {:.1} tokens.\n", self.reference(), Estimate::of(&lengths).mean)?;
        write!(t, "{:22} beta", "longer preferred:")?;
        self.rhos.iter().try_for_each(|rho| write!(t, "{rho:>12}"))?;
        writeln!(t, "{:>12}{:>7}{:>8}{:>9}{:>9}", "worst", "KL", "tokens", "chosen", "rejected")?;
        for method in self.methods() {
            let beta = self.outcomes.iter().find(|o| o.method == method).map_or(f64::NAN, |o| o.beta);
            write!(t, "{:22} {beta:4}", method.name())?;
            for bias in 0..self.rhos.len() {
                write!(t, "{:>12}", self.gold(method, bias).to_string())?;
            }
            let last = |o: &Outcome| o.trace.last().copied().unwrap_or_default();
            writeln!(
                t,
                "{:>12}{:7.1}{:8.1}{:+9.1}{:+9.1}",
                Estimate::of(&self.worst(method)).to_string(),
                self.over_biases(method, |o| o.kl).mean,
                self.over_biases(method, |o| o.length).mean,
                self.over_biases(method, |o| last(o).1).mean,
                self.over_biases(method, |o| last(o).2).mean,
            )?;
        }
        writeln!(
            t,
            "\nKL(policy || reference) in nats and tokens: own samples. chosen, rejected: change of the log-probability of"
        )?;
        writeln!(t, "the training pairs' responses in nats. All four are means over the five biases.\n")?;
        self.write_comparison(t)?;
        self.write_family(t)
    }

    fn write_comparison(&self, t: &mut String) -> std::fmt::Result {
        if !self.methods().any(|m| m == Method::Pessimistic) {
            return Ok(());
        }
        writeln!(t, "Worst case over the biases, e-DPO less the other, paired by seed:")?;
        let pessimistic = self.worst(Method::Pessimistic);
        for method in self.methods().filter(|&m| m != Method::Pessimistic) {
            let difference = Estimate::paired(&pessimistic, &self.worst(method));
            writeln!(t, "  {:22} {:>12}   {}", method.name(), difference.to_string(), difference.errors())?;
        }
        writeln!(t)
    }

    fn write_family(&self, t: &mut String) -> std::fmt::Result {
        writeln!(t, "Reward models on held-out pairs, one for each bias:")?;
        type Column = fn(&Quality) -> f64;
        let rows: [(&str, Column); 4] = [
            ("agree with label", |q| q.label_accuracy),
            ("agree with gold", |q| q.gold_accuracy),
            ("margin, std", |q| q.margin_std),
            ("corr. with length", |q| q.length_correlation),
        ];
        for (name, value) in rows {
            write!(t, "  {name:20}     ")?;
            for bias in 0..self.rhos.len() {
                let values: Vec<f64> = self.reward_models.iter().map(|members| value(&members[bias])).collect();
                write!(t, "{:12.2}", Estimate::of(&values).mean)?;
            }
            writeln!(t)?;
        }
        writeln!(
            t,
            "  disagreement of the family on a margin (std over members): {:.2}",
            Estimate::of(&self.margin_spread).mean
        )?;
        for method in self.methods().filter(|m| m.pessimistic()) {
            let mut picks = vec![0; self.rhos.len()];
            for outcome in self.outcomes.iter().filter(|o| o.method == method) {
                picks.iter_mut().zip(&outcome.picks).for_each(|(sum, n)| *sum += n);
            }
            let total = picks.iter().sum::<usize>().max(1);
            write!(t, "  {:25}", format!("nearest, {}", method.name()))?;
            picks.iter().try_for_each(|&n| write!(t, "{:>11.0}%", 100.0 * n as f64 / total as f64))?;
            writeln!(t)?;
        }
        Ok(())
    }

    /// A few samples before and after tuning, at the strongest preference for length.
    pub fn samples(&self) -> String {
        let bias = self.rhos.len() - 1;
        let mut text = format!("Samples, longer preferred with probability {}\n", self.rhos[bias]);
        let Some(before) = self.before.first() else {
            return text;
        };
        let after = |method| self.outcomes.iter().find(|o| o.method == method && o.bias == bias);
        for (i, (opening, continuation)) in before.examples.iter().enumerate().take(3) {
            text += &format!("\n{opening}\n  before  {continuation}\n");
            for method in [Method::Dpo, Method::Distillation, Method::Pessimistic] {
                if let Some((_, continuation)) = after(method).and_then(|o| o.examples.get(i)) {
                    text += &format!("  {:7} {continuation}\n", method.name());
                }
            }
        }
        text
    }
}
