//! `bench`: keys and their order, every method, bad requests. No test asserts a time.

use super::Lab;
use clap::Parser;
use retort_lab::cli::Cli;
use serde_json::Value;
use std::sync::atomic::AtomicBool;

const SIZES: [&str; 7] = ["--batch", "2", "--steps", "1", "--threads", "1", "--json"];

/// The only line of a command, as keys in their order and values.
fn report(text: &str) -> (Vec<String>, Value) {
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
    let value: Value = serde_json::from_str(text).unwrap();
    let object = value.as_object().unwrap();
    // A parsed map is sorted: the order is that of the text.
    let mut keys: Vec<String> = object.keys().cloned().collect();
    keys.sort_by_key(|key| text.find(&format!("\"{key}\":")).unwrap());
    (keys, value)
}

fn bench(lab: &Lab, args: &[&str]) -> (Vec<String>, Value) {
    report(&lab.ok(&[&["bench"], args, &SIZES].concat()))
}

/// Every one of these is a time, a rate or a size.
fn positive(value: &Value, keys: &[&str]) {
    for key in keys {
        let number = value[key].as_f64();
        assert!(number.is_some_and(|x| x.is_finite() && x > 0.0), "{key}: {}", value[key]);
    }
}

fn memory(value: &Value) {
    if cfg!(target_os = "linux") {
        positive(value, &["peak_rss_mb"]);
    }
}

#[test]
fn a_training_step() {
    let args = ["train-step", "--model", "resnet8", "--image", "1x8x8", "--classes", "5"];
    let (keys, value) = bench(&Lab::new(), &args);
    let expected = "model batch threads steps images_per_second forward_ms backward_ms optimizer_ms eval_forward_ms \
                    peak_rss_mb instruction_set image classes";
    assert_eq!(keys.join(" "), expected);
    positive(&value, &["images_per_second", "forward_ms", "backward_ms", "optimizer_ms", "eval_forward_ms"]);
    memory(&value);
    assert_eq!((&value["model"], &value["image"]), (&Value::from("resnet8"), &Value::from("1x8x8")));
    assert_eq!([&value["batch"], &value["threads"], &value["steps"], &value["classes"]], [2, 1, 1, 5]);
}

#[test]
fn a_distillation_step() {
    let args = ["kd-step", "--teacher", "resnet14", "--student", "resnet8", "--method", "kd", "--weight", "0.5"];
    let (keys, value) = bench(&Lab::new(), &[&args[..], &["--image", "1x8x8"]].concat());
    let expected = "teacher student method batch threads steps images_per_second teacher_ms forward_ms loss_ms \
                    backward_ms optimizer_ms peak_rss_mb instruction_set image classes";
    assert_eq!(keys.join(" "), expected);
    let times = ["images_per_second", "teacher_ms", "forward_ms", "loss_ms", "backward_ms", "optimizer_ms"];
    positive(&value, &times);
    memory(&value);
    assert_eq!([&value["teacher"], &value["student"], &value["method"]], ["resnet14", "resnet8", "kd"]);
    assert_eq!([&value["batch"], &value["threads"], &value["steps"], &value["classes"]], [2, 1, 1, 100]);
}

#[test]
fn a_loss() {
    let lab = Lab::new();
    let args = ["loss", "--loss", "crd", "--rows", "200", "--negatives", "16", "--dim", "8", "--classes", "10"];
    let (keys, value) = bench(&lab, &args);
    let expected = "loss forward_backward_ms peak_rss_mb batch classes dim rows negatives threads steps \
                    instruction_set";
    assert_eq!(keys.join(" "), expected);
    positive(&value, &["forward_backward_ms"]);
    memory(&value);
    assert_eq!([&value["rows"], &value["negatives"], &value["dim"], &value["classes"]], [200, 16, 8, 10]);

    let (keys, value) = bench(&lab, &["loss", "--loss", "kd"]);
    let expected = "loss forward_backward_ms peak_rss_mb batch classes threads steps instruction_set";
    assert_eq!((keys.join(" ").as_str(), &value["loss"]), (expected, &Value::from("kd")));
}

