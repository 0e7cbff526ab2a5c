//! An exponential that the compiler can vectorise.

/// Arguments below give exactly 0: `exp(-500)` is 7e-218, so products with weights stay clear of subnormal numbers.
const LOWEST: f64 = -500.0;
/// 1.5 * 2^52: adding it rounds to an integer, which is then in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; products of the first with integers up to 2^21 are exact.
const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// `(e^r - 1 - r) / r^2` for `|r| <= ln 2 / 2`, interpolated at Chebyshev nodes: error of `e^r` 1.6e-17.
const SERIES: [f64; 10] = [
    0.500_000_000_000_000_1,
    0.166_666_666_666_666_69,
    0.041_666_666_666_624_13,
    0.008_333_333_333_330_062,
    0.001_388_888_891_721_371_7,
    0.000_198_412_698_630_536_18,
    2.480_152_129_595_437_6e-5,
    2.755_726_845_999_706_4e-6,
    2.762_008_844_540_974_6e-7,
    2.510_038_549_551_032e-8,
];

/// `e^x` for `x <= 0` within 1 unit in the last place; 0 below -500, also for negative infinity.
///
/// No branch and no table, so a loop over a slice becomes vector code.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let [c0, c1, c2, c3, c4, c5, c6, c7, c8, c9] = SERIES;
    let (r2, r4) = (r * r, r * r * (r * r));
    // Estrin's order: short chains of dependent operations.
    let low = (c0 + c1 * r) + (c2 + c3 * r) * r2;
    let high = (c4 + c5 * r) + (c6 + c7 * r) * r2 + (c8 + c9 * r) * r4;
    let tail = (low + high * r4) * r2 + r;
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    let value = power + power * tail;
    if x < LOWEST { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_one_ulp_of_the_standard_library() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000u32 {
            let x = -500.0 * f64::from(i) / 2_000_000.0;
            let (ours, theirs) = (exp(x), x.exp());
            let ulp = f64::from_bits(theirs.to_bits() + 1) - theirs;
            worst = worst.max((ours - theirs).abs() / ulp);
        }
        assert!(worst <= 1.0, "{worst} ulp");
    }

    #[test]
    fn borders() {
        assert_eq!((exp(0.0), exp(-0.0), exp(-1e-300)), (1.0, 1.0, 1.0));
        assert_eq!((exp(-500.1), exp(-1e300), exp(f64::NEG_INFINITY)), (0.0, 0.0, 0.0));
        assert!(exp(-500.0) > 0.0);
    }
}
