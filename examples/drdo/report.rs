//! What the runs say: tables, pictures, and the sentences that the figures allow.

use serde::Serialize;

use crate::{
    Outcome, Setting, Use,
    methods::{DEFAULT, Method, NUMBERS},
    policy::Judged,
    support::{
        chart::{Axis, Mark, Panel, Series},
        estimate::Estimate,
        trial,
    },
};

type Figure = fn(&Judged) -> f64;
const GOLD: Figure = |judged| judged.gold;
const REPEATING: Figure = |judged| judged.repeating;
const SHIFTED: Figure = |judged| judged.shifted;

#[derive(Serialize)]
pub struct Results {
    numbers: [f64; 5],
    budgets: &'static [usize],
    worlds: Vec<Described>,
    outcomes: Vec<Outcome>,
    choices: Vec<Choice>,
}

#[derive(Serialize)]
struct Described {
    purpose: Use,
    seed: u64,
    certainty: f64,
    oracle_quality: f64,
    reference_gold: f64,
    best_gold: f64,
}

/// A trained policy of every seed: a method, the index of its number, the index of its budget.
#[derive(Debug, Clone, Copy, Serialize)]
struct Point {
    method: Method,
    number: usize,
    budget: usize,
}

/// What is chosen on the tuning worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Search {
    /// β or α at the longest budget.
    Number,
    /// β or α, and when to stop.
    NumberAndBudget,
}

#[derive(Serialize)]
struct Choice {
    search: Search,
    point: Point,
}

impl Results {
    pub fn new(settings: &[Setting], outcomes: Vec<Outcome>, budgets: &'static [usize]) -> Self {
        let described = settings.iter().map(|setting| Described {
            purpose: setting.purpose,
            seed: setting.world.seed,
            certainty: setting.world.certainty,
            oracle_quality: setting.models.quality,
            reference_gold: setting.world.reference_gold(),
            best_gold: setting.world.best_gold(),
        });
        let worlds = described.collect();
        let mut results = Self { numbers: NUMBERS, budgets, worlds, outcomes, choices: Vec::new() };
        for search in [Search::Number, Search::NumberAndBudget] {
            for method in Method::ALL.into_iter().filter(|method| method.is_tuned()) {
                let point = results.best(method, search);
                results.choices.push(Choice { search, point });
            }
        }
        results
    }

    /// The point of largest mean gold reward on the tuning worlds.
    fn best(&self, method: Method, search: Search) -> Point {
        let earliest = if search == Search::Number { self.last() } else { 0 };
        let points = method
            .numbers()
            .flat_map(|number| (earliest..=self.last()).map(move |budget| Point { method, number, budget }));
        let gold = |point: &Point| self.estimate(Use::Tuning, *point, GOLD).mean;
        points.max_by(|a, b| gold(a).total_cmp(&gold(b))).expect("a method has a number and a budget")
    }

    /// Index of the longest budget.
    fn last(&self) -> usize {
        self.budgets.len() - 1
    }

    /// The defaults after the longest budget.
    fn default_of(&self, method: Method) -> Point {
        Point { method, number: DEFAULT, budget: self.last() }
    }

    fn chosen(&self, method: Method, search: Search) -> Point {
        let found = self.choices.iter().find(|choice| choice.search == search && choice.point.method == method);
        found.expect("chosen when the results were made").point
    }

    /// One figure for each seed.
    fn seeds(&self, purpose: Use, at: Point, figure: Figure) -> Vec<f64> {
        let runs = self
            .outcomes
            .iter()
            .filter(|run| run.purpose == purpose && run.method == at.method && run.number == at.number);
        runs.map(|run| figure(&run.judged[at.budget])).collect()
    }

    fn estimate(&self, purpose: Use, at: Point, figure: Figure) -> Estimate {
        Estimate::of(&self.seeds(purpose, at, figure))
    }

    fn less(&self, purpose: Use, drdo: Point, rival: Point, figure: Figure) -> Estimate {
        Estimate::paired(&self.seeds(purpose, drdo, figure), &self.seeds(purpose, rival, figure))
    }

    fn described(&self, purpose: Use, figure: fn(&Described) -> f64) -> f64 {
        Estimate::of(&self.worlds.iter().filter(|w| w.purpose == purpose).map(figure).collect::<Vec<_>>()).mean
    }

