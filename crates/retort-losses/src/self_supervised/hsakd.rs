//! Hierarchical self-supervised augmented distillation: classes times quarter turns, at every stage.

use super::rotation::{TURNS, labelled, term, unturned};
use crate::config::check;
use crate::distiller::Term;
use crate::output::kd;
use crate::{Error, Result, ops};
use candle_core::Tensor;
use retort_kernels::softmax_cross_entropy;
use serde::{Deserialize, Serialize};

const METHOD: &str = "hsakd";
const ONLINE: &str = "hssakd";

/// What a network with auxiliary heads says about a batch of B images under four quarter turns each, row `4i + k` being
/// image i under k turns.
#[derive(Clone, Copy)]
pub struct HsakdOutputs<'a> {
    /// Class scores `[4B, C]`.
    pub logits: &'a Tensor,
    /// Scores of each auxiliary head `[4B, 4C]`, column `4c + k` being class c under k turns.
    pub heads: &'a [Tensor],
}

impl HsakdOutputs<'_> {
    /// `(B, C)`.
    fn check(&self, method: &'static str, labels: &[u32]) -> Result<(usize, usize)> {
        let (images, classes) = labelled(method, self.logits, labels)?;
        if self.heads.is_empty() {
            return Err(Error::Missing { method, what: "at least one auxiliary head" });
        }
        let expected = [images * TURNS, classes.saturating_mul(TURNS)];
        for (i, head) in self.heads.iter().enumerate() {
            let what = format!("logits of head {i}");
            ops::logits(method, &what, head)?;
            if *head.dims() != expected {
                let expected = format!("{expected:?}: four rows for each image, four columns for each class");
                return Err(Error::Shape { method, what, expected, found: head.dims().to_vec() });
            }
        }
        Ok((images, classes))
    }

    /// Cross-entropy of the rows without a turn.
    fn cross_entropy(&self, labels: &[u32]) -> Result<Tensor> {
        Ok(softmax_cross_entropy(&unturned(self.logits)?, labels, 0.0)?)
    }

    /// Cross-entropy of each head with the joint labels `4y + k`, over all rows.
    fn joint(&self, labels: &[u32]) -> Result<Vec<Tensor>> {
        let joint = |&y: &u32| (0..TURNS as u32).map(move |k| y.saturating_mul(TURNS as u32).saturating_add(k));
        let joint: Vec<u32> = labels.iter().flat_map(joint).collect();
        self.heads.iter().map(|head| Ok(softmax_cross_entropy(head, &joint, 0.0)?)).collect()
    }

    /// Divergence of each head from the same head of `teacher`, over all rows.
    fn taught(&self, teacher: &Self, temperature: f64) -> Result<Vec<Tensor>> {
        self.heads.iter().zip(teacher.heads).map(|(student, teacher)| kd(student, teacher, temperature)).collect()
    }
}

/// Two networks on one batch must have as many heads.
fn check_pair(method: &'static str, labels: &[u32], [a, b]: [&HsakdOutputs<'_>; 2]) -> Result<()> {
    a.check(method, labels)?;
    b.check(method, labels)?;
    ops::logit_pair(method, a.logits, b.logits)?;
    if a.heads.len() == b.heads.len() {
        return Ok(());
    }
    let message = format!("heads are paired one to one, found {} and {}", a.heads.len(), b.heads.len());
    Err(Error::Undefined { method, message })
}

/// The parts of HSAKD's teacher phase.
#[derive(Clone, Debug)]
pub struct HsakdTeacherLoss {
    /// Cross-entropy of the rows without a turn, a scalar.
    pub ce: Tensor,
    /// Cross-entropy of each head with the joint labels, scalars.
    pub joint: Vec<Tensor>,
}

impl HsakdTeacherLoss {
    /// `hsakd-teacher.ce`, `hsakd-teacher.joint` with a part for each head.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn terms(&self, config: &HsakdConfig) -> Result<Vec<Term>> {
        Ok(vec![
            term("hsakd-teacher.ce", config.ce_weight, &self.ce, Vec::new()),
            of_heads("hsakd-teacher.joint", config.joint_weight, &self.joint)?,
        ])
    }
}

