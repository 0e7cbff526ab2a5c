//! Memory banks and the noise-contrastive loss on them.

use super::anchor::Anchor;
use crate::config::check;
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_kernels::{logistic_contrast, with_gradient};
use retort_nn::{Init, Seed, Tensors};

const METHOD: &str = "crd";
/// A head's output with at most this norm counts as zero.
const NORM_EPS: f64 = 1e-12;

/// Constants of [`CrdMemory`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryConfig {
    /// Divisor of the scores, > 0.
    pub temperature: f64,
    /// Share of the old row that stays in an update, in `0 ..= 1`.
    pub momentum: f64,
    /// Added to the noise probability K / n, >= 0.
    pub eps: f64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { temperature: 0.07, momentum: 0.5, eps: 1e-7 }
    }
}

/// The two memory banks of contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv 1910.10699).
///
/// Each bank holds one row per training sample: M1 the student's embeddings, M2 the teacher's.
/// Two normalisers `Z_s`, `Z_t` are set by the first step and stay constant.
/// All of it is state: a run that resumes without it optimises another loss.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use retort_losses::contrastive::{CrdMemory, MemoryConfig};
/// use retort_nn::Seed;
/// let mut memory = CrdMemory::init(10, 4, MemoryConfig::default(), Seed::root(1), DType::F32, &Device::Cpu)?;
/// let e = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
/// let step = memory.step(&e, &e, &[5, 0, 1, 2])?; // positive row 5, negatives 0, 1, 2
/// assert!(step.loss.to_scalar::<f32>()?.is_finite());
/// memory.update(&step, &[5])?;
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub struct CrdMemory {
    student_bank: Tensor,
    teacher_bank: Tensor,
    /// `[ln Z_s, ln Z_t]`; logarithms, because Z overflows for small temperatures.
    log_z: Option<[f64; 2]>,
    config: MemoryConfig,
}

/// One step's losses; `loss = loss_s + loss_t`.
#[derive(Clone, Debug)]
pub struct CrdStep {
    /// The sum, a scalar.
    pub loss: Tensor,
    /// Student embeddings against the teacher's bank, a scalar.
    pub loss_s: Tensor,
    /// Teacher embeddings against the student's bank, a scalar.
    pub loss_t: Tensor,
    /// The student's embeddings, normalised and detached, `[B, D]`.
    pub student: Tensor,
    /// The teacher's.
    pub teacher: Tensor,
    /// `[Z_s, Z_t]`.
    pub z: [f64; 2],
    /// The inner products `[B, K + 1]` behind `loss_s` and `loss_t`, detached.
    products: [Tensor; 2],
    temperature: f64,
    log_z: [f64; 2],
}

impl CrdStep {
    /// `exp(<M2[i], e_s> / temperature) / Z_s` for every contrast index, `[B, K + 1]`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn scores_s(&self) -> Result<Tensor> {
        self.scores(0)
    }

    /// `exp(<M1[i], e_t> / temperature) / Z_t` for every contrast index, `[B, K + 1]`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn scores_t(&self) -> Result<Tensor> {
        self.scores(1)
    }

    /// The same without a graph.
    pub(crate) fn detached(&self) -> Self {
        Self { loss: self.loss.detach(), loss_s: self.loss_s.detach(), loss_t: self.loss_t.detach(), ..self.clone() }
    }

    fn scores(&self, side: usize) -> Result<Tensor> {
        let product = &self.products[side];
        let logarithm = product.to_dtype(DType::F64)?.affine(1.0 / self.temperature, -self.log_z[side])?;
        Ok(logarithm.exp()?.to_dtype(product.dtype())?)
    }
}

