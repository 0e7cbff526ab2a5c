//! The real files, where the machine has them: `HF_HOME` names a cache of the Hugging Face hub.
//!
//! Without it, or without a data set in it, a test says that it was skipped.

use std::path::{Path, PathBuf};
use std::time::Instant;

use retort_datasets::source::image::{Fit, ImageDecoder};
use retort_datasets::source::parquet::{ParquetColumns, ParquetImages, split_files};
use retort_datasets::{Dataset, DatasetBuilder, Split};
use retort_hub::{Hub, Kind, Repository};
use sha2::{Digest, Sha256};

fn skipped(what: &str) {
    eprintln!("skipped: {what}");
}

/// Files of a split in the machine's cache; none where it has none.
fn cached(repository: &str, split: &str) -> Option<Vec<PathBuf>> {
    std::env::var_os("HF_HOME")?;
    let hub = Hub { cache: None, offline: true };
    let repository = Repository::parse(Kind::Dataset, repository).unwrap();
    let listing = hub.list(&repository, "refs/convert/parquet").ok()?;
    let files = split_files(&listing, None, split).unwrap();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    Some(hub.find(&repository, "refs/convert/parquet", &files).unwrap())
}

fn columns(image: &str, label: &str, value: Option<&str>) -> ParquetColumns {
    ParquetColumns { image: image.to_owned(), label: Some(label.to_owned()), value: value.map(str::to_owned) }
}

fn load(files: &[PathBuf], columns: ParquetColumns) -> Dataset {
    let valued = columns.value.is_some();
    let source = ParquetImages::open(files, columns).unwrap();
    let decoder = ImageDecoder::new(source.first_shape().unwrap(), Fit::Exact).unwrap();
    let builder = DatasetBuilder::new("x", Split::Train, decoder.shape(), source.classes().unwrap()).unwrap();
    let builder = if valued { builder.with_values("degrees") } else { builder };
    let data = source.read(builder, &decoder).unwrap().finish_with_statistics().unwrap();
    assert_eq!(data.len(), source.rows());
    if source.class_names().is_empty() { data } else { data.with_class_names(source.class_names().to_vec()).unwrap() }
}

/// SHA-256 of bytes, in hex.
fn sha256(bytes: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Expected<'a> {
    rows: usize,
    shape: &'a str,
    classes: usize,
    /// Of all pixels `[N, C, H, W]`.
    pixels: &'a str,
    /// Of all labels, a byte each.
    labels: &'a str,
    first10: [u32; 10],
    /// Channels of the first image at (row, column) (5, 20) and (20, 5): a transposed image would swap them.
    probes: [&'a [u8]; 2],
    mean: &'a [f32],
    std: &'a [f32],
}

impl Expected<'_> {
    fn check(&self, data: &Dataset) {
        let shape = data.shape();
        assert_eq!((data.len(), shape.to_string().as_str(), data.classes()), (self.rows, self.shape, self.classes));
        assert_eq!(data.labels()[..10], self.first10);
        let labels: Vec<u8> = data.labels().iter().map(|&label| u8::try_from(label).unwrap()).collect();
        assert_eq!(sha256(&labels), self.labels);
        assert_eq!(sha256(data.pixels().unwrap()), self.pixels);
        let image = data.image(0).unwrap();
        for ((y, x), expected) in [(5, 20), (20, 5)].into_iter().zip(self.probes) {
            let plane = shape.height * shape.width;
            let found: Vec<u8> = (0..shape.channels).map(|c| image[c * plane + y * shape.width + x]).collect();
            assert_eq!(found, expected);
        }
        let found = data.normalization();
        for (found, expected) in [(&found.mean, self.mean), (&found.std, self.std)] {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?} {expected:?}");
        }
    }
}

const CIFAR100: &str = "uoft-cs/cifar100";
const FASHION: &str = "zalando-datasets/fashion_mnist";

