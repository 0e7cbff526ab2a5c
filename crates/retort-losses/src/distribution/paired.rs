//! Paired regression of the features: the baseline that every matching of laws is compared with.

use super::discrepancy::Clouds;
use super::matching::{Batch, Matching, Metric};
use super::{Discrepancy, KD2M, WEIGHT};
use crate::config::MethodInfo;
use crate::{Result, ops};
use candle_core::Tensor;
use retort_transport::Distance;
use serde::{Deserialize, Serialize};

const METHOD: &str = "paired-l2";

/// Mean squared distance of paired rows, `mean_i ||x_i - y_i||^2`: a sum over coordinates, never below [`w2`](super::w2).
///
/// # Shapes
///
/// `student` and `teacher` `[N, D]`.
///
/// # Gradients
///
/// `(2/N) (x_i - y_i)`.
///
/// # Errors
///
/// Two shapes that differ, or a value that is not finite.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f32, 0.0], [10.0, 0.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32, 4.0], [10.0, 1.0]], &Device::Cpu)?;
/// assert_eq!(retort_losses::distribution::paired_l2(&x, &y)?.value.to_scalar::<f32>()?, 13.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn paired_l2(student: &Tensor, teacher: &Tensor) -> Result<Discrepancy> {
    let clouds = Clouds::new(METHOD, student, teacher)?;
    if student.dims() != teacher.dims() {
        return Err(ops::mismatch(METHOD, "features must have one shape", student, teacher));
    }
    let [x, y] = clouds.points()?;
    let n = x.len() as f64;
    let gaps: Vec<f64> = x.values().iter().zip(y.values()).map(|(x, y)| x - y).collect();
    let value = gaps.iter().map(|gap| gap * gap).sum::<f64>() / n;
    let grad_x: Vec<f64> = gaps.iter().map(|gap| 2.0 * gap / n).collect();
    let grad_y = grad_x.iter().map(|g| -g).collect();
    clouds.discrepancy(&Distance { value, grad_x, grad_y }, Vec::new())
}

/// Settings of the paired regression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairedL2Config {
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for PairedL2Config {
    fn default() -> Self {
        Self { matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for PairedL2Config {
    const INFO: MethodInfo =
        MethodInfo { id: METHOD, title: "Paired regression of the features", code_bases: &[], ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        paired_l2(student, teacher)
    }
}
