//! A folder with a folder of pictures for each class, as torchvision's `ImageFolder` reads it.
//!
//! `ROOT/CLASS/*.png|jpg|jpeg`, or `ROOT/train/CLASS/..` beside `ROOT/test/CLASS/..` (or `val`). Classes are sorted by
//! name, pictures of a class by name; pictures may lie one folder deeper, and come after those that do not. Names that
//! begin with a dot are skipped, links are followed.

use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use super::files::{MAX_FILE, Picture, push_pictures, read_limited, row_error, shown};
use super::image::{Fit, ImageDecoder, picture_shape};
use crate::{DatasetBuilder, Error, ImageShape, Result, Split};

/// Folders below a class that may hold pictures.
const DEPTH: usize = 1;

/// The pictures of a folder by class, listed and not yet decoded.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    class_names: Vec<String>,
    pictures: Vec<Picture>,
}

impl ImageFolder {
    /// All pictures of `root`, whose folders are the classes.
    ///
    /// # Errors
    ///
    /// No class, a class without pictures, a file in a class that is no picture by its name, a picture outside the
    /// classes, folders too deep, a name that is no text, a folder that cannot be read. Each names the file or folder.
    pub fn open(root: &Path) -> Result<Self> {
        let class_names = class_folders(root)?;
        let folder = Self::list(root, class_names)?;
        let counts = folder.class_counts();
        match counts.iter().position(|&n| n == 0).and_then(|k| folder.class_names.get(k)) {
            Some(class) => Err(Error::format(&shown(&root.join(class)), "pictures of a class", "at least 1", 0)),
            None => Ok(folder),
        }
    }

    /// The pictures of one split: of `root/train`, or of `root/test` (else `root/val`).
    ///
    /// The classes are always those of `root/train`, so that both splits number them alike; the test split need not have
    /// pictures of each.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); a split that is not there, a class of the test split that the training split lacks.
    pub fn open_split(root: &Path, split: Split) -> Result<Self> {
        let train = root.join("train");
        if !train.is_dir() {
            return Err(Error::format(
                &shown(root),
                "folder of pictures",
                "a folder `train` with a folder a class",
                "none",
            ));
        }
        if split == Split::Train {
            return Self::open(&train);
        }
        let Some(test) = ["test", "val"].map(|name| root.join(name)).into_iter().find(|path| path.is_dir()) else {
            return Err(Error::format(&shown(root), "folder of pictures", "a folder `test` or `val`", "neither"));
        };
        let class_names = class_folders(&train)?;
        if let Some(stranger) = class_folders(&test)?.iter().find(|class| !class_names.contains(class)) {
            let expected = format!("one of `{}`", class_names.join("`, `"));
            return Err(Error::format(&shown(&test.join(stranger)), "class", expected, stranger));
        }
        Self::list(&test, class_names)
    }

    fn list(root: &Path, class_names: Vec<String>) -> Result<Self> {
        let mut pictures = Vec::new();
        for (label, class) in (0u32..).zip(&class_names) {
            let folder = root.join(class);
            if folder.is_dir() {
                list_pictures(&folder, label, DEPTH, &mut pictures)?;
            }
        }
        Ok(Self { class_names, pictures })
    }

    fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.class_names.len()];
        let labels = self.pictures.iter().map(|picture| picture.label as usize);
        labels.for_each(|label| counts.get_mut(label).into_iter().for_each(|n| *n += 1));
        counts
    }

    /// Names of the classes, sorted.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Number of pictures.
    pub fn rows(&self) -> usize {
        self.pictures.len()
    }

    /// Shape of the first picture: what the others must have with [`Fit::Exact`].
    ///
    /// # Errors
    ///
    /// No picture, one that cannot be read.
    pub fn first_shape(&self) -> Result<ImageShape> {
        let first = self.pictures.first().ok_or_else(|| Error::invalid("image folder", "pictures", "at least 1", 0))?;
        picture_shape(&shown(&first.path), 0, &read_limited(&first.path, MAX_FILE)?)
    }

    /// Appends all pictures to a builder of `decoder.shape()` and as many classes.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, above 64 MiB, or refused by [`ImageDecoder::decode`], with its row.
    pub fn read(&self, builder: DatasetBuilder, decoder: &ImageDecoder) -> Result<DatasetBuilder> {
        push_pictures(builder, &self.pictures, decoder)
    }

    /// A decoder for the first picture's channels, and with [`Fit::Exact`] for its size.
    ///
    /// # Errors
    ///
    /// As for [`first_shape`](Self::first_shape) and [`ImageDecoder::new`].
    pub fn decoder(&self, fit: Fit) -> Result<ImageDecoder> {
        ImageDecoder::new(self.first_shape()?, fit)
    }
}

/// Entries that are not hidden, sorted by name.
pub(crate) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let io = |reason| Error::Io { file: shown(folder), reason };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry: DirEntry = entry.map_err(io)?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| Error::format(&shown(&entry.path()), "name", "text in UTF-8", name.to_string_lossy()))?;
        if !name.starts_with('.') {
            entries.push((name, entry.path()));
        }
    }
    entries.sort();
    Ok(entries)
}

fn class_folders(root: &Path) -> Result<Vec<String>> {
    let mut classes = Vec::new();
    for (name, path) in entries(root)? {
        if path.is_dir() {
            classes.push(name);
        } else if is_picture(&name) {
            return Err(Error::format(
                &shown(&path),
                "place of a picture",
                "inside the folder of a class",
                "beside them",
            ));
        }
    }
    if classes.is_empty() {
        return Err(Error::format(&shown(root), "folder of pictures", "a folder for each class", "none"));
    }
    Ok(classes)
}

fn list_pictures(folder: &Path, label: u32, depth: usize, pictures: &mut Vec<Picture>) -> Result<()> {
    let (folders, files): (Vec<_>, Vec<_>) = entries(folder)?.into_iter().partition(|(_, path)| path.is_dir());
    for (name, path) in files {
        if !is_picture(&name) {
            // `row` is the place that the picture would have.
            let expected = "a file that ends in .png, .jpg or .jpeg";
            return Err(row_error(&shown(&path), pictures.len(), "picture of a class", expected, name));
        }
        pictures.push(Picture { path, label });
    }
    for (name, path) in folders {
        if depth == 0 {
            let expected = "pictures at most one folder below their class";
            return Err(Error::format(&shown(&path), "folder", expected, format!("`{name}` deeper")));
        }
        list_pictures(&path, label, depth - 1, pictures)?;
    }
    Ok(())
}

