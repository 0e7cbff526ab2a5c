//! Tests of the public functions: finite differences, references in plain loops, ties, errors, determinism.

mod conv;
mod errors;
mod fallback;
mod loss;
mod map;
mod norm;
mod pointwise;
mod pool;
mod sampling;
mod support;
mod upstream;
