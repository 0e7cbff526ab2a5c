//! Mutual contrastive learning without labels, against queues of keys.

use super::MclSettings;
use super::contrast::first_columns;
use super::mcl::{Sums, check_embeddings};
use super::terms::{Saved, copy, wide};
use crate::{Error, Result, Term, ops};
use candle_core::{DType, Device, Tensor};
use retort_kernels::inner_products;
use retort_nn::{Init, Seed, Tensors};

const METHOD: &str = "mcl-moco";
/// A vector with at most this norm counts as zero.
const NORM_EPS: f64 = 1e-12;

/// The queues of mutual contrastive learning with momentum encoders (Yang et al. 2022, arXiv 2104.12565; He et al.
/// 2020, arXiv 1911.05722): for each of K networks the last Q keys of its momentum encoder.
///
/// Queues and their common position are state. The momentum encoders (0.999) are the trainer's.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use retort_losses::online::{MclQueues, MclSettings};
/// use retort_nn::Seed;
/// let mut queues = MclQueues::init(2, 8, 3, Seed::root(1), DType::F32, &Device::Cpu)?;
/// let row = |x: [f32; 3]| Tensor::new(&[x], &Device::Cpu);
/// let (queries, keys) = (row([1.0, 2.0, 2.0])?, row([0.0, 0.6, 0.8])?);
/// let (queries, keys) = ([queries.clone(), queries], [keys.clone(), keys]);
/// assert_eq!(queues.terms(&queries, &keys, &MclSettings::moco())?.len(), 4);
/// queues.update(&keys)?;
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub struct MclQueues {
    /// `[Q, D]` each.
    queues: Vec<Tensor>,
    /// The row that the next key takes.
    position: usize,
}

impl MclQueues {
    /// Queues of `rows` random unit vectors of width `dim` for `networks` networks; 65536 rows in the paper's code.
    ///
    /// # Errors
    ///
    /// No networks, no rows, no width.
    pub fn init(networks: usize, rows: usize, dim: usize, seed: Seed, dtype: DType, device: &Device) -> Result<Self> {
        crate::config::check::width(METHOD, "dim", dim)?;
        let init = Init::Normal { std: 1.0 };
        let queue = |k: usize| {
            let rows = init.draw(&[rows, dim], seed.child(&name(k)), dtype, device)?;
            ops::guarded_normalize(&rows, NORM_EPS)
        };
        Self::new(&(0..networks).map(queue).collect::<Result<Vec<_>>>()?)
    }

    /// Queues with given keys, one a row, copied; the next key takes the first row.
    ///
    /// # Errors
    ///
    /// No queues, queues that are not `[Q, D]` or of several shapes or types.
    pub fn new(queues: &[Tensor]) -> Result<Self> {
        super::terms::check_all(METHOD, "queue", queues)?;
        ops::logits(METHOD, "queue 0", &queues[0])?;
        Ok(Self { queues: queues.iter().map(copy).collect::<Result<_>>()?, position: 0 })
    }

