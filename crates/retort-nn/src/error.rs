//! Errors of this crate.

/// What can go wrong while building, running, saving or loading networks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has another shape than the architecture asks for.
    #[error("parameter `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Full dotted name.
        name: String,
        /// Shape that the network declares.
        expected: Vec<usize>,
        /// Shape of the given tensor.
        found: Vec<usize>,
    },
    /// The weights lack a tensor that the network declares.
    #[error("parameter `{name}` {expected:?} is missing from the weights{hint}")]
    Missing {
        /// Full dotted name.
        name: String,
        /// Shape that the network declares.
        expected: Vec<usize>,
        /// The most similar name in the weights, if any.
        hint: String,
    },
    /// Two parts of a network claim the same name.
    #[error("parameter `{0}` is declared twice")]
    Duplicate(String),
    /// A value is outside its range, or two values do not fit together.
    #[error("{what}: {message}")]
    Invalid {
        /// The operation or the field.
        what: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A file could not be read, written or understood.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] retort_kernels::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Invalid`] from its two parts.
    pub fn invalid(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), message: message.into() }
    }

    pub(crate) fn file(path: &std::path::Path, message: impl std::fmt::Display) -> Self {
        Self::File { path: path.display().to_string(), message: message.to_string() }
    }
}
