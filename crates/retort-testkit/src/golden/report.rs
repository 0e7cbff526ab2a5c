//! The result of a run over many cases.

use super::{Case, adapters};
use crate::Error;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every expected tensor was reproduced.
    Passed,
    /// A tensor differs or is missing, the method refused its inputs, or a file is broken.
    Failed,
    /// The project does not know the method or the architecture.
    Unsupported,
}

/// The result of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Name of the case.
    pub name: String,
    /// Method id, `?` if the file does not say.
    pub id: String,
    /// Family, `?` if the file does not say.
    pub family: String,
    /// How it ended.
    pub status: Status,
    /// Empty for a passed case, else what went wrong.
    pub detail: String,
    /// The JSON file.
    #[serde(skip)]
    pub path: PathBuf,
}

impl CaseReport {
    pub(crate) fn new(case: &Case, status: Status, detail: String) -> Self {
        Self {
            name: case.name().to_string(),
            id: case.id().to_string(),
            family: case.family().to_string(),
            status,
            detail,
            path: case.path().to_path_buf(),
        }
    }

    /// A case whose files cannot be read.
    pub(crate) fn broken(path: &Path, json: Option<&Value>, error: &Error) -> Self {
        let text = |field: &str| json.and_then(|json| json.get(field)?.as_str()).map(str::to_string);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_string();
        Self {
            name: text("name").unwrap_or(stem),
            id: text("loss").unwrap_or_else(|| "?".to_string()),
            family: text("family").unwrap_or_else(|| "?".to_string()),
            status: Status::Failed,
            detail: error.to_string(),
            path: path.to_path_buf(),
        }
    }
}

/// The results of all cases, in the order of their paths.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One entry a case.
    pub cases: Vec<CaseReport>,
    /// Given directories in which there was no case: never a success.
    pub empty: Vec<PathBuf>,
}

impl Report {
    /// Number of cases that ended like this.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.cases.iter().filter(|case| case.status == status).count()
    }

    /// Ids that have an adapter and cases, but not one case that passed.
    #[must_use]
    pub fn ids_without_a_pass(&self) -> Vec<&str> {
        let mut passed: BTreeMap<&str, bool> = BTreeMap::new();
        for case in self.cases.iter().filter(|case| adapters::adapter(&case.id).is_some()) {
            *passed.entry(&case.id).or_default() |= case.status == Status::Passed;
        }
        passed.into_iter().filter(|(_, passed)| !passed).map(|(id, _)| id).collect()
    }

    /// Whether the run is a success.
    ///
    /// There must be cases in every directory and at least one must pass, none may fail and none may be unsupported.
    /// With `allow_unsupported` some may be unsupported, but every id with an adapter needs a case that passed.
    #[must_use]
    pub fn is_success(&self, allow_unsupported: bool) -> bool {
        let unsupported_is_fine = match allow_unsupported {
            true => self.ids_without_a_pass().is_empty(),
            false => self.count(Status::Unsupported) == 0,
        };
        self.empty.is_empty()
            && self.count(Status::Passed) > 0
            && self.count(Status::Failed) == 0
            && unsupported_is_fine
    }

    /// `N passed, M failed, K unsupported`.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} unsupported",
            self.count(Status::Passed),
            self.count(Status::Failed),
            self.count(Status::Unsupported)
        )
    }

    /// A line for each failed case, a line for each unsupported id, a line for each empty directory, the summary.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut unsupported: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for case in &self.cases {
            match case.status {
                Status::Passed => {}
                Status::Failed => {
                    let detail = case.detail.replace('\n', " ");
                    let _ = writeln!(out, "FAILED {} ({}): {detail}", case.path.display(), case.id);
                }
                Status::Unsupported => *unsupported.entry(&case.id).or_default().entry(&case.detail).or_default() += 1,
            }
        }
        for (id, reasons) in unsupported {
            let count: usize = reasons.values().sum();
            let reasons: Vec<&str> = reasons.into_keys().collect();
            let noun = if count == 1 { "case" } else { "cases" };
            let _ = writeln!(out, "UNSUPPORTED {id}: {count} {noun} ({})", reasons.join("; "));
        }
        for folder in &self.empty {
            let _ = writeln!(out, "EMPTY {}: no golden case found", folder.display());
        }
        out + &self.summary()
    }

    /// `{passed, failed, unsupported, cases: [{name, id, family, status, detail}]}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "passed": self.count(Status::Passed),
            "failed": self.count(Status::Failed),
            "unsupported": self.count(Status::Unsupported),
            "cases": self.cases,
        })
    }
}
