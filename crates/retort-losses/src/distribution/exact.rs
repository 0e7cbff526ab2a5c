//! Exact optimal transport: over all rows, within classes, and jointly with labels.

use super::discrepancy::{Clouds, attach, plain};
use super::matching::{Batch, Matching, Metric};
use super::{Discrepancy, KD2M, WEIGHT};
use crate::Result;
use crate::config::{Inputs, MethodInfo, Side, check};
use candle_core::Tensor;
use retort_transport::{ClassReduction, FeatureScale, JointOptions, LabelCost as Costs, Plan, Wasserstein};
use serde::{Deserialize, Serialize};

const W2: &str = "w2-empirical";
const W1: &str = "w1-empirical";
const CONDITIONAL: &str = "w2-conditional";
const JOINT: &str = "w2-joint";

/// Wasserstein distance with squared Euclidean cost, squared: `min_P sum_ij P_ij ||x_i - y_j||^2` over the couplings `P`
/// of the two uniform laws.
///
/// The optimal plan comes from an exact solver in f64. A minibatch's value is on average larger than that of the
/// underlying laws.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`. Details: `plan` `[N, M]`, which sums to 1, and `converged`, 1 or 0
/// (0 if the solver ran out of pivots, which is not expected).
///
/// # Gradients
///
/// `2 sum_j P_ij (x_i - y_j)`, with the plan constant (envelope theorem); where several plans are optimal, that of one
/// of them, a subgradient.
///
/// # Errors
///
/// Other shapes, or a value that is not finite.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f32], [10.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[11f32], [1.0]], &Device::Cpu)?;
/// assert_eq!(retort_losses::distribution::w2(&x, &y)?.value.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn w2(student: &Tensor, teacher: &Tensor) -> Result<Discrepancy> {
    let clouds = Clouds::new(W2, student, teacher)?;
    let [x, y] = clouds.points()?;
    from_plan(&clouds, &retort_transport::w2(x, y).map_err(|e| clouds.refused(e))?)
}

/// Wasserstein distance with Euclidean cost: `min_P sum_ij P_ij ||x_i - y_j||`.
///
/// # Shapes
///
/// As for [`w2`].
///
/// # Gradients
///
/// `sum_j P_ij (x_i - y_j) / ||x_i - y_j||`, with 0 where two points coincide.
///
/// # Errors
///
/// As for [`w2`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f32], [10.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[13f32], [1.0]], &Device::Cpu)?;
/// assert_eq!(retort_losses::distribution::w1(&x, &y)?.value.to_scalar::<f32>()?, 2.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn w1(student: &Tensor, teacher: &Tensor) -> Result<Discrepancy> {
    let clouds = Clouds::new(W1, student, teacher)?;
    let [x, y] = clouds.points()?;
    from_plan(&clouds, &retort_transport::w1(x, y).map_err(|e| clouds.refused(e))?)
}

fn from_plan(clouds: &Clouds<'_>, solved: &Wasserstein) -> Result<Discrepancy> {
    let details =
        vec![("plan", dense(clouds, &solved.transport.plan)?), converged(clouds, solved.transport.converged)?];
    clouds.discrepancy(&solved.distance, details)
}

/// 1 or 0, for details and the log.
pub(super) fn converged(clouds: &Clouds<'_>, converged: bool) -> Result<(&'static str, Tensor)> {
    Ok(("converged", clouds.number(f64::from(u8::from(converged)))?))
}

fn dense(clouds: &Clouds<'_>, plan: &Plan) -> Result<Tensor> {
    clouds.detail(&plan.dense(), &[plan.rows(), plan.columns()])
}

/// Class-conditional `W2^2`: that of the rows of each class which occurs on both sides, uniform within the class, summed,
/// averaged over those classes, or weighted by the student's counts among them.
///
/// Weighted, it is what the error bound needs, and never below [`w2`] if all classes have the same shares on both sides. A
/// class that one side lacks is left out; without a common class the value is 0.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`, `N` and `M` labels.
/// Details: `per_class` `[K]`, `classes` (u32 `[K]`, ascending) of the common classes; neither where there are none.
/// `converged`, 1 or 0.
///
/// # Gradients
///
/// As for [`w2`], each class with its factor.
///
/// # Errors
///
/// As for [`w2`], or another number of labels than rows.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Reduction, w2_conditional};
/// let x = Tensor::new(&[[0f32], [10.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[11f32], [1.0]], &Device::Cpu)?;
/// let distance = w2_conditional(&x, &y, &[0, 1], &[0, 1], Reduction::Mean)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 101.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn w2_conditional(
    student: &Tensor,
    teacher: &Tensor,
    student_labels: &[u32],
    teacher_labels: &[u32],
    reduction: Reduction,
) -> Result<Discrepancy> {
    let clouds = Clouds::new(CONDITIONAL, student, teacher)?;
    let [x, y] = clouds.points()?;
    let solved = retort_transport::w2_conditional(x, y, student_labels, teacher_labels, reduction.into());
    let solved = solved.map_err(|e| clouds.refused(e))?;
    let mut details = per_class(&clouds, &solved.classes, &solved.per_class)?;
    details.push(converged(&clouds, solved.converged)?);
    clouds.discrepancy(&solved.distance, details)
}

