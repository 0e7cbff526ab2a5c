//! One vector type per instruction set behind one trait, and the choice between them.
//!
//! An algorithm is written once, as the [`Kernel::run`] of a struct that holds its arguments, generic over [`Simd`].
//! [`Float::dispatch`] calls it through a function that has the target features switched on; everything in between
//! must be `#[inline(always)]`, or the features do not reach the instructions.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::Cell;
use std::ops::{Add, AddAssign, Div, Mul, Sub};
use std::thread::LocalKey;

use crate::InstructionSet;
use crate::map::Store;
pub(crate) use portable::Array;

/// A vector of `LANES` numbers.
///
/// # Safety
///
/// The memory functions take a pointer to `LANES` valid elements, of any alignment that the element type allows.
/// All functions need the instruction set that the type stands for.
pub(crate) trait Simd: Copy {
    type Elem: Float;
    const LANES: usize;
    /// Rows (output channels) of a register tile: with three vectors a row the accumulators fill the register file.
    const ROWS: usize;

    unsafe fn load(from: *const Self::Elem) -> Self;
    unsafe fn store(self, to: *mut Self::Elem);
    unsafe fn splat(value: Self::Elem) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// `max(self, 0)`; NaN stays NaN.
    unsafe fn positive(self) -> Self;
    /// `self` where `gate > 0` or NaN, else 0.
    unsafe fn where_positive(self, gate: Self) -> Self;
    /// The sum of the lanes, in an order that depends on the type only.
    unsafe fn sum(self) -> Self::Elem;
    /// The sums of several vectors, which together cost less than one by one.
    #[inline(always)]
    unsafe fn sums<const R: usize>(rows: [Self; R]) -> [Self::Elem; R] {
        let mut sums = [Self::Elem::default(); R];
        for (sum, row) in sums.iter_mut().zip(rows) {
            // SAFETY: the caller's promise.
            *sum = unsafe { row.sum() };
        }
        sums
    }
    /// Asks for the cache line of an element that will be read soon.
    #[inline(always)]
    unsafe fn prefetch(_from: *const Self::Elem) {}
}

/// An algorithm with its arguments.
pub(crate) trait Kernel<T: Float> {
    type Output;
    /// Must be `#[inline(always)]`, see the module's head.
    fn run<V: Simd<Elem = T>>(self) -> Self::Output;
}

/// `f32` or `f64`.
pub(crate) trait Float:
    candle_core::WithDType
    + Copy
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    const NEG_INFINITY: Self;
    fn of(value: f64) -> Self;
    fn wide(self) -> f64;
    fn nan(self) -> bool;
    fn dispatch<K: Kernel<Self>>(set: InstructionSet, kernel: K) -> K::Output;
    /// Memory of feature maps that nobody uses at the moment.
    fn store() -> &'static Store<Self>;
    /// This thread's buffer for this type.
    fn scratch() -> &'static LocalKey<Cell<Vec<Self>>>;

    /// A buffer of this thread with at least `len` elements of any value behind the returned offset, which lies on a
    /// cache line; to be handed back by [`Float::keep_scratch`].
    ///
    /// No closure: its body would not get the target features of the kernel that it is written in.
    fn take_scratch(len: usize) -> (Vec<Self>, usize) {
        const LINE: usize = 64;
        let mut buffer = Self::scratch().take();
        let needed = len + LINE / size_of::<Self>();
        if buffer.len() < needed {
            buffer.resize(needed, Self::default());
        }
        // `align_offset` may give up; a vector off the line is slower, not wrong.
        let offset = buffer.as_ptr().align_offset(LINE).min(needed - len);
        (buffer, offset)
    }

    /// Keeps a buffer for this thread's next call.
    fn keep_scratch(buffer: Vec<Self>) {
        Self::scratch().set(buffer);
    }
}

impl Float for f32 {
    fn store() -> &'static Store<Self> {
        static STORE: Store<f32> = Store::new();
        &STORE
    }
    fn scratch() -> &'static LocalKey<Cell<Vec<Self>>> {
        thread_local! {
            static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
        }
        &SCRATCH
    }
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn nan(self) -> bool {
        self.is_nan()
    }
    fn dispatch<K: Kernel<Self>>(set: InstructionSet, kernel: K) -> K::Output {
        match set {
            // SAFETY: a set other than `Portable` exists only after detection (`InstructionSet::or_lower`).
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => unsafe { x86::run_avx512::<f32, x86::F32x16, K>(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Fma => unsafe { x86::run_avx2::<f32, x86::F32x8, K>(kernel) },
            _ => kernel.run::<Array<f32, 4>>(),
        }
    }
}

impl Float for f64 {
    fn store() -> &'static Store<Self> {
        static STORE: Store<f64> = Store::new();
        &STORE
    }
    fn scratch() -> &'static LocalKey<Cell<Vec<Self>>> {
        thread_local! {
            static SCRATCH: Cell<Vec<f64>> = const { Cell::new(Vec::new()) };
        }
        &SCRATCH
    }
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn nan(self) -> bool {
        self.is_nan()
    }
    fn dispatch<K: Kernel<Self>>(set: InstructionSet, kernel: K) -> K::Output {
        match set {
            // SAFETY: a set other than `Portable` exists only after detection (`InstructionSet::or_lower`).
            // The vector is an array: the compiler picks the instructions.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx2Fma => unsafe {
                x86::run_avx2::<f64, Array<f64, 4>, K>(kernel)
            },
            _ => kernel.run::<Array<f64, 4>>(),
        }
    }
}
