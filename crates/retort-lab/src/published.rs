//! Published numbers, shown only where the protocol agrees.

use crate::manifest::{Loaded, Pair, Profile};
use crate::splits::DataSpec;
use crate::{Error, Result};
use retort_datasets::Modality;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One published table.
#[derive(Clone, Debug, Deserialize)]
pub struct Published {
    /// Title of the paper.
    pub paper: String,
    /// Which of its tables.
    pub table: String,
    /// Data set, as the paper writes it.
    pub dataset: String,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) method: String,
    pub(crate) teacher: String,
    pub(crate) student: String,
    pub(crate) value: Option<f64>,
    pub(crate) source: String,
}

/// What the published column says for a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// Nothing was published for this row and pair.
    None,
    /// Something was, under another protocol; the number would mislead beside ours.
    OtherProtocol,
    /// Accuracy in percent under the same protocol.
    Value(f64),
}

impl Published {
    /// Reads one published table.
    ///
    /// # Errors
    ///
    /// A file that is missing or not of the expected form.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot read: {e}")))?;
        serde_json::from_str(&text).map_err(|e| Error::file(path, e))
    }

    /// Names of the rows, sorted.
    #[must_use]
    pub fn methods(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.rows.iter().map(|row| row.method.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Where the figures come from, with the rows of each source.
    #[must_use]
    pub fn sources(&self) -> String {
        let mut by_source: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in &self.rows {
            let methods = by_source.entry(&row.source).or_default();
            if !methods.contains(&row.method.as_str()) {
                methods.push(&row.method);
            }
        }
        let list: Vec<String> =
            by_source.iter().map(|(source, methods)| format!("{} ({source})", methods.join(", "))).collect();
        list.join("; ")
    }

    /// The cell of a method (under its published name) and a pair.
    #[must_use]
    pub fn cell(&self, method: Option<&str>, teacher: &str, student: &str, same_protocol: bool) -> Cell {
        let found = self
            .rows
            .iter()
            .find(|row| Some(row.method.as_str()) == method && row.teacher == teacher && row.student == student);
        match found.and_then(|row| row.value) {
            None => Cell::None,
            Some(value) if same_protocol => Cell::Value(value),
            Some(_) => Cell::OtherProtocol,
        }
    }
}

/// Whether a profile trains teachers and students as the published ones were.
#[must_use]
pub fn same_protocol(loaded: &Loaded, profile: &Profile, data: &DataSpec) -> bool {
    loaded.manifest.published.as_ref().is_some_and(|published| {
        let augmentation = profile.augmentation.iter().map(toml::Spanned::as_ref);
        let same_data =
            &data.name == published.data.as_ref() && data.train == published.train && data.test == published.test;
        let as_stored = data.subset.is_none() && data.normalization.is_none() && profile.modality == Modality::Stored;
        same_data
            && as_stored
            && profile.teacher_data.is_none()
            && profile.teacher_modality.is_none()
            && profile.probe.is_none()
            && *profile.batch_size.as_ref() == published.batch_size
            && profile.batches.as_ref().is_none_or(|batches| batches.as_ref().is_default())
            && augmentation.eq(&published.augmentation)
            && profile.teacher.iter().chain([&profile.student]).all(|recipe| {
                *recipe.epochs.as_ref() == published.epochs
                    && recipe.optimizer.as_ref() == &published.optimizer
                    && recipe.schedule.as_ref() == &published.schedule
            })
    })
}

/// Whether the students of a pair start at the published rate.
#[must_use]
pub fn same_rate(loaded: &Loaded, profile: &Profile, pair: &Pair) -> bool {
    loaded.manifest.published.as_ref().is_some_and(|published| {
        let expected = published.lr.get(pair.student.as_ref()).copied().unwrap_or(published.schedule.lr);
        let rate = pair.lr.as_ref().map_or(profile.student.schedule.as_ref().lr, |lr| *lr.as_ref());
        rate.to_bits() == expected.to_bits()
    })
}
