//! Hostile and sloppy files: what is said of them, how long it is, and how long it takes.

use candle_core::{DType, Device, Tensor};
use retort_models::{Card, Imported, ModelConfig, Pretrained, PretrainedConfig, build, import_weights, info};
use retort_nn::{Checkpoint, Params, Seed, Tensors, WeightFile};
use std::time::{Duration, Instant};

const TINY: ModelConfig = ModelConfig { in_channels: 1, image: [16, 16], classes: 5 };
const TINY_RGB: ModelConfig = ModelConfig { in_channels: 3, image: [16, 16], classes: 5 };

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn trained(model: &str, config: &ModelConfig) -> Tensors {
    let params = Params::new(Seed::root(3), DType::F32, &Device::Cpu);
    build(model, config, &params.root()).unwrap();
    crate::check::shaken(&params, DType::F32)
}

fn on_file<T>(tensors: Tensors, read: impl FnOnce(&WeightFile) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.safetensors");
    Checkpoint { tensors, meta: serde_json::Value::Null }.save(&path).unwrap();
    read(&WeightFile::open(&path).unwrap())
}

fn imported(tensors: Tensors, model: &str, prefix: Option<&str>) -> Imported {
    on_file(tensors, |file| import_weights(file, model, &TINY, prefix).unwrap())
}

/// The message of a refusal, which names the file and is of a length that a terminal shows.
fn refused(tensors: Tensors, model: &str, prefix: Option<&str>) -> String {
    let message = on_file(tensors, |file| import_weights(file, model, &TINY, prefix).unwrap_err().to_string());
    assert!(message.contains("theirs.safetensors"), "{message}");
    assert!(message.len() < 16_000, "a message of {} bytes", message.len());
    message
}

fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
}

#[test]
fn a_hostile_file_is_refused_soon() {
    // Names as long as may be compared, each near to all others and to none of the network's 1000 names.
    let long = |i: usize| (format!("{}{i:05}", "layer1.0.conv1.weight".repeat(9)), zeros(&[0]));
    let alike = |i: usize| (format!("features.HybridBlock9.SMG{i}.conv1_1x1.norm.weight"), zeros(&[0]));
    for tensors in [(0..2000).map(long).collect::<Tensors>(), (0..20_000).map(alike).collect()] {
        let count = tensors.len();
        on_file(tensors, |file| {
            let start = Instant::now();
            let message = import_weights(file, "hcgnet_A2", &TINY, None).unwrap_err().to_string();
            let took = start.elapsed();
            // The bound of the promise is a second; test machines share their cores.
            assert!(took < Duration::from_secs(5), "{count} names took {took:?}");
            assert!(message.contains(&format!("unexpected: {} more", count - 8)), "{message}");
        });
    }
    let many = (0..(1 << 16) + 1).map(|i| (format!("net{i}.bn1.bias"), zeros(&[0])));
    assert!(refused(many.collect(), "resnet8", None).contains("at most 65536 tensors, found 65537"));
}

