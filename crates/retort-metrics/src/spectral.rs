//! The spectral norm of a matrix.

/// Sweeps over all pairs of rows; five to ten are usual.
const SWEEPS: usize = 60;

/// The largest singular value of a matrix with rows of this width: one-sided Jacobi rotations make the rows orthogonal,
/// and the longest one is the answer.
pub(crate) fn spectral_norm(values: &[f64], width: usize) -> f64 {
    let largest = values.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    if largest == 0.0 || width == 0 {
        return 0.0;
    }
    let mut rows: Vec<Vec<f64>> =
        values.chunks_exact(width).map(|row| row.iter().map(|x| x / largest).collect()).collect();
    for _ in 0..SWEEPS {
        let mut turned = false;
        for i in 1..rows.len() {
            let (above, below) = rows.split_at_mut(i);
            for other in above {
                turned |= orthogonalise(other, &mut below[0]);
            }
        }
        if !turned {
            break;
        }
    }
    rows.iter().map(|row| dot(row, row)).fold(0.0, f64::max).sqrt() * largest
}

/// Turns two rows in their plane until they are orthogonal; whether there was anything to turn.
fn orthogonalise(x: &mut [f64], y: &mut [f64]) -> bool {
    let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
    if xy.abs() <= f64::EPSILON * (xx * yy).sqrt() {
        return false;
    }
    let ratio = (yy - xx) / (2.0 * xy);
    let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
    true
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::spectral_norm;

    #[test]
    fn known_norms() {
        assert_eq!(spectral_norm(&[0.0; 6], 3), 0.0);
        assert!((spectral_norm(&[3.0, 4.0], 2) - 5.0).abs() < 1e-14);
        // [[1, 1], [0, 1]]: the golden ratio.
        assert!((spectral_norm(&[1.0, 1.0, 0.0, 1.0], 2) - (1.0 + 5f64.sqrt()) / 2.0).abs() < 1e-14);
        // Equal rows: the root of their number times their norm.
        assert!((spectral_norm(&[1.0, 2.0, 2.0].repeat(4), 3) - 6.0).abs() < 1e-13);
        assert!((spectral_norm(&[1e150, 1e150, 0.0, 1e150], 2) / 1e150 - (1.0 + 5f64.sqrt()) / 2.0).abs() < 1e-13);
    }
}
