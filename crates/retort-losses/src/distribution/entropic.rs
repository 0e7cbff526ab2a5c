//! Entropic optimal transport: between features, debiased, and between class probabilities.

use super::discrepancy::{Clouds, attach, plain, refused};
use super::exact::converged;
use super::matching::{Batch, Matching, Metric, coefficient};
use super::{Discrepancy, KD2M, WEIGHT};
use crate::config::{Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_nn::Tensors;
use retort_transport::{Cost, Points, Regularisation, SinkhornOptions};
use serde::{Deserialize, Serialize};

const SINKHORN: &str = "sinkhorn";
const DIVERGENCE: &str = "sinkhorn-divergence";
const LOGITS: &str = "sinkhorn-logits";

/// Entropic transport with squared Euclidean cost (Cuturi 2013, arXiv 1306.0895):
/// `min_P <P, C> + eps KL(P || a b')` of the two uniform laws, as dual value.
///
/// Not 0 for equal clouds. POT subtracts the entropy of `P` alone and returns `<P, C>` (the detail `transport_cost`); the
/// plan is the same.
///
/// # Shapes
///
/// `student` `[N, D]`, `teacher` `[M, D]`.
/// Details: `plan` `[N, M]`, `transport_cost`, `kl_term` (without its factor `eps`), `eps`, and `converged`, 1 or 0.
///
/// # Gradients
///
/// `2 sum_j P_ij (x_i - y_j)` (envelope theorem), exact at convergence.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a setting out of range. An iteration that did not converge is no error: it
/// says so in `converged`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Entropic, sinkhorn};
/// let x = Tensor::new(&[[0f32], [2.0]], &Device::Cpu)?;
/// let distance = sinkhorn(&x, &x, &Entropic { eps: Some(0.1), ..Entropic::default() })?;
/// // Every point stays where it is: the term is eps times the mutual information ln 2.
/// assert!((distance.value.to_scalar::<f32>()? - 0.1 * 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sinkhorn(student: &Tensor, teacher: &Tensor, options: &Entropic) -> Result<Discrepancy> {
    let clouds = Clouds::new(SINKHORN, student, teacher)?;
    let [x, y] = clouds.points()?;
    let found = retort_transport::sinkhorn_distance(x, y, &options.options()).map_err(|e| clouds.refused(e))?;
    let solution = &found.solution;
    let details = vec![
        ("plan", clouds.detail(&solution.plan, &[x.len(), y.len()])?),
        ("transport_cost", clouds.number(solution.transport)?),
        ("kl_term", clouds.number(solution.kl)?),
        ("eps", clouds.number(solution.eps)?),
        converged(&clouds, solution.convergence.converged)?,
    ];
    clouds.discrepancy(&found.distance, details)
}

/// Debiased entropic transport (Feydy et al. 2019, arXiv 1810.08278):
/// `OT_eps(x, y) - OT_eps(x, x) / 2 - OT_eps(y, y) / 2`, the same `eps` in all three.
///
/// Never negative, 0 for equal clouds only; it tends to `W2^2` for small `eps` and to `||m_x - m_y||^2` for large ones.
/// GeomLoss halves the cost: this is twice its value with `blur = sqrt(eps / 2)`.
///
/// # Shapes
///
/// As for [`sinkhorn`]. Details: `ot_xy`, `ot_xx`, `ot_yy`, `eps`, and `converged`, 1 or 0.
///
/// # Gradients
///
/// `2 sum_j P^xy_ij (x_i - y_j) - 2 sum_j P^xx_ij (x_i - x_j)`.
///
/// # Errors
///
/// As for [`sinkhorn`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Entropic, sinkhorn_divergence};
/// let x = Tensor::new(&[[0f32], [2.0]], &Device::Cpu)?;
/// let y = Tensor::new(&[[3f32], [5.0]], &Device::Cpu)?;
/// let distance = sinkhorn_divergence(&x, &y, &Entropic::default())?;
/// assert!((distance.value.to_scalar::<f32>()? - 9.0).abs() < 1e-3); // a translation by 3
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sinkhorn_divergence(student: &Tensor, teacher: &Tensor, options: &Entropic) -> Result<Discrepancy> {
    let clouds = Clouds::new(DIVERGENCE, student, teacher)?;
    let [x, y] = clouds.points()?;
    let found = retort_transport::sinkhorn_divergence(x, y, &options.options()).map_err(|e| clouds.refused(e))?;
    let details = vec![
        ("ot_xy", clouds.number(found.between.value)?),
        ("ot_xx", clouds.number(found.within_x.value)?),
        ("ot_yy", clouds.number(found.within_y.value)?),
        ("eps", clouds.number(found.eps)?),
        converged(&clouds, found.converged())?,
    ];
    clouds.discrepancy(&found.distance, details)
}