    /// Copies of the queues, `[Q, D]` for each network.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn queues(&self) -> Result<Vec<Tensor>> {
        self.queues.iter().map(copy).collect()
    }

    /// The four terms of one batch, see [`mcl`](super::mcl()).
    ///
    /// The scores of the pair (a, b) are `[q_a . k_b, q_a . queue_b] / tau` with normalised queries; the positive is
    /// column 0, and `con` is `-ln softmax` of it. `vcl` is for `a = b`, `icl` for `a != b`; the imitations are between
    /// (a, a) and (b, b), and between (a, b) and (b, a).
    ///
    /// # Shapes
    ///
    /// `queries`: K times `[B, D]`, of any length; `keys`: K times `[B, D]` with rows of length 1, constants. A query
    /// of norm <= 1e-12 counts as 0 and gets no gradient.
    ///
    /// # Errors
    ///
    /// Queries or keys that do not fit the queues or each other, a setting out of range.
    pub fn terms(&self, queries: &[Tensor], keys: &[Tensor], settings: &MclSettings) -> Result<Vec<Term>> {
        settings.validate(METHOD)?;
        let b = self.check("queries", queries)?;
        if self.check("keys", keys)? != b {
            return Err(ops::mismatch(METHOD, "as many keys as queries are needed", &queries[0], &keys[0]));
        }
        let unit = queries.iter().map(|q| ops::guarded_normalize(q, NORM_EPS)).collect::<Result<Vec<_>>>()?;
        let scores = |a: usize, b: usize| -> Result<Tensor> {
            let positive = (wide(&unit[a])? * wide(&keys[b].detach())?)?.sum_keepdim(1)?;
            let negatives = wide(&inner_products(&unit[a], &self.queues[b])?)?;
            Ok((Tensor::cat(&[positive, negatives], 1)? / settings.tau)?)
        };
        let own = (0..unit.len()).map(|k| scores(k, k)).collect::<Result<Vec<_>>>()?;
        let (pair, first) = (|a: usize, b: usize| Ok([scores(a, b)?, scores(b, a)?]), |x: &Tensor| first_columns(x, 1));
        let sums = Sums::new(&own, pair, first, first, settings.temperature)?;
        settings.terms(sums, &queries[0])
    }

    fn check(&self, what: &str, vectors: &[Tensor]) -> Result<usize> {
        let (b, queue) = (check_embeddings(METHOD, vectors)?, &self.queues[0]);
        let (found, width) = (&vectors[0], queue.dims()[1]);
        if vectors.len() != self.queues.len() || found.dims()[1] != width || found.dtype() != queue.dtype() {
            let message = format!(
                "{what}: expected {} tensors [B, {width}] of type {:?}, found {} of shape {:?} and type {:?}",
                self.queues.len(),
                queue.dtype(),
                vectors.len(),
                found.dims(),
                found.dtype()
            );
            return Err(Error::Undefined { method: METHOD, message });
        }
        Ok(b)
    }

    /// Puts this batch's keys into the queues, in place of the oldest ones; of more than Q keys the last Q stay.
    ///
    /// The queues are written anew: the gradients of earlier terms do not change.
    ///
    /// # Errors
    ///
    /// Keys that do not fit the queues; nothing is changed then.
    pub fn update(&mut self, keys: &[Tensor]) -> Result<()> {
        let (b, rows) = (self.check("keys", keys)?, self.queues[0].dims()[0]);
        let kept = b.min(rows);
        // Where the first kept key lands.
        let start = (self.position + b - kept) % rows;
        let (before, wrapped) = (kept.min(rows - start), kept - kept.min(rows - start));
        let write = |(queue, keys): (&Tensor, &Tensor)| -> Result<Tensor> {
            let (queue, keys) = (copy(queue)?, keys.detach().narrow(0, b - kept, kept)?.contiguous()?);
            queue.slice_set(&keys.narrow(0, 0, before)?.contiguous()?, 0, start)?;
            if wrapped > 0 {
                queue.slice_set(&keys.narrow(0, before, wrapped)?.contiguous()?, 0, 0)?;
            }
            Ok(queue)
        };
        self.queues = self.queues.iter().zip(keys).map(write).collect::<Result<_>>()?;
        self.position = (self.position + b) % rows;
        Ok(())
    }

    /// Copies of the queues, `queue0`, `queue1` ..., and `position`.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        let mut state: Tensors = self.queues()?.into_iter().enumerate().map(|(k, queue)| (name(k), queue)).collect();
        state.insert("position".into(), Tensor::new(&[self.position as f64], &Device::Cpu)?);
        Ok(state)
    }

    /// Takes what [`MclQueues::state`] gave; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A queue that is missing, of another shape or not finite, a position that is none, or an unknown name.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let names: Vec<String> = (0..self.queues.len()).map(name).collect();
        let all: Vec<String> = names.iter().cloned().chain(["position".to_string()]).collect();
        let saved = Saved::new(METHOD, state, &all)?;
        let position = saved.position("position", self.queues[0].dims()[0])?;
        let queues = self.queues.iter().zip(&names).map(|(own, name)| saved.like(name, own));
        self.queues = queues.collect::<Result<_>>()?;
        self.position = position;
        Ok(())
    }
}

fn name(k: usize) -> String {
    format!("queue{k}")
}
