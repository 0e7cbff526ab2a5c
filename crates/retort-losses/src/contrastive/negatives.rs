//! Which rows of a memory bank a sample is compared with.

use super::AliasTable;
use crate::{Error, Result};
use rand::RngExt;
use rayon::prelude::*;
use retort_nn::Seed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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

/// Which rows a sample's negatives are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NegativesBy {
    /// The samples of other classes.
    #[default]
    Class,
    /// All other samples, whatever their class: for data without classes.
    Instance,
    /// All samples with replacement, the sample itself and its class included: what the reference code bases fall back
    /// on where they are given no contrast indices.
    Any,
}

/// Draws the contrast indices of contrastive representation distillation: one positive and K negatives for each sample.
///
/// Negatives are samples of other classes ([`NegativeSampler::new`]) or all other samples
/// ([`NegativeSampler::by_instance`]), drawn without replacement if there are at least K of them, otherwise with
/// replacement; or outcomes of an alias table ([`NegativeSampler::from_table`]).
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
    source: Source,
    rows: u32,
    negatives: usize,
    seed: Seed,
}

#[derive(Clone, Debug)]
enum Source {
    Classes(Classes),
    Others,
    Table(AliasTable),
}

#[derive(Clone, Debug)]
struct Classes {
    /// Rows sorted by class, in the order of the data set within a class.
    by_class: Vec<u32>,
    /// For each row the part of `by_class` that holds its class.
    class_of: Vec<Range<u32>>,
    mode: PositiveMode,
    /// The negatives of the class whose part starts here, where they are not all samples of other classes.
    share: BTreeMap<u32, Vec<u32>>,
}

fn undefined<T>(message: String) -> Result<T> {
    Err(Error::Undefined { method: METHOD, message })
}

impl NegativeSampler {
    /// Negatives of other classes, over the rows of a training set with these labels.
    ///
    /// # Errors
    ///
    /// No negatives asked for (or 2^32), an empty training set, one with a single class, or one with 2^32 rows.
    pub fn new(labels: &[u32], negatives: usize, mode: PositiveMode, seed: Seed) -> Result<Self> {
        let mut sampler = Self::over(Source::Others, labels.len(), negatives, seed)?;
        let mut by_class: Vec<u32> = (0..sampler.rows).collect();
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
                "negatives come from other classes, but the {} training samples have fewer than two classes; \
                 set `negatives_by` to `instance` for data without classes",
                labels.len()
            ));
        }
        sampler.source = Source::Classes(Classes { by_class, class_of, mode, share: BTreeMap::new() });
        Ok(sampler)
    }

    /// The positive is the sample itself, negatives are all other rows of a training set of `rows` samples.
    ///
    /// # Errors
    ///
    /// No negatives asked for (or 2^32), fewer than two rows, or 2^32 of them.
    pub fn by_instance(rows: usize, negatives: usize, seed: Seed) -> Result<Self> {
        if rows < 2 {
            return undefined(format!("negatives are other samples, but the training set has {rows}"));
        }
        Self::over(Source::Others, rows, negatives, seed)
    }

    /// The positive is the sample itself, negatives are independent draws from a table over the rows.
    ///
    /// The sample itself and others of its class can be among them.
    ///
    /// # Errors
    ///
    /// No negatives asked for (or 2^32).
    pub fn from_table(table: AliasTable, negatives: usize, seed: Seed) -> Result<Self> {
        let rows = table.outcomes();
        Self::over(Source::Table(table), rows, negatives, seed)
    }

    fn over(source: Source, rows: usize, negatives: usize, seed: Seed) -> Result<Self> {
        let Ok(n) = u32::try_from(rows) else {
            return undefined(format!("expected fewer than 2^32 samples, found {rows}"));
        };
        if negatives == 0 || u32::try_from(negatives).is_err() {
            return undefined(format!("expected 1 to {} negatives per sample, found {negatives}", u32::MAX));
        }
        Ok(Self { source, rows: n, negatives, seed })
    }

    /// Keeps, for every class, a random share of the samples of other classes as its negatives, now and for good.
    ///
    /// As in the reference code bases every class keeps equally many: the share of what the first class has, rounded
    /// down, or all that it has if that is less.
    ///
    /// # Errors
    ///
    /// A share outside `0 < percent <= 1` or so small that nothing is left; negatives that do not depend on classes.
    pub fn with_percent(mut self, percent: f64) -> Result<Self> {
        check_percent(percent)?;
        let Source::Classes(classes) = &mut self.source else {
            return undefined("a share of the negatives needs negatives of other classes".into());
        };
        let first = classes.others(&classes.class_of[classes.by_class[0] as usize]);
        let size = (f64::from(first) * percent) as u32;
        if size == 0 {
            return undefined(format!("a share of {percent} of {first} negatives leaves none"));
        }
        if percent < 1.0 {
            let starts =
                classes.by_class.chunk_by(|&a, &b| classes.class_of[a as usize] == classes.class_of[b as usize]);
            let parts: Vec<Range<u32>> = starts.map(|class| classes.class_of[class[0] as usize].clone()).collect();
            let seed = self.seed.child("share");
            let share = parts.into_par_iter().map(|class| {
                let mut kept = vec![0; size.min(classes.others(&class)) as usize];
                numbers(&mut seed.child(&format!("class at {}", class.start)).rng(), classes.others(&class), &mut kept);
                kept.iter_mut().for_each(|i| *i = classes.other(&class, *i));
                (class.start, kept)
            });
            classes.share = share.collect();
        }
        Ok(self)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows as usize
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
        drawn.par_chunks_mut(self.negatives + 1).zip(rows).for_each(|(out, &row)| {
            let (positive, negatives) = out.split_first_mut().expect("a sample has a positive");
            *positive = self.draw_one(seed.child(&format!("row {row}")), row, negatives);
        });
        Ok(drawn)
    }

    /// Fills in the negatives of a row and returns its positive.
    fn draw_one(&self, seed: Seed, row: u32, negatives: &mut [u32]) -> u32 {
        let mut rng = seed.rng();
        match &self.source {
            Source::Classes(classes) => return classes.draw(row, &mut rng, negatives),
            Source::Others => {
                numbers(&mut rng, self.rows - 1, negatives);
                negatives.iter_mut().for_each(|i| *i += u32::from(*i >= row));
            }
            Source::Table(table) => negatives.iter_mut().for_each(|slot| *slot = table.draw(&mut rng)),
        }
        row
    }
}

