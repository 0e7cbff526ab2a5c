//! Distances made of kernels between rows: maximum mean discrepancy and energy distance.

use super::discrepancy::Clouds;
use super::exact::per_class;
use super::matching::{Batch, Matching, Metric};
use super::{Discrepancy, KD2M, Reduction, WEIGHT};
use crate::Result;
use crate::config::{Inputs, MethodInfo, Side, check};
use candle_core::Tensor;
use retort_transport::MmdOptions;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

const MMD: &str = "mmd";
const CONDITIONAL: &str = "mmd-conditional";
const ENERGY: &str = "energy-distance";

/// Maximum mean discrepancy, squared: `mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` (Gretton et al. 2012).
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`. Details: `bandwidths`, one for each multiplier; a single 1 for kernels without.
///
/// # Gradients
///
/// Closed forms of each kernel; a bandwidth that the data decide is constant. If all rows are one point, the value is 0
/// and so is the gradient.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a kernel's number out of range, one row with the unbiased estimator.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Estimator, Kernel, mmd};
/// let x = Tensor::new(&[[0f32], [2.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32], [5.0]], &Device::Cpu)?;
/// let distance = mmd(&x, &y, &Kernel::Linear, Estimator::Biased)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 9.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn mmd(student: &Tensor, teacher: &Tensor, kernel: &Kernel, estimator: Estimator) -> Result<Discrepancy> {
    let clouds = Clouds::new(MMD, student, teacher)?;
    let [x, y] = clouds.points()?;
    let found = retort_transport::mmd(x, y, &kernel.options(estimator)).map_err(|e| clouds.refused(e))?;
    let bandwidths = clouds.detail(&found.bandwidths, &[found.bandwidths.len()])?;
    clouds.discrepancy(&found.distance, vec![("bandwidths", bandwidths)])
}

/// Class-conditional discrepancy: [`mmd`] of the rows of each class which occurs on both sides, with a bandwidth of its
/// own. A class that one side lacks is left out; without a common class the value is 0.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`, `N` and `M` labels.
/// Details: `per_class` `[K]`, `classes` (u32 `[K]`, ascending); neither where no class is common.
///
/// # Gradients
///
/// As for [`mmd`], each class with its factor.
///
/// # Errors
///
/// As for [`mmd`] within each class, or another number of labels than rows.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Estimator, Kernel, Reduction, mmd_conditional};
/// let x = Tensor::new(&[[0f32], [2.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32], [5.0]], &Device::Cpu)?;
/// let distance = mmd_conditional(&x, &y, &[0, 1], &[1, 0], &Kernel::Linear, Estimator::Biased, Reduction::Sum)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 26.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn mmd_conditional(
    student: &Tensor,
    teacher: &Tensor,
    student_labels: &[u32],
    teacher_labels: &[u32],
    kernel: &Kernel,
    estimator: Estimator,
    reduction: Reduction,
) -> Result<Discrepancy> {
    let clouds = Clouds::new(CONDITIONAL, student, teacher)?;
    let [x, y] = clouds.points()?;
    let (options, reduction) = (kernel.options(estimator), reduction.into());
    let found = retort_transport::mmd_conditional(x, y, student_labels, teacher_labels, &options, reduction);
    let found = found.map_err(|e| clouds.refused(e))?;
    clouds.discrepancy(&found.distance, per_class(&clouds, &found.classes, &found.per_class)?)
}

/// Energy distance, squared (Szekely and Rizzo 2013): `2 E||X - Y|| - E||X - X'|| - E||Y - Y'||`; no bandwidth.
///
/// SciPy's one-dimensional function returns its root.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`.
///
/// # Gradients
///
/// `(2/N) [mean_j u(x_i - y_j) - mean_j u(x_i - x_j)]` with `u(z) = z / ||z||`, `u(0) = 0`.
///
/// # Errors
///
/// Other shapes, a value that is not finite, one row with the unbiased estimator.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Estimator, energy_distance};
/// let x = Tensor::new(&[[0f32], [2.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32], [5.0]], &Device::Cpu)?;
/// let distance = energy_distance(&x, &y, Estimator::Biased)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 4.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn energy_distance(student: &Tensor, teacher: &Tensor, estimator: Estimator) -> Result<Discrepancy> {
    let clouds = Clouds::new(ENERGY, student, teacher)?;
    let [x, y] = clouds.points()?;
    let found = retort_transport::energy_distance(x, y, estimator.into()).map_err(|e| clouds.refused(e))?;
    clouds.discrepancy(&found, Vec::new())
}