#[test]
fn messages_stay_short() {
    let name = "x".repeat(60_000);
    let message = info(&format!("{name}\n")).unwrap_err().to_string();
    assert!(message.len() < 2_000 && message.contains("unknown model `xxx") && !message.contains('\n'), "{message}");
    let many = vec![1; 100_000];
    let nobody: Tensors = [(format!("{name}\u{7}"), zeros(&[2])), ("a.b".into(), zeros(&[1]))].into();
    let message = refused(nobody.clone(), "resnet8", None);
    assert!(message.contains("unexpected: `xxx") && !message.contains('\u{7}'), "{message}");
    refused(nobody, "resnet8", Some(&name));
    // A safetensors header by hand: candle has no tensor of so many dimensions.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dimensions.safetensors");
    let header = serde_json::json!({ "conv1.weight": { "dtype": "F32", "shape": many, "data_offsets": [0, 4] } });
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
    std::fs::write(&path, bytes).unwrap();
    let message = match WeightFile::open(&path) {
        Ok(file) => import_weights(&file, "resnet8", &TINY, None).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(message.len() < 16_000, "a message of {} bytes", message.len());
}

#[test]
fn heads_and_counters_of_every_code_base_are_left_out() {
    let ours = trained("resnet8", &TINY);
    let mixskd = || {
        let mut theirs = renamed(&ours, |name| format!("backbone.{name}"));
        theirs.insert("final_aux_classifier.conv.weight".into(), zeros(&[64, 128, 1, 1]));
        theirs.insert("auxiliary_classifier.fc1.bias".into(), zeros(&[5]));
        theirs
    };
    let sskd = || {
        let mut theirs = renamed(&ours, |name| format!("backbone.{name}"));
        theirs.insert("proj_head.0.weight".into(), zeros(&[64, 64]));
        theirs
    };
    let averaged = || {
        let mut theirs = renamed(&ours, |name| format!("module.{name}"));
        theirs.insert("n_averaged".into(), Tensor::new(7i64, &Device::Cpu).unwrap());
        theirs
    };
    for (theirs, left_out) in [
        (mixskd(), &["auxiliary_classifier.fc1.bias", "final_aux_classifier.conv.weight"][..]),
        (sskd(), &["proj_head.0.weight"]),
        (averaged(), &["n_averaged"]),
    ] {
        let read = imported(theirs, "resnet8", None);
        assert_eq!(read.left_out, left_out);
        assert_eq!(read.tensors.len(), ours.len());
        assert_eq!(crate::flat(&read.tensors["fc.weight"]), crate::flat(&ours["fc.weight"]));
    }
    // A head is one by its whole first part.
    let mut theirs = ours.clone();
    theirs.insert("proj_header.weight".into(), zeros(&[1]));
    assert!(refused(theirs, "resnet8", None).contains("unexpected: `proj_header.weight`"));
}

#[test]
fn a_folder_of_our_own_holds_no_heads() {
    let folder = tempfile::tempdir().unwrap();
    let config = PretrainedConfig::new("resnet8", &TINY);
    let tensors = trained("resnet8", &TINY);
    Pretrained { config, tensors: tensors.clone() }.save(folder.path(), &Card::default()).unwrap();
    let mut tensors = tensors;
    tensors.insert("proj_head.0.weight".into(), zeros(&[1]));
    let path = folder.path().join("model.safetensors");
    Checkpoint { tensors, meta: serde_json::Value::Null }.save(&path).unwrap();
    let message = Pretrained::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("unexpected: `proj_head.0.weight`"), "{message}");
}

#[test]
fn the_names_of_kd2m() {
    for model in ["imagenet_resnet18", "imagenet_resnet34"] {
        let ours = trained(model, &TINY);
        let theirs = renamed(&ours, |name| match name.strip_prefix("fc.") {
            Some(rest) => format!("classifier.{rest}"),
            None => format!("feature_extractor.{name}"),
        });
        let read = imported(theirs, model, None);
        assert!(read.naming.contains("KD2M"), "{}", read.naming);
        assert!(ours.iter().all(|(name, tensor)| crate::flat(tensor) == crate::flat(&read.tensors[name])), "{model}");
    }
    // Its networks for MNIST have these names here, too.
    assert!(imported(trained("mlp-512-256-128", &TINY), "mlp-512-256-128", None).naming.contains("as here"));
}

#[test]
fn a_prefix_that_would_fit_is_said() {
    let ours = trained("resnet14", &TINY);
    let student = |name: &str| format!("student.net.{}", name.replace("fc.", "classifier."));
    let mut theirs = renamed(&ours, student);
    assert!(refused(theirs.clone(), "resnet14", None).contains("try `--prefix student.net`"));
    assert_eq!(imported(theirs.clone(), "resnet14", Some("student.net")).tensors.len(), ours.len());
    assert!(refused(theirs.clone(), "resnet14", Some("student")).contains("try `--prefix student.net`"));
    assert!(!refused(theirs.clone(), "resnet8", None).contains("--prefix"), "it fits nowhere");
    // Beside other networks, and below data parallel training.
    theirs.extend(renamed(&trained("resnet8", &TINY), |name| format!("teacher.{name}")));
    let theirs = renamed(&theirs, |name| format!("module.{name}"));
    assert!(refused(theirs.clone(), "resnet14", None).contains("try `--prefix student.net`"));
    assert!(refused(theirs, "resnet8", None).contains("try `--prefix teacher`"));
}

