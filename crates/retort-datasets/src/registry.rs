//! The data sets that have a name.

use std::path::Path;
use std::sync::OnceLock;

use crate::cifar::{Layout, Records};
use crate::idx::{self, Images};
use crate::{Dataset, Error, ImageShape, Normalization, Result, Split, folder, names};

/// What is known of a data set before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetInfo {
    /// Name in manifests and on the command line.
    pub name: &'static str,
    /// Name in prose.
    pub title: &'static str,
    /// Number of classes.
    pub classes: usize,
    /// Size of an image.
    pub shape: ImageShape,
    /// Rows of the training split.
    pub train: usize,
    /// Rows of the test split.
    pub test: usize,
    /// Whether the data are part of this crate; otherwise [`load`] needs a folder.
    pub embedded: bool,
    /// Licence of the data.
    pub licence: &'static str,
    /// Where the data come from.
    pub source: &'static str,
}

impl DatasetInfo {
    /// Rows of a split.
    pub fn rows(&self, split: Split) -> usize {
        match split {
            Split::Train => self.train,
            Split::Test => self.test,
        }
    }
}

const fn shape(channels: usize, side: usize) -> ImageShape {
    ImageShape { channels, height: side, width: side }
}

static REGISTRY: [DatasetInfo; 6] = [
    DatasetInfo {
        name: "fashion-mnist-10k",
        title: "Fashion-MNIST, balanced subset",
        classes: 10,
        shape: shape(1, 28),
        train: 8_000,
        test: 2_000,
        embedded: true,
        licence: "MIT",
        source: "https://github.com/zalandoresearch/fashion-mnist",
    },
    DatasetInfo {
        name: "digits-8x8",
        title: "Optical digits, 8x8",
        classes: 10,
        shape: shape(1, 8),
        train: DIGITS_TRAIN,
        test: 360,
        embedded: true,
        licence: "BSD-3-Clause (scikit-learn's copy)",
        source: "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    },
    DatasetInfo {
        name: "fashion-mnist",
        title: "Fashion-MNIST",
        classes: 10,
        shape: shape(1, 28),
        train: 60_000,
        test: 10_000,
        embedded: false,
        licence: "MIT",
        source: "https://github.com/zalandoresearch/fashion-mnist",
    },
    DatasetInfo {
        name: "mnist",
        title: "MNIST",
        classes: 10,
        shape: shape(1, 28),
        train: 60_000,
        test: 10_000,
        embedded: false,
        licence: "not stated by its authors; commonly given as CC BY-SA 3.0",
        source: "http://yann.lecun.com/exdb/mnist/",
    },
    DatasetInfo {
        name: "cifar10",
        title: "CIFAR-10",
        classes: 10,
        shape: shape(3, 32),
        train: 50_000,
        test: 10_000,
        embedded: false,
        licence: "not stated by its authors; research use is customary",
        source: "https://www.cs.toronto.edu/~kriz/cifar.html",
    },
    DatasetInfo {
        name: "cifar100",
        title: "CIFAR-100",
        classes: 100,
        shape: shape(3, 32),
        train: 50_000,
        test: 10_000,
        embedded: false,
        licence: "not stated by its authors; research use is customary",
        source: "https://www.cs.toronto.edu/~kriz/cifar.html",
    },
];

/// Rows of the digits that count as the training split; the set has no official one.
const DIGITS_TRAIN: usize = 1_437;

/// All data sets with a name: the embedded ones, then those read from a folder.
pub fn registry() -> &'static [DatasetInfo] {
    &REGISTRY
}

/// The registry's entry for `name`.
///
/// # Errors
///
/// An unknown name; the message lists the nearest one and all of them.
pub fn info(name: &str) -> Result<&'static DatasetInfo> {
    if let Some(info) = REGISTRY.iter().find(|info| info.name == name) {
        return Ok(info);
    }
    let names = REGISTRY.iter().map(|info| info.name);
    Err(Error::UnknownDataset {
        name: name.to_owned(),
        nearest: names.clone().min_by_key(|known| edit_distance(name, known)).expect("the registry is not empty"),
        known: names.collect::<Vec<_>>().join(", "),
    })
}

/// Reads a split of a registered data set.
///
/// An embedded set takes no folder and is decoded once in a process; later calls share its pixels. The others need
/// the folder that holds their official files, directly or in the subfolder that their archive unpacks to; their files
/// are read at every call and must be complete, so that a name in a record always means the same rows.
///
/// # Errors
///
/// An unknown name, a folder missing or given in vain, a missing file, a file that is not what its format says. Every
/// error about a file names it.
pub fn load(name: &str, split: Split, folder: Option<&Path>) -> Result<Dataset> {
    let info = info(name)?;
    match (info.embedded, folder) {
        (true, None) => embedded(info, split),
        (true, Some(folder)) => Err(Error::FolderNotUsed { dataset: info.name, folder: folder.to_owned() }),
        (false, None) => Err(Error::FolderRequired {
            dataset: info.name,
            expected: folder::describe(info, split),
            source_url: info.source,
        }),
        (false, Some(folder)) => from_folder(info, split, folder),
    }
}

/// The images and labels of two files of this crate's `data` folder.
macro_rules! embedded_pair {
    ($images:literal, $labels:literal) => {
        (
            idx::parse_images($images, include_bytes!(concat!("../data/", $images)))?,
            idx::parse_labels($labels, include_bytes!(concat!("../data/", $labels)))?
                .into_iter()
                .map(u32::from)
                .collect::<Vec<u32>>(),
        )
    };
}

