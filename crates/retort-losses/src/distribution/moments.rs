//! Distances of means and covariances: Gaussians and CORAL.

use super::discrepancy::Clouds;
use super::matching::{Batch, Matching, Metric};
use super::{Discrepancy, KD2M, WEIGHT};
use crate::config::{MethodInfo, check};
use crate::{Error, Result, ops, reduce};
use candle_core::Tensor;
use retort_transport::{CoralMatrix, CoralOptions, GaussianKlOptions, GaussianW2Options, KlCovariance, KlDirection};
use serde::{Deserialize, Serialize};

const W2: &str = "gaussian-w2";
const W2_DIAG: &str = "gaussian-w2-diag";
const KL: &str = "gaussian-kl";
const CORAL: &str = "coral";
const FRECHET: &str = "frechet";

/// Squared W2 of the Gaussians with the clouds' moments (Bures): `||m_x - m_y||^2 + tr(A + B - 2 (B^1/2 A B^1/2)^1/2)`
/// with `A = Cov(X) + reg I`, `B = Cov(Y) + reg I`.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`. Details: `mean_part`, `cov_part`.
///
/// # Gradients
///
/// `(2/N) [(m_x - m_y) + (I - T)(x_i - m_x)]`, `T` the optimal linear map; with `bias` false, `N - 1` in the second term.
/// It grows like `1 / sqrt(reg)` where there are fewer rows than coordinates: `reg` of at least 1e-3 of the mean variance
/// is advised below `2 D` rows.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a negative `reg`, a covariance that is singular even so.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[-1f64], [1.0]], &Device::Cpu)?; // mean 0, deviation 1
/// let y = Tensor::new(&[[1f64], [7.0]], &Device::Cpu)?; // mean 4, deviation 3
/// let distance = retort_losses::distribution::gaussian_w2(&x, &y, 0.0, true)?;
/// assert!((distance.value.to_scalar::<f64>()? - 20.0).abs() < 1e-12);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn gaussian_w2(student: &Tensor, teacher: &Tensor, reg: f64, bias: bool) -> Result<Discrepancy> {
    let clouds = Clouds::new(W2, student, teacher)?;
    let [x, y] = clouds.points()?;
    let options = GaussianW2Options { bias, reg, reg_floor: 0.0 };
    let found = retort_transport::gaussian_w2(x, y, &options).map_err(|e| clouds.refused(e))?;
    let parts = [clouds.number(found.mean_part)?, clouds.number(found.cov_part)?];
    clouds.discrepancy(&found.distance, ["mean_part", "cov_part"].into_iter().zip(parts).collect())
}

/// Squared W2 of the Gaussians with the clouds' means and variances:
/// `||m_x - m_y||^2 + ||s_x - s_y||^2`, `s = sqrt(biased variance + eps)`.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`. Details: `mean_part`, `cov_part`.
///
/// # Gradients
///
/// `(2/N) [(m_x - m_y) + (1 - s_y / s_x) (x_i - m_x)]`; a deviation of 0 has the derivative 0.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a negative `eps`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[-1f32], [1.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[1f32], [7.0]], &Device::Cpu)?;
/// let distance = retort_losses::distribution::gaussian_w2_diag(&x, &y, 0.0)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 20.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn gaussian_w2_diag(student: &Tensor, teacher: &Tensor, eps: f64) -> Result<Discrepancy> {
    let clouds = Clouds::new(W2_DIAG, student, teacher)?;
    let [x, y] = clouds.points()?;
    let found = retort_transport::gaussian_w2_diag(x, y, eps).map_err(|e| clouds.refused(e))?;
    let parts = [clouds.number(found.mean_part)?, clouds.number(found.cov_part)?];
    clouds.discrepancy(&found.distance, ["mean_part", "cov_part"].into_iter().zip(parts).collect())
}

/// Kullback-Leibler divergence of the Gaussians with the clouds' (biased) moments, student first where the direction is
/// `student-teacher`; Jeffreys is the sum of both.
///
/// Full: covariances plus `reg I`; variances: its diagonal form. Diagonal: deviations, `reg` beside them where they divide, as the paper's code has it:
/// `1/2 [sum (s_a / (s_b + r))^2 + sum ((m_a - m_b) / (s_b + r))^2 - D + 2 sum ln(s_b / (s_a + r))]`.
/// Unbounded as a variance goes to 0: with `reg` 1e-9 a dead coordinate gives about 1e18.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`. Details: `kl_st` and `kl_ts`, of which one may be infinite where the other is
/// asked for.
///
/// # Gradients
///
/// Closed forms; a deviation of 0 has the derivative 0.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a negative `reg`, a covariance that is singular even so, a divergence that is
/// infinite.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Covariance, Direction, gaussian_kl};
/// let x = Tensor::new(&[[-1f64], [1.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[-1f64], [3.0]], &Device::Cpu)?;
/// let distance = gaussian_kl(&x, &y, Covariance::Full, Direction::StudentTeacher, 0.0)?;
/// assert!((distance.value.to_scalar::<f64>()? - (2f64.ln() - 0.25)).abs() < 1e-12);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn gaussian_kl(
    student: &Tensor,
    teacher: &Tensor,
    covariance: Covariance,
    direction: Direction,
    reg: f64,
) -> Result<Discrepancy> {
    let clouds = Clouds::new(KL, student, teacher)?;
    let [x, y] = clouds.points()?;
    let options = GaussianKlOptions { covariance: covariance.into(), direction: direction.into(), reg };
    let found = retort_transport::gaussian_kl(x, y, &options).map_err(|e| clouds.refused(e))?;
    let parts = [clouds.number(found.student_teacher)?, clouds.number(found.teacher_student)?];
    clouds.discrepancy(&found.distance, ["kl_st", "kl_ts"].into_iter().zip(parts).collect())
}