impl CrdMemory {
    /// Fresh banks for `n` samples and embeddings of width `dim`: uniform in `+-1 / sqrt(dim / 3)`,
    /// so that a row has the expected squared norm 1.
    ///
    /// # Errors
    ///
    /// No samples, no width, or a constant out of range.
    pub fn init(n: usize, dim: usize, config: MemoryConfig, seed: Seed, dtype: DType, device: &Device) -> Result<Self> {
        check::width(METHOD, "dim", dim)?;
        let init = Init::Uniform { bound: 1.0 / (dim as f64 / 3.0).sqrt() };
        let student_bank = init.draw(&[n, dim], seed.child("student_bank"), dtype, device)?;
        let teacher_bank = init.draw(&[n, dim], seed.child("teacher_bank"), dtype, device)?;
        Self::new(&student_bank, &teacher_bank, None, config)
    }

    /// Banks with given rows, copied; `z` is `[Z_s, Z_t]` where it is known already.
    ///
    /// # Errors
    ///
    /// Banks that are empty, not `[n, D]` or of two shapes, a `z` that is not positive, a constant out of range.
    pub fn new(
        student_bank: &Tensor,
        teacher_bank: &Tensor,
        z: Option<[f64; 2]>,
        config: MemoryConfig,
    ) -> Result<Self> {
        check::positive(METHOD, "temperature", config.temperature)?;
        check::unit(METHOD, "momentum", config.momentum)?;
        check::non_negative(METHOD, "eps", config.eps)?;
        if student_bank.rank() != 2 || student_bank.dims() != teacher_bank.dims() || student_bank.elem_count() == 0 {
            let what = "expected non-empty banks [n, D] of one shape";
            return Err(ops::mismatch(METHOD, what, student_bank, teacher_bank));
        }
        if student_bank.dtype() != teacher_bank.dtype() {
            let message =
                format!("banks must be of one type, found {:?} and {:?}", student_bank.dtype(), teacher_bank.dtype());
            return Err(Error::Undefined { method: METHOD, message });
        }
        for z in z.into_iter().flatten() {
            check::positive(METHOD, "z", z)?;
        }
        // Copies: rows are overwritten in place.
        let own = |bank: &Tensor| -> Result<Tensor> { Ok(bank.detach().contiguous()?.copy()?.detach()) };
        let (student_bank, teacher_bank) = (own(student_bank)?, own(teacher_bank)?);
        Ok(Self { student_bank, teacher_bank, log_z: z.map(|z| z.map(f64::ln)), config })
    }