/// By its name; whether it is one, the decoder says.
pub(crate) fn is_picture(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|e| ["png", "jpg", "jpeg"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::super::image::png_bytes;
    use super::*;
    use tempfile::TempDir;

    const SHAPE: ImageShape = ImageShape { channels: 1, height: 2, width: 2 };

    fn png(value: u8) -> Vec<u8> {
        png_bytes(SHAPE, &[value; 4]).unwrap()
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        root
    }

    fn values(folder: &ImageFolder) -> Result<(Vec<u8>, Vec<u32>)> {
        let decoder = folder.decoder(Fit::Exact)?;
        let builder = DatasetBuilder::new("x", Split::Train, decoder.shape(), folder.class_names().len())?;
        let data = folder.read(builder, &decoder)?.finish_with_statistics()?;
        Ok((data.pixels().unwrap().iter().copied().step_by(4).collect(), data.labels().to_vec()))
    }

    #[test]
    fn classes_and_pictures_come_sorted() {
        let root = folder(&[
            ("b/2.png", png(4)),
            ("b/1.PNG", png(3)),
            ("a/sub/0.png", png(2)),
            ("a/x.png", png(1)),
            ("a/.hidden", b"no picture".to_vec()),
            (".git/config", vec![]),
            ("README.txt", vec![]),
        ]);
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!((folder.class_names(), folder.rows()), (&["a".to_owned(), "b".to_owned()][..], 4));
        assert_eq!(values(&folder).unwrap(), (vec![1, 2, 3, 4], vec![0, 0, 1, 1]));
    }

    #[test]
    fn a_test_split_numbers_classes_as_the_training_split() {
        let files = [("train/a/1.png", png(1)), ("train/b/1.png", png(2)), ("val/b/1.png", png(3))];
        let root = folder(&files);
        let test = ImageFolder::open_split(root.path(), Split::Test).unwrap();
        assert_eq!(values(&test).unwrap(), (vec![3], vec![1]));
        assert_eq!(ImageFolder::open_split(root.path(), Split::Train).unwrap().rows(), 2);

        let root = folder(&[&files[..2], &[("test/c/1.png", png(3))]].concat());
        let error = ImageFolder::open_split(root.path(), Split::Test).unwrap_err().to_string();
        assert!(error.contains("test/c`: class: expected one of `a`, `b`"), "{error}");
        let error = ImageFolder::open_split(&root.path().join("train"), Split::Train).unwrap_err().to_string();
        assert!(error.contains("a folder `train`"), "{error}");
    }

    #[test]
    fn what_does_not_belong_is_named() {
        let ok = ("a/1.png", png(1));
        type Files<'a> = &'a [(&'a str, Vec<u8>)];
        let cases: [(Files, &str); 6] = [
            (&[], "a folder for each class"),
            (&[ok.clone(), ("b/.x", vec![])], "b`: pictures of a class: expected at least 1, found 0"),
            (&[ok.clone(), ("a/notes.txt", vec![])], "a/notes.txt`, row 1: picture of a class"),
            (&[ok.clone(), ("1.jpg", vec![])], "1.jpg`: place of a picture"),
            (&[ok.clone(), ("a/b/c/1.png", png(1))], "a/b/c`: folder"),
            (&[("README", vec![])], "a folder for each class"),
        ];
        for (files, message) in cases {
            let root = folder(files);
            let error = ImageFolder::open(root.path()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(ImageFolder::open(Path::new("/nowhere")).unwrap_err().to_string().contains("`/nowhere`"));
    }

    #[test]
    fn broken_pictures_are_named_with_their_row() {
        let mut damaged = png(1);
        damaged.truncate(damaged.len() - 20);
        let other = png_bytes(ImageShape { channels: 1, height: 3, width: 2 }, &[0; 6]).unwrap();
        let colour = png_bytes(ImageShape { channels: 3, height: 2, width: 2 }, &[0; 12]).unwrap();
        for (bytes, message) in [
            (damaged, "a complete PNG"),
            (vec![], "found no bytes"),
            (b"GIF89a..".to_vec(), "found 8 bytes that begin with [47, 49, 46, 38]"),
            (other, "expected 2 x 2, found 3 x 2"),
            (colour, "expected grey, found colour"),
        ] {
            let root = folder(&[("a/0.png", png(0)), ("b/1.png", bytes)]);
            let error = values(&ImageFolder::open(root.path()).unwrap()).unwrap_err().to_string();
            assert!(error.contains("b/1.png`, row 1: ") && error.contains(message), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_circles_end() {
        use std::os::unix::fs::symlink;
        let outside = folder(&[("1.png", png(7))]);
        let root = folder(&[("a/1.png", png(1))]);
        symlink(outside.path(), root.path().join("b")).unwrap();
        assert_eq!(values(&ImageFolder::open(root.path()).unwrap()).unwrap(), (vec![1, 7], vec![0, 1]));
        symlink("..", root.path().join("a/up")).unwrap();
        let error = ImageFolder::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("a/up/a`: folder: expected pictures at most one folder below"), "{error}");
        symlink("nothing", root.path().join("a/0.png")).unwrap();
        std::fs::remove_file(root.path().join("a/up")).unwrap();
        let error = values(&ImageFolder::open(root.path()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("a/0.png"), "{error}");
    }
}
