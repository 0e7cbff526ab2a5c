//! Tiny-ImageNet-200 as its archive unpacks (Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge").
//!
//! `wnids.txt` names the classes, `words.txt` says what they mean, `train/WNID/images/*.JPEG` and
//! `val/images/*.JPEG` with `val/val_annotations.txt` hold 64 x 64 pictures, a few of them grey. The test split is `val`,
//! as everywhere in the literature, because the official test split has no labels.
//!
//! Classes are the sorted identifiers and not the order of `wnids.txt`, as in torchvision's `ImageFolder`. Training
//! pictures come class after class, sorted by name; test pictures in the order of the annotations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{Picture, push_pictures, read_text, row_error, shown};
use super::image::ImageDecoder;
use super::image_folder::{entries, is_picture};
use crate::{DatasetBuilder, Error, ImageShape, Result, Split};

/// Shape of the pictures.
pub const SHAPE: ImageShape = ImageShape { channels: 3, height: 64, width: 64 };

/// Rows of the official training split; a folder with fewer is read too.
pub const TRAIN_ROWS: usize = 100_000;
/// Rows of the official validation split.
pub const TEST_ROWS: usize = 10_000;

/// Bytes of a text file; the largest, `words.txt`, has 2.6 million.
const MAX_TEXT: u64 = 16 << 20;

/// The pictures of one split, listed and not yet decoded.
#[derive(Clone, Debug)]
pub struct TinyImagenet {
    class_names: Vec<String>,
    pictures: Vec<Picture>,
}

impl TinyImagenet {
    /// Lists a split of `folder`, or of its `tiny-imagenet-200`.
    ///
    /// # Errors
    ///
    /// A file or folder that is not there, identifiers that occur twice or are no names, a class without a word or without
    /// pictures, a file that is no picture, an annotation of an unknown class, of a picture that is not there or would lie
    /// elsewhere (with its row), a picture without an annotation.
    pub fn open(folder: &Path, split: Split) -> Result<Self> {
        let inside = folder.join("tiny-imagenet-200");
        let root = if inside.join("wnids.txt").is_file() { inside } else { folder.to_owned() };
        let path = root.join("wnids.txt");
        if !path.is_file() {
            let expected = "`wnids.txt` there or in `tiny-imagenet-200`: unpack tiny-imagenet-200.zip from \
                            http://cs231n.stanford.edu/tiny-imagenet-200.zip";
            return Err(Error::format(&shown(folder), "folder of Tiny-ImageNet", expected, "none"));
        }
        let ids = identifiers(&path)?;
        let class_names = words(&root.join("words.txt"), &ids)?;
        let pictures = match split {
            Split::Train => train(&root.join("train"), &ids)?,
            Split::Test => annotated(&root.join("val"), &ids)?,
            other => return Err(Error::invalid("tiny-imagenet", "split", "train or test", other)),
        };
        Ok(Self { class_names, pictures })
    }

    /// What the classes mean, in the order of their identifiers.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Number of pictures.
    pub fn rows(&self) -> usize {
        self.pictures.len()
    }

    /// Appends all pictures to a builder of `decoder.shape()` and as many classes.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is refused by [`ImageDecoder::decode`], with its row.
    pub fn read(&self, builder: DatasetBuilder, decoder: &ImageDecoder) -> Result<DatasetBuilder> {
        push_pictures(builder, &self.pictures, decoder)
    }
}

/// Sorted identifiers of the classes.
fn identifiers(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path, MAX_TEXT)?;
    let mut ids = BTreeSet::new();
    for (row, id) in text.lines().map(str::trim).enumerate().filter(|(_, id)| !id.is_empty()) {
        // Letters and digits: it becomes part of a path.
        if !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(row_error(&shown(path), row, "identifier", "letters and digits", id));
        }
        if !ids.insert(id.to_owned()) {
            return Err(row_error(&shown(path), row, "identifier", "each one once", format!("{id} again")));
        }
    }
    if ids.is_empty() {
        return Err(Error::format(&shown(path), "identifiers", "at least 1", 0));
    }
    Ok(ids.into_iter().collect())
}

