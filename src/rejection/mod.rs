//! Rejection by density ratios: which predictions, and which preference labels, to leave out. Estimated once on the
//! host, in f64.
//!
//! With L'(x) the risk of a calibrated model at x, in nats, rejection looks for the distribution Q on which the model
//! would do best without leaving the data P,
//!
//! > min_Q E_Q\[L'\] + λ D(Q ‖ P), ρ = dQ/dP,
//!
//! and rejects x where ρ(x) < τ. For D the KL divergence ρ ∝ e^{−L'/λ}: the Gibbs policy of −L' as a reward, with P for
//! its reference.
//!
//! ρ never rises with L', whatever the divergence, so at matched coverage every divergence accepts the same rows; the
//! divergence and λ say what a threshold τ means, and how strongly a row is **weighted** where none is dropped.
//!
//! | question | part |
//! | --- | --- |
//! | how sure is the model, honestly | [`Calibration`]: a temperature from held-out data |
//! | what does it risk at a row | [`Risk`] of a prediction, [`LabelRisk`] of a preference label |
//! | how much is a row worth | [`DensityRatio`], fitted: [`FittedRatio`] |
//! | is a row accepted | [`Rejector`]: by ratio, by coverage, Chow's rule, confidence |
//! | what does it buy | [`AccuracyCoverage`] |
//! | which pairs does a policy loss see | [`Abstention`] |
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use ndarray::array;
//! use prefopt::rejection::{Abstention, AccuracyCoverage, Calibration, DensityRatio, LabelRisk, Risk};
//!
//! // A classifier: logits [rows, classes] of held-out rows and of new ones.
//! let held_out = array![[2.0, 0.5, -1.0], [0.1, 0.3, 0.0], [-1.0, 0.0, 3.0], [1.0, 0.8, -2.0]];
//! let calibration = Calibration::fit(held_out.view(), &[0, 0, 2, 1])?;
//! let fitted = DensityRatio::kl(1.0)?.fit(calibration.risks(held_out.view(), Risk::Entropy)?.view())?;
//! let rejector = fitted.threshold_for_coverage(0.75)?;
//! let risks = calibration.risks(array![[5.0, 0.0, 0.0], [0.0, 0.1, 0.0]].view(), Risk::Entropy)?;
//! assert_eq!(rejector.accepted(risks.view()), [0]);
//! assert_eq!(AccuracyCoverage::new(risks.view(), &[true, false])?.accuracy_at(0.5)?, 1.0);
//!
//! // Preference labels: margins Δr of a reward model that was trained on other pairs. The second label looks flipped.
//! let margins = array![1.2, -2.0, 0.3, 0.9];
//! let risks = Calibration::new(1.0)?.label_risks(margins.view(), LabelRisk::GivenLabel)?;
//! assert_eq!(Abstention::keep(0.75)?.kept(risks.view())?, [0, 2, 3]);
//! # Ok(()) }
//! ```
//!
//! Source: Soen, Husain, Schulz and Nguyen 2024, "Rejection via Learning Density Ratios", arXiv 2405.18686.

mod calibration;
mod curve;
mod labels;
mod ratio;
mod risk;
mod rule;

use ndarray::ArrayView1;

pub use calibration::Calibration;
pub use curve::AccuracyCoverage;
pub use labels::{Abstention, LabelRisk, mean_margins, weight_column};
pub use ratio::{DensityRatio, FittedRatio};
pub use risk::Risk;
pub use rule::Rejector;

use crate::{Error, Result, check::finite};

/// `[rows]` of at least one finite number.
fn column(name: &'static str, values: ArrayView1<f64>) -> Result<()> {
    if values.is_empty() {
        return Err(Error::Empty { tensor: name, shape: "[rows]" });
    }
    finite(name, values.iter().copied())
}
