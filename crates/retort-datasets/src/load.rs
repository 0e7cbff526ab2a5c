//! From a name to rows: embedded, from a folder of official files, or from the cache of the hub.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cifar::{Layout, Records};
use crate::custom::IMAGE_FOLDER;
use crate::idx::{self, Images};
use crate::registry::{DIGITS_TRAIN, Files, Origin};
use crate::source::image::{Fit, ImageDecoder};
use crate::source::image_folder::ImageFolder;
use crate::{
    CustomConfig, DEFAULT_MEMORY_LIMIT, Dataset, DatasetBuilder, DatasetInfo, Error, Result, Split, folder, info,
    rotated, source,
};

#[cfg(feature = "parquet")]
mod tables;
#[cfg(not(feature = "parquet"))]
mod without;

/// Where data sets are looked for.
///
/// ```
/// use retort_datasets::{Sources, Split};
///
/// let digits = Sources::default().load("digits-8x8", Split::Train)?;
/// assert_eq!(digits.len(), 1437);
/// # Ok::<(), retort_datasets::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The folder with the official files of a set that is not embedded, or with a folder of the set's name in it. Looked
    /// into before the hub.
    pub folder: Option<PathBuf>,
    /// The cache of the Hugging Face hub; where absent, that of `HF_HUB_CACHE`, `HF_HOME` or the home folder.
    pub cache: Option<PathBuf>,
    /// Never use the network, also where this crate is built with the feature `hub`.
    pub offline: bool,
    /// Bytes of pixels above which a data set lies in a temporary file.
    pub memory_limit: u64,
}

impl Default for Sources {
    /// No folder, the usual cache, the network where the crate is built for it, [`DEFAULT_MEMORY_LIMIT`].
    fn default() -> Self {
        Self { folder: None, cache: None, offline: false, memory_limit: DEFAULT_MEMORY_LIMIT }
    }
}

/// Reads a split of a registered data set, from `folder` where it is not embedded and one is given: [`Sources::load`] with
/// everything else as it is by default.
///
/// # Errors
///
/// As [`Sources::load`].
pub fn load(name: &str, split: Split, folder: Option<&Path>) -> Result<Dataset> {
    match (info(name), folder) {
        (Ok(info), Some(folder)) if info.embedded() => {
            Err(Error::FolderNotUsed { dataset: info.name, folder: folder.to_owned() })
        }
        _ => Sources { folder: folder.map(Path::to_owned), ..Sources::default() }.load(name, split),
    }
}

impl Sources {
    /// Reads a split of a registered data set: embedded, else from the official files in the folder, else from the hub's
    /// cache, else made from another set. What the registry does not have is read as [`Sources::load_custom`] does it.
    ///
    /// An embedded set is decoded once in a process; later calls share its pixels. Official files must be complete, so that
    /// a name always means the same number of rows.
    ///
    /// # Errors
    ///
    /// An unknown name, a split that the set does not have, a missing file (the message says where it was looked for and
    /// where to get it), a file that is not what its format says. Every error about a file names it.
    pub fn load(&self, name: &str, split: Split) -> Result<Dataset> {
        if CustomConfig::is_custom(name) {
            return self.load_custom(name, &CustomConfig::default(), split);
        }
        let info = info(name)?;
        if info.split(split).is_none() {
            return Err(no_split(info, split));
        }
        let mut absent = Vec::new();
        for origin in info.origins {
            let result = match *origin {
                Origin::Embedded => return embedded(info, split),
                Origin::Folder(files) => self.official_files(info, files, split),
                Origin::Hub(copy) => self.hub_copy(info, &copy, split),
                Origin::Derived { .. } => self.rotated_fashion(info, split),
            };
            match result {
                // Nothing there: the next origin may have it.
                Err(error) if error.is_absence() => absent.push(error),
                result => return result,
            }
        }
        match absent.len() {
            1 => Err(absent.remove(0)),
            _ => Err(Error::Absent { dataset: info.name, split, reasons: absent }),
        }
    }

