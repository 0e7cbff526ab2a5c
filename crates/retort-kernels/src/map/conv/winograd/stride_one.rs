//! F(4x4, 3x3): the points 0, [`P`], -`P`, [`Q`], -`Q` and infinity.
//!
//! The usual points, 1 and 2, give three times the rounding errors of these (f32, 64 channels, uniform numbers: 4.7e-6 of
//! the largest result against 1.4e-6).

use super::transform::{Matrix, at, scaled, scaled_add};
use crate::simd::Simd;

/// `B'`: from patches of the input to places.
pub(super) struct Input;
/// `A`: from tiles of the output gradient to places.
pub(super) struct Gradient;
/// `A'`: from places to tiles of the output.
pub(super) struct Output;
/// `G`: from taps to places.
pub(super) struct Spread;
/// `G'`: from places to taps.
pub(super) struct Gather;

const P: f64 = 0.75;
const Q: f64 = 1.5;
/// What the products at 0, at P and -P, and at Q and -Q are divided by.
const DIVISORS: [f64; 3] = [P * P * Q * Q, 2.0 * P * P * (P * P - Q * Q), 2.0 * Q * Q * (Q * Q - P * P)];

impl Matrix<6, 6> for Input {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 6]) -> [V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let ends = |x: [V; 3]| scaled_add(x[0], P * P * Q * Q, scaled_add(x[1], -(P * P + Q * Q), x[2]));
            let (even, odd) = (scaled_add(x[2], -Q * Q, x[4]), scaled_add(x[1], -Q * Q, x[3]));
            let at_p = at(P, even, odd);
            let (even, odd) = (scaled_add(x[2], -P * P, x[4]), scaled_add(x[1], -P * P, x[3]));
            let at_q = at(Q, even, odd);
            [ends([x[0], x[2], x[4]]), at_p[0], at_p[1], at_q[0], at_q[1], ends([x[1], x[3], x[5]])]
        }
    }
}

impl Matrix<4, 6> for Gradient {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 4]) -> [V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let (even, odd) = (scaled_add(x[2], P * P, x[0]), scaled_add(x[3], P * P, x[1]));
            let at_p = at(P, even, odd);
            let (even, odd) = (scaled_add(x[2], Q * Q, x[0]), scaled_add(x[3], Q * Q, x[1]));
            let at_q = at(Q, even, odd);
            [x[0], at_p[0], at_p[1], at_q[0], at_q[1], x[3]]
        }
    }
}

impl Matrix<6, 4> for Output {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 6]) -> [V; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let even = [x[1].add(x[2]), x[3].add(x[4])];
            let odd = [scaled(x[1].sub(x[2]), P), scaled(x[3].sub(x[4]), Q)];
            [
                x[0].add(even[0]).add(even[1]),
                odd[0].add(odd[1]),
                scaled_add(even[0], P * P, scaled(even[1], Q * Q)),
                scaled_add(odd[0], P * P, scaled_add(odd[1], Q * Q, x[5])),
            ]
        }
    }
}

impl Matrix<3, 6> for Spread {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 3]) -> [V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let [zero, p, q] = DIVISORS;
            let (even, odd) = (scaled(scaled_add(x[2], P * P, x[0]), 1.0 / p), scaled(x[1], P / p));
            let at_p = [even.add(odd), even.sub(odd)];
            let (even, odd) = (scaled(scaled_add(x[2], Q * Q, x[0]), 1.0 / q), scaled(x[1], Q / q));
            let at_q = [even.add(odd), even.sub(odd)];
            [scaled(x[0], 1.0 / zero), at_p[0], at_p[1], at_q[0], at_q[1], x[2]]
        }
    }
}

impl Matrix<6, 3> for Gather {
    #[inline(always)]
    unsafe fn times<V: Simd>(x: [V; 6]) -> [V; 3] {
        // SAFETY: the caller's promise.
        unsafe {
            let [zero, p, q] = DIVISORS;
            let even = [x[1].add(x[2]), x[3].add(x[4])];
            let odd = [x[1].sub(x[2]), x[3].sub(x[4])];
            [
                scaled_add(x[0], 1.0 / zero, scaled_add(even[0], 1.0 / p, scaled(even[1], 1.0 / q))),
                scaled_add(odd[0], P / p, scaled(odd[1], Q / q)),
                scaled_add(even[0], P * P / p, scaled_add(even[1], Q * Q / q, x[5])),
            ]
        }
    }
}
