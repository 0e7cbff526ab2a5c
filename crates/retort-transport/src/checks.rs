//! Checks that several distances share.

use crate::{Distance, Error, Result};

/// Refuses an option that is not a positive finite number.
pub(crate) fn positive(field: &'static str, value: f64) -> Result<()> {
    option(field, "a positive finite number", value, value > 0.0)
}

/// Refuses an option that is negative or not finite.
pub(crate) fn not_negative(field: &'static str, value: f64) -> Result<()> {
    option(field, "a finite number >= 0", value, value >= 0.0)
}

/// Refuses an option that is not finite or not `good`.
pub(crate) fn option(field: &'static str, expected: &'static str, value: f64, good: bool) -> Result<()> {
    if good && value.is_finite() { Ok(()) } else { Err(Error::Option { field, expected, found: value.to_string() }) }
}

/// Refuses fewer than two points: a variance or an unbiased mean over pairs divides by `len - 1`.
pub(crate) fn two_points(name: &str, len: usize) -> Result<()> {
    if len >= 2 {
        return Ok(());
    }
    Err(Error::Shape { what: name.into(), expected: "at least 2 points".into(), found: len.to_string() })
}

/// The distance, unless finite coordinates were so large that it or its gradient overflowed.
pub(crate) fn finite(metric: &'static str, distance: Distance) -> Result<Distance> {
    let gradients = distance.grad_x.iter().chain(&distance.grad_y);
    if distance.value.is_finite() && gradients.fold(true, |good, g| good & g.is_finite()) {
        return Ok(distance);
    }
    Err(Error::Undefined(format!("{metric}: the coordinates are so large or so small that the result overflows")))
}
