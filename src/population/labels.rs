//! What a population thinks of an item, from a few votes: the posterior mean of a Dirichlet–categorical model.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use crate::{Error, Result, check, domain::Concentration};

const PRIOR: &str = "prior_mean";
const SHAPE: &str = "[categories]";

/// Items below which a second thread costs more than it saves.
const ITEMS_PER_THREAD: usize = 1024;

/// Dirichlet(κ p₀) over ordered categories: what is believed of an item before its first vote.
///
/// p₀ `[categories]` is its mean; κ, in votes, is what it weighs: after κ votes label and votes count alike.
///
/// Source: Li et al. 2024 ("Aligning crowd feedback via distributional preference reward modeling"), the structure. The
/// constants are reconstructed, so they are yours: a uniform p₀ says nothing, the shares of all votes of a data set say
/// what is common, and κ between 1 and the number of categories leaves the word to a handful of votes.
#[derive(Debug, Clone, PartialEq)]
pub struct DirichletPrior {
    mean: Array1<f64>,
    concentration: Concentration,
}

impl DirichletPrior {
    /// # Errors
    /// [`Empty`](Error::Empty) without a category, [`Element`](Error::Element) for a probability that is not positive,
    /// [`Simplex`](Error::Simplex) where they do not sum to 1, [`Domain`](Error::Domain) unless κ is positive and finite.
    pub fn new(mean: Array1<f64>, concentration: f64) -> Result<Self> {
        if mean.is_empty() {
            return Err(Error::Empty { tensor: PRIOR, shape: SHAPE });
        }
        check::probabilities(PRIOR, mean.view(), 0)?;
        if let Some((index, &value)) = mean.iter().enumerate().find(|(_, p)| **p == 0.0) {
            let domain = "positive (a vote for it would be impossible)";
            return Err(Error::Element { tensor: PRIOR, index: index as i64, domain, value });
        }
        Ok(Self { mean, concentration: Concentration::new(concentration)? })
    }

    /// The same chance for every category.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn uniform(categories: usize, concentration: f64) -> Result<Self> {
        Self::new(Array1::from_elem(categories, (categories as f64).recip()), concentration)
    }

    /// Number of categories.
    pub fn categories(&self) -> usize {
        self.mean.len()
    }

    /// p₀, `[categories]`.
    pub fn mean(&self) -> ArrayView1<'_, f64> {
        self.mean.view()
    }

    /// κ, in votes.
    pub fn concentration(&self) -> Concentration {
        self.concentration
    }

    /// The posterior before the first vote.
    pub fn posterior(&self) -> DirichletLabel {
        DirichletLabel { counts: Array1::zeros(self.categories()), prior: self.clone() }
    }

    /// (κ p₀ + n)/(κ + Σn) for one category's p₀ and n at a time.
    fn updated<'a>(&'a self, counts: ArrayView1<'a, u64>) -> impl Iterator<Item = f64> + 'a {
        let kappa = self.concentration.get();
        let total = kappa + counts.sum() as f64;
        self.mean.iter().zip(counts).map(move |(p, &n)| (kappa * p + n as f64) / total)
    }
}

/// Dirichlet(κ p₀ + n): what is believed of an item after n `[categories]` votes.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::population::DirichletPrior;
///
/// let mut label = DirichletPrior::uniform(4, 2.0)?.posterior();
/// label.observe(&[3, 0])?;
/// label.observe(&[3])?;
/// assert_eq!(label.mean().to_vec(), [0.3, 0.1, 0.1, 0.5]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DirichletLabel {
    prior: DirichletPrior,
    counts: Array1<u64>,
}

impl DirichletLabel {
    /// Takes votes in, each a category from 0. Only their numbers matter: many updates are one with all votes.
    ///
    /// # Errors
    /// [`CategoryOutOfRange`](Error::CategoryOutOfRange); no vote is counted then.
    pub fn observe(&mut self, categories: &[usize]) -> Result<()> {
        let known = self.counts.len();
        if let Some((vote, &category)) = categories.iter().enumerate().find(|(_, category)| **category >= known) {
            return Err(Error::CategoryOutOfRange { vote, category, categories: known });
        }
        categories.iter().for_each(|&category| self.counts[category] += 1);
        Ok(())
    }

    /// Takes in the number of votes for each category, `[categories]`.
    ///
    /// # Errors
    /// [`Length`](Error::Length).
    pub fn observe_counts(&mut self, counts: &[u64]) -> Result<()> {
        check::matrix("counts", SHAPE, "categories", self.counts.len(), counts.len())?;
        self.counts.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        Ok(())
    }

    /// Posterior mean (κ p₀ + n)/(κ + Σn), `[categories]`: the label to train on.
    pub fn mean(&self) -> Array1<f64> {
        self.prior.updated(self.counts.view()).collect()
    }

    /// n, `[categories]`.
    pub fn counts(&self) -> ArrayView1<'_, u64> {
        self.counts.view()
    }

    /// Σn, the votes so far.
    pub fn votes(&self) -> u64 {
        self.counts.sum()
    }
}

/// Posterior mean of each of many items under one prior, `[items, categories]`, from its votes for each category; on all
/// cores.
///
/// # Errors
/// [`Length`](Error::Length) where `counts` has not the prior's categories.
pub fn label_means(prior: &DirichletPrior, counts: ArrayView2<'_, u64>) -> Result<Array2<f64>> {
    let (items, categories) = counts.dim();
    check::matrix("counts", "[items, categories]", "categories", prior.categories(), categories)?;
    let mut means = vec![0.0; items * categories];
    means.par_chunks_mut(categories).with_min_len(ITEMS_PER_THREAD).enumerate().for_each(|(item, row)| {
        row.iter_mut().zip(prior.updated(counts.row(item))).for_each(|(mean, updated)| *mean = updated);
    });
    Ok(Array2::from_shape_vec((items, categories), means).expect("as many numbers as items times categories"))
}
