//! Games between kinds of responses, prompts with candidates of each kind, and noisy labels.

use anyhow::Result;
use ndarray::{Array1, Array2};
use prefopt::population::SelfPlay;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    Size,
    support::network::{matrix, normal, numbers},
};

/// Candidate responses to a prompt.
pub const CANDIDATES: usize = 8;
/// Numbers that the prompt and the response give: the former say nothing about preferences.
const PROMPT: usize = 2;
const RESPONSE: usize = 6;
pub const FEATURES: i64 = (PROMPT + RESPONSE) as i64;
/// Spread of a response's numbers around the centre of its kind, whose own spread is 1.
const NOISE: f64 = 0.2;
/// By how many nats the reference favours each candidate of one kind.
const SKEW: f64 = 1.5;

/// How kinds of responses beat each other, in log-odds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Game {
    /// Each kind beats the next by 1 to 2.5 and ties with the others.
    Cycle(usize),
    /// Six kinds, every preference drawn at random.
    Tournament,
    /// The first kind beats each of the others by .8. The second beats the other three by 2.5, so it wins more comparisons in all: it is
    /// the Borda winner, to which Bradley–Terry gives the highest score. The last three are a cycle.
    Condorcet,
    /// Bradley–Terry holds: five kinds, each .8 above the next.
    Transitive,
}

impl Game {
    pub const ALL: [Self; 7] = [
        Self::Cycle(3),
        Self::Cycle(4),
        Self::Cycle(5),
        Self::Cycle(7),
        Self::Tournament,
        Self::Condorcet,
        Self::Transitive,
    ];
    /// Those that policies play.
    pub const PLAYED: [Self; 6] =
        [Self::Cycle(3), Self::Cycle(4), Self::Cycle(5), Self::Tournament, Self::Condorcet, Self::Transitive];
    /// Those whose Nash mixture is one and known in closed form; that of a cycle of even length may not be unique.
    pub const MIXED: [Self; 2] = [Self::Cycle(3), Self::Cycle(5)];
    /// Those with a kind that beats every other.
    pub const WON: [Self; 2] = [Self::Condorcet, Self::Transitive];

    pub fn name(self) -> String {
        match self {
            Self::Cycle(n) => format!("cycle of {n}"),
            Self::Tournament => "tournament".into(),
            Self::Condorcet => "Condorcet".into(),
            Self::Transitive => "transitive".into(),
        }
    }

    /// Log-odds that the row's kind is preferred to the column's.
    fn scores(self, rng: &mut ChaCha8Rng) -> Array2<f64> {
        let wins: Vec<(usize, usize, f64)> = match self {
            Self::Cycle(n) => (0..n).map(|i| (i, (i + 1) % n, rng.random_range(1.0..2.5))).collect(),
            Self::Tournament => {
                let pairs = (0..6).flat_map(|i| (0..i).map(move |j| (i, j)));
                pairs.map(|(i, j)| (i, j, 1.2 * normal(rng, 1)[0])).collect()
            }
            Self::Condorcet => {
                let (narrow, wide) = ((1..5).map(|j| (0, j, 0.8)), (2..5).map(|j| (1, j, 2.5)));
                narrow.chain(wide).chain([(2, 3, 1.5), (3, 4, 1.5), (4, 2, 1.5)]).collect()
            }
            Self::Transitive => {
                let pairs = (0..5).flat_map(|i| (i + 1..5).map(move |j| (i, j)));
                pairs.map(|(i, j)| (i, j, 0.8 * (j - i) as f64)).collect()
            }
        };
        let kinds = 1 + wins.iter().map(|&(i, j, _)| i.max(j)).max().unwrap_or_default();
        let mut scores = Array2::<f64>::zeros((kinds, kinds));
        for (i, j, odds) in wins {
            scores[[i, j]] = odds;
            scores[[j, i]] = -odds;
        }
        scores
    }
}

/// One draw of a game: what is true, what is seen and what is labelled.
#[derive(Debug)]
pub struct World {
    pub game: Game,
    pub seed: u64,
    pub scores: Array2<f64>,
    pub train: Prompts,
    pub test: Prompts,
    pub pairs: Pairs,
}

/// Prompts with their candidates, `[prompts · candidates]`. On the host, since a tensor cannot be shared between threads.
#[derive(Debug)]
pub struct Prompts {
    pub kinds: Vec<usize>,
    features: Vec<f64>,
    logits: Vec<f64>,
}

/// Labelled pairs of training candidates, by their place in [`Prompts`].
#[derive(Debug, Default)]
pub struct Pairs {
    pub chosen: Vec<usize>,
    pub rejected: Vec<usize>,
}

/// What a policy is worth in a game.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Judged {
    /// What the best kind gains against it, log-odds.
    pub exploitability: f64,
    /// Total variation from the Nash mixture, where that is one.
    pub distance: Option<f64>,
    /// Mass on the kind that beats every other, where there is one.
    pub winner: Option<f64>,
}

impl World {
    /// All worlds of a game and seed are the same, whoever asks.
    pub fn new(game: Game, seed: u64, size: &Size) -> Self {
        let place = Game::ALL.iter().position(|&other| other == game).unwrap_or_default();
        let mut rng = ChaCha8Rng::seed_from_u64(seed * 100 + place as u64);
        let scores = game.scores(&mut rng);
        let kinds = scores.nrows();
        let centres = normal(&mut rng, kinds * RESPONSE);
        // Never the first, the winner where there is one.
        let favourite = rng.random_range(1..kinds);
        let [train, test] = [0, 1].map(|_| Prompts::new(size.prompts, kinds, &centres, favourite, &mut rng));
        let pairs = Pairs::new(&train, &scores, size.pairs, &mut rng);
        Self { game, seed, scores, train, test, pairs }
    }