/// The teacher phase of HSAKD (Yang et al. 2021, arXiv 2107.13715): `CE(z[0::4], y) + sum_l CE(h_l, 4y + k)`.
///
/// Only rows without a turn enter the class term; the heads tell class and turn of every row.
///
/// # Shapes
///
/// See [`HsakdOutputs`]; `labels`: a class for each of B images.
///
/// # Gradients
///
/// Into all inputs. Where the backbone is frozen the caller hands over logits and heads of detached features.
///
/// # Errors
///
/// Rows that are no multiple of 4, no head, a head of another shape, labels that do not fit.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use retort_losses::self_supervised::{HsakdOutputs, hsakd_teacher};
/// let logits = Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?;
/// let heads = [Tensor::zeros((4, 8), DType::F32, &Device::Cpu)?];
/// let loss = hsakd_teacher(&HsakdOutputs { logits: &logits, heads: &heads }, &[1])?;
/// assert!((loss.joint[0].to_scalar::<f32>()? - 8f32.ln()).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn hsakd_teacher(network: &HsakdOutputs<'_>, labels: &[u32]) -> Result<HsakdTeacherLoss> {
    network.check(METHOD, labels)?;
    Ok(HsakdTeacherLoss { ce: network.cross_entropy(labels)?, joint: network.joint(labels)? })
}

/// The parts of HSAKD's student phase.
#[derive(Clone, Debug)]
pub struct HsakdLoss {
    /// Cross-entropy of the rows without a turn, a scalar.
    pub ce: Tensor,
    /// Divergence of the class scores over all rows, a scalar.
    pub kd: Tensor,
    /// Divergence of each head over all rows, scalars.
    pub heads: Vec<Tensor>,
}

impl HsakdLoss {
    /// `hsakd.ce`, `hsakd.kd`, `hsakd.heads` with a part for each head.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn terms(&self, config: &HsakdConfig) -> Result<Vec<Term>> {
        Ok(vec![
            term("hsakd.ce", config.ce_weight, &self.ce, Vec::new()),
            term("hsakd.kd", config.kd_weight, &self.kd, Vec::new()),
            of_heads("hsakd.heads", config.heads_weight, &self.heads)?,
        ])
    }
}

/// The student phase of HSAKD (Yang et al. 2021, arXiv 2107.13715):
/// `CE(z[0::4], y) + KD_T(z, z^t) + sum_l KD_T(h_l, h_l^t)`.
///
/// Both divergences are [`kd`] over all 4B rows. The student's heads get no hard labels, and turned rows no class labels.
///
/// # Shapes
///
/// See [`HsakdOutputs`]; head l of the student belongs to head l of the teacher. `labels`: a class for each of B images.
///
/// # Gradients
///
/// Into `student`; `teacher` is detached.
///
/// # Errors
///
/// Rows that are no multiple of 4, no head, different numbers of heads, a head of another shape, labels that do not fit, a
/// temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use retort_losses::self_supervised::{HsakdOutputs, hsakd_student};
/// let logits = Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?;
/// let heads = [Tensor::zeros((4, 8), DType::F32, &Device::Cpu)?];
/// let network = HsakdOutputs { logits: &logits, heads: &heads };
/// let loss = hsakd_student(&network, &network, &[1], 3.0)?;
/// assert_eq!((loss.kd.to_scalar::<f32>()?, loss.heads[0].to_scalar::<f32>()?), (0.0, 0.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn hsakd_student(
    student: &HsakdOutputs<'_>,
    teacher: &HsakdOutputs<'_>,
    labels: &[u32],
    temperature: f64,
) -> Result<HsakdLoss> {
    check::temperature(METHOD, temperature)?;
    check_pair(METHOD, labels, [student, teacher])?;
    let kd = kd(student.logits, teacher.logits, temperature)?;
    Ok(HsakdLoss { ce: student.cross_entropy(labels)?, kd, heads: student.taught(teacher, temperature)? })
}

/// The parts of HSSAKD-online, for each of the two networks.
#[derive(Clone, Debug)]
pub struct HssakdOnlineLoss {
    /// Cross-entropy of the rows without a turn, scalars.
    pub ce: [Tensor; 2],
    /// Cross-entropy of each head with the joint labels, scalars.
    pub joint: [Vec<Tensor>; 2],
    /// Divergence of the class scores from the other network's, scalars.
    pub kd: [Tensor; 2],
    /// Divergence of each head from the other network's, scalars.
    pub heads: [Vec<Tensor>; 2],
}

impl HssakdOnlineLoss {
    /// `hssakd.ce`, `hssakd.joint`, `hssakd.kd`, `hssakd.heads`, each with parts for both networks and their heads.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn terms(&self, config: &HsakdConfig) -> Result<Vec<Term>> {
        let single = |[a, b]: &[Tensor; 2]| [vec![a.clone()], vec![b.clone()]];
        Ok(vec![
            of_networks("hssakd.ce", config.ce_weight, &single(&self.ce), |_| String::new())?,
            of_networks("hssakd.joint", config.joint_weight, &self.joint, |l| format!(".head{l}"))?,
            of_networks("hssakd.kd", config.kd_weight, &single(&self.kd), |_| String::new())?,
            of_networks("hssakd.heads", config.heads_weight, &self.heads, |l| format!(".head{l}"))?,
        ])
    }
}

