//! Errors of this crate.

/// What can go wrong before or while a distance is computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Lengths or widths that do not fit together.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which argument.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A value that is NaN, infinite, or outside its range.
    #[error("{what}: expected {expected}, found {found} at index {index}")]
    Value {
        /// Which argument.
        what: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: f64,
        /// Where, in the flat slice.
        index: usize,
    },
    /// An option outside its range.
    #[error("option `{field}`: expected {expected}, found {found}")]
    Option {
        /// Name of the field.
        field: &'static str,
        /// Its range.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The distance is not defined for this input.
    #[error("{0}")]
    Undefined(String),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