    pub fn table(&self) -> String {
        [self.heading(), self.defaults(), self.tuned(), self.decisive(), self.verdict()].join("\n\n")
    }

    fn heading(&self) -> String {
        let seeds = self.worlds.iter().filter(|world| world.purpose == Use::Test).count();
        format!(
            "Expected gold reward at prompts that no learner saw, {seeds} seed(s), tuned on worlds of their own; ± is one standard error.\n\
             The reference has {:+.2}, the best string {:+.2}, a string that repeats a token -2. The better string of a pair wins with\n\
             probability {:.2} on average ({:.2} with decisive annotators), and the oracle's scores correlate with gold at {:.2} ({:.2}).",
            self.described(Use::Test, |w| w.reference_gold),
            self.described(Use::Test, |w| w.best_gold),
            self.described(Use::Test, |w| w.certainty),
            self.described(Use::Decisive, |w| w.certainty),
            self.described(Use::Test, |w| w.oracle_quality),
            self.described(Use::Decisive, |w| w.oracle_quality),
        )
    }

    fn defaults(&self) -> String {
        let steps: Vec<String> = self.budgets.iter().map(|steps| format!("{steps} steps")).collect();
        let mut headers = vec!["at defaults"];
        headers.extend(steps.iter().map(String::as_str));
        headers.extend(["repeating", "shifted", "DRDO less it"]);
        let rows = Method::ALL.map(|method| {
            let last = self.default_of(method);
            let mut row = vec![format!("{} {}", method.name(), method.setting(DEFAULT)).trim().to_owned()];
            let over = (0..self.budgets.len()).map(|budget| self.estimate(Use::Test, Point { budget, ..last }, GOLD));
            row.extend(over.map(|gold| gold.to_string()));
            row.extend(self.end_of_row(Use::Test, last, self.default_of(Method::Drdo)));
            row
        });
        trial::table(&headers, &rows)
    }

    fn tuned(&self) -> String {
        let headers = ["tuned", "searched", "number", "steps", "gold", "repeating", "shifted", "DRDO less it"];
        let row = |choice: &Choice| {
            let Choice { search, point } = choice;
            let searched = match search {
                Search::Number => "number",
                Search::NumberAndBudget => "number, steps",
            };
            let mut row = vec![point.method.name().to_owned(), searched.to_owned(), point.method.setting(point.number)];
            row.push(self.budgets[point.budget].to_string());
            row.push(self.estimate(Use::Test, *point, GOLD).to_string());
            row.extend(self.end_of_row(Use::Test, *point, self.chosen(Method::Drdo, *search)));
            row
        };
        trial::table(&headers, &self.choices.iter().map(row).collect::<Vec<_>>())
    }

    fn decisive(&self) -> String {
        let headers = ["decisive annotators, at defaults", "longest budget", "repeating", "shifted", "DRDO less it"];
        let rows = Method::ALL.map(|method| {
            let point = self.default_of(method);
            let mut row = vec![method.name().to_owned(), self.estimate(Use::Decisive, point, GOLD).to_string()];
            row.extend(self.end_of_row(Use::Decisive, point, self.default_of(Method::Drdo)));
            row
        });
        trial::table(&headers, &rows)
    }

    /// Probability of a repetition, gold on the shifted prompts, DRDO less this method.
    fn end_of_row(&self, purpose: Use, point: Point, drdo: Point) -> [String; 3] {
        let itself = point.method == Method::Drdo;
        [
            format!("{:.3}", self.estimate(purpose, point, REPEATING).mean),
            self.estimate(purpose, point, SHIFTED).to_string(),
            if itself { String::new() } else { self.less(purpose, drdo, point, GOLD).to_string() },
        ]
    }

