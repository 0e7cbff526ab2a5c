//! What a step of each method costs beside a step of plain training, as it was measured.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The committed measurement, which `bench costs` writes.
const MEASURED: &str = include_str!("../costs.json");

/// Costs of methods on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Costs {
    /// Under what circumstances, in words.
    pub(crate) about: String,
    /// By method or system.
    pub(crate) methods: BTreeMap<String, Cost>,
}

/// A step of a method relative to a step of cross-entropy alone with the same student and number of anchors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cost {
    /// Ratio of the seconds.
    pub(crate) time: f64,
    /// Ratio of the peaks of resident memory of a process that does nothing else.
    pub(crate) memory: f64,
    /// Trainable numbers beside the student's own.
    pub(crate) parameters: i64,
}

impl Costs {
    /// Those that this program was built with.
    ///
    /// # Errors
    ///
    /// Never for a program whose tests passed.
    pub(crate) fn measured() -> Result<Self> {
        serde_json::from_str(MEASURED).map_err(|e| Error::Failed(format!("costs.json: {e}")))
    }

    /// Those of a file; none where there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|e| Error::file(path, e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file(path, format!("cannot read: {e}"))),
        }
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} time, {:.2} memory", self.time, self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_is_measured() {
        let costs = Costs::measured().unwrap();
        // What the others are measured against, an optimiser, and the first phase of `ft`.
        let apart = ["ce", "dot", "ft-paraphraser"].map(String::from);
        let known: BTreeSet<String> = crate::methods::rows().iter().map(|row| row.id.clone()).collect();
        let known: BTreeSet<String> = known.into_iter().filter(|id| !apart.contains(id)).collect();
        assert_eq!(known, costs.methods.keys().cloned().collect(), "`cargo xtask bench costs --save` measures");
        for (id, cost) in &costs.methods {
            assert!(cost.time > 0.0 && cost.memory > 0.0, "{id}: {cost:?}");
        }
    }
}
