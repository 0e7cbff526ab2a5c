//! Transport within classes.

use crate::classes::{Class, Classes};
use crate::{ClassReduction, Distance, Plan, Points, Result, w2};
use rayon::prelude::*;

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
    let classes = Classes::new(x, y, labels_x, labels_y, reduction)?;
    let solve = |class: &Class| {
        let [part_x, part_y] = class.points(x, y);
        w2(Points::new(x.name(), &part_x, x.width())?, Points::new(y.name(), &part_y, y.width())?)
    };
    let solved = classes.common.par_iter().map(solve).collect::<Result<Vec<_>>>()?;
    let mut distance = Distance::zero(x, y);
    let mut entries = Vec::new();
    for (class, solved) in classes.common.iter().zip(&solved) {
        class.add(&mut distance, &solved.distance, x.width());
        let moved = |&(i, j, mass): &(usize, usize, f64)| (class.rows_x[i], class.rows_y[j], class.weight * mass);
        entries.extend(solved.transport.plan.entries().iter().map(moved));
    }
    Ok(Conditional {
        distance: crate::checks::finite("w2-conditional", distance)?,
        plan: Plan::new(x.len(), y.len(), entries)?,
        per_class: solved.iter().map(|s| s.distance.value).collect(),
        converged: solved.iter().all(|s| s.transport.converged),
        classes: classes.labels(),
        skipped: classes.skipped,
    })
}
