//! The committed manifests are valid, and the committed results are what their records say.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_committed_manifest_is_valid() {
    let folder = workspace().join("experiments");
    let names = retort_lab::manifest::tables(&folder).unwrap();
    assert!(!names.is_empty());
    for name in names {
        retort_lab::manifest::Loaded::table(&folder, &name).unwrap();
    }
}

#[test]
fn the_committed_table_is_rendered_from_the_committed_records() {
    let results = workspace().join("docs/results/table1-quick");
    let output = Command::new(env!("CARGO_BIN_EXE_retort"))
        .current_dir(workspace())
        .args(["reproduce", "table1", "--profile", "quick", "--from"])
        .arg(results.join("records"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8(output.stdout).unwrap();
    let committed = fs::read_to_string(results.join("terminal.txt")).unwrap();
    assert!(
        committed.starts_with(rendered.trim_end()),
        "rendered from the records:\n{rendered}\ncommitted:\n{committed}"
    );
}
