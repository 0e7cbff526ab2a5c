//! Files that are missing, cut off, damaged or lying: an error that names the file, never a panic or a huge allocation.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use retort_datasets::cifar::{IMAGE_BYTES, Layout, Records};
use retort_datasets::idx::{parse_images, parse_labels, read_images};
use retort_datasets::{Sources, Split, load};

fn idx(magic: u32, dims: &[u32], payload: &[u8]) -> Vec<u8> {
    let words = std::iter::once(&magic).chain(dims);
    let mut bytes: Vec<u8> = words.flat_map(|w| w.to_be_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn image_error(bytes: &[u8]) -> String {
    let message = parse_images("some-file", bytes).unwrap_err().to_string();
    assert!(message.starts_with("`some-file`: "), "{message}");
    message
}

#[test]
fn good_files_are_read_plain_and_compressed() {
    let file = idx(0x803, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
    let images = parse_images("f", &file).unwrap();
    assert_eq!((images.rows, images.height, images.width), (2, 1, 3));
    assert_eq!(images.pixels, [1, 2, 3, 4, 5, 6]);
    assert_eq!(parse_images("f", &gzip(&file)).unwrap(), images);
    let labels = idx(0x801, &[3], &[9, 0, 200]);
    assert_eq!(parse_labels("f", &labels).unwrap(), [9, 0, 200]);
}

#[test]
fn headers_are_checked() {
    assert!(image_error(&[]).ends_with("bytes of header: expected 16, found 0"));
    assert!(image_error(&gzip(&[])).ends_with("bytes of header: expected 16, found 0"));
    assert!(image_error(&idx(0x803, &[1, 2], &[])).ends_with("expected 16, found 12"));
    let labels = idx(0x801, &[1], &[0]);
    let swapped = image_error(&labels);
    assert!(swapped.ends_with("magic number: expected 0x00000803, found 0x00000801"));
    assert!(parse_labels("f", &idx(0x803, &[1, 1, 1], &[0])).is_err());
    assert!(image_error(&idx(0x803, &[0, 2, 2], &[])).contains("at least 1, found 0"));
}

#[test]
fn a_lying_header_takes_no_memory() {
    let huge = image_error(&idx(0x803, &[u32::MAX; 3], &[0; 8]));
    assert!(huge.contains("4294967295 x 4294967295 x 4294967295"), "{huge}");
    assert!(image_error(&idx(0x803, &[60_000, 1000, 1000], &[0; 8])).contains("at most 1073741824"));
    // Within the limit, but not there.
    let short = image_error(&idx(0x803, &[1_000_000, 32, 32], &[0; 8]));
    assert!(short.ends_with("bytes of pixels: expected 1024000000, found 8"), "{short}");
}

#[test]
fn sizes_are_exact() {
    let one_less = idx(0x803, &[2, 2, 2], &[0; 7]);
    assert!(image_error(&one_less).ends_with("expected 8, found 7"));
    assert!(image_error(&gzip(&one_less)).ends_with("expected 8, found 7"));
    let one_more = idx(0x803, &[2, 2, 2], &[0; 9]);
    assert!(image_error(&one_more).ends_with("expected 8, found more"));
    assert!(image_error(&gzip(&one_more)).ends_with("expected 8, found more"));
}

#[test]
fn damaged_compression_is_an_error_at_every_length() {
    let noise: Vec<u8> = (0..600u32).map(|i| ((i * i * 7919) >> 3) as u8).collect();
    let whole = gzip(&idx(0x803, &[6, 10, 10], &noise));
    assert!(parse_images("f", &whole).is_ok());
    for length in 2..whole.len() {
        let message = image_error(&whole[..length]);
        assert!(message.contains("gzip"), "{length}: {message}");
    }
    // The stored check sum: the pixels are complete, but not those that were written.
    let mut damaged = whole.clone();
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    assert!(image_error(&damaged).contains("gzip"));
}

#[test]
fn unreadable_paths_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("absent-file"), dir.path().to_owned()] {
        let message = read_images(&path).unwrap_err().to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
    }
}

/// A sparse file: the right size without the bytes.
fn sparse(path: &Path, size: u64, writes: &[(u64, &[u8])]) {
    let mut file = File::create(path).unwrap();
    for (at, bytes) in writes {
        file.seek(SeekFrom::Start(*at)).unwrap();
        file.write_all(bytes).unwrap();
    }
    file.set_len(size).unwrap();
}

fn load_error(name: &str, split: Split, folder: &Path) -> String {
    // A cache that is empty: what the machine has must not matter.
    let cache = Some(folder.join("no-cache"));
    let sources = Sources { folder: Some(folder.to_owned()), cache, offline: true, ..Sources::default() };
    sources.load(name, split).unwrap_err().to_string()
}

const MNIST_IMAGES: &str = "t10k-images-idx3-ubyte";
const MNIST_LABELS: &str = "t10k-labels-idx1-ubyte";

fn mnist_images(folder: &Path) {
    let header = idx(0x803, &[10_000, 28, 28], &[]);
    let probe = 16 + 784 + 5 * 28 + 20;
    sparse(&folder.join(MNIST_IMAGES), 7_840_016, &[(0, &header), (probe, &[77])]);
}

#[test]
fn idx_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    mnist_images(folder);

    let missing = load_error("mnist", Split::Test, folder);
    for part in ["`mnist`", "test split", MNIST_LABELS, "10008 bytes", &*folder.to_string_lossy()] {
        assert!(missing.contains(part), "{part}: {missing}");
    }

    // Labels compressed, images plain.
    let mut labels: Vec<u8> = (0..10_000u32).map(|i| (i % 10) as u8).collect();
    let label_path = folder.join(format!("{MNIST_LABELS}.gz"));
    fs::write(&label_path, gzip(&idx(0x801, &[10_000], &labels))).unwrap();
    for name in ["mnist", "fashion-mnist"] {
        let data = load(name, Split::Test, Some(folder)).unwrap();
        assert_eq!((data.name(), data.len(), data.classes()), (name, 10_000, 10));
        assert_eq!(data.image(1).unwrap()[5 * 28 + 20], 77);
        assert_eq!(data.labels()[..11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    }

    labels[123] = 10;
    fs::write(&label_path, gzip(&idx(0x801, &[10_000], &labels))).unwrap();
    let outside = load_error("mnist", Split::Test, folder);
    assert!(outside.contains(MNIST_LABELS), "{outside}");
    assert!(outside.ends_with("row 123: label: expected less than 10, found 10"), "{outside}");

    fs::write(&label_path, idx(0x801, &[9_999], &labels[..9_999])).unwrap();
    let mismatch = load_error("mnist", Split::Test, folder);
    assert!(mismatch.contains(MNIST_LABELS) && mismatch.ends_with("found 9999"), "{mismatch}");

    let header = idx(0x803, &[10_000, 14, 56], &[]);
    sparse(&folder.join(MNIST_IMAGES), 7_840_016, &[(0, &header)]);
    let shape = load_error("mnist", Split::Test, folder);
    assert!(shape.contains("expected 10000 x 28 x 28, found 10000 x 14 x 56"), "{shape}");
}

#[test]
fn cifar_folders() {
    // Row 1 has class 9 (coarse 4, fine 99), its green pixel at row 5, column 20 is 200.
    let pixel = 1024 + 5 * 32 + 20;
    for (name, file, sub, labels) in [
        ("cifar10", "test_batch.bin", "cifar-10-batches-bin", &[9u8][..]),
        ("cifar100", "test.bin", "cifar-100-binary", &[4, 99]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let missing = load_error(name, Split::Test, dir.path());
        let record = (labels.len() + IMAGE_BYTES) as u64;
        let size = 10_000 * record;
        for part in [name, file, sub, "no such folder", "tar.gz", &size.to_string()] {
            assert!(missing.contains(part), "{part}: {missing}");
        }

        let folder = dir.path().join(sub);
        fs::create_dir(&folder).unwrap();
        let probe = record + labels.len() as u64 + pixel;
        sparse(&folder.join(file), size, &[(record, labels), (probe, &[200])]);
        // Named directly, and found in the subfolder of the archive.
        for folder in [&*folder, dir.path()] {
            let data = load(name, Split::Test, Some(folder)).unwrap();
            assert_eq!((data.len(), data.labels()[0]), (10_000, 0));
            assert_eq!(data.labels()[1], u32::from(*labels.last().unwrap()));
            let image = data.image(1).unwrap();
            assert_eq!(image.iter().position(|&p| p == 200), Some(pixel as usize));
            assert_eq!(data.class_names().len(), data.classes());
        }

        sparse(&folder.join(file), size - 1, &[]);
        let short = load_error(name, Split::Test, dir.path());
        assert!(short.contains(file) && short.contains(&format!("found {}", size - 1)), "{short}");
    }
}

#[test]
fn cifar_training_batches_are_all_needed() {
    let dir = tempfile::tempdir().unwrap();
    for i in [1, 2, 4, 5] {
        fs::write(dir.path().join(format!("data_batch_{i}.bin")), [0]).unwrap();
    }
    let missing = load_error("cifar10", Split::Train, dir.path());
    assert!(missing.contains("`data_batch_3.bin` not found"), "{missing}");
    assert!(missing.contains("30730000 bytes"), "{missing}");
}

#[test]
fn cifar_labels_are_checked_with_their_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.bin");
    let append = |layout, labels: &[&[u8]]| {
        let bytes = labels.iter().flat_map(|l| [*l, &[5; IMAGE_BYTES]].concat());
        fs::write(&path, bytes.collect::<Vec<u8>>()).unwrap();
        let mut records = Records::default();
        records.append_file(&path, layout, labels.len()).map(|()| records)
    };
    let good = append(Layout::Cifar100, &[&[19, 99], &[0, 1]]).unwrap();
    assert_eq!((good.labels, good.coarse_labels), (vec![99, 1], vec![19, 0]));
    assert_eq!(good.pixels, vec![5; 2 * IMAGE_BYTES]);

    let ten = append(Layout::Cifar10, &[&[9], &[10]]).unwrap_err().to_string();
    assert!(ten.contains("some.bin"), "{ten}");
    assert!(ten.ends_with("row 1: label: expected less than 10, found 10"), "{ten}");
    let coarse = append(Layout::Cifar100, &[&[20, 0]]).unwrap_err().to_string();
    assert!(coarse.ends_with("row 0: coarse label: expected less than 20, found 20"));
    let fine = append(Layout::Cifar100, &[&[0, 100]]).unwrap_err().to_string();
    assert!(fine.ends_with("row 0: fine label: expected less than 100, found 100"));

    fs::write(&path, [0; 10]).unwrap();
    let mut records = Records::default();
    for rows in [0, 1, usize::MAX] {
        assert!(records.append_file(&path, Layout::Cifar10, rows).is_err());
    }
}
