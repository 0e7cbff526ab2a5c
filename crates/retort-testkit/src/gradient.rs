//! Gradients against central differences.

use crate::{Error, Result, close, rng::SplitMix64};
use candle_core::{DType, Tensor, Var};
use std::fmt;

/// How [`check`] probes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Half the distance of the two evaluations; multiplied by `max(1, |x|)`. > 0.
    pub step: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Tolerance relative to the numeric derivative.
    pub rtol: f64,
    /// At most this many entries of each input are probed.
    pub max_entries: usize,
    /// Which entries those are, where an input has more.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { step: 1e-5, atol: 1e-7, rtol: 1e-5, max_entries: 64, seed: 0 }
    }
}

/// One probed entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name of the input.
    pub input: String,
    /// Position in row-major order.
    pub index: usize,
    /// What `backward` says.
    pub analytic: f64,
    /// `(f(x + h) - f(x - h)) / 2h`.
    pub numeric: f64,
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Whether all probed entries agree.
    pub passed: bool,
    /// Number of probed entries.
    pub probed: usize,
    /// Number of probed entries that disagree.
    pub wrong: usize,
    /// The worst of them, `None` if nothing was probed.
    pub worst: Option<Entry>,
    /// Inputs that `backward` gave no gradient (it counts as zero).
    pub without_gradient: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} probed derivatives differ", self.wrong, self.probed)?;
        if let Some(w) = &self.worst {
            write!(
                f,
                ", worst at {}[{}]: backward {:e}, central difference {:e}",
                w.input, w.index, w.analytic, w.numeric
            )?;
        }
        if !self.without_gradient.is_empty() {
            write!(f, "; no gradient for {}", self.without_gradient.join(", "))?;
        }
        Ok(())
    }
}

impl Report {
    /// Panics with the report if the gradients disagree.
    ///
    /// # Panics
    ///
    /// If [`Report::passed`] is false.
    #[track_caller]
    pub fn assert(&self) {
        assert!(self.passed, "{self}");
    }
}

/// Compares `backward` of a scalar function with central differences, entry by entry.
///
/// The inputs are called `x0`, `x1`, ... in the report.
///
/// # Shapes
///
/// Inputs of any shape; `f` must return one number.
///
/// # Errors
///
/// Inputs that are not f64, an `f` that fails or returns more than one number.
/// A wrong gradient is no error; it is in the report.
///
/// # Example
///
/// ```
/// use candle_core::{Device, Tensor};
/// use retort_testkit::gradient::{Options, check};
/// let x = Tensor::new(&[1.0f64, -2.0], &Device::Cpu)?;
/// check(|x| x[0].sqr()?.sum_all(), &[x], &Options::default())?.assert();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check<E: fmt::Display>(
    f: impl Fn(&[Tensor]) -> std::result::Result<Tensor, E>,
    inputs: &[Tensor],
    options: &Options,
) -> Result<Report> {
    let vars = inputs
        .iter()
        .enumerate()
        .map(|(i, tensor)| Ok((format!("x{i}"), Var::from_tensor(&tensor.copy()?.detach())?)))
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|(_, var)| var.as_tensor().clone()).collect();
    check_vars(|| f(&tensors), &vars, options)
}

/// As [`check`], for a function of variables that live elsewhere, for example in a parameter store.
///
/// Each variable is moved in place, one entry at a time, and is put back also when `f` fails.
///
/// # Errors
///
/// As for [`check`].
pub fn check_vars<E: fmt::Display>(
    f: impl Fn() -> std::result::Result<Tensor, E>,
    vars: &[(String, Var)],
    options: &Options,
) -> Result<Report> {
    if !(options.step > 0.0 && options.step.is_finite()) {
        return Err(Error::invalid("gradient check", format!("step must be finite and > 0, found {}", options.step)));
    }
    if let Some((name, var)) = vars.iter().find(|(_, var)| var.dtype() != DType::F64) {
        return Err(Error::invalid("gradient check", format!("input {name} must be f64, found {:?}", var.dtype())));
    }
    let evaluate = || -> Result<Tensor> {
        let value = f().map_err(|error| Error::Function(error.to_string()))?;
        match value.elem_count() {
            1 => Ok(value.flatten_all()?.squeeze(0)?.to_dtype(DType::F64)?),
            _ => Err(Error::invalid(
                "gradient check",
                format!("the function must return one number, found shape {:?}", value.dims()),
            )),
        }
    };
    let gradients = evaluate()?.backward()?;
    let mut entries = Vec::new();
    let mut without_gradient = Vec::new();
    for (number, (name, var)) in vars.iter().enumerate() {
        let analytic = match gradients.get(var) {
            Some(gradient) => values(gradient)?,
            None => {
                without_gradient.push(name.clone());
                vec![0.0; var.elem_count()]
            }
        };
        for index in probes(var.elem_count(), options.max_entries, options.seed.wrapping_add(number as u64)) {
            let numeric = derivative(&evaluate, var, index, options.step)?;
            entries.push(Entry { input: name.clone(), index, analytic: analytic[index], numeric });
        }
    }
    Ok(summarise(entries, without_gradient, options))
}

