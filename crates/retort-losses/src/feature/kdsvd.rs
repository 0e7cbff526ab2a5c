//! Affinities between the singular vectors of consecutive stages.

use super::eigen::{self, Spectrum, axpy};
use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::stages::Pairing;
use crate::{Align, Error, Result, StageLoss, ops, reduce};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use retort_kernels::with_gradient;
use retort_nn::MapShape;
use serde::{Deserialize, Serialize};

const METHOD: &str = "kdsvd";
/// Up to this product two unit vectors count as orthogonal.
const ORTHOGONAL: f64 = 1e-12;

/// How a map becomes a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SvdVariant {
    /// `[H W, C]`, vectors over channels: equal channels are needed. RepDistiller's; slow for many channels.
    Channel,
    /// `[C H, W]`, vectors over image columns: equal widths are needed. mdistiller's.
    #[default]
    Width,
}

/// What [`singular_vector_affinity`] compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SvdSpec {
    /// How a map becomes a matrix.
    pub variant: SvdVariant,
    /// Singular vectors of the teacher, >= 1.
    pub k: usize,
    /// By how many the student has more to choose from.
    pub extra: usize,
    /// Divisor of the squared differences in the affinity, > 0.
    pub rbf_div: f64,
}

impl Default for SvdSpec {
    fn default() -> Self {
        Self { variant: SvdVariant::Width, k: 1, extra: 3, rbf_div: 8.0 }
    }
}

impl SvdSpec {
    fn validate(&self) -> Result<()> {
        check::count(METHOD, "k", self.k)?;
        check::positive(METHOD, "rbf_div", self.rbf_div)
    }

    /// Vectors that the student chooses from; a map of fewer rows has no more of them.
    fn candidates(&self) -> usize {
        self.k.saturating_add(self.extra)
    }

    /// Rows and columns of the matrix that a map becomes.
    fn matrix(&self, map: MapShape) -> (usize, usize) {
        match self.variant {
            SvdVariant::Channel => (map.height * map.width, map.channels),
            SvdVariant::Width => (map.channels * map.height, map.width),
        }
    }

    /// Checks that the maps of a stage can be compared.
    fn check(&self, stage: usize, student: MapShape, teacher: MapShape) -> Result<()> {
        let ((rows_s, cols_s), (rows_t, cols_t)) = (self.matrix(student), self.matrix(teacher));
        if cols_s == cols_t && cols_s >= self.candidates() && rows_s.min(rows_t) >= self.k {
            return Ok(());
        }
        let (variant, what) = match self.variant {
            SvdVariant::Channel => ("channel", "channels"),
            SvdVariant::Width => ("width", "columns"),
        };
        let message = format!(
            "stage {stage}: variant `{variant}` needs equally many {what}, at least k + extra = {}, and k = {} rows of the \
             matrix: the student has {}, the teacher {}",
            self.candidates(),
            self.k,
            ops::describe(&student),
            ops::describe(&teacher)
        );
        Err(Error::Undefined { method: METHOD, message })
    }
}

