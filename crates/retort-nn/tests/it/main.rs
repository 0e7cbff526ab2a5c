//! Weight files of other programs: what is read, and what is refused.

mod forge;
mod hostile_legacy;
mod hostile_pickles;
mod hostile_safetensors;
mod torch;
mod upstream;

use retort_nn::{Checkpoint, WeightFile};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A file that PyTorch has written, see `tests/data/README.md`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A folder with one file.
struct Written {
    folder: tempfile::TempDir,
    name: &'static str,
}

impl Written {
    fn new(name: &'static str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        Self { folder, name }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }
}

/// The message that a reader refuses a file with, which must take less than a second.
fn refusal<T>(read: impl Fn() -> retort_nn::Result<T>) -> String {
    let timed = || {
        let start = Instant::now();
        let message = read().err().expect("the file must be refused").to_string();
        (start.elapsed(), message)
    };
    // A machine with other work may pause a test; it does not three times in a row.
    let (time, message) = (0..3).map(|_| timed()).min().expect("there are tries");
    assert!(time < Duration::from_secs(1), "{time:?}: {message}");
    assert!(message.len() < 1000, "{message}");
    message
}

fn holds(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

/// Neither opened nor read to the end; the message names the file and holds all parts.
fn refused(bytes: &[u8], parts: &[&str]) {
    let file = Written::new("weights.pth", bytes);
    let message = refusal(|| {
        let opened = WeightFile::open(&file.path())?;
        opened.entries().keys().map(|name| opened.tensor(name)).collect::<Result<Vec<_>, _>>()
    });
    holds(&message, &[&["weights.pth"], parts].concat());
}

/// The same for a checkpoint.
fn no_checkpoint(bytes: &[u8], parts: &[&str]) {
    let file = Written::new("run.safetensors", bytes);
    let message = refusal(|| Checkpoint::load(&file.path()));
    holds(&message, &[&["run.safetensors"], parts].concat());
}

/// Numbers that are as good as random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}

/// Whatever comes of these files, nothing may panic, or take a second.
fn survives(files: impl Iterator<Item = Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let timed = |path: &std::path::Path| {
        let start = Instant::now();
        if let Ok(file) = WeightFile::open(path) {
            file.entries().keys().for_each(|name| drop(file.tensor(name)));
        }
        start.elapsed()
    };
    for (i, bytes) in files.enumerate() {
        // A new file each: one that is written again is flushed first by some systems.
        let path = folder.path().join(i.to_string());
        std::fs::write(&path, bytes).unwrap();
        assert!((0..3).any(|_| timed(&path) < Duration::from_secs(1)), "file {i}");
        std::fs::remove_file(path).unwrap();
    }
}

/// Copies of a file with damages that are small and likely to hit a length.
fn damaged(bytes: &[u8], copies: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut dice = Dice(bytes.len() as u64);
    (0..copies).map(move |_| {
        let mut copy = bytes.to_vec();
        for _ in 0..=dice.below(4) {
            let at = dice.below(copy.len());
            match dice.below(4) {
                0 => copy[at] = dice.below(256) as u8,
                1 => copy[at] ^= 1 << dice.below(8),
                2 => copy[at] = [0, 1, 0x7F, 0x80, 0xFF][dice.below(5)],
                _ => copy.truncate(at.max(1)),
            }
        }
        copy
    })
}
