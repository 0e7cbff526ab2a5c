//! Predictions that agree with those of the step before.

use crate::config::check;
use crate::online::terms::{Heads, Saved, check_like, copy, imitate, term};
use crate::{Error, Result, Term, ops, reduce};
use candle_core::{Device, Tensor};
use retort_nn::Tensors;
use serde::{Deserialize, Serialize};

const METHOD: &str = "dlb";

/// Hyper-parameters of [`dlb`]; the code has no defaults, and these are from memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DlbSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Weight of the imitation, >= 0.
    pub alpha: f64,
}

impl Default for DlbSettings {
    fn default() -> Self {
        Self { temperature: 3.0, alpha: 1.0 }
    }
}

impl DlbSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(METHOD, self.temperature)?;
        check::non_negative(METHOD, "alpha", self.alpha)
    }
}

/// Self-distillation from the last mini-batch, DLB (Shen, Xu, Yang, Li and Guo 2022, arXiv 2203.16172).
///
/// Every image has two views. With the logits `z` of this batch's first views and `z'` of the previous batch's second
/// views, both by the weights of now in two passes, and `s`, what the step before said of the previous batch's first
/// views, the terms are `ce` over all rows of `z'` and `z`, and `dlb`, `KD_T(z' <- s)`. In the first step there is no
/// previous batch, and `ce` alone.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `previous`: `z'` `[B', C]` with what [`DlbMemory`]
/// holds.
///
/// # Gradients
///
/// Into `z` and `z'`; `s` is a constant.
///
/// # Errors
///
/// Shapes, types or labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use retort_losses::self_distillation::{DlbMemory, DlbSettings, dlb};
/// let (z, labels) = (Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, Tensor::new(&[0u32], &Device::Cpu)?);
/// let (mut memory, settings) = (DlbMemory::new(), DlbSettings::default());
/// assert_eq!(dlb(&z, &labels, None, &settings)?.len(), 1);
/// memory.update(&Tensor::zeros((1, 3, 4, 4), DType::F32, &Device::Cpu)?, &labels, &z)?;
/// let previous = memory.batch().unwrap(); // its images go through the network again
/// assert_eq!(dlb(&z, &labels, Some((&z, previous)), &settings)?.len(), 2);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn dlb(
    logits: &Tensor,
    labels: &Tensor,
    previous: Option<(&Tensor, &DlbBatch)>,
    settings: &DlbSettings,
) -> Result<Vec<Term>> {
    settings.validate()?;
    let now = Heads::one(METHOD, logits, labels)?;
    let Some((again, batch)) = previous else { return Ok(vec![now.task(1.0, &[])?]) };
    let (b, c) = ops::logits(METHOD, "logits of the previous batch", again)?;
    if (c, again.dtype()) != (now.classes(), logits.dtype()) {
        return Err(ops::mismatch(METHOD, "both batches need logits of one width and type", logits, again));
    }
    check_like(METHOD, "stored logits", &batch.logits, again)?;
    // A loaded state lies on the host.
    let stored = batch.logits.to_device(again.device())?;
    let ids = [&ops::class_ids(METHOD, &batch.labels, b, c)?, now.ids()].concat();
    let all = Tensor::cat(&[again, logits], 0)?;
    let task = term("ce", 1.0, retort_kernels::softmax_cross_entropy(&all, &ids, 0.0)?);
    let value = imitate(again, &stored, settings.temperature)?;
    Ok(vec![task, term(METHOD, settings.alpha, value)])
}

/// What is kept of a batch until the next step.
#[derive(Clone, Debug)]
pub struct DlbBatch {
    /// The second views, `[B, ..]`.
    pub images: Tensor,
    /// Class indices `[B]`.
    pub labels: Tensor,
    /// What the step said of the first views, `[B, C]`, without history.
    pub logits: Tensor,
}

/// The last batch: the state of self-distillation from the last mini-batch. It goes on from epoch to epoch.
#[derive(Clone, Debug, Default)]
pub struct DlbMemory {
    batch: Option<DlbBatch>,
}

impl DlbMemory {
    /// Before the first step.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The previous batch; none before the second step.
    #[must_use]
    pub fn batch(&self) -> Option<&DlbBatch> {
        self.batch.as_ref()
    }

    /// Keeps copies of this batch's second views, its labels, and the logits of its first views.
    ///
    /// # Errors
    ///
    /// Another number of images or labels than of logits; the old batch stays then.
    pub fn update(&mut self, images: &Tensor, labels: &Tensor, logits: &Tensor) -> Result<()> {
        let (b, c) = ops::logits(METHOD, "logits", logits)?;
        ops::class_ids(METHOD, labels, b, c)?;
        if images.dims().first() != Some(&b) {
            let (what, expected) = ("images".to_string(), format!("[{b}, ..]"));
            return Err(Error::Shape { method: METHOD, what, expected, found: images.dims().to_vec() });
        }
        self.batch = Some(DlbBatch { images: copy(images)?, labels: copy(labels)?, logits: copy(logits)? });
        Ok(())
    }

    /// Copies of `images`, `labels` and `logits`; nothing before the first step has ended.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        let Some(batch) = &self.batch else { return Ok(Tensors::new()) };
        let DlbBatch { images, labels, logits } = batch;
        let all = NAMES.into_iter().zip([images, labels, logits]);
        all.map(|(name, tensor)| Ok((name.to_string(), copy(tensor)?))).collect()
    }

    /// Takes what [`DlbMemory::state`] gave; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, sizes that do not agree, images or logits that are not finite, or an unknown name.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        if state.is_empty() {
            self.batch = None;
            return Ok(());
        }
        let saved = Saved::new(METHOD, state, &NAMES.map(String::from))?;
        let device = self.batch.as_ref().map_or(Device::Cpu, |batch| batch.logits.device().clone());
        let [images, labels, logits] = NAMES.map(|name| Ok::<_, Error>(saved.get(name)?.to_device(&device)?));
        let (images, labels, logits) = (images?, labels?, logits?);
        for (name, tensor) in [("images", &images), ("logits", &logits)] {
            if tensor.dtype().is_float() && reduce::wide(tensor)?.iter().any(|x| !x.is_finite()) {
                return Err(saved.refuse(name, "holds values that are not finite".into()));
            }
        }
        let mut loaded = Self::new();
        loaded.update(&images, &labels, &logits).map_err(|error| saved.refuse("logits", error.to_string()))?;
        *self = loaded;
        Ok(())
    }
}

const NAMES: [&str; 3] = ["images", "labels", "logits"];