/// What the means within a cloud run over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// All pairs, each row with itself included: never negative, too large on average.
    #[default]
    Biased,
    /// Pairs of different rows, at least two on either side; may be negative.
    Unbiased,
}

impl Estimator {
    /// Rows of a cloud whose pairs it can average over.
    fn least_rows(self) -> usize {
        match self {
            Self::Biased => 1,
            Self::Unbiased => 2,
        }
    }
}

impl From<Estimator> for retort_transport::Estimator {
    fn from(estimator: Estimator) -> Self {
        match estimator {
            Estimator::Biased => Self::Biased,
            Estimator::Unbiased => Self::Unbiased,
        }
    }
}

/// Similarity of two rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kernel {
    /// `<x, y>`: means only.
    #[serde(deserialize_with = "retort_nn::no_fields")]
    Linear,
    /// `(<x, y> / D + coef0)^degree`; depends on where the origin is.
    Poly {
        /// At least 1.
        degree: u32,
        /// Added to the inner product; 0 unless said otherwise.
        #[serde(default)]
        coef0: f64,
    },
    /// The mean over `s` of `exp(-||x - y||^2 / (2 s^2))`.
    Rbf {
        /// What `s` is before multiplication.
        #[serde(default)]
        bandwidth: Bandwidth,
        /// Each of them times the bandwidth is an `s`; positive, at least one. `[0.25, 0.5, 1, 2, 4]` is a usual set.
        #[serde(default = "one")]
        multipliers: Vec<f64>,
    },
}

fn one() -> Vec<f64> {
    vec![1.0]
}

impl Default for Kernel {
    fn default() -> Self {
        Self::Rbf { bandwidth: Bandwidth::default(), multipliers: one() }
    }
}

impl Kernel {
    fn options(&self, estimator: Estimator) -> MmdOptions {
        use retort_transport::{Bandwidth as Width, Kernel};
        let kernel = match self {
            Self::Linear => Kernel::Linear,
            Self::Poly { degree, coef0 } => Kernel::Polynomial { degree: *degree, coef0: *coef0 },
            Self::Rbf { bandwidth, multipliers } => {
                let bandwidth = match bandwidth {
                    Bandwidth::Fixed(s) => Width::Fixed(*s),
                    Bandwidth::Rule(BandwidthRule::MeanDistance) => Width::MeanDistance,
                    Bandwidth::Rule(BandwidthRule::Median) => Width::Median,
                };
                Kernel::Rbf { bandwidth, multipliers: multipliers.clone() }
            }
        };
        MmdOptions { kernel, estimator: estimator.into() }
    }

    fn check(&self, method: &'static str) -> Result<()> {
        match self {
            Self::Linear => Ok(()),
            Self::Poly { degree, coef0 } => {
                check::exponent(method, "degree", f64::from(*degree))?;
                check::non_negative(method, "coef0", *coef0)
            }
            Self::Rbf { bandwidth, multipliers } => {
                if let Bandwidth::Fixed(s) = bandwidth {
                    check::positive(method, "bandwidth", *s)?;
                }
                check::width(method, "multipliers", multipliers.len())?;
                multipliers.iter().try_for_each(|m| check::positive(method, "multipliers", *m))
            }
        }
    }
}

/// How wide an RBF kernel is: in a manifest a number, `"mean-distance"` or `"median"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Bandwidth {
    /// This number.
    Fixed(f64),
    /// What the batch says.
    Rule(BandwidthRule),
}

