//! Each mistake ends with exit code 2 and a message that says where and what instead.

use super::{Lab, TINY};
use std::fs;

/// Runs `tiny` after one replacement in its manifest and checks that all parts occur in the message.
fn typo(from: &str, to: &str, parts: &[&str]) {
    assert!(TINY.contains(from), "{from}");
    let lab = Lab::with(&TINY.replacen(from, to, 1));
    let text = lab.refused(&["reproduce", "tiny"]);
    for part in parts {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
}

fn line_of(text: &str) -> usize {
    TINY[..TINY.find(text).unwrap()].matches('\n').count() + 1
}

#[test]
fn unknown_table() {
    let text = Lab::new().refused(&["reproduce", "tinny"]);
    assert!(text.contains("unknown table `tinny`") && text.contains("did you mean `tiny`"), "{text}");
}

#[test]
fn unknown_profile() {
    let text = Lab::new().refused(&["reproduce", "tiny", "--profile", "quik"]);
    assert!(text.contains("unknown profile `quik`") && text.contains("did you mean `quick`"), "{text}");
    typo(r#"default_profile = "quick""#, r#"default_profile = "quik""#, &["tiny.toml:5:19", "did you mean `quick`"]);
}

#[test]
fn unknown_method_on_the_command_line() {
    let text = Lab::new().refused(&["reproduce", "tiny", "--only", "crd-kd"]);
    assert!(text.contains("unknown method `crd-kd`") && text.contains("did you mean `crd+kd`"), "{text}");
}

#[test]
fn unknown_loss_in_a_manifest() {
    let line = line_of(r#"{ method = "crd""#);
    typo(r#"method = "crd""#, r#"method = "crdd""#, &[&format!("tiny.toml:{line}:15"), "`crdd`", "did you mean `crd`"]);
}

#[test]
fn unknown_field() {
    let line = line_of("batch_size");
    typo("batch_size = 20", "batchsize = 20", &[&format!("tiny.toml:{line}:1:"), "did you mean `batch_size`"]);
    let line = line_of("temperature");
    typo(
        "temperature = 4.0",
        "temprature = 4.0",
        &[&format!("tiny.toml:{line}:"), "`temprature`", "did you mean `temperature`"],
    );
}

#[test]
fn unknown_model_and_data_set() {
    let line = line_of("pairs");
    typo(
        r#"student = "resnet8""#,
        r#"student = "resnet9""#,
        &[&format!("tiny.toml:{line}:"), "`resnet9`", "did you mean `resnet8`"],
    );
    let line = line_of("digits-8x8");
    typo("digits-8x8", "digits-8x9", &[&format!("tiny.toml:{line}:"), "`digits-8x9`", "`digits-8x8`"]);
}

#[test]
fn numbers_out_of_range() {
    let line = line_of("temperature");
    typo("temperature = 4.0", "temperature = -4.0", &[&format!("tiny.toml:{line}:20"), "temperature", "-4"]);
    let line = line_of("momentum = 0.9, weight_decay");
    typo(
        "momentum = 0.9, weight_decay",
        "momentum = 1.9, weight_decay",
        &[&format!("tiny.toml:{line}:"), "`momentum`", "1.9"],
    );
    typo("lr = 0.05", "lr = 0.0", &["tiny.toml:", "`lr`"]);
    typo("epochs = 2", "epochs = 0", &["tiny.toml:", "at least 1"]);
    let line = line_of("train = 60");
    for count in ["0", "61", "60000"] {
        typo("train = 60", &format!("train = {count}"), &[&format!("tiny.toml:{line}:"), "`train`", count]);
    }
    let line = line_of("padding = 1");
    typo("padding = 1", "padding = 9", &[&format!("tiny.toml:{line}:"), "padding", "9"]);
    let line = line_of("batch_size");
    typo("batch_size = 20", "batch_size = 0", &[&format!("tiny.toml:{line}:"), "`batch_size`", "found 0"]);
    typo("seeds = 2", "seeds = 0", &["tiny.toml:", "`seeds`", "found 0"]);
    typo("gamma = 0.1", "gamma = 2.0", &["tiny.toml:", "`gamma`", "found 2"]);
    typo("dim = 16", "dim = 1000000000000", &["tiny.toml:", "`dim`", "1000000000000"]);
    typo("negatives = 8", "negatives = 4000000000", &["tiny.toml:", "`negatives`"]);
    typo("temperature = 4.0", "weight = 0.0", &["tiny.toml:", "`weight`"]);
}

#[test]
fn lists_and_names_that_mean_nothing() {
    typo(
        r#"[profiles.quick.teacher]"#,
        "overrides = { \"crd+kd\" = [] }\n[profiles.quick.teacher]",
        &["tiny.toml:", "at least one loss"],
    );
    typo(
        r#"[profiles.quick.teacher]"#,
        "overrides = { \"crd+kdd\" = [] }\n[profiles.quick.teacher]",
        &["did you mean `crd+kd`"],
    );
    typo(r#"id = "crd+kd""#, r#"id = "ce""#, &["tiny.toml:13:", "occurs twice"]);
    typo(r#"id = "crd+kd""#, r#"id = "teacher""#, &["tiny.toml:13:", "`teacher`"]);
    let published = super::PUBLISHED.replace("published.json", "nowhere.json");
    let lab = Lab::with(&format!("{TINY}{published}"));
    let text = lab.refused(&["reproduce", "tiny"]);
    assert!(text.contains("tiny.toml:") && text.contains("nowhere.json"), "{text}");
}

#[test]
fn a_method_that_a_pair_does_not_allow_is_found_before_training() {
    // vgg8 has four stages, the resnet three.
    let table = TINY.replacen(r#"student = "resnet8""#, r#"student = "vgg8""#, 1);
    let table = table.replacen("digits-8x8\", train = 60", "fashion-mnist-10k\", train = 60", 1);
    let kd = "{ method = \"kd\", temperature = 4.0 }";
    let line = line_of(kd);
    for (loss, column, parts) in [
        (r#"{ method = "at" }"#, 3, ["at: the student has 4 stages", "`align`", "(`resnet14 -> vgg8`"]),
        (r#"{ method = "at", align = "exact" }"#, 20, ["at: the student has 4 stages", "`align`", "`without`"]),
        (r#"{ method = "fsp" }"#, 3, ["fsp: both networks must show as many maps", "16x28x28", "`without`"]),
        (r#"{ method = "fitnet", map = 5 }"#, 3, ["fitnet", "5", "(`resnet14 ->"]),
    ] {
        let lab = Lab::with(&table.replacen(kd, loss, 1));
        let text = lab.refused(&["reproduce", "tiny"]);
        for part in parts {
            assert!(text.contains(part), "expected `{part}` in: {text}");
        }
        assert!(text.contains(&format!("tiny.toml:{line}:{column}: ")), "{text}");
        assert!(!lab.path("runs").exists() && lab.refused(&["reproduce", "tiny", "--plan"]) == text);
        lab.ok(&["reproduce", "tiny", "--plan", "--only", "ce"]);
    }
    let without = "student = \"vgg8\", without = [\"crd+kd\"]";
    let table = table.replacen(kd, r#"{ method = "at" }"#, 1).replacen("student = \"vgg8\"", without, 1);
    Lab::with(&table).ok(&["reproduce", "tiny", "--plan"]);
}

#[test]
fn dot_without_a_task_or_a_method() {
    let dot = "[[methods]]\nid = \"dot\"\nlabel = \"DOT\"\noptimizer = { kind = \"dot\" }\nlosses = ";
    for losses in [r#"[{ method = "ce" }]"#, r#"[{ method = "kd" }]"#] {
        typo(
            "[profiles.quick]",
            &format!("{dot}{losses}\n[profiles.quick]"),
            &["tiny.toml:24:13", "`dot` needs a task"],
        );
    }
    typo(
        "id = \"crd+kd\"",
        "id = \"crd+kd\"\noptimizer = { kind = \"dot\", delta = 2.0 }",
        &["tiny.toml:14:", "`delta`"],
    );
    typo(r#"method = "crd""#, r#"method = "dot""#, &["tiny.toml:", "optimiser", "kind = \"dot\""]);
}

#[test]
fn a_truncated_checkpoint_is_the_requests_fault() {
    let lab = Lab::new();
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    let id = plan.split_whitespace().next().unwrap();
    fs::create_dir_all(lab.path("runs/checkpoints")).unwrap();
    fs::write(lab.path("runs/checkpoints").join(format!("{id}.safetensors")), [1, 2, 3]).unwrap();
    let text = lab.refused(&["reproduce", "tiny"]);
    assert!(text.contains(&format!("{id}.safetensors")) && text.contains("delete the file"), "{text}");
}

#[test]
fn a_manifest_that_is_not_toml() {
    typo("[[methods]]", "[[methods", &["tiny.toml:7:"]);
    let lab = Lab::new();
    fs::write(lab.path("experiments/tiny.toml"), [0xff, 0xfe]).unwrap();
    assert!(lab.refused(&["reproduce", "tiny"]).contains("tiny.toml"));
}

#[test]
fn a_missing_and_a_truncated_data_file() {
    let lab = Lab::new();
    let text = lab.refused(&["reproduce", "tiny", "--profile", "full"]);
    assert!(text.contains("fashion-mnist") && text.contains("train-images"), "{text}");

    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    let argument = data.to_str().unwrap();
    let text = lab.refused(&["reproduce", "tiny", "--profile", "full", "--data", argument]);
    assert!(text.contains("train-images-idx3-ubyte") && text.contains("not found"), "{text}");

    // Whole headers, 60,000 rows, but hardly any of them is there.
    let images = [0, 0, 8, 3, 0, 0, 0xea, 0x60, 0, 0, 0, 28, 0, 0, 0, 28, 1, 2, 3];
    fs::write(data.join("train-images-idx3-ubyte"), images).unwrap();
    fs::write(data.join("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0xea, 0x60, 5]).unwrap();
    let text = lab.refused(&["reproduce", "tiny", "--profile", "full", "--data", argument]);
    assert!(text.contains("train-images-idx3-ubyte") && text.contains("expected 47040000, found 3"), "{text}");
}

#[test]
fn an_unknown_run() {
    let lab = Lab::new();
    let text = lab.refused(&["train", "experiments/tiny.toml", "--run", "0123456789ab"]);
    assert!(text.contains("`0123456789ab`"), "{text}");
    assert!(lab.refused(&["train", "experiments/none.toml", "--run", "0"]).contains("none.toml"));
}

#[test]
fn a_checkpoint_of_another_shape() {
    let lab = Lab::new();
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    let id = plan.split_whitespace().next().unwrap();
    // A checkpoint that claims to be this run's but holds other shapes.
    let tensor = |n: usize| candle_core::Tensor::zeros(n, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let params = retort_nn::Params::new(retort_nn::Seed::root(1), candle_core::DType::F32, &candle_core::Device::Cpu);
    let config = retort_models::ModelConfig { in_channels: 1, image: [8, 8], classes: 10 };
    retort_models::build("resnet14", &config, &params.root()).unwrap();
    let mut tensors: retort_nn::Tensors =
        params.snapshot().unwrap().into_iter().map(|(name, t)| (format!("objective.student.{name}"), t)).collect();
    tensors.insert("objective.student.fc.bias".into(), tensor(7));
    let running = serde_json::json!({"steps":0,"samples":0,"loss":0.0,"terms":{},"predicted":0,"correct":0,"lr":0.0,"seconds":0.0});
    let progress = serde_json::json!({"phase":0,"epoch":0,"running":running,"summary":{"epochs":[],"seconds":[]}});
    let meta = serde_json::json!({"fingerprint": id, "progress": progress});
    let path = lab.path("runs/checkpoints").join(format!("{id}.safetensors"));
    retort_nn::Checkpoint { tensors, meta }.save(&path).unwrap();
    let text = lab.refused(&["reproduce", "tiny"]);
    assert!(
        text.contains(&format!("{id}.safetensors")) && text.contains("`fc.bias`") && text.contains("[7]"),
        "{text}"
    );
}

#[test]
fn unknown_words_and_zero_counts() {
    let lab = Lab::new();
    assert!(lab.refused(&["reproduse", "tiny"]).contains("reproduce"));
    assert!(lab.refused(&["reproduce", "tiny", "--seeds", "0"]).contains("--seeds"));
    assert!(lab.refused(&["reproduce", "tiny", "--seeds", "99999999999"]).contains("--seeds"));
    assert!(lab.refused(&["reproduce", "tiny", "--jobs", "0"]).contains("--jobs"));
    assert!(lab.refused(&["reproduce", "tiny", "--threads", "100000"]).contains("--threads"));
    assert!(lab.refused(&["reproduce", "tiny", "--data", "nowhere"]).contains("nowhere"));
    assert!(lab.refused(&["reproduce", "tiny", "--from", "nowhere"]).contains("nowhere"));
    assert!(lab.refused(&["list", "modles"]).contains("models"));
}
