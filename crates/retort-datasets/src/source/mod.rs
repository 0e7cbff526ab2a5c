//! Readers of file formats: each one checks what a file says before it believes it, and pushes its rows into a
//! [`DatasetBuilder`](crate::DatasetBuilder), so that data larger than memory go through.

pub mod image;
pub mod image_folder;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod stl10;
pub mod svhn;
pub mod tiny_imagenet;

mod files;

pub use files::sha256_file;