fn summarise(entries: Vec<Entry>, without_gradient: Vec<String>, options: &Options) -> Report {
    let analytic: Vec<f64> = entries.iter().map(|e| e.analytic).collect();
    let numeric: Vec<f64> = entries.iter().map(|e| e.numeric).collect();
    let comparison = close::compare(&analytic, &numeric, options.atol, options.rtol);
    // Two NaNs agree for `compare`, but a NaN derivative is never right.
    let bad = entries.iter().position(|e| !e.analytic.is_finite() || !e.numeric.is_finite());
    let worst = entries.get(bad.unwrap_or(comparison.index)).cloned();
    let wrong = entries
        .iter()
        .filter(|e| {
            let finite = e.analytic.is_finite() && e.numeric.is_finite();
            !finite || !close::compare(&[e.analytic], &[e.numeric], options.atol, options.rtol).passed
        })
        .count();
    // A check that looked at nothing has shown nothing.
    Report { passed: wrong == 0 && !entries.is_empty(), probed: entries.len(), wrong, worst, without_gradient }
}

/// Central difference along one entry of `var`.
fn derivative(evaluate: &impl Fn() -> Result<Tensor>, var: &Var, index: usize, step: f64) -> Result<f64> {
    let original = var.as_tensor().copy()?.detach();
    let data = values(&original)?;
    let h = step * data[index].abs().max(1.0);
    let at = |x: f64| -> Result<f64> {
        let mut moved = data.clone();
        moved[index] = x;
        var.set(&Tensor::from_vec(moved, var.dims(), var.device())?)?;
        Ok(evaluate()?.to_scalar()?)
    };
    let (high, low) = (data[index] + h, data[index] - h);
    let both = at(high).and_then(|up| Ok((up, at(low)?)));
    var.set(&original)?;
    let (up, down) = both?;
    // The distance of the rounded points, not 2h.
    Ok((up - down) / (high - low))
}

/// All positions, or a seeded choice of `limit` of them without repetition, in rising order.
fn probes(count: usize, limit: usize, seed: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    if count > limit {
        let mut rng = SplitMix64(seed);
        for i in 0..limit {
            let j = i + rng.below(count - i);
            all.swap(i, j);
        }
        all.truncate(limit);
        all.sort_unstable();
    }
    all
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Result as CandleResult};

    fn row(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_right_gradient_passes() {
        let x = row(&[0.3, -1.2, 1e4]);
        let y = row(&[2.0, 0.5, -0.7]);
        let report = check(|t| (&t[0] * t[1].exp()?)?.sum_all(), &[x, y], &Options::default()).unwrap();
        report.assert();
        assert_eq!(report.probed, 6);
    }

    #[test]
    fn a_wrong_gradient_is_found_at_its_place() {
        // The second half is cut off the graph: value x^2, gradient of the first entry only.
        let f = |t: &[Tensor]| -> CandleResult<Tensor> {
            let square = t[0].sqr()?;
            square.narrow(0, 0, 1)?.sum_all()? + square.narrow(0, 1, 1)?.detach().sum_all()?
        };
        let report = check(f, &[row(&[1.0, 3.0])], &Options::default()).unwrap();
        assert!(!report.passed);
        assert_eq!(report.wrong, 1);
        let worst = report.worst.unwrap();
        assert_eq!((worst.index, worst.analytic), (1, 0.0));
        crate::assert_close!(worst.numeric, 6.0, 1e-6, 0.0);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // The point is that candle's own gradient is wrong.
    fn candles_max_pooling_is_caught() {
        let x = Tensor::from_vec((0..16).map(|i| f64::from(i * 7 % 16)).collect(), (1, 1, 4, 4), &Device::Cpu).unwrap();
        let report = check(|t| t[0].max_pool2d(2)?.sqr()?.sum_all(), &[x], &Options::default()).unwrap();
        assert!(!report.passed, "{report}");
    }

    #[test]
    fn unconnected_inputs_and_nan_are_reported() {
        let report = check(|t| t[0].sum_all(), &[row(&[1.0]), row(&[2.0])], &Options::default()).unwrap();
        assert!(report.passed);
        assert_eq!(report.without_gradient, ["x1"]);
        let report = check(|t| t[0].sqrt()?.sum_all(), &[row(&[-1.0])], &Options::default()).unwrap();
        assert!(!report.passed && report.wrong == 1);
    }

    #[test]
    fn misuse_is_an_error() {
        let single = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        assert!(check(|t| t[0].sum_all(), &[single], &Options::default()).is_err());
        assert!(check(|t| t[0].sqr(), &[row(&[1.0, 2.0])], &Options::default()).is_err());
        let zero = Options { step: 0.0, ..Options::default() };
        assert!(check(|t| t[0].sum_all(), &[row(&[1.0])], &zero).is_err());
    }

    #[test]
    fn variables_are_put_back() {
        let var = Var::from_tensor(&row(&[0.1, 0.2, 0.3])).unwrap();
        let named = [("w".to_string(), var.clone())];
        check_vars(|| var.as_tensor().powf(3.0)?.sum_all(), &named, &Options::default()).unwrap().assert();
        assert_eq!(values(var.as_tensor()).unwrap(), [0.1, 0.2, 0.3]);
    }

    #[test]
    fn probes_are_distinct_and_seeded() {
        let a = probes(1000, 50, 1);
        assert_eq!(a, probes(1000, 50, 1));
        assert_ne!(a, probes(1000, 50, 2));
        assert!(a.windows(2).all(|w| w[0] < w[1]) && a.len() == 50);
        assert_eq!(probes(3, 50, 1), [0, 1, 2]);
        assert!(probes(3, 0, 1).is_empty());
    }
}
