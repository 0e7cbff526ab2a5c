//! Errors of this crate.

/// What can go wrong while configuring or evaluating a loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Student and teacher tensors do not fit together.
    #[error("{method}: {what}: student has shape {student:?} but teacher has {teacher:?}")]
    Mismatch {
        /// Method id.
        method: &'static str,
        /// Which pair of tensors, with the stage where there is one, and what is asked of them.
        what: String,
        /// Shape of the student's tensor.
        student: Vec<usize>,
        /// Shape of the teacher's tensor.
        teacher: Vec<usize>,
    },
    /// One tensor has a shape that the method cannot use.
    #[error("{method}: {what}: expected {expected}, found {found:?}")]
    Shape {
        /// Method id.
        method: &'static str,
        /// Which tensor.
        what: String,
        /// The shape that the method asks for, in words.
        expected: String,
        /// Shape of the given tensor.
        found: Vec<usize>,
    },
    /// A field of a configuration is outside its range.
    #[error("{method}: field `{field}`: expected {expected}, found {found}")]
    Config {
        /// Method id.
        method: &'static str,
        /// Name of the field.
        field: &'static str,
        /// The range.
        expected: String,
        /// The given value.
        found: String,
    },
    /// The two networks' stages cannot be paired.
    #[error(
        "{method}: the student has {} stages {student:?} but the teacher has {} {teacher:?}; \
         set `align` to `head` or `tail` to pair the shorter list with the first or the last of the longer one",
        student.len(), teacher.len()
    )]
    Stages {
        /// Method id.
        method: &'static str,
        /// The student's stages as `CxHxW`.
        student: Vec<String>,
        /// The teacher's stages as `CxHxW`.
        teacher: Vec<String>,
    },
    /// Something that the method needs was not given.
    #[error("{method}: needs {what}, but there is none")]
    Missing {
        /// Method id.
        method: &'static str,
        /// The missing input.
        what: &'static str,
    },
    /// An index of a sample, class or bank row is out of range.
    #[error("{method}: {what} {index} is out of range, expected a value below {size}")]
    Index {
        /// Method id.
        method: &'static str,
        /// What the index counts.
        what: &'static str,
        /// The index.
        index: u64,
        /// Number of valid values.
        size: usize,
    },
    /// A saved state does not belong to this loss.
    #[error("{method}: state `{name}`: {message}")]
    State {
        /// Method id.
        method: &'static str,
        /// Name of the tensor.
        name: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The method is not defined for this input.
    #[error("{method}: {message}")]
    Undefined {
        /// Method id.
        method: &'static str,
        /// What was expected and what was found.
        message: String,
    },
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] retort_kernels::Error),
    /// A layer or the parameter store failed.
    #[error(transparent)]
    Nn(#[from] retort_nn::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// The same error with the place in front of its message ("stage 1"), where it has one in words.
    pub(crate) fn at(self, place: &str) -> Self {
        match self {
            Self::Undefined { method, message } => Self::Undefined { method, message: format!("{place}: {message}") },
            Self::Shape { method, what, expected, found } => {
                Self::Shape { method, what: format!("{place}: {what}"), expected, found }
            }
            other => other,
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
