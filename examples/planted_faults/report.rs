//! The table and its sentences.

use prefopt::diagnostics::{Alarm, AlarmKind};
use serde::Serialize;

use crate::{plants::Plant, run::Outcome, support::trial::table};

#[derive(Debug, Serialize)]
pub struct Results {
    pub steps: usize,
    pub seeds: Vec<u64>,
    pub outcomes: Vec<Outcome>,
}

impl Outcome {
    /// All alarms of the first step that has one.
    fn first(&self) -> &[Alarm] {
        let step = self.alarms.first().map(|alarm| alarm.step);
        let together = self.alarms.iter().take_while(|alarm| Some(alarm.step) == step).count();
        &self.alarms[..together]
    }

    /// Steps before the fault was named; 0 before training.
    fn caught_after(&self) -> Option<u64> {
        match &self.refusal {
            Some(refusal) if self.alarms.is_empty() && self.plant.is_visible() => Some(refusal.after),
            _ => {
                let named = self.first().iter().find(|alarm| self.plant.expected().contains(&alarm.kind));
                named.map(|alarm| alarm.step)
            }
        }
    }

    /// Whether the first alarm says something else.
    fn is_misled(&self) -> bool {
        !self.first().is_empty() && self.caught_after().is_none()
    }
}

/// Of an odd or even number of steps; `None` of none.
fn median(mut steps: Vec<u64>) -> Option<f64> {
    steps.sort_unstable();
    let (low, high) = (steps.len().checked_sub(1)? / 2, steps.len() / 2);
    Some(0.5 * (steps[low] + steps[high]) as f64)
}

/// Kinds that these runs raised, by the median of their first steps, and in how many runs.
fn raised<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> Vec<(AlarmKind, f64, usize)> {
    let of = |kind: AlarmKind| {
        let steps: Vec<u64> = outcomes
            .clone()
            .filter_map(|outcome| outcome.alarms.iter().find(|alarm| alarm.kind == kind))
            .map(|alarm| alarm.step)
            .collect();
        let runs = steps.len();
        Some((kind, median(steps)?, runs))
    };
    let mut raised: Vec<_> = AlarmKind::ALL.into_iter().filter_map(of).collect();
    raised.sort_by(|a, b| a.1.total_cmp(&b.1));
    raised
}

impl Results {
    pub fn of(&self, plant: Plant) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| outcome.plant == plant)
    }

    fn row(&self, plant: Plant) -> Vec<String> {
        let outcomes: Vec<&Outcome> = self.of(plant).collect();
        let caught: Vec<u64> = outcomes.iter().filter_map(|outcome| outcome.caught_after()).collect();
        let (runs, named) = (outcomes.len(), caught.len());
        let after = match (caught.iter().min(), caught.iter().max(), median(caught.clone())) {
            (Some(first), Some(last), Some(middle)) if first != last => format!("{middle} ({first}-{last})"),
            (_, _, Some(middle)) => middle.to_string(),
            _ => String::new(),
        };
        let alarms = raised(outcomes.iter().copied());
        let mut told: Vec<String> =
            alarms.iter().map(|(kind, step, runs)| format!("{} {step} [{runs}]", kind.name())).collect();
        if let Some(refusal) = outcomes.iter().find_map(|outcome| outcome.refusal.as_ref()) {
            told.push(format!("error after {}: {}", refusal.after, refusal.message));
        }
        let count = if plant.is_visible() { format!("{named} of {runs}") } else { format!("- of {runs}") };
        vec![plant.name().into(), count, after, told.join(", ")]
    }

    pub fn table(&self) -> String {
        let rows: Vec<Vec<String>> = Plant::ALL.into_iter().map(|plant| self.row(plant)).collect();
        let headers = ["", "caught", "after steps", "alarms: median step [runs]; errors"];
        format!(
            "Alarms in runs of {} steps, default thresholds; {} seed(s), for faults the first half of them.\n\n{}\n\n\
             caught: runs whose first alarm names the fault, or which a typed error refused; after how many steps: median (range), 0\n\
             before training. -: nothing can be caught.\n\n{}",
            self.steps,
            self.seeds.len(),
            table(&headers, &rows),
            self.sentences()
        )
    }

    fn sentences(&self) -> String {
        let healthy: Vec<&Outcome> = self.outcomes.iter().filter(|outcome| outcome.plant.is_healthy()).collect();
        let (runs, false_alarms) = (healthy.len(), healthy.iter().filter(|outcome| !outcome.alarms.is_empty()).count());
        let which = raised(healthy.iter().copied());
        let which: Vec<String> = which.iter().map(|(kind, _, runs)| format!("{} in {runs}", kind.name())).collect();
        let rate = match false_alarms {
            // No event in n trials: at most 3/n with 95 % confidence.
            0 => format!("none; with 95 % confidence fewer than {:.0} % of such runs raise one", 300.0 / runs as f64),
            _ => format!("{:.0} % ({})", 100.0 * false_alarms as f64 / runs as f64, which.join(", ")),
        };
        let visible: Vec<Plant> = Plant::ALL.into_iter().filter(|plant| plant.is_visible()).collect();
        let in_every_run = |plant: &Plant| self.of(*plant).all(|outcome| outcome.caught_after().is_some());
        let missed: Vec<&str> = visible.iter().filter(|plant| !in_every_run(plant)).map(|plant| plant.name()).collect();
        let faulty = || self.outcomes.iter().filter(|outcome| !outcome.plant.is_healthy());
        let misled = faulty().filter(|outcome| outcome.is_misled()).count();
        format!(
            "False alarms: {false_alarms} of {runs} healthy runs: {rate}. On runs with a fault the first alarm named another one in {misled} of {}.\n\
             Caught in every run: {} of {} faults that numbers can show{}.\n",
            faulty().count(),
            visible.len() - missed.len(),
            visible.len(),
            if missed.is_empty() { String::new() } else { format!("; not in every run: {}", missed.join("; ")) },
        )
    }
}
