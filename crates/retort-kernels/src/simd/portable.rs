//! A plain array as a vector.

use super::{Float, Simd};
use crate::pointwise::relu_of;

/// `N` numbers; the compiler turns the loops into what the target has.
#[derive(Clone, Copy)]
pub(crate) struct Array<T, const N: usize>([T; N]);

impl<T: Float, const N: usize> Array<T, N> {
    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(T, T) -> T) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        self
    }
}

impl<T: Float, const N: usize> Simd for Array<T, N> {
    type Elem = T;
    const LANES: usize = N;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller passes a pointer to `N` elements.
        Self(unsafe { from.cast::<[T; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller passes a pointer to `N` elements.
        unsafe { to.cast::<[T; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Self([value; N])
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut sum = addend.0;
        for (sum, (a, b)) in sum.iter_mut().zip(self.0.into_iter().zip(factor.0)) {
            // Not fused: without the instruction that would be a call for each element.
            *sum += a * b;
        }
        Self(sum)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn positive(self) -> Self {
        self.zip(self, |a, _| relu_of(a))
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        self.zip(gate, |a, gate| if gate <= T::default() { T::default() } else { a })
    }
    #[inline(always)]
    unsafe fn sum(self) -> T {
        let mut sum = self.0[0];
        for i in 1..N {
            sum += self.0[i];
        }
        sum
    }
}