/// Frechet distance, squared: [`gaussian_w2`] with unbiased covariances and without regulariser, a value for evaluation
/// (the formula of FID, Heusel et al. 2017, arXiv 1706.08500); it has no gradient.
///
/// # Shapes
///
/// `x` `[N, D]`, `y` `[M, D]`, at least two rows each. Returns a scalar.
///
/// # Errors
///
/// Other shapes, a value that is not finite.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f64, 0.0], [2.0, 0.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[1f64, 3.0], [3.0, 3.0]], &Device::Cpu)?;
/// assert!((retort_losses::distribution::frechet(&x, &y)?.to_scalar::<f64>()? - 10.0).abs() < 1e-12);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn frechet(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let clouds = Clouds::new(FRECHET, x, y)?;
    let [x, y] = clouds.points()?;
    clouds.number(retort_transport::frechet(x, y).map_err(|e| clouds.refused(e))?)
}

/// Correlation alignment (Sun and Saenko 2016, arXiv 1607.01719): `||A_x - A_y||_F^2 / (4 D^2)` of the unbiased
/// covariances, of the correlations, or of the matrix logarithms; means are ignored.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`, at least two rows each.
///
/// # Gradients
///
/// For covariances `(1 / (D^2 (N - 1))) (A_x - A_y)(x_i - m_x)`; the others through their matrix functions.
///
/// # Errors
///
/// Other shapes, one row, a value that is not finite, a negative `reg`, a logarithm of a singular matrix.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{SecondMoment, coral};
/// let x = Tensor::new(&[[-1f32], [1.0]], &Device::Cpu)?; // unbiased variance 2
/// let y = Tensor::new(&[[0f32], [4.0]], &Device::Cpu)?; // 8
/// let distance = coral(&x, &y, SecondMoment::Covariance, 0.0)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 9.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn coral(student: &Tensor, teacher: &Tensor, matrix: SecondMoment, reg: f64) -> Result<Discrepancy> {
    let clouds = Clouds::new(CORAL, student, teacher)?;
    let [x, y] = clouds.points()?;
    let options = CoralOptions { matrix: matrix.into(), reg };
    let found = retort_transport::coral(x, y, &options).map_err(|e| clouds.refused(e))?;
    clouds.discrepancy(&found, Vec::new())
}

/// Which covariance a Gaussian has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Covariance {
    /// Variances only, with the regulariser beside the deviations where the formula divides by them: the reference's.
    Diag,
    /// Variances only, each plus the regulariser: 0 for equal clouds, and finite where a coordinate is constant.
    #[default]
    Variances,
    /// The whole matrix.
    Full,
}

impl From<Covariance> for KlCovariance {
    fn from(covariance: Covariance) -> Self {
        match covariance {
            Covariance::Diag => Self::Diagonal,
            Covariance::Variances => Self::Variances,
            Covariance::Full => Self::Full,
        }
    }
}

/// Which divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// `KL(student || teacher)`.
    #[default]
    StudentTeacher,
    /// `KL(teacher || student)`.
    TeacherStudent,
    /// The sum of both.
    Jeffreys,
}

impl From<Direction> for KlDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::StudentTeacher => Self::StudentTeacher,
            Direction::TeacherStudent => Self::TeacherStudent,
            Direction::Jeffreys => Self::Jeffreys,
        }
    }
}

/// Which matrix [`coral`] compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondMoment {
    /// The unbiased covariance.
    #[default]
    Covariance,
    /// `A_ij / sqrt((A_ii + reg) (A_jj + reg))`, free of scale.
    Correlation,
    /// The logarithm of `A + reg I`.
    Log,
}

impl From<SecondMoment> for CoralMatrix {
    fn from(matrix: SecondMoment) -> Self {
        match matrix {
            SecondMoment::Covariance => Self::Covariance,
            SecondMoment::Correlation => Self::Correlation,
            SecondMoment::Log => Self::Log,
        }
    }
}

