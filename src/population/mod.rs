//! Many annotators, estimated once on the host in f64: what their votes say, and what becomes a column or a weight of a batch.

mod check;
mod labels;

pub use labels::{DirichletLabel, DirichletPrior, label_means};