#[test]
fn a_table_for_readers() {
    let text = Lab::new().ok(&["bench", "loss", "--loss", "ce", "--batch", "2", "--steps", "1", "--threads", "2"]);
    assert!(serde_json::from_str::<Value>(&text).is_err(), "{text}");
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    assert_eq!((line("loss"), line("batch"), line("threads")), (Some("ce"), Some("2"), Some("2")), "{text}");
    assert!(line("forward_backward_ms").unwrap().parse::<f64>().is_ok(), "{text}");
}

/// Runs a command in this process.
fn here(args: &[&str]) -> Result<String, retort_lab::Error> {
    let cli = Cli::try_parse_from([&["retort", "bench"], args].concat()).unwrap();
    let mut out = Vec::new();
    cli.execute(&mut out, &AtomicBool::new(false))?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn every_method_runs() {
    let sizes = ["--batch", "2", "--steps", "1", "--json"];
    let methods: Vec<&str> = retort_losses::registry().iter().map(|info| info.id).collect();
    assert!(!methods.is_empty());
    for id in methods {
        let args = ["kd-step", "--teacher", "resnet14", "--student", "resnet8", "--image", "1x16x16", "--method", id];
        let text = here(&[&args[..], &sizes].concat()).unwrap_or_else(|e| panic!("{id}: {e}"));
        let (_, value) = report(&text);
        assert_eq!(value["method"], id);
        positive(&value, &["images_per_second", "loss_ms"]);

        let text = here(&[&["loss", "--loss", id][..], &sizes].concat()).unwrap_or_else(|e| panic!("{id}: {e}"));
        let (_, value) = report(&text);
        assert_eq!(value["loss"], id);
        positive(&value, &["forward_backward_ms"]);
    }
}

#[test]
fn unknown_names() {
    let lab = Lab::new();
    let refused = |args: &[&str], parts: [&str; 2]| {
        let text = lab.refused(&[&["bench"], args].concat());
        assert!(parts.iter().all(|part| text.contains(part)), "expected {parts:?} in: {text}");
    };
    let model = ["`resnet9`", "did you mean `resnet8`"];
    refused(&["train-step", "--model", "resnet9"], model);
    refused(&["kd-step", "--teacher", "resnet8", "--student", "resnet9", "--method", "kd"], model);
    refused(&["kd-step", "--teacher", "resnet9", "--student", "resnet8", "--method", "kd"], model);
    let method = ["unknown method `crdd`", "did you mean `crd`"];
    refused(&["kd-step", "--teacher", "resnet8", "--student", "resnet8", "--method", "crdd"], method);
    refused(&["loss", "--loss", "crdd"], method);
    refused(&["trian-step"], ["trian-step", "train-step"]);
}

#[test]
fn counts_that_mean_nothing() {
    let lab = Lab::new();
    let words: [&[&str]; 3] = [
        &["bench", "train-step", "--model", "resnet8"],
        &["bench", "kd-step", "--teacher", "resnet8", "--student", "resnet8", "--method", "kd"],
        &["bench", "loss", "--loss", "ce"],
    ];
    for word in words {
        for option in ["--batch", "--steps", "--classes", "--threads"] {
            let text = lab.refused(&[word, &[option, "0"]].concat());
            assert!(text.contains(&format!("`{option}` must be")) && text.contains("found 0"), "{text}");
        }
        let text = lab.refused(&[word, &["--threads", "1025"]].concat());
        assert!(text.contains("`--threads` must be in 1 ..= 1024, found 1025"), "{text}");
        let text = lab.refused(&[word, &["--batch", "99999999999"]].concat());
        assert!(text.contains("99999999999") && text.contains("entries"), "{text}");
        assert!(lab.refused(&[word, &["--batch", "-1"]].concat()).contains("-1"));
    }
}

#[test]
fn the_threads_of_the_environment_are_checked_too() {
    let args = ["bench", "loss", "--loss", "ce", "--steps", "1"];
    let output = Lab::new().command(&args).env("RAYON_NUM_THREADS", "2000").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("found 2000"), "{text}");
}