/// Range of the share of negatives.
pub(super) fn check_percent(percent: f64) -> Result<()> {
    if percent > 0.0 && percent <= 1.0 {
        return Ok(());
    }
    let (expected, found) = ("a number above 0 and at most 1".to_string(), percent.to_string());
    Err(Error::Config { method: METHOD, field: "percent", expected, found })
}

impl Classes {
    /// Number of samples outside of a class.
    fn others(&self, class: &Range<u32>) -> u32 {
        self.by_class.len() as u32 - (class.end - class.start)
    }

    /// The `i`-th of them: they are everything in `by_class` but the class's own part.
    fn other(&self, class: &Range<u32>, i: u32) -> u32 {
        self.by_class[if i < class.start { i } else { i + (class.end - class.start) } as usize]
    }

    fn draw(&self, row: u32, rng: &mut impl RngExt, negatives: &mut [u32]) -> u32 {
        let class = self.class_of[row as usize].clone();
        let positive = match self.mode {
            PositiveMode::Exact => row,
            PositiveMode::Relax => self.by_class[rng.random_range(class.clone()) as usize],
        };
        if let Some(kept) = self.share.get(&class.start) {
            numbers(rng, kept.len() as u32, negatives);
            negatives.iter_mut().for_each(|i| *i = kept[*i as usize]);
        } else {
            numbers(rng, self.others(&class), negatives);
            negatives.iter_mut().for_each(|i| *i = self.other(&class, *i));
        }
        positive
    }
}

