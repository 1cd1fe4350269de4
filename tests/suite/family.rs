//! Families of reward models: what trains the members on different data, and what is reported of them.

mod case;
mod objective;
mod report;
mod training;

use prefopt::Result;

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}
