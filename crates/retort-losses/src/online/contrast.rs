//! Rows of scores against their positives, and rows of scores that imitate others.

use super::terms::imitate;
use crate::{Result, ops, reduce};
use candle_core::{DType, Device, Tensor};

/// Which columns of a score matrix `[B, B]` are a row's positives, and which take part in its normaliser.
///
/// Rows without a positive (a class that occurs once) are left out: a mean over no positive is 0 / 0. `None` if that
/// leaves no row.
pub(super) struct Positives(Option<Kept>);

struct Kept {
    /// The R rows that have a positive.
    rows: Tensor,
    /// `1 / |P(i)|` at the positives of these rows, `[R, B]`, f64.
    shares: Tensor,
    /// `-inf` at the row's own column, 0 elsewhere; `None` where it takes part.
    mask: Option<Tensor>,
}

impl Positives {
    /// The other samples of a row's class, the sample itself included or not.
    pub(super) fn new(labels: &[u32], include_self: bool, device: &Device) -> Result<Self> {
        let columns = 0..labels.len();
        let positive = |i: usize, j: usize| labels[i] == labels[j] && (include_self || i != j);
        let counts: Vec<usize> = columns.clone().map(|i| columns.clone().filter(|&j| positive(i, j)).count()).collect();
        let rows: Vec<u32> = (0..labels.len() as u32).filter(|&i| counts[i as usize] > 0).collect();
        if rows.is_empty() {
            return Ok(Self(None));
        }
        let entries = |f: &dyn Fn(usize, usize) -> f64| -> Result<Tensor> {
            let all = rows.iter().flat_map(|&i| columns.clone().map(move |j| f(i as usize, j)));
            Ok(Tensor::from_vec(all.collect::<Vec<f64>>(), (rows.len(), labels.len()), device)?)
        };
        let shares = entries(&|i, j| if positive(i, j) { 1.0 / counts[i] as f64 } else { 0.0 })?;
        // Before the exponential: a row whose own score is far above the others keeps its digits.
        let mask = entries(&|i, j| if i == j { f64::NEG_INFINITY } else { 0.0 })?;
        Ok(Self(Some(Kept { rows: Tensor::new(rows, device)?, shares, mask: (!include_self).then_some(mask) })))
    }

    /// Of each row with a positive: `- mean_{j in P(i)} (G_ij - ln sum_l exp G_il)`, `[R]`; `None` without such rows.
    pub(super) fn rows(&self, scores: &Tensor) -> Result<Option<Tensor>> {
        let Some(Kept { rows, shares, mask }) = &self.0 else { return Ok(None) };
        let scores = scores.contiguous()?.index_select(rows, 0)?;
        let attraction = (&scores * shares)?.sum(1)?;
        let all = match mask {
            Some(mask) => (scores + mask)?,
            None => scores,
        };
        Ok(Some((ops::log_sum_exp(&all)?.squeeze(1)? - attraction)?))
    }

    /// The mean of [`Positives::rows`], 0 without any.
    pub(super) fn mean(&self, scores: &Tensor) -> Result<Tensor> {
        match self.rows(scores)? {
            Some(rows) => reduce::mean_all(&rows),
            None => Ok(zero(scores)?),
        }
    }

    /// The mean of the rows, each times its sample's weight `[B]`; the weights do not divide it.
    pub(super) fn weighted_mean(&self, rows: Option<&Tensor>, weights: &Tensor) -> Result<Tensor> {
        match (rows, &self.0) {
            (Some(losses), Some(kept)) => reduce::mean_all(&(losses * weights.index_select(&kept.rows, 0)?)?),
            _ => Ok(zero(weights)?),
        }
    }
}

/// The same mean where the first columns are every row's positives and all columns are in the normaliser.
pub(super) fn first_columns(scores: &Tensor, positives: usize) -> Result<Tensor> {
    let attraction = scores.narrow(1, 0, positives)?.mean(1)?;
    reduce::mean_all(&(ops::log_sum_exp(scores)?.squeeze(1)? - attraction)?)
}

/// `KD_T(student <- target) + KD_T(target <- student)`, each with the other side constant, on rows of scores.
pub(super) fn both_ways(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    Ok((imitate(&a, &b, temperature)? + imitate(&b, &a, temperature)?)?)
}

/// The rows of [`both_ways`] before the mean, `[B]`; the targets are those given, or the scores themselves.
pub(super) fn both_ways_rows([a, b]: [&Tensor; 2], targets: Option<[&Tensor; 2]>, temperature: f64) -> Result<Tensor> {
    let log = |x: &Tensor| ops::log_softmax(&(x / temperature)?);
    let (log_a, log_b) = (log(a)?, log(b)?);
    let (target_a, target_b) = match targets {
        Some([a, b]) => (log(a)?, log(b)?),
        None => (log_a.clone(), log_b.clone()),
    };
    let one_way = |student: &Tensor, target: &Tensor| -> Result<Tensor> {
        let target = target.detach();
        Ok((target.exp()? * (&target - student)?)?.sum(1)?)
    };
    Ok(((one_way(&log_a, &target_b)? + one_way(&log_b, &target_a)?)? * (temperature * temperature))?)
}

/// A constant f64 scalar.
fn zero(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros((), DType::F64, like.device())?)
}
