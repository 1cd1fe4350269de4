//! The table, its sentences and the panels.

use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use crate::{
    Betas, Size,
    models::{Fitted, Model},
    policies::{self, Method, Outcome},
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial::table,
    },
    world::{Game, Judged},
    worlds,
};

/// A row of the policies' table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Row {
    pub method: Method,
    /// 0: the last policy; 1: the mean of all.
    pub iterate: usize,
}

const LAST: Row = Row { method: Method::Gpo, iterate: 0 };
const MEAN: Row = Row { method: Method::Gpo, iterate: 1 };
const RIVALS: [Row; 4] = [
    Row { method: Method::GpoOnRewards, iterate: 0 },
    Row { method: Method::GpoOnRewards, iterate: 1 },
    Row { method: Method::Distillation, iterate: 0 },
    Row { method: Method::Dpo, iterate: 0 },
];
pub const ROWS: [Row; 6] = [LAST, MEAN, RIVALS[0], RIVALS[1], RIVALS[2], RIVALS[3]];

impl Row {
    fn name(self) -> &'static str {
        match (self.method, self.iterate) {
            (Method::Gpo, 0) => "GPO, last iterate",
            (Method::Gpo, _) => "GPO, mean iterate",
            (Method::GpoOnRewards, 0) => "GPO on Bradley–Terry, last",
            (Method::GpoOnRewards, _) => "GPO on Bradley–Terry, mean",
            (Method::Distillation, _) => "d-DPO from Bradley–Terry",
            (Method::Dpo, _) => "DPO",
        }
    }
}

/// What was measured in a game: a policy's worth, or part of it.
type Part = fn(&Judged) -> Option<f64>;

/// Policies that are not tuned: rows above the others.
const BASELINES: [&str; 3] = ["before tuning", "exact self-play, last", "exact self-play, mean"];

/// What one of them is worth, one a seed.
#[derive(Debug, Serialize)]
struct Baseline {
    game: Game,
    name: &'static str,
    judged: Vec<Judged>,
}

#[derive(Debug, Serialize)]
pub struct Results {
    seeds: Vec<u64>,
    fitted: Vec<Fitted>,
    /// Largest share of strict preferences that any ranking of kinds agrees with, by game and seed.
    ceilings: Vec<(Game, Vec<f64>)>,
    betas: Vec<(Game, Row, f64)>,
    outcomes: Vec<Outcome>,
    baselines: Vec<Baseline>,
}

impl Results {
    pub fn new(seeds: &[u64], fitted: Vec<Fitted>, outcomes: Vec<Outcome>, betas: &Betas, size: &Size) -> Result<Self> {
        let mut baselines = Vec::new();
        for game in Game::PLAYED {
            let mut judged: [Vec<Judged>; 3] = Default::default();
            for world in worlds(game, seeds, size) {
                let reference = world.test.shares(&world.test.reference(), world.kinds())?;
                let [last, mean] = policies::exact(&world, betas[&(game, MEAN)], size.rounds)?;
                judged.iter_mut().zip([world.judge(&reference)?, last, mean]).for_each(|(all, one)| all.push(one));
            }
            let named = BASELINES.into_iter().zip(judged);
            baselines.extend(named.map(|(name, judged)| Baseline { game, name, judged }));
        }
        let ceiling = |game| (game, worlds(game, seeds, size).map(|world| world.best_ranking()).collect::<Vec<f64>>());
        Ok(Self {
            seeds: seeds.to_vec(),
            fitted,
            ceilings: Game::ALL.into_iter().map(ceiling).collect(),
            betas: betas.iter().map(|(&(game, row), &beta)| (game, row, beta)).collect(),
            outcomes,
            baselines,
        })
    }

    /// One number a seed.
    fn accuracies(&self, game: Game, model: Model) -> Vec<f64> {
        self.fitted.iter().filter(|f| f.game == game && f.model == model).map(|f| f.accuracy).collect()
    }

    /// A policy's runs at its β, one a seed.
    fn runs(&self, game: Game, row: Row) -> impl Iterator<Item = &Outcome> {
        let beta = self.betas.iter().find(|(g, r, _)| (*g, *r) == (game, row)).map(|(_, _, beta)| *beta);
        self.outcomes.iter().filter(move |o| o.game == game && o.method == row.method && Some(o.beta) == beta)
    }