    /// Number of rows n.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.student_bank.dims()[0]
    }

    /// A copy of the student's bank, `[n, D]`.
    ///
    /// # Errors
    ///
    /// Fails if the copy cannot be allocated.
    pub fn student_bank(&self) -> Result<Tensor> {
        Ok(self.student_bank.copy()?)
    }

    /// A copy of the teacher's bank, `[n, D]`.
    ///
    /// # Errors
    ///
    /// Fails if the copy cannot be allocated.
    pub fn teacher_bank(&self) -> Result<Tensor> {
        Ok(self.teacher_bank.copy()?)
    }

    /// `[Z_s, Z_t]`, once the first step has set them.
    #[must_use]
    pub fn z(&self) -> Option<[f64; 2]> {
        self.log_z.map(|z| z.map(f64::exp))
    }

    /// Both losses of one batch.
    ///
    /// With `e` the normalised embeddings, `u = exp(<bank row, e> / temperature)`, `x = u / Z` and `c = K / n`:
    /// `NCE(x) = -(1/B) sum_b [ln(x_b0 / (x_b0 + c + eps)) + sum_{k >= 1} ln(c / (x_bk + c + eps))]`, for the student's
    /// embeddings against the teacher's bank and for the teacher's against the student's.
    /// On the first step `Z = n * mean(u)` over all entries.
    ///
    /// Everything is computed from logarithms (`softplus` of `+-ln(x / (c + eps))`), sums in f64, and the gradient in
    /// closed form at once: the graph keeps `[B, D]`, and a later [`CrdMemory::update`] cannot change it.
    /// An embedding of norm <= 1e-12 counts as 0 and gets no gradient.
    ///
    /// # Shapes
    ///
    /// `student`, `teacher`: outputs of the heads `[B, D]`, not normalised; `contrast`: B (K + 1) rows of the banks, for
    /// each sample the positive and K negatives.
    ///
    /// # Gradients
    ///
    /// Into both embeddings (both heads are trained); the banks and Z are constants.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, fewer than one negative per sample, a row out of range.
    pub fn step(&mut self, student: &Tensor, teacher: &Tensor, contrast: &[u32]) -> Result<CrdStep> {
        let (n, dim) = self.student_bank.dims2()?;
        let b = student.dims().first().copied().unwrap_or(0);
        if student.dims() != [b, dim] || teacher.dims() != [b, dim] || b == 0 {
            return Err(ops::mismatch(METHOD, format!("expected embeddings [B, {dim}]"), student, teacher));
        }
        if !contrast.len().is_multiple_of(b) || contrast.len() < 2 * b {
            return Err(Error::Undefined {
                method: METHOD,
                message: format!(
                    "expected one positive and at least one negative for each of {b} samples, found {} contrast indices",
                    contrast.len()
                ),
            });
        }
        if let Some(&index) = contrast.iter().find(|&&row| row as usize >= n) {
            return Err(Error::Index { method: METHOD, what: "bank row", index: index.into(), size: n });
        }
        let (e_s, e_t) = (ops::guarded_normalize(student, NORM_EPS)?, ops::guarded_normalize(teacher, NORM_EPS)?);
        let anchor_s = Anchor::new(&e_s, &self.teacher_bank, contrast)?;
        let anchor_t = Anchor::new(&e_t, &self.student_bank, contrast)?;
        let log_z = match self.log_z {
            Some(z) => z,
            None => [self.initial_log_z(&anchor_s)?, self.initial_log_z(&anchor_t)?],
        };
        let loss_s = self.nce(&e_s, &anchor_s, log_z[0])?;
        let loss_t = self.nce(&e_t, &anchor_t, log_z[1])?;
        // Only now, and only if it makes sense: neither an error nor a batch with NaN may spoil the memory.
        if log_z.iter().all(|z| z.is_finite()) {
            self.log_z = Some(log_z);
        }
        Ok(CrdStep {
            loss: (&loss_s + &loss_t)?,
            loss_s,
            loss_t,
            student: e_s.detach(),
            teacher: e_t.detach(),
            z: log_z.map(f64::exp),
            products: [anchor_s.products(), anchor_t.products()],
            temperature: self.config.temperature,
            log_z,
        })
    }

    /// `ln(n * mean(exp(product / temperature)))`.
    fn initial_log_z(&self, anchor: &Anchor<'_>) -> Result<f64> {
        let products = reduce::wide(&anchor.products())?;
        let scale = 1.0 / self.config.temperature;
        let max = products.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x)) * scale;
        let sum: f64 = products.iter().map(|&x| (x * scale - max).exp()).sum();
        Ok(max + (self.rows() as f64 * sum / products.len() as f64).ln())
    }

    fn nce(&self, embedding: &Tensor, anchor: &Anchor<'_>, log_z: f64) -> Result<Tensor> {
        let products = anchor.products();
        let negatives = (products.dims()[1] - 1) as f64;
        let noise = negatives / self.rows() as f64;
        // The logistic function of `ln(x / (c + eps))`.
        let shift = -log_z - (noise + self.config.eps).ln();
        let (value, slopes) = logistic_contrast(&products, 1.0 / self.config.temperature, shift)?;
        // Every negative adds `ln((c + eps) / c)`.
        let value = value + negatives * (self.config.eps / noise).ln_1p();
        if !embedding.track_op() {
            return reduce::constant(value, embedding);
        }
        Ok(with_gradient(value, embedding, &anchor.gradient(&slopes)?)?)
    }

    /// Moves the rows of this batch's samples: `row <- normalize(momentum * row + (1 - momentum) * embedding)`.
    ///
    /// All new rows are formed from the old ones; if a sample occurs twice in the batch, the last one wins.
    /// An embedding that is zero or not finite, or a blend that is zero, leaves its row as it is.
    ///
    /// # Errors
    ///
    /// A number of indices other than B, or a row out of range; nothing is changed then.
    pub fn update(&mut self, step: &CrdStep, index: &[u32]) -> Result<()> {
        let (b, n) = (step.student.dims()[0], self.rows());
        if index.len() != b {
            let message = format!("expected one row for each of {b} samples, found {}", index.len());
            return Err(Error::Undefined { method: METHOD, message });
        }
        if let Some(&index) = index.iter().find(|&&row| row as usize >= n) {
            return Err(Error::Index { method: METHOD, what: "training row", index: index.into(), size: n });
        }
        self.move_rows(&self.student_bank, &step.student, index)?;
        self.move_rows(&self.teacher_bank, &step.teacher, index)
    }

    fn move_rows(&self, bank: &Tensor, embeddings: &Tensor, index: &[u32]) -> Result<()> {
        let wide = |t: &Tensor| -> Result<Vec<Vec<f64>>> { Ok(t.to_dtype(DType::F64)?.to_vec2()?) };
        let old = wide(&bank.index_select(&Tensor::new(index, bank.device())?, 0)?)?;
        let m = self.config.momentum;
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        for ((old, new), &row) in old.iter().zip(wide(embeddings)?).zip(index) {
            let blend: Vec<f64> = old.iter().zip(&new).map(|(o, e)| m * o + (1.0 - m) * e).collect();
            let length = norm(&blend);
            if norm(&new) == 0.0 || length == 0.0 || !length.is_finite() {
                continue;
            }
            let unit: Vec<f64> = blend.iter().map(|x| x / length).collect();
            let unit = Tensor::from_vec(unit, (1, new.len()), bank.device())?.to_dtype(bank.dtype())?;
            bank.slice_set(&unit, 0, row as usize)?;
        }
        Ok(())
    }

    /// Copies of banks and normalisers: `student_bank`, `teacher_bank`, and `log_z`, NaN until it is set.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        let mut state = Tensors::new();
        state.insert("student_bank".into(), self.student_bank()?);
        state.insert("teacher_bank".into(), self.teacher_bank()?);
        state.insert("log_z".into(), Tensor::new(&self.log_z.unwrap_or([f64::NAN; 2]), &Device::Cpu)?);
        Ok(state)
    }

    /// Takes what [`CrdMemory::state`] gave; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A bank or `log_z` that is missing or of another shape, a value that is not finite, or an unknown name.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let invalid = |name: &str, message: String| Error::State { method: METHOD, name: name.into(), message };
        if let Some(name) = state.keys().find(|k| !["student_bank", "teacher_bank", "log_z"].contains(&k.as_str())) {
            return Err(invalid(name, "expected `student_bank`, `teacher_bank` and `log_z` only".into()));
        }
        let entry = |name: &str| {
            let message = "missing; without banks and normalisers a resumed run would optimise another loss";
            state.get(name).ok_or_else(|| invalid(name, message.into()))
        };
        let bank = |name: &str, own: &Tensor| -> Result<Tensor> {
            let found = entry(name)?;
            if found.dims() != own.dims() {
                return Err(invalid(name, format!("expected shape {:?}, found {:?}", own.dims(), found.dims())));
            }
            if !found.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?.iter().all(|x| x.is_finite()) {
                return Err(invalid(name, "holds values that are not finite".into()));
            }
            Ok(found.to_device(own.device())?.to_dtype(own.dtype())?.contiguous()?.copy()?.detach())
        };
        let student_bank = bank("student_bank", &self.student_bank)?;
        let teacher_bank = bank("teacher_bank", &self.teacher_bank)?;
        let z = entry("log_z")?;
        let log_z = match z.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?[..] {
            [s, t] if f64::is_nan(s) && f64::is_nan(t) => None,
            [s, t] if f64::is_finite(s) && f64::is_finite(t) => Some([s, t]),
            [s, t] => return Err(invalid("log_z", format!("expected two finite numbers, found {s} and {t}"))),
            _ => return Err(invalid("log_z", format!("expected shape [2], found {:?}", z.dims()))),
        };
        (self.student_bank, self.teacher_bank, self.log_z) = (student_bank, teacher_bank, log_z);
        Ok(())
    }
}
