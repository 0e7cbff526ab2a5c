//! Distillation of what a network knows about rotated views.

use super::rotation::{TURNS, images, labelled, term, turned, unturned};
use crate::config::check;
use crate::distiller::Term;
use crate::output::kd;
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Tensor};
use retort_kernels::{inner_products, softmax_cross_entropy};
use serde::{Deserialize, Serialize};

const METHOD: &str = "sskd";
/// Rows up to this length count as zero.
const ZERO: f64 = 1e-12;

/// What a network says about a batch of B images under four quarter turns each, row `4i + k` being image i under k turns.
#[derive(Clone, Copy)]
pub struct SskdOutputs<'a> {
    /// Class scores `[4B, C]`.
    pub logits: &'a Tensor,
    /// Its projection head's output `[4B, D]`.
    pub proj: &'a Tensor,
}

impl SskdOutputs<'_> {
    fn check(&self, labels: &[u32]) -> Result<()> {
        let (b, _) = labelled(METHOD, self.logits, labels)?;
        projections(self.proj)?;
        if self.proj.dims()[0] == b * TURNS {
            return Ok(());
        }
        let (what, expected) = ("projections".into(), format!("[{}, D] as the logits", b * TURNS));
        Err(Error::Shape { method: METHOD, what, expected, found: self.proj.dims().to_vec() })
    }
}

/// Number of images of projections `[4B, D]`.
fn projections(proj: &Tensor) -> Result<usize> {
    ops::logits(METHOD, "projections", proj)?;
    images(METHOD, "projections", proj)
}

/// Which image a turned view looks like: `S = cos(turned, unturned)` (SSKD; Xu et al. 2020, arXiv 2006.07114).
///
/// # Shapes
///
/// `proj`: `[4B, D]`, row `4i + k` being image i under k quarter turns. Returns `[3B, B]` in f64, row `3i + k - 1` being
/// image i under k turns; its own image is column i. A row of zeros has cosine 0 with every other, without gradient.
///
/// # Gradients
///
/// Into `proj`.
///
/// # Errors
///
/// Rows that are no multiple of 4, an empty batch.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// let proj = Tensor::ones((8, 3), DType::F32, &Device::Cpu)?;
/// let similarity = retort_losses::self_supervised::rotation_similarity(&proj)?;
/// assert_eq!(similarity.dims(), [6, 2]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn rotation_similarity(proj: &Tensor) -> Result<Tensor> {
    projections(proj)?;
    let unit = ops::guarded_normalize(&proj.to_dtype(DType::F64)?, ZERO)?;
    Ok(inner_products(&turned(&unit)?, &unturned(&unit)?)?)
}

/// The column of its own image for each row of [`rotation_similarity`].
fn own_image(b: usize) -> Vec<u32> {
    (0..b as u32).flat_map(|i| [i; TURNS - 1]).collect()
}

/// SSKD's self-supervised task, which trains the teacher's projection head: the cross-entropy of
/// [`rotation_similarity`] with each view's own image, without temperature (Xu et al. 2020, arXiv 2006.07114).
///
/// # Shapes
///
/// `proj`: `[4B, D]`. Returns a scalar.
///
/// # Gradients
///
/// Into `proj`; the caller detaches the features before the head.
///
/// # Errors
///
/// Rows that are no multiple of 4, an empty batch.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// let proj = Tensor::ones((8, 3), DType::F32, &Device::Cpu)?;
/// let loss = retort_losses::self_supervised::ssp(&proj)?;
/// assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ssp(proj: &Tensor) -> Result<Tensor> {
    let b = projections(proj)?;
    Ok(softmax_cross_entropy(&rotation_similarity(proj)?, &own_image(b), 0.0)?.to_dtype(proj.dtype())?)
}

/// For each row the number of columns with a strictly higher score than the right answer's: 0 is the best.
///
/// # Shapes
///
/// `scores`: `[N, C]`, `answers`: the right column of each row.
///
/// # Errors
///
/// Another shape, answers that do not fit.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let scores = Tensor::new(&[[1f32, 5.0, 5.0], [3.0, 2.0, 1.0]], &Device::Cpu)?;
/// assert_eq!(retort_losses::self_supervised::answer_ranks(&scores, &[0, 0])?, [2, 0]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn answer_ranks(scores: &Tensor, answers: &[u32]) -> Result<Vec<usize>> {
    let (n, c) = ops::logits(METHOD, "scores", scores)?;
    if answers.len() != n {
        let message = format!("expected an answer for each of {n} rows, found {}", answers.len());
        return Err(Error::Undefined { method: METHOD, message });
    }
    let scores = reduce::wide(scores)?;
    let rank = |(row, &answer): (&[f64], &u32)| {
        let size = row.len();
        let own = row.get(answer as usize);
        let own = own.ok_or(Error::Index { method: METHOD, what: "answer", index: u64::from(answer), size })?;
        Ok(row.iter().filter(|score| *score > own).count())
    };
    scores.chunks_exact(c).zip(answers).map(rank).collect()
}

