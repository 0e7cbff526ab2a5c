//! Parts of a data set: by label set, by number, by fraction, with wrong labels; all of it seeded.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::rng::{shuffle, stream};
use crate::{Dataset, Error, Result};

/// Which rows of a split are used, and with which labels. Applied in the order of the fields.
///
/// In a manifest: `{ classes = [0, 1, 2], count = 300, seed = 1, noise = { kind = "symmetric", rate = 0.2 } }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubsetConfig {
    /// Only rows of these classes, which are numbered anew in the order given here; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<u32>>,
    /// This number of rows, equally many of every class, is passed over; with the same `seed` they are the ones that
    /// `count` alone would take, so that two parts of a set share no row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<usize>,
    /// This share of the rows of every class that are left, in (0, 1], rounded to the nearest number and at least one row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// This number of rows, equally many of every class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// The rows of every class are drawn with this seed; without one they are the first in stored order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Wrong labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<LabelNoise>,
}

/// Labels that are made wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelNoise {
    /// How a wrong label comes about.
    pub kind: NoiseKind,
    /// Probability that a label is wrong, in `[0, 1]`.
    pub rate: f64,
    /// Which labels are wrong.
    #[serde(default)]
    pub seed: u64,
}

/// Which label takes the place of the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Any other class, all with the same probability.
    Symmetric,
    /// The next class, after the last one the first (Han et al. 2018, arXiv 1804.06872, pair flipping).
    Pair,
}

impl SubsetConfig {
    /// Whether it leaves a data set as it is.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Self { classes, skip, fraction, count, noise, seed: _ } = self;
        classes.is_none() && skip.is_none() && fraction.is_none() && count.is_none() && noise.is_none()
    }

    /// Checks the ranges that need no data, for a set of so many classes.
    ///
    /// # Errors
    ///
    /// No class, a class that does not exist or occurs twice, a fraction outside (0, 1], a fraction and a count at once, a
    /// seed without either, a noise rate outside `[0, 1]`, noise without a second class.
    pub fn check(&self, classes: usize) -> Result<()> {
        const OP: &str = "subset";
        let kept = self.classes.as_ref().map_or(classes, Vec::len);
        if let Some(list) = &self.classes {
            if list.is_empty() {
                return Err(Error::invalid(OP, "`classes`", "at least one class", "none"));
            }
            if let Some(bad) = list.iter().find(|&&class| class as usize >= classes) {
                return Err(Error::invalid(OP, "`classes`", format!("less than {classes}"), bad));
            }
            let twice = list.iter().enumerate().find(|(place, class)| list[..*place].contains(class));
            if let Some((_, class)) = twice {
                return Err(Error::invalid(OP, "`classes`", "every class once", format!("{class} twice")));
            }
        }
        if let Some(fraction) = self.fraction.filter(|f| !(*f > 0.0 && *f <= 1.0)) {
            return Err(Error::invalid(OP, "`fraction`", "more than 0 and at most 1", fraction));
        }
        if self.fraction.is_some() && self.count.is_some() {
            return Err(Error::invalid(OP, "`fraction` and `count`", "one of them", "both"));
        }
        if self.seed.is_some() && self.fraction.is_none() && self.count.is_none() && self.skip.is_none() {
            return Err(Error::invalid(OP, "`seed`", "a `fraction` or a number of rows to draw", "neither"));
        }
        if let Some(noise) = &self.noise {
            if !(0.0..=1.0).contains(&noise.rate) {
                return Err(Error::invalid(OP, "`rate` of the noise", "0 to 1", noise.rate));
            }
            if kept < 2 {
                return Err(Error::invalid(OP, "`noise`", "at least 2 classes", kept));
            }
        }
        Ok(())
    }
}

impl Dataset {
    /// The rows that `config` describes, in stored order.
    ///
    /// Seeded, so the same configuration gives the same rows in every run; [`digest`](Dataset::digest) names them.
    ///
    /// # Errors
    ///
    /// What [`SubsetConfig::check`] refuses, images without labels, a count that is not a positive multiple of the number of
    /// classes, a class with too few rows.
    pub fn subset(&self, config: &SubsetConfig) -> Result<Dataset> {
        const OP: &str = "subset";
        if config.is_whole() {
            return Ok(self.clone());
        }
        self.check_labelled(OP)?;
        config.check(self.classes())?;
        let part = match &config.classes {
            Some(classes) => self.of_classes(classes)?,
            None => self.clone(),
        };
        let part = match (config.skip, config.count, config.fraction) {
            (None, None, None) => part,
            _ => part.select(&part.chosen_rows(config)?)?,
        };
        config.noise.as_ref().map_or(Ok(part.clone()), |noise| part.with_noise(noise))
    }

