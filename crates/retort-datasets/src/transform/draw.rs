//! Random numbers of the transforms.
//!
//! Logarithms and exponentials come from `libm`, whose bits do not depend on the platform as the system's may.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// True with this probability; draws its number for 0 and 1 too, so that what follows sees the same stream.
pub(super) fn chance(probability: f64, rng: &mut ChaCha8Rng) -> bool {
    rng.random::<f64>() < probability
}

/// Uniform between two numbers, one draw.
pub(super) fn uniform([low, high]: [f64; 2], rng: &mut ChaCha8Rng) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// Uniform on `0..n`, one draw; 0 for `n = 0`.
pub(crate) fn below(n: usize, rng: &mut ChaCha8Rng) -> usize {
    rng.random_range(0..n.max(1) as u64) as usize
}

/// 1 or -1, one draw.
pub(super) fn sign(rng: &mut ChaCha8Rng) -> f64 {
    if rng.random_range(0..2u32) == 0 { 1.0 } else { -1.0 }
}

/// The logarithm of a Gamma(alpha, 1) variate (Marsaglia and Tsang 2000, A simple method for generating gamma
/// variables).
///
/// The logarithm, because the variate itself is often below the smallest number where alpha is small.
pub(crate) fn log_gamma(alpha: f64, rng: &mut ChaCha8Rng) -> f64 {
    if alpha < 1.0 {
        // Gamma(a) = Gamma(a + 1) U^(1/a).
        let larger = log_gamma(alpha + 1.0, rng);
        return larger + libm::log(1.0 - rng.random::<f64>()) / alpha;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let root = 1.0 + c * x;
        let u = 1.0 - rng.random::<f64>();
        if root <= 0.0 {
            continue;
        }
        let v = root * root * root;
        if libm::log(u) < 0.5 * x * x + d * (1.0 - v + libm::log(v)) {
            return libm::log(d) + libm::log(v);
        }
    }
}

/// A standard normal variate by the polar method (Marsaglia and Bray 1964).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    loop {
        let (u, v) = (uniform([-1.0, 1.0], rng), uniform([-1.0, 1.0], rng));
        let square = u * u + v * v;
        if 0.0 < square && square < 1.0 {
            return u * (-2.0 * libm::log(square) / square).sqrt();
        }
    }
}

/// Weights that sum to 1: Dirichlet(alpha, .., alpha) over `n`.
pub(super) fn dirichlet(alpha: f64, n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let logs: Vec<f64> = (0..n).map(|_| log_gamma(alpha, rng)).collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let parts: Vec<f64> = logs.iter().map(|log| libm::exp(log - largest)).collect();
    let total: f64 = parts.iter().sum();
    parts.iter().map(|part| part / total).collect()
}

/// The first of two weights that sum to 1: Beta(alpha, alpha).
pub(crate) fn beta(alpha: f64, rng: &mut ChaCha8Rng) -> f64 {
    // Beyond these the result is 0 or 1, or 1/2, to the last bit of an f32, and the sums above would overflow or
    // cancel.
    let alpha = alpha.clamp(1e-290, 1e12);
    let (first, second) = (log_gamma(alpha, rng), log_gamma(alpha, rng));
    1.0 / (1.0 + libm::exp(second - first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_rng;

    #[test]
    fn gamma_has_its_mean_and_variance() {
        for alpha in [0.2, 0.7, 1.0, 3.5, 40.0] {
            let draws: Vec<f64> = (0..20_000).map(|i| log_gamma(alpha, &mut sample_rng(5, 0, i, 0)).exp()).collect();
            let n = draws.len() as f64;
            let mean = draws.iter().sum::<f64>() / n;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            // Both moments of Gamma(alpha, 1) are alpha; the standard error of the mean is sqrt(alpha / n).
            assert!((mean - alpha).abs() < 4.0 * (alpha / n).sqrt(), "{alpha}: mean {mean}");
            assert!((variance / alpha - 1.0).abs() < 0.15, "{alpha}: variance {variance}");
        }
    }

    #[test]
    fn dirichlet_sums_to_one() {
        for alpha in [1e-3, 1.0, 1e6] {
            let weights = dirichlet(alpha, 5, &mut sample_rng(1, 2, 3, 0));
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{alpha}: {weights:?}");
        }
    }
}
