//! A made-up batch and a made-up training set: what the numbers are changes no time.

use super::{Run, check_entries, seed};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_nn::{Init, Seed};

/// Rows of the training set of CIFAR-100, for methods that keep something of every row.
pub(super) const ROWS: usize = 50_000;

/// A tensor of standard normal numbers.
pub(super) fn normal(label: &str, shape: &[usize]) -> Result<Tensor> {
    check_entries(label, shape)?;
    Ok(Init::Normal { std: 1.0 }.draw(shape, seed().child(label), DType::F32, &Device::Cpu)?)
}

/// Which samples a batch holds, and their classes.
pub(super) struct Samples {
    /// Class of every row of the training set.
    pub(super) train_labels: Vec<u32>,
    /// Rows of the batch, no row twice while there are enough of them, as in training.
    pub(super) index: Vec<u32>,
    /// Classes of the batch.
    pub(super) label_ids: Vec<u32>,
    /// The same as a tensor `[B]`.
    pub(super) labels: Tensor,
}

impl Samples {
    pub(super) fn new(run: &Run<'_>, rows: usize) -> Result<Self> {
        let (batch, classes) = (run.options.batch, run.options.classes);
        check_entries("the training set", &[rows])?;
        check_entries("the logits", &[batch, classes])?;
        let train_labels: Vec<u32> = (0..rows).map(|row| (row % classes) as u32).collect();
        let index: Vec<u32> = shuffled(rows, seed().child("index")).into_iter().cycle().take(batch).collect();
        let label_ids: Vec<u32> = index.iter().map(|&row| train_labels[row as usize]).collect();
        let labels = Tensor::new(label_ids.as_slice(), &Device::Cpu).map_err(|e| Error::Failed(e.to_string()))?;
        Ok(Self { train_labels, index, label_ids, labels })
    }
}

/// The numbers below `rows`, in the order of their streams' numbers.
fn shuffled(rows: usize, seed: Seed) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    order.sort_by_cached_key(|row| seed.child(&row.to_string()).value());
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_permutation_and_not_in_order() {
        let mut rows = shuffled(100, Seed::root(1));
        assert_eq!(rows, shuffled(100, Seed::root(1)));
        assert_ne!(rows, shuffled(100, Seed::root(2)));
        assert_ne!(rows, (0..100).collect::<Vec<_>>());
        rows.sort_unstable();
        assert_eq!(rows, (0..100).collect::<Vec<_>>());
    }
}
