//! Directions and cosine distances.

use crate::{Cost, Points, Result};

/// The points divided by their norms, row after row; a zero point stays 0.
pub(crate) fn directions(points: Points<'_>) -> Vec<f64> {
    points.rows().flat_map(|row| scaled(row).1).collect()
}

/// `||x||`, without overflow on the way.
pub(crate) fn norm(x: &[f64]) -> f64 {
    scaled(x).0
}

fn scaled(x: &[f64]) -> (f64, Vec<f64>) {
    let largest = x.iter().fold(0.0f64, |l, x| l.max(x.abs()));
    if largest == 0.0 {
        return (0.0, x.to_vec());
    }
    let small: Vec<f64> = x.iter().map(|x| x / largest).collect();
    let norm = small.iter().map(|x| x * x).sum::<f64>().sqrt();
    (norm * largest, small.iter().map(|x| x / norm).collect())
}

/// `1 - cos(x_i, x_k)`, `[n, n]`; 0 on the diagonal, and a zero point is orthogonal to all others.
pub(crate) fn distances(points: Points<'_>) -> Result<Vec<f64>> {
    let (n, width) = (points.len(), points.width());
    let directions = directions(points);
    let units = Points::new(points.name(), &directions, width)?;
    // Half the squared distance of the directions, which loses no digits where they are close.
    let mut values: Vec<f64> = Cost::squared_euclidean(units, units)?.values().iter().map(|d| 0.5 * d).collect();
    let zero: Vec<bool> = points.rows().map(|row| row.iter().all(|x| *x == 0.0)).collect();
    for (i, row) in values.chunks_exact_mut(n).enumerate() {
        for (k, value) in row.iter_mut().enumerate() {
            if i != k && (zero[i] || zero[k]) {
                *value = 1.0;
            }
        }
    }
    Ok(values)
}
