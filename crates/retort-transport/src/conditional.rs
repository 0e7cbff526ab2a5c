//! Transport within classes.

use crate::{Distance, Error, Plan, Points, Result, Wasserstein, w2};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// How the distances of the classes become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassReduction {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean over the classes that both sides have.
    Mean,
    /// Weighted by the share of the student's rows, among the rows of classes that both sides have.
    Weighted,
}

/// A distance between labelled clouds, class by class.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditional {
    /// Value and gradients; all 0 without a common class.
    pub distance: Distance,
    /// The plans of the classes, times their weights: the value is the cost of this plan.
    pub plan: Plan,
    /// The classes that both sides have, ascending.
    pub classes: Vec<u32>,
    /// The distance of each of `classes`.
    pub per_class: Vec<f64>,
    /// The classes that only one side has, ascending; they take no part.
    pub skipped: Vec<u32>,
    /// Whether every class was solved to the end.
    pub converged: bool,
}

/// The squared 2-Wasserstein distance of each class, combined.
///
/// `sum_c weight_c W2^2(X[labels_x = c], Y[labels_y = c])` over the classes c on both sides, points weighing the same
/// within a class; the weights are 1, `1 / classes`, or `n_c / sum n_c` with the student's counts.
/// The weighted form is at least [`w2`] if both sides have the same shares of the same classes.
///
/// # Shapes
///
/// `x`: `[n, d]` with n labels, `y`: `[m, d]` with m labels; gradients like the clouds, plan `[n, m]`.
///
/// # Gradients
///
/// As for [`w2`], times the weight of the class. Without a common class value and gradients are 0.
///
/// # Errors
///
/// As many labels as points on either side, and those of [`w2`].
///
/// # Source
///
/// The class-conditional metric of Fernandes Montesuma 2025 (arXiv 2504.01757).
///
/// # Example
///
/// ```
/// use retort_transport::{ClassReduction, Points, w2_conditional};
/// let x = Points::new("student", &[0.0, 5.0, 9.0], 1)?;
/// let y = Points::new("teacher", &[6.0, 2.0], 1)?;
/// let c = w2_conditional(x, y, &[0, 1, 2], &[0, 1], ClassReduction::Mean)?;
/// assert_eq!((c.classes, c.per_class, c.skipped), (vec![0, 1], vec![36.0, 9.0], vec![2]));
/// assert_eq!(c.distance.value, 22.5);
/// assert_eq!(c.distance.grad_x, [-6.0, 3.0, 0.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn w2_conditional(
    x: Points<'_>,
    y: Points<'_>,
    labels_x: &[u32],
    labels_y: &[u32],
    reduction: ClassReduction,
) -> Result<Conditional> {
    x.same_width(&y)?;
    let (rows_x, rows_y) = (by_class(x, labels_x)?, by_class(y, labels_y)?);
    let (common, rest): (Vec<u32>, Vec<u32>) = rows_x.keys().partition(|class| rows_y.contains_key(class));
    let mut skipped = rest;
    skipped.extend(rows_y.keys().filter(|class| !rows_x.contains_key(class)));
    skipped.sort_unstable();

    let solve = |class: &u32| {
        let (part_x, part_y) = (gather(x, &rows_x[class]), gather(y, &rows_y[class]));
        w2(Points::new(x.name(), &part_x, x.width())?, Points::new(y.name(), &part_y, y.width())?)
    };
    let solved = common.par_iter().map(solve).collect::<Result<Vec<_>>>()?;
    let counted: usize = common.iter().map(|class| rows_x[class].len()).sum();
    let weight = |class: &u32| match reduction {
        ClassReduction::Sum => 1.0,
        ClassReduction::Mean => 1.0 / common.len() as f64,
        ClassReduction::Weighted => rows_x[class].len() as f64 / counted as f64,
    };

    let (grad_x, grad_y) = (vec![0.0; x.values().len()], vec![0.0; y.values().len()]);
    let mut distance = Distance { value: 0.0, grad_x, grad_y };
    let mut entries = Vec::new();
    for (class, solved) in common.iter().zip(&solved) {
        add(&mut distance, &mut entries, solved, weight(class), &rows_x[class], &rows_y[class], x.width());
    }
    Ok(Conditional {
        distance: crate::checks::finite("w2-conditional", distance)?,
        plan: Plan::new(x.len(), y.len(), entries)?,
        per_class: solved.iter().map(|s| s.distance.value).collect(),
        converged: solved.iter().all(|s| s.transport.converged),
        classes: common,
        skipped,
    })
}

/// The rows of each class.
fn by_class(points: Points<'_>, labels: &[u32]) -> Result<BTreeMap<u32, Vec<usize>>> {
    check_labels(points, labels)?;
    let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(i, &class)| rows.entry(class).or_default().push(i));
    Ok(rows)
}

/// Refuses another number of labels than of points.
pub(crate) fn check_labels(points: Points<'_>, labels: &[u32]) -> Result<()> {
    if labels.len() == points.len() {
        return Ok(());
    }
    let what = format!("labels of {}", points.name());
    Err(Error::Shape { what, expected: format!("{} labels", points.len()), found: labels.len().to_string() })
}

fn gather(points: Points<'_>, rows: &[usize]) -> Vec<f64> {
    rows.iter().flat_map(|&i| points.row(i)).copied().collect()
}

/// Adds the share of one class.
fn add(
    sum: &mut Distance,
    entries: &mut Vec<(usize, usize, f64)>,
    part: &Wasserstein,
    weight: f64,
    rows_x: &[usize],
    rows_y: &[usize],
    width: usize,
) {
    sum.value += weight * part.distance.value;
    let scatter = |to: &mut [f64], from: &[f64], rows: &[usize]| {
        for (&i, from) in rows.iter().zip(from.chunks_exact(width)) {
            to[i * width..][..width].iter_mut().zip(from).for_each(|(to, from)| *to = weight * from);
        }
    };
    scatter(&mut sum.grad_x, &part.distance.grad_x, rows_x);
    scatter(&mut sum.grad_y, &part.distance.grad_y, rows_y);
    entries.extend(part.transport.plan.entries().iter().map(|&(i, j, mass)| (rows_x[i], rows_y[j], weight * mass)));
}
