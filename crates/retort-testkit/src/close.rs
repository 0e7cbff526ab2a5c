//! Comparison of two rows of numbers with an absolute and a relative tolerance.

use std::fmt;

/// What [`compare`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Whether every entry is within its tolerance and the lengths agree.
    pub passed: bool,
    /// Entries outside their tolerance.
    pub wrong: usize,
    /// Number of values that were given.
    pub got_len: usize,
    /// Number of values that were expected.
    pub expected_len: usize,
    /// Position of the entry that misses its tolerance by the largest factor (the first of several; 0 if nothing was compared).
    pub index: usize,
    /// The given value there, NaN if nothing was compared.
    pub got: f64,
    /// The expected value there, NaN if nothing was compared.
    pub expected: f64,
    /// Largest absolute difference; infinite where one side alone is NaN or infinite.
    pub max_abs: f64,
    /// Largest difference relative to the expected value; entries that agree exactly count 0.
    pub max_rel: f64,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.got_len != self.expected_len {
            return write!(f, "got {} values, expected {}", self.got_len, self.expected_len);
        }
        write!(
            f,
            "{} of {} values differ, worst at [{}]: got {:e}, expected {:e} (largest absolute difference {:.3e}, relative {:.3e})",
            self.wrong, self.expected_len, self.index, self.got, self.expected, self.max_abs, self.max_rel
        )
    }
}

/// Compares entry by entry: `|got - expected| <= atol + rtol * |expected|`.
///
/// A NaN or an infinity agrees only with the same value on the other side, whatever the tolerances are.
/// Different lengths fail.
///
/// ```
/// use retort_testkit::close::compare;
/// let c = compare(&[1.0, 2.5], &[1.0, 2.0], 0.1, 0.1);
/// assert!(!c.passed);
/// assert_eq!((c.index, c.got, c.expected), (1, 2.5, 2.0));
/// assert!(!compare(&[f64::NAN], &[1.0], f64::INFINITY, 0.0).passed);
/// ```
#[must_use]
pub fn compare(got: &[f64], expected: &[f64], atol: f64, rtol: f64) -> Comparison {
    let mut out = Comparison {
        passed: got.len() == expected.len(),
        wrong: 0,
        got_len: got.len(),
        expected_len: expected.len(),
        index: 0,
        got: f64::NAN,
        expected: f64::NAN,
        max_abs: 0.0,
        max_rel: 0.0,
    };
    let mut worst = f64::NEG_INFINITY;
    for (index, (&a, &b)) in got.iter().zip(expected).enumerate() {
        let difference = difference(a, b);
        let allowed = atol + rtol * b.abs();
        // Not `difference > allowed`: a NaN tolerance must fail, and an infinite one must not excuse a NaN.
        let close = difference == 0.0 || (difference.is_finite() && difference <= allowed);
        out.wrong += usize::from(!close);
        out.max_abs = out.max_abs.max(difference);
        out.max_rel = out.max_rel.max(ratio(difference, b.abs()));
        // A wrong entry always outranks a right one.
        let badness = if close {
            ratio(difference, allowed).min(1.0)
        } else {
            ratio(difference, allowed).max(1.0 + f64::EPSILON)
        };
        if badness > worst {
            worst = badness;
            (out.index, out.got, out.expected) = (index, a, b);
        }
    }
    out.passed &= out.wrong == 0;
    out
}

/// `|a - b|`, 0 for equal infinities and for two NaNs, infinite if only one side is a number.
fn difference(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        0.0
    } else if a.is_finite() && b.is_finite() {
        (a - b).abs()
    } else {
        f64::INFINITY
    }
}

fn ratio(difference: f64, scale: f64) -> f64 {
    if difference == 0.0 {
        0.0
    } else if scale > 0.0 && difference.is_finite() {
        difference / scale
    } else {
        f64::INFINITY
    }
}

/// Values that [`assert_close!`](crate::assert_close) can compare.
pub trait Values {
    /// The entries in row-major order, as f64.
    ///
    /// # Errors
    ///
    /// A tensor that cannot be read.
    fn values(&self) -> candle_core::Result<Vec<f64>>;

    /// The shape, if the type has one; two shapes that are both known must be equal.
    fn shape(&self) -> Option<Vec<usize>> {
        None
    }
}

impl Values for f64 {
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        Ok(vec![*self])
    }
}

impl Values for f32 {
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        Ok(vec![f64::from(*self)])
    }
}

impl Values for [f64] {
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        Ok(self.to_vec())
    }
}

impl Values for [f32] {
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        Ok(self.iter().map(|&v| f64::from(v)).collect())
    }
}

impl<T, const N: usize> Values for [T; N]
where
    [T]: Values,
{
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        self.as_slice().values()
    }
}

impl<T> Values for Vec<T>
where
    [T]: Values,
{
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        self.as_slice().values()
    }
}

