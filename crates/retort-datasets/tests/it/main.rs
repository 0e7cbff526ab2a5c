//! Integration tests: the embedded data, subsets, the loader, class-balanced batches, and files that are not what they say.

mod complete;
mod dataset;
mod embedded;
mod hostile;
mod loader;
#[cfg(feature = "parquet")]
mod real_data;
mod sampling;
mod sources;
mod store;
mod subset;

use retort_datasets::{Dataset, ImageShape, Normalization, Split};
use sha2::{Digest, Sha256};

/// Rows whose pixels tell the row: byte `k` of image `i` is `17 i + k` modulo 256.
fn synthetic(shape: ImageShape, classes: usize, labels: Vec<u32>) -> Dataset {
    let bytes = shape.bytes().unwrap();
    let pixels = (0..labels.len()).flat_map(|i| (0..bytes).map(move |k| (17 * i + k) as u8)).collect();
    let normalization = Normalization {
        mean: (0..shape.channels).map(|c| 0.1 + 0.2 * c as f32).collect(),
        std: (0..shape.channels).map(|c| 0.5 + 0.1 * c as f32).collect(),
    };
    Dataset::from_parts("synthetic", Split::Train, shape, classes, pixels, labels, normalization).unwrap()
}

fn data(n: usize) -> Dataset {
    synthetic(RGB, 3, (0..n as u32).map(|i| i % 3).collect())
}

const SHAPE: ImageShape = ImageShape { channels: 2, height: 3, width: 2 };
const RGB: ImageShape = ImageShape { channels: 3, height: 4, width: 5 };

fn sha256(bytes: &[u8]) -> String {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    hash.iter().map(|b| format!("{b:02x}")).collect()
}