    /// The claim: DRDO is ahead of DPO and of e-DPO.
    fn verdict(&self) -> String {
        let long = self.budgets[self.last()];
        let number = |method| self.chosen(method, Search::Number);
        let both = |method| self.chosen(method, Search::NumberAndBudget);
        let default = |method| self.default_of(method);
        let sentence = |place: String, purpose: Use, point: &dyn Fn(Method) -> Point, figure: Figure| {
            let less = |rival| self.less(purpose, point(Method::Drdo), point(rival), figure);
            let (dpo, pessimistic) = (less(Method::Dpo), less(Method::Pessimistic));
            let word = if ahead(&dpo) && ahead(&pessimistic) {
                "holds"
            } else if behind(&dpo) || behind(&pessimistic) {
                "fails"
            } else {
                "is not established"
            };
            format!("  {place}, it {word}: {dpo} against DPO, {pessimistic} against e-DPO.")
        };
        let imitation = self.less(Use::Test, default(Method::Drdo), default(Method::Imitation), GOLD);
        let more = if ahead(&imitation) { "is" } else { "is not shown to be" };
        [
            "The claim is that DRDO is ahead of DPO and e-DPO with near-indifferent annotators and out of distribution.".to_owned(),
            sentence(format!("At defaults after {long} steps"), Use::Test, &default, GOLD),
            sentence("There, on the shifted prompts".to_owned(), Use::Test, &default, SHIFTED),
            sentence(format!("With beta and alpha tuned for {long} steps"), Use::Test, &number, GOLD),
            sentence("With beta, alpha and the steps tuned".to_owned(), Use::Test, &both, GOLD),
            sentence("There, on the shifted prompts".to_owned(), Use::Test, &both, SHIFTED),
            sentence(format!("With decisive annotators, at defaults after {long} steps"), Use::Decisive, &default, GOLD),
            format!("At defaults after {long} steps DRDO {more} better than the likelihood of the chosen response alone: {imitation}."),
        ]
        .join("\n")
    }

    pub fn panels(&self) -> Vec<Panel> {
        let over_budgets = |figure: Figure| -> Vec<Series> {
            let series = Method::ALL.map(|method| {
                let points = self.budgets.iter().enumerate().map(|(budget, &steps)| {
                    (steps as f64, self.estimate(Use::Test, Point { budget, ..self.default_of(method) }, figure))
                });
                drawn(method, points.collect())
            });
            series.into()
        };
        let steps: Vec<f64> = self.budgets.iter().map(|&steps| steps as f64).collect();
        let mut gold = over_budgets(GOLD);
        gold.push(self.reference(&steps));
        let mut over_numbers: Vec<Series> = [Method::Dpo, Method::Pessimistic, Method::Drdo, Method::Imitation]
            .map(|method| {
                let points = NUMBERS.iter().enumerate().map(|(index, &number)| {
                    // A method without a number is a level.
                    let at = if method.numbers().contains(&index) { index } else { DEFAULT };
                    (number, self.estimate(Use::Test, Point { number: at, ..self.default_of(method) }, GOLD))
                });
                drawn(method, points.collect())
            })
            .into();
        over_numbers.push(self.reference(&NUMBERS));
        let panel = |title, x, y, series| Panel { title, x, y, axis: Axis::Log, series };
        vec![
            panel("At defaults: gold reward over training", "steps", "expected gold reward", gold),
            panel(
                "After the longest budget: gold reward over β, α",
                "β of DPO and e-DPO, α of DRDO",
                "expected gold reward",
                over_numbers,
            ),
            panel(
                "At defaults: outputs that no pair has shown",
                "steps",
                "probability of a string that repeats a token",
                over_budgets(REPEATING),
            ),
        ]
    }

    fn reference(&self, xs: &[f64]) -> Series {
        let gold = self.described(Use::Test, |w| w.reference_gold);
        Series::exact("reference", 7, Mark::Dashed, &xs.iter().map(|&x| (x, gold)).collect::<Vec<_>>())
    }
}

fn drawn(method: Method, points: Vec<(f64, Estimate)>) -> Series {
    let (colour, mark) = match method {
        Method::Dpo => (0, Mark::Line),
        Method::Pessimistic => (2, Mark::Line),
        Method::Drdo => (3, Mark::Line),
        Method::Printed => (1, Mark::Dashed),
        Method::Imitation => (4, Mark::Dashed),
    };
    Series::new(method.name(), colour, mark, points)
}

fn ahead(difference: &Estimate) -> bool {
    difference.mean > 2.0 * difference.error
}

fn behind(difference: &Estimate) -> bool {
    difference.mean < -2.0 * difference.error
}
