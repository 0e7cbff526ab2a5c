//! Mutual contrastive learning against memory banks.

use super::MclSettings;
use super::contrast::first_columns;
use super::mcl::{Sums, check_embeddings};
use super::terms::{Saved, copy, wide};
use crate::config::check;
use crate::{Error, Result, Term, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_kernels::gather_dot;
use retort_nn::{Init, Seed, Tensors};

const METHOD: &str = "mcl-memory";

/// The memory banks of mutual contrastive learning on large data sets (Yang et al. 2022, arXiv 2104.12565): one for
/// each of K networks, with a row for every training sample.
///
/// The banks are state: a run that resumes without them optimises another loss.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use retort_losses::online::{MclMemory, MclSettings};
/// use retort_nn::Seed;
/// let mut memory = MclMemory::init(2, 10, 4, 0.5, Seed::root(1), DType::F32, &Device::Cpu)?;
/// let v = Tensor::new(&[[0.5f32, 0.5, 0.5, 0.5]], &Device::Cpu)?;
/// // Sample 3, with sample 7 of its class and samples 0 and 1 of other classes.
/// let terms = memory.terms(&[v.clone(), v.clone()], &[3, 7], &[0, 1], &MclSettings::memory())?;
/// assert_eq!(terms.len(), 4);
/// memory.update(&[v.clone(), v], &[3])?;
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub struct MclMemory {
    banks: Vec<Tensor>,
    momentum: f64,
}

impl MclMemory {
    /// Fresh banks of `rows` samples for `networks` networks with embeddings of width `dim`: uniform in `+-1 / sqrt(dim
    /// / 3)`. `momentum` in `0 ..= 1` is the share of the old row that stays in an update, 0.5 in the paper's code.
    ///
    /// # Errors
    ///
    /// No networks, no samples, no width, a momentum out of range.
    pub fn init(
        networks: usize,
        rows: usize,
        dim: usize,
        momentum: f64,
        seed: Seed,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        check::width(METHOD, "dim", dim)?;
        let init = Init::Uniform { bound: 1.0 / (dim as f64 / 3.0).sqrt() };
        let bank = |k: usize| Ok(init.draw(&[rows, dim], seed.child(&name(k)), dtype, device)?);
        Self::new(&(0..networks).map(bank).collect::<Result<Vec<_>>>()?, momentum)
    }

    /// Banks with given rows, copied.
    ///
    /// # Errors
    ///
    /// No banks, banks that are not `[n, D]` or of several shapes or types, a momentum out of range.
    pub fn new(banks: &[Tensor], momentum: f64) -> Result<Self> {
        check::unit(METHOD, "momentum", momentum)?;
        super::terms::check_all(METHOD, "bank", banks)?;
        ops::logits(METHOD, "bank 0", &banks[0])?;
        Ok(Self { banks: banks.iter().map(copy).collect::<Result<_>>()?, momentum })
    }

    /// Number of rows of each bank.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.banks[0].dims()[0]
    }

    /// Copies of the banks, `[n, D]` for each network.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn banks(&self) -> Result<Vec<Tensor>> {
        self.banks.iter().map(copy).collect()
    }

    /// The four terms of one batch, see [`mcl`](super::mcl()).
    ///
    /// A sample's columns are its own row, P rows of its class and Q rows of other classes. Across networks the
    /// embedding of b is compared with bank a, and own row and class are its positives; within a network the own row is
    /// left out. `con` is the mean over the positives of `-ln softmax` over the columns; the imitations compare these
    /// rows of scores.
    ///
    /// The banks are constants, but the backward pass reads them: call [`MclMemory::update`] after it.
    ///
    /// # Shapes
    ///
    /// `embeddings`: K times `[B, D]` with rows of length 1; `positives`: B (1 + P) rows, of each sample the own one
    /// and P of its class; `negatives`: B Q rows.
    ///
    /// # Errors
    ///
    /// Embeddings that do not fit the banks, no row of the class or no negative, numbers of rows that B does not
    /// divide, a row out of range, a setting out of range.
    pub fn terms(
        &self,
        embeddings: &[Tensor],
        positives: &[u32],
        negatives: &[u32],
        settings: &MclSettings,
    ) -> Result<Vec<Term>> {
        settings.validate(METHOD)?;
        let b = self.check(embeddings)?;
        let [own_and_class, others] = [(positives, 2, "positives"), (negatives, 1, "negatives")]
            .map(|(rows, least, what)| self.per_sample(rows, b, least, what));
        let (own_and_class, others) = (own_and_class?, others?);
        let (p, q) = (positives.len() / b - 1, negatives.len() / b);
        let index: Vec<u32> = own_and_class.zip(others).flat_map(|(p, n)| p.iter().chain(n).copied()).collect();
        // Of embedding `anchor` against bank `bank`, `[B, 1 + P + Q]`.
        let scores = |bank: usize, anchor: usize| -> Result<Tensor> {
            Ok((wide(&gather_dot(&embeddings[anchor], &self.banks[bank], &index)?)? / settings.tau)?)
        };
        let within = |k: usize| Ok(scores(k, k)?.narrow(1, 1, p + q)?.contiguous()?);
        let own = (0..embeddings.len()).map(within).collect::<Result<Vec<_>>>()?;
        let pair = |a: usize, b: usize| Ok([scores(a, b)?, scores(b, a)?]);
        let (within, across) = (|x: &Tensor| first_columns(x, p), |x: &Tensor| first_columns(x, 1 + p));
        let sums = Sums::new(&own, pair, within, across, settings.temperature)?;
        settings.terms(sums, &embeddings[0])
    }

    /// Embeddings of as many networks as there are banks, of their width and type; returns B.
    fn check(&self, embeddings: &[Tensor]) -> Result<usize> {
        let (b, bank) = (check_embeddings(METHOD, embeddings)?, &self.banks[0]);
        let (found, width) = (&embeddings[0], bank.dims()[1]);
        if embeddings.len() != self.banks.len() || found.dims()[1] != width || found.dtype() != bank.dtype() {
            let message = format!(
                "expected embeddings of {} networks, [B, {width}] of type {:?}, found {} of shape {:?} and type {:?}",
                self.banks.len(),
                bank.dtype(),
                embeddings.len(),
                found.dims(),
                found.dtype()
            );
            return Err(Error::Undefined { method: METHOD, message });
        }
        Ok(b)
    }

    /// Rows of the banks, equally many for each sample.
    fn per_sample<'a>(
        &self,
        rows: &'a [u32],
        b: usize,
        least: usize,
        what: &str,
    ) -> Result<std::slice::Chunks<'a, u32>> {
        if !rows.len().is_multiple_of(b) || rows.len() < least * b {
            let found = rows.len();
            let message = format!("{what}: expected at least {least} for each of {b} samples, found {found} in all");
            return Err(Error::Undefined { method: METHOD, message });
        }
        self.in_range(rows)?;
        Ok(rows.chunks(rows.len() / b))
    }

    fn in_range(&self, rows: &[u32]) -> Result<()> {
        let size = self.rows();
        match rows.iter().find(|&&row| row as usize >= size) {
            Some(&row) => Err(Error::Index { method: METHOD, what: "bank row", index: row.into(), size }),
            None => Ok(()),
        }
    }

    /// Moves the rows of this batch's samples: `row <- normalize(momentum * row + (1 - momentum) * v)`.
    ///
    /// All new rows are formed from the old ones; if a sample occurs twice in the batch, the last one wins. An
    /// embedding that is zero or not finite, or a blend that is zero, leaves its row as it is.
    ///
    /// # Errors
    ///
    /// Embeddings that do not fit the banks, a number of rows other than B, or a row out of range; nothing is changed
    /// then.
    pub fn update(&mut self, embeddings: &[Tensor], own: &[u32]) -> Result<()> {
        let b = self.check(embeddings)?;
        if own.len() != b {
            let message = format!("expected the row of each of {b} samples, found {}", own.len());
            return Err(Error::Undefined { method: METHOD, message });
        }
        self.in_range(own)?;
        self.banks.iter().zip(embeddings).try_for_each(|(bank, v)| move_rows(bank, v, own, self.momentum))
    }

    /// Copies of the banks: `bank0`, `bank1` ...
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        Ok(self.banks()?.into_iter().enumerate().map(|(k, bank)| (name(k), bank)).collect())
    }

    /// Takes what [`MclMemory::state`] gave; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A bank that is missing, of another shape or not finite, or an unknown name.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let names: Vec<String> = (0..self.banks.len()).map(name).collect();
        let saved = Saved::new(METHOD, state, &names)?;
        self.banks = self.banks.iter().zip(&names).map(|(own, name)| saved.like(name, own)).collect::<Result<_>>()?;
        Ok(())
    }
}

fn name(k: usize) -> String {
    format!("bank{k}")
}

fn move_rows(bank: &Tensor, embeddings: &Tensor, own: &[u32], momentum: f64) -> Result<()> {
    let old = reduce::wide(&bank.index_select(&Tensor::new(own, bank.device())?, 0)?)?;
    let (new, width) = (reduce::wide(embeddings)?, bank.dims()[1]);
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    for ((old, new), &row) in old.chunks(width).zip(new.chunks(width)).zip(own) {
        let blend: Vec<f64> = old.iter().zip(new).map(|(o, v)| momentum * o + (1.0 - momentum) * v).collect();
        let length = norm(&blend);
        if norm(new) == 0.0 || length == 0.0 || !length.is_finite() {
            continue;
        }
        let unit: Vec<f64> = blend.iter().map(|x| x / length).collect();
        let unit =
            Tensor::from_vec(unit, (1, width), &Device::Cpu)?.to_dtype(bank.dtype())?.to_device(bank.device())?;
        bank.slice_set(&unit, 0, row as usize)?;
    }
    Ok(())
}
