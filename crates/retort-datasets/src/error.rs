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
        "data set `{dataset}` is not embedded: expected the folder that holds {expected}, found none; source: {source_url}{}",
        hub.map(in_the_cache).unwrap_or_default()
    )]
    FolderRequired {
        /// Registered name.
        dataset: &'static str,
        /// The files of the split.
        expected: String,
        /// Where the files come from.
        source_url: &'static str,
        /// Its repository on the Hugging Face hub.
        hub: Option<&'static str>,
    },
    /// The cache of the Hugging Face hub does not have it, or cannot be used.
    #[cfg(feature = "parquet")]
    #[error(transparent)]
    Hub(Box<retort_hub::Error>),
    /// A reader that this build does not have.
    #[error("`{what}`: this program was built without the feature `{feature}` of retort-datasets, which reads it")]
    Without {
        /// What was asked for.
        what: String,
        /// The feature.
        feature: &'static str,
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
        /// How many other files of the split are there: none where the folder is simply another one.
        others: usize,
        /// File name, with its alternatives.
        file: String,
        /// The folders looked into, in order.
        searched: String,
        /// The expected size, and what the reader of the message can do.
        advice: String,
    },
    /// A data set was not found in any of the places that it can come from.
    #[error("data set `{dataset}`, {split} split, is in none of the places it can come from: {}", numbered(reasons))]
    Absent {
        /// Registered name.
        dataset: &'static str,
        /// Split asked for.
        split: crate::Split,
        /// What was missing in each place.
        reasons: Vec<Error>,
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

/// `(1) ..; (2) ..`
fn numbered(reasons: &[Error]) -> String {
    let one = |(number, reason): (usize, &Error)| format!("({number}) {reason}");
    (1..).zip(reasons).map(one).collect::<Vec<_>>().join("; ")
}

/// How the hub's cache comes to have a repository.
pub(crate) fn in_the_cache(repository: &str) -> String {
    format!(
        "; or fetch `{repository}` into the cache of the Hugging Face hub (`hf download --repo-type dataset --revision \
         refs/convert/parquet {repository}`; HF_HOME names the cache)"
    )
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(feature = "parquet")]
impl From<retort_hub::Error> for Error {
    fn from(error: retort_hub::Error) -> Self {
        Self::Hub(Box::new(error))
    }
}

impl Error {
    /// Whether it says that something is not there, and not that what is there is wrong.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::FolderRequired { .. } | Self::Without { .. } | Self::Absent { .. } => true,
            Self::MissingFile { others, .. } => *others == 0,
            #[cfg(feature = "parquet")]
            Self::Hub(error) => matches!(**error, retort_hub::Error::Missing { .. } | retort_hub::Error::NoCache),
            _ => false,
        }
    }

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
