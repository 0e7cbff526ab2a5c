//! Which rows form a batch, and which rows stand against each of them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use rand::RngExt;
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
    /// Every row once an epoch in a new order, each with `partners` other rows of its class: `batch_size` anchors, then the
    /// first partner of each of them, then the second, so a batch has `(1 + partners) * batch_size` rows.
    ///
    /// For methods that compare images of a class, such as CS-KD (Yun et al. 2020, arXiv 2003.13964) with one partner and
    /// BAKE (Ge et al. 2021, arXiv 2104.13298) with three. Partners are drawn anew in every epoch: without repetition where
    /// the class has enough rows, otherwise with it, and never the anchor itself. A row that comes as anchor and as partner
    /// is augmented independently.
    SameClassPartners {
        /// Partners of each anchor, at least 1.
        partners: usize,
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

    /// Rows of a full batch.
    #[must_use]
    pub fn rows_per_batch(&self, batch_size: usize) -> usize {
        batch_size.saturating_mul(self.partners().saturating_add(1))
    }

    pub(crate) fn partners(&self) -> usize {
        match *self {
            Self::SameClassPartners { partners } => partners,
            _ => 0,
        }
    }

    /// Checks the ranges for batches of `batch_size` rows out of `class_counts[c]` rows of every class c.
    ///
    /// # Errors
    ///
    /// For [`Sampling::ClassBalanced`]: no class, more classes than occur, a batch size that is not a positive multiple of
    /// them, or a class that occurs with fewer rows than a batch takes of it, so that it would never be seen.
    ///
    /// For [`Sampling::SameClassPartners`]: no partner or more than 1,024, a class with a single row.
    pub fn check(&self, batch_size: usize, class_counts: &[usize]) -> Result<()> {
        match *self {
            Self::Sequential | Self::Shuffled => Ok(()),
            Self::ClassBalanced { classes } => check_balanced(classes, batch_size, class_counts),
            Self::SameClassPartners { partners } => check_partners(partners, class_counts),
        }
    }
}

fn check_balanced(classes: usize, batch_size: usize, class_counts: &[usize]) -> Result<()> {
    const OP: &str = "class-balanced";
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

fn check_partners(partners: usize, class_counts: &[usize]) -> Result<()> {
    const OP: &str = "same-class-partners";
    if !(1..=MAX_PARTNERS).contains(&partners) {
        return Err(Error::invalid(OP, "`partners`", format!("1 to {MAX_PARTNERS}"), partners));
    }
    match class_counts.iter().position(|&n| n == 1) {
        None => Ok(()),
        Some(class) => {
            let expected = "none or at least 2, an anchor and a partner";
            Err(Error::invalid(OP, format!("rows of class {class}"), expected, 1))
        }
    }
}

/// More partners than any method has; a larger number is a slip.
const MAX_PARTNERS: usize = 1024;

/// Rows by class, in stored order.
fn rows_by_class(labels: &[u32], classes: usize) -> Vec<Vec<u32>> {
    let mut rows = vec![Vec::new(); classes];
    for (row, &label) in (0u32..).zip(labels) {
        rows[label as usize].push(row);
    }
    rows
}

/// `n` places out of `0..len` other than `skip`: different ones where there are enough, in random order.
fn draw_others(n: usize, len: u32, skip: u32, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let others = len - 1;
    let place = |drawn: u32| if drawn < skip { drawn } else { drawn + 1 };
    if n as u64 > u64::from(others) {
        return (0..n).map(|_| place(rng.random_range(0..others))).collect();
    }
    draw_distinct(n as u32, others, rng).into_iter().map(place).collect()
}

/// `n` different numbers below `len`, in random order, `n <= len`: Floyd's sampling, with as many draws as numbers.
fn draw_distinct(n: u32, len: u32, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    let mut drawn: Vec<u32> = Vec::with_capacity(n as usize);
    for last in len - n..len {
        let candidate = rng.random_range(0..=last);
        let taken = if seen.insert(candidate) { candidate } else { last };
        seen.insert(taken);
        drawn.push(taken);
    }
    shuffle(&mut drawn, rng);
    drawn
}

/// What batches of anchors and partners are made of, in every epoch.
#[derive(Debug)]
pub(crate) struct Partners {
    rows: Vec<Vec<u32>>,
    /// Of every row: its class and its place among the rows of the class.
    places: Vec<(u32, u32)>,
    partners: usize,
    batch_size: usize,
}

impl Partners {
    /// For settings that [`Sampling::check`] has let through.
    pub(crate) fn new(labels: &[u32], classes: usize, partners: usize, batch_size: usize) -> Self {
        let rows = rows_by_class(labels, classes);
        let mut seen = vec![0; classes];
        let place = |&label: &u32| {
            let next = &mut seen[label as usize];
            *next += 1;
            (label, *next - 1)
        };
        let places = labels.iter().map(place).collect();
        Self { rows, places, partners, batch_size }
    }

    /// The rows of an epoch, batch after batch: anchors, then partner by partner.
    pub(crate) fn order(&self, anchors: &[u32], seed: u64, epoch: u64) -> Vec<u32> {
        let mut rng = stream("retort-datasets/partners/1", &[seed, epoch]);
        let mut order = Vec::with_capacity(anchors.len() * (1 + self.partners));
        for anchors in anchors.chunks(self.batch_size) {
            order.extend_from_slice(anchors);
            let partners: Vec<Vec<u32>> = anchors.iter().map(|&anchor| self.draw(anchor, &mut rng)).collect();
            (0..self.partners).for_each(|slot| order.extend(partners.iter().map(|of_anchor| of_anchor[slot])));
        }
        order
    }

    fn draw(&self, anchor: u32, rng: &mut ChaCha8Rng) -> Vec<u32> {
        let (class, place) = self.places[anchor as usize];
        let rows = &self.rows[class as usize];
        let drawn = draw_others(self.partners, rows.len() as u32, place, rng);
        drawn.into_iter().map(|place| rows[place as usize]).collect()
    }
}

/// For every row of a batch, rows of its class and rows of other classes: what methods with a memory bank compare it with
/// (CRD, Tian et al. 2020, arXiv 1910.10699; MCL's bank, Yang et al. 2022, arXiv 2207.11518).
///
/// The rows of anchor `i` in epoch `e` are a function of the seed, `e` and `i` alone.
///
/// ```
/// use retort_datasets::ContrastSampler;
///
/// let sampler = ContrastSampler::new(&[0, 0, 0, 1, 1, 1], 2, 1, 4, 7)?;
/// let drawn = sampler.draw(0, 3)?; // row 3, of class 1
/// assert!([4, 5].contains(&drawn.positives[0]));
/// assert!(drawn.negatives.len() == 4 && drawn.negatives.iter().all(|&row| row < 3));
/// # Ok::<(), retort_datasets::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ContrastSampler {
    /// Rows sorted by class.
    sorted: Vec<u32>,
    /// Of every class: where its rows begin in `sorted`; one entry more for the end.
    starts: Vec<u32>,
    /// Of every row: its class and its place in `sorted`.
    places: Vec<(u32, u32)>,
    positives: usize,
    negatives: usize,
    seed: u64,
}