/// Distillation by singular value decomposition (Lee et al. 2018, arXiv 1807.06819).
///
/// Per stage and sample the map becomes a matrix `X = U S V^T`, see [`SvdVariant`].
/// The teacher keeps the `k` leading columns of `V`, the student `k + extra`; each column of the teacher picks the
/// student's column with the largest `|v_s . v_t|`, times the sign of that product. Both are multiplied by the
/// teacher's `k` singular values divided by their norm, so that for `k = 1` the factor is 1.
/// For each two consecutive stages, with `d` and `e` the rows of their `V`, the affinity is
/// `R[d, e, j] = exp(-(V_i[d, j] - V_{i-1}[e, j])^2 / rbf_div)`, and the loss the sum of `(R_s - R_t)^2` over everything,
/// divided by B.
///
/// The sign of a singular vector is arbitrary, and the value depends on the teacher's: here the entry of largest
/// magnitude is positive. An all-zero map of the teacher has the factor 0. Values that are not finite stay visible in the
/// result, where the references put 0.
///
/// # Shapes
///
/// `student[i]`: `[B, C_i, H_i, W_i]`, `teacher[i]`: `[B, C'_i, H'_i, W'_i]`, with as many columns of the matrix (C or W),
/// at least `k + extra`; at least two stages. The summands of the result are the pairs of consecutive stages.
///
/// # Gradients
///
/// Into the student's maps, through its singular vectors: `dv_j = sum_m v_m (v_m^T dA v_j) / (l_j - l_m)` with the
/// eigenvalues `l` of `A = X^T X`. The choice of columns is a constant. `1 / d` is replaced by `d / (d^2 + eps)` with
/// `eps = 1e-12 l_1^2`, which is finite where singular values coincide; a sample of a stage whose gradient leaves the
/// range of f32 all the same gets none.
///
/// # Errors
///
/// Lists of different lengths or of fewer than two maps, batch sizes that differ, matrices that do not fit or are too
/// small, `k` or `rbf_div` out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::feature::{SvdSpec, singular_vector_affinity};
/// let map = Tensor::arange(0f32, 48., &Device::Cpu)?.sin()?.reshape((1, 3, 4, 4))?;
/// let scaled = (&map * 3.0)?;
/// let loss = singular_vector_affinity(&[map.clone(), map], &[scaled.clone(), scaled], SvdSpec::default())?;
/// assert!(loss.total.to_scalar::<f32>()? < 1e-12);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn singular_vector_affinity(student: &[Tensor], teacher: &[Tensor], spec: SvdSpec) -> Result<StageLoss> {
    spec.validate()?;
    if student.len() != teacher.len() {
        let list = |maps: &[Tensor]| maps.iter().map(|m| format!("{:?}", m.dims())).collect();
        return Err(Error::Stages { method: METHOD, student: list(student), teacher: list(teacher) });
    }
    at_least_two(student.len())?;
    let pairs = student.iter().zip(teacher).enumerate();
    let stages = pairs.map(|(i, (s, t))| Stage::new(i, s, t, spec)).collect::<Result<Vec<_>>>()?;
    let stages = stages.windows(2).map(|pair| affinity(&pair[0], &pair[1])).collect::<Result<Vec<_>>>()?;
    Ok(StageLoss { total: ops::total(&stages)?, stages })
}

fn at_least_two(stages: usize) -> Result<()> {
    if stages >= 2 {
        return Ok(());
    }
    let message = format!("compares consecutive stages: expected at least two, found {stages}");
    Err(Error::Undefined { method: METHOD, message })
}

/// One matrix per sample, f64 `[B, rows, columns]` on the host.
fn matrices(variant: SvdVariant, map: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = map.dims4()?;
    let x = map.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(match variant {
        SvdVariant::Channel => x.reshape((b, c, h * w))?.t()?.contiguous()?,
        SvdVariant::Width => x.reshape((b, c * h, w))?,
    })
}

/// Squared singular values and right singular vectors of each sample: the spectrum of `X^T X`.
fn spectra(x: &Tensor) -> Result<Vec<Spectrum>> {
    let (_, _, n) = x.dims3()?;
    let gram = reduce::wide(&x.t()?.matmul(x)?)?;
    Ok(gram.par_chunks(n * n).map(|gram| eigen::symmetric(gram.to_vec(), n)).collect())
}

/// One chosen column of the student: index, and the sign that turns it to the teacher.
type Pick = (usize, f64);

/// One sample of one stage; the vectors are `[columns, k]`, scaled.
struct Sample {
    student: Vec<f64>,
    teacher: Vec<f64>,
    spectrum: Spectrum,
    picks: Vec<Vec<Pick>>,
    factors: Vec<f64>,
}

impl Sample {
    fn new(student: Spectrum, teacher: &Spectrum, k: usize, candidates: usize) -> Self {
        let picks: Vec<Vec<Pick>> = (0..k).map(|j| choose(&student, teacher.vector(j), candidates)).collect();
        let singular: Vec<f64> = teacher.values[..k].iter().map(|l| if *l < 0.0 { 0.0 } else { l.sqrt() }).collect();
        let norm = singular.iter().map(|s| s * s).sum::<f64>().sqrt();
        let factors: Vec<f64> = singular.iter().map(|s| if norm == 0.0 { 0.0 } else { s / norm }).collect();
        let n = student.values.len();
        let mut vectors = [vec![0.0; n * k], vec![0.0; n * k]];
        for (j, factor) in factors.iter().enumerate() {
            for (d, v) in teacher.vector(j).iter().enumerate() {
                vectors[1][d * k + j] = factor * v;
            }
            for &(m, sign) in &picks[j] {
                for (d, v) in student.vector(m).iter().enumerate() {
                    vectors[0][d * k + j] += factor * sign * v;
                }
            }
        }
        let [aligned, teacher] = vectors;
        Self { student: aligned, teacher, spectrum: student, picks, factors }
    }

