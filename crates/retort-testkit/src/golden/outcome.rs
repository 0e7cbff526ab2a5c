//! What a method produced for a golden case, and the comparison with what the case expects.

use super::Case;
use crate::{Result, close};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::fmt;

/// Produced tensors by full name (`out.loss`, `grad.x`, ...).
///
/// One name may be produced in several ways, for example by a trainable and by a frozen network; then each must agree.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    values: BTreeMap<String, Vec<(&'static str, Tensor)>>,
}

impl Outcome {
    /// Adds the tensor `name`.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.insert_variant(name, "", tensor);
    }

    /// Adds the tensor `name` computed in the way `variant`, which error messages name.
    pub fn insert_variant(&mut self, name: impl Into<String>, variant: &'static str, tensor: Tensor) {
        self.values.entry(name.into()).or_default().push((variant, tensor));
    }

    /// The produced tensors called `name`, with the way of each.
    #[must_use]
    pub fn get(&self, name: &str) -> &[(&'static str, Tensor)] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }
}

/// One expected tensor that was not reproduced.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Full name.
    pub tensor: String,
    /// Flat position of the worst entry, where entries could be compared.
    pub index: Option<usize>,
    /// What was found, in words.
    pub detail: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tensor, self.detail)
    }
}

/// Every expected tensor that `outcome` lacks or misses, in the order of the names.
///
/// The rule is `|got - expected| <= atol + rtol * |expected|` with the tolerance of the tensor; in the family `model`
/// `atol` is multiplied by `max(1, max|expected|)`, and for its gradients by `max|expected|`.
/// Integers must be equal, shapes must agree (rank 0 counts as `[1]`).
///
/// # Errors
///
/// A tensor that cannot be read.
pub fn compare(case: &Case, outcome: &Outcome) -> Result<Vec<Mismatch>> {
    let mut mismatches = Vec::new();
    for (name, expected) in case.expected() {
        let produced = outcome.get(name);
        if produced.is_empty() {
            mismatches.push(Mismatch { tensor: name.to_string(), index: None, detail: "was not produced".to_string() });
        }
        for (variant, got) in produced {
            if let Some((index, detail)) = compare_tensor(case, name, got, expected)? {
                let tensor = if variant.is_empty() { name.to_string() } else { format!("{name} ({variant})") };
                mismatches.push(Mismatch { tensor, index, detail });
            }
        }
    }
    Ok(mismatches)
}

type Difference = Option<(Option<usize>, String)>;

fn compare_tensor(case: &Case, name: &str, got: &Tensor, expected: &Tensor) -> Result<Difference> {
    let shape = if got.rank() == 0 { vec![1] } else { got.dims().to_vec() };
    if shape != expected.dims() {
        return Ok(Some((None, format!("got shape {shape:?}, expected {:?}", expected.dims()))));
    }
    if expected.dtype() == DType::I64 {
        return compare_integers(got, expected);
    }
    if !got.dtype().is_float() {
        return Ok(Some((None, format!("got type {:?}, expected a real number", got.dtype()))));
    }
    let (got, expected) = (reals(got)?, reals(expected)?);
    let tolerance = case.tolerance(name);
    let scale = scale(case.family(), name, &expected);
    let comparison = close::compare(&got, &expected, tolerance.atol * scale, tolerance.rtol);
    if comparison.passed {
        return Ok(None);
    }
    let detail = format!(
        "worst at {}: got {:e}, expected {:e}, off by {:.3e} (atol {:e}{}, rtol {:e}); {} of {} values differ",
        position(comparison.index, &shape),
        comparison.got,
        comparison.expected,
        (comparison.got - comparison.expected).abs(),
        tolerance.atol,
        if scale == 1.0 { String::new() } else { format!(" x {scale:.3e}") },
        tolerance.rtol,
        comparison.wrong,
        comparison.expected_len,
    );
    Ok(Some((Some(comparison.index), detail)))
}

fn compare_integers(got: &Tensor, expected: &Tensor) -> Result<Difference> {
    if got.dtype().is_float() {
        return Ok(Some((None, format!("got type {:?}, expected integers", got.dtype()))));
    }
    let (a, b) = (integers(got)?, integers(expected)?);
    let differing: Vec<usize> = (0..b.len()).filter(|&i| a[i] != b[i]).collect();
    Ok(differing.first().map(|&index| {
        let place = position(index, expected.dims());
        let (count, all) = (differing.len(), b.len());
        (
            Some(index),
            format!("first at {place}: got {}, expected {}; {count} of {all} integers differ", a[index], b[index]),
        )
    }))
}

/// What `atol` is multiplied by.
fn scale(family: &str, name: &str, expected: &[f64]) -> f64 {
    if family != "model" {
        return 1.0;
    }
    // Infinite entries are compared for equality, they must not widen the tolerance of the others.
    let largest = expected.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
    if name.starts_with("grad.") { largest } else { largest.max(1.0) }
}

/// `[2, 0, 5]` for a flat index.
fn position(mut index: usize, shape: &[usize]) -> String {
    let mut coordinates = vec![0; shape.len()];
    for (coordinate, &size) in coordinates.iter_mut().zip(shape).rev() {
        *coordinate = index % size.max(1);
        index /= size.max(1);
    }
    format!("{coordinates:?}")
}

fn reals(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_family_scales_by_the_largest_entry() {
        assert_eq!(scale("output", "out.x", &[50.0]), 1.0);
        assert_eq!(scale("model", "out.x", &[-50.0, 2.0]), 50.0);
        assert_eq!(scale("model", "out.x", &[0.5]), 1.0);
        assert_eq!(scale("model", "grad.x", &[0.25, -0.5]), 0.5);
        assert_eq!(scale("model", "out.x", &[f64::INFINITY, 3.0]), 3.0);
    }

    #[test]
    fn positions() {
        assert_eq!(position(0, &[1]), "[0]");
        assert_eq!(position(17, &[2, 3, 4]), "[1, 1, 1]");
    }
}
