//! Data sets that the registry does not have.

use serde::{Deserialize, Serialize};

use crate::source::image::Fit;
use crate::{Error, Result};

/// How a data set is read that the registry does not have: a repository `owner/name` of the Hugging Face hub in parquet, or,
/// by the name `image-folder`, a folder with a folder of PNG and JPEG files for each class.
///
/// In a manifest: `{ name = "uoft-cs/cifar100", custom = { config = "cifar100", image = "img", label = "coarse_label" } }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomConfig {
    /// Branch, tag or commit of the repository; the hub's own parquet branch, else `main`, where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Configuration of the repository; needed where it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Column of the images; found by its type where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Column of the classes; found by its type and name where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Column of the regression targets; none where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Unit of the regression targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The repository's name of the test split; `test` where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// How images get one size; they must all have it where absent.
    #[serde(skip_serializing_if = "Fit::is_exact")]
    pub fit: Fit,
}

/// The name of data in a folder of images.
pub const IMAGE_FOLDER: &str = "image-folder";

impl CustomConfig {
    /// Refuses settings that nobody would look at.
    pub(crate) fn check(&self, name: &str) -> Result<()> {
        let columns = [
            ("revision", &self.revision),
            ("config", &self.config),
            ("image", &self.image),
            ("label", &self.label),
            ("value", &self.value),
            ("test", &self.test),
        ];
        let stray = columns.iter().find(|(_, set)| name == IMAGE_FOLDER && set.is_some());
        if let Some((field, _)) = stray {
            let what = format!("`{field}` of `custom`");
            return Err(Error::invalid("load", what, format!("none: `{IMAGE_FOLDER}` has only `fit`"), "one"));
        }
        if self.unit.is_some() && self.value.is_none() {
            return Err(Error::invalid(
                "load",
                "`unit` of `custom`",
                "a `value` column that it is the unit of",
                "none",
            ));
        }
        Ok(())
    }

    /// Whether a name is one that this configuration is for.
    #[must_use]
    pub fn is_custom(name: &str) -> bool {
        name == IMAGE_FOLDER || name.contains('/')
    }
}