/// The rows that a teacher is trusted with: all of rank 0, and of the others the first `trunc(ratio * their number)` in the
/// order of their ranks; of equal ranks the first rows.
///
/// Returns the rows in ascending order.
///
/// # Errors
///
/// A ratio outside of `0 ..= 1`, more than 2^32 rows.
///
/// # Example
///
/// ```
/// use retort_losses::self_supervised::select_rows;
/// assert_eq!(select_rows(&[3, 0, 1, 2], 0.75)?, [1, 2, 3]);
/// assert_eq!(select_rows(&[3, 0, 1, 2], 0.0)?, [1]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn select_rows(ranks: &[usize], ratio: f64) -> Result<Vec<u32>> {
    check::unit(METHOD, "ratio", ratio)?;
    let rows = u32::try_from(ranks.len()).map_err(|_| Error::Index {
        method: METHOD,
        what: "row",
        index: ranks.len() as u64,
        size: u32::MAX as usize,
    })?;
    let (mut kept, mut wrong): (Vec<u32>, Vec<u32>) = (0..rows).partition(|&row| ranks[row as usize] == 0);
    // A stable sort: rows of one rank stay in their order.
    wrong.sort_by_key(|&row| ranks[row as usize]);
    wrong.truncate((ratio * wrong.len() as f64) as usize);
    kept.extend(wrong);
    kept.sort_unstable();
    Ok(kept)
}

/// The parts of SSKD's student phase.
#[derive(Clone, Debug)]
pub struct SskdLoss {
    /// Cross-entropy of the rows without a turn, a scalar.
    pub ce: Tensor,
    /// Divergence of the rows without a turn, a scalar.
    pub kd: Tensor,
    /// Divergence of the kept turned rows, a scalar.
    pub tf: Tensor,
    /// Divergence of the kept rows of the similarities, a scalar.
    pub ss: Tensor,
    /// Which of the 3B turned rows count in `tf`, ascending; row `3i + k - 1` is image i under k turns.
    pub kept_tf: Vec<u32>,
    /// The same for `ss`.
    pub kept_ss: Vec<u32>,
}

impl SskdLoss {
    /// `sskd.ce`, `sskd.kd`, `sskd.tf`, `sskd.ss`; the last two with the number of rows that were kept.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn terms(&self, config: &SskdConfig) -> Result<Vec<Term>> {
        let kept = |rows: &[u32]| -> Result<Vec<(String, Tensor)>> {
            Ok(vec![("kept".to_string(), reduce::constant(rows.len() as f64, &self.ce)?)])
        };
        Ok(vec![
            term("sskd.ce", config.ce_weight, &self.ce, Vec::new()),
            term("sskd.kd", config.kd_weight, &self.kd, Vec::new()),
            term("sskd.tf", config.tf_weight, &self.tf, kept(&self.kept_tf)?),
            term("sskd.ss", config.ss_weight, &self.ss, kept(&self.kept_ss)?),
        ])
    }
}