/// Rows that one row is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contrast {
    /// Other rows of its class.
    pub positives: Vec<u32>,
    /// Rows of other classes.
    pub negatives: Vec<u32>,
}

impl ContrastSampler {
    /// So many positives and negatives for every row of a set with these labels. Where a class has too few other rows, or
    /// the other classes together, rows come more than once.
    ///
    /// # Errors
    ///
    /// A label that is not less than `classes`, more than `u32::MAX` rows, positives wanted where a class has a single row,
    /// negatives wanted where there is a single class, more of either than 16,777,216.
    pub fn new(labels: &[u32], classes: usize, positives: usize, negatives: usize, seed: u64) -> Result<Self> {
        const OP: &str = "contrast sampler";
        const MOST: usize = 1 << 24;
        if labels.is_empty() || u32::try_from(labels.len()).is_err() {
            return Err(Error::invalid(OP, "rows", "1 to 4294967295", labels.len()));
        }
        if classes > labels.len().max(1 << 20) {
            return Err(Error::invalid(OP, "classes", "at most 1048576, or the number of rows", classes));
        }
        if let Some(row) = labels.iter().position(|&label| label as usize >= classes) {
            return Err(Error::invalid(OP, format!("label of row {row}"), format!("less than {classes}"), labels[row]));
        }
        for (what, count) in [("positives", positives), ("negatives", negatives)] {
            if count > MOST {
                return Err(Error::invalid(OP, what, format!("at most {MOST}"), count));
            }
        }
        let by_class = rows_by_class(labels, classes);
        if let Some(class) = by_class.iter().position(|rows| positives > 0 && rows.len() == 1) {
            let expected = "none or at least 2, a row and a positive";
            return Err(Error::invalid(OP, format!("rows of class {class}"), expected, 1));
        }
        if negatives > 0 && by_class.iter().filter(|rows| !rows.is_empty()).count() < 2 {
            return Err(Error::invalid(OP, "classes that occur", "at least 2 where negatives are wanted", 1));
        }
        let mut places = vec![(0, 0); labels.len()];
        let (mut sorted, mut starts) = (Vec::with_capacity(labels.len()), vec![0]);
        for (class, rows) in (0u32..).zip(by_class) {
            for row in rows {
                places[row as usize] = (class, sorted.len() as u32);
                sorted.push(row);
            }
            starts.push(sorted.len() as u32);
        }
        Ok(Self { sorted, starts, places, positives, negatives, seed })
    }

    /// What row `row` is compared with in `epoch`.
    ///
    /// # Errors
    ///
    /// A row that does not exist.
    pub fn draw(&self, epoch: u64, row: u32) -> Result<Contrast> {
        let Some(&(class, place)) = self.places.get(row as usize) else {
            let expected = format!("less than {}", self.places.len());
            return Err(Error::invalid("contrast sampler", "row", expected, row));
        };
        let mut rng = stream("retort-datasets/contrast/1", &[self.seed, epoch, u64::from(row)]);
        let (start, end) = (self.starts[class as usize], self.starts[class as usize + 1]);
        let positives = match self.positives {
            0 => Vec::new(),
            n => draw_others(n, end - start, place - start, &mut rng),
        };
        let positives = positives.into_iter().map(|other| self.sorted[(start + other) as usize]).collect();
        let others = self.sorted.len() as u32 - (end - start);
        let outside = |drawn: u32| if drawn < start { drawn } else { drawn + (end - start) };
        let drawn: Vec<u32> = match u32::try_from(self.negatives) {
            Ok(n) if n <= others => draw_distinct(n, others, &mut rng),
            _ => (0..self.negatives).map(|_| rng.random_range(0..others)).collect(),
        };
        let negatives = drawn.into_iter().map(|drawn| self.sorted[outside(drawn) as usize]).collect();
        Ok(Contrast { positives, negatives })
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
        let rows = rows_by_class(labels, class_counts.len());
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
