//! Entropic transport between distributions over classes.

use super::solve::Problem;
use super::{SinkhornOptions, solve};
use crate::{Convergence, Cost, Error, Points, Result, checks, cosine};
use rayon::prelude::*;

/// What [`sinkhorn_histograms`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornHistograms {
    /// Mean of `per_sample`.
    pub value: f64,
    /// The value of each sample.
    pub per_sample: Vec<f64>,
    /// `d value / d student`, row after row.
    pub grad_student: Vec<f64>,
    /// `d value / d teacher`, row after row.
    pub grad_teacher: Vec<f64>,
    /// How each sample's iteration ended.
    pub convergence: Vec<Convergence>,
}

impl SinkhornHistograms {
    /// Whether all samples converged.
    #[must_use]
    pub fn converged(&self) -> bool {
        self.convergence.iter().all(|c| c.converged)
    }
}

/// Entropic transport between the class probabilities of student and teacher, averaged over the batch.
///
/// With `p = softmax(student / T)` and `q = softmax(teacher / T)` per row, `mean OT_eps(p, q)` for the given costs
/// between classes, see [`sinkhorn`](crate::sinkhorn); no factor `T^2`. Costs come from [`class_costs`], for instance.
///
/// # Shapes
///
/// `student`, `teacher`: B rows of K logits; `cost`: `K x K`.
///
/// # Gradients
///
/// `p .* (f - <p, f>) / (B T)` with the dual f of the sample: exact at convergence. Likewise for the teacher.
///
/// # Errors
///
/// Shapes that do not fit, a temperature that is not positive, options outside their range.
///
/// # Example
///
/// ```
/// use retort_transport::{Cost, Points, SinkhornOptions, sinkhorn_histograms};
/// let cost = Cost::new(vec![0.0, 1.0, 1.0, 0.0], 2, 2)?;
/// let student = Points::new("student", &[0.0, 0.0], 2)?;
/// let teacher = Points::new("teacher", &[0.0, 1e4], 2)?;
/// // All mass ends on the second class, half of it has to move.
/// let result = sinkhorn_histograms(student, teacher, &cost, 1.0, &SinkhornOptions::default())?;
/// assert!((result.value - 0.5).abs() < 1e-12);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sinkhorn_histograms(
    student: Points<'_>,
    teacher: Points<'_>,
    cost: &Cost,
    temperature: f64,
    options: &SinkhornOptions,
) -> Result<SinkhornHistograms> {
    options.check()?;
    let (batch, classes) = (student.len(), student.width());
    let scale = 1.0 / (batch as f64 * temperature);
    checks::option("temperature", "a positive finite number", temperature, scale > 0.0 && scale.is_finite())?;
    student.same_width(&teacher)?;
    if teacher.len() != batch {
        let what = format!("{} and {}", student.name(), teacher.name());
        let found = format!("{batch} and {}", teacher.len());
        return Err(Error::Shape { what, expected: "as many rows".into(), found });
    }
    if (cost.rows(), cost.columns()) != (classes, classes) {
        let (expected, found) = (format!("{classes} x {classes}"), format!("{} x {}", cost.rows(), cost.columns()));
        return Err(Error::Shape { what: "cost".into(), expected, found });
    }
    let eps = options.resolve(cost)?;
    let sample = |i: usize| {
        let (p, q) = (softmax(student.row(i), temperature), softmax(teacher.row(i), temperature));
        let solution = solve(Problem { cost, a: &p, b: &q, eps, options }, None);
        (solution.value, slope(&p, &solution.f, scale), slope(&q, &solution.g, scale), solution.convergence)
    };
    let samples: Vec<_> = (0..batch).into_par_iter().map(sample).collect();
    let per_sample: Vec<f64> = samples.iter().map(|s| s.0).collect();
    Ok(SinkhornHistograms {
        value: per_sample.iter().sum::<f64>() / batch as f64,
        per_sample,
        grad_student: samples.iter().flat_map(|s| s.1.iter().copied()).collect(),
        grad_teacher: samples.iter().flat_map(|s| s.2.iter().copied()).collect(),
        convergence: samples.iter().map(|s| s.3).collect(),
    })
}

fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|z| ((z - top) / temperature).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|e| e / sum).collect()
}

/// `scale p .* (f - <p, f>)`.
fn slope(p: &[f64], f: &[f64], scale: f64) -> Vec<f64> {
    let mean: f64 = p.iter().zip(f).map(|(p, f)| p * f).sum();
    p.iter().zip(f).map(|(p, f)| scale * p * (f - mean)).collect()
}

/// Costs between classes from one vector for each: class means of features, or the rows of a linear head.
///
/// `1 - cos(c_i, c_j)`, 0 on the diagonal, divided by the largest entry, unless that is 0. A zero vector is orthogonal
/// to all others.
///
/// # Errors
///
/// None for points that exist.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, class_costs};
/// let head = Points::new("head", &[2.0, 0.0, 0.0, 1.0, -3.0, 0.0], 2)?;
/// let cost = class_costs(head)?;
/// assert_eq!(cost.values(), [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0, 0.5, 0.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn class_costs(prototypes: Points<'_>) -> Result<Cost> {
    let k = prototypes.len();
    let mut values = cosine::distances(prototypes)?;
    let largest = values.iter().copied().fold(0.0, f64::max);
    if largest > 0.0 {
        values.iter_mut().for_each(|c| *c /= largest);
    }
    Cost::new(values, k, k)
}
