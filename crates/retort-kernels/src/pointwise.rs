//! Activations, element by element.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::float;
use crate::raw::{by_dtype, dtype, filled, slice, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{InstructionSet, Result, fallback, isa};

/// What follows a linear operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`, see [`relu`].
    Relu,
}

/// Elements a task works on; fixed, so that the partition does not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu_of<T: Float>(x: T) -> T {
    if x <= T::default() { T::default() } else { x }
}

/// A function of two numbers; one-argument functions ignore the second.
trait Function<T>: Copy + Send + Sync {
    fn of(self, a: T, b: T) -> T;
}

macro_rules! function {
    ($(#[$doc:meta])* $name:ident, |$a:ident, $b:ident| $body:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $name;
        impl<T: Float> Function<T> for $name {
            #[inline(always)]
            fn of(self, $a: T, $b: T) -> T {
                $body
            }
        }
    };
}

function!(ReluOf, |a, _b| relu_of(a));
function!(AbsOf, |a, _b| if a < T::default() {
    T::default() - a
} else if a == T::default() {
    T::default()
} else {
    a
});
// The first argument is the result of the activation (ReLU) or its argument (absolute value), the second the gradient.
function!(ReluGradient, |y, g| if y <= T::default() { T::default() } else { g });
function!(AbsGradient, |x, g| if x > T::default() {
    g
} else if x < T::default() {
    T::default() - g
} else {
    // PyTorch: sign(0) = 0; NaN in, NaN out.
    x * g
});

struct Map<'a, T, F> {
    a: &'a [T],
    b: &'a [T],
    to: &'a mut [MaybeUninit<T>],
    function: F,
}

impl<T: Float, F: Function<T>> Kernel<T> for Map<'_, T, F> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for ((to, &a), &b) in self.to.iter_mut().zip(self.a).zip(self.b) {
            to.write(self.function.of(a, b));
        }
    }
}

fn map<T: Float, F: Function<T>>(set: InstructionSet, a: &[T], b: &[T], function: F) -> Vec<T> {
    assert_eq!(a.len(), b.len(), "two tensors of one shape");
    // SAFETY: the operands are as long as the result (checked above), so every element is written.
    unsafe {
        filled(a.len(), |out| {
            out.par_chunks_mut(CHUNK)
                .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)))
                .for_each(|(to, (a, b))| T::dispatch(set, Map { a, b, to, function }));
        })
    }
}

/// The gradient `f(at, g)` as a tensor of the shape of `at`.
fn gradient<T: Float, F: Function<T>>(at: &Tensor, g: &Tensor, f: F) -> candle_core::Result<Tensor> {
    let (at, g) = (at.contiguous()?, g.contiguous()?);
    let values = with_slice::<T, _>(&at, |at| with_slice::<T, _>(&g, |g| map(isa::current(), at, g, f)))??;
    tensor(values, at.shape())
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("relu", dtype(s), T => {
            let x = slice::<T>(s, l)?;
            Ok((candle_core::WithDType::to_cpu_storage_owned(map(isa::current(), x, x, ReluOf)), l.shape().clone()))
        })
    }
    fn bwd(&self, _: &Tensor, y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        by_dtype!("relu", y.dtype(), T => gradient::<T, _>(y, g, ReluGradient).map(Some))
    }
}

struct Abs;

impl CustomOp1 for Abs {
    fn name(&self) -> &'static str {
        "abs"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("abs", dtype(s), T => {
            let x = slice::<T>(s, l)?;
            Ok((candle_core::WithDType::to_cpu_storage_owned(map(isa::current(), x, x, AbsOf)), l.shape().clone()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        by_dtype!("abs", x.dtype(), T => gradient::<T, _>(x, g, AbsGradient).map(Some))
    }
}

/// `max(x, 0)`, element by element.
///
/// The derivative at 0 is 0, as in PyTorch (candle's own says 1).
/// NaN stays NaN and lets its gradient pass.
///
/// # Errors
///
/// Elements that are neither `f32` nor `f64`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    float("relu", x)?;
    if !x.device().is_cpu() {
        return fallback::relu(x);
    }
    Ok(x.contiguous()?.apply_op1(Relu)?)
}

/// `|x|`, element by element; the derivative at 0 is 0, as in PyTorch (candle's own says 1).
///
/// # Errors
///
/// Elements that are neither `f32` nor `f64`.
pub fn abs(x: &Tensor) -> Result<Tensor> {
    float("abs", x)?;
    if !x.device().is_cpu() {
        return fallback::abs(x);
    }
    Ok(x.contiguous()?.apply_op1(Abs)?)
}
