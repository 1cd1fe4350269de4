//! Tables, the sentence that they allow, and the picture.

use serde::Serialize;

use crate::{
    heads::{Method, Outcome},
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial::table,
    },
};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    votes: Vec<usize>,
    outcomes: Vec<Outcome>,
    /// The population's distribution of the item that the picture shows.
    shown: Vec<f64>,
}

impl Results {
    pub fn new(votes: &[usize], outcomes: Vec<Outcome>, shown: Vec<f64>) -> Self {
        Self { votes: votes.to_vec(), outcomes, shown }
    }

    fn of(&self, method: Method, votes: usize) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| (outcome.method, outcome.votes) == (method, votes))
    }

    fn values(&self, method: Method, votes: usize, value: fn(&Outcome) -> f64) -> Vec<f64> {
        self.of(method, votes).map(value).collect()
    }

    fn distance(&self, method: Method, votes: usize) -> Estimate {
        Estimate::of(&self.values(method, votes, |outcome| outcome.distance))
    }

    /// Distance of transport less that of another method, paired by seed: below 0 transport is nearer.
    fn lead(&self, other: Method, votes: usize) -> Estimate {
        let of = |method| self.values(method, votes, |outcome| outcome.distance);
        Estimate::paired(&of(Method::Transport), &of(other))
    }

    /// A row for each method, a column for each number of votes.
    fn grid(&self, title: &str, methods: &[Method], cell: impl Fn(Method, usize) -> String) -> String {
        let columns: Vec<String> = self.votes.iter().map(|&votes| counted(votes)).collect();
        let headers: Vec<&str> = [title].into_iter().chain(columns.iter().map(String::as_str)).collect();
        let row = |&method: &Method| {
            let cells = self.votes.iter().map(|&votes| cell(method, votes));
            [method.name().to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
        };
        table(&headers, &methods.iter().map(row).collect::<Vec<_>>())
    }

    pub fn table(&self) -> String {
        let all = &Method::ALL;
        let others: Vec<Method> = all.iter().copied().filter(|&method| method != Method::Transport).collect();
        let seeds = self.of(Method::Transport, self.votes[0]).count();
        let distances =
            self.grid("W1 to the population", all, |method, votes| format!("{:.3}", self.distance(method, votes)));
        let leads = self.grid("transport less", &others, |other, votes| format!("{:.3}", self.lead(other, votes)));
        let errors = self.grid("error of the mean grade", all, |method, votes| {
            format!("{:.3}", Estimate::of(&self.values(method, votes, |outcome| outcome.grade_error)))
        });
        let rates = self.grid("learning rate", all, |method, votes| {
            self.of(method, votes).next().map_or_else(String::new, |outcome| outcome.rate.to_string())
        });
        format!(
            "Predicted against true distributions of held-out items, in grades; {seeds} seed(s), ± one standard error.\n\n\
             {distances}\n\nThe same, paired by seed (below 0 transport is nearer):\n\n{leads}\n\n{errors}\n\n\
             Chosen on other worlds:\n\n{rates}\n\n{}\n{}",
            self.claim(),
            self.against_cross_entropy()
        )
    }

    /// What the figures say of transport against the ordered logit.
    fn claim(&self) -> String {
        let lead = |i: usize| self.lead(Method::OrderedLogit, self.votes[i]);
        let last = self.votes.len() - 1;
        let most = self.votes[last];
        let from = (0..=last).rev().take_while(|&i| is_below_zero(lead(i))).last();
        match from {
            Some(i) if i == last => {
                format!(
                    "The claim holds at {most} votes an item alone: transport less ordered logit {:.3}.",
                    lead(last)
                )
            }
            Some(i) => format!(
                "The claim holds from {} an item on: transport less ordered logit {:.3} there, {:.3} at {most}.",
                counted(self.votes[i]),
                lead(i),
                lead(last)
            ),
            None if is_above_zero(lead(last)) => {
                format!("The claim fails: at {most} votes an item transport less ordered logit is {:.3}.", lead(last))
            }
            None => {
                format!(
                    "The claim is not established: at {most} votes an item transport less ordered logit is {:.3}.",
                    lead(last)
                )
            }
        }
    }

    fn against_cross_entropy(&self) -> String {
        let at = |holds: fn(Estimate) -> bool| {
            let votes = self.votes.iter().filter(|&&votes| holds(self.lead(Method::CrossEntropy, votes)));
            let votes: Vec<String> = votes.map(usize::to_string).collect();
            if votes.is_empty() { "none".to_owned() } else { votes.join(", ") }
        };
        let level: fn(Estimate) -> bool = |lead| !is_below_zero(lead) && !is_above_zero(lead);
        format!(
            "Transport and cross-entropy on the same head: transport is nearer at these numbers of votes: {}; farther at: {}; \
             no difference shown at: {}.",
            at(is_below_zero),
            at(is_above_zero),
            at(level)
        )
    }

    pub fn panels(&self) -> [Panel; 2] {
        let line = |method: Method, colour: usize, mark: Mark| {
            let points = self.votes.iter().map(|&votes| (votes as f64, self.distance(method, votes)));
            Series::new(method.name(), colour, mark, points.collect())
        };
        let distances = Panel {
            title: "How far predictions are from the crowd",
            x: "votes for each training item",
            y: "1-Wasserstein distance in grades, held-out items",
            axis: Axis::Log,
            series: vec![
                line(Method::OrderedLogit, 0, Mark::Line),
                line(Method::Transport, 3, Mark::Line),
                line(Method::SquaredCdf, 4, Mark::Line),
                line(Method::CrossEntropy, 2, Mark::Line),
                line(Method::TransportOfShares, 3, Mark::Dashed),
                line(Method::CrossEntropyOfShares, 2, Mark::Dashed),
            ],
        };
        let most = self.votes[self.votes.len() - 1];
        let over_grades = |probabilities: &[f64]| -> Vec<(f64, f64)> {
            probabilities.iter().enumerate().map(|(grade, &p)| (grade as f64, p)).collect()
        };
        let prediction = |method: Method, colour: usize| {
            let shown = self.of(method, most).next().map_or_else(Vec::new, |outcome| over_grades(&outcome.shown));
            Series::exact(method.name(), colour, Mark::Line, &shown)
        };
        let item = Panel {
            title: "One held-out item that divides the crowd, most votes",
            x: "grade",
            y: "share of the crowd",
            axis: Axis::Linear,
            series: vec![
                Series::exact("the crowd", 6, Mark::Points, &over_grades(&self.shown)),
                prediction(Method::OrderedLogit, 0),
                prediction(Method::Transport, 3),
                prediction(Method::CrossEntropy, 2),
            ],
        };
        [distances, item]
    }
}

fn counted(votes: usize) -> String {
    format!("{votes} vote{}", if votes == 1 { "" } else { "s" })
}

/// By two standard errors. One seed has none and shows nothing.
fn is_below_zero(estimate: Estimate) -> bool {
    estimate.mean < -2.0 * estimate.error
}

fn is_above_zero(estimate: Estimate) -> bool {
    estimate.mean > 2.0 * estimate.error
}