fn words(path: &Path, ids: &[String]) -> Result<Vec<String>> {
    let text = read_text(path, MAX_TEXT)?;
    let words: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.trim_end().split_once('\t')).collect();
    let word = |id: &String| {
        let word = words.get(id.as_str()).map(|word| (*word).to_owned());
        word.ok_or_else(|| Error::format(&shown(path), "words", format!("a line for {id}"), "none"))
    };
    ids.iter().map(word).collect()
}

fn train(folder: &Path, ids: &[String]) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (label, id) in (0u32..).zip(ids) {
        let images = folder.join(id).join("images");
        let before = pictures.len();
        for (name, path) in entries(&images)? {
            if !is_picture(&name) {
                let expected = "a file that ends in .JPEG";
                return Err(row_error(&shown(&path), pictures.len(), "picture of a class", expected, name));
            }
            pictures.push(Picture { path, label });
        }
        if pictures.len() == before {
            return Err(Error::format(&shown(&images), "pictures of a class", "at least 1", 0));
        }
    }
    Ok(pictures)
}

fn annotated(folder: &Path, ids: &[String]) -> Result<Vec<Picture>> {
    let path = folder.join("val_annotations.txt");
    let file = shown(&path);
    let images = folder.join("images");
    let mut left: BTreeMap<String, PathBuf> = entries(&images)?.into_iter().collect();
    let text = read_text(&path, MAX_TEXT)?;
    let mut pictures = Vec::new();
    for (row, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut fields = line.split('\t');
        let (Some(name), Some(id)) = (fields.next(), fields.next()) else {
            return Err(row_error(&file, row, "annotation", "a file, a tab and an identifier", line));
        };
        let Ok(label) = ids.binary_search_by(|known| known.as_str().cmp(id.trim())) else {
            return Err(row_error(&file, row, "identifier", "one of wnids.txt", id));
        };
        // Only names that the folder has: nothing leads out of it, and none comes twice.
        let Some(path) = left.remove(name) else {
            let expected = "a file of `images` that no line before names";
            return Err(row_error(&file, row, "file", expected, name));
        };
        let label = u32::try_from(label).map_err(|_| row_error(&file, row, "identifier", "at most 2^32", id))?;
        pictures.push(Picture { path, label });
    }
    match left.keys().next() {
        Some(name) => Err(Error::format(&file, "annotations", format!("one for `{name}`"), "none")),
        None if pictures.is_empty() => Err(Error::format(&file, "annotations", "at least 1", 0)),
        None => Ok(pictures),
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::{Fit, png_bytes};
    use super::*;
    use tempfile::TempDir;

    /// Grey PNGs: readers go by content, and the real set has grey pictures too.
    fn picture(value: u8) -> Vec<u8> {
        png_bytes(ImageShape { channels: 1, ..SHAPE }, &[value; 64 * 64]).unwrap()
    }

    const ANNOTATIONS: &str = "val_1.JPEG\tn02\t0\t0\t62\t62\nval_0.JPEG\tn01\t1\t2\t3\t4\n";

    fn folder(change: &[(&str, &[u8])]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = root.path().join("tiny-imagenet-200").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        write("wnids.txt", b"n02\nn01\n");
        write("words.txt", b"n00\tthing\nn01\tcat, true cat\nn02\tdog\n");
        write("train/n01/images/n01_1.JPEG", &picture(11));
        write("train/n01/images/n01_0.JPEG", &picture(10));
        write("train/n01/n01_boxes.txt", b"");
        write("train/n02/images/n02_0.JPEG", &picture(20));
        write("val/images/val_0.JPEG", &picture(30));
        write("val/images/val_1.JPEG", &picture(31));
        write("val/val_annotations.txt", ANNOTATIONS.as_bytes());
        change.iter().for_each(|(path, bytes)| write(path, bytes));
        root
    }

    fn values(root: &Path, split: Split) -> Result<(Vec<u8>, Vec<u32>)> {
        let source = TinyImagenet::open(root, split)?;
        let decoder = ImageDecoder::new(SHAPE, Fit::Exact)?;
        let builder = DatasetBuilder::new("tiny-imagenet", split, decoder.shape(), source.class_names().len())?;
        let data = source.read(builder, &decoder)?.finish_with_statistics()?;
        Ok((data.pixels().unwrap().iter().copied().step_by(3 * 64 * 64).collect(), data.labels().to_vec()))
    }

    #[test]
    fn both_splits_number_classes_by_sorted_identifier() {
        let root = folder(&[]);
        assert_eq!(values(root.path(), Split::Train).unwrap(), (vec![10, 11, 20], vec![0, 0, 1]));
        assert_eq!(values(root.path(), Split::Test).unwrap(), (vec![31, 30], vec![1, 0]));
        let inside = root.path().join("tiny-imagenet-200");
        assert_eq!(TinyImagenet::open(&inside, Split::Test).unwrap().class_names(), ["cat, true cat", "dog"]);
    }

    #[test]
    fn hostile_folders_are_refused() {
        let cases: [(&str, &[u8], Split, &str); 13] = [
            ("val/val_annotations.txt", b"../../x.JPEG\tn01\n", Split::Test, "val_annotations.txt`, row 0: file"),
            ("val/val_annotations.txt", b"/etc/passwd\tn01\n", Split::Test, "found /etc/passwd"),
            (
                "val/val_annotations.txt",
                b"val_0.JPEG\tn03\n",
                Split::Test,
                "row 0: identifier: expected one of wnids.txt",
            ),
            ("val/val_annotations.txt", b"val_0.JPEG\tn01\nval_0.JPEG\tn01\n", Split::Test, "row 1: file"),
            ("val/val_annotations.txt", b"val_0.JPEG\tn01\n", Split::Test, "expected one for `val_1.JPEG`, found none"),
            ("val/val_annotations.txt", b"val_0.JPEG n01\n", Split::Test, "row 0: annotation"),
            ("val/val_annotations.txt", b"", Split::Test, "annotations"),
            ("val/val_annotations.txt", b"\xff\xfe\n", Split::Test, "expected UTF-8"),
            ("wnids.txt", b"../n01\n", Split::Train, "wnids.txt`, row 0: identifier: expected letters and digits"),
            ("wnids.txt", b"n01\nn01\n", Split::Train, "row 1: identifier: expected each one once"),
            ("wnids.txt", b"", Split::Train, "identifiers: expected at least 1"),
            ("words.txt", b"n01\tcat\n", Split::Train, "expected a line for n02"),
            ("train/n02/images/notes.txt", b"", Split::Train, "notes.txt`, row 3: picture of a class"),
        ];
        for (path, bytes, split, message) in cases {
            let error = values(folder(&[(path, bytes)]).path(), split).unwrap_err().to_string();
            assert!(error.contains(message), "{path}: {error}");
        }
        let damaged = picture(1);
        let error = values(folder(&[("train/n02/images/n02_0.JPEG", &damaged[..50])]).path(), Split::Train);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("n02_0.JPEG`, row 2: picture: expected a complete"), "{error}");
        let error = values(tempfile::tempdir().unwrap().path(), Split::Train).unwrap_err().to_string();
        assert!(error.contains("tiny-imagenet-200.zip"), "{error}");
        let root = folder(&[]);
        std::fs::remove_file(root.path().join("tiny-imagenet-200/train/n02/images/n02_0.JPEG")).unwrap();
        let error = values(root.path(), Split::Train).unwrap_err().to_string();
        assert!(error.contains("n02/images`: pictures of a class: expected at least 1"), "{error}");
    }
}