impl Values for candle_core::Tensor {
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        self.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1()
    }

    fn shape(&self) -> Option<Vec<usize>> {
        Some(self.dims().to_vec())
    }
}

impl<T: Values + ?Sized> Values for &T {
    fn values(&self) -> candle_core::Result<Vec<f64>> {
        (**self).values()
    }

    fn shape(&self) -> Option<Vec<usize>> {
        (**self).shape()
    }
}

/// The work of [`assert_close!`](crate::assert_close): a message if the two sides differ.
#[doc(hidden)]
#[must_use]
pub fn difference_message<A: Values + ?Sized, B: Values + ?Sized>(
    got: &A,
    expected: &B,
    atol: f64,
    rtol: f64,
) -> Option<String> {
    let (a, b) = match (got.values(), expected.values()) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(error), _) | (_, Err(error)) => return Some(format!("a tensor cannot be read: {error}")),
    };
    if let (Some(x), Some(y)) = (got.shape(), expected.shape())
        && x != y
    {
        return Some(format!("got shape {x:?}, expected {y:?}"));
    }
    let comparison = compare(&a, &b, atol, rtol);
    (!comparison.passed).then(|| comparison.to_string())
}

/// Asserts that two numbers, slices or tensors agree: `|got - expected| <= atol + rtol * |expected|` for every entry.
///
/// Further arguments are a format string and its values, put before the message.
///
/// # Panics
///
/// If they do not agree; the message names the worst index, both values and the largest differences.
///
/// ```
/// retort_testkit::assert_close!([1.0, 2.0], [1.0, 2.0 + 1e-9], 1e-8, 0.0);
/// ```
#[macro_export]
macro_rules! assert_close {
    ($got:expr, $expected:expr, $atol:expr, $rtol:expr $(,)?) => {
        if let Some(message) = $crate::close::difference_message(&$got, &$expected, $atol, $rtol) {
            panic!("{message}");
        }
    };
    ($got:expr, $expected:expr, $atol:expr, $rtol:expr, $($context:tt)+) => {
        if let Some(message) = $crate::close::difference_message(&$got, &$expected, $atol, $rtol) {
            panic!("{}: {message}", format!($($context)+));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_relative_to_the_expected_value() {
        assert!(compare(&[10.0], &[11.0], 0.0, 0.1).passed);
        assert!(!compare(&[11.2], &[10.0], 0.0, 0.1).passed);
        assert!(compare(&[0.5], &[0.0], 0.5, 0.0).passed);
        assert!(compare(&[], &[], 0.0, 0.0).passed);
    }

    #[test]
    fn the_worst_entry_is_the_one_furthest_outside_its_own_tolerance() {
        let c = compare(&[100.0, 1.0, 0.2], &[101.0, 1.5, 0.2], 0.0, 0.1);
        assert_eq!((c.passed, c.wrong, c.index), (false, 1, 1));
        assert_eq!((c.max_abs, c.max_rel), (1.0, 0.5 / 1.5));
        // Far above its tolerance although the absolute difference is smaller.
        let c = compare(&[1.0, 0.0], &[2.0, 0.9], 0.0, 0.4);
        assert_eq!(c.index, 1);
    }

    #[test]
    fn non_finite_values_must_agree_exactly() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        assert!(compare(&[nan, inf, -inf], &[nan, inf, -inf], 0.0, 0.0).passed);
        for (a, b) in [(nan, 0.0), (0.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf), (nan, inf)] {
            let c = compare(&[7.0, a], &[7.0, b], 1e300, 1.0);
            assert!(!c.passed, "{a} against {b}");
            assert_eq!(c.index, 1);
            assert_eq!(c.max_abs, inf);
        }
        assert!(!compare(&[1.0], &[2.0], nan, 0.0).passed);
    }

    #[test]
    fn lengths_must_agree() {
        let c = compare(&[1.0], &[1.0, 2.0], 1.0, 1.0);
        assert!(!c.passed && c.to_string().contains("got 1 values, expected 2"));
    }

    #[test]
    fn the_macro_names_the_index_and_both_values() {
        let message = difference_message(&[1f32, 2.0], &[1f32, 3.0], 0.1, 0.0).unwrap();
        assert!(message.contains("[1]: got 2e0, expected 3e0"), "{message}");
        let t = candle_core::Tensor::new(&[[1f32, 2.0]], &candle_core::Device::Cpu).unwrap();
        assert!(difference_message(&t, &t.flatten_all().unwrap(), 0.1, 0.0).unwrap().contains("shape"));
        crate::assert_close!(t, [1.0f64, 2.0], 0.0, 0.0, "tensor against slice");
    }

    #[test]
    #[should_panic(expected = "layer 3: 1 of 1 values differ")]
    fn the_macro_panics() {
        crate::assert_close!(1.0, 2.0, 0.1, 0.0, "layer {}", 3);
    }
}
