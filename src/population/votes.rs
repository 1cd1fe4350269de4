use rand::{Rng, RngExt, seq::SliceRandom};

use crate::{Error, Result, check};

const SHAPE: &str = "[votes]";

/// Binary votes: annotator i preferred the first, or the second, response of pair j. Grouped by annotator, so that a sum over one
/// annotator's votes reads one run of memory.
///
/// A tie is not a vote: leave it out. An annotator may have several votes on a pair.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::population::Votes;
///
/// // Three votes of two annotators on two pairs.
/// let votes = Votes::new(&[1, 0, 1], &[0, 0, 1], &[true, false, true], (2, 2))?;
/// assert_eq!(votes.of(1).collect::<Vec<_>>(), [(0, true), (1, true)]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Votes {
    pairs: usize,
    /// Annotator i's are `outcomes[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    /// 2j + 1 where the first response of pair j was preferred, 2j where the second was.
    outcomes: Vec<usize>,
}

impl Votes {
    /// Votes as columns, `[votes]` each: who, on which pair, and whether its first response was preferred. `size` is the number of
    /// annotators and of pairs, both counted from 0. A pair may be without votes, an annotator may not.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a vote, [`Length`](Error::Length) for columns of different lengths,
    /// [`Element`](Error::Element) for an annotator and [`VoteOutOfRange`](Error::VoteOutOfRange) for a pair beyond `size`,
    /// [`NoVotes`](Error::NoVotes) for an annotator without one.
    pub fn new(annotators: &[usize], pairs: &[usize], first_preferred: &[bool], size: (usize, usize)) -> Result<Self> {
        if annotators.is_empty() {
            return Err(Error::Empty { tensor: "annotators", shape: SHAPE });
        }
        check::matrix("pairs", SHAPE, "votes", annotators.len(), pairs.len())?;
        check::matrix("first_preferred", SHAPE, "votes", annotators.len(), first_preferred.len())?;
        for (vote, (&annotator, &pair)) in annotators.iter().zip(pairs).enumerate() {
            if annotator >= size.0 {
                let domain = "below the number of annotators";
                return Err(Error::Element {
                    tensor: "annotators",
                    index: vote as i64,
                    domain,
                    value: annotator as f64,
                });
            }
            if pair >= size.1 {
                return Err(Error::VoteOutOfRange { vote, pair, pairs: size.1 });
            }
        }
        let outcomes = pairs.iter().zip(first_preferred).map(|(&pair, &first)| 2 * pair + usize::from(first));
        let votes = Self::grouped(annotators, outcomes, size);
        match (0..size.0).find(|&annotator| votes.outcomes(annotator).is_empty()) {
            Some(annotator) => Err(Error::NoVotes { annotator }),
            None => Ok(votes),
        }
    }

    /// By counting: the order of an annotator's votes is kept.
    fn grouped(annotators: &[usize], outcomes: impl Iterator<Item = usize>, size: (usize, usize)) -> Self {
        let mut starts = vec![0; size.0 + 1];
        for &annotator in annotators {
            starts[annotator + 1] += 1;
        }
        for annotator in 0..size.0 {
            starts[annotator + 1] += starts[annotator];
        }
        let (mut next, mut sorted) = (starts.clone(), vec![0; annotators.len()]);
        for (&annotator, outcome) in annotators.iter().zip(outcomes) {
            sorted[next[annotator]] = outcome;
            next[annotator] += 1;
        }
        Self { pairs: size.1, starts, outcomes: sorted }
    }

    /// Number of annotators.
    pub fn annotators(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of pairs, those without votes included.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Number of votes.
    #[allow(clippy::len_without_is_empty)] // only what is held out may be empty
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// An annotator's votes: the pair, and whether its first response was preferred. None for an annotator that there is not.
    pub fn of(&self, annotator: usize) -> impl Iterator<Item = (usize, bool)> {
        let own = if annotator < self.annotators() { self.outcomes(annotator) } else { &[] };
        own.iter().map(|&outcome| (outcome / 2, outcome % 2 == 1))
    }

    /// All votes, annotator by annotator: annotator, pair, and whether its first response was preferred.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, bool)> {
        (0..self.annotators())
            .flat_map(move |annotator| self.of(annotator).map(move |(pair, first)| (annotator, pair, first)))
    }

    /// 2j + 1 for a vote for the first response of pair j, 2j for the second.
    pub(super) fn outcomes(&self, annotator: usize) -> &[usize] {
        &self.outcomes[self.starts[annotator]..self.starts[annotator + 1]]
    }

    /// Votes to fit on, and votes held out to judge by: of each annotator's n votes, `share` · n rounded at random to a whole number
    /// without bias, chosen at random, and at most n − 1. The held-out part has the same annotators and pairs; annotators may be
    /// without votes there.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless 0 < `share` < 1.
    pub fn hold_out(&self, share: f64, rng: &mut impl Rng) -> Result<(Self, Self)> {
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::Domain { parameter: "held-out share", domain: "above 0 and below 1", value: share });
        }
        let empty = || Self { pairs: self.pairs, starts: vec![0], outcomes: Vec::new() };
        let (mut kept, mut held_out) = (empty(), empty());
        for annotator in 0..self.annotators() {
            let mut own = self.outcomes(annotator).to_vec();
            own.shuffle(rng);
            let out = (share * own.len() as f64 + rng.random::<f64>()) as usize;
            let (out, rest) = own.split_at(out.min(own.len().saturating_sub(1)));
            held_out.push(out);
            kept.push(rest);
        }
        Ok((kept, held_out))
    }

    /// The votes of one annotator more.
    fn push(&mut self, outcomes: &[usize]) {
        self.outcomes.extend_from_slice(outcomes);
        self.starts.push(self.outcomes.len());
    }
}
