//! Embeddings against the rows of a bank that they are compared with.

use crate::Result;
use crate::reduce::{by_float, slice};
use candle_core::{Storage, Tensor, Var, WithDType};
use rayon::prelude::*;
use retort_kernels::{gather_dot, inner_products, weighted_sums, with_gradient};

/// If an embedding is compared with more than one row in so many, its products with all rows are formed and most of them
/// thrown away: for a row of a product of matrices about a sixth of the time is needed that a row read on its own takes.
const DENSE: usize = 6;

/// Inner products of one side's embeddings with rows of the other side's bank, and the way back.
pub(super) struct Anchor<'a> {
    bank: &'a Tensor,
    contrast: &'a [u32],
    /// `[B, K + 1]`.
    products: Tensor,
    /// What the products depend on, if the rows were read one by one.
    variable: Option<Var>,
}

impl<'a> Anchor<'a> {
    /// The products of `embedding` `[B, D]` with the rows `contrast` `[B, K + 1]` of `bank` `[n, D]`.
    pub(super) fn new(embedding: &Tensor, bank: &'a Tensor, contrast: &'a [u32]) -> Result<Self> {
        let embedding = embedding.detach();
        let (b, n) = (embedding.dims()[0], bank.dims()[0]);
        if bank.device().is_cpu() && contrast.len() * DENSE >= b * n {
            let products = pick(&inner_products(&embedding, bank)?, contrast)?;
            return Ok(Self { bank, contrast, products, variable: None });
        }
        // A private copy, so that the gradient stops here.
        let variable = Var::from_tensor(&embedding.copy()?)?;
        let products = gather_dot(&variable, bank, contrast)?;
        Ok(Self { bank, contrast, products, variable: Some(variable) })
    }

    /// The products without history.
    pub(super) fn products(&self) -> Tensor {
        self.products.detach()
    }

    /// `sum_k slopes[b, k] * bank[contrast[b, k]]`, the backward pass of the products.
    pub(super) fn gradient(&self, slopes: &Tensor) -> Result<Tensor> {
        match &self.variable {
            None => Ok(weighted_sums(&spread(slopes, self.contrast, self.bank.dims()[0])?, self.bank)?),
            Some(variable) => {
                let mut grads = with_gradient(0.0, &self.products, slopes)?.backward()?;
                Ok(grads.remove(variable).expect("the products depend on the embeddings"))
            }
        }
    }
}

/// Calls a generic function with the elements of a tensor on the CPU.
macro_rules! with_elements {
    ($tensor:expr, $x:ident: &[$T:ident] => $body:expr) => {{
        let (storage, layout) = $tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            return Err(candle_core::Error::Msg("expected a tensor on the CPU".into()).into());
        };
        by_float!(storage, $T => {
            let $x = slice::<$T>(storage, layout)?;
            $body
        })
    }};
}

/// `x[b, index[b, k]]`: `[B, n]` to `[B, K]`.
fn pick(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    fn rows<T: WithDType>(x: &[T], index: &[u32], b: usize) -> Vec<T> {
        let (n, k) = (x.len() / b, index.len() / b);
        let mut out = vec![T::zero(); index.len()];
        out.par_chunks_mut(k).zip(x.par_chunks(n).zip(index.par_chunks(k))).for_each(|(out, (x, index))| {
            out.iter_mut().zip(index).for_each(|(out, &i)| *out = x[i as usize]);
        });
        out
    }
    let b = x.dims()[0];
    let shape = (b, index.len() / b);
    Ok(with_elements!(x, x: &[T] => Tensor::from_vec(rows(x, index, b), shape, &candle_core::Device::Cpu))?)
}

/// The way back: `out[b, index[b, k]] += x[b, k]`, `[B, K]` to `[B, n]`.
fn spread(x: &Tensor, index: &[u32], n: usize) -> Result<Tensor> {
    fn rows<T: WithDType>(x: &[T], index: &[u32], [b, n]: [usize; 2]) -> Vec<T> {
        let k = index.len() / b;
        let mut out = vec![T::zero(); b * n];
        out.par_chunks_mut(n).zip(x.par_chunks(k).zip(index.par_chunks(k))).for_each(|(out, (x, index))| {
            x.iter().zip(index).for_each(|(&x, &i)| out[i as usize] += x);
        });
        out
    }
    let b = x.dims()[0];
    Ok(with_elements!(x, x: &[T] => Tensor::from_vec(rows(x, index, [b, n]), (b, n), &candle_core::Device::Cpu))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn numbers(rows: usize, dim: usize, step: f64) -> Tensor {
        let values: Vec<f64> = (0..rows * dim).map(|i| (i as f64 * step).sin()).collect();
        Tensor::from_vec(values, (rows, dim), &Device::Cpu).unwrap()
    }

    #[test]
    fn both_ways_agree() {
        let (embedding, bank) = (numbers(3, 5, 1.3), numbers(7, 5, 0.7));
        // One row of the bank twice for the same embedding.
        let contrast = [6, 0, 3, 3, 1, 2, 5, 4, 0, 6, 6, 1];
        let slopes = numbers(3, 4, 2.1);
        let run = |bank: &Tensor, dtype: DType| {
            let [embedding, bank, slopes] = [&embedding, bank, &slopes].map(|t| t.to_dtype(dtype).unwrap());
            let anchor = Anchor::new(&embedding, &bank, &contrast).unwrap();
            let results = [anchor.products(), anchor.gradient(&slopes).unwrap()];
            (anchor.variable.is_none(), results.map(|t| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap()))
        };
        // Rows that nobody asks for make it worth while to read the others one by one.
        let long = Tensor::cat(&[&bank, &numbers(100, 5, 0.1)], 0).unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-5)] {
            let ((dense, a), (sparse, b)) = (run(&bank, dtype), run(&long, dtype));
            assert!(dense && !sparse);
            for (a, b) in a.iter().zip(&b) {
                let (a, b) = (a.to_vec1::<f64>().unwrap(), b.to_vec1::<f64>().unwrap());
                assert!(a.len() > 10 && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < tolerance), "{a:?} {b:?}");
            }
        }
    }
}