/// Fills `out` with numbers below `n`, all different if there are enough.
fn numbers(rng: &mut impl RngExt, n: u32, out: &mut [u32]) {
    let wanted = out.len() as u32;
    if wanted > n {
        out.iter_mut().for_each(|slot| *slot = rng.random_range(0..n));
        return;
    }
    // Floyd's algorithm: each draw either takes a fresh number or, if that is taken, the new upper end.
    let mut taken = vec![0u64; n.div_ceil(64) as usize];
    for (slot, end) in out.iter_mut().zip(n - wanted..n) {
        let mut candidate = rng.random_range(0..=end);
        if taken[candidate as usize / 64] >> (candidate % 64) & 1 == 1 {
            candidate = end;
        }
        taken[candidate as usize / 64] |= 1 << (candidate % 64);
        *slot = candidate;
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

    fn distinct(rows: &[u32]) -> usize {
        rows.iter().collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn instances_are_compared_with_all_others() {
        let rows: Vec<u32> = (0..60).collect();
        for k in [1, 17, 59] {
            let drawn = NegativeSampler::by_instance(60, k, Seed::root(5)).unwrap().draw(1, &rows).unwrap();
            for (row, drawn) in drawn.chunks(k + 1).enumerate() {
                assert_eq!(drawn[0] as usize, row);
                assert!(drawn[1..].iter().all(|&i| i < 60 && i as usize != row));
                assert_eq!(distinct(&drawn[1..]), k);
            }
        }
        let all = NegativeSampler::by_instance(60, 59, Seed::root(5)).unwrap().draw(0, &[59, 0]).unwrap();
        assert_eq!((distinct(&all[..60]), distinct(&all[60..])), (60, 60));
        // With replacement, where there are fewer.
        let few = NegativeSampler::by_instance(2, 5, Seed::root(5)).unwrap().draw(0, &[1, 0]).unwrap();
        assert_eq!(few, [1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_table_gives_any_row() {
        let table = AliasTable::uniform(6).unwrap();
        let s = NegativeSampler::from_table(table, 3000, Seed::root(5)).unwrap();
        let drawn = s.draw(0, &[2]).unwrap();
        assert_eq!(drawn[0], 2);
        for row in 0..6 {
            // Mean 500, standard deviation 20.
            let count = drawn[1..].iter().filter(|&&i| i == row).count();
            assert!((400..600).contains(&count), "row {row}: {count}");
        }
        let skewed = AliasTable::new(&[0.0, 1.0, 0.0]).unwrap();
        assert_eq!(NegativeSampler::from_table(skewed, 2, Seed::root(5)).unwrap().draw(0, &[2]).unwrap(), [2, 1, 1]);
    }

    #[test]
    fn a_share_of_the_negatives_is_fixed_and_of_other_classes() {
        // Classes of 10, 30 and 20 samples: 50, 30 and 40 others. 0.7 of the first class's 50 are 35.
        let labels: Vec<u32> = (0..60).map(|i| [4, 7, 7, 7, 9, 9][i % 6]).collect();
        let whole = NegativeSampler::new(&labels, 20, PositiveMode::Exact, Seed::root(5)).unwrap();
        let s = whole.clone().with_percent(0.7).unwrap();
        let seen = |row: u32| {
            let draw = |epoch| s.draw(epoch, &[row]).unwrap()[1..].to_vec();
            assert_eq!(distinct(&draw(0)), 20);
            (0..300).flat_map(draw).collect::<std::collections::BTreeSet<u32>>()
        };
        for (row, size) in [(0, 35), (1, 30), (4, 35)] {
            let rows = seen(row);
            assert_eq!(rows.len(), size, "row {row}");
            assert!(rows.iter().all(|&i| labels[i as usize] != labels[row as usize]));
            // Samples of one class share it.
            assert_eq!(rows, seen(row + 6));
        }
        // Everything: nothing changes.
        let rows: Vec<u32> = (0..60).collect();
        assert_eq!(whole.draw(3, &rows).unwrap(), whole.clone().with_percent(1.0).unwrap().draw(3, &rows).unwrap());
        assert_ne!(whole.draw(3, &rows).unwrap(), s.draw(3, &rows).unwrap());
        // Fewer than asked for: with replacement.
        let few = whole.clone().with_percent(0.1).unwrap().draw(0, &[0]).unwrap();
        assert!(few.len() == 21 && distinct(&few[1..]) <= 5);
        // Another seed keeps others.
        let other = NegativeSampler::new(&labels, 20, PositiveMode::Exact, Seed::root(6)).unwrap();
        let other = other.with_percent(0.7).unwrap();
        let kept: std::collections::BTreeSet<u32> =
            (0..300).flat_map(|e| other.draw(e, &[0]).unwrap()[1..].to_vec()).collect();
        assert_ne!(kept, seen(0));
    }

    #[test]
    fn shares_that_leave_nothing_are_refused() {
        for (percent, expected) in
            [(0.0, "`percent`"), (-0.5, "`percent`"), (1.5, "`percent`"), (f64::NAN, "NaN"), (0.02, "none")]
        {
            let message = sampler(4, PositiveMode::Exact).with_percent(percent).unwrap_err().to_string();
            assert!(message.starts_with("crd: ") && message.contains(expected), "{message}");
        }
        let message = NegativeSampler::by_instance(9, 2, Seed::root(0)).unwrap().with_percent(0.5).unwrap_err();
        assert!(message.to_string().contains("other classes"), "{message}");
        for rows in [0, 1] {
            let message = NegativeSampler::by_instance(rows, 2, Seed::root(0)).unwrap_err().to_string();
            assert!(message.contains(&format!("has {rows}")), "{message}");
        }
    }
}
