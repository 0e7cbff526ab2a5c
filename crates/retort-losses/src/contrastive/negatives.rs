//! Which rows of a memory bank a sample is compared with.

use crate::{Error, Result};
use rand::RngExt;
use rayon::prelude::*;
use retort_nn::Seed;
use serde::{Deserialize, Serialize};
use std::ops::Range;

const METHOD: &str = "crd";

/// Which row is a sample's positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositiveMode {
    /// Its own.
    #[default]
    Exact,
    /// A random one of its class, possibly its own.
    Relax,
}

/// Draws the contrast indices of contrastive representation distillation: one positive and K samples of other classes.
///
/// Negatives are drawn without replacement if the other classes have at least K samples, otherwise with replacement.
/// The generator of a sample is seeded by (seed, epoch, row), so what is drawn depends neither on the rest of the batch
/// nor on the number of threads, and there is no state to save.
///
/// ```
/// use retort_losses::contrastive::{NegativeSampler, PositiveMode};
/// use retort_nn::Seed;
/// let labels = [0, 0, 1, 1, 2];
/// let sampler = NegativeSampler::new(&labels, 3, PositiveMode::Exact, Seed::root(1))?;
/// let drawn = sampler.draw(0, &[0, 4])?;
/// assert_eq!((drawn.len(), drawn[0], drawn[4]), (2 * (3 + 1), 0, 4));
/// assert!(drawn[1..4].iter().all(|&row| labels[row as usize] != 0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct NegativeSampler {
    /// Rows sorted by class, in the order of the data set within a class.
    by_class: Vec<u32>,
    /// For each row the part of `by_class` that holds its class.
    class_of: Vec<Range<u32>>,
    negatives: usize,
    mode: PositiveMode,
    seed: Seed,
}

impl NegativeSampler {
    /// A sampler over the rows of a training set with these labels.
    ///
    /// # Errors
    ///
    /// No negatives asked for (or 2^32), an empty training set, one with a single class, or one with 2^32 rows.
    pub fn new(labels: &[u32], negatives: usize, mode: PositiveMode, seed: Seed) -> Result<Self> {
        let undefined = |message: String| Err(Error::Undefined { method: METHOD, message });
        let Ok(n) = u32::try_from(labels.len()) else {
            return undefined(format!("expected fewer than 2^32 samples, found {}", labels.len()));
        };
        if negatives == 0 || u32::try_from(negatives).is_err() {
            return undefined(format!("expected 1 to {} negatives per sample, found {negatives}", u32::MAX));
        }
        let mut by_class: Vec<u32> = (0..n).collect();
        by_class.sort_by_key(|&row| labels[row as usize]);
        let mut class_of = vec![0..0; labels.len()];
        let mut start = 0;
        for class in by_class.chunk_by(|&a, &b| labels[a as usize] == labels[b as usize]) {
            let range = start..start + class.len() as u32;
            class.iter().for_each(|&row| class_of[row as usize] = range.clone());
            start = range.end;
        }
        if class_of.first().is_none_or(|class| class.len() == labels.len()) {
            return undefined(format!(
                "negatives come from other classes, but the {} training samples have fewer than two classes",
                labels.len()
            ));
        }
        Ok(Self { by_class, class_of, negatives, mode, seed })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.class_of.len()
    }

    /// Negatives K per sample.
    #[must_use]
    pub fn negatives(&self) -> usize {
        self.negatives
    }

    /// Contrast indices `[B, K + 1]` of these rows, the positive in column 0.
    ///
    /// # Errors
    ///
    /// A row outside of the training set.
    pub fn draw(&self, epoch: usize, rows: &[u32]) -> Result<Vec<u32>> {
        let size = self.rows();
        if let Some(&index) = rows.iter().find(|&&row| row as usize >= size) {
            return Err(Error::Index { method: METHOD, what: "training row", index: index.into(), size });
        }
        let seed = self.seed.child(&format!("epoch {epoch}"));
        let mut drawn = vec![0; rows.len() * (self.negatives + 1)];
        drawn.par_chunks_mut(self.negatives + 1).zip(rows).for_each(|(out, &row)| self.draw_one(seed, row, out));
        Ok(drawn)
    }

