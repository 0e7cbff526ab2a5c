//! The runner as a library.

use crate::support::{Sample, integers, reals};
use candle_core::{Device, Tensor};
use retort_testkit::golden::{self, Case, CaseReport, Outcome, Status};
use serde_json::json;
use std::fs;

fn run_one(sample: &Sample) -> CaseReport {
    let folder = tempfile::tempdir().unwrap();
    golden::run_file(&sample.write(folder.path())).unwrap()
}

fn fails_with(sample: &Sample, part: &str) {
    let report = run_one(sample);
    assert_eq!(report.status, Status::Failed, "{report:?}");
    assert!(report.detail.contains(part), "`{part}` is not in `{}`", report.detail);
}

#[test]
fn a_right_case_passes() {
    let report = run_one(&Sample::ce("right"));
    assert_eq!(report.status, Status::Passed, "{}", report.detail);
}

#[test]
fn a_wrong_value_fails_at_its_index() {
    let mut sample = Sample::ce("wrong");
    sample.set("grad.logits", 4, 7.5);
    fails_with(&sample, "grad.logits: worst at [1, 1]: got");
    fails_with(&sample, "expected 7.5e0");
    let mut sample = Sample::ce("wrong-loss");
    sample.set("out.loss", 0, 0.0);
    fails_with(&sample, "out.loss: worst at [0]");
}

#[test]
fn the_tolerance_of_a_tensor_replaces_the_default() {
    let mut sample = Sample::ce("tolerance");
    let loss: Vec<f32> = sample.tensors["out.loss"].to_vec1().unwrap();
    sample.set("out.loss", 0, loss[0] + 0.05);
    fails_with(&sample, "out.loss");
    sample.json["tolerances"] = json!({"out.loss": {"atol": 0.1, "rtol": 0.0}});
    assert_eq!(run_one(&sample).status, Status::Passed);
    sample.json["atol"] = json!(1.0);
    sample.json["tolerances"] = json!({"out.loss": {"atol": 1e-3, "rtol": 0.0}});
    fails_with(&sample, "out.loss");
}

#[test]
fn every_expected_tensor_must_be_produced() {
    for name in ["out.stage0", "grad.labels", "grad.param.weight"] {
        let mut sample = Sample::ce("missing");
        sample.tensors.insert(name.to_string(), reals(&[0.0], &[1]));
        fails_with(&sample, &format!("{name}: was not produced"));
    }
}

#[test]
fn shapes_must_agree() {
    let mut sample = Sample::ce("shape");
    sample.tensors.insert("out.loss".to_string(), reals(&[1.0], &[1, 1]));
    fails_with(&sample, "got shape [1], expected [1, 1]");
}

#[test]
fn nan_fails_on_either_side() {
    let mut sample = Sample::ce("nan-in");
    sample.set("in.logits", 0, f32::NAN);
    fails_with(&sample, "out.loss: worst at [0]: got NaN");
    let mut sample = Sample::ce("nan-out");
    sample.set("grad.logits", 5, f32::NAN);
    fails_with(&sample, "expected NaN");
    let mut sample = Sample::ce("inf-out");
    sample.set("out.loss", 0, f32::INFINITY);
    fails_with(&sample, "expected inf");
}

#[test]
fn unknown_methods_are_unsupported() {
    let mut sample = Sample::ce("unknown");
    sample.json["loss"] = json!("no-such-method");
    assert_eq!(run_one(&sample).status, Status::Unsupported);
}

#[test]
fn unknown_architectures_are_unsupported() {
    let mut sample = Sample::ce("architecture");
    sample.json["loss"] = json!("model-forward");
    sample.json["family"] = json!("model");
    sample.json["build"] = json!({"model": "no-such-network", "num_classes": 10});
    sample.json["params"] = json!({"mode": "eval", "input": [2, 3, 32, 32]});
    let report = run_one(&sample);
    assert_eq!(report.status, Status::Unsupported, "{report:?}");
    assert!(report.detail.contains("no-such-network"), "{report:?}");
}

#[test]
fn broken_files_fail_and_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = Sample::ce("broken").write(folder.path());
    let tensors = path.with_extension("safetensors");
    let whole = fs::read(&tensors).unwrap();
    let detail = || {
        let report = golden::run_file(&path).unwrap();
        assert_eq!(report.status, Status::Failed);
        report.detail
    };
    for length in [0, 7, 40, whole.len() - 1] {
        fs::write(&tensors, &whole[..length]).unwrap();
        assert!(detail().contains("broken.safetensors"), "{length} bytes");
    }
    // A header that claims to be longer than memory must be refused, not allocated.
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&tensors, huge).unwrap();
    assert!(detail().contains("broken.safetensors"));
    fs::remove_file(&tensors).unwrap();
    assert!(detail().contains("broken.safetensors"));
    fs::write(&path, "{\"loss\": ").unwrap();
    assert!(detail().contains("not valid JSON"));
}

#[test]
fn broken_fields_are_named() {
    for (field, value) in [
        ("atol", json!("small")),
        ("rtol", json!(-1.0)),
        ("name", json!(3)),
        ("params", json!([1])),
        ("tolerances", json!({"out.loss": {"atol": 1.0}})),
        ("tolerances", json!({"out.lost": {"atol": 1.0, "rtol": 0.0}})),
    ] {
        let mut sample = Sample::ce("fields");
        let folder = tempfile::tempdir().unwrap();
        let path = sample.write(folder.path());
        sample.json[field] = value.clone();
        fs::write(&path, sample.json.to_string()).unwrap();
        let error = Case::load(&path).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("fields.json"), "{field} = {value}: {error}");
        assert_eq!(golden::run_file(&path).unwrap().status, Status::Failed);
    }
    let mut sample = Sample::ce("no-rtol");
    sample.json.as_object_mut().unwrap().remove("rtol");
    fails_with(&sample, "`rtol`");
}