#[test]
fn cifar100_train() {
    let Some(files) = cached(CIFAR100, "train") else { return skipped(CIFAR100) };
    let started = Instant::now();
    let fine = load(&files, columns("img", "fine_label", None));
    eprintln!("CIFAR-100, training split: {:.2} s", started.elapsed().as_secs_f64());
    let expected = Expected {
        rows: 50_000,
        shape: "3x32x32",
        classes: 100,
        pixels: "ecff51d186fa9eea41fb752f1829e024d65804ab489ccd3eebe2638ca8db2214",
        labels: "e3af8b7f622e68f5596f5017292fadb63db3ee15055bde4fd27f40eda8ebc76d",
        first10: [63, 44, 37, 98, 57, 85, 10, 87, 80, 11],
        probes: [&[147, 129, 108], &[150, 162, 161]],
        mean: &[0.507075, 0.486549, 0.440918],
        std: &[0.267334, 0.256438, 0.276150],
    };
    expected.check(&fine);
    assert_eq!((fine.class_names()[0].as_str(), fine.class_names()[99].as_str()), ("apple", "worm"));
    assert!(fine.class_counts().iter().all(|&n| n == 500));

    let coarse = load(&files, columns("img", "coarse_label", None));
    let labels = "489e65aca46496e228fd9ded0475f0889d5fca4c18c995de366c67b1c93cea03";
    let first10 = [12, 15, 9, 14, 4, 19, 3, 5, 16, 14];
    Expected { classes: 20, labels, first10, ..expected }.check(&coarse);
    // Both labels are integers: `guess` takes the fine one, as the literature does.
    assert_eq!(ParquetColumns::guess(&files[0]).unwrap(), columns("img", "fine_label", None));
}

#[test]
fn cifar100_test() {
    let Some(files) = cached(CIFAR100, "test") else { return skipped(CIFAR100) };
    Expected {
        rows: 10_000,
        shape: "3x32x32",
        classes: 100,
        pixels: "b461734a5b52e392856742bd511901cd67af4ceee98f2d8b4740d79c48a80598",
        labels: "1c3e6a65c84c7a69adf32ab3fb5932ddfe6becde145d7845a26e5c014837c7f0",
        first10: [80, 47, 13, 69, 75, 18, 7, 8, 29, 66],
        probes: [&[110, 115, 118], &[101, 93, 83]],
        mean: &[0.508796, 0.487393, 0.441942],
        std: &[0.268252, 0.257364, 0.277096],
    }
    .check(&load(&files, columns("img", "fine_label", None)));
}

#[test]
fn fashion_mnist() {
    let (Some(train), Some(test)) = (cached(FASHION, "train"), cached(FASHION, "test")) else {
        return skipped(FASHION);
    };
    let guessed = ParquetColumns::guess(&train[0]).unwrap();
    assert_eq!(guessed, columns("image", "label", None));
    let pixels = "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012";
    let expected = Expected {
        rows: 60_000,
        shape: "1x28x28",
        classes: 10,
        pixels,
        labels: "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        first10: [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
        probes: [&[23], &[205]],
        mean: &[0.286041],
        std: &[0.353024],
    };
    expected.check(&load(&train, guessed.clone()));
    Expected {
        rows: 10_000,
        pixels: "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        labels: "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        first10: [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
        probes: [&[0], &[184]],
        mean: &[0.286849],
        std: &[0.352444],
        ..expected
    }
    .check(&load(&test, guessed));
}

/// Regression targets; the files lie beside the cache and not in it.
#[test]
fn rotated_fashion() {
    let home = std::env::var_os("HF_HOME").map(PathBuf::from);
    let folder = home.map(|home| home.join("regression/rotated-fashion")).filter(|folder| folder.is_dir());
    let Some(folder) = folder else { return skipped("regression/rotated-fashion") };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| has_name(file, "train"));
    files.sort();
    let data = load(&files, columns("image", "label", Some("target")));
    Expected {
        rows: 6_000,
        shape: "1x32x32",
        classes: 10,
        pixels: "21ba34142e6bc07a351ce67c44fc6a7648b0de91275c0a1717ad2a7be8fc808f",
        labels: "ca20ba2f23fa996ce6c1f46382b34d5f4a7a758ad0ef25eddf7f5100659c1931",
        first10: [8, 7, 6, 8, 7, 7, 2, 0, 5, 3],
        probes: [&[0], &[10]],
        mean: &[0.217277],
        std: &[0.318651],
    }
    .check(&data);
    let targets = data.values();
    assert_eq!(targets[..5], [-24.787, 31.654, 14.586, 54.999, 0.006]);
    assert_eq!(data.unit(), Some("degrees"));
    let (n, sum) = (targets.len() as f64, targets.iter().map(|&t| f64::from(t)).sum::<f64>());
    assert!((sum / n - 0.149913).abs() < 1e-5, "{}", sum / n);
}

fn has_name(file: &Path, start: &str) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(start) && name.ends_with(".parquet")
}
