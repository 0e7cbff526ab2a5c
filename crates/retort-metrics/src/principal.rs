//! Principal components.

use crate::{Error, Result};
use faer::{Mat, Side};

/// The directions of largest variance of a cloud (Pearson 1901): eigenvectors of its covariance.
#[derive(Clone, Debug, PartialEq)]
pub struct PrincipalComponents {
    /// Mean of the rows, D.
    mean: Vec<f64>,
    /// Unit vectors, D each, by falling variance; the entry of largest size is positive.
    directions: Vec<Vec<f64>>,
    /// Their shares of the total variance, in `[0, 1]`.
    pub shares: Vec<f64>,
}

impl PrincipalComponents {
    /// The first `count` components of `values`, rows of `width` numbers.
    ///
    /// # Errors
    ///
    /// No row, a last row that is not whole, more components than coordinates, or a value that is not finite.
    pub fn new(values: &[f64], width: usize, count: usize) -> Result<Self> {
        if width == 0 || values.is_empty() || !values.len().is_multiple_of(width) {
            let message = format!("expected rows of {width} numbers, at least one, found {} numbers", values.len());
            return Err(Error::Shape(message));
        }
        if count > width {
            return Err(Error::Shape(format!("expected at most {width} components, found {count}")));
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::Value(format!("row {} is not finite", at / width)));
        }
        let n = (values.len() / width) as f64;
        let mean: Vec<f64> = (0..width).map(|j| values.iter().skip(j).step_by(width).sum::<f64>() / n).collect();
        let mut covariance = Mat::<f64>::zeros(width, width);
        let mut centred = vec![0.0; width];
        for row in values.chunks_exact(width) {
            centred.iter_mut().zip(row).zip(&mean).for_each(|((c, x), mean)| *c = x - mean);
            for j in 0..width {
                for i in 0..=j {
                    covariance[(j, i)] += centred[i] * centred[j] / n;
                }
            }
        }
        let total: f64 = (0..width).map(|j| covariance[(j, j)]).sum();
        let eigen = covariance.self_adjoint_eigen(Side::Lower);
        let eigen = eigen.map_err(|error| Error::Value(format!("the covariance has no eigenvectors: {error:?}")))?;
        // By rising eigenvalue.
        let column = |k: usize| -> Vec<f64> { (0..width).map(|i| eigen.U()[(i, width - 1 - k)]).collect() };
        let share = |k: usize| if total > 0.0 { (eigen.S()[width - 1 - k] / total).clamp(0.0, 1.0) } else { 0.0 };
        Ok(Self {
            mean,
            directions: (0..count).map(|k| signed(column(k))).collect(),
            shares: (0..count).map(share).collect(),
        })
    }

    /// The coordinates of rows along the components, a list each.
    ///
    /// # Errors
    ///
    /// A last row that is not whole.
    pub fn project(&self, values: &[f64]) -> Result<Vec<Vec<f64>>> {
        let width = self.mean.len();
        if !values.len().is_multiple_of(width) {
            return Err(Error::Shape(format!("expected rows of {width} numbers, found {} numbers", values.len())));
        }
        let along = |row: &[f64], direction: &[f64]| {
            row.iter().zip(&self.mean).zip(direction).map(|((x, mean), d)| (x - mean) * d).sum()
        };
        let point = |row: &[f64]| self.directions.iter().map(|direction| along(row, direction)).collect();
        Ok(values.chunks_exact(width).map(point).collect())
    }
}

/// A direction and its opposite are the same component: the entry of largest size decides.
fn signed(direction: Vec<f64>) -> Vec<f64> {
    let largest = direction.iter().copied().fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
    if largest < 0.0 { direction.into_iter().map(|x| -x).collect() } else { direction }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_along_a_line() {
        // (3, 4) t + (1, 1) with a little across it.
        let rows: Vec<f64> = (0..40)
            .flat_map(|i| {
                let (t, across) = (i as f64 - 19.5, if i % 2 == 0 { 0.5 } else { -0.5 });
                [3.0 * t - 4.0 * across + 1.0, 4.0 * t + 3.0 * across + 1.0]
            })
            .collect();
        let found = PrincipalComponents::new(&rows, 2, 2).unwrap();
        assert!((found.mean[0] - 1.0).abs() < 1e-12 && (found.mean[1] - 1.0).abs() < 1e-12);
        assert!((found.directions[0][1] / found.directions[0][0] - 4.0 / 3.0).abs() < 0.05);
        assert!(found.shares[0] > 0.99 && (found.shares[0] + found.shares[1] - 1.0).abs() < 1e-12);
        // A rotation: distances stay.
        let points = found.project(&rows).unwrap();
        let between = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        assert!((between(&points[0], &points[7]) - between(&rows[..2], &rows[14..16])).abs() < 1e-9);
    }

    #[test]
    fn borders_and_wrong_input() {
        let still = PrincipalComponents::new(&[1.0, 2.0, 1.0, 2.0], 2, 1).unwrap();
        assert_eq!((still.shares[0], still.project(&[1.0, 2.0]).unwrap()[0][0]), (0.0, 0.0));
        for (values, width, count) in
            [(&[1.0, 2.0][..], 0, 0), (&[], 2, 1), (&[1.0, 2.0, 3.0], 2, 1), (&[1.0, 2.0], 2, 3)]
        {
            assert!(PrincipalComponents::new(values, width, count).is_err());
        }
        assert!(PrincipalComponents::new(&[1.0, f64::NAN], 2, 1).unwrap_err().to_string().contains("row 0"));
        assert!(still.project(&[1.0]).is_err());
    }
}