    /// `P + P^T` with `P` the gradient with respect to `X^T X`, from that with respect to the student's vectors.
    fn gram_gradient(&self, g: &[f64]) -> Vec<f64> {
        let (n, k) = (self.spectrum.values.len(), self.factors.len());
        let mut out = vec![0.0; n * n];
        let largest = self.spectrum.values[0];
        if largest == 0.0 {
            return out;
        }
        for j in 0..k {
            for &(m, sign) in &self.picks[j] {
                let g: Vec<f64> = (0..n).map(|d| self.factors[j] * sign * g[d * k + j]).collect();
                let w = self.turn(m, &g, 1e-12 * largest * largest);
                let v = self.spectrum.vector(m);
                for (row, (v_r, w_r)) in out.chunks_mut(n).zip(v.iter().zip(&w)) {
                    axpy(row, *w_r, v);
                    axpy(row, *v_r, &w);
                }
            }
        }
        out
    }

    /// `sum_l v_l (v_l . g) / (l_m - l_l)` over `l != m`, damped.
    fn turn(&self, m: usize, g: &[f64], eps: f64) -> Vec<f64> {
        let values = &self.spectrum.values;
        let mut w = vec![0.0; values.len()];
        for (l, value) in values.iter().enumerate().filter(|(l, _)| *l != m) {
            let v = self.spectrum.vector(l);
            let gap = values[m] - value;
            let along: f64 = v.iter().zip(g).map(|(v, g)| v * g).sum();
            axpy(&mut w, along * gap / (gap * gap + eps), v);
        }
        w
    }
}

/// The columns of the student with the largest `|v_s . v_t|`: one, or several that tie.
fn choose(student: &Spectrum, teacher: &[f64], candidates: usize) -> Vec<Pick> {
    let product = |m: usize| student.vector(m).iter().zip(teacher).map(|(s, t)| s * t).sum();
    let products: Vec<f64> = (0..candidates).map(product).collect();
    if products.iter().any(|q| q.is_nan()) {
        // It must stay visible.
        return vec![(0, f64::NAN)];
    }
    let largest = products.iter().fold(0.0, |max: f64, q| max.max(q.abs()));
    // Unit vectors whose products are no more than rounding have nothing in common: sign(0) = 0, and no column is chosen.
    if largest <= ORTHOGONAL {
        return Vec::new();
    }
    let chosen = products.iter().enumerate().filter(|(_, q)| q.abs() == largest);
    chosen.map(|(m, q)| (m, q.signum())).collect()
}

/// One stage of both networks, decomposed.
struct Stage<'a> {
    map: &'a Tensor,
    x: Tensor,
    samples: Vec<Sample>,
    spec: SvdSpec,
}

impl<'a> Stage<'a> {
    fn new(stage: usize, student: &'a Tensor, teacher: &Tensor, spec: SvdSpec) -> Result<Self> {
        ops::check_maps(METHOD, stage, student, teacher)?;
        let shape = |map: &Tensor| -> Result<MapShape> {
            let (_, channels, height, width) = map.dims4()?;
            Ok(MapShape { channels, height, width })
        };
        spec.check(stage, shape(student)?, shape(teacher)?)?;
        let x = matrices(spec.variant, student)?;
        let pairs = spectra(&x)?.into_par_iter().zip(spectra(&matrices(spec.variant, teacher)?)?);
        let candidates = spec.candidates().min(x.dims()[1]);
        let samples = pairs.map(|(s, t)| Sample::new(s, &t, spec.k, candidates)).collect();
        Ok(Self { map: student, x, samples, spec })
    }

    /// The gradient of the map, from that of the vectors of each sample.
    fn gradient<'g>(&self, of_vectors: impl IndexedParallelIterator<Item = &'g [f64]>) -> Result<Tensor> {
        let (b, rows, n) = self.x.dims3()?;
        let of_gram: Vec<f64> =
            self.samples.par_iter().zip(of_vectors).flat_map_iter(|(sample, g)| sample.gram_gradient(g)).collect();
        let mut g = reduce::wide(&self.x.matmul(&Tensor::from_vec(of_gram, (b, n, n), &Device::Cpu)?)?)?;
        g.par_chunks_mut(rows * n).for_each(|sample| {
            if sample.iter().any(|x| !(*x as f32).is_finite()) {
                sample.fill(0.0);
            }
        });
        let g = Tensor::from_vec(g, (b, rows, n), &Device::Cpu)?;
        let g = match self.spec.variant {
            SvdVariant::Channel => g.t()?.contiguous()?,
            SvdVariant::Width => g,
        };
        Ok(g.reshape(self.map.shape())?.to_dtype(self.map.dtype())?.to_device(self.map.device())?)
    }
}