    /// The rows of these classes, numbered anew.
    fn of_classes(&self, classes: &[u32]) -> Result<Dataset> {
        let mut place = vec![None; self.classes()];
        for (new, &old) in (0u32..).zip(classes) {
            place[old as usize] = Some(new);
        }
        let kept = (0u32..).zip(self.labels()).filter_map(|(row, &label)| Some((row, place[label as usize]?)));
        let (rows, labels): (Vec<u32>, Vec<u32>) = kept.unzip();
        if rows.is_empty() {
            return Err(Error::invalid("subset", "rows of the chosen classes", "at least 1", 0));
        }
        let names = classes.iter().map(|&class| self.class_names()[class as usize].clone()).collect();
        self.select(&rows)?.with_labels(labels, names)
    }

    /// The rows by `skip`, `count`, `fraction` and `seed`.
    fn chosen_rows(&self, config: &SubsetConfig) -> Result<Vec<u32>> {
        const OP: &str = "subset";
        let skipped = match config.skip {
            Some(n) => self.balanced_counts(OP, n)?,
            None => vec![0; self.classes()],
        };
        let left: Vec<usize> = self.class_counts().iter().zip(&skipped).map(|(all, skipped)| all - skipped).collect();
        let wanted: Vec<usize> = match (config.count, config.fraction) {
            (Some(n), _) => self.balanced_counts(OP, n)?,
            (None, Some(fraction)) => left.iter().map(|&n| share(n, fraction)).collect(),
            (None, None) => left.clone(),
        };
        let lacks = |&class: &usize| wanted[class] > left[class] || (config.skip.is_some() && left[class] == 0);
        if let Some(class) = (0..left.len()).find(lacks) {
            let what = format!("rows of class {class} behind the {} that `skip` passes over", skipped[class]);
            return Err(Error::invalid(OP, what, format!("at least {}", wanted[class].max(1)), left[class]));
        }
        Ok(self.rows_of_each(&skipped, &wanted, config.seed))
    }

    /// So many rows of every class behind those that are passed over, in stored order: the first ones, or drawn ones.
    fn rows_of_each(&self, skipped: &[usize], wanted: &[usize], seed: Option<u64>) -> Vec<u32> {
        let mut of_class: Vec<Vec<u32>> = vec![Vec::new(); self.classes()];
        for (row, &label) in (0u32..).zip(self.labels()) {
            of_class[label as usize].push(row);
        }
        let mut rows = Vec::with_capacity(wanted.iter().sum());
        for (((class, mut candidates), &skipped), &wanted) in (0u64..).zip(of_class).zip(skipped).zip(wanted) {
            if let Some(seed) = seed {
                // A stream for each class: what is drawn of one does not depend on the others.
                shuffle(&mut candidates, &mut stream("retort-datasets/subset/1", &[seed, class]));
            }
            rows.extend(candidates.into_iter().skip(skipped).take(wanted));
        }
        rows.sort_unstable();
        rows
    }

    fn with_noise(self, noise: &LabelNoise) -> Result<Dataset> {
        let classes = self.class_names().len() as u32;
        let mut rng = stream("retort-datasets/label-noise/1", &[noise.seed]);
        let labels = self.labels().iter().map(|&label| {
            // Both are drawn for every row, so that a higher rate makes the same labels wrong, and more of them.
            let (wrong, step) = (rng.random::<f64>() < noise.rate, rng.random_range(1..classes));
            match noise.kind {
                _ if !wrong => label,
                NoiseKind::Symmetric => (label + step) % classes,
                NoiseKind::Pair => (label + 1) % classes,
            }
        });
        let (labels, names) = (labels.collect(), self.class_names().to_vec());
        self.with_labels(labels, names)
    }
}

/// The nearest number to a share of `n` rows, at least 1 where there are any.
fn share(n: usize, fraction: f64) -> usize {
    ((n as f64 * fraction).round() as usize).clamp(usize::from(n > 0), n)
}
