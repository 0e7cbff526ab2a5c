//! Errors of this crate, sorted by whose turn it is.

use std::path::Path;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request itself is wrong: nothing was run. Exit code 2.
    #[error("{0}")]
    Request(String),
    /// Some runs failed; the others finished. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C; everything done so far is saved. Exit code 130.
    #[error("interrupted; the same command goes on where it was")]
    Interrupted,
    /// Ctrl-C where there is nothing to save. Exit code 130.
    #[error("interrupted before there was a result")]
    Stopped,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Request(_) => 2,
            Self::Interrupted | Self::Stopped => 130,
        }
    }

    pub(crate) fn request(message: impl std::fmt::Display) -> Self {
        Self::Request(message.to_string())
    }

    pub(crate) fn file(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::Request(format!("{}: {message}", path.display()))
    }
}

impl From<retort_nn::Error> for Error {
    fn from(error: retort_nn::Error) -> Self {
        Self::request(error)
    }
}

/// A data file that is missing or broken and a checkpoint that does not fit are the request's fault;
/// everything else happened while running.
impl From<retort_trainers::Error> for Error {
    fn from(error: retort_trainers::Error) -> Self {
        use retort_trainers::Error as E;
        match error {
            E::Interrupted => Self::Interrupted,
            E::Checkpoint { .. } | E::Config { .. } | E::Data(_) | E::Model(_) => Self::request(error),
            other => Self::Failed(other.to_string()),
        }
    }
}
