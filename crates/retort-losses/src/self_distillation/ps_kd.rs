//! Targets that are softened by what the network said of the same sample before.

use super::target::{cross_entropy, one_hot};
use crate::config::check;
use crate::online::terms::{Saved, copy, term};
use crate::{Error, Result, Term, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_nn::Tensors;

const METHOD: &str = "ps-kd";

/// Share of the earlier prediction in an epoch, counted from 0: `alpha (epoch + 1) / epochs`, at most `alpha`; 0.8 is
/// the last epoch's in the paper.
///
/// # Errors
///
/// `alpha` outside of `0 ..= 1`, no epochs.
pub fn ps_kd_alpha(alpha: f64, epoch: usize, epochs: usize) -> Result<f64> {
    check::unit(METHOD, "alpha", alpha)?;
    check::count(METHOD, "epochs", epochs)?;
    Ok(alpha * ((epoch as f64 + 1.0) / epochs as f64).min(1.0))
}

/// Progressive self-distillation, PS-KD (Kim, Ji, Yoon and Hwang 2021, arXiv 2006.12000).
///
/// The term `ps-kd` is the cross-entropy, without temperature, against `(1 - a) onehot(y) + a q`, where `q` are the
/// probabilities that the network gave the same samples an epoch ago, see [`PsKdMemory`].
///
/// # Shapes
///
/// `logits`, `previous`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `alpha` (a) in `0 ..= 1`, see
/// [`ps_kd_alpha`].
///
/// # Gradients
///
/// Into the logits, `(p - target) / B` for targets of mass 1; `previous` is a constant.
///
/// # Errors
///
/// Two shapes or types that differ, labels that do not fit, a share out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let (z, q) = (Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?, Tensor::new(&[[0.1f32, 0.9]], &Device::Cpu)?);
/// let term = retort_losses::self_distillation::ps_kd(&z, &Tensor::new(&[1u32], &Device::Cpu)?, &q, 0.4)?;
/// assert!((term.value.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ps_kd(logits: &Tensor, labels: &Tensor, previous: &Tensor, alpha: f64) -> Result<Term> {
    check::unit(METHOD, "alpha", alpha)?;
    let (b, c) = ops::logits(METHOD, "logits", logits)?;
    let ids = ops::class_ids(METHOD, labels, b, c)?;
    crate::online::terms::check_like(METHOD, "earlier predictions", previous, logits)?;
    let wide = crate::online::terms::wide(&previous.detach())?;
    let target = (one_hot(&ids, 1.0 - alpha, &wide)? + (wide * alpha)?)?;
    Ok(term(METHOD, 1.0, cross_entropy(logits, &target, 1.0)?))
}

/// What a network last said of every training sample: the state of progressive self-distillation.
///
/// A row for each sample, at first its one-hot label. The bank takes `4 n C` bytes (20 MB on CIFAR-100, 5 GB on
/// ImageNet).
///
/// ```
/// use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::PsKdMemory;
/// let mut memory = PsKdMemory::new(&[0, 1, 1], 2)?;
/// let (z, labels) = (Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?, Tensor::new(&[1u32], &Device::Cpu)?);
/// let term = memory.term(&z, &labels, &[2], 0, 0.1)?;
/// memory.update(&z, &[2])?;
/// assert_eq!(memory.rows(&[1, 2])?.to_vec2::<f32>()?, [[0.0, 1.0], [0.5, 0.5]]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub struct PsKdMemory {
    /// `[n, C]`, f32, on the host.
    bank: Tensor,
}

impl PsKdMemory {
    /// The memory of a training set with these labels.
    ///
    /// # Errors
    ///
    /// No samples, no classes, a label that is no class, a bank of more than 2^33 numbers.
    pub fn new(labels: &[u32], classes: usize) -> Result<Self> {
        check::width(METHOD, "classes", classes)?;
        if labels.is_empty() || labels.len().checked_mul(classes).is_none_or(|n| n > 1 << 33) {
            let message = format!("expected a bank of 1 to 2^33 numbers, found {} rows of {classes}", labels.len());
            return Err(Error::Undefined { method: METHOD, message });
        }
        let mut rows = vec![0f32; labels.len() * classes];
        for (row, &label) in labels.iter().enumerate() {
            if label as usize >= classes {
                return Err(Error::Index { method: METHOD, what: "label", index: label.into(), size: classes });
            }
            rows[row * classes + label as usize] = 1.0;
        }
        Ok(Self { bank: Tensor::from_vec(rows, (labels.len(), classes), &Device::Cpu)? })
    }

