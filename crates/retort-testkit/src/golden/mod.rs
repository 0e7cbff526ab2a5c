//! Golden cases: numbers of the reference implementations that the project must reproduce.
//!
//! A case is a pair of files, `NAME.json` and `NAME.safetensors`.
//! [`run`] walks directories, computes every case through the [`adapters`] and compares.

pub mod adapters;
mod case;
mod formula;
mod outcome;
mod report;
mod run;

pub use case::{Case, Tolerance};
pub use outcome::{Mismatch, Outcome, compare};
pub use report::{CaseReport, Report, Status};
pub use run::Run;

use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// How many mismatches of one case are written out.
const SHOWN: usize = 3;

/// candle walks the graph recursively: a deep network needs more than the 2 MiB of a default worker.
const STACK_BYTES: usize = 64 << 20;

/// Runs every case below the given directories (a single JSON file is fine too) in parallel.
///
/// The report is in the order of the paths and does not depend on the number of threads.
///
/// # Errors
///
/// A directory that does not exist or cannot be read; a case that fails is no error, it is in the report.
pub fn run(roots: &[PathBuf]) -> Result<Report> {
    let mut files = BTreeSet::new();
    let mut found = Vec::new();
    for root in roots {
        let below = json_files(root)?;
        found.push((root, below.clone()));
        files.extend(below);
    }
    let files: Vec<PathBuf> = files.into_iter().collect();
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).build();
    let pool = pool.map_err(|error| Error::invalid("golden", error.to_string()))?;
    let reports: Vec<Option<CaseReport>> =
        pool.install(|| files.par_iter().with_max_len(1).map(|path| run_file(path)).collect());
    let cases: Vec<(PathBuf, CaseReport)> = files.into_iter().zip(reports).filter_map(|(p, r)| Some((p, r?))).collect();
    let empty = found
        .into_iter()
        .filter(|(_, below)| !cases.iter().any(|(path, _)| below.contains(path)))
        .map(|(root, _)| root.clone())
        .collect();
    Ok(Report { cases: cases.into_iter().map(|(_, report)| report).collect(), empty })
}

/// All `*.json` at or below `root`.
fn json_files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut visited = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    if std::fs::metadata(root).map_err(|error| Error::file(root, error))?.is_file() {
        return Ok(BTreeSet::from([root.to_path_buf()]));
    }
    while let Some(folder) = folders.pop() {
        // A link back to a folder above must not be followed for ever.
        if !visited.insert(folder.canonicalize().map_err(|error| Error::file(&folder, error))?) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(|error| Error::file(&folder, error))? {
            let path = entry.map_err(|error| Error::file(&folder, error))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "json") {
                files.insert(path);
            }
        }
    }
    Ok(files)
}

/// Runs one file; `None` if it is JSON but no golden case (it has no field `loss`).
#[must_use]
pub fn run_file(path: &Path) -> Option<CaseReport> {
    let json = match case::read_json(path) {
        Ok(json) => json,
        Err(error) => return Some(CaseReport::broken(path, None, &error)),
    };
    json.get("loss")?;
    Some(match Case::from_value(path, &json) {
        Ok(case) => run_case(&case),
        Err(error) => CaseReport::broken(path, Some(&json), &error),
    })
}

/// Computes one case and compares; a panic of the code under test fails the case only.
#[must_use]
pub fn run_case(case: &Case) -> CaseReport {
    let Some(adapter) = adapters::adapter(case.id()) else {
        return CaseReport::new(case, Status::Unsupported, "no adapter for this id".to_string());
    };
    let work = || -> Result<Vec<Mismatch>> {
        let mut run = Run::new(case);
        adapter(&mut run)?;
        compare(case, &run.finish())
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(mismatches)) if mismatches.is_empty() => CaseReport::new(case, Status::Passed, String::new()),
        Ok(Ok(mismatches)) => CaseReport::new(case, Status::Failed, describe(&mismatches)),
        Ok(Err(Error::Unsupported(reason))) => CaseReport::new(case, Status::Unsupported, reason),
        Ok(Err(error)) => CaseReport::new(case, Status::Failed, error.to_string()),
        Err(panic) => CaseReport::new(case, Status::Failed, format!("panicked: {}", panic_message(panic.as_ref()))),
    }
}

fn describe(mismatches: &[Mismatch]) -> String {
    let mut parts: Vec<String> = mismatches.iter().take(SHOWN).map(ToString::to_string).collect();
    if mismatches.len() > SHOWN {
        let rest: Vec<&str> = mismatches[SHOWN..].iter().map(|m| m.tensor.as_str()).collect();
        parts.push(format!("and {} more tensors: {}", rest.len(), rest.join(", ")));
    }
    parts.join(" | ")
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown reason")
}
