//! What is read from parquet files.

use super::*;
use crate::HubCopy;
use crate::source::parquet::{ParquetColumns, ParquetImages, split_files};
use retort_hub::{Hub, Kind, Repository};

/// The branch that the hub itself fills with the parquet form of every public data set, then what its owner put there.
const BRANCHES: [&str; 2] = ["refs/convert/parquet", "main"];

/// Whether a parquet file is one of a split, in any of the two layouts that [`split_files`] knows.
fn is_of_split(file: &str, split: &str) -> bool {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    let by_folder = folder.rsplit('/').next() == Some(split);
    name.ends_with(".parquet") && (by_folder || name.starts_with(&format!("{split}-")))
}

impl Sources {
    fn hub(&self) -> Hub {
        Hub { cache: self.cache.clone(), offline: self.offline }
    }

    /// The files of a split, fetched where they are not in the cache and that is possible.
    fn shards(
        &self,
        repository: &Repository,
        revision: Option<&str>,
        config: Option<&str>,
        split: &str,
    ) -> Result<Vec<PathBuf>> {
        let hub = self.hub();
        let mut first = None;
        let revisions = revision.as_ref().map_or(&BRANCHES[..], std::slice::from_ref);
        for revision in revisions {
            let listed = match hub.files(repository, revision) {
                Ok(listed) => listed,
                Err(error) => {
                    first = Some(first.unwrap_or(error));
                    continue;
                }
            };
            if !listed.iter().any(|file| is_of_split(file, split)) {
                continue;
            }
            let names = split_files(&listed, config, split)?;
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            return Ok(hub.find(repository, revision, &names)?);
        }
        match first {
            Some(error) => Err(error.into()),
            // The repository is there, but not this split: asking for its file says so, with a way to get it.
            None => {
                let revision = revision.unwrap_or(BRANCHES[0]);
                let file = format!("{}/{split}/0000.parquet", config.unwrap_or("default"));
                Ok(hub.find(repository, revision, &[&file])?)
            }
        }
    }

    /// The files of a split of a registered set.
    fn copied_files(&self, copy: &HubCopy, split: Split) -> Result<Vec<PathBuf>> {
        let repository = Repository::parse(Kind::Dataset, copy.repository)?;
        let name = if split == Split::Test { copy.test.to_owned() } else { split.to_string() };
        self.shards(&repository, None, Some(copy.config), &name)
    }

    /// Where the cache has a registered set.
    pub(super) fn cached(&self, info: &DatasetInfo, copy: &HubCopy, split: Split) -> Result<String> {
        Sources { offline: true, ..self.clone() }.copied_files(copy, split)?;
        Ok(format!("the hub's cache, {} ({})", copy.repository, info.title))
    }

    pub(super) fn hub_copy(&self, info: &'static DatasetInfo, copy: &HubCopy, split: Split) -> Result<Dataset> {
        let files = self.copied_files(copy, split)?;
        let columns = ParquetColumns { image: copy.image.into(), label: Some(copy.label.into()), value: None };
        let images = ParquetImages::open(&files, columns)?;
        let decoder = ImageDecoder::new(info.shape, Fit::Exact)?;
        let rows = images.read(self.builder(info, split)?, &decoder)?.finish(info.normalization())?;
        expect_rows(info, &rows, &files[0])?;
        let names = images.class_names();
        let rows = info.complete(rows)?;
        // Where the registry leaves the names to the files.
        if info.names_its_classes() || names.len() != rows.classes() {
            Ok(rows)
        } else {
            rows.with_class_names(names.to_vec())
        }
    }

    pub(super) fn regression(&self, info: &'static DatasetInfo, split: Split, files: &[PathBuf]) -> Result<Dataset> {
        let columns =
            ParquetColumns { image: "image".into(), label: Some("label".into()), value: Some("target".into()) };
        let images = ParquetImages::open(files, columns)?;
        let decoder = ImageDecoder::new(info.shape, Fit::Exact)?;
        let builder = self.builder(info, split)?.with_values(info.unit.unwrap_or_default());
        let rows = images.read(builder, &decoder)?.finish(info.normalization())?;
        expect_rows(info, &rows, &files[0])?;
        info.complete(rows)
    }

    pub(super) fn custom_table(
        &self,
        name: &str,
        custom: &CustomConfig,
        split: Split,
        train: Option<&Dataset>,
    ) -> Result<DatasetBuilder> {
        let repository = Repository::parse(Kind::Dataset, name)?;
        let of_split = match (split, &custom.test) {
            (Split::Test, Some(test)) => test.clone(),
            _ => split.to_string(),
        };
        let files = self.shards(&repository, custom.revision.as_deref(), custom.config.as_deref(), &of_split)?;
        let (image, label) = match (custom.image.clone(), custom.label.clone()) {
            (Some(image), Some(label)) => (image, Some(label)),
            (image, label) => {
                let guess = ParquetColumns::guess(&files[0])?;
                (image.unwrap_or(guess.image), label.or(guess.label))
            }
        };
        let columns = ParquetColumns { image, label, value: custom.value.clone() };
        let images = ParquetImages::open(&files, columns)?;
        let decoder = ImageDecoder::new(images.first_shape()?, custom.fit)?;
        let classes = match train {
            Some(train) => train.classes(),
            None => images.classes()?,
        };
        if let Some(train) =
            train.filter(|train| !images.class_names().is_empty() && train.class_names() != images.class_names())
        {
            let what = format!("class names of `{name}`, {split} split");
            let expected = format!("those of the training split: {}", train.class_names().join(", "));
            return Err(Error::invalid("load", what, expected, images.class_names().join(", ")));
        }
        let mut builder = DatasetBuilder::new(name, split, decoder.shape(), classes)?.memory_limit(self.memory_limit);
        if custom.value.is_some() {
            builder = builder.with_values(custom.unit.clone().unwrap_or_default());
        }
        let builder = images.read(builder, &decoder)?;
        builder.with_names(images.class_names())
    }
}
