//! Ranges of settings.

use crate::{Error, Result};

pub(super) fn probability(operation: &'static str, probability: f64) -> Result<()> {
    within(operation, "probability", probability, [0.0, 1.0])
}

/// `low <= value <= high`, which leaves out NaN.
pub(super) fn within(operation: &'static str, what: &str, value: f64, [low, high]: [f64; 2]) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let expected = match (low, high) {
        (f64::MIN_POSITIVE, f64::MAX) => "positive and finite".to_owned(),
        (low, f64::MAX) => format!("finite and at least {low}"),
        (f64::MIN_POSITIVE, high) => format!("greater than 0 and at most {high}"),
        _ => format!("{low} to {high}"),
    };
    Err(Error::invalid(operation, what, expected, value))
}

/// Two numbers within the limits, the first not above the second.
pub(super) fn range(operation: &'static str, what: &str, values: [f64; 2], limits: [f64; 2]) -> Result<()> {
    values.iter().try_for_each(|&value| within(operation, what, value, limits))?;
    let [low, high] = values;
    if low <= high {
        return Ok(());
    }
    Err(Error::invalid(operation, what, "the smaller number first", format!("{low}, {high}")))
}

pub(super) fn count(operation: &'static str, what: &str, value: u32, [low, high]: [u32; 2]) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(operation, what, format!("{low} to {high}"), value))
}