/// Entropic transport between class probabilities: the mean over samples of `OT_eps(p, q)` with `p = softmax(z_s / T)`,
/// `q = softmax(z_t / T)` and a ground cost between classes; no factor `T^2`.
///
/// # Shapes
///
/// `student`, `teacher` `[B, K]`, `cost` `[K, K]`. Details: `per_sample` `[B]`, and `converged`, 1 or 0.
/// [`Discrepancy::grad_teacher`] is with respect to the teacher's logits.
///
/// # Gradients
///
/// `(1 / (B T)) p (f - <p, f>)` with the dual `f` of each sample.
///
/// # Errors
///
/// Other shapes, a value that is not finite, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::distribution::{Entropic, sinkhorn_logits};
/// let z = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let t = Tensor::new(&[[0f32, 1e4]], &Device::Cpu)?;
/// let cost = Tensor::new(&[[0f32, 1.0], [1.0, 0.0]], &Device::Cpu)?;
/// let distance = sinkhorn_logits(&z, &t, &cost, 1.0, &Entropic::default())?;
/// assert_eq!(distance.value.to_scalar::<f32>()?, 0.5); // half of the mass has to move
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sinkhorn_logits(
    student: &Tensor,
    teacher: &Tensor,
    cost: &Tensor,
    temperature: f64,
    options: &Entropic,
) -> Result<Discrepancy> {
    let (_, k, teacher) = ops::logit_pair(LOGITS, student, teacher)?;
    if cost.dims() != [k, k] {
        let (what, expected) = ("ground cost".into(), format!("[{k}, {k}]"));
        return Err(Error::Shape { method: LOGITS, what, expected, found: cost.dims().to_vec() });
    }
    let cost = Cost::new(reduce::wide(cost)?, k, k).map_err(|e| refused(LOGITS, e))?;
    between_classes(student, &teacher, &cost, temperature, options)
}

fn between_classes(
    student: &Tensor,
    teacher: &Tensor,
    cost: &Cost,
    temperature: f64,
    options: &Entropic,
) -> Result<Discrepancy> {
    let clouds = Clouds::of(["student logits", "teacher logits"], LOGITS, student, teacher)?;
    let [x, y] = clouds.points()?;
    let found = retort_transport::sinkhorn_histograms(x, y, cost, temperature, &options.options());
    let found = found.map_err(|e| clouds.refused(e))?;
    let details =
        vec![("per_sample", clouds.detail(&found.per_sample, &[x.len()])?), converged(&clouds, found.converged())?];
    let value = attach(found.value, student, &found.grad_student)?;
    Ok(Discrepancy { value, grad_teacher: plain(&found.grad_teacher, teacher.dims(), student)?, details })
}

/// How an entropic problem is solved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Entropic {
    /// Strength of the entropic term in the unit of the costs, > 0; none: `relative_eps`.
    pub eps: Option<f64>,
    /// Strength as a multiple of the batch's mean cost (constant in the backward pass), > 0; used where `eps` is not set.
    pub relative_eps: f64,
    /// Sweeps at most, >= 1.
    pub max_iter: usize,
    /// L1 error of the marginals at which the iteration stops, > 0.
    pub tolerance: f64,
}