    /// Where a data set would be read from now, in words, without reading it.
    ///
    /// # Errors
    ///
    /// What is missing, in words.
    pub fn find(&self, name: &str) -> std::result::Result<String, String> {
        let info = info(name).map_err(|e| e.to_string())?;
        if info.embedded() {
            return Ok("embedded".into());
        }
        let split = Split::Train;
        let mut reasons = Vec::new();
        for origin in info.origins {
            let found = match *origin {
                Origin::Embedded => Ok("embedded".into()),
                Origin::Folder(files) => self.official(info, files, split).map(|at| {
                    format!("folder {}", at.first().map(|path| path.display().to_string()).unwrap_or_default())
                }),
                Origin::Hub(copy) => self.cached(info, &copy, split),
                Origin::Derived { from } => match self.find(from) {
                    Ok(found) => Ok(format!("made from {from}: {found}")),
                    Err(reason) => {
                        reasons.push(reason);
                        continue;
                    }
                },
            };
            match found {
                Ok(found) => return Ok(found),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(reasons.into_iter().next().unwrap_or_default())
    }

    /// The folder of a set: the given one, or the folder of the set's name in it.
    fn folder_of(&self, name: &str) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        let named = folder.join(name);
        Some(if named.is_dir() { named } else { folder.clone() })
    }

    /// The official files of a split, without reading them.
    fn official(&self, info: &'static DatasetInfo, files: Files, split: Split) -> Result<Vec<PathBuf>> {
        match self.folder_of(info.name) {
            Some(folder) => folder::locate(info, files, split, &folder),
            None => Err(Error::FolderRequired {
                dataset: info.name,
                expected: folder::describe(info, files, split),
                source_url: info.source,
                hub: info.hub().map(|copy| copy.repository),
            }),
        }
    }

    fn builder(&self, info: &DatasetInfo, split: Split) -> Result<DatasetBuilder> {
        let classes = if split == Split::Unlabelled { 0 } else { info.classes };
        Ok(DatasetBuilder::new(info.name, split, info.shape, classes)?.memory_limit(self.memory_limit))
    }

    fn official_files(&self, info: &'static DatasetInfo, files: Files, split: Split) -> Result<Dataset> {
        let paths = self.official(info, files, split)?;
        let normalization = info.normalization();
        let read = match files {
            Files::Cifar10 => return cifar(info, split, &paths, Layout::Cifar10),
            Files::Cifar100 | Files::Cifar100Coarse => return cifar(info, split, &paths, Layout::Cifar100),
            Files::Idx | Files::IdxPair | Files::EmnistLetters => return idx_pair(info, files, split, &paths),
            Files::Svhn => source::svhn::read(self.builder(info, split)?, &paths[0])?,
            Files::Stl10 => {
                let (labels, rows) = (paths.get(1).map(PathBuf::as_path), info.rows(split).unwrap_or(0));
                source::stl10::read_files(self.builder(info, split)?, &paths[0], labels, rows, Fit::Exact)?
            }
            Files::TinyImageNet => return self.tiny_imagenet(info, split, &paths[0]),
            Files::Regression => return self.regression(info, split, &paths),
        };
        let rows = read.finish(normalization)?;
        expect_rows(info, &rows, &paths[0])?;
        info.complete(rows)
    }

    fn tiny_imagenet(&self, info: &'static DatasetInfo, split: Split, wnids: &Path) -> Result<Dataset> {
        let root = wnids.parent().unwrap_or(Path::new("."));
        let pictures = source::tiny_imagenet::TinyImagenet::open(root, split)?;
        let decoder = ImageDecoder::new(info.shape, Fit::Exact)?;
        let rows = pictures.read(self.builder(info, split)?, &decoder)?.finish(info.normalization())?;
        expect_rows(info, &rows, root)?;
        rows.with_class_names(pictures.class_names().to_vec())
    }

    /// Made from the full Fashion-MNIST, wherever that comes from.
    fn rotated_fashion(&self, info: &'static DatasetInfo, split: Split) -> Result<Dataset> {
        let upright = self.load("fashion-mnist", split)?;
        let rows = rotated::rotated_fashion(&upright, self.builder(info, split)?)?;
        info.complete(rows.finish(info.normalization())?)
    }
}

impl Sources {
    /// Reads a split of a data set that the registry does not have, see [`CustomConfig`]. The channel statistics are those
    /// of its training split.
    ///
    /// # Errors
    ///
    /// A name that is neither `image-folder` nor `owner/name`, `image-folder` without a folder, files that are missing or
    /// not what they should be, a column that is not there or cannot be guessed.
    pub fn load_custom(&self, name: &str, custom: &CustomConfig, split: Split) -> Result<Dataset> {
        custom.check(name)?;
        let train = self.custom(name, custom, Split::Train, None)?.finish_with_statistics()?;
        if split == Split::Train { Ok(train) } else { self.load_custom_beside(&train, custom, split) }
    }

    /// Another split of the data set that `train` was read from: its images go through the same numbers as the training
    /// images, and count the same classes.
    ///
    /// # Errors
    ///
    /// As [`Sources::load_custom`]; class names that differ from those of `train`.
    pub fn load_custom_beside(&self, train: &Dataset, custom: &CustomConfig, split: Split) -> Result<Dataset> {
        let rows = self.custom(train.name(), custom, split, Some(train))?;
        rows.finish(train.normalization().clone())
    }