/// Details of a sum over classes; candle has no empty tensors worth the name.
pub(super) fn per_class(clouds: &Clouds<'_>, classes: &[u32], values: &[f64]) -> Result<Vec<(&'static str, Tensor)>> {
    if classes.is_empty() {
        return Ok(Vec::new());
    }
    let device = candle_core::Device::Cpu;
    let classes = Tensor::from_slice(classes, classes.len(), &device)?;
    Ok(vec![("per_class", clouds.detail(values, &[values.len()])?), ("classes", classes)])
}

/// How the distances of the common classes become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
    /// Their mean with the student's counts as weights.
    Weighted,
}

impl From<Reduction> for ClassReduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::Sum => Self::Sum,
            Reduction::Mean => Self::Mean,
            Reduction::Weighted => Self::Weighted,
        }
    }
}

/// What a pair of rows pays for its labels in [`w2_joint`].
#[derive(Clone, Copy, Debug)]
pub enum LabelCost<'a> {
    /// `||e_y - e_y'||^2` of hard labels: 0 for equal ones, 2 for others.
    OneHotSq(&'a [u32], &'a [u32]),
    /// `||z - z'||^2` of the logits `[N, K]` and `[M, K]`.
    LogitsSq(&'a Tensor, &'a Tensor),
    /// `||softmax z - softmax z'||^2`.
    ProbsSq(&'a Tensor, &'a Tensor),
    /// `KL(softmax z || softmax z')`, the student first.
    Kl(&'a Tensor, &'a Tensor),
}

/// Transport that pays for features and labels at once: `min_P <P, s ||x - y||^2 + beta l>`.
///
/// `s` is 1, or with `scale_by_max` one over the largest squared distance, constant. Small `beta` gives `s W2^2`; large
/// `beta` with hard labels of equal counts gives `s` times the weighted class-conditional distance.
/// The paper's code measures the student's features against themselves; this is what it intends.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`, and what the label cost says.
/// Details: `plan` `[N, M]`, `feature_part` (scaled), `label_part` (without `beta`), `converged` (1 or 0), and
/// `grad_teacher_logits` `[M, K]` where the cost reads logits.
///
/// # Gradients
///
/// Into the student's features and, where the cost reads them, its logits; the plan is constant.
///
/// # Errors
///
/// As for [`w2`], logits or labels of another number of rows, a negative `beta`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{LabelCost, w2_joint};
/// let x = Tensor::new(&[[0f32], [10.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[11f32], [1.0]], &Device::Cpu)?;
/// let labels = LabelCost::OneHotSq(&[0, 1], &[0, 1]);
/// let distance = w2_joint(&x, &y, labels, 1e3, false)?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 101.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn w2_joint(
    student: &Tensor,
    teacher: &Tensor,
    labels: LabelCost<'_>,
    beta: f64,
    scale_by_max: bool,
) -> Result<Discrepancy> {
    let clouds = Clouds::new(JOINT, student, teacher)?;
    let [x, y] = clouds.points()?;
    let scale = if scale_by_max { FeatureScale::Max } else { FeatureScale::None };
    let options = JointOptions { beta, scale };
    let solve = |costs: Costs<'_>| retort_transport::w2_joint(x, y, costs, &options).map_err(|e| clouds.refused(e));
    let (solved, logits) = match labels {
        LabelCost::OneHotSq(x, y) => (solve(Costs::OneHotSq { x, y })?, None),
        LabelCost::LogitsSq(z, t) | LabelCost::ProbsSq(z, t) | LabelCost::Kl(z, t) => {
            let scores = Clouds::of(["student logits", "teacher logits"], JOINT, z, t)?;
            let [x, y] = scores.points()?;
            let costs = match labels {
                LabelCost::ProbsSq(..) => Costs::ProbsSq { x, y },
                LabelCost::Kl(..) => Costs::Kl { x, y },
                _ => Costs::LogitsSq { x, y },
            };
            (solve(costs)?, Some((z, t)))
        }
    };
    let mut details = vec![
        ("plan", dense(&clouds, &solved.transport.plan)?),
        ("feature_part", clouds.number(solved.feature_part)?),
        ("label_part", clouds.number(solved.label_part)?),
        converged(&clouds, solved.transport.converged)?,
    ];
    let mut result = clouds.discrepancy(&solved.distance, Vec::new())?;
    if let Some((z, t)) = logits {
        result.value = (result.value + attach(0.0, z, &solved.grad_logits_x)?.to_dtype(student.dtype())?)?;
        details.push(("grad_teacher_logits", plain(&solved.grad_logits_y, t.dims(), t)?));
    }
    result.details = details;
    Ok(result)
}

