//! Errors of this crate.

use std::path::Path;

/// What can go wrong in a check before there is anything to compare.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or understood.
    #[error("{path}: {message}")]
    File {
        /// The file or directory.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// A golden case lacks a field or a tensor, or it has the wrong type.
    #[error("{path}: `{field}`: {message}")]
    Field {
        /// The file.
        path: String,
        /// Name of the field in the JSON (dotted) or of the tensor in the safetensors file.
        field: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The project cannot compute this golden case yet.
    #[error("{0}")]
    Unsupported(String),
    /// A gradient check or an adapter was used in a way that has no meaning.
    #[error("{what}: {message}")]
    Invalid {
        /// The operation.
        what: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The function under test failed.
    #[error("{0}")]
    Function(String),
    /// An augmentation refused its arguments.
    #[error(transparent)]
    Datasets(#[from] retort_datasets::Error),
    /// A loss refused its arguments.
    #[error(transparent)]
    Losses(#[from] retort_losses::Error),
    /// A metric refused its arguments.
    #[error(transparent)]
    Metrics(#[from] retort_metrics::Error),
    /// A network could not be built or run.
    #[error(transparent)]
    Models(#[from] retort_models::Error),
    /// A parameter store or an optimiser failed.
    #[error(transparent)]
    Nn(#[from] retort_nn::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn file(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::File { path: path.display().to_string(), message: message.to_string() }
    }

    pub(crate) fn field(path: &Path, field: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self::Field { path: path.display().to_string(), field: field.into(), message: message.to_string() }
    }

    pub(crate) fn invalid(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), message: message.into() }
    }
}
