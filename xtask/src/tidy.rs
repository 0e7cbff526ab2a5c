//! `cargo xtask tidy`: the arrows of ARCHITECTURE.md, proved from `cargo metadata`, and rules for sources.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Which crates of the workspace each crate may depend on. A new arrow is a line in this table.
const ALLOWED: &[(&str, &[&str])] = &[
    ("retort-transport", &[]),
    ("retort-kernels", &[]),
    ("retort-nn", &["retort-kernels"]),
    ("retort-hub", &[]),
    ("retort-models", &["retort-hub", "retort-kernels", "retort-nn"]),
    ("retort-datasets", &["retort-hub"]),
    ("retort-losses", &["retort-kernels", "retort-nn", "retort-transport"]),
    ("retort-metrics", &["retort-transport"]),
    ("retort-trainers", &["retort-nn", "retort-models", "retort-datasets", "retort-losses", "retort-metrics"]),
    (
        "retort-lab",
        &[
            "retort-hub",
            "retort-kernels",
            "retort-nn",
            "retort-models",
            "retort-datasets",
            "retort-losses",
            "retort-metrics",
            "retort-trainers",
        ],
    ),
    ("retort", LIBRARIES),
    // For development only: it may see everything, nobody may ship it.
    ("retort-testkit", LIBRARIES),
    ("xtask", &[]),
];

/// Every crate that a user may add on its own.
const LIBRARIES: &[&str] = &[
    "retort-transport",
    "retort-hub",
    "retort-kernels",
    "retort-nn",
    "retort-models",
    "retort-datasets",
    "retort-losses",
    "retort-metrics",
    "retort-trainers",
];

/// Crates that must not know a tensor library.
const WITHOUT_TENSORS: [&str; 3] = ["retort-transport", "retort-hub", "xtask"];

/// The only crate that may contain `unsafe`.
const UNSAFE_CRATE: &str = "retort-kernels";

pub(crate) fn run(root: &Path) -> ExitCode {
    let metadata = super::cargo(&["metadata", "--format-version", "1", "--no-deps"]).output();
    let metadata: Value = match metadata.map(|output| serde_json::from_slice(&output.stdout)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => return super::say(&format!("cargo metadata: {error}"), ExitCode::FAILURE),
        Err(error) => return super::say(&format!("cannot start cargo: {error}"), ExitCode::FAILURE),
    };
    let mut problems = arrows(&metadata);
    problems.extend(sources(root));
    problems.sort();
    for problem in &problems {
        eprintln!("{problem}");
    }
    let crates = metadata["packages"].as_array().map_or(0, Vec::len);
    if problems.is_empty() {
        super::say(&format!("tidy: {crates} crates, all arrows allowed"), ExitCode::SUCCESS)
    } else {
        super::say(&format!("tidy: {} problem(s)", problems.len()), ExitCode::FAILURE)
    }
}

/// Arrows that the table does not allow. Dependencies of tests are free, except that nothing ships the test kit.
fn arrows(metadata: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let empty = Vec::new();
    for package in metadata["packages"].as_array().unwrap_or(&empty) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("{name}: not in the table of xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap_or(&empty) {
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let target = dependency["name"].as_str().unwrap_or_default();
            let ours = ALLOWED.iter().any(|(known, _)| *known == target);
            if ours && !allowed.contains(&target) {
                problems.push(format!("{name} -> {target}: this arrow is not allowed (xtask/src/tidy.rs)"));
            }
            if target.starts_with("candle") && WITHOUT_TENSORS.contains(&name) {
                problems.push(format!("{name} -> {target}: this crate must not know a tensor library"));
            }
        }
    }
    problems
}

/// `unsafe` outside the kernels; library crates that do not deny missing documentation.
fn sources(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for folder in children(&root.join("crates")) {
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let library = fs::read_to_string(folder.join("src/lib.rs")).unwrap_or_default();
        if !library.contains("#![deny(missing_docs)]") {
            problems.push(format!("crates/{name}/src/lib.rs: lacks #![deny(missing_docs)]"));
        }
        if name == UNSAFE_CRATE {
            continue;
        }
        for file in rust_files(&folder) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| has_unsafe(line)) {
                let file = file.strip_prefix(root).unwrap_or(&file).display();
                problems.push(format!("{file}:{}: `unsafe` outside {UNSAFE_CRATE}: {}", number + 1, line.trim()));
            }
        }
    }
    problems
}

fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe")
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    children(folder)
        .into_iter()
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Value {
        json!({ "packages": [{ "name": name, "dependencies": [{ "name": dependency, "kind": kind }] }] })
    }

    #[test]
    fn forbidden_arrows_are_found() {
        assert_eq!(arrows(&package("retort-losses", "retort-models", None)).len(), 1);
        assert_eq!(arrows(&package("retort-losses", "retort-testkit", None)).len(), 1);
        assert_eq!(arrows(&package("retort-transport", "candle-core", None)).len(), 1);
        assert_eq!(arrows(&package("retort-new", "serde", None)).len(), 1);
        assert_eq!(arrows(&package("retort-losses", "retort-models", Some("build"))).len(), 1);
    }

    #[test]
    fn allowed_arrows_pass() {
        assert!(arrows(&package("retort-losses", "retort-nn", None)).is_empty());
        assert!(arrows(&package("retort-losses", "retort-testkit", Some("dev"))).is_empty());
        assert!(arrows(&package("retort-models", "candle-core", None)).is_empty());
    }

    #[test]
    fn the_word_is_found_in_code_only() {
        assert!(has_unsafe("let x = unsafe { y };"));
        assert!(!has_unsafe("// unsafe is not allowed here"));
        assert!(!has_unsafe("let unsafe_count = 3;"));
    }
}
