//! Arithmetic on parameters in place.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, WithDType};
use rayon::prelude::*;

/// Entries that a thread updates at once; small parameters are not worth waking another one.
const AT_ONCE: usize = 1 << 15;

/// `a <- f(a, b)` entry by entry, computed in f64 and rounded once.
pub(super) struct Zip2<F: Fn(f64, f64) -> f64 + Sync>(pub(super) &'static str, pub(super) F);
/// `a <- f(a, b, c)` entry by entry, computed in f64 and rounded once.
pub(super) struct Zip3<F: Fn(f64, f64, f64) -> f64 + Sync>(pub(super) &'static str, pub(super) F);

impl<F: Fn(f64, f64) -> f64 + Sync> Zip2<F> {
    fn run<T: WithDType>(&self, a: &mut [T], b: &[T]) {
        a.par_chunks_mut(AT_ONCE).zip(b.par_chunks(AT_ONCE)).for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                *a = T::from_f64((self.1)(a.to_f64(), b.to_f64()));
            }
        });
    }
}

impl<F: Fn(f64, f64, f64) -> f64 + Sync> Zip3<F> {
    fn run<T: WithDType>(&self, a: &mut [T], b: &[T], c: &[T]) {
        let parts = a.par_chunks_mut(AT_ONCE).zip(b.par_chunks(AT_ONCE)).zip(c.par_chunks(AT_ONCE));
        parts.for_each(|((a, b), c)| {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = T::from_f64((self.1)(a.to_f64(), b.to_f64(), c.to_f64()));
            }
        });
    }
}

impl<F: Fn(f64, f64) -> f64 + Sync> InplaceOp2 for Zip2<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> candle_core::Result<()> {
        match (s1, s2) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => self.run(part_mut(a, l1)?, part(b, l2)?),
            (CpuStorage::F64(a), CpuStorage::F64(b)) => self.run(part_mut(a, l1)?, part(b, l2)?),
            _ => candle_core::bail!("{}: expected two f32 or two f64 tensors", self.0),
        }
        Ok(())
    }
}

impl<F: Fn(f64, f64, f64) -> f64 + Sync> InplaceOp3 for Zip3<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<()> {
        match (s1, s2, s3) {
            (CpuStorage::F32(a), CpuStorage::F32(b), CpuStorage::F32(c)) => {
                self.run(part_mut(a, l1)?, part(b, l2)?, part(c, l3)?)
            }
            (CpuStorage::F64(a), CpuStorage::F64(b), CpuStorage::F64(c)) => {
                self.run(part_mut(a, l1)?, part(b, l2)?, part(c, l3)?)
            }
            _ => candle_core::bail!("{}: expected three f32 or three f64 tensors", self.0),
        }
        Ok(())
    }
}

fn part<'a, T>(data: &'a [T], layout: &Layout) -> candle_core::Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => candle_core::bail!("optimizer: expected a contiguous tensor"),
    }
}

fn part_mut<'a, T>(data: &'a mut [T], layout: &Layout) -> candle_core::Result<&'a mut [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut data[start..end]),
        None => candle_core::bail!("optimizer: expected a contiguous tensor"),
    }
}