/// The loss of a pair of consecutive stages.
fn affinity(shallow: &Stage<'_>, deep: &Stage<'_>) -> Result<Tensor> {
    let b = deep.samples.len();
    let spec = deep.spec;
    let samples = shallow.samples.par_iter().zip(&deep.samples);
    let compared: Vec<Compared> = samples.map(|(shallow, deep)| Compared::new(shallow, deep, spec, b)).collect();
    let value = compared.iter().map(|c| c.value).sum();
    if !(shallow.map.track_op() || deep.map.track_op()) {
        return reduce::constant(value, deep.map);
    }
    let of_deep = deep.gradient(compared.par_iter().map(|c| &c.deep[..]))?;
    let of_shallow = shallow.gradient(compared.par_iter().map(|c| &c.shallow[..]))?;
    Ok((with_gradient(value, deep.map, &of_deep)? + with_gradient(0.0, shallow.map, &of_shallow)?)?)
}

/// One sample's summand of the loss of a pair, and its gradients with respect to the student's vectors.
struct Compared {
    value: f64,
    shallow: Vec<f64>,
    deep: Vec<f64>,
}

impl Compared {
    fn new(shallow: &Sample, deep: &Sample, spec: SvdSpec, b: usize) -> Self {
        let k = spec.k;
        let mut out =
            Self { value: 0.0, shallow: vec![0.0; shallow.student.len()], deep: vec![0.0; deep.student.len()] };
        for (d, (s_d, t_d)) in deep.student.chunks(k).zip(deep.teacher.chunks(k)).enumerate() {
            for (e, (s_e, t_e)) in shallow.student.chunks(k).zip(shallow.teacher.chunks(k)).enumerate() {
                for j in 0..k {
                    let (x, y) = (s_d[j] - s_e[j], t_d[j] - t_e[j]);
                    let affinity = (-x * x / spec.rbf_div).exp();
                    let difference = affinity - (-y * y / spec.rbf_div).exp();
                    out.value += difference * difference / b as f64;
                    let slope = -4.0 * difference * affinity * x / (spec.rbf_div * b as f64);
                    out.deep[d * k + j] += slope;
                    out.shallow[e * k + j] -= slope;
                }
            }
        }
        out
    }
}

/// Hyper-parameters of distillation by singular value decomposition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdsvdConfig {
    /// How a map becomes a matrix: `width` works for any number of channels, `channel` for any size.
    pub variant: SvdVariant,
    /// Singular vectors of the teacher, >= 1.
    pub k: usize,
    /// By how many the student has more to choose from.
    pub extra: usize,
    /// Divisor of the squared differences in the affinity, > 0.
    pub rbf_div: f64,
    /// Pairing of stages.
    pub align: Align,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for KdsvdConfig {
    fn default() -> Self {
        let SvdSpec { variant, k, extra, rbf_div } = SvdSpec::default();
        Self { variant, k, extra, rbf_div, align: Align::Exact, weight: 1.0 }
    }
}

impl KdsvdConfig {
    fn spec(&self) -> SvdSpec {
        SvdSpec { variant: self.variant, k: self.k, extra: self.extra, rbf_div: self.rbf_div }
    }
}

impl Method for KdsvdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Distillation by singular value decomposition",
        family: Family::Feature,
        paper: Some("Self-supervised Knowledge Distillation Using Singular Value Decomposition"),
        year: Some(2018),
        arxiv: Some("1807.06819"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Stages, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        self.spec().validate()
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        let shapes = pairing.shapes(ctx)?;
        at_least_two(shapes.len())?;
        for (i, (student, teacher)) in shapes.into_iter().enumerate() {
            self.spec().check(i, student, teacher)?;
        }
        Ok(Box::new(Kdsvd { config: self.clone(), pairing }))
    }
}

struct Kdsvd {
    config: KdsvdConfig,
    pairing: Pairing,
}

impl Distiller for Kdsvd {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.maps(ctx)?;
        let loss = singular_vector_affinity(&student, &teacher, self.config.spec())?;
        Ok(Term { name: METHOD, weight: self.config.weight, parts: loss.parts(), value: loss.total })
    }
}
