//! The pages of the data sets, written from the registry.

use crate::data::origin;
use retort_datasets::{DatasetInfo, Files, HubCopy, Origin, SplitInfo, registry};
use std::collections::BTreeMap;

/// File name and text of every page, the index among them.
pub(crate) fn pages() -> BTreeMap<String, String> {
    let mut pages: BTreeMap<String, String> =
        registry().iter().map(|info| (format!("{}.md", info.name), page(info))).collect();
    pages.insert("README.md".into(), index());
    pages
}

fn index() -> String {
    let mut text = String::from(
        "# Data sets\n\nWritten from the registry by `cargo xtask docs`; `cargo xtask data list` says which of them are found on \
         this machine, `cargo xtask data verify` whether the files are the right ones, `cargo xtask data show NAME` draws \
         them.\nHow to use other data: [guide](../guide/data.md).\n\n| name | images | classes | rows | from | licence |\n|---|---|---|---|---|---|\n",
    );
    for info in registry() {
        let rows: Vec<String> = info.splits.iter().map(|s| format!("{} {}", s.split, s.rows)).collect();
        let from: Vec<String> = info.origins.iter().map(origin).collect();
        text += &format!(
            "| [`{0}`]({0}.md) | {1} | {2} | {3} | {4} | {5} |\n",
            info.name,
            info.shape,
            info.classes,
            rows.join(", "),
            from.join(", "),
            info.licence
        );
    }
    text
}

fn page(info: &DatasetInfo) -> String {
    let mut text = format!("# {}\n\n{}\n\n| | |\n|---|---|\n", info.title, info.about);
    let mut row = |what: &str, value: String| text += &format!("| {what} | {value} |\n");
    row("name", format!("`{}`", info.name));
    row("images", format!("{} (channels, height, width), `u8`", info.shape));
    row("classes", info.classes.to_string());
    if let Some(unit) = info.unit {
        row("regression target", format!("in {unit}"));
    }
    let normalization = info.normalization();
    row("normalisation", format!("mean {:?}, standard deviation {:?}", normalization.mean, normalization.std));
    row("licence", info.licence.into());
    row("source", info.source.into());
    text += "\n## Rows\n\n| split | rows | SHA-256 of the pixels `[N, C, H, W]` | SHA-256 of the labels |\n|---|---|---|---|\n";
    text.extend(info.splits.iter().map(split));
    text += "\n## Where it is read from\n\n";
    for place in info.origins {
        text += &format!("- {}\n", how(info, place));
    }
    text
}

fn split(info: &SplitInfo) -> String {
    let [pixels, labels] = match info.digests {
        Some(digests) => [digests.pixels, digests.labels].map(|digest| format!("`{digest}`")),
        None => ["not known", "not known"].map(String::from),
    };
    format!("| {} | {} | {pixels} | {labels} |\n", info.split, info.rows)
}

fn how(info: &DatasetInfo, origin: &Origin) -> String {
    match origin {
        Origin::Embedded => "embedded in `retort-datasets`: nothing to fetch.".into(),
        Origin::Folder(files) => format!(
            "`--data DIR` (`RETORT_DATA`): {} in `DIR`, `DIR/{}` or the subfolder that the archive unpacks to.",
            contents(*files),
            info.name
        ),
        Origin::Hub(HubCopy { repository, config, image, label, .. }) => format!(
            "the cache of the Hugging Face hub (`HF_HOME`, `HF_HUB_CACHE`): `{repository}`, configuration `{config}`, columns \
             `{image}` and `{label}`, branch `refs/convert/parquet`. `hf download --repo-type dataset --revision \
             refs/convert/parquet {repository}` fetches it, and so does a build with the feature `hub`."
        ),
        Origin::Derived { from } => format!("made from [`{from}`]({from}.md), wherever that is read from."),
    }
}

fn contents(files: Files) -> &'static str {
    match files {
        Files::Idx => {
            "the four IDX files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-..`, plain or `.gz`"
        }
        Files::IdxPair => "`images-idx3-ubyte` and `labels-idx1-ubyte`, plain or `.gz`",
        Files::EmnistLetters => "`emnist-letters-train-images-idx3-ubyte` and its three siblings, plain or `.gz`",
        Files::Cifar10 => "`data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`",
        Files::Cifar100 | Files::Cifar100Coarse => "`train.bin` and `test.bin`",
        Files::Svhn => "`train_32x32.mat`, `test_32x32.mat` and, for the extra split, `extra_32x32.mat`",
        Files::Stl10 => {
            "`train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin` and, for the unlabelled split, `unlabeled_X.bin`"
        }
        Files::TinyImageNet => "the unpacked `tiny-imagenet-200` (`wnids.txt`, `words.txt`, `train`, `val`)",
        Files::Regression => "`train.parquet` and `test.parquet` with the columns `image`, `target` and `label`",
    }
}
