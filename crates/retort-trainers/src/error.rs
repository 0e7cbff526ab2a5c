//! Errors of this crate.

/// What can go wrong while training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range.
    #[error("{what}: {message}")]
    Config {
        /// The field.
        what: String,
        /// Value and range.
        message: String,
    },
    /// A loss term became infinite or not a number; nothing was updated by that step.
    #[error("phase `{phase}`, epoch {epoch}, step {step}: term `{term}` is {value} (samples {samples})")]
    NotFinite {
        /// Phase name.
        phase: String,
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step within the epoch, counted from 1.
        step: usize,
        /// Name of the term.
        term: String,
        /// Its value.
        value: f64,
        /// The first rows of the batch.
        samples: String,
    },
    /// A parameter that should learn is not connected to any loss term.
    #[error("phase `{phase}`: parameter `{parameter}` gets no gradient from the terms {terms}")]
    NoGradient {
        /// Phase name.
        phase: String,
        /// The first such parameter.
        parameter: String,
        /// Names of all terms.
        terms: String,
    },
    /// A checkpoint that this run cannot continue from.
    #[error("{path}: {message}")]
    Checkpoint {
        /// The file.
        path: String,
        /// What differs.
        message: String,
    },
    /// The stop flag was raised; the run continues from its checkpoint.
    #[error("interrupted")]
    Interrupted,
    /// A data set or loader failed.
    #[error(transparent)]
    Data(Box<retort_datasets::Error>),
    /// A loss failed.
    #[error(transparent)]
    Loss(#[from] retort_losses::Error),
    /// A metric failed.
    #[error(transparent)]
    Metric(#[from] retort_metrics::Error),
    /// A network could not be built.
    #[error(transparent)]
    Model(#[from] retort_models::Error),
    /// A layer, the optimiser or a checkpoint failed.
    #[error(transparent)]
    Nn(#[from] retort_nn::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<retort_datasets::Error> for Error {
    /// Boxed: the largest of the errors below would make every `Result` of this crate as large.
    fn from(error: retort_datasets::Error) -> Self {
        Self::Data(Box::new(error))
    }
}
