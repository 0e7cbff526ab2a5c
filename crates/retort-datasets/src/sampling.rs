//! Which rows form a batch.

use std::cmp::Reverse;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::rng::{shuffle, stream};
use crate::{Error, Result};

/// How the rows of an epoch are put into batches.
///
/// In a manifest: `{ kind = "class-balanced", classes = 16 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sampling {
    /// The stored order, in every epoch.
    #[serde(deserialize_with = "no_fields")]
    Sequential,
    /// A new order in every epoch.
    #[default]
    #[serde(deserialize_with = "no_fields")]
    Shuffled,
    /// Batches of `classes` different classes with `each = batch_size / classes` rows of every one, new in every epoch,
    /// for methods that compare the rows of a class.
    ///
    /// A row comes at most once an epoch, and every batch is full; `drop_last` means nothing here.
    /// A batch takes the classes with the most rows left, counted in units of `each`; the lot decides between equals.
    /// That gives as many batches as can be formed at all: the largest T with
    /// `sum_c min(floor(n_c / each), T) >= classes * T` for `n_c` rows of class c.
    ///
    /// With n rows in each of K classes T is `floor(K floor(n / each) / classes)`, and no class comes in more than one
    /// batch more than another. With unequal numbers a smaller class comes in fewer batches once its rows are used up, and
    /// the rows of a larger class that find no place in a batch are left out. Which rows are left out changes with the
    /// epoch, and the batches of an epoch come in random order.
    ClassBalanced {
        /// Different classes in a batch: a divisor of the batch size, at most the number of classes that occur.
        classes: usize,
    },
}

/// The fields of a variant without any: a stray one is an error here too, which serde's rule for tagged enums leaves out.
fn no_fields<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(deserializer).map(|Nothing {}| ())
}

impl Sampling {
    /// Whether this is the default, which specifications leave out.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the ranges for batches of `batch_size` rows out of `class_counts[c]` rows of every class c.
    ///
    /// # Errors
    ///
    /// For [`Sampling::ClassBalanced`]: no class, more classes than occur, a batch size that is not a positive multiple of
    /// them, or a class that occurs with fewer rows than a batch takes of it, so that it would never be seen.
    pub fn check(&self, batch_size: usize, class_counts: &[usize]) -> Result<()> {
        const OP: &str = "class-balanced";
        let Self::ClassBalanced { classes } = *self else { return Ok(()) };
        let occur = class_counts.iter().filter(|&&n| n > 0).count();
        if !(1..=occur).contains(&classes) {
            return Err(Error::invalid(OP, "`classes`", format!("1 to the {occur} classes that occur"), classes));
        }
        if batch_size == 0 || !batch_size.is_multiple_of(classes) {
            let expected = format!("a positive multiple of the {classes} classes of a batch");
            return Err(Error::invalid(OP, "`batch_size`", expected, batch_size));
        }
        let each = batch_size / classes;
        match class_counts.iter().position(|&n| (1..each).contains(&n)) {
            None => Ok(()),
            Some(class) => {
                let expected = format!("at least the {each} that a batch takes");
                Err(Error::invalid(OP, format!("rows of class {class}"), expected, class_counts[class]))
            }
        }
    }
}

/// What class-balanced batches of a data set are made of, in every epoch.
#[derive(Debug)]
pub(crate) struct Balanced {
    /// Rows of every class, in stored order.
    rows: Vec<Vec<u32>>,
    /// Classes in a batch.
    classes: usize,
    /// Rows of each of them.
    each: usize,
    /// Batches in an epoch, at least 1.
    pub(crate) batches: usize,
}

impl Balanced {
    /// For settings that [`Sampling::check`] has let through.
    pub(crate) fn new(labels: &[u32], class_counts: &[usize], classes: usize, batch_size: usize) -> Self {
        let each = batch_size / classes;
        let mut rows: Vec<Vec<u32>> = class_counts.iter().map(|&n| Vec::with_capacity(n)).collect();
        for (row, &label) in (0u32..).zip(labels) {
            rows[label as usize].push(row);
        }
        let enough = |batches: &usize| {
            let useful: usize = class_counts.iter().map(|n| (n / each).min(*batches)).sum();
            useful >= classes * batches
        };
        // One batch is always possible: `classes` classes have `each` rows.
        let batches = (1..=labels.len() / batch_size).rev().find(enough).unwrap_or(1);
        Self { rows, classes, each, batches }
    }

    /// The rows of an epoch, batch after batch.
    pub(crate) fn order(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let mut rng = stream("retort-datasets/class-balanced/1", &[seed, epoch]);
        let mut rows = self.rows.clone();
        rows.iter_mut().for_each(|rows| shuffle(rows, &mut rng));
        let mut batches: Vec<Vec<u32>> = (0..self.batches).map(|_| self.batch(&mut rows, &mut rng)).collect();
        // With unequal classes the first batches hold the largest ones; they must not all come first.
        shuffle(&mut batches, &mut rng);
        batches.concat()
    }

    /// Takes a batch off the rows that are left. Taking the fullest classes first is what makes the largest number of
    /// batches possible: it keeps `sum_c min(left_c, T) >= classes * T` true for the T batches that are still to come.
    fn batch(&self, rows: &mut [Vec<u32>], rng: &mut ChaCha8Rng) -> Vec<u32> {
        let mut classes: Vec<usize> = (0..rows.len()).collect();
        shuffle(&mut classes, rng);
        // Stable, so that the lot decides between equals.
        classes.sort_by_key(|&class| Reverse(rows[class].len() / self.each));
        let mut batch = Vec::with_capacity(self.classes * self.each);
        for &class in &classes[..self.classes] {
            let rest = rows[class].len() - self.each;
            batch.extend(rows[class].drain(rest..));
        }
        // No order within a batch, as in a shuffled one.
        shuffle(&mut batch, rng);
        batch
    }
}