    pub fn kinds(&self) -> usize {
        self.scores.nrows()
    }

    /// Largest share of strict preferences between kinds that a ranking can agree with, over the sets that may stand at its top.
    pub fn best_ranking(&self) -> f64 {
        let n = self.kinds();
        let mut agreed = vec![0_usize; 1 << n];
        for set in 1..1_usize << n {
            for last in (0..n).filter(|&kind| (set >> kind) & 1 == 1) {
                let above = set & !(1 << last);
                let wins = (0..n).filter(|&kind| (above >> kind) & 1 == 1 && self.scores[[kind, last]] > 0.0).count();
                agreed[set] = agreed[set].max(agreed[above] + wins);
            }
        }
        agreed[(1 << n) - 1] as f64 / self.scores.iter().filter(|s| **s > 0.0).count() as f64
    }

    /// The mixture that no kind beats: on an odd cycle row i says s(i, i+1) x_{i+1} = s(i−1, i) x_{i−1}.
    fn nash(&self) -> Option<Array1<f64>> {
        if !Game::MIXED.contains(&self.game) {
            return None;
        }
        let n = self.kinds();
        let (mut mixture, mut at) = (Array1::<f64>::ones(n), 0);
        for _ in 1..n {
            let (middle, next) = ((at + 1) % n, (at + 2) % n);
            mixture[next] = mixture[at] * self.scores[[at, middle]] / self.scores[[middle, next]];
            at = next;
        }
        let total = mixture.sum();
        Some(mixture / total)
    }

    /// Means over prompts of what each prompt's mixture of kinds is worth.
    pub fn judge(&self, shares: &[Array1<f64>]) -> Result<Judged> {
        let uniform = Array1::from_elem(self.kinds(), 1.0 / self.kinds() as f64);
        let game = SelfPlay::new(self.scores.clone(), uniform, 1.0)?;
        let gains =
            shares.iter().map(|share| game.exploitability(share.view())).collect::<prefopt::Result<Vec<_>>>()?;
        let away = |nash: &Array1<f64>, share: &Array1<f64>| 0.5 * (share - nash).mapv(f64::abs).sum();
        Ok(Judged {
            exploitability: mean(gains.into_iter()),
            distance: self.nash().map(|nash| mean(shares.iter().map(|share| away(&nash, share)))),
            winner: Game::WON.contains(&self.game).then(|| mean(shares.iter().map(|share| share[0]))),
        })
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

impl Prompts {
    fn new(prompts: usize, kinds: usize, centres: &[f64], favourite: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut this = Self { kinds: Vec::new(), features: Vec::new(), logits: Vec::new() };
        for _ in 0..prompts {
            let prompt = normal(rng, PROMPT);
            let offset = rng.random_range(0..kinds);
            for candidate in 0..CANDIDATES {
                let kind = (candidate + offset) % kinds;
                let around = &centres[kind * RESPONSE..][..RESPONSE];
                this.kinds.push(kind);
                this.features.extend(&prompt);
                this.features.extend(normal(rng, RESPONSE).iter().zip(around).map(|(noise, at)| at + NOISE * noise));
                this.logits.push(if kind == favourite { SKEW } else { 0.0 });
            }
        }
        this
    }

    /// `[prompts · candidates, FEATURES]`.
    pub fn features(&self) -> Tensor {
        matrix(&self.features, FEATURES)
    }

    /// log π_ref, `[prompts, candidates]`.
    pub fn reference(&self) -> Tensor {
        matrix(&self.logits, CANDIDATES as i64).log_softmax(-1, Kind::Float)
    }

    /// Mass on each kind in each prompt, from log π, `[prompts, candidates]`.
    pub fn shares(&self, logps: &Tensor, kinds: usize) -> Result<Vec<Array1<f64>>> {
        let logps = numbers(logps)?;
        let prompts = logps.chunks(CANDIDATES).zip(self.kinds.chunks(CANDIDATES));
        let shares = prompts.map(|(logps, of)| {
            let mut share = Array1::<f64>::zeros(kinds);
            logps.iter().zip(of).for_each(|(logp, &kind)| share[kind] += logp.exp());
            let total = share.sum();
            share / total
        });
        Ok(shares.collect())
    }
}

impl Pairs {
    /// Candidates of two kinds, the preferred one drawn at the true odds.
    fn new(prompts: &Prompts, scores: &Array2<f64>, each: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut this = Self::default();
        for (prompt, kinds) in prompts.kinds.chunks(CANDIDATES).enumerate() {
            for _ in 0..each {
                let (i, j) = loop {
                    let (i, j) = (rng.random_range(0..CANDIDATES), rng.random_range(0..CANDIDATES));
                    if kinds[i] != kinds[j] {
                        break (i, j);
                    }
                };
                let wins = rng.random::<f64>() < 1.0 / (1.0 + (-scores[[kinds[i], kinds[j]]]).exp());
                let (chosen, rejected) = if wins { (i, j) } else { (j, i) };
                this.chosen.push(prompt * CANDIDATES + chosen);
                this.rejected.push(prompt * CANDIDATES + rejected);
            }
        }
        this
    }
}
