//! Whether rows are those that the registry speaks of.

use sha2::{Digest, Sha256};

use crate::registry::Digests;
use crate::{Dataset, DatasetInfo, Error, Result};

/// How much is known of rows that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pixels and labels have the digests of the official rows in the official order.
    Verified,
    /// Number, shape and classes are right; no digest is known.
    Plausible,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Verified => "verified",
            Verdict::Plausible => "plausible (no digest known)",
        })
    }
}

impl Dataset {
    /// Compares all rows of a split with what the registry knows of them.
    ///
    /// # Errors
    ///
    /// A split that the set does not have, another number of rows, another shape or number of classes, other pixels or
    /// labels than the official ones (or the same in another order).
    pub fn verify(&self, info: &DatasetInfo) -> Result<Verdict> {
        let what = |what: &str| format!("{what} of `{}`, {} split", info.name, self.split());
        let differs = |field: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            Err(Error::invalid("verify", what(field), expected, found))
        };
        let Some(split) = info.split(self.split()) else {
            return differs("rows", &"none: there is no such split", &self.len());
        };
        if self.len() != split.rows {
            return differs("rows", &split.rows, &self.len());
        }
        if self.shape() != info.shape {
            return differs("images", &info.shape, &self.shape());
        }
        if self.is_labelled() && self.classes() != info.classes {
            return differs("classes", &info.classes, &self.classes());
        }
        let Some(Digests { pixels, labels }) = split.digests else { return Ok(Verdict::Plausible) };
        let found = self.pixels_sha256()?;
        if found != pixels {
            return differs("SHA-256 of the pixels", &pixels, &found);
        }
        let found = self.labels_sha256();
        if found != labels {
            return differs("SHA-256 of the labels", &labels, &found);
        }
        Ok(Verdict::Verified)
    }

    /// SHA-256, in hex, of the pixels of all rows as `u8 [N, C, H, W]`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read any more.
    pub fn pixels_sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        self.store().hash(&mut hash)?;
        Ok(hex(hash))
    }

    /// SHA-256, in hex, of the labels of all rows: a byte each, or four in little endian where there are more than 256
    /// classes.
    pub fn labels_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for label in self.labels() {
            let bytes = label.to_le_bytes();
            hash.update(if self.classes() <= 256 { &bytes[..1] } else { &bytes[..] });
        }
        hex(hash)
    }
}

/// A digest as records have it.
pub(crate) fn hex(hash: Sha256) -> String {
    let bytes: [u8; 32] = hash.finalize().into();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