    /// A memory that holds these probabilities `[n, C]`, copied.
    ///
    /// # Errors
    ///
    /// Another rank, no elements, integers.
    pub fn from_rows(probabilities: &Tensor) -> Result<Self> {
        ops::logits(METHOD, "probabilities", probabilities)?;
        Ok(Self { bank: copy(&probabilities.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)? })
    }

    /// The stored probabilities of these samples, `[B, C]`, a copy.
    ///
    /// # Errors
    ///
    /// No samples, or a row out of range.
    pub fn rows(&self, index: &[u32]) -> Result<Tensor> {
        let size = self.bank.dims()[0];
        if index.is_empty() {
            return Err(Error::Undefined { method: METHOD, message: "expected the row of at least one sample".into() });
        }
        if let Some(&row) = index.iter().find(|&&row| row as usize >= size) {
            return Err(Error::Index { method: METHOD, what: "training row", index: row.into(), size });
        }
        Ok(self.bank.index_select(&Tensor::new(index, &Device::Cpu)?, 0)?)
    }

    /// The term of one batch of the samples `index`, see [`ps_kd`] and, for `alpha`, [`ps_kd_alpha`].
    ///
    /// In epoch 0 the earlier predictions are the labels, whatever is stored: the loss is cross-entropy.
    ///
    /// # Errors
    ///
    /// As for [`ps_kd`], another number of samples, a row out of range.
    pub fn term(&self, logits: &Tensor, labels: &Tensor, index: &[u32], epoch: usize, alpha: f64) -> Result<Term> {
        let (b, c) = ops::logits(METHOD, "logits", logits)?;
        self.check(b, c, index)?;
        let previous = match epoch {
            0 => one_hot(&ops::class_ids(METHOD, labels, b, c)?, 1.0, logits)?,
            _ => self.rows(index)?.to_dtype(logits.dtype())?.to_device(logits.device())?,
        };
        ps_kd(logits, labels, &previous, alpha)
    }

    fn check(&self, b: usize, c: usize, index: &[u32]) -> Result<()> {
        let classes = self.bank.dims()[1];
        if (index.len(), classes) == (b, c) {
            return Ok(());
        }
        let message = format!("expected {} rows of {classes} classes, found logits [{b}, {c}]", index.len());
        Err(Error::Undefined { method: METHOD, message })
    }

    /// After the step: the samples' rows become `softmax(logits)`, the prediction of this step, augmentation included.
    ///
    /// If a sample occurs twice in the batch, the last one wins. A row with logits that are not finite stays as it was.
    ///
    /// # Errors
    ///
    /// Another number of samples or classes, or a row out of range; nothing is changed then.
    pub fn update(&mut self, logits: &Tensor, index: &[u32]) -> Result<()> {
        let (b, c) = ops::logits(METHOD, "logits", logits)?;
        self.check(b, c, index)?;
        self.rows(index)?;
        for (z, &row) in reduce::wide(logits)?.chunks(c).zip(index) {
            if z.iter().all(|z| z.is_finite()) {
                let p = Tensor::from_vec(softmax(z), (1, c), &Device::Cpu)?.to_dtype(DType::F32)?;
                self.bank.slice_set(&p, 0, row as usize)?;
            }
        }
        Ok(())
    }

    /// A copy of the bank, under `predictions`.
    ///
    /// # Errors
    ///
    /// Fails if the copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        Ok(Tensors::from([("predictions".to_string(), copy(&self.bank)?)]))
    }

    /// Takes what [`PsKdMemory::state`] gave; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A bank that is missing, of another shape or not finite, or an unknown name.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.bank = Saved::new(METHOD, state, &["predictions".to_string()])?.like("predictions", &self.bank)?;
        Ok(())
    }
}

/// Of one row, in f64.
pub(super) fn softmax(z: &[f64]) -> Vec<f64> {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = z.iter().map(|z| (z - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}
