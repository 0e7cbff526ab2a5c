//! Records are the same bits whatever the threads and whenever the process was killed.

use super::{Lab, reproducible};
use retort_lab::plan::NUMERICS;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn the_table_is_printed_and_left_in_three_forms() {
    let lab = Lab::new();
    let text = lab.ok(&["reproduce", "tiny"]);
    for part in
        ["A tiny table", "resnet14 -> resnet8", "teacher", "cross-entropy", "CRD + KD", "agreement %", "vs baseline"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let folder = lab.path("runs/tables/tiny-quick");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert!(read("table.md").contains("| CRD + KD | 2 |"));
    assert!(read("table.tex").contains("\\begin{tabular}"));
    let csv = read("table.csv");
    assert_eq!(csv.lines().count(), 4, "heading, teacher, two methods: {csv}");
    assert!(csv.lines().nth(2).unwrap().starts_with("resnet14,resnet8,ce,2,2,"));
    // Nothing is run again, and the records alone give the same table.
    let before = fs::metadata(lab.path("runs/records")).unwrap().modified().unwrap();
    assert_eq!(lab.ok(&["reproduce", "tiny"]), text);
    assert_eq!(fs::metadata(lab.path("runs/records")).unwrap().modified().unwrap(), before);
    let rendered = lab.ok(&["reproduce", "tiny", "--from", "runs/records"]);
    assert!(text.starts_with(rendered.trim_end()), "{rendered}");
    assert!(
        fs::read_dir(lab.path("runs/checkpoints")).unwrap().next().is_none(),
        "checkpoints of finished runs are removed"
    );
}

#[test]
fn one_and_two_threads_and_a_narrowed_selection_give_the_same_bits() {
    let lab = Lab::new();
    lab.ok(&["reproduce", "tiny", "--out", "one", "--threads", "1", "--jobs", "1"]);
    lab.ok(&["reproduce", "tiny", "--out", "two", "--threads", "2", "--jobs", "1"]);
    let one = reproducible(&lab.path("one/records"));
    assert_eq!(one.len(), 5);
    assert_eq!(one, reproducible(&lab.path("two/records")));
    lab.ok(&["reproduce", "tiny", "--out", "few", "--seeds", "1", "--only", "crd+kd"]);
    let few = reproducible(&lab.path("few/records"));
    assert_eq!(few.len(), 3, "teacher, baseline, the method");
    assert!(few.iter().all(|record| one.contains(record)));
}

#[test]
fn a_killed_command_goes_on_where_it_was() {
    let whole = Lab::new();
    whole.ok(&["reproduce", "tiny", "--jobs", "1"]);
    let expected = reproducible(&whole.path("runs/records"));

    let lab = Lab::new();
    let mut kills = 0;
    // Killed again and again, each time as soon as another checkpoint or record has appeared.
    loop {
        let started = Instant::now();
        let mut child = lab
            .command(&["reproduce", "tiny", "--jobs", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let before = marks(&lab);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if marks(&lab) != before && kills < 6 {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                break None;
            }
            assert!(started.elapsed() < Duration::from_secs(300), "the command hangs");
            std::thread::sleep(Duration::from_millis(1));
        };
        if let Some(status) = status {
            assert!(status.success());
            break;
        }
    }
    assert!(kills >= 3, "the command was too fast to be killed");
    assert_eq!(reproducible(&lab.path("runs/records")), expected);
}

/// Names and times of all files, to see that something was saved.
fn marks(lab: &Lab) -> Vec<(String, std::time::SystemTime)> {
    let mut marks = Vec::new();
    for folder in ["runs/checkpoints", "runs/records"] {
        for entry in fs::read_dir(lab.path(folder)).into_iter().flatten().flatten() {
            if let Ok(modified) = entry.metadata().and_then(|m| m.modified()) {
                marks.push((entry.file_name().to_string_lossy().into_owned(), modified));
            }
        }
    }
    marks.sort();
    marks
}

#[test]
fn one_run_of_a_plan_and_a_record_run_again() {
    let lab = Lab::new();
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    assert_eq!(plan.lines().count(), 5);
    let id = plan.lines().last().unwrap().split_whitespace().next().unwrap();
    let text = lab.ok(&["train", "experiments/tiny.toml", "--run", id]);
    assert!(text.contains(id) && text.contains("\"accuracy\""), "{text}");

    let record = lab.path("runs/records").join(format!("{id}.jsonl"));
    let again = lab.ok(&["rerun", record.to_str().unwrap(), "--out", "again"]);
    assert!(again.contains("agrees"), "{again}");

    // A record that says something else is found out, also where its own run lies.
    let text = fs::read_to_string(&record).unwrap();
    let changed = text.replacen("\"accuracy\":", "\"accuracy\":1", 1);
    assert_ne!(text, changed);
    fs::write(&record, changed).unwrap();
    for out in ["runs", "again"] {
        let output = lab.run(&["rerun", record.to_str().unwrap(), "--out", out]);
        assert_eq!(output.status.code(), Some(1), "{out}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("differ in line"));
    }
    let old = text.replace(&format!("\"numerics\":{NUMERICS}"), "\"numerics\":0");
    assert_ne!(text, old);
    fs::write(&record, old).unwrap();
    assert!(lab.refused(&["rerun", record.to_str().unwrap()]).contains(id));
    let other = record.with_file_name("0123456789ab.jsonl");
    fs::write(&other, text).unwrap();
    assert!(lab.refused(&["rerun", other.to_str().unwrap()]).contains("must be called"));
}

#[test]
fn published_numbers_are_shown_under_their_own_protocol_only() {
    let manifest =
        super::TINY.replacen("label = \"cross-entropy\"", "label = \"cross-entropy\"\npublished = \"student\"", 1);
    let lab = Lab::with(&format!("{manifest}{}{}", super::PUBLISHED, super::EVEN));
    let row = r#"{"method":"student","teacher":"resnet14","student":"resnet8","value":12.34,"source":"a test"}"#;
    let json = format!(r#"{{"paper":"P","table":"T","dataset":"D","rows":[{row}]}}"#);
    fs::write(lab.path("experiments/published.json"), json).unwrap();
    let csv = |profile: &str| {
        lab.ok(&["reproduce", "tiny", "--profile", profile, "--only", "ce", "--seeds", "1"]);
        fs::read_to_string(lab.path(&format!("runs/tables/tiny-{profile}/table.csv"))).unwrap()
    };
    let even = csv("even");
    assert!(even.contains("12.340000") && !even.contains("other protocol"), "{even}");
    let quick = csv("quick");
    assert!(!quick.contains("12.34") && quick.contains("other protocol"), "{quick}");
    // A pair that starts at another rate than the published student.
    let manifest = fs::read_to_string(lab.path("experiments/tiny.toml")).unwrap();
    let faster = super::EVEN.replacen("student = \"resnet8\" }", "student = \"resnet8\", lr = 0.06 }", 1);
    fs::write(lab.path("experiments/tiny.toml"), manifest.replacen(super::EVEN, &faster, 1)).unwrap();
    let faster = csv("even");
    assert!(!faster.contains("12.34") && faster.contains("other protocol"), "{faster}");
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    // A rate that sends the loss to infinity; the other rows and the table still come.
    let lab = Lab::with(&super::TINY.replacen(
        "{ method = \"kd\", temperature = 4.0 }",
        "{ method = \"kd\", weight = 1e300 }",
        1,
    ));
    let output = lab.run(&["reproduce", "tiny", "--seeds", "1"]);
    let (table, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(table.contains("0 of 1 finished") && table.contains("cross-entropy"), "{table}");
    assert!(errors.contains("1 run(s) failed") && errors.contains("epoch"), "{errors}");
    assert!(errors.contains("term `kd`") && errors.contains("times its weight `1"), "{errors}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_same_command_goes_on() {
    let lab = Lab::new();
    let mut child = lab.command(&["reproduce", "tiny"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while marks(&lab).is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    lab.ok(&["reproduce", "tiny"]);
    let whole = Lab::new();
    whole.ok(&["reproduce", "tiny"]);
    assert_eq!(reproducible(&lab.path("runs/records")), reproducible(&whole.path("runs/records")));
}

#[test]
fn a_damaged_teacher_is_found_out() {
    let lab = Lab::new();
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    let teacher = plan.split_whitespace().next().unwrap();
    lab.ok(&["train", "experiments/tiny.toml", "--run", teacher]);
    let path = lab.path("runs/weights").join(format!("{teacher}.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    assert!(lab.refused(&["reproduce", "tiny"]).contains("digest"));
    fs::write(&path, &bytes[..last / 2]).unwrap();
    assert!(lab.refused(&["reproduce", "tiny"]).contains(&format!("{teacher}.safetensors")));
}

#[test]
fn lists_come_from_the_registries() {
    let lab = Lab::new();
    for (what, name) in
        [("methods", "crd"), ("models", "resnet8"), ("datasets", "fashion-mnist-10k"), ("tables", "tiny")]
    {
        assert!(lab.ok(&["list", what]).contains(name));
        let json: serde_json::Value = serde_json::from_str(&lab.ok(&["list", what, "--json"])).unwrap();
        let found = json.as_array().unwrap().iter().any(|e| e["id"] == name || e["name"] == name);
        assert!(found, "{what}: {json}");
    }
}
