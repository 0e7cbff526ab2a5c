//! Rows class by class, for distances within classes.

use crate::{Distance, Error, Points, Result};
use std::collections::BTreeMap;

/// How the distances of the classes become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassReduction {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean over the classes that both sides have.
    Mean,
    /// Weighted by the share of the student's rows, among the rows of classes that both sides have.
    Weighted,
}

/// A class that occurs on both sides.
pub(crate) struct Class {
    pub(crate) label: u32,
    pub(crate) rows_x: Vec<usize>,
    pub(crate) rows_y: Vec<usize>,
    /// Factor of its distance.
    pub(crate) weight: f64,
}

impl Class {
    /// Its points on both sides.
    pub(crate) fn points(&self, x: Points<'_>, y: Points<'_>) -> [Vec<f64>; 2] {
        let gather = |of: Points<'_>, rows: &[usize]| rows.iter().flat_map(|&i| of.row(i)).copied().collect();
        [gather(x, &self.rows_x), gather(y, &self.rows_y)]
    }

    /// Adds its share: no two classes have a row in common.
    pub(crate) fn add(&self, sum: &mut Distance, part: &Distance, width: usize) {
        sum.value += self.weight * part.value;
        let scatter = |to: &mut [f64], from: &[f64], rows: &[usize]| {
            for (&i, from) in rows.iter().zip(from.chunks_exact(width)) {
                to[i * width..][..width].iter_mut().zip(from).for_each(|(to, from)| *to = self.weight * from);
            }
        };
        scatter(&mut sum.grad_x, &part.grad_x, &self.rows_x);
        scatter(&mut sum.grad_y, &part.grad_y, &self.rows_y);
    }
}

/// The classes of two clouds.
pub(crate) struct Classes {
    /// Those of both sides, ascending.
    pub(crate) common: Vec<Class>,
    /// Those that one side lacks, ascending.
    pub(crate) skipped: Vec<u32>,
}

impl Classes {
    pub(crate) fn new(
        x: Points<'_>,
        y: Points<'_>,
        labels_x: &[u32],
        labels_y: &[u32],
        reduction: ClassReduction,
    ) -> Result<Self> {
        let (by_x, mut by_y) = (by_class(x, labels_x)?, by_class(y, labels_y)?);
        let (mut common, mut skipped) = (Vec::new(), Vec::new());
        for (label, rows_x) in by_x {
            match by_y.remove(&label) {
                Some(rows_y) => common.push(Class { label, rows_x, rows_y, weight: 1.0 }),
                None => skipped.push(label),
            }
        }
        skipped.extend(by_y.into_keys());
        skipped.sort_unstable();
        let (count, counted) = (common.len(), common.iter().map(|class| class.rows_x.len()).sum::<usize>());
        for class in &mut common {
            class.weight = match reduction {
                ClassReduction::Sum => 1.0,
                ClassReduction::Mean => 1.0 / count as f64,
                ClassReduction::Weighted => class.rows_x.len() as f64 / counted as f64,
            };
        }
        Ok(Self { common, skipped })
    }

    /// The labels of the common classes.
    pub(crate) fn labels(&self) -> Vec<u32> {
        self.common.iter().map(|class| class.label).collect()
    }
}

fn by_class(points: Points<'_>, labels: &[u32]) -> Result<BTreeMap<u32, Vec<usize>>> {
    check_labels(points, labels)?;
    let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(i, &class)| rows.entry(class).or_default().push(i));
    Ok(rows)
}

/// Refuses another number of labels than of points.
pub(crate) fn check_labels(points: Points<'_>, labels: &[u32]) -> Result<()> {
    if labels.len() == points.len() {
        return Ok(());
    }
    let what = format!("labels of {}", points.name());
    Err(Error::Shape { what, expected: format!("{} labels", points.len()), found: labels.len().to_string() })
}
