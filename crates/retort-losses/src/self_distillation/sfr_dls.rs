//! Dynamic label smoothing of self-feature regularisation. **A reconstruction**, see [`sfr_dls`].

use super::ps_kd::softmax;
use super::rank::largest;
use super::target::{cross_entropy, one_hot};
use crate::config::check;
use crate::online::terms::{Saved, wide};
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_nn::Tensors;

const METHOD: &str = "sfr-dls";

/// Cross-entropy against labels that are smoothed by class; **a reconstruction** of a part of a withdrawn paper (Fan
/// and Hou 2021, arXiv 2103.07350), without published formulas or numbers.
///
/// The target is `(1 - epsilon) onehot(y) + epsilon Q[y]` with a table of distributions Q, one for each class; see
/// [`SfrTable`] and [`sfr_epsilon`].
///
/// # Shapes
///
/// `logits`: `[B, K]`, `labels`: class indices (u32 or i64) `[B]`, `table`: `[K, K]`; `epsilon` in `0 ..= 1`. Returns a
/// scalar.
///
/// # Gradients
///
/// Into the logits, `(p - target) / B`; the table is a constant. In f64.
///
/// # Errors
///
/// Other shapes, an empty batch, labels that are no class indices or not below K, a share out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{SfrTable, sfr_dls};
/// let (z, labels) = (Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?, Tensor::new(&[1u32], &Device::Cpu)?);
/// let loss = sfr_dls(&z, &labels, &SfrTable::new(2, 0.5)?.table()?, 0.1)?;
/// assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sfr_dls(logits: &Tensor, labels: &Tensor, table: &Tensor, epsilon: f64) -> Result<Tensor> {
    check::unit(METHOD, "epsilon", epsilon)?;
    let (b, k) = ops::logits(METHOD, "logits", logits)?;
    let ids = ops::class_ids(METHOD, labels, b, k)?;
    if table.dims() != [k, k] || !table.dtype().is_float() {
        let (what, expected) = (format!("table of type {:?}", table.dtype()), format!("floats [{k}, {k}]"));
        return Err(Error::Shape { method: METHOD, what, expected, found: table.dims().to_vec() });
    }
    let soft = wide(&table.detach())?.index_select(&Tensor::new(ids.as_slice(), table.device())?, 0)?;
    let target = (one_hot(&ids, 1.0 - epsilon, &soft)? + (soft * epsilon)?)?;
    cross_entropy(logits, &target, 1.0)
}

/// Share of the smoothed labels in an epoch, counted from 0: `largest_share min(1, epoch / (epochs / 2))`, so that
/// early training uses hard labels. Part of a reconstruction.
///
/// # Errors
///
/// `largest_share` outside of `0 ..= 1`, no epochs.
pub fn sfr_epsilon(largest_share: f64, epoch: usize, epochs: usize) -> Result<f64> {
    check::unit(METHOD, "epsilon", largest_share)?;
    check::count(METHOD, "epochs", epochs)?;
    Ok(largest_share * (epoch as f64 / (0.5 * epochs as f64)).min(1.0))
}

/// Which classes a network confuses with each: the table of [`sfr_dls`] and what it gathers for the next one.
///
/// A row starts even. After every epoch it becomes `m row + (1 - m) mean softmax` of the samples of its class that were
/// classified correctly, made to sum to 1, and stays where there were none. All of it is state. Part of a
/// reconstruction.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::SfrTable;
/// let mut table = SfrTable::new(2, 0.5)?;
/// table.update(&Tensor::new(&[[0f32, 3f32.ln()]], &Device::Cpu)?, &Tensor::new(&[1u32], &Device::Cpu)?)?;
/// table.end_epoch();
/// let rows = table.table()?.to_vec2::<f64>()?;
/// assert_eq!(rows[0], [0.5, 0.5]);
/// assert!((rows[1][1] - 0.625).abs() < 1e-7); // between 1/2 and 3/4
/// # Ok::<(), retort_losses::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SfrTable {
    classes: usize,
    momentum: f64,
    /// `[K, K]`.
    table: Vec<f64>,
    /// Of this epoch so far, `[K, K]`.
    sums: Vec<f64>,
    /// Samples behind each row of the sums.
    counts: Vec<f64>,
}