/// Below this one a relative regulariser does not fall: all features may be equal.
const SMALLEST_VARIANCE: f64 = 1e-12;

/// The mean variance of a coordinate of the teacher's cloud: a constant of the backward pass.
fn mean_variance(method: &'static str, teacher: &Tensor) -> Result<f64> {
    let (n, d) = ops::logits(method, "teacher features", teacher)?;
    let values = reduce::wide(teacher)?;
    let column = |k: usize| values.iter().skip(k).step_by(d);
    let variance = |k: usize| {
        let mean = column(k).sum::<f64>() / n as f64;
        column(k).map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64
    };
    let mean = (0..d).map(variance).sum::<f64>() / d as f64;
    // NaN, which `max` would swallow, is left to the checks that follow.
    Ok(if mean < SMALLEST_VARIANCE { SMALLEST_VARIANCE } else { mean })
}

/// Settings of the Wasserstein distance of Gaussians with full covariances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianW2Config {
    /// Regulariser as a share of the mean variance of the teacher's features in the batch, >= 0. Below twice as many rows as coordinates the gradient grows like one over its root.
    pub reg: f64,
    /// Whether covariances are divided by the number of rows, or by one less.
    pub bias: bool,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for GaussianW2Config {
    fn default() -> Self {
        Self { reg: 1e-3, bias: true, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for GaussianW2Config {
    const INFO: MethodInfo =
        MethodInfo { id: W2, title: "Wasserstein distance of Gaussians, full covariances", code_bases: &[], ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::non_negative(W2, "reg", self.reg)
    }
    fn least_rows(&self) -> usize {
        if self.bias { 1 } else { 2 }
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        gaussian_w2(student, teacher, self.reg * mean_variance(W2, teacher)?, self.bias)
    }
}

/// Settings of the Wasserstein distance of Gaussians with variances only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianW2DiagConfig {
    /// Added to the variances, >= 0; the reference has 0.
    pub eps: f64,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for GaussianW2DiagConfig {
    fn default() -> Self {
        Self { eps: 0.0, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for GaussianW2DiagConfig {
    const INFO: MethodInfo = MethodInfo { id: W2_DIAG, title: "Wasserstein distance of diagonal Gaussians", ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::non_negative(W2_DIAG, "eps", self.eps)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        gaussian_w2_diag(student, teacher, self.eps)
    }
}

/// Settings of the divergence of Gaussians.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianKlConfig {
    /// Which covariance.
    pub covariance: Covariance,
    /// Which divergence.
    pub direction: Direction,
    /// Regulariser, >= 0: a share of the mean variance of the teacher's features in the batch, or with `diag` of its root.
    /// The reference has `diag` and 1e-9, absolute, which a dead coordinate turns into values of 1e18; with `diag` the
    /// value of equal clouds is about `-2 reg D` instead of 0, and a constant coordinate may be an error.
    pub reg: f64,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for GaussianKlConfig {
    fn default() -> Self {
        let (covariance, direction) = (Covariance::Variances, Direction::StudentTeacher);
        Self { covariance, direction, reg: 1e-3, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for GaussianKlConfig {
    const INFO: MethodInfo = MethodInfo { id: KL, title: "Kullback-Leibler divergence of Gaussians", ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::non_negative(KL, "reg", self.reg)
    }
    fn least_rows(&self) -> usize {
        2
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        if student.dims().first() == Some(&1) {
            let (what, expected) = ("student features".into(), "at least 2 rows, which have a variance".into());
            return Err(Error::Shape { method: KL, what, expected, found: student.dims().to_vec() });
        }
        let variance = mean_variance(KL, teacher)?;
        let unit = if self.covariance == Covariance::Diag { variance.sqrt() } else { variance };
        gaussian_kl(student, teacher, self.covariance, self.direction, self.reg * unit)
    }
}

/// Settings of correlation alignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoralConfig {
    /// Which matrix is compared.
    pub matrix: SecondMoment,
    /// Regulariser of `correlation` and `log` as a share of the mean variance of the teacher's features in the batch,
    /// >= 0.
    pub reg: f64,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CoralConfig {
    fn default() -> Self {
        Self { matrix: SecondMoment::Covariance, reg: 1e-3, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for CoralConfig {
    const INFO: MethodInfo = MethodInfo {
        id: CORAL,
        title: "Correlation alignment",
        paper: Some("Deep CORAL: Correlation Alignment for Deep Domain Adaptation"),
        year: Some(2016),
        arxiv: Some("1607.01719"),
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
        check::non_negative(CORAL, "reg", self.reg)
    }
    fn least_rows(&self) -> usize {
        2
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        let reg = match self.matrix {
            SecondMoment::Covariance => 0.0,
            SecondMoment::Correlation | SecondMoment::Log => self.reg * mean_variance(CORAL, teacher)?,
        };
        coral(student, teacher, self.matrix, reg)
    }
}
