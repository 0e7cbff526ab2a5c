//! Where the official files of a data set lie in a folder.

use std::path::{Path, PathBuf};

use crate::{DatasetInfo, Error, Result, Split};

/// One official file: its accepted names and its size.
struct Official {
    names: Vec<String>,
    /// Bytes, uncompressed.
    bytes: usize,
}

impl Official {
    fn describe(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|n| format!("`{n}`")).collect();
        names.join(" or ")
    }
}

fn officials(info: &DatasetInfo, split: Split) -> Vec<Official> {
    let rows = info.rows(split);
    let one = |name: &str, bytes: usize| Official { names: vec![name.to_owned()], bytes };
    match (info.name, split) {
        ("cifar10", Split::Train) => (1..=5).map(|i| one(&format!("data_batch_{i}.bin"), rows / 5 * 3073)).collect(),
        ("cifar10", Split::Test) => vec![one("test_batch.bin", rows * 3073)],
        ("cifar100", Split::Train) => vec![one("train.bin", rows * 3074)],
        ("cifar100", Split::Test) => vec![one("test.bin", rows * 3074)],
        (_, split) => {
            let prefix = match split {
                Split::Train => "train",
                Split::Test => "t10k",
            };
            let image_bytes = info.shape.height * info.shape.width;
            [("images-idx3", 16 + rows * image_bytes), ("labels-idx1", 8 + rows)]
                .map(|(kind, bytes)| {
                    let name = format!("{prefix}-{kind}-ubyte");
                    let compressed = format!("{name}.gz");
                    Official { names: vec![name, compressed], bytes }
                })
                .into()
        }
    }
}

/// Subfolders that archives and other libraries put the files into.
fn subfolders(name: &str) -> &'static [&'static str] {
    match name {
        "cifar10" => &["", "cifar-10-batches-bin"],
        "cifar100" => &["", "cifar-100-binary"],
        "fashion-mnist" => &["", "fashion-mnist", "FashionMNIST/raw"],
        "mnist" => &["", "mnist", "MNIST/raw"],
        _ => &[""],
    }
}

fn remedy(info: &DatasetInfo) -> String {
    match info.name {
        "cifar10" => format!("unpack cifar-10-binary.tar.gz from {} there", info.source),
        "cifar100" => format!("unpack cifar-100-binary.tar.gz from {} there", info.source),
        "fashion-mnist" => format!(
            "take the files from {}, or install the Debian package dataset-fashion-mnist and name /usr/share/datasets/fashion-mnist",
            info.source
        ),
        _ => format!("take the files from {}", info.source),
    }
}

/// The files of a split, in words.
pub(crate) fn describe(info: &DatasetInfo, split: Split) -> String {
    let files: Vec<String> = officials(info, split).iter().map(Official::describe).collect();
    files.join(", ")
}

/// Paths of all files of a split, from the first subfolder that has them all.
pub(crate) fn locate(info: &'static DatasetInfo, split: Split, folder: &Path) -> Result<Vec<PathBuf>> {
    let files = officials(info, split);
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
        file: missing.names.join("` or `"),
        searched: searched.join(", "),
        advice: format!("expected {} bytes uncompressed; {}", missing.bytes, remedy(info)),
    })
}

fn find(dir: &Path, file: &Official) -> Option<PathBuf> {
    file.names.iter().map(|name| dir.join(name)).find(|path| path.is_file())
}
