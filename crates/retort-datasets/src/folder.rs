//! Where the official files of a data set lie in a folder.

use std::path::{Path, PathBuf};

use crate::error::in_the_cache;
use crate::{DatasetInfo, Error, Files, Result, Split};

/// One official file: its accepted names and its size.
struct Official {
    names: Vec<String>,
    /// Bytes, uncompressed, where they follow from the number of rows.
    bytes: Option<usize>,
}

impl Official {
    fn describe(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|n| format!("`{n}`")).collect();
        names.join(" or ")
    }
}

fn officials(info: &DatasetInfo, files: Files, split: Split) -> Vec<Official> {
    let rows = info.rows(split).unwrap_or(0);
    let image = info.shape.bytes().unwrap_or(0);
    let one = |name: &str, bytes: usize| Official { names: vec![name.to_owned()], bytes: Some(bytes) };
    let unsized_file = |name: &str| Official { names: vec![name.to_owned()], bytes: None };
    let pair = |images: &str, labels: &str, rows: usize| {
        [(images, 16 + rows * image), (labels, 8 + rows)].map(|(name, bytes)| gzipped(name, bytes)).into()
    };
    match (files, split) {
        (Files::Cifar10, Split::Train) => {
            (1..=5).map(|i| one(&format!("data_batch_{i}.bin"), rows / 5 * 3073)).collect()
        }
        (Files::Cifar10, _) => vec![one("test_batch.bin", rows * 3073)],
        (Files::Cifar100 | Files::Cifar100Coarse, Split::Train) => vec![one("train.bin", rows * 3074)],
        (Files::Cifar100 | Files::Cifar100Coarse, _) => vec![one("test.bin", rows * 3074)],
        (Files::Svhn, split) => vec![unsized_file(&crate::source::svhn::file_name(&split.to_string()))],
        (Files::Stl10, Split::Unlabelled) => vec![one("unlabeled_X.bin", rows * image)],
        (Files::Stl10, split) => {
            vec![one(&format!("{split}_X.bin"), rows * image), one(&format!("{split}_y.bin"), rows)]
        }
        (Files::TinyImageNet, _) => vec![unsized_file("wnids.txt")],
        (Files::Regression, split) => vec![unsized_file(&format!("{split}.parquet"))],
        (Files::IdxPair, _) => {
            let all = info.splits.iter().map(|split| split.rows).sum();
            pair("images-idx3-ubyte", "labels-idx1-ubyte", all)
        }
        (Files::EmnistLetters, split) => {
            let name = |kind: &str| format!("emnist-letters-{split}-{kind}-ubyte");
            pair(&name("images-idx3"), &name("labels-idx1"), rows)
        }
        (Files::Idx, split) => {
            let prefix = if split == Split::Train { "train" } else { "t10k" };
            pair(&format!("{prefix}-images-idx3-ubyte"), &format!("{prefix}-labels-idx1-ubyte"), rows)
        }
    }
}

/// A file that may be compressed.
fn gzipped(name: &str, bytes: usize) -> Official {
    Official { names: vec![name.to_owned(), format!("{name}.gz")], bytes: Some(bytes) }
}

/// Subfolders that archives and other libraries put the files into.
fn subfolders(name: &str) -> &'static [&'static str] {
    match name {
        "cifar10" => &["", "cifar-10-batches-bin"],
        "cifar100" | "cifar100-coarse" => &["", "cifar-100-binary"],
        "fashion-mnist" => &["", "FashionMNIST/raw"],
        "mnist" => &["", "MNIST/raw"],
        "kmnist" => &["", "KMNIST/raw"],
        "emnist-letters" => &["", "EMNIST/raw", "gzip"],
        "svhn" => &["", "SVHN"],
        "stl10" => &["", "stl10_binary"],
        "tiny-imagenet" => &["", "tiny-imagenet-200"],
        _ => &[""],
    }
}

fn remedy(info: &DatasetInfo) -> String {
    let unpack = |archive: &str| format!("unpack {archive} from {} there", info.source);
    let files = match info.name {
        "cifar10" => unpack("cifar-10-binary.tar.gz"),
        "cifar100" | "cifar100-coarse" => unpack("cifar-100-binary.tar.gz"),
        "stl10" => unpack("stl10_binary.tar.gz"),
        "tiny-imagenet" => format!("unpack {} there", info.source),
        "emnist-letters" => unpack("gzip.zip"),
        "fashion-mnist" => format!(
            "take the files from {}, or install the Debian package dataset-fashion-mnist and name /usr/share/datasets/fashion-mnist",
            info.source
        ),
        _ => format!("take the files from {}", info.source),
    };
    files + &info.hub().map(|copy| in_the_cache(copy.repository)).unwrap_or_default()
}

/// The files of a split, in words.
pub(crate) fn describe(info: &DatasetInfo, files: Files, split: Split) -> String {
    let files: Vec<String> = officials(info, files, split).iter().map(Official::describe).collect();
    files.join(", ")
}

/// Paths of all files of a split, from the first subfolder that has them all.
pub(crate) fn locate(info: &'static DatasetInfo, files: Files, split: Split, folder: &Path) -> Result<Vec<PathBuf>> {
    let files = officials(info, files, split);
    let searched: Vec<PathBuf> = subfolders(info.name)
        .iter()
        .map(|sub| if sub.is_empty() { folder.to_owned() } else { folder.join(sub) })
        .collect();
    let mut most = 0;
    let mut missing = &files[0];
    for dir in &searched {
        let found: Vec<Option<PathBuf>> = files.iter().map(|file| find(dir, file)).collect();
        let count = found.iter().flatten().count();
        if count == files.len() {
            return Ok(found.into_iter().flatten().collect());
        }
        // The folder that comes closest is the one meant: report what it lacks.
        if count > most {
            most = count;
            let at = found.iter().position(Option::is_none);
            missing = &files[at.expect("fewer found than files")];
        }
    }
    let searched: Vec<String> = searched
        .iter()
        .map(|dir| {
            let note = if dir.is_dir() { "" } else { " (no such folder)" };
            format!("`{}`{note}", dir.display())
        })
        .collect();
    Err(Error::MissingFile {
        dataset: info.name,
        split,
        others: most,
        file: missing.names.join("` or `"),
        searched: searched.join(", "),
        advice: match missing.bytes {
            Some(bytes) => format!("expected {bytes} bytes uncompressed; {}", remedy(info)),
            None => remedy(info),
        },
    })
}

fn find(dir: &Path, file: &Official) -> Option<PathBuf> {
    file.names.iter().map(|name| dir.join(name)).find(|path| path.is_file())
}