impl SfrTable {
    /// The even table; `momentum` in `0 ..= 1` is the share of the old row that stays, 0.5 in our design.
    ///
    /// # Errors
    ///
    /// No classes or more than 16384 of them, a momentum out of range.
    pub fn new(classes: usize, momentum: f64) -> Result<Self> {
        check::unit(METHOD, "momentum", momentum)?;
        check::width(METHOD, "classes", classes)?;
        if classes > 1 << 14 {
            let message = format!("expected at most {} classes, found {classes}", 1 << 14);
            return Err(Error::Undefined { method: METHOD, message });
        }
        let (table, sums) = (vec![1.0 / classes as f64; classes * classes], vec![0.0; classes * classes]);
        Ok(Self { classes, momentum, table, sums, counts: vec![0.0; classes] })
    }

    /// The table of this epoch, `[K, K]`, f64.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn table(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.table, (self.classes, self.classes), &Device::Cpu)?)
    }

    /// Gathers one batch: the probabilities of the samples whose largest logit is the label's.
    ///
    /// # Errors
    ///
    /// Another number of classes, labels that do not fit; nothing is changed then.
    pub fn update(&mut self, logits: &Tensor, labels: &Tensor) -> Result<()> {
        let (b, k) = ops::logits(METHOD, "logits", logits)?;
        if k != self.classes {
            let (what, expected) = ("logits".to_string(), format!("[B, {}]", self.classes));
            return Err(Error::Shape { method: METHOD, what, expected, found: logits.dims().to_vec() });
        }
        let ids = ops::class_ids(METHOD, labels, b, k)?;
        for (z, &label) in reduce::wide(logits)?.chunks(k).zip(&ids) {
            if largest(z) == label && z.iter().all(|z| z.is_finite()) {
                let sums = &mut self.sums[label as usize * k..][..k];
                sums.iter_mut().zip(softmax(z)).for_each(|(sum, p)| *sum += p);
                self.counts[label as usize] += 1.0;
            }
        }
        Ok(())
    }

    /// Moves the rows of the classes that were seen, and forgets what was gathered.
    pub fn end_epoch(&mut self) {
        let rows = self.table.chunks_mut(self.classes).zip(self.sums.chunks(self.classes)).zip(&self.counts);
        for ((row, sums), &count) in rows.filter(|(_, count)| **count > 0.0) {
            row.iter_mut().zip(sums).for_each(|(q, sum)| *q = self.momentum * *q + (1.0 - self.momentum) * sum / count);
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|q| *q /= sum);
        }
        self.sums.fill(0.0);
        self.counts.fill(0.0);
    }

    /// Copies of `table`, `sums` and `counts`.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        let square = (self.classes, self.classes);
        Ok(Tensors::from([
            ("table".to_string(), self.table()?),
            ("sums".to_string(), Tensor::from_slice(&self.sums, square, &Device::Cpu)?),
            ("counts".to_string(), Tensor::from_slice(&self.counts, self.classes, &Device::Cpu)?),
        ]))
    }

    /// Takes what [`SfrTable::state`] gave; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, of another shape, negative or not finite, or an unknown name.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let own = self.state()?;
        let saved = Saved::new(METHOD, state, &own.keys().cloned().collect::<Vec<_>>())?;
        let load = |name: &str| -> Result<Vec<f64>> {
            let values = reduce::wide(&saved.like(name, &own[name])?.to_dtype(DType::F64)?)?;
            match values.iter().find(|x| **x < 0.0) {
                Some(x) => Err(saved.refuse(name, format!("expected numbers >= 0, found {x}"))),
                None => Ok(values),
            }
        };
        let (table, sums, counts) = (load("table")?, load("sums")?, load("counts")?);
        (self.table, self.sums, self.counts) = (table, sums, counts);
        Ok(())
    }
}
