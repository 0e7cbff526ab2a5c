//! Distances between the Gaussians with the moments of two clouds.

mod kl;
mod w2;

pub use kl::{GaussianKl, GaussianKlOptions, KlCovariance, KlDirection, gaussian_kl};
pub use w2::{GaussianW2, GaussianW2Options, frechet, gaussian_w2, gaussian_w2_diag};

use crate::linalg::triangular;
use crate::moments::Centred;
use crate::{Error, Points, Result};

/// A cloud and a triangular root of its covariance.
struct Gaussian {
    cloud: Centred,
    /// What the sums of squares are divided by: n or n - 1.
    divisor: f64,
    /// Upper triangular R, `R' R = Cov + reg I`, `[d, d]`.
    root: Vec<f64>,
}

impl Gaussian {
    fn new(points: Points<'_>, bias: bool, reg: f64) -> Self {
        let cloud = Centred::new(points);
        let divisor = (cloud.n - usize::from(!bias)) as f64;
        let mut root = triangular(&cloud.rows, cloud.width, (reg * divisor).sqrt());
        root.iter_mut().for_each(|r| *r /= divisor.sqrt());
        Self { cloud, divisor, root }
    }

    /// Refuses a covariance that is singular to working precision.
    fn definite(&self, metric: &'static str, name: &str) -> Result<()> {
        let d = self.cloud.width;
        if !self.root.iter().all(|r| r.is_finite()) {
            return Err(Error::Undefined(format!(
                "{metric}: the coordinates of {name} are so large that it overflows"
            )));
        }
        let diagonal = (0..d).map(|i| self.root[i * d + i].abs());
        let (low, high) = diagonal.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), r| (low.min(r), high.max(r)));
        if low > high * f64::EPSILON * d.max(self.cloud.n) as f64 {
            return Ok(());
        }
        Err(Error::Undefined(format!(
            "{metric}: the covariance of {name} ({} points, {d} coordinates) is not positive definite; raise `reg`",
            self.cloud.n
        )))
    }
}
