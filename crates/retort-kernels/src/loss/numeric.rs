//! Arithmetic in `f64` that the compiler turns into vector instructions.

use std::f64::consts::LOG2_E;

/// Numbers that are added side by side.
pub(super) const LANES: usize = 8;

/// `sum_i f(i)` for `i < n`, in an order that depends on `n` only.
#[inline(always)]
pub(super) fn sum(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let whole = n - n % LANES;
    for at in (0..whole).step_by(LANES) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(at + i);
        }
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    total(lanes)
}

/// The sum of the lanes, pair by pair.
#[inline(always)]
pub(super) fn total([a, b, c, d, e, f, g, h]: [f64; LANES]) -> f64 {
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// `e^x` for `x < 709`, to two units in the last place; 0 below -708, NaN stays NaN.
///
/// Without a branch, so that a loop over it is vectorised; the library's function is a call for each number.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    // ln 2 in two parts: products of the first one with an exponent are exact.
    const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // 1/13!, 1/12!, ... 1/2!
    const TAYLOR: [f64; 12] = [
        1.605_904_383_682_161_3e-10,
        2.087_675_698_786_81e-9,
        2.505_210_838_544_172e-8,
        2.755_731_922_398_589_4e-7,
        2.755_731_922_398_589e-6,
        2.480_158_730_158_73e-5,
        1.984_126_984_126_984e-4,
        1.388_888_888_888_889e-3,
        8.333_333_333_333_333e-3,
        4.166_666_666_666_666_4e-2,
        1.666_666_666_666_666_6e-1,
        0.5,
    ];
    let shifted = x * LOG2_E + ROUND;
    let exponent = shifted - ROUND;
    let rest = (x - exponent * LN_2[0]) - exponent * LN_2[1];
    let mut tail = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        tail = tail * rest + coefficient;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let value = (1.0 + (rest + rest * rest * tail)) * power;
    if x < -708.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_agree_with_the_library() {
        for i in -70_800..=6_000 {
            let x = f64::from(i) / 100.0 + 1e-3 * f64::from(i % 7);
            if x >= -708.0 {
                let expected = x.exp();
                assert!((exp(x) / expected - 1.0).abs() < 5e-16, "{x}: {} {expected}", exp(x));
            }
        }
        assert_eq!([exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn sums_of_every_length() {
        for n in 0..40 {
            assert_eq!(sum(n, |i| i as f64), (n * n.saturating_sub(1) / 2) as f64);
        }
    }
}