    fn draw_one(&self, seed: Seed, row: u32, out: &mut [u32]) {
        let mut rng = seed.child(&format!("row {row}")).rng();
        let class = self.class_of[row as usize].clone();
        out[0] = match self.mode {
            PositiveMode::Exact => row,
            PositiveMode::Relax => self.by_class[rng.random_range(class.clone()) as usize],
        };
        // The others are everything in `by_class` but the class's own part.
        let others = self.by_class.len() as u32 - (class.end - class.start);
        let other = |i: u32| self.by_class[if i < class.start { i } else { i + (class.end - class.start) } as usize];
        let wanted = out.len() as u32 - 1;
        if wanted > others {
            out[1..].iter_mut().for_each(|slot| *slot = other(rng.random_range(0..others)));
            return;
        }
        // Floyd's algorithm: each draw either takes a fresh number or, if that is taken, the new upper end.
        let mut taken = vec![0u64; others.div_ceil(64) as usize];
        for (slot, end) in out[1..].iter_mut().zip(others - wanted..others) {
            let mut candidate = rng.random_range(0..=end);
            if taken[candidate as usize / 64] >> (candidate % 64) & 1 == 1 {
                candidate = end;
            }
            taken[candidate as usize / 64] |= 1 << (candidate % 64);
            *slot = other(candidate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<u32> {
        (0..60).map(|i| [3, 0, 7][i % 3]).collect()
    }

    fn sampler(k: usize, mode: PositiveMode) -> NegativeSampler {
        NegativeSampler::new(&labels(), k, mode, Seed::root(5)).unwrap()
    }

    #[test]
    fn negatives_are_distinct_and_of_other_classes() {
        let labels = labels();
        let rows: Vec<u32> = (0..60).collect();
        for k in [1, 17, 40] {
            let drawn = sampler(k, PositiveMode::Exact).draw(3, &rows).unwrap();
            for (row, drawn) in drawn.chunks(k + 1).enumerate() {
                assert_eq!(drawn[0] as usize, row);
                assert!(drawn[1..].iter().all(|&i| labels[i as usize] != labels[row]));
                let mut sorted = drawn[1..].to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), k);
            }
        }
    }

    #[test]
    fn more_negatives_than_samples_are_drawn_with_replacement() {
        let drawn = sampler(100, PositiveMode::Exact).draw(0, &[4]).unwrap();
        assert_eq!(drawn.len(), 101);
        assert!(drawn[1..].iter().all(|&i| labels()[i as usize] != labels()[4]));
    }

    #[test]
    fn draws_depend_on_seed_epoch_and_row_alone() {
        let s = sampler(10, PositiveMode::Exact);
        let pair = s.draw(2, &[7, 30]).unwrap();
        assert_eq!(pair[11..], s.draw(2, &[30]).unwrap());
        assert_ne!(pair[11..], s.draw(3, &[30]).unwrap());
        let other = NegativeSampler::new(&labels(), 10, PositiveMode::Exact, Seed::root(6)).unwrap();
        assert_ne!(pair[11..], other.draw(2, &[30]).unwrap());
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| s.draw(2, &[7, 30]).unwrap()), pair);
    }

    #[test]
    fn every_negative_is_equally_likely() {
        let s = sampler(10, PositiveMode::Exact);
        let mut count = [0u32; 60];
        for epoch in 0..4000 {
            s.draw(epoch, &[0]).unwrap()[1..].iter().for_each(|&i| count[i as usize] += 1);
        }
        for (row, &count) in count.iter().enumerate() {
            // Each of 40 others is drawn with probability 1/4: mean 1000, standard deviation 27.
            let expected = if row % 3 == 0 { 0..=0 } else { 860..=1140 };
            assert!(expected.contains(&count), "row {row}: {count}");
        }
    }

    #[test]
    fn relaxed_positives_cover_the_class() {
        let s = sampler(4, PositiveMode::Relax);
        let mut seen = [false; 60];
        for epoch in 0..400 {
            seen[s.draw(epoch, &[1]).unwrap()[0] as usize] = true;
        }
        assert!(seen.iter().enumerate().all(|(row, &seen)| seen == (row % 3 == 1)));
    }

    #[test]
    fn wrong_requests_are_errors() {
        let message = sampler(4, PositiveMode::Exact).draw(0, &[3, 60]).unwrap_err().to_string();
        assert!(message.contains("60"), "{message}");
        for labels in [&[][..], &[1, 1, 1]] {
            let message = NegativeSampler::new(labels, 4, PositiveMode::Exact, Seed::root(0)).unwrap_err().to_string();
            assert!(message.contains("fewer than two classes"), "{message}");
        }
        for negatives in [0, usize::MAX] {
            assert!(NegativeSampler::new(&[0, 1], negatives, PositiveMode::Exact, Seed::root(0)).is_err());
        }
    }
}
