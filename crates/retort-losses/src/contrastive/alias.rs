//! Draws from a discrete distribution in constant time.

use crate::{Error, Result};
use rand::RngExt;

const METHOD: &str = "alias-sampler";

/// Alias table of a discrete distribution (Walker 1977, Vose 1991): a draw costs two random numbers, whatever the number
/// of outcomes.
///
/// Weights are scaled to mean 1. Outcome `i` keeps the share `accept[i]` of its own cell and gives the rest to
/// `alias[i]`, so that with `n` outcomes
/// `p_i = (accept[i] + sum over j with alias[j] = i of (1 - accept[j])) / n`.
/// An outcome of weight 0 is never drawn.
///
/// ```
/// use retort_losses::contrastive::AliasTable;
/// let table = AliasTable::new(&[1.0, 0.0, 1.0, 2.0])?;
/// assert_eq!(table.implied(), [0.25, 0.0, 0.25, 0.5]);
/// assert_ne!(table.draw(&mut retort_nn::Seed::root(1).rng()), 1);
/// # Ok::<(), retort_losses::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AliasTable {
    accept: Vec<f64>,
    alias: Vec<u32>,
}

impl AliasTable {
    /// The table of weights that need not sum to 1.
    ///
    /// # Errors
    ///
    /// No weight or 2^32 of them, a weight that is negative or not finite, only zeros.
    pub fn new(weights: &[f64]) -> Result<Self> {
        let undefined = |message: String| Err(Error::Undefined { method: METHOD, message });
        let Ok(outcomes) = u32::try_from(weights.len()) else {
            return undefined(format!("expected fewer than 2^32 weights, found {}", weights.len()));
        };
        if let Some((i, w)) = weights.iter().enumerate().find(|(_, w)| !w.is_finite() || **w < 0.0) {
            return undefined(format!("weight {i}: expected a finite number >= 0, found {w}"));
        }
        let max = weights.iter().copied().fold(0.0, f64::max);
        if max == 0.0 {
            return undefined(format!("expected a weight > 0 among {outcomes} of them, found none"));
        }
        // By the maximum first: a sum of large weights could overflow.
        let mean = weights.iter().map(|w| w / max).sum::<f64>() / f64::from(outcomes);
        let mut accept: Vec<f64> = weights.iter().map(|w| w / max / mean).collect();
        let mut alias: Vec<u32> = (0..outcomes).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) = (0..outcomes).partition(|&i| accept[i as usize] < 1.0);
        while let (Some(&s), Some(&l)) = (small.last(), large.last()) {
            small.pop();
            alias[s as usize] = l;
            accept[l as usize] -= 1.0 - accept[s as usize];
            if accept[l as usize] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        // Were it not for rounding, these would be 1.
        small.into_iter().chain(large).for_each(|i| accept[i as usize] = 1.0);
        Ok(Self { accept, alias })
    }

    /// All of `n` outcomes alike.
    ///
    /// # Errors
    ///
    /// `n` is 0 or above 2^32 - 1.
    pub fn uniform(n: usize) -> Result<Self> {
        Self::new(&vec![1.0; n])
    }

    /// Number of outcomes n.
    #[must_use]
    pub fn outcomes(&self) -> usize {
        self.accept.len()
    }

    /// The probability of every outcome, as the table has it.
    #[must_use]
    pub fn implied(&self) -> Vec<f64> {
        let mut mass = self.accept.clone();
        for (accept, &alias) in self.accept.iter().zip(&self.alias) {
            mass[alias as usize] += 1.0 - accept;
        }
        let n = mass.len() as f64;
        mass.into_iter().map(|mass| mass / n).collect()
    }

    /// One outcome.
    pub fn draw(&self, rng: &mut impl RngExt) -> u32 {
        let cell = rng.random_range(0..self.alias.len());
        if rng.random::<f64>() < self.accept[cell] { cell as u32 } else { self.alias[cell] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retort_nn::Seed;

    #[test]
    fn the_table_implies_the_weights() {
        let weights: Vec<f64> = (0..97).map(|i| if i % 5 == 0 { 0.0 } else { ((i * 37) % 101) as f64 }).collect();
        for scale in [1.0, 1e-300, 1e306, 1.0 / 3.0] {
            let scaled: Vec<f64> = weights.iter().map(|w| w * scale).collect();
            let table = AliasTable::new(&scaled).unwrap();
            let total: f64 = weights.iter().sum();
            for (i, (p, w)) in table.implied().iter().zip(&weights).enumerate() {
                assert!((p - w / total).abs() < 1e-14, "outcome {i}, scale {scale}: {p} {}", w / total);
                assert_eq!(*p == 0.0, *w == 0.0, "outcome {i}");
            }
        }
    }

    #[test]
    fn uniform_and_single_outcomes() {
        assert!(AliasTable::uniform(49).unwrap().implied().iter().all(|p| (p - 1.0 / 49.0).abs() < 1e-17));
        assert_eq!(AliasTable::new(&[0.3]).unwrap().implied(), [1.0]);
        assert_eq!(AliasTable::new(&[0.0, 5e-324]).unwrap().implied(), [0.0, 1.0]);
    }

    #[test]
    fn draws_follow_the_weights() {
        let table = AliasTable::new(&[2.0, 0.0, 1.0, 5.0]).unwrap();
        let (mut rng, mut count) = (Seed::root(3).rng(), [0u32; 4]);
        (0..8000).for_each(|_| count[table.draw(&mut rng) as usize] += 1);
        // Standard deviations are at most 45.
        for (count, expected) in count.iter().zip([2000, 0, 1000, 5000]) {
            assert!(count.abs_diff(expected) < 200, "{count} {expected}");
        }
        assert_eq!(count[1], 0);
    }

    #[test]
    fn weights_that_are_no_distribution_are_refused() {
        for (weights, expected) in [
            (&[][..], "found none"),
            (&[0.0, 0.0], "found none"),
            (&[1.0, -1.0], "weight 1"),
            (&[f64::NAN], "weight 0"),
            (&[1.0, 2.0, f64::INFINITY], "weight 2"),
        ] {
            let message = AliasTable::new(weights).unwrap_err().to_string();
            assert!(message.starts_with("alias-sampler: ") && message.contains(expected), "{message}");
        }
    }
}
