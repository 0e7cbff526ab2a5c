//! Random streams named by what they are for.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// ChaCha8 keyed with SHA-256 of a domain label and numbers, so that no two uses share a stream.
pub(crate) fn stream(domain: &str, numbers: &[u64]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(domain.as_bytes());
    // Ends the label, so that no label is the beginning of another one's input.
    hash.update([0u8]);
    for n in numbers {
        hash.update(n.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// The generator of one view of one sample in one epoch: all of its augmentation is drawn from it.
///
/// A function of its arguments alone, so an image is augmented alike for any batch size, order and number of threads.
/// `index` is the row in the [`Dataset`](crate::Dataset) that the loader reads; the first view is 0.
pub fn sample_rng(seed: u64, epoch: u64, index: u64, view: u64) -> ChaCha8Rng {
    match view {
        // The only view for most methods; older records were made before there were others.
        0 => stream("retort-datasets/sample/1", &[seed, epoch, index]),
        view => stream("retort-datasets/sample/1", &[seed, epoch, index, view]),
    }
}

/// Rows `0..n` in the order of one epoch.
pub(crate) fn shuffled(seed: u64, epoch: u64, n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    shuffle(&mut order, &mut stream("retort-datasets/shuffle/1", &[seed, epoch]));
    order
}

/// Fisher-Yates (Durstenfeld 1964); drawn as `u32`, so that the order is the same on every platform.
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    let n = u32::try_from(items.len()).expect("a Dataset has at most u32::MAX rows: checked in from_parts");
    for i in (1..n).rev() {
        let j = rng.random_range(0..=i);
        items.swap(i as usize, j as usize);
    }
}
