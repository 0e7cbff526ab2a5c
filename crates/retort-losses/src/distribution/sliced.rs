//! Distances of one-dimensional projections.

use super::discrepancy::Clouds;
use super::matching::{Batch, Matching, Metric};
use super::{Discrepancy, KD2M, WEIGHT};
use crate::config::{MethodInfo, check};
use crate::{Result, ops, reduce};
use candle_core::{Device, Tensor};
use rand::RngExt;
use retort_nn::Seed;
use retort_transport::Points;
use serde::{Deserialize, Serialize};

/// Sliced Wasserstein distance, squared (Bonneel et al. 2015): the mean over directions of the one-dimensional `W2^2`.
///
/// With the sorted projections `x_(i)`, `y_(i)` of `N = M` rows, a direction's value is `mean_i (x_(i) - y_(i))^2`; for
/// other counts the quantile functions are merged. On average over the sphere it is at most `W2^2 / D`.
/// Other libraries return the square root.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`, `directions` `[L, D]` of unit rows.
/// Details: `per_projection` `[L]`.
///
/// # Gradients
///
/// Into `student`; the order of the projections is constant. [`Discrepancy::grad_teacher`] holds the teacher's.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a direction that is no unit vector.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f32, 0.0], [2.0, 0.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32, 5.0], [1.0, 5.0]], &Device::Cpu)?;
/// let axis = Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?;
/// let distance = retort_losses::distribution::sliced_w2(&x, &y, &axis)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sliced_w2(student: &Tensor, teacher: &Tensor, directions: &Tensor) -> Result<Discrepancy> {
    let slices = Slices::new("sliced-w2", student, teacher, directions)?;
    let (clouds, [x, y]) = (&slices.clouds, slices.clouds.points()?);
    let sliced = retort_transport::sliced_w2(x, y, slices.directions()?).map_err(|e| clouds.refused(e))?;
    let values = clouds.detail(&sliced.per_direction, &[slices.count])?;
    clouds.discrepancy(&sliced.distance, vec![("per_projection", values)])
}

/// Max-sliced Wasserstein distance, squared (Deshpande et al. 2019, arXiv 1904.05877): the largest one-dimensional `W2^2`
/// among the given directions; at most `W2^2`.
///
/// # Shapes
///
/// As for [`sliced_w2`]. Details: `per_projection` `[L]`, `argmax` (u32, the first of equal ones).
///
/// # Gradients
///
/// That of the largest direction alone, a subgradient.
///
/// # Errors
///
/// As for [`sliced_w2`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f32, 0.0], [2.0, 0.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32, 5.0], [1.0, 5.0]], &Device::Cpu)?;
/// let axes = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// let distance = retort_losses::distribution::max_sliced_w2(&x, &y, &axes)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 25.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn max_sliced_w2(student: &Tensor, teacher: &Tensor, directions: &Tensor) -> Result<Discrepancy> {
    let slices = Slices::new("max-sliced-w2", student, teacher, directions)?;
    let (clouds, [x, y]) = (&slices.clouds, slices.clouds.points()?);
    let sliced = retort_transport::max_sliced_w2(x, y, slices.directions()?).map_err(|e| clouds.refused(e))?;
    let values = clouds.detail(&sliced.per_direction, &[slices.count])?;
    let argmax = Tensor::new(sliced.argmax as u32, student.device())?;
    clouds.discrepancy(&sliced.distance, vec![("per_projection", values), ("argmax", argmax)])
}

/// Sliced Cramer distance: the mean over directions of `integral (F - G)^2`, half the squared one-dimensional energy
/// distance.
///
/// # Shapes
///
/// As for [`sliced_w2`]. Details: `per_projection` `[L]`.
///
/// # Gradients
///
/// Into `student`; that of `|z|` at 0 is 0.
///
/// # Errors
///
/// As for [`sliced_w2`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f32]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32]], &Device::Cpu)?;
/// let line = Tensor::new(&[[1f32]], &Device::Cpu)?;
/// let distance = retort_losses::distribution::sliced_cramer(&x, &y, &line)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 3.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sliced_cramer(student: &Tensor, teacher: &Tensor, directions: &Tensor) -> Result<Discrepancy> {
    let slices = Slices::new("sliced-cramer", student, teacher, directions)?;
    let (clouds, [x, y]) = (&slices.clouds, slices.clouds.points()?);
    let sliced = retort_transport::sliced_cramer(x, y, slices.directions()?).map_err(|e| clouds.refused(e))?;
    let values = clouds.detail(&sliced.per_direction, &[slices.count])?;
    clouds.discrepancy(&sliced.distance, vec![("per_projection", values)])
}

