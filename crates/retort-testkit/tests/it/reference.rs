//! The stored reference cases, where they are at hand.

use retort_testkit::golden;
use std::path::PathBuf;

/// Runs every case below `RETORT_GOLDEN`; without that variable nothing is checked here.
#[test]
fn reference_cases() {
    let Some(root) = std::env::var_os("RETORT_GOLDEN") else {
        eprintln!("not run: RETORT_GOLDEN names no directory of golden cases");
        return;
    };
    let report = golden::run(&[PathBuf::from(root)]).unwrap();
    assert!(report.is_success(true), "{}", report.text());
}