#[test]
fn images_that_are_no_images() {
    let lab = Lab::new();
    for image in ["3x32", "3x0x32", "32", "3x32x32x32", "axbxc"] {
        let text = lab.refused(&["bench", "train-step", "--model", "resnet8", "--image", image]);
        assert!(text.contains(image) && text.contains("CxHxW"), "{text}");
    }
    // vgg8 pools five times.
    let text = lab.refused(&["bench", "train-step", "--model", "vgg8", "--image", "3x2x2"]);
    assert!(text.contains("vgg8"), "{text}");
}

#[test]
fn settings_that_a_loss_refuses() {
    let lab = Lab::new();
    let refused = |args: &[&str], part: &str| {
        let text = lab.refused(&[&["bench"], args].concat());
        assert!(text.contains(part), "expected `{part}` in: {text}");
    };
    for weight in ["0", "-1", "nan"] {
        let args = ["kd-step", "--teacher", "resnet8", "--student", "resnet8", "--method", "kd", "--weight", weight];
        refused(&args, "`weight`");
    }
    refused(&["loss", "--loss", "kd", "--negatives", "3"], "`--negatives` means nothing to the loss `kd`");
    refused(&["loss", "--loss", "cc", "--rows", "3"], "`--rows` means nothing to the loss `cc`");
    refused(&["loss", "--loss", "sp", "--dim", "3"], "`--dim` means nothing to the loss `sp`");
    refused(&["loss", "--loss", "crd", "--dim", "0"], "`dim`");
    refused(&["loss", "--loss", "crd", "--negatives", "0"], "`negatives`");
    refused(&["loss", "--loss", "crd", "--rows", "0"], "`--rows`");
    refused(&["loss", "--loss", "crd", "--rows", "99999999999"], "entries");
    refused(&["loss", "--loss", "crd", "--classes", "1"], "two classes");
    // Channels that do not agree, found when the loss is built.
    let args = ["kd-step", "--teacher", "resnet8x4", "--student", "resnet8", "--method", "pkd", "--image", "1x8x8"];
    refused(&args, "channels must agree");
}

/// Every entry of `list methods` that is a step of its own, by the trainer itself.
#[test]
fn a_step_of_every_method_and_system() {
    let lab = Lab::new();
    let listed: Value = serde_json::from_str(&lab.ok(&["list", "methods", "--json"])).unwrap();
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    let networks = ["--student", "resnet8", "--teacher", "resnet14", "--image", "3x16x16", "--classes", "4"];
    let sizes = ["--batch", "8", "--steps", "1", "--threads", "1", "--json"];
    for id in ids.into_iter().filter(|id| !["dot", "ft-paraphraser"].contains(id)) {
        let (keys, value) =
            report(&lab.ok(&[&["bench", "method-step", "--method", id], &networks[..], &sizes[..]].concat()));
        let expected =
            "method student teacher batch threads steps step_ms parameters peak_rss_mb instruction_set image classes";
        assert_eq!(keys.join(" "), expected);
        positive(&value, &["step_ms", "parameters"]);
    }
    let text = lab.refused(&["bench", "method-step", "--method", "dmll"]);
    assert!(text.contains("did you mean `dml`"), "{text}");
}

#[test]
fn costs_are_measured_in_processes_of_their_own_and_merged() {
    let lab = Lab::new();
    let small = ["--student", "resnet8", "--teacher", "resnet8", "--image", "1x8x8", "--classes", "3"];
    let sizes = ["--batch", "6", "--steps", "1", "--threads", "1", "--json"];
    let args = ["bench", "costs", "--only", "kd,dml", "--save", "costs.json"];
    let text = lab.ok(&[&args[..], &small[..], &sizes[..]].concat());
    assert!(text.contains("kd") && text.contains("dml"), "{text}");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(lab.path("costs.json")).unwrap()).unwrap();
    assert_eq!(saved["methods"]["kd"]["parameters"], 0);
    let resnet8 = saved["methods"]["dml"]["parameters"].as_i64().unwrap();
    assert!(resnet8 > 50_000, "a second network");
    let text = lab.refused(&[&args[..2], &["--only", "kdd"], &small[..], &sizes[..]].concat());
    assert!(text.contains("did you mean `kd`"), "{text}");
}
