//! Gromov-Wasserstein: transport that compares distances within each cloud.

use super::discrepancy::Clouds;
use super::exact::converged;
use super::matching::{Batch, Matching, Metric};
use super::{Discrepancy, KD2M, WEIGHT};
use crate::config::{MethodInfo, check};
use crate::{Error, Result, reduce};
use candle_core::Tensor;
use retort_transport::GromovOptions;
use serde::{Deserialize, Serialize};

const METHOD: &str = "gromov-wasserstein";

/// The Gromov-Wasserstein objective at a given plan, `sum_ijkl (A_ik - B_jl)^2 P_ij P_kl`, with the distances `A` within
/// the student's features and `B` within the teacher's (Memoli 2011); the widths may differ.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D']`, `plan` `[N, M]`, a constant.
///
/// # Gradients
///
/// Into `student`, with the plan constant; that of `|z|` at 0 is 0.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a negative mass.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Inner, gromov_wasserstein_at};
/// let x = Tensor::new(&[[0f32], [2.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[5f32, 5.0], [5.0, 8.0]], &Device::Cpu)?; // distances 2 and 3
/// let plan = Tensor::new(&[[0.5f32, 0.0], [0.0, 0.5]], &Device::Cpu)?;
/// let distance = gromov_wasserstein_at(&x, &y, &plan, Inner::Euclidean)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 0.5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn gromov_wasserstein_at(student: &Tensor, teacher: &Tensor, plan: &Tensor, inner: Inner) -> Result<Discrepancy> {
    let clouds = Clouds::new(METHOD, student, teacher)?;
    let [x, y] = clouds.points()?;
    if plan.dims() != [x.len(), y.len()] {
        let (what, expected) = ("plan".into(), format!("[{}, {}]", x.len(), y.len()));
        return Err(Error::Shape { method: METHOD, what, expected, found: plan.dims().to_vec() });
    }
    let found = retort_transport::gromov_wasserstein_at(x, y, &reduce::wide(plan)?, inner.into());
    clouds.discrepancy(&found.map_err(|e| clouds.refused(e))?, Vec::new())
}

/// Gromov-Wasserstein distance, squared: [`gromov_wasserstein_at`] at a plan that conditional gradients find from `a b'`.
///
/// The problem is not convex, so the plan is a local optimum.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D']`. Details: `plan` `[N, M]`, and `converged`, 1 or 0.
///
/// # Gradients
///
/// As for [`gromov_wasserstein_at`].
///
/// # Errors
///
/// Other shapes, a value that is not finite. With a `max_iter` of 0 the plan stays the product of the weights.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Inner, gromov_wasserstein};
/// let x = Tensor::new(&[[0f32], [1.0], [5.0]], &Device::Cpu)?;
/// let turned = Tensor::new(&[[7f32, 5.0], [7.0, 0.0], [7.0, 1.0]], &Device::Cpu)?;
/// let distance = gromov_wasserstein(&x, &turned, Inner::Euclidean, 100)?;
/// assert!(distance.value.to_scalar::<f32>()? < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn gromov_wasserstein(student: &Tensor, teacher: &Tensor, inner: Inner, max_iter: usize) -> Result<Discrepancy> {
    let clouds = Clouds::new(METHOD, student, teacher)?;
    let [x, y] = clouds.points()?;
    let options = GromovOptions { inner: inner.into(), max_iter, ..GromovOptions::default() };
    let found = retort_transport::gromov_wasserstein(x, y, &options).map_err(|e| clouds.refused(e))?;
    let details =
        vec![("plan", clouds.detail(&found.plan, &[x.len(), y.len()])?), converged(&clouds, found.converged)?];
    clouds.discrepancy(&found.distance, details)
}

/// What is compared within a cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inner {
    /// `||x_i - x_k||`.
    #[default]
    Euclidean,
    /// `||x_i - x_k||^2`.
    SquaredEuclidean,
    /// `1 - cos(x_i, x_k)`.
    Cosine,
}

impl From<Inner> for retort_transport::InnerDistance {
    fn from(inner: Inner) -> Self {
        match inner {
            Inner::Euclidean => Self::Euclidean,
            Inner::SquaredEuclidean => Self::SquaredEuclidean,
            Inner::Cosine => Self::Cosine,
        }
    }
}

/// Settings of the Gromov-Wasserstein distance; the widths of both networks may differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GromovWassersteinConfig {
    /// What is compared within a cloud.
    pub inner: Inner,
    /// Steps of the conditional gradient at most, >= 1.
    pub max_iter: usize,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for GromovWassersteinConfig {
    fn default() -> Self {
        Self { inner: Inner::Euclidean, max_iter: 100, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for GromovWassersteinConfig {
    const INFO: MethodInfo = MethodInfo { id: METHOD, title: "Gromov-Wasserstein distance (squared)", ..KD2M };
    const SAME_WIDTH: bool = false;
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::count(METHOD, "max_iter", self.max_iter)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        gromov_wasserstein(student, teacher, self.inner, self.max_iter)
    }
}