    /// One number a seed, or none where the part has no meaning in this game.
    fn values(&self, game: Game, row: Row, part: Part) -> Vec<f64> {
        self.runs(game, row).filter_map(|outcome| part(&outcome.end(row.iterate)?)).collect()
    }

    /// The mean over games, one number a seed.
    fn over(&self, games: &[Game], values: impl Fn(Game) -> Vec<f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.seeds.len()];
        for &game in games {
            sums.iter_mut().zip(values(game)).for_each(|(sum, value)| *sum += value / games.len() as f64);
        }
        sums
    }

    pub fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        for model in Model::ALL {
            let cells = Game::ALL.map(|game| plain(&self.accuracies(game, model), 3));
            rows.push([vec![model.name()], cells.to_vec()].concat());
        }
        let ceilings = self.ceilings.iter().map(|(_, values)| plain(values, 3));
        rows.push([vec!["best ranking of kinds".to_owned()], ceilings.collect()].concat());

        let mut text = "Accuracy on strict preferences between candidates of held-out prompts".to_owned();
        text += &format!("; {} seed(s).\n\n{}", self.seeds.len(), table(&headers(&names(&Game::ALL)), &rows));
        text += "\n\nExploitability, log-odds: what the best kind gains against the policy, 0 for a Nash mixture.\n\n";
        text += &self.policies(&Game::PLAYED, |judged| Some(judged.exploitability));
        text += "\n\nTotal variation from the Nash mixture, where there is only one.\n\n";
        text += &self.policies(&Game::MIXED, |judged| judged.distance);
        text += "\n\nMass on the kind that beats every other.\n\n";
        text += &self.policies(&Game::WON, |judged| judged.winner);
        text += "\n\nExact self-play is on the true scores, as many rounds, at the beta of GPO's mean iterate.\n\n";
        self.write_sentences(&mut text).expect("a string takes all");
        text
    }

    fn policies(&self, games: &[Game], part: Part) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        for name in BASELINES {
            let cells = games.iter().map(|&game| {
                let found = self.baselines.iter().filter(|b| b.game == game && b.name == name);
                plain(&found.flat_map(|b| &b.judged).filter_map(part).collect::<Vec<_>>(), 2)
            });
            rows.push([vec![name.to_owned()], cells.collect()].concat());
        }
        for row in ROWS {
            let cells = games.iter().map(|&game| plain(&self.values(game, row, part), 2));
            rows.push([vec![row.name().to_owned()], cells.collect()].concat());
        }
        table(&headers(&names(games)), &rows)
    }

    fn write_sentences(&self, t: &mut String) -> std::fmt::Result {
        let cycles = &Game::ALL[..4];
        let accuracy = |model| self.over(cycles, |game| self.accuracies(game, model));
        let gain = Estimate::paired(&accuracy(Model::General(2)), &accuracy(Model::BradleyTerry));
        writeln!(
            t,
            "Cycles of 3, 4, 5 and 7 are told right more often with k = 2 than by Bradley–Terry: {}.",
            verdict(gain)
        )?;

        let distance = |row| self.over(&Game::MIXED, |game| self.values(game, row, |judged| judged.distance));
        let nearer = Estimate::paired(&distance(LAST), &distance(MEAN));
        writeln!(
            t,
            "Cycles of 3 and 5: GPO's mean iterate is nearer to the Nash mixture than its last: {}.",
            verdict(nearer)
        )?;
        let rival = best(|row| -Estimate::of(&distance(row)).mean);
        let nearer = Estimate::paired(&distance(rival), &distance(MEAN));
        writeln!(t, "and nearer than the best rival ({}): {}.", rival.name(), verdict(nearer))?;

        for game in Game::WON {
            let mass = |row| self.values(game, row, |judged| judged.winner);
            let rival = best(|row| Estimate::of(&mass(row)).mean);
            let more = Estimate::paired(&mass(LAST), &mass(rival));
            let (game, rival) = (game.name(), rival.name());
            writeln!(
                t,
                "{game}: GPO's last iterate has more mass on the winner than the best rival ({rival}): {}.",
                verdict(more)
            )?;
        }
        writeln!(t, "The transitive game is the control: Bradley–Terry holds there, and no lead is claimed.")?;
        writeln!(
            t,
            "Differences are paired by seed, ± one standard error; the best rival is chosen on this table, in its favour."
        )
    }

    pub fn panels(&self) -> Vec<Panel> {
        let length = |game: &Game| if let Game::Cycle(n) = game { Some(*n as f64) } else { None };
        let cycles: Vec<(f64, Game)> = Game::ALL.iter().filter_map(|game| Some((length(game)?, *game))).collect();
        let accuracy = |(colour, model): (usize, Model)| {
            let points = cycles.iter().map(|&(n, game)| (n, Estimate::of(&self.accuracies(game, model))));
            Series::new(model.name(), colour, Mark::Line, points.collect())
        };
        let mut accuracies: Vec<Series> = Model::ALL.into_iter().enumerate().map(accuracy).collect();
        let ceiling: Vec<(f64, f64)> = cycles.iter().map(|&(n, _)| (n, 1.0 - 1.0 / n)).collect();
        accuracies.push(Series::exact("best ranking", 6, Mark::Dashed, &ceiling));

        let mut distances = Vec::new();
        for (colour, game) in [(2, Game::Cycle(3)), (0, Game::Cycle(5))] {
            for (iterate, name, mark) in [(0, "last", Mark::Dashed), (1, "mean", Mark::Line)] {
                let points = self.by_round(game, MEAN, iterate, |judged| judged.distance);
                distances.push(Series::new(format!("{name}, {}", game.name()), colour, mark, points));
            }
        }
        let mut masses = Vec::new();
        for (colour, row) in [(2, LAST), (0, RIVALS[0])] {
            let points = self.by_round(Game::Condorcet, row, 0, |judged| judged.winner);
            masses.push(Series::new(row.name(), colour, Mark::Line, points));
        }
        let rounds = masses[0].points.last().map_or(1.0, |(round, _)| *round);
        for (colour, row) in [(3, RIVALS[2]), (6, RIVALS[3])] {
            let mass = Estimate::of(&self.values(Game::Condorcet, row, |judged| judged.winner)).mean;
            masses.push(Series::exact(row.name(), colour, Mark::Dashed, &[(1.0, mass), (rounds, mass)]));
        }
        let panel = |title, x, y, series| Panel { title, x, y, axis: Axis::Linear, series };
        vec![
            panel("Who can rank a cycle", "length of the cycle", "accuracy on held-out prompts", accuracies),
            panel("GPO on cycles", "round", "total variation from the Nash mixture", distances),
            panel("A Condorcet winner", "round", "mass on the winner", masses),
        ]
    }

    /// Means over seeds after each round, from 1.
    fn by_round(&self, game: Game, row: Row, iterate: usize, part: Part) -> Vec<(f64, Estimate)> {
        let runs: Vec<&Outcome> = self.runs(game, row).collect();
        let rounds = runs.first().map_or(0, |run| run.rounds.len());
        let at = |round: usize| {
            let values: Vec<f64> = runs.iter().filter_map(|run| part(&run.rounds[round][iterate])).collect();
            ((round + 1) as f64, Estimate::of(&values))
        };
        (0..rounds).map(at).collect()
    }
}

fn names(games: &[Game]) -> Vec<String> {
    games.iter().map(|game| game.name()).collect()
}

fn headers(names: &[String]) -> Vec<&str> {
    std::iter::once("").chain(names.iter().map(String::as_str)).collect()
}

/// Mean and standard error of what has no sign.
fn plain(values: &[f64], digits: usize) -> String {
    let Estimate { mean, error } = Estimate::of(values);
    if error.is_finite() { format!("{mean:.digits$}±{error:.digits$}") } else { format!("{mean:.digits$}") }
}

/// The rival of largest value.
fn best(value: impl Fn(Row) -> f64) -> Row {
    let order = |a: &Row, b: &Row| value(*a).total_cmp(&value(*b));
    RIVALS.into_iter().max_by(order).unwrap_or(RIVALS[0])
}

/// What the figures say of a claim that the difference is positive, by two standard errors.
fn verdict(difference: Estimate) -> String {
    let word = match difference.mean / difference.error {
        errors if errors > 2.0 => "holds",
        errors if errors < -2.0 => "fails",
        errors if errors.is_finite() => "is not established",
        _ => "cannot be told from one seed",
    };
    format!("this {word}, {difference:.3} ({})", difference.errors())
}