impl Default for Entropic {
    fn default() -> Self {
        Self { eps: None, relative_eps: 0.05, max_iter: 500, tolerance: 1e-4 }
    }
}

impl Entropic {
    fn options(&self) -> SinkhornOptions {
        let eps = self.eps.map_or(Regularisation::RelativeToMean(self.relative_eps), Regularisation::Absolute);
        let (max_iter, tolerance) = (self.max_iter, self.tolerance);
        SinkhornOptions { eps, max_iter, tolerance, ..SinkhornOptions::default() }
    }

    fn check(&self, method: &'static str) -> Result<()> {
        self.eps.map_or(Ok(()), |eps| check::positive(method, "eps", eps))?;
        check::positive(method, "relative_eps", self.relative_eps)?;
        check::count(method, "max_iter", self.max_iter)?;
        check::positive(method, "tolerance", self.tolerance)
    }
}

/// Settings of entropic transport between features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkhornConfig {
    /// How the problem is solved.
    pub entropic: Entropic,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SinkhornConfig {
    fn default() -> Self {
        Self { entropic: Entropic::default(), matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for SinkhornConfig {
    const INFO: MethodInfo = MethodInfo {
        id: SINKHORN,
        title: "Entropic transport between features",
        paper: Some("Sinkhorn Distances: Lightspeed Computation of Optimal Transport"),
        year: Some(2013),
        arxiv: Some("1306.0895"),
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
        self.entropic.check(SINKHORN)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        sinkhorn(student, teacher, &self.entropic)
    }
}

/// Settings of the debiased entropic transport between features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkhornDivergenceConfig {
    /// How the problems are solved.
    pub entropic: Entropic,
    /// What the weight multiplies, and what the features go through before.
    pub matching: Matching,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SinkhornDivergenceConfig {
    fn default() -> Self {
        Self { entropic: Entropic::default(), matching: Matching::default(), weight: WEIGHT }
    }
}

impl Metric for SinkhornDivergenceConfig {
    const INFO: MethodInfo = MethodInfo {
        id: DIVERGENCE,
        title: "Sinkhorn divergence",
        paper: Some("Interpolating between Optimal Transport and MMD using Sinkhorn Divergences"),
        year: Some(2019),
        arxiv: Some("1810.08278"),
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
        self.entropic.check(DIVERGENCE)
    }
    fn distance(&self, student: &Tensor, teacher: &Tensor, _batch: &Batch<'_>) -> Result<Discrepancy> {
        sinkhorn_divergence(student, teacher, &self.entropic)
    }
}

/// What moving probability from one class to another costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroundCost {
    /// `1 - cos` of the means of the teacher's features of the two classes over all samples seen so far, divided by the
    /// largest; a class that has not been seen is orthogonal to all others.
    #[default]
    ClassMeans,
    /// 1 between any two classes.
    Uniform,
}

/// Settings of entropic transport between class probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkhornLogitsConfig {
    /// Divides both networks' logits, in 0.001 ..= 1000.
    pub temperature: f64,
    /// What moving from one class to another costs.
    pub cost: GroundCost,
    /// How the problems are solved.
    pub entropic: Entropic,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SinkhornLogitsConfig {
    fn default() -> Self {
        Self { temperature: 1.0, cost: GroundCost::ClassMeans, entropic: Entropic::default(), weight: 1.0 }
    }
}

impl Method for SinkhornLogitsConfig {
    const INFO: MethodInfo = MethodInfo {
        id: LOGITS,
        title: "Entropic transport between class probabilities",
        family: Family::Distribution,
        inputs: Inputs { logits: Side::Both, embedding: Side::Teacher, labels: true, ..Inputs::NONE },
        state: &["sums of the teacher's features of each class"],
        weight: 1.0,
        ..KD2M
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::temperature(LOGITS, self.temperature)?;
        self.entropic.check(LOGITS)
    }
    fn needs(&self) -> Needs {
        Needs { labels: self.cost == GroundCost::ClassMeans, ..Needs::TEACHER }
    }
    fn teacher_temperature(&self) -> Option<f64> {
        // The means of the classes are those of the teacher's features.
        (self.cost == GroundCost::Uniform).then_some(self.temperature)
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.same_classes(LOGITS)?;
        let (classes, width) = (ctx.student.classes, ctx.teacher(LOGITS)?.embedding);
        Ok(Box::new(SinkhornLogits { config: self.clone(), sums: vec![0.0; classes * width], classes, width }))
    }
}

struct SinkhornLogits {
    config: SinkhornLogitsConfig,
    /// Sums of the teacher's features, class by class: a mean has their direction.
    sums: Vec<f64>,
    classes: usize,
    width: usize,
}

impl SinkhornLogits {
    fn cost(&mut self, features: &Tensor, labels: &[u32]) -> Result<Cost> {
        let k = self.classes;
        if self.config.cost == GroundCost::Uniform {
            let values = (0..k * k).map(|i| if i / k == i % k { 0.0 } else { 1.0 }).collect();
            return Cost::new(values, k, k).map_err(|e| refused(LOGITS, e));
        }
        let (rows, width) = ops::logits(LOGITS, "teacher features", features)?;
        if (rows, width) != (labels.len(), self.width) {
            let (what, expected) = ("teacher features".into(), format!("[{}, {}]", labels.len(), self.width));
            return Err(Error::Shape { method: LOGITS, what, expected, found: features.dims().to_vec() });
        }
        let values = reduce::wide(features)?;
        Points::new("teacher features", &values, width).map_err(|e| refused(LOGITS, e))?;
        for (row, &label) in values.chunks_exact(width).zip(labels) {
            let start = label as usize * width;
            let Some(sum) = self.sums.get_mut(start..start + width) else {
                let (what, index) = ("label", u64::from(label));
                return Err(Error::Index { method: LOGITS, what, index, size: k });
            };
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let means = Points::new("class means", &self.sums, width).map_err(|e| refused(LOGITS, e))?;
        retort_transport::class_costs(means).map_err(|e| refused(LOGITS, e))
    }
}

impl Distiller for SinkhornLogits {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let teacher = ctx.teacher(LOGITS)?;
        let (_, _, logits) = ops::logit_pair(LOGITS, &ctx.student.logits, &teacher.logits)?;
        let cost = self.cost(&teacher.embedding.detach(), ctx.label_ids)?;
        let (temperature, entropic) = (self.config.temperature, &self.config.entropic);
        let found = between_classes(&ctx.student.logits, &logits, &cost, temperature, entropic)?;
        let mut parts = found.scalars()?;
        parts.push(coefficient(self.config.weight, &found.value)?);
        Ok(Term { name: LOGITS, weight: self.config.weight, value: found.value, parts })
    }

    fn state(&self) -> Result<Tensors> {
        let sums = Tensor::from_slice(&self.sums, (self.classes, self.width), &Device::Cpu)?;
        Ok(Tensors::from([("class_sums".to_string(), sums)]))
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let invalid = |message: String| Error::State { method: LOGITS, name: "class_sums".into(), message };
        let expected = format!("expected f64 [{}, {}]", self.classes, self.width);
        match state.get("class_sums") {
            Some(sums)
                if sums.dims() == [self.classes, self.width] && sums.dtype() == DType::F64 && state.len() == 1 =>
            {
                self.sums = sums.flatten_all()?.to_vec1()?;
                Ok(())
            }
            Some(sums) => Err(invalid(format!("{expected} alone, found {:?} {:?}", sums.dtype(), sums.dims()))),
            None => Err(invalid(format!("{expected}, found none"))),
        }
    }
}
