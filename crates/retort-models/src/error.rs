//! Errors of this crate.

/// What can go wrong while choosing, building or running a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No architecture has this name.
    #[error("unknown model `{name}`{hint}; known models: {known}")]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// The nearest valid name, if any.
        hint: String,
        /// All valid names.
        known: String,
    },
    /// A number of the configuration is out of range.
    #[error("model `{model}`: {message}")]
    Config {
        /// The architecture.
        model: String,
        /// Field, value and range.
        message: String,
    },
    /// A file or a folder of weights could not be read or understood.
    #[error("{path}: {message}")]
    File {
        /// The file, or the name that was asked for.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// Weights are not those of the network.
    #[error("{path}: the weights do not fit `{model}`: {report}")]
    Weights {
        /// The file.
        path: String,
        /// The architecture.
        model: String,
        /// A line for each name that does not fit.
        report: String,
    },
    /// The parameter store or a layer refused.
    #[error(transparent)]
    Nn(#[from] retort_nn::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
