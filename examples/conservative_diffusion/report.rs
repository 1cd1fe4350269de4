//! From outcomes to the table, its sentences and the picture.

use serde::Serialize;

use crate::{
    methods::{CONSERVATIVE, KL_ONLY, KL_ONLY_AT_ANY, METHODS, MOST_CAUTIOUS},
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial,
    },
    tuning::{Outcome, Point},
    world::World,
};

/// Drawn over the training.
const OVER_TRAINING: [usize; 3] = [KL_ONLY, MOST_CAUTIOUS - 1, MOST_CAUTIOUS];
/// The learned reward up to which the picture compares: without a divergence it goes much further.
const DRAWN_TO: f64 = 1.6;

impl Outcome {
    fn end(&self) -> Point {
        self.path[self.path.len() - 1]
    }

    /// The largest learned reward on the way.
    fn highest(&self) -> f64 {
        self.path.iter().map(|point| point.learned).fold(f64::NEG_INFINITY, f64::max)
    }

    /// The true reward where the learned one first reaches this, interpolated; NaN where it never does.
    fn gold_at(&self, level: f64) -> f64 {
        let Some(reached) = self.path.iter().position(|point| point.learned >= level) else {
            return f64::NAN;
        };
        let after = self.path[reached];
        let Some(before) = reached.checked_sub(1).map(|i| self.path[i]) else {
            return after.gold;
        };
        let share = (level - before.learned) / (after.learned - before.learned);
        before.gold + share * (after.gold - before.gold)
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The largest learned reward that every method of a seed reaches.
    levels: Vec<f64>,
    /// Methods within seeds.
    outcomes: Vec<Outcome>,
    /// Scored points of the first seed.
    #[serde(skip)]
    scored: Vec<[f64; 2]>,
}

impl Results {
    pub fn new(worlds: &[World], outcomes: Vec<Outcome>) -> Self {
        let common = |seed: &[Outcome]| seed.iter().map(Outcome::highest).fold(f64::INFINITY, f64::min);
        let levels = outcomes.chunks(METHODS.len()).map(common).collect();
        let scored = worlds.iter().take(1).flat_map(|world| world.scored.chunks_exact(2).map(|p| [p[0], p[1]]));
        Self { levels, scored: scored.collect(), outcomes }
    }

    /// A method's outcomes in the order of the seeds.
    fn of(&self, method: usize) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().skip(method).step_by(METHODS.len())
    }

    fn ends(&self, method: usize, value: fn(Point) -> f64) -> Vec<f64> {
        self.of(method).map(|outcome| value(outcome.end())).collect()
    }

    /// True rewards at the seeds' common levels.
    fn matched(&self, method: usize) -> Vec<f64> {
        self.of(method).zip(&self.levels).map(|(outcome, &level)| outcome.gold_at(level)).collect()
    }

    fn gain(&self, method: usize, over: usize) -> Estimate {
        Estimate::paired(&self.matched(method), &self.matched(over))
    }

    pub fn table(&self) -> String {
        let headers = ["", "alpha", "learned, end", "true, end", "KL, end", "true at level", "less KL only", "covered"];
        let rows: Vec<Vec<String>> =
            METHODS.iter().enumerate().map(|(i, method)| self.row(i, method.kl_weight, method.name)).collect();
        format!(
            "Means over own samples, {} seed(s); ± is one standard error over seeds. Learned: the score without penalty.\n\
             True at level: where the learned reward is first {:.2}, each seed's largest that every method reaches.\n\
             Covered: share of the pretrained model's samples whose error is within the penalty. KL in nats, of whole chains.\n\n\
             {}\n\n{}",
            self.levels.len(),
            Estimate::of(&self.levels),
            trial::table(&headers, &rows),
            self.sentences()
        )
    }

    fn row(&self, method: usize, kl_weight: f64, name: &str) -> Vec<String> {
        let end = |value: fn(Point) -> f64| Estimate::of(&self.ends(method, value));
        let covered: Vec<f64> = self.of(method).map(|outcome| outcome.covered).collect();
        vec![
            name.to_owned(),
            format!("{kl_weight}"),
            format!("{:.2}", end(|point| point.learned)),
            format!("{:.2}", end(|point| point.gold)),
            format!("{:.1}", end(|point| point.divergence).mean),
            format!("{:.2}", Estimate::of(&self.matched(method))),
            if method == KL_ONLY { "-".to_owned() } else { format!("{:.2}", self.gain(method, KL_ONLY)) },
            format!("{:.0}%", 100.0 * Estimate::of(&covered).mean),
        ]
    }

