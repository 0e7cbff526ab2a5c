//! Cross-entropy with hard and with smoothed labels.

use crate::config::{Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, config, ops};
use candle_core::Tensor;
use retort_kernels::softmax_cross_entropy;
use serde::{Deserialize, Serialize};

/// Cross-entropy: `-(1/B) sum_b ln softmax(z_b)[y_b]`.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`. Returns a scalar.
///
/// # Gradients
///
/// `(softmax(z) - onehot(y)) / B`; finite for every finite input.
///
/// # Errors
///
/// Other shapes, an empty batch, labels that are no class indices or not below C.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[1u32], &Device::Cpu)?;
/// let loss = retort_losses::output::cross_entropy(&logits, &labels)?;
/// assert_eq!(loss.to_scalar::<f32>()?, std::f32::consts::LN_2);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (b, c) = ops::logits("ce", "logits", logits)?;
    let ids = ops::class_ids("ce", labels, b, c)?;
    Ok(softmax_cross_entropy(logits, &ids, 0.0)?)
}

/// Over which classes label smoothing spreads the mass that it takes from the label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// All C classes, the label included: `(1 - eps) onehot + eps / C` (the paper's, PyTorch's).
    #[default]
    All,
    /// The C - 1 wrong classes: `1 - eps` on the label, `eps / (C - 1)` elsewhere.
    Wrong,
}

/// Cross-entropy against smoothed labels (Szegedy et al. 2015, arXiv 1512.00567).
///
/// `-(1/B) sum_b sum_c q_bc ln softmax(z_b)[c]` with `q = (1 - eps) onehot(y) + eps / C`
/// ([`Spread::All`]) or `1 - eps` on the label and `eps / (C - 1)` on each wrong class
/// ([`Spread::Wrong`]); the second with `eps` equals the first with `eps C / (C - 1)`.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`, `smoothing` in `0 ..= 1`. Returns a scalar.
///
/// # Gradients
///
/// `(softmax(z) - q) / B`.
///
/// # Errors
///
/// As for [`cross_entropy`]; `smoothing` outside of its range; one class with [`Spread::Wrong`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::output::{Spread, label_smoothing};
/// let logits = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[1u32], &Device::Cpu)?;
/// let loss = label_smoothing(&logits, &labels, 0.1, Spread::All)?;
/// assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn label_smoothing(logits: &Tensor, labels: &Tensor, smoothing: f64, spread: Spread) -> Result<Tensor> {
    const METHOD: &str = "label-smoothing";
    check::unit(METHOD, "smoothing", smoothing)?;
    let (b, c) = ops::logits(METHOD, "logits", logits)?;
    let ids = ops::class_ids(METHOD, labels, b, c)?;
    let all = match spread {
        Spread::All => smoothing,
        Spread::Wrong if c == 1 => return Err(one_class()),
        Spread::Wrong => smoothing * c as f64 / (c - 1) as f64,
    };
    Ok(softmax_cross_entropy(logits, &ids, all)?)
}

/// There are no wrong classes to spread mass over.
fn one_class() -> Error {
    let message = "`spread` over the wrong classes needs at least two classes, found one".into();
    Error::Undefined { method: LabelSmoothingConfig::INFO.id, message }
}

/// Hyper-parameters of the cross-entropy with hard labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CeConfig {
    /// Weight of the term; beside kd the published one is 0.1.
    pub weight: f64,
}

impl Default for CeConfig {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

/// What both task losses read.
const INPUTS: Inputs = Inputs { logits: Side::Student, labels: true, ..Inputs::NONE };
const NEEDS: Needs = Needs { teacher: false, labels: true, ..Needs::TEACHER };

impl Method for CeConfig {
    const INFO: MethodInfo = MethodInfo {
        id: "ce",
        title: "Cross-entropy",
        family: Family::Output,
        paper: None,
        year: None,
        arxiv: None,
        inputs: INPUTS,
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: None,
        weight: 1.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
    fn needs(&self) -> Needs {
        NEEDS
    }
    fn build(&self, _: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for CeConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = cross_entropy(&ctx.student.logits, ctx.labels)?;
        Ok(Term { name: Self::INFO.id, weight: self.weight, value, parts: Vec::new() })
    }
}

/// Hyper-parameters of label smoothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelSmoothingConfig {
    /// Mass taken from the label, in `0 ..= 1`.
    pub smoothing: f64,
    /// Over which classes it is spread.
    pub spread: Spread,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for LabelSmoothingConfig {
    fn default() -> Self {
        Self { smoothing: 0.1, spread: Spread::All, weight: 1.0 }
    }
}

impl Method for LabelSmoothingConfig {
    const INFO: MethodInfo = MethodInfo {
        id: "label-smoothing",
        title: "Label smoothing",
        family: Family::Output,
        paper: Some("Rethinking the Inception Architecture for Computer Vision"),
        year: Some(2015),
        arxiv: Some("1512.00567"),
        inputs: INPUTS,
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: None,
        weight: 1.0,
        code_bases: &[],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::unit(Self::INFO.id, "smoothing", self.smoothing)
    }
    fn needs(&self) -> Needs {
        NEEDS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        if self.spread == Spread::Wrong && ctx.student.classes == 1 {
            return Err(one_class());
        }
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for LabelSmoothingConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = label_smoothing(&ctx.student.logits, ctx.labels, self.smoothing, self.spread)?;
        Ok(Term { name: Self::INFO.id, weight: self.weight, value, parts: Vec::new() })
    }
}
