use std::cmp::Ordering;

use super::{DataError, Pair, PairDataset, Result, draws::Draws};

impl PairDataset {
    /// As many indices as there are pairs, drawn with replacement, each pair as likely as another; under a seed the
    /// same on every machine and in every version of this crate. [`select`](Self::select) makes a data set of them;
    /// counted they are the [member weights](crate::reward::RewardBatch::with_member_weights) of a head beside others.
    ///
    /// Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    ///
    /// ```
    /// # fn main() -> prefopt::Result<()> {
    /// use prefopt::data::PairDataset;
    ///
    /// let mut pairs = PairDataset::default();
    /// for token in 0..4 {
    ///     pairs.push(&[1], &[token], &[2, 2])?;
    /// }
    /// // The data of a member of its own, and the counts for a head beside others.
    /// let drawn = pairs.bootstrap(7);
    /// assert_eq!(pairs.select(&drawn)?.len(), 4);
    /// let mut counts = vec![0.0; pairs.len()];
    /// drawn.iter().for_each(|&pair| counts[pair] += 1.0);
    /// assert_eq!(counts.iter().sum::<f64>(), 4.0);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn bootstrap(&self, seed: u64) -> Vec<usize> {
        let mut draws = Draws::new(b"prefopt bootstrap 1", seed, 0);
        (0..self.len()).map(|_| draws.below(self.len() as u64) as usize).collect()
    }

    /// Indices of a resample in which the chosen response is the longer one, in tokens, with frequency `share`: a
    /// member of a family by length bias ρ.
    ///
    /// Of the n pairs whose responses differ in length, round(share · n) are drawn with replacement from those whose
    /// chosen response is the longer one, and the rest of n from the others, in this order: equally many pairs for each
    /// share. "Chosen" is the response so called, also where its [label](Self::labels) is below ½. Under one seed the
    /// draws from either side begin alike for each share; members that should not share them take a seed each.
    ///
    /// Source: Fisch et al. 2024, "Robust preference optimization through reward model distillation", the experiment on
    /// length bias.
    ///
    /// # Errors
    /// [`Domain`](DataError::Domain) unless 0 < `share` < 1, [`NoPairs`](DataError::NoPairs) names a stratum that is empty.
    pub fn where_longer_wins(&self, share: f64, seed: u64) -> Result<Vec<usize>> {
        if !(share > 0.0 && share < 1.0) {
            let parameter = "share of pairs whose longer response is chosen";
            return Err(DataError::Domain { parameter, domain: "above 0 and below 1", value: share });
        }
        let longer = self.stratum(Ordering::Greater, "the stratum whose chosen response is the longer one")?;
        let shorter = self.stratum(Ordering::Less, "the stratum whose chosen response is the shorter one")?;
        let pairs = longer.len() + shorter.len();
        let longer_wins = (share * pairs as f64).round() as usize;
        let mut resample = draw(&longer, longer_wins, seed, 0);
        resample.extend(draw(&shorter, pairs - longer_wins, seed, 1));
        Ok(resample)
    }

    /// The pairs whose chosen response is longer or shorter than the other one.
    fn stratum(&self, order: Ordering, name: &'static str) -> Result<Vec<usize>> {
        let is_in = |pair: Pair<'_>| pair.chosen.len().cmp(&pair.rejected.len()) == order;
        let pairs: Vec<usize> =
            self.iter().enumerate().filter(|(_, pair)| is_in(*pair)).map(|(index, _)| index).collect();
        if pairs.is_empty() { Err(DataError::NoPairs(name)) } else { Ok(pairs) }
    }
}

/// So many of a stratum, with replacement.
fn draw(stratum: &[usize], count: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut draws = Draws::new(b"prefopt length bias 1", seed, stream);
    (0..count).map(|_| stratum[draws.below(stratum.len() as u64) as usize]).collect()
}
