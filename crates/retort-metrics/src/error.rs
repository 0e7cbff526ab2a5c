//! Errors of this crate.

/// What can be wrong with what is measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that do not belong together.
    #[error("metrics: {0}")]
    Shape(String),
    /// A logit that is not a number: an argmax over it would look like a valid prediction.
    #[error("metrics: {network} logits of sample {sample} are not finite")]
    NotFinite {
        /// `student` or `teacher`.
        network: &'static str,
        /// Row in the batch.
        sample: usize,
    },
    /// A value outside its range.
    #[error("metrics: {0}")]
    Value(String),
    /// A bound that is below what it bounds: a defect of this crate, not of the input.
    #[error("metrics: broken invariant: {0}")]
    Invariant(String),
    /// A solver refused its input.
    #[error("metrics: {0}")]
    Transport(#[from] retort_transport::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
