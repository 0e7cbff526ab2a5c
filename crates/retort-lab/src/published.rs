//! Published numbers, shown only where the protocol agrees.

use crate::manifest::{Loaded, Profile};
use crate::plan::DataSpec;
use crate::{Error, Result};
use serde::Deserialize;

/// One published table.
#[derive(Clone, Debug, Deserialize)]
pub struct Published {
    /// Title of the paper.
    pub paper: String,
    /// Which of its tables.
    pub table: String,
    /// Data set, as the paper writes it.
    pub dataset: String,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, Deserialize)]
struct Row {
    method: String,
    teacher: String,
    student: String,
    value: Option<f64>,
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
    /// The table that the manifest names, if it names one.
    ///
    /// # Errors
    ///
    /// A file that is missing or not of the expected form.
    pub fn of(loaded: &Loaded) -> Result<Option<Self>> {
        let Some(config) = &loaded.manifest.published else { return Ok(None) };
        let path =
            loaded.source.path.parent().map(|folder| folder.join(&config.file)).unwrap_or_else(|| config.file.clone());
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?;
        serde_json::from_str(&text).map(Some).map_err(|e| Error::file(&path, e))
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

/// Whether a profile trains as the published numbers were made.
#[must_use]
pub fn same_protocol(loaded: &Loaded, profile: &Profile, data: &DataSpec) -> bool {
    loaded.manifest.published.as_ref().is_some_and(|published| {
        let recipe = &profile.student;
        data.name == published.data
            && data.train == published.train
            && *recipe.epochs.as_ref() == published.epochs
            && profile.batch_size == published.batch_size
            && recipe.schedule.as_ref().lr == published.lr
    })
}