#[test]
fn norms_that_fold_to_infinity_are_refused() {
    let full = |value: f32, shape: &[usize]| Tensor::full(value, shape, &Device::Cpu).unwrap();
    type Changes = &'static [(&'static str, f32)];
    let cases: [(Changes, &[&str]); 4] = [
        (&[("bn1.weight", 3e38), ("bn1.running_var", 0.0)], &["`bn1.running_var`", "not finite in float32"]),
        (&[("bn1.running_mean", 3e38), ("bn1.running_var", 0.0)], &["`bn1.running_var`", "not finite"]),
        (&[("bn1.weight", 3e35), ("conv1.weight", 3e35)], &["`conv1.weight`", "batch norm `bn1`", "folded"]),
        (&[("bn1.running_var", -1e-6)], &["running_var`", "must not be negative"]),
    ];
    for (changes, parts) in cases {
        let mut theirs = trained("resnet8", &TINY);
        for (name, value) in changes {
            let shape = theirs[*name].dims().to_vec();
            theirs.insert((*name).into(), full(*value, &shape));
        }
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new");
        let config = PretrainedConfig::new("resnet8", &TINY);
        let saved = Pretrained { config, tensors: theirs.clone() }.save(&target, &Card::default());
        for message in [refused(theirs, "resnet8", None), saved.unwrap_err().to_string()] {
            assert!(parts.iter().all(|part| message.contains(part)), "expected {parts:?} in {message}");
        }
        assert!(!target.exists(), "nothing may be written");
    }
    // As large as any trained network, and beyond.
    let mut theirs = trained("resnet8", &TINY);
    theirs.insert("bn1.weight".into(), full(1e6, &[16]));
    theirs.insert("bn1.running_var".into(), full(0.0, &[16]));
    imported(theirs, "resnet8", None);
}

#[test]
fn a_wrong_field_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = PretrainedConfig::new("resnet8", &TINY_RGB);
    Pretrained { config, tensors: trained("resnet8", &TINY_RGB) }.save(folder.path(), &Card::default()).unwrap();
    let path = folder.path().join("config.json");
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let refused = |field: &str, value: serde_json::Value, parts: &[&str]| {
        let mut config = good.clone();
        config[field] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let message = Pretrained::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.len() < 2_000, "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "expected {parts:?} in {message}");
    };
    use serde_json::json;
    refused("classes", json!(-1), &["`classes`", "-1"]);
    refused("classes", json!("ten"), &["`classes`", "ten"]);
    refused("classes", json!(17_000_000_000_u64), &["classes", "17000000000", "at most 1048576", "resnet8"]);
    refused("classes", json!(0), &["classes must be positive"]);
    refused("in_channels", json!(2.5), &["`in_channels`", "2.5"]);
    refused("in_channels", json!(1u64 << 40), &["in_channels", "1099511627776"]);
    refused("image", json!([32, 32, 3]), &["`image`"]);
    refused("image", json!(32), &["`image`", "32"]);
    refused("image", json!([32, 1 << 30]), &["image width", "1073741824"]);
    refused("format", json!("1"), &["`format`"]);
    refused("architecture", json!(["resnet8"]), &["`architecture`"]);
    refused("architecture", json!("x".repeat(60_000)), &["unknown model `xxx"]);
    refused("data", json!(7), &["`data`"]);
    refused("normalisation", json!("none"), &["`normalisation`"]);
    refused("normalisation", json!({ "mean": [0.5, "a", 0.5], "std": [1, 1, 1] }), &["`normalisation.mean`", "\"a\""]);
    refused(&"y".repeat(60_000), json!(1), &["unknown field `yyy", "line 1"]);
}
