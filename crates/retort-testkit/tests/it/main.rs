//! Integration tests: self-made golden cases in temporary directories, and the binary.

mod binary;
mod cases;
mod networks;
mod reference;
mod support;