/// HSSAKD-online (Yang et al. 2022, arXiv 2109.03075): two networks that teach each other.
///
/// For each of them `CE(z[0::4], y) + sum_l CE(h_l, 4y + k) + KD_T(z, z') + sum_l KD_T(h_l, h_l')`, the dash being the other
/// network. Unlike in the offline student phase the heads get hard labels: no teacher has been trained.
///
/// # Shapes
///
/// See [`HsakdOutputs`]; head l of one network belongs to head l of the other. `labels`: a class for each of B images.
///
/// # Gradients
///
/// Into both networks, each as the student of the other, which is detached.
///
/// # Errors
///
/// As for [`hsakd_student`].
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use retort_losses::self_supervised::{HsakdOutputs, hssakd_online};
/// let logits = Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?;
/// let heads = [Tensor::zeros((4, 8), DType::F32, &Device::Cpu)?];
/// let network = HsakdOutputs { logits: &logits, heads: &heads };
/// let loss = hssakd_online(&[network, network], &[1], 3.0)?;
/// assert_eq!(loss.kd[1].to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn hssakd_online(networks: &[HsakdOutputs<'_>; 2], labels: &[u32], temperature: f64) -> Result<HssakdOnlineLoss> {
    check::temperature(ONLINE, temperature)?;
    let [a, b] = networks;
    check_pair(ONLINE, labels, [a, b])?;
    Ok(HssakdOnlineLoss {
        ce: [a.cross_entropy(labels)?, b.cross_entropy(labels)?],
        joint: [a.joint(labels)?, b.joint(labels)?],
        kd: [kd(a.logits, b.logits, temperature)?, kd(b.logits, a.logits, temperature)?],
        heads: [a.taught(b, temperature)?, b.taught(a, temperature)?],
    })
}

/// An auxiliary head as an ordinary classifier: the sum of the four scores of each class.
///
/// # Shapes
///
/// `[N, 4C]`, column `4c + k` being class c under k quarter turns, to `[N, C]`.
///
/// # Errors
///
/// Another shape.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let scores = Tensor::new(&[[1f32, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 5.0]], &Device::Cpu)?;
/// let classes = retort_losses::self_supervised::class_scores(&scores)?;
/// assert_eq!(classes.to_vec2::<f32>()?, [[10.0, 5.0]]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn class_scores(head: &Tensor) -> Result<Tensor> {
    let (n, columns) = ops::logits(METHOD, "logits of a head", head)?;
    if !columns.is_multiple_of(TURNS) {
        let (what, expected) = ("logits of a head".into(), "[N, 4C]".into());
        return Err(Error::Shape { method: METHOD, what, expected, found: head.dims().to_vec() });
    }
    Ok(head.reshape((n, columns / TURNS, TURNS))?.sum(2)?)
}

/// The sum over heads as a term, with a part for each.
fn of_heads(name: &'static str, weight: f64, heads: &[Tensor]) -> Result<Term> {
    let parts = heads.iter().enumerate().map(|(l, value)| (format!("head{l}"), value.clone())).collect();
    Ok(term(name, weight, &ops::total(heads)?, parts))
}

/// The sum over both networks as a term, with a part for each of their summands.
fn of_networks(
    name: &'static str,
    weight: f64,
    networks: &[Vec<Tensor>; 2],
    suffix: impl Fn(usize) -> String,
) -> Result<Term> {
    let mut parts = Vec::new();
    for (n, values) in networks.iter().enumerate() {
        parts.extend(values.iter().enumerate().map(|(l, value)| (format!("network{n}{}", suffix(l)), value.clone())));
    }
    Ok(term(name, weight, &ops::total(&networks.concat())?, parts))
}

/// Hyper-parameters of HSAKD's two phases and of HSSAKD-online; all weights are 1 in the papers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HsakdConfig {
    /// Softmax temperature of all divergences; the teacher phase has none.
    pub temperature: f64,
    /// Weight of the class labels.
    pub ce_weight: f64,
    /// Weight of the joint labels of the heads, in the teacher phase and online.
    pub joint_weight: f64,
    /// Weight of the divergence of the class scores, in the student phase and online.
    pub kd_weight: f64,
    /// Weight of the divergence of the heads, in the student phase and online. The student's heads have no other term.
    pub heads_weight: f64,
}

impl Default for HsakdConfig {
    fn default() -> Self {
        Self { temperature: 3.0, ce_weight: 1.0, joint_weight: 1.0, kd_weight: 1.0, heads_weight: 1.0 }
    }
}

impl HsakdConfig {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(METHOD, self.temperature)?;
        check::non_negative(METHOD, "ce_weight", self.ce_weight)?;
        check::non_negative(METHOD, "joint_weight", self.joint_weight)?;
        check::non_negative(METHOD, "kd_weight", self.kd_weight)?;
        check::non_negative(METHOD, "heads_weight", self.heads_weight)
    }
}
