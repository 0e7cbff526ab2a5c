//! The pages of the methods and their table.

use super::Lab;
use std::fs;
use std::path::PathBuf;

fn workspace(folder: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder).display().to_string()
}

/// The message of a check that must fail.
fn fails(lab: &Lab) -> String {
    let output = lab.run(&["docs", "--check"]);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_committed_pages_are_current_and_complete() {
    let [pages, datasets, experiments] = ["docs/methods", "docs/datasets", "experiments"].map(workspace);
    let folders = ["--pages", &pages, "--dataset-pages", &datasets, "--experiments", &experiments];
    let text = Lab::new().ok(&[&["docs", "--check"][..], &folders].concat());
    assert_eq!(text, "every method and every data set has its page\n");
}

#[test]
fn generated_parts_are_written_and_hand_written_ones_kept() {
    let lab = Lab::new();
    let text = fails(&lab);
    assert!(text.contains("kd.md: missing") && text.contains("README.md: missing"), "{text}");
    assert!(!lab.path("docs").exists());
    // The pages are written, and what only a person can write is asked for.
    let output = lab.run(&["docs"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("crd.md: section `Idea` is missing or empty"), "{text}");
    for entry in fs::read_dir(lab.path("docs/methods")).unwrap() {
        let path = entry.unwrap().path();
        let page = fs::read_to_string(&path).unwrap();
        let (upper, lower) = page.split_once("generated: end").unwrap();
        let filled: String =
            lower.lines().map(|l| format!("{l}\n{}", if l.starts_with("## ") { "\ntext\n" } else { "" })).collect();
        fs::write(&path, format!("{upper}generated: end{filled}")).unwrap();
    }
    assert_eq!(lab.ok(&["docs", "--check"]), "every method and every data set has its page\n");
    let kd = lab.path("docs/methods/kd.md");
    let page = fs::read_to_string(&kd).unwrap();
    for part in ["# Knowledge distillation", "arxiv.org/abs/1503.02531", "| `temperature` | `4.0` |", "rows `crd+kd`"] {
        assert!(page.contains(part), "{part} in {page}");
    }
    // A stale upper part is found and mended, the lower part stays.
    let mended = page.replace("\n## Cost\n", "\n## Cost\n\nNothing.\n");
    fs::write(&kd, mended.replace("`4.0`", "`5.0`")).unwrap();
    assert!(fails(&lab).contains("kd.md: the generated part is stale"));
    assert!(lab.ok(&["docs"]).contains("kd.md"));
    assert_eq!(fs::read_to_string(&kd).unwrap(), mended);
    // A page without a method, and one without markers.
    fs::write(lab.path("docs/methods/kdd.md"), "text").unwrap();
    assert!(fails(&lab).contains("kdd.md: no method of this name"));
    fs::write(&kd, "text").unwrap();
    assert!(lab.refused(&["docs"]).contains("kd.md: expected `<!-- generated: begin -->`"));
}

#[test]
fn the_table_of_methods_has_phases_and_trainers() {
    let lab = Lab::new();
    let text = lab.ok(&["list", "methods"]);
    for part in ["| kd ", "| ft-paraphraser ", "| dot ", "0.1 / 0.9", "extra phase", "code base"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&lab.ok(&["list", "methods", "--json"])).unwrap();
    let row = |id: &str| json.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap().clone();
    assert_eq!(row("kd")["default_weight"], "0.1 / 0.9");
    assert_eq!(row("kd")["arxiv"], "1503.02531");
    assert_eq!(row("dot")["family"], "trainer");
    assert_eq!(json.as_array().unwrap().len(), text.lines().count() - 2);
}