/// Both clouds and the directions on the host.
struct Slices<'a> {
    clouds: Clouds<'a>,
    directions: Vec<f64>,
    count: usize,
    width: usize,
}

impl<'a> Slices<'a> {
    fn new(method: &'static str, student: &'a Tensor, teacher: &Tensor, directions: &Tensor) -> Result<Self> {
        let (count, width) = ops::logits(method, "directions", directions)?;
        let clouds = Clouds::new(method, student, teacher)?;
        Ok(Self { clouds, directions: reduce::wide(directions)?, count, width })
    }

    fn directions(&self) -> Result<Points<'_>> {
        Points::new("directions", &self.directions, self.width).map_err(|e| self.clouds.refused(e))
    }
}

/// Directions drawn evenly from the sphere: `count` unit rows of `width`, f64, the same for the same seed.
///
/// # Errors
///
/// No direction, no coordinate, or more entries than fit.
///
/// # Example
///
/// ```
/// let lines = retort_losses::distribution::random_directions(128, 64, 1)?;
/// assert_eq!(lines.dims(), [128, 64]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn random_directions(count: usize, width: usize, seed: u64) -> Result<Tensor> {
    let values = retort_transport::random_directions(count, width, seed);
    let values = values.map_err(|e| super::discrepancy::refused("directions", e))?;
    Ok(Tensor::from_vec(values, (count, width), &Device::Cpu)?)
}

/// Directions of one step.
fn drawn(method: &'static str, count: usize, features: &Tensor, seed: Seed) -> Result<Tensor> {
    let (_, width) = ops::logits(method, "student features", features)?;
    random_directions(count, width, seed.child("directions").rng().random())
}

/// Settings of the sliced Wasserstein distance; directions are drawn anew in every step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlicedW2Config {
    /// Directions in a step.
    pub projections: usize,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SlicedW2Config {
    fn default() -> Self {
        Self { projections: 128, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for SlicedW2Config {
    const INFO: MethodInfo = MethodInfo {
        id: "sliced-w2",
        title: "Sliced Wasserstein distance (squared)",
        paper: Some("Sliced and Radon Wasserstein Barycenters of Measures"),
        year: Some(2015),
        arxiv: None,
        code_bases: &[],
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::width(Self::INFO.id, "projections", self.projections)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy> {
        sliced_w2(student, teacher, &drawn(Self::INFO.id, self.projections, student, batch.seed)?)
    }
}

/// Settings of the max-sliced Wasserstein distance; directions are drawn anew in every step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaxSlicedW2Config {
    /// Directions in a step, of which the largest distance counts.
    pub projections: usize,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for MaxSlicedW2Config {
    fn default() -> Self {
        Self { projections: 128, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for MaxSlicedW2Config {
    const INFO: MethodInfo = MethodInfo {
        id: "max-sliced-w2",
        title: "Max-sliced Wasserstein distance (squared)",
        paper: Some("Max-Sliced Wasserstein Distance and its Use for GANs"),
        year: Some(2019),
        arxiv: Some("1904.05877"),
        code_bases: &[],
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::width(Self::INFO.id, "projections", self.projections)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy> {
        max_sliced_w2(student, teacher, &drawn(Self::INFO.id, self.projections, student, batch.seed)?)
    }
}

/// Settings of the sliced Cramer distance; directions are drawn anew in every step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlicedCramerConfig {
    /// Directions in a step.
    pub projections: usize,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SlicedCramerConfig {
    fn default() -> Self {
        Self { projections: 128, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for SlicedCramerConfig {
    const INFO: MethodInfo = MethodInfo {
        id: "sliced-cramer",
        title: "Sliced Cramer distance",
        paper: Some("Energy statistics: A class of statistics based on distances"),
        year: Some(2013),
        arxiv: None,
        code_bases: &[],
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::width(Self::INFO.id, "projections", self.projections)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy> {
        sliced_cramer(student, teacher, &drawn(Self::INFO.id, self.projections, student, batch.seed)?)
    }
}
