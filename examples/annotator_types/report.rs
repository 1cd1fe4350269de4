//! Table, verdicts and panels.

use serde::Serialize;

use super::{
    Betas, MAIN, VOTES,
    learner::{METHODS, Outcome},
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial,
    },
    world::{TYPES, Taste},
};

/// How much of the oracle's index may be missing where types count as recovered: methods.md's trials missed at most .05.
const SLACK: f64 = 0.1;

#[derive(Serialize)]
pub struct Results {
    /// Opposing, compromise.
    pub betas: [Betas; 2],
    pub outcomes: Vec<Outcome>,
}

impl Results {
    /// One number of each seed, in the seeds' order.
    fn of(&self, taste: Taste, votes: usize, number: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.outcomes.iter().filter(|o| o.taste == taste && o.votes == votes).map(number).collect()
    }

    fn estimate(&self, taste: Taste, votes: usize, number: impl Fn(&Outcome) -> f64) -> Estimate {
        Estimate::of(&self.of(taste, votes, number))
    }

    fn worst_less(&self, taste: Taste, votes: usize, method: usize, other: usize) -> Estimate {
        self.estimate(taste, votes, |o| o.worst[method] - o.worst[other])
    }

    pub fn table(&self) -> String {
        let seeds = self.of(Taste::Opposing, MAIN, |o| o.index).len();
        let [opposing, compromise] = &self.betas;
        format!(
            "Types: agreement of the annotators' types with the truth (adjusted Rand index), {seeds} seed(s); ± is one standard error.\n\
             {}\n\n\
             Regret of the worst-off of the three types on new prompts, in units of reward (an annotator prefers what is better by 1 in 73 % of cases).\n\
             {}\n\n\
             Beta, tuned over the same grid on other seeds: one DPO policy {} (opposing), {} (compromise); all others {}, {}.\n\
             In the game with the one policy its weight at {MAIN} votes is {:.2} (opposing) and {:.2} (compromise), and the duality gap at most {:.4} nats.\n\n\
             {}\n",
            self.types(),
            self.regrets(),
            opposing.one,
            compromise.one,
            opposing.mixture,
            compromise.mixture,
            self.estimate(Taste::Opposing, MAIN, |o| o.one_policy_weight).mean,
            self.estimate(Taste::Compromise, MAIN, |o| o.one_policy_weight).mean,
            self.outcomes.iter().map(|o| o.gap).fold(0.0, f64::max),
            self.verdicts(),
        )
    }

    fn types(&self) -> String {
        let mut rows = Vec::new();
        for taste in Taste::ALL {
            for votes in VOTES {
                let right = self.of(taste, votes, |o| f64::from(o.types == TYPES));
                let mut row = vec![format!("{}, {votes} votes", taste.name())];
                let indices: [fn(&Outcome) -> f64; 4] =
                    [|o| o.oracle, |o| o.index, |o| o.start, |o| o.index - o.oracle];
                row.extend(indices.map(|number| self.estimate(taste, votes, number).to_string()));
                row.push(format!("{} of {}", right.iter().sum::<f64>(), right.len()));
                rows.push(row);
            }
        }
        trial::table(&["annotators", "oracle", "EM-DPO", "k-means alone", "EM-DPO less oracle", "chose 3 types"], &rows)
    }

    fn regrets(&self) -> String {
        let mut rows = Vec::new();
        for (method, name) in METHODS.iter().enumerate() {
            let mut row = vec![(*name).to_owned()];
            for taste in Taste::ALL {
                row.extend(VOTES.map(|votes| self.estimate(taste, votes, |o| o.worst[method]).to_string()));
            }
            rows.push(row);
        }
        let columns = Taste::ALL.iter().flat_map(|taste| VOTES.map(|votes| format!("{}, {votes}", taste.name())));
        let headers: Vec<String> = std::iter::once("votes:".to_owned()).chain(columns).collect();
        trial::table(&headers.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
    }

    /// What the figures allow.
    fn verdicts(&self) -> String {
        let short = self.estimate(Taste::Opposing, MAIN, |o| o.index - o.oracle + SLACK);
        let recovered = self.estimate(Taste::Opposing, MAIN, |o| o.index - o.oracle);
        let [alone, both] = [3, 4];
        let [one, equally] = [0, 2];
        let less = |taste, method, other| self.worst_less(taste, MAIN, method, other);
        [
            format!(
                "Types recovered at {MAIN} votes to within {SLACK} of the oracle's index, where they oppose: the claim {} ({recovered}).",
                verdict(short)
            ),
            format!(
                "The min-max mixture leaves the worst-off type less to regret than one DPO policy where types oppose: the claim {} ({}; against the \
                 types' policies equally {}).",
                verdict(less(Taste::Opposing, one, both)),
                less(Taste::Opposing, both, one),
                less(Taste::Opposing, both, equally),
            ),
            format!(
                "Where there are compromises the one policy beats a min-max mixture of the types' policies alone: this {} ({}). With the one policy \
                 among the columns min-max leaves less to regret than it: this {} ({}).",
                verdict(less(Taste::Compromise, alone, one)),
                less(Taste::Compromise, alone, one),
                verdict(less(Taste::Compromise, one, both)),
                less(Taste::Compromise, both, one),
            ),
        ]
        .join("\n")
    }

    pub fn panels(&self) -> Vec<Panel> {
        let over = |taste: Taste, number: &dyn Fn(&Outcome) -> f64| {
            VOTES.map(|votes| (votes as f64, self.estimate(taste, votes, number))).to_vec()
        };
        let mut types = Vec::new();
        for (taste, colour) in Taste::ALL.into_iter().zip([0, 2]) {
            types.push(Series::new(format!("{}: EM-DPO", taste.name()), colour, Mark::Line, over(taste, &|o| o.index)));
            types.push(Series::new(
                format!("{}: oracle", taste.name()),
                colour,
                Mark::Dashed,
                over(taste, &|o| o.oracle),
            ));
        }
        let methods = |taste: Taste| {
            let series = |(method, name): (usize, &&str)| {
                let mark = if method == METHODS.len() - 1 { Mark::Dashed } else { Mark::Line };
                Series::new(*name, method, mark, over(taste, &|o| o.worst[method]))
            };
            METHODS.iter().enumerate().map(series).collect::<Vec<_>>()
        };
        let panel = |title, y, series| Panel { title, x: "votes of each annotator", y, axis: Axis::Linear, series };
        const REGRET: &str = "regret of the worst-off type";
        vec![
            panel("Who is of which type (1 is the truth)", "adjusted Rand index", types),
            panel("Types that oppose each other (lower is better)", REGRET, methods(Taste::Opposing)),
            panel("A compromise exists (lower is better)", REGRET, methods(Taste::Compromise)),
        ]
    }
}

/// Of a claim that says that the mean is positive.
fn verdict(mean: Estimate) -> &'static str {
    match mean {
        Estimate { error, .. } if !error.is_finite() => "cannot be judged by one seed",
        Estimate { mean, error } if mean > 2.0 * error => "holds",
        Estimate { mean, error } if mean < -2.0 * error => "fails",
        _ => "is not established",
    }
}
