//! The program `golden`: last line, exit codes, the JSON file.

use crate::support::Sample;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

fn golden(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_golden")).args(arguments).current_dir(folder).output().unwrap()
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_string()
}

#[test]
fn exit_codes_and_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    Sample::ce("right").write(&root.join("good"));
    let mut wrong = Sample::ce("wrong");
    wrong.set("grad.logits", 3, 2.0);
    wrong.write(&root.join("bad"));
    let mut unknown = Sample::ce("unknown");
    unknown.json["loss"] = json!("no-such-method");
    unknown.write(&root.join("new"));
    std::fs::create_dir(root.join("empty")).unwrap();

    for (arguments, code, line) in [
        (vec!["good"], 0, "1 passed, 0 failed, 0 unsupported"),
        (vec!["bad"], 1, "0 passed, 1 failed, 0 unsupported"),
        (vec!["good", "bad", "new"], 1, "1 passed, 1 failed, 1 unsupported"),
        (vec!["good", "new"], 1, "1 passed, 0 failed, 1 unsupported"),
        (vec!["good", "new", "--allow-unsupported"], 0, "1 passed, 0 failed, 1 unsupported"),
        (vec!["new", "--allow-unsupported"], 1, "0 passed, 0 failed, 1 unsupported"),
        (vec!["empty"], 1, "0 passed, 0 failed, 0 unsupported"),
    ] {
        let output = golden(&arguments, root);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(last_line(&output), line, "{arguments:?}");
    }
    for arguments in [vec!["absent"], vec!["good", "--unknown"], vec![], vec!["good", "--json"]] {
        let output = golden(&arguments, root);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    let text = String::from_utf8(golden(&["bad", "new"], root).stdout).unwrap();
    assert!(text.contains("grad.logits: worst at [1, 0]: got") && text.contains("expected 2e0"), "{text}");
    assert!(text.contains("UNSUPPORTED no-such-method: 1 case"), "{text}");
    assert_eq!(text.lines().count(), 3, "one line a failed case, one an unsupported id, the summary: {text}");
}

#[test]
fn the_json_file_holds_every_case() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    Sample::ce("right").write(&root.join("cases"));
    let mut wrong = Sample::ce("wrong");
    wrong.set("out.loss", 0, 2.0);
    wrong.write(&root.join("cases"));
    let output = golden(&["cases", "--json", "result.json"], root);
    assert_eq!(output.status.code(), Some(1));
    let result: Value = serde_json::from_str(&std::fs::read_to_string(root.join("result.json")).unwrap()).unwrap();
    assert_eq!((&result["passed"], &result["failed"], &result["unsupported"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(
        result["cases"][0],
        json!({"name": "right", "id": "ce", "family": "output", "status": "passed", "detail": ""})
    );
    assert_eq!(result["cases"][1]["status"], "failed");
    assert!(result["cases"][1]["detail"].as_str().unwrap().contains("out.loss"));
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 2, "no temporary file may stay");
}
