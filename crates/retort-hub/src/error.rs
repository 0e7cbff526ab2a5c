//! The error of this crate.

/// What can go wrong when a file of the hub is looked up or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that the hub cannot have, or that would lead out of the cache.
    #[error("{what} `{name}`: expected {expected}")]
    Name {
        /// `repository`, `revision` or `file`.
        what: &'static str,
        /// The name given.
        name: String,
        /// What such a name looks like.
        expected: &'static str,
    },
    /// There is no place that could be the cache.
    #[error("no cache of the Hugging Face hub: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set")]
    NoCache,
    /// A file is not in the cache and was not fetched.
    #[error("{file} of {repository}: {message}")]
    Missing {
        /// The files, or all files.
        file: String,
        /// Model or data set, `owner/name` and revision.
        repository: String,
        /// Where it was looked for, why it was not fetched, and what the reader can do.
        message: String,
    },
    /// A file of the cache could not be read, or is not what it should be.
    #[error("`{file}`: {message}")]
    File {
        /// Its path.
        file: String,
        /// Expected and found.
        message: String,
    },
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