    /// What the figures allow.
    fn sentences(&self) -> String {
        let learned = Estimate::paired(&self.ends(KL_ONLY, |point| point.learned), &self.levels);
        let gold = Estimate::paired(&self.ends(KL_ONLY, |point| point.gold), &self.matched(KL_ONLY));
        let fall = Estimate { mean: -gold.mean, ..gold };
        let mut lines = vec![
            format!(
                "Precondition, the true reward of KL only falls while the learned one rises: {}.\n\
                 From the common level to the end the learned one changes by {learned:.2}, the true one by {gold:.2}.",
                if learned.mean > 2.0 * learned.error { verdict(&fall) } else { "is not established" }
            ),
            "At the same learned reward the conservative policy has the higher true reward:".to_owned(),
        ];
        let mean = |method: usize| Estimate::of(&self.matched(method)).mean;
        let best = KL_ONLY_AT_ANY.max_by(|&a, &b| mean(a).total_cmp(&mean(b))).unwrap_or(KL_ONLY);
        for method in CONSERVATIVE {
            let (same, other) = (self.gain(method, KL_ONLY), self.gain(method, best));
            lines.push(format!(
                "  {}: the claim {} against KL only at the same alpha ({same:.2}), {} against its best alpha here, {} ({other:.2})",
                METHODS[method].name,
                verdict(&same),
                verdict(&other),
                METHODS[best].kl_weight
            ));
        }
        lines.join("\n")
    }

    pub fn panels(&self) -> Vec<Panel> {
        vec![self.over_training(), self.at_levels(), self.samples()]
    }

    fn over_training(&self) -> Panel {
        let value = |name: &str, method: usize, mark: Mark, of: fn(Point) -> f64| {
            let points = self.outcomes[method].path.iter().enumerate().map(|(k, point)| {
                let values: Vec<f64> = self.of(method).map(|outcome| of(outcome.path[k])).collect();
                (point.step as f64, Estimate::of(&values))
            });
            Series::new(format!("{}: {name}", METHODS[method].name), method, mark, points.collect())
        };
        let both = |method: usize| {
            [
                value("learned", method, Mark::Dashed, |point| point.learned),
                value("true", method, Mark::Line, |point| point.gold),
            ]
        };
        Panel {
            title: "Over training: learned and true reward",
            x: "step of fine-tuning",
            y: "mean reward of own samples",
            axis: Axis::Linear,
            series: OVER_TRAINING.into_iter().flat_map(both).collect(),
        }
    }

    fn at_levels(&self) -> Panel {
        let levels: Vec<f64> = (0..=32).map(|i| DRAWN_TO * f64::from(i) / 32.0).collect();
        let series = METHODS.iter().enumerate().map(|(i, method)| {
            // A level that not every seed reaches has no mean, and is not drawn.
            let at = |level: f64| Estimate::of(&self.of(i).map(|o| o.gold_at(level)).collect::<Vec<_>>());
            let mark = if CONSERVATIVE.contains(&i) { Mark::Line } else { Mark::Dashed };
            Series::new(method.name, i, mark, levels.iter().map(|&level| (level, at(level))).collect())
        });
        Panel {
            title: "True reward at the same learned reward",
            x: "learned reward of own samples",
            y: "true reward of own samples",
            axis: Axis::Linear,
            series: series.collect(),
        }
    }

    /// Of the first seed.
    fn samples(&self) -> Panel {
        let cloud = |name: &str, colour: usize, points: &[[f64; 2]]| {
            let points: Vec<(f64, f64)> = points.iter().map(|p| (p[0], p[1])).collect();
            Series::exact(name, colour, Mark::Points, &points)
        };
        let [kl_only, cautious] = [KL_ONLY, MOST_CAUTIOUS].map(|method| &self.outcomes[method]);
        Panel {
            title: "Samples before and after; first seed",
            x: "x₁: the true reward rises up to .8 and falls beyond",
            y: "x₂",
            axis: Axis::Linear,
            series: vec![
                cloud("pretrained", 7, &kl_only.shown[0]),
                cloud("scored points", 6, &self.scored),
                cloud(kl_only.method.name, KL_ONLY, &kl_only.shown[1]),
                cloud(cautious.method.name, 3, &cautious.shown[1]),
            ],
        }
    }
}

/// In words, by two standard errors.
fn verdict(gain: &Estimate) -> &'static str {
    if gain.mean > 2.0 * gain.error {
        "holds"
    } else if gain.mean < -2.0 * gain.error {
        "fails"
    } else {
        "is not established"
    }
}