    fn custom(
        &self,
        name: &str,
        custom: &CustomConfig,
        split: Split,
        train: Option<&Dataset>,
    ) -> Result<DatasetBuilder> {
        if name != IMAGE_FOLDER {
            return self.custom_table(name, custom, split, train);
        }
        let Some(folder) = self.folder_of(name) else {
            let expected = "a folder with `train/CLASS/*.png` and `test/CLASS/*.png` (or .jpg)";
            return Err(Error::invalid("load", format!("folder of `{name}`"), expected, "none"));
        };
        let images = ImageFolder::open_split(&folder, split)?;
        let decoder = images.decoder(custom.fit)?;
        let classes = images.class_names().len();
        let builder = DatasetBuilder::new(name, split, decoder.shape(), classes)?.memory_limit(self.memory_limit);
        images.read(builder, &decoder)?.with_names(images.class_names())
    }
}

fn cifar(info: &'static DatasetInfo, split: Split, paths: &[PathBuf], layout: Layout) -> Result<Dataset> {
    let mut records = Records::default();
    let rows = info.rows(split).unwrap_or(0) / paths.len().max(1);
    for path in paths {
        records.append_file(path, layout, rows)?;
    }
    let coarse = info.files() == Some(Files::Cifar100Coarse);
    finish(info, split, records.pixels, if coarse { records.coarse_labels } else { records.labels })
}

/// Pixels and labels of an IDX pair that must hold what the registry says.
fn idx_pair(info: &'static DatasetInfo, files: Files, split: Split, paths: &[PathBuf]) -> Result<Dataset> {
    let [image_path, label_path] = paths else {
        return Err(Error::invalid("load", "IDX files", 2, paths.len()));
    };
    let rows_of = |split| info.rows(split).unwrap_or(0);
    let pair = files == Files::IdxPair;
    let rows = if pair { rows_of(Split::Train) + rows_of(Split::Test) } else { rows_of(split) };
    let mut images = idx::read_images(image_path)?;
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
    // EMNIST counts its letters from 1.
    let first = u8::from(files == Files::EmnistLetters);
    let valid = |label: u8| label >= first && usize::from(label - first) < info.classes;
    if let Some(row) = labels.iter().position(|&label| !valid(label)) {
        return Err(Error::Row {
            file,
            row,
            what: "label",
            expected: if first == 0 { format!("less than {}", info.classes) } else { format!("1 to {}", info.classes) },
            found: labels[row].to_string(),
        });
    }
    if files == Files::EmnistLetters {
        images
            .pixels
            .chunks_exact_mut(images.height * images.width)
            .for_each(|image| transpose(image, info.shape.width));
    }
    let labels = labels.into_iter().map(|label| u32::from(label - first)).collect();
    let (images, labels) = if pair { cut((images, labels), rows_of(Split::Train), split) } else { (images, labels) };
    finish(info, split, images.pixels, labels)
}

/// Swaps rows and columns of a square.
fn transpose(image: &mut [u8], side: usize) {
    for y in 0..side {
        for x in 0..y {
            image.swap(y * side + x, x * side + y);
        }
    }
}

/// A registered name always means the same number of rows.
fn expect_rows(info: &DatasetInfo, rows: &Dataset, file: &Path) -> Result<()> {
    let expected = info.rows(rows.split()).unwrap_or(0);
    if rows.len() == expected {
        return Ok(());
    }
    let file = file.display().to_string();
    Err(Error::format(&file, "rows", format!("{expected}, as `{}` has", info.name), rows.len()))
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
    let cell = match (if digits { &DIGITS } else { &FASHION }).get(split as usize) {
        Some(cell) => cell,
        None => return Err(no_split(info, split)),
    };
    if let Some(dataset) = cell.get() {
        return Ok(dataset.clone());
    }
    let (images, labels) = if digits {
        let all = embedded_pair!("digits-8x8/images-idx3-ubyte.gz", "digits-8x8/labels-idx1-ubyte.gz");
        cut(all, DIGITS_TRAIN, split)
    } else if split == Split::Train {
        embedded_pair!("fashion-mnist-10k/train-images-idx3-ubyte.gz", "fashion-mnist-10k/train-labels-idx1-ubyte.gz")
    } else {
        embedded_pair!("fashion-mnist-10k/t10k-images-idx3-ubyte.gz", "fashion-mnist-10k/t10k-labels-idx1-ubyte.gz")
    };
    let dataset = finish(info, split, images.pixels, labels)?;
    Ok(cell.get_or_init(|| dataset).clone())
}

/// The first `train` rows are the training split, the others the test split.
fn cut((mut images, mut labels): (Images, Vec<u32>), train: usize, split: Split) -> (Images, Vec<u32>) {
    let bytes = train * images.height * images.width;
    if split == Split::Train {
        images.pixels.truncate(bytes);
        labels.truncate(train);
    } else {
        images.pixels.drain(..bytes);
        labels.drain(..train);
    }
    images.rows = labels.len();
    (images, labels)
}

fn finish(info: &DatasetInfo, split: Split, pixels: Vec<u8>, labels: Vec<u32>) -> Result<Dataset> {
    let rows = Dataset::from_parts(info.name, split, info.shape, info.classes, pixels, labels, info.normalization())?;
    info.complete(rows)
}

fn no_split(info: &DatasetInfo, split: Split) -> Error {
    let known: Vec<String> = info.splits.iter().map(|info| info.split.to_string()).collect();
    Error::invalid("load", format!("split of `{}`", info.name), known.join(", "), split)
}
