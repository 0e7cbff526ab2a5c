//! From tensors to slices and back.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, DType, Device, Layout, Shape, Storage, Tensor};

use crate::simd::Float;

/// Runs an expression with `$t` as the Rust type of a checked element type.
macro_rules! by_dtype {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            found => Err(candle_core::Error::UnsupportedDTypeForOp(found, $op)),
        }
    };
}
pub(crate) use by_dtype;

/// The elements of a contiguous storage.
pub(crate) fn slice<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let all = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&all[from..to]),
        None => Err(candle_core::Error::RequiresContiguous { op: "retort-kernels" }),
    }
}

/// Calls `f` with the elements of a contiguous tensor on the CPU.
pub(crate) fn with_slice<T: Float, R>(t: &Tensor, f: impl FnOnce(&[T]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => candle_core::bail!("retort-kernels: expected a tensor on the cpu"),
    }
}

/// A new tensor on the CPU without history.
pub(crate) fn tensor<T: Float>(values: Vec<T>, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// The element type of a storage.
pub(crate) fn dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// A small tensor as `f64` numbers.
pub(crate) fn to_f64(t: &Tensor) -> candle_core::Result<Vec<f64>> {
    t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

/// A vector of `len` elements that `f` writes; saves filling it with zeros first.
///
/// # Safety
///
/// `f` must write every element.
pub(crate) unsafe fn filled<T: Float>(len: usize, f: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values: Vec<T> = Vec::with_capacity(len);
    let to = &mut values.spare_capacity_mut()[..len];
    if cfg!(debug_assertions) {
        // An element that `f` forgets shows in the tests; fresh memory may look like the right zeros.
        to.fill(MaybeUninit::new(T::of(f64::NAN)));
    }
    f(to);
    // SAFETY: the capacity is at least `len`, and `f` has written that many elements.
    unsafe { values.set_len(len) };
    values
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn forgotten_elements_show() {
        // SAFETY: debug builds fill the memory before the call.
        let values: Vec<f32> = unsafe { filled(3, |to| _ = to[1].write(1.0)) };
        assert!(values[0].is_nan() && values[2].is_nan());
        assert_eq!(values[1], 1.0);
    }
}
