//! What is said where this crate is built without the reader of parquet files.

use super::*;
use crate::HubCopy;

fn without<T>(what: &str) -> Result<T> {
    Err(Error::Without { what: what.to_owned(), feature: "parquet" })
}

impl Sources {
    pub(super) fn cached(&self, _: &DatasetInfo, copy: &HubCopy, _: Split) -> Result<String> {
        without(copy.repository)
    }

    pub(super) fn hub_copy(&self, _: &'static DatasetInfo, copy: &HubCopy, _: Split) -> Result<Dataset> {
        without(copy.repository)
    }

    pub(super) fn regression(&self, info: &'static DatasetInfo, _: Split, _: &[PathBuf]) -> Result<Dataset> {
        without(info.name)
    }

    pub(super) fn custom_table(
        &self,
        name: &str,
        _: &CustomConfig,
        _: Split,
        _: Option<&Dataset>,
    ) -> Result<DatasetBuilder> {
        without(name)
    }
}