/// Settings of the exact Wasserstein distance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct W2EmpiricalConfig {
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for W2EmpiricalConfig {
    fn default() -> Self {
        Self { matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for W2EmpiricalConfig {
    const INFO: MethodInfo = MethodInfo { id: W2, title: "Wasserstein distance (squared)", ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        w2(student, teacher)
    }
}

/// Settings of the exact Wasserstein distance with Euclidean cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct W1EmpiricalConfig {
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for W1EmpiricalConfig {
    fn default() -> Self {
        Self { matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for W1EmpiricalConfig {
    const INFO: MethodInfo =
        MethodInfo { id: W1, title: "Wasserstein distance with Euclidean cost", code_bases: &[], ..KD2M };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        w1(student, teacher)
    }
}

/// Settings of the class-conditional Wasserstein distance.
///
/// With as many classes as rows it degenerates to paired regression: use class-balanced batches of few classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct W2ConditionalConfig {
    /// How the distances of the classes become one.
    pub reduction: Reduction,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for W2ConditionalConfig {
    fn default() -> Self {
        Self { reduction: Reduction::Sum, matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for W2ConditionalConfig {
    const INFO: MethodInfo = MethodInfo {
        id: CONDITIONAL,
        title: "Class-conditional Wasserstein distance (squared)",
        inputs: Inputs { embedding: Side::Both, labels: true, ..Inputs::NONE },
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy> {
        let labels = batch.context.label_ids;
        w2_conditional(student, teacher, labels, labels, self.reduction)
    }
}

/// Which label cost a [`W2JointConfig`] uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelCostKind {
    /// Hard labels of the batch.
    OnehotSq,
    /// Squared distance of the logits.
    #[default]
    LogitsSq,
    /// Squared distance of the probabilities.
    ProbsSq,
    /// KL divergence, the student first.
    Kl,
}

/// What multiplies the feature cost in [`w2_joint`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CostScale {
    /// 1.
    None,
    /// One over the largest squared distance of the batch.
    #[default]
    Max,
}

/// Settings of the joint Wasserstein distance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct W2JointConfig {
    /// Factor of the label cost, >= 0.
    pub beta: f64,
    /// What a pair of rows pays for its labels.
    pub label_cost: LabelCostKind,
    /// What multiplies the feature cost.
    pub scale: CostScale,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for W2JointConfig {
    fn default() -> Self {
        let (label_cost, scale, matching) = (LabelCostKind::LogitsSq, CostScale::Max, Matching::default());
        Self { beta: 1.0, label_cost, scale, matching, weight: WEIGHT }
    }
}

impl Metric for W2JointConfig {
    const INFO: MethodInfo = MethodInfo {
        id: JOINT,
        title: "Joint Wasserstein distance of features and labels",
        inputs: Inputs { embedding: Side::Both, logits: Side::Both, ..Inputs::NONE },
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn matching(&self) -> &Matching {
        &self.matching
    }
    fn check(&self) -> Result<()> {
        check::non_negative(JOINT, "beta", self.beta)
    }
    fn reads_labels(&self) -> bool {
        self.label_cost == LabelCostKind::OnehotSq
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy> {
        let (context, ids) = (batch.context, batch.context.label_ids);
        let (z, t) = (&context.student.logits, context.teacher(JOINT)?.logits.detach());
        let labels = match self.label_cost {
            LabelCostKind::OnehotSq => LabelCost::OneHotSq(ids, ids),
            LabelCostKind::LogitsSq => LabelCost::LogitsSq(z, &t),
            LabelCostKind::ProbsSq => LabelCost::ProbsSq(z, &t),
            LabelCostKind::Kl => LabelCost::Kl(z, &t),
        };
        w2_joint(student, teacher, labels, self.beta, self.scale == CostScale::Max)
    }
}
