//! AVX2 and AVX-512 vectors.

use std::arch::x86_64::*;

use super::{Float, Kernel, Simd};

/// Eight `f32` in an AVX register.
#[derive(Clone, Copy)]
pub(crate) struct F32x8(__m256);

/// Sixteen `f32` in an AVX-512 register.
#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

/// Runs a kernel with AVX2 and FMA switched on.
///
/// # Safety
///
/// The processor must have both.
#[target_feature(enable = "avx,avx2,fma")]
pub(super) unsafe fn run_avx2<T: Float, V: Simd<Elem = T>, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<V>()
}

/// Runs a kernel with AVX-512 F, BW, DQ and VL switched on.
///
/// # Safety
///
/// The processor must have them.
#[target_feature(enable = "avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run_avx512<T: Float, V: Simd<Elem = T>, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<V>()
}

// SAFETY of the blocks below: the trait's caller guarantees the instruction set and, for memory, `LANES` elements.
impl Simd for F32x8 {
    type Elem = f32;
    const LANES: usize = 8;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn positive(self) -> Self {
        // Of two operands one of which is NaN the instruction returns the second.
        Self(unsafe { _mm256_max_ps(_mm256_setzero_ps(), self.0) })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        unsafe {
            let mask = _mm256_cmp_ps::<_CMP_NLE_UQ>(gate.0, _mm256_setzero_ps());
            Self(_mm256_and_ps(self.0, mask))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn sums<const R: usize>(rows: [Self; R]) -> [f32; R] {
        let mut sums = [0.0; R];
        unsafe {
            if R == 4 {
                let low = _mm256_hadd_ps(rows[0].0, rows[1].0);
                let high = _mm256_hadd_ps(rows[2].0, rows[3].0);
                let both = _mm256_hadd_ps(low, high);
                let four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
                _mm_storeu_ps(sums.as_mut_ptr(), four);
            } else {
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = row.sum();
                }
            }
        }
        sums
    }
}

impl Simd for F32x16 {
    type Elem = f32;
    const LANES: usize = 16;
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn positive(self) -> Self {
        // Of two operands one of which is NaN the instruction returns the second.
        Self(unsafe { _mm512_max_ps(_mm512_setzero_ps(), self.0) })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        unsafe {
            let mask = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(gate.0, _mm512_setzero_ps());
            Self(_mm512_maskz_mov_ps(mask, self.0))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            F32x8(_mm256_add_ps(_mm512_castps512_ps256(self.0), high)).sum()
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn sums<const R: usize>(rows: [Self; R]) -> [f32; R] {
        let mut sums = [0.0; R];
        unsafe {
            if R == 8 {
                // Each step halves the number of vectors and of addends in a lane.
                let low = four_rows(rows[0].0, rows[1].0, rows[2].0, rows[3].0);
                let high = four_rows(rows[4].0, rows[5].0, rows[6].0, rows[7].0);
                let left = _mm512_shuffle_f32x4::<0b10_00_10_00>(low, high);
                let right = _mm512_shuffle_f32x4::<0b11_01_11_01>(low, high);
                // 128-bit lanes: two addends of the first four rows, two of the last four.
                let pairs = _mm512_add_ps(left, right);
                let ordered = _mm512_shuffle_f32x4::<0b11_01_10_00>(pairs, pairs);
                let halves = (_mm512_castps512_ps256(ordered), _mm512_extractf32x8_ps::<1>(ordered));
                _mm256_storeu_ps(sums.as_mut_ptr(), _mm256_add_ps(halves.0, halves.1));
            } else {
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = row.sum();
                }
            }
        }
        sums
    }
}

/// In each 128-bit lane the sums of that lane of four vectors.
#[inline(always)]
unsafe fn four_rows(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        _mm512_add_ps(low, high)
    }
}