#[test]
fn tensors_of_other_kinds_are_refused() {
    let mut sample = Sample::ce("kind");
    sample.tensors.insert("in.wide".to_string(), Tensor::new(&[1f64], &Device::Cpu).unwrap());
    fails_with(&sample, "`in.wide`: expected type F32 or I64");
    let mut sample = Sample::ce("prefix");
    sample.tensors.insert("loss".to_string(), reals(&[1.0], &[1]));
    fails_with(&sample, "`loss`: the name must start with");
    let mut sample = Sample::ce("labels");
    sample.tensors.insert("in.labels".to_string(), integers(&[2, -1]));
    fails_with(&sample, "found -1");
    let mut sample = Sample::ce("nothing");
    sample.tensors.retain(|name, _| name.starts_with("in."));
    fails_with(&sample, "expects nothing");
}

#[test]
fn integers_must_be_equal() {
    let mut sample = Sample::ce("integers");
    sample.tensors.insert("out.rows".to_string(), integers(&[4, 5, 6]));
    sample.tensors.retain(|name, _| name.starts_with("in.") || name == "out.rows");
    let folder = tempfile::tempdir().unwrap();
    let case = Case::load(&sample.write(folder.path())).unwrap();
    let compare = |tensor: Tensor| {
        let mut outcome = Outcome::default();
        outcome.insert("out.rows", tensor);
        golden::compare(&case, &outcome).unwrap()
    };
    assert!(compare(integers(&[4, 5, 6])).is_empty());
    assert!(compare(Tensor::new(&[4u32, 5, 6], &Device::Cpu).unwrap()).is_empty());
    let wrong = compare(integers(&[4, 5, 7]));
    assert_eq!((wrong.len(), wrong[0].index), (1, Some(2)));
    assert!(compare(reals(&[4.0, 5.0, 6.0], &[3]))[0].detail.contains("expected integers"));
    assert!(compare(integers(&[4, 5]))[0].detail.contains("shape"));
}

#[test]
fn all_ways_of_computing_a_tensor_must_agree_and_rank_0_counts_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut sample = Sample::ce("variants");
    sample.tensors.retain(|name, _| name != "grad.logits");
    let case = Case::load(&sample.write(folder.path())).unwrap();
    let right = case.tensor("out.loss").unwrap().squeeze(0).unwrap();
    let mut outcome = Outcome::default();
    outcome.insert("out.loss", right.clone());
    assert!(golden::compare(&case, &outcome).unwrap().is_empty());
    outcome.insert_variant("out.loss", "frozen", (right + 1.0).unwrap());
    let wrong = golden::compare(&case, &outcome).unwrap();
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].to_string().starts_with("out.loss (frozen): worst at [0]"));
}

#[test]
fn directories_are_walked_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("b/deep");
    Sample::ce("z").write(&deep);
    Sample::ce("a").write(folder.path());
    let mut wrong = Sample::ce("m");
    wrong.set("out.loss", 0, 9.0);
    wrong.write(&folder.path().join("b"));
    fs::write(folder.path().join("notes.json"), "{\"title\": \"no case\"}").unwrap();
    fs::write(folder.path().join("list.json"), "[1, 2]").unwrap();
    let report = golden::run(&[folder.path().to_path_buf(), deep]).unwrap();
    let names: Vec<&str> = report.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["a", "z", "m"], "by path, each once");
    assert_eq!(report.summary(), "2 passed, 1 failed, 0 unsupported");
    assert!(!report.is_success(false) && !report.is_success(true));
}

#[test]
fn the_report_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..12 {
        let mut sample = Sample::ce(&format!("case-{i:02}"));
        sample.set("out.loss", 0, if i % 3 == 0 { 1.0 } else { 0.5 });
        sample.write(folder.path());
    }
    let roots = [folder.path().to_path_buf()];
    let first = golden::run(&roots).unwrap().text();
    assert_eq!(first, golden::run(&roots).unwrap().text());
    assert_eq!(first.lines().count(), 13, "{first}");
}

#[test]
fn a_known_method_without_a_pass_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    Sample::ce("passes").write(folder.path());
    let mut network = Sample::ce("network");
    network.json["loss"] = json!("model-forward");
    network.json["build"] = json!({"model": "no-such-network", "num_classes": 10});
    network.json["params"] = json!({"mode": "eval", "input": [2, 3, 32, 32]});
    network.write(folder.path());
    let report = golden::run(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(report.count(Status::Unsupported), 1);
    assert_eq!(report.ids_without_a_pass(), ["model-forward"]);
    assert!(!report.is_success(true) && !report.is_success(false));
}

#[test]
fn nothing_to_run_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let report = golden::run(std::slice::from_ref(&empty)).unwrap();
    assert!(!report.is_success(true));
    Sample::ce("one").write(&folder.path().join("full"));
    let report = golden::run(&[folder.path().join("full"), empty]).unwrap();
    assert!(!report.is_success(true), "one of two directories is empty");
    assert!(golden::run(&[folder.path().join("absent")]).is_err());
}
