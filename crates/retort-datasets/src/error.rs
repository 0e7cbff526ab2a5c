//! The error of this crate.

use std::path::PathBuf;

/// What can go wrong when a data set is found, read, cut or fed to a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that the registry does not have.
    #[error("unknown data set `{name}`: did you mean `{nearest}`? known names: {known}")]
    UnknownDataset {
        /// The name asked for.
        name: String,
        /// The registered name with the smallest edit distance.
        nearest: &'static str,
        /// All registered names, comma separated.
        known: String,
    },
    /// A data set that is read from a folder was asked for without one.
    #[error(
        "data set `{dataset}` is not embedded: expected the folder that holds {expected}, found none; source: {source_url}"
    )]
    FolderRequired {
        /// Registered name.
        dataset: &'static str,
        /// The files of the split.
        expected: String,
        /// Where the files come from.
        source_url: &'static str,
    },
    /// An embedded data set was asked for together with a folder that it would never look at.
    #[error("data set `{dataset}` is embedded and reads no folder: expected none, found `{}`", folder.display())]
    FolderNotUsed {
        /// Registered name.
        dataset: &'static str,
        /// The folder given.
        folder: PathBuf,
    },
    /// A file of a folder data set is not there.
    #[error("data set `{dataset}`, {split} split: `{file}` not found in {searched}: {advice}")]
    MissingFile {
        /// Registered name.
        dataset: &'static str,
        /// Split asked for.
        split: crate::Split,
        /// File name, with its alternatives.
        file: String,
        /// The folders looked into, in order.
        searched: String,
        /// The expected size, and what the reader of the message can do.
        advice: String,
    },
    /// The operating system could not open or read a file.
    #[error("cannot read `{file}`: {reason}")]
    Io {
        /// Path of the file.
        file: String,
        /// The system's error.
        reason: std::io::Error,
    },
    /// A file is not what its format says.
    #[error("`{file}`: {what}: expected {expected}, found {found}")]
    Format {
        /// Path, or name of the embedded file.
        file: String,
        /// The part of the file.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// One row of a file is wrong.
    #[error("`{file}`, row {row}: {what}: expected {expected}, found {found}")]
    Row {
        /// Path, or name of the embedded file.
        file: String,
        /// Row, counted from 0.
        row: usize,
        /// The part of the row.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An argument is out of range.
    #[error("{operation}: {what}: expected {expected}, found {found}")]
    Invalid {
        /// The operation called.
        operation: &'static str,
        /// The argument.
        what: String,
        /// Its range.
        expected: String,
        /// Its value.
        found: String,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(
        operation: &'static str,
        what: impl Into<String>,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Invalid { operation, what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn format(file: &str, what: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Format { file: file.to_owned(), what, expected: expected.to_string(), found: found.to_string() }
    }
}
