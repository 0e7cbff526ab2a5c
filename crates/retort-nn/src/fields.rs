//! A hole in serde's `deny_unknown_fields`.

use serde::{Deserialize, Deserializer};

/// For `#[serde(deserialize_with)]` on a variant without fields of a tagged enum: a stray field is an error there too.
///
/// # Errors
///
/// Names the first field that there is.
pub fn no_fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(deserializer).map(|Nothing {}| ())
}
