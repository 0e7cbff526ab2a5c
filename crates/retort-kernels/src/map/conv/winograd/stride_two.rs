//! Stride 2: F(4x4, 2x2) between pixels of which every second one is left out, and plain products with the others.
//!
//! Along an axis, output `o` of a convolution with stride 2 is `x[2o] w[0] + x[2o + 2] w[2]`, a convolution of the even
//! pixels with two taps, and `x[2o + 1] w[1]`: five and four places in place of twelve products for four outputs.
//! The four have one weight in common.
//! On the way back the two sums are two outputs, of which the even one has the one tap.
//!
//! The points are [`P`], -`P`, [`Q`], -`Q` and infinity; with 0 the rounding errors are twice as large.

use super::transform::{Matrix, at, scaled, scaled_add};
use crate::simd::Simd;

/// `B'`: from patches of the input to places.
pub(super) struct Input;
/// `A`: from tiles of the output gradient to places.
pub(super) struct Gradient;
/// `A'`: from places to tiles of the output.
pub(super) struct Output;
/// From patches of the output gradient to places.
pub(super) struct BackInput;
/// From places to tiles of the input gradient.
pub(super) struct BackOutput;
/// `G`: from taps to weights.
pub(super) struct Spread;
/// `G'`: from weights to taps.
pub(super) struct Gather;

const P: f64 = 0.5;
const Q: f64 = 1.25;
/// What the products at P and -P, and at Q and -Q are divided by, the latter of each with the other sign.
const DIVISORS: [f64; 2] = [2.0 * P * (P * P - Q * Q), 2.0 * Q * (Q * Q - P * P)];

/// `B'` of the two taps.
///
/// # Safety
///
/// `V`'s instruction set must be there.
#[inline(always)]
unsafe fn input<V: Simd>(x: [V; 5]) -> [V; 5] {
    // SAFETY: the caller's promise.
    unsafe {
        let at_p = at(P, scaled_add(x[1], -Q * Q, x[3]), scaled_add(x[0], -Q * Q, x[2]));
        let at_q = at(Q, scaled_add(x[1], -P * P, x[3]), scaled_add(x[0], -P * P, x[2]));
        let end = scaled_add(x[0], P * P * Q * Q, scaled_add(x[2], -(P * P + Q * Q), x[4]));
        [at_p[0], at_p[1], at_q[0], at_q[1], end]
    }
}

/// `A` of the two taps.
///
/// # Safety
///
/// `V`'s instruction set must be there.
#[inline(always)]
unsafe fn gradient<V: Simd>(x: [V; 4]) -> [V; 5] {
    // SAFETY: the caller's promise.
    unsafe {
        let at_p = at(P, scaled_add(x[2], P * P, x[0]), scaled_add(x[3], P * P, x[1]));
        let at_q = at(Q, scaled_add(x[2], Q * Q, x[0]), scaled_add(x[3], Q * Q, x[1]));
        [at_p[0], at_p[1], at_q[0], at_q[1], x[3]]
    }
}

/// `A'` of the two taps.
///
/// # Safety
///
/// `V`'s instruction set must be there.
#[inline(always)]
unsafe fn output<V: Simd>(x: [V; 5]) -> [V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let even = [x[0].add(x[1]), x[2].add(x[3])];
        let odd = [scaled(x[0].sub(x[1]), P), scaled(x[2].sub(x[3]), Q)];
        [
            even[0].add(even[1]),
            odd[0].add(odd[1]),
            scaled_add(even[0], P * P, scaled(even[1], Q * Q)),
            scaled_add(odd[0], P * P, scaled_add(odd[1], Q * Q, x[4])),
        ]
    }
}

impl Matrix<9, 9> for Input {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 9]) -> [V; 9] {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e] = unsafe { input([x[0], x[2], x[4], x[6], x[8]]) };
        [a, b, c, d, e, x[1], x[3], x[5], x[7]]
    }
}

impl Matrix<4, 9> for Gradient {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 4]) -> [V; 9] {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e] = unsafe { gradient(x) };
        [a, b, c, d, e, x[0], x[1], x[2], x[3]]
    }
}

impl Matrix<9, 4> for Output {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 9]) -> [V; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b, c, d] = output([x[0], x[1], x[2], x[3], x[4]]);
            [a.add(x[5]), b.add(x[6]), c.add(x[7]), d.add(x[8])]
        }
    }
}

impl Matrix<5, 9> for BackInput {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 5]) -> [V; 9] {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e] = unsafe { input(x) };
        [a, b, c, d, e, x[0], x[1], x[2], x[3]]
    }
}

impl Matrix<9, 8> for BackOutput {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 9]) -> [V; 8] {
        // SAFETY: the caller's promise.
        let [a, b, c, d] = unsafe { output([x[0], x[1], x[2], x[3], x[4]]) };
        [x[5], a, x[6], b, x[7], c, x[8], d]
    }
}

impl Matrix<3, 6> for Spread {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 3]) -> [V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let [p, q] = DIVISORS;
            let (even, odd) = (scaled(x[2], P / p), scaled(x[0], 1.0 / p));
            let at_p = [even.add(odd), even.sub(odd)];
            let (even, odd) = (scaled(x[2], Q / q), scaled(x[0], 1.0 / q));
            let at_q = [even.add(odd), even.sub(odd)];
            [at_p[0], at_p[1], at_q[0], at_q[1], x[2], x[1]]
        }
    }
}

impl Matrix<6, 3> for Gather {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 6]) -> [V; 3] {
        // SAFETY: the caller's promise.
        unsafe {
            let [p, q] = DIVISORS;
            let even = [x[0].add(x[1]), x[2].add(x[3])];
            let odd = [x[0].sub(x[1]), x[2].sub(x[3])];
            [
                scaled_add(odd[0], 1.0 / p, scaled(odd[1], 1.0 / q)),
                x[5],
                scaled_add(even[0], P / p, scaled_add(even[1], Q / q, x[4])),
            ]
        }
    }
}
