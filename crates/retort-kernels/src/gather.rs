//! Scores against rows of a memory bank.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{Error, float, like, shape};
use crate::raw::{by_dtype, dtype, slice, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{InstructionSet, Result, fallback, isa};

struct GatherDot {
    bank: Tensor,
    index: Vec<u32>,
}

/// Scores of one anchor.
struct Scores<'a, T> {
    anchor: &'a [T],
    bank: &'a [T],
    index: &'a [u32],
    out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Scores<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let d = self.anchor.len();
        for (k, (out, &i)) in self.out.iter_mut().zip(self.index).enumerate() {
            prefetch::<V>(self.bank, self.index.get(k + AHEAD), d);
            let row = &self.bank[i as usize * d..(i as usize + 1) * d];
            *out = dot::<V>(self.anchor, row);
        }
    }
}

/// How many rows ahead the memory is asked for one: the order is random, so the hardware cannot guess it.
const AHEAD: usize = 6;

#[inline(always)]
fn prefetch<V: Simd>(bank: &[V::Elem], row: Option<&u32>, d: usize) {
    let Some(&row) = row else { return };
    let row = &bank[row as usize * d..(row as usize + 1) * d];
    for line in row.chunks(64 / size_of::<V::Elem>()) {
        // SAFETY: a prefetch reads nothing, and the address lies in the bank.
        unsafe { V::prefetch(line.as_ptr()) }
    }
}

#[inline(always)]
fn dot<V: Simd>(a: &[V::Elem], b: &[V::Elem]) -> V::Elem {
    let n = a.len().min(b.len());
    let whole = n / (2 * V::LANES) * (2 * V::LANES);
    // SAFETY: `at + 2 * LANES <= whole <= n` for every load.
    let mut sum = unsafe {
        let mut sums = [V::splat(V::Elem::default()); 2];
        let mut at = 0;
        while at < whole {
            for (i, sum) in sums.iter_mut().enumerate() {
                let from = at + i * V::LANES;
                *sum = V::load(a.as_ptr().add(from)).mul_add(V::load(b.as_ptr().add(from)), *sum);
            }
            at += 2 * V::LANES;
        }
        sums[0].sum() + sums[1].sum()
    };
    for i in whole..n {
        sum += a[i] * b[i];
    }
    sum
}

/// Gradient of one anchor: the rows weighted with the scores' gradients.
struct Weighted<'a, T> {
    weights: &'a [T],
    bank: &'a [T],
    index: &'a [u32],
    out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Weighted<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let d = self.out.len();
        for (k, (&g, &i)) in self.weights.iter().zip(self.index).enumerate() {
            prefetch::<V>(self.bank, self.index.get(k + AHEAD), d);
            let row = &self.bank[i as usize * d..(i as usize + 1) * d];
            for (out, &x) in self.out.iter_mut().zip(row) {
                *out += g * x;
            }
        }
    }
}

impl GatherDot {
    fn scores<T: Float>(&self, set: InstructionSet, anchors: &[T], bank: &[T], d: usize) -> Vec<T> {
        let k = self.index.len() / (anchors.len() / d);
        let mut out = vec![T::default(); self.index.len()];
        out.par_chunks_mut(k)
            .zip(anchors.par_chunks(d).zip(self.index.par_chunks(k)))
            .for_each(|(out, (anchor, index))| T::dispatch(set, Scores { anchor, bank, index, out }));
        out
    }

    fn gradient<T: Float>(&self, set: InstructionSet, g: &[T], bank: &[T], b: usize, d: usize) -> Vec<T> {
        let k = self.index.len() / b;
        let mut out = vec![T::default(); b * d];
        out.par_chunks_mut(d)
            .zip(g.par_chunks(k).zip(self.index.par_chunks(k)))
            .for_each(|(out, (weights, index))| T::dispatch(set, Weighted { weights, bank, index, out }));
        out
    }
}

impl CustomOp1 for GatherDot {
    fn name(&self) -> &'static str {
        "gather_dot"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, d) = l.shape().dims2()?;
        by_dtype!("gather_dot", dtype(s), T => {
            let anchors = slice::<T>(s, l)?;
            let out = with_slice::<T, _>(&self.bank, |bank| self.scores(isa::current(), anchors, bank, d))?;
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), (b, self.index.len() / b).into()))
        })
    }
    fn bwd(&self, anchors: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (b, d) = anchors.dims2()?;
        let g = g.contiguous()?;
        by_dtype!("gather_dot", anchors.dtype(), T => {
            let out = with_slice::<T, _>(&self.bank, |bank| {
                with_slice::<T, _>(&g, |g| self.gradient(isa::current(), g, bank, b, d))
            })??;
            tensor(out, (b, d)).map(Some)
        })
    }
}

/// Scores of each anchor against its own `K` rows of a bank: `scores[b, k] = <anchors[b], bank[index[b K + k]]>`.
///
/// The rows are read where they lie; nothing of size `B K D` exists at any time.
/// This is the inner loop of contrastive losses with a memory bank (Wu et al. 2018, arXiv 1805.01978; Tian et al.
/// 2020, arXiv 1910.10699).
///
/// # Shapes
///
/// `anchors`: `[B, D]`, `bank`: `[N, D]`, `index`: `B K` row numbers. Returns `[B, K]`.
///
/// # Gradients
///
/// Into `anchors` only; the bank is a constant.
///
/// # Errors
///
/// Wrong ranks or element types, an empty anchor set, a number of indices that `B` does not divide or that is zero,
/// an index that is not below `N`, a bank that tracks gradients.
pub fn gather_dot(anchors: &Tensor, bank: &Tensor, index: &[u32]) -> Result<Tensor> {
    const OP: &str = "gather_dot";
    float(OP, anchors)?;
    let [b, d] = match *anchors.dims() {
        [b, d] if b * d > 0 => [b, d],
        ref other => return Err(shape(OP, "anchors [B, D], neither of them zero", other)),
    };
    let n = match *bank.dims() {
        [n, _] => n,
        ref other => return Err(shape(OP, format!("bank [N, {d}]"), other)),
    };
    like(OP, "bank", bank, anchors.dtype(), &[n, d])?;
    if bank.track_op() {
        return Err(Error::Tracked { op: OP, argument: "bank" });
    }
    if index.is_empty() || !index.len().is_multiple_of(b) {
        return Err(shape(OP, format!("a positive multiple of {b} indices"), index.len()));
    }
    if let Some(position) = index.iter().position(|&i| i as usize >= n) {
        return Err(Error::Index { op: OP, index: index[position], position, len: n });
    }
    if !anchors.device().is_cpu() {
        let bank = bank.to_device(&candle_core::Device::Cpu)?;
        return fallback::on_host(anchors, |anchors| gather_dot(anchors, &bank, index));
    }
    let op = GatherDot { bank: bank.contiguous()?, index: index.to_vec() };
    Ok(anchors.contiguous()?.apply_op1(op)?)
}