/// By hand: serde would only say that no variant fits.
impl<'de> Deserialize<'de> for Bandwidth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(BandwidthVisitor)
    }
}

struct BandwidthVisitor;

impl Visitor<'_> for BandwidthVisitor {
    type Value = Bandwidth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("as `bandwidth` a number > 0, \"mean-distance\" or \"median\"")
    }

    fn visit_f64<E: de::Error>(self, x: f64) -> std::result::Result<Bandwidth, E> {
        Ok(Bandwidth::Fixed(x))
    }

    fn visit_i64<E: de::Error>(self, x: i64) -> std::result::Result<Bandwidth, E> {
        Ok(Bandwidth::Fixed(x as f64))
    }

    fn visit_u64<E: de::Error>(self, x: u64) -> std::result::Result<Bandwidth, E> {
        Ok(Bandwidth::Fixed(x as f64))
    }

    fn visit_str<E: de::Error>(self, rule: &str) -> std::result::Result<Bandwidth, E> {
        match rule {
            "mean-distance" => Ok(Bandwidth::Rule(BandwidthRule::MeanDistance)),
            "median" => Ok(Bandwidth::Rule(BandwidthRule::Median)),
            other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
        }
    }
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self::Rule(BandwidthRule::MeanDistance)
    }
}

/// A bandwidth that the batch decides; a constant of the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BandwidthRule {
    /// The mean of all entries of the three matrices of distances, zero diagonals included; the reference's.
    MeanDistance,
    /// The root of the median squared distance of pairs of different rows of the pooled clouds.
    Median,
}

/// Settings of the maximum mean discrepancy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmdConfig {
    /// Similarity of two rows.
    pub kernel: Kernel,
    /// What the means within a cloud run over.
    pub estimator: Estimator,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for MmdConfig {
    fn default() -> Self {
        Self { kernel: Kernel::default(), estimator: Estimator::Biased, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for MmdConfig {
    const INFO: MethodInfo = MethodInfo { id: MMD, title: "Maximum mean discrepancy (squared)", ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        self.kernel.check(MMD)
    }
    fn least_rows(&self) -> usize {
        self.estimator.least_rows()
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        mmd(student, teacher, &self.kernel, self.estimator)
    }
}

/// Settings of the class-conditional maximum mean discrepancy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmdConditionalConfig {
    /// Similarity of two rows.
    pub kernel: Kernel,
    /// What the means within a class run over.
    pub estimator: Estimator,
    /// How the discrepancies of the classes become one.
    pub reduction: Reduction,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for MmdConditionalConfig {
    fn default() -> Self {
        Self {
            kernel: Kernel::default(),
            estimator: Estimator::Biased,
            reduction: Reduction::Sum,
            matching: Matching::default(),
            weight: WEIGHT,
        }
    }
}

impl Metric for MmdConditionalConfig {
    const INFO: MethodInfo = MethodInfo {
        id: CONDITIONAL,
        title: "Class-conditional maximum mean discrepancy (squared)",
        inputs: Inputs { embedding: Side::Both, labels: true, ..Inputs::NONE },
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        self.kernel.check(CONDITIONAL)
    }
    fn least_rows_of_class(&self) -> usize {
        self.estimator.least_rows()
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy> {
        let labels = batch.context.label_ids;
        mmd_conditional(student, teacher, labels, labels, &self.kernel, self.estimator, self.reduction)
    }
}

/// Settings of the energy distance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnergyDistanceConfig {
    /// What the means within a cloud run over.
    pub estimator: Estimator,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for EnergyDistanceConfig {
    fn default() -> Self {
        Self { estimator: Estimator::Biased, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for EnergyDistanceConfig {
    const INFO: MethodInfo = MethodInfo {
        id: ENERGY,
        title: "Energy distance (squared)",
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
    fn least_rows(&self) -> usize {
        self.estimator.least_rows()
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        energy_distance(student, teacher, self.estimator)
    }
}