fn embedded(info: &'static DatasetInfo, split: Split) -> Result<Dataset> {
    static FASHION: [OnceLock<Dataset>; 2] = [const { OnceLock::new() }; 2];
    static DIGITS: [OnceLock<Dataset>; 2] = [const { OnceLock::new() }; 2];
    let digits = info.name == "digits-8x8";
    let cells = if digits { &DIGITS } else { &FASHION };
    let cell = &cells[split as usize];
    if let Some(dataset) = cell.get() {
        return Ok(dataset.clone());
    }
    let (images, labels) = if digits {
        let all = embedded_pair!("digits-8x8/images-idx3-ubyte.gz", "digits-8x8/labels-idx1-ubyte.gz");
        cut_digits(all, split)
    } else {
        match split {
            Split::Train => embedded_pair!(
                "fashion-mnist-10k/train-images-idx3-ubyte.gz",
                "fashion-mnist-10k/train-labels-idx1-ubyte.gz"
            ),
            Split::Test => embedded_pair!(
                "fashion-mnist-10k/t10k-images-idx3-ubyte.gz",
                "fashion-mnist-10k/t10k-labels-idx1-ubyte.gz"
            ),
        }
    };
    let dataset = finish(info, split, images.pixels, labels)?;
    Ok(cell.get_or_init(|| dataset).clone())
}

fn cut_digits((mut images, mut labels): (Images, Vec<u32>), split: Split) -> (Images, Vec<u32>) {
    let bytes = DIGITS_TRAIN * images.height * images.width;
    match split {
        Split::Train => {
            images.pixels.truncate(bytes);
            labels.truncate(DIGITS_TRAIN);
        }
        Split::Test => {
            images.pixels.drain(..bytes);
            labels.drain(..DIGITS_TRAIN);
        }
    }
    images.rows = labels.len();
    (images, labels)
}

fn from_folder(info: &'static DatasetInfo, split: Split, folder: &Path) -> Result<Dataset> {
    let paths = folder::locate(info, split, folder)?;
    let layout = match info.name {
        "cifar10" => Layout::Cifar10,
        "cifar100" => Layout::Cifar100,
        _ => {
            let (pixels, labels) = read_idx_pair(info, split, &paths[0], &paths[1])?;
            return finish(info, split, pixels, labels);
        }
    };
    let mut records = Records::default();
    let rows = info.rows(split) / paths.len();
    for path in &paths {
        records.append_file(path, layout, rows)?;
    }
    finish(info, split, records.pixels, records.labels)
}

/// Pixels and labels of an IDX pair that must hold what the registry says.
fn read_idx_pair(
    info: &DatasetInfo,
    split: Split,
    image_path: &Path,
    label_path: &Path,
) -> Result<(Vec<u8>, Vec<u32>)> {
    let images = idx::read_images(image_path)?;
    let rows = info.rows(split);
    let expected = format!("{rows} x {} x {}", info.shape.height, info.shape.width);
    let found = format!("{} x {} x {}", images.rows, images.height, images.width);
    if expected != found {
        let file = image_path.display().to_string();
        return Err(Error::format(&file, "rows x height x width", expected, found));
    }
    let labels = idx::read_labels(label_path)?;
    let file = label_path.display().to_string();
    if labels.len() != rows {
        let expected = format!("{rows}, as many as `{}` has images", image_path.display());
        return Err(Error::format(&file, "labels", expected, labels.len()));
    }
    if let Some(row) = labels.iter().position(|&l| usize::from(l) >= info.classes) {
        return Err(Error::Row {
            file,
            row,
            what: "label",
            expected: format!("less than {}", info.classes),
            found: labels[row].to_string(),
        });
    }
    Ok((images.pixels, labels.into_iter().map(u32::from).collect()))
}

/// Constants of a data set: class names, mean, std, largest pixel value.
type Constants = (&'static [&'static str], &'static [f32], &'static [f32], f32);

fn constants(name: &str) -> Constants {
    // RepDistiller's constants for both CIFAR sets: papers' recipes normalise with them.
    const CIFAR_MEAN: &[f32] = &[0.5071, 0.4867, 0.4408];
    const CIFAR_STD: &[f32] = &[0.2675, 0.2565, 0.2761];
    match name {
        "digits-8x8" => (names::DIGITS, &[0.305260], &[0.376049], 16.0),
        "mnist" => (names::DIGITS, &[0.1307], &[0.3081], 255.0),
        "cifar10" => (names::CIFAR10, CIFAR_MEAN, CIFAR_STD, 255.0),
        "cifar100" => (names::CIFAR100, CIFAR_MEAN, CIFAR_STD, 255.0),
        // fashion-mnist and its subset: the statistics of the full training split.
        _ => (names::FASHION, &[0.2860], &[0.3530], 255.0),
    }
}

fn finish(info: &DatasetInfo, split: Split, pixels: Vec<u8>, labels: Vec<u32>) -> Result<Dataset> {
    let (names, mean, std, max_value) = constants(info.name);
    let normalization = Normalization { mean: mean.to_vec(), std: std.to_vec() };
    Dataset::from_parts(info.name, split, info.shape, info.classes, pixels, labels, normalization)?
        .with_class_names(names.iter().map(ToString::to_string).collect())?
        .with_max_value(max_value)
}

/// Levenshtein's distance: insertions, deletions and replacements of one character.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut line: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = line[0];
        line[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = line[j + 1];
            line[j + 1] = replaced.min(diagonal + 1).min(line[j] + 1);
        }
    }
    line[b.len()]
}