/// The student phase of SSKD (Xu et al. 2020, arXiv 2006.07114), four parts of which the weighted sum is the loss.
///
/// With N the rows without a turn, A the turned ones, and S the [`rotation_similarity`]:
/// `CE(z_N, y)`, `KD_4(z_N, z_N^t)`, `KD_4(z_A, z_A^t)` over the rows that the teacher classifies best, and
/// `KD_0.5(S, S^t)` over the rows whose own image it recognises best ([`answer_ranks`], [`select_rows`]).
/// `KD` is [`kd`], a mean over the rows that count; where none is kept the part is 0.
///
/// # Shapes
///
/// See [`SskdOutputs`]; both networks have the same classes, their projections may differ in width. `labels`: a class
/// for each of B images.
///
/// # Gradients
///
/// Into `student`; `teacher` is detached, and so is the selection.
///
/// # Errors
///
/// Rows that are no multiple of 4, shapes that do not fit, labels that do not fit, a field of `config` out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use retort_losses::self_supervised::{SskdConfig, SskdOutputs, sskd};
/// let (logits, proj) = (Tensor::new(&[[1f32, 0.0]; 8], &Device::Cpu)?, Tensor::ones((8, 3), DType::F32, &Device::Cpu)?);
/// let network = SskdOutputs { logits: &logits, proj: &proj };
/// let loss = sskd(&network, &network, &[0, 1], &SskdConfig::default())?;
/// assert_eq!((loss.kept_tf.len(), loss.tf.to_scalar::<f32>()?), (6, 0.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sskd(
    student: &SskdOutputs<'_>,
    teacher: &SskdOutputs<'_>,
    labels: &[u32],
    config: &SskdConfig,
) -> Result<SskdLoss> {
    config.validate()?;
    student.check(labels)?;
    teacher.check(labels)?;
    let (_, _, teacher_logits) = ops::logit_pair(METHOD, student.logits, teacher.logits)?;
    let (logits_n, logits_a) = (unturned(student.logits)?, turned(student.logits)?);
    let teacher_a = turned(&teacher_logits)?;
    let answers: Vec<u32> = labels.iter().flat_map(|&label| [label; TURNS - 1]).collect();
    let kept_tf = select_rows(&answer_ranks(&teacher_a, &answers)?, config.ratio_tf)?;

    let similarity = rotation_similarity(student.proj)?;
    let teacher_similarity = rotation_similarity(&teacher.proj.detach())?;
    let ranks = answer_ranks(&teacher_similarity, &own_image(labels.len()))?;
    let kept_ss = select_rows(&ranks, config.ratio_ss)?;
    let ss = of_rows(&similarity, &teacher_similarity, &kept_ss, config.ss_temperature)?;
    Ok(SskdLoss {
        ce: softmax_cross_entropy(&logits_n, labels, 0.0)?,
        kd: kd(&logits_n, &unturned(&teacher_logits)?, config.kd_temperature)?,
        tf: of_rows(&logits_a, &teacher_a, &kept_tf, config.tf_temperature)?,
        ss: ss.to_dtype(student.logits.dtype())?,
        kept_tf,
        kept_ss,
    })
}

/// The divergence of some rows; 0 for none.
fn of_rows(student: &Tensor, teacher: &Tensor, rows: &[u32], temperature: f64) -> Result<Tensor> {
    if rows.is_empty() {
        // Times zeros rather than a fresh zero: NaN stays NaN, and the projection head stays in the graph.
        return reduce::sum_all(&(student * student.zeros_like()?)?);
    }
    let rows = Tensor::new(rows, student.device())?;
    kd(&student.index_select(&rows, 0)?, &teacher.index_select(&rows, 0)?, temperature)
}

/// Hyper-parameters of SSKD's student phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SskdConfig {
    /// Softmax temperature of the rows without a turn.
    pub kd_temperature: f64,
    /// Softmax temperature of the turned rows.
    pub tf_temperature: f64,
    /// Softmax temperature of the similarities.
    pub ss_temperature: f64,
    /// Share of the turned rows that the teacher gets wrong and that are kept, in `0 ..= 1`.
    pub ratio_tf: f64,
    /// Share of the rows of the similarities that the teacher gets wrong and that are kept, in `0 ..= 1`.
    pub ratio_ss: f64,
    /// Weight of the class labels.
    pub ce_weight: f64,
    /// Weight of the divergence of the rows without a turn.
    pub kd_weight: f64,
    /// Weight of the divergence of the turned rows.
    pub tf_weight: f64,
    /// Weight of the divergence of the similarities. The student's projection head has no other term.
    pub ss_weight: f64,
}

impl Default for SskdConfig {
    fn default() -> Self {
        Self {
            kd_temperature: 4.0,
            tf_temperature: 4.0,
            ss_temperature: 0.5,
            ratio_tf: 1.0,
            ratio_ss: 0.75,
            ce_weight: 0.1,
            kd_weight: 0.9,
            tf_weight: 2.7,
            ss_weight: 10.0,
        }
    }
}

impl SskdConfig {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature_field(METHOD, "kd_temperature", self.kd_temperature)?;
        check::temperature_field(METHOD, "tf_temperature", self.tf_temperature)?;
        check::temperature_field(METHOD, "ss_temperature", self.ss_temperature)?;
        check::unit(METHOD, "ratio_tf", self.ratio_tf)?;
        check::unit(METHOD, "ratio_ss", self.ratio_ss)?;
        check::non_negative(METHOD, "ce_weight", self.ce_weight)?;
        check::non_negative(METHOD, "kd_weight", self.kd_weight)?;
        check::non_negative(METHOD, "tf_weight", self.tf_weight)?;
        check::non_negative(METHOD, "ss_weight", self.ss_weight)
    }
}
