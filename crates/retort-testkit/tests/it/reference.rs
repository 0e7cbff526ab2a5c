//! The stored reference cases, where they are at hand.

use retort_testkit::golden;
use std::path::PathBuf;

/// Runs every case below `RETORT_GOLDEN`.
#[test]
#[ignore = "compares with stored numbers: set RETORT_GOLDEN and add `-- --ignored`, or run `cargo xtask golden`"]
fn reference_cases() {
    let root = std::env::var_os("RETORT_GOLDEN").expect("RETORT_GOLDEN names a directory of golden cases");
    let report = golden::run(&[PathBuf::from(root)]).unwrap();
    assert!(report.is_success(true), "{}", report.text());
}
