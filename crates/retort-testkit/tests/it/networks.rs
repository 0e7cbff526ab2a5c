//! The plumbing of network cases, on a network with formula weights.

use crate::support::{Sample, integers, reals};
use candle_core::{DType, Device};
use retort_models::{ModelConfig, build};
use retort_nn::{Params, Seed};
use retort_testkit::golden::{self, CaseReport, Status};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A forward case of `resnet8` whose expected numbers are all zero: every produced tensor must be reported.
fn network(name: &str) -> Sample {
    let params = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
    let config = ModelConfig { in_channels: 3, image: [8, 8], classes: 5 };
    build("resnet8", &config, &params.root()).unwrap();
    let shapes: Map<String, Value> =
        params.snapshot().unwrap().iter().map(|(key, tensor)| (key.clone(), json!(tensor.dims()))).collect();
    let json = json!({
        "name": name, "family": "model", "loss": "model-forward", "atol": 1e-4, "rtol": 1e-4,
        "build": {"model": "resnet8", "num_classes": 5},
        "params": {"mode": "eval", "input": [2, 3, 8, 8]},
        "state": {"kind": "formula", "salt": "test/", "bn_weight_gain": 1.4},
        "state_shapes": shapes, "param_count": params.parameter_count(),
    });
    Sample { json, tensors: BTreeMap::from([("out.logits".to_string(), reals(&[0.0; 10], &[2, 5]))]) }
}

fn run(sample: &Sample) -> CaseReport {
    let folder = tempfile::tempdir().unwrap();
    golden::run_file(&sample.write(folder.path())).unwrap()
}

#[test]
fn trainable_and_frozen_networks_are_both_compared() {
    let report = run(&network("both"));
    assert_eq!(report.status, Status::Failed);
    assert!(report.detail.contains("out.logits: worst at ["), "{}", report.detail);
    assert!(report.detail.contains("out.logits (frozen): worst at ["), "{}", report.detail);
}

#[test]
fn maps_are_summarised_in_the_ways_that_the_case_names() {
    let mut sample = network("maps");
    sample.tensors = BTreeMap::from([
        ("out.f2.mean".to_string(), reals(&[-1.0], &[1])),
        ("out.f2.chan_mean".to_string(), reals(&[-1.0; 32], &[32])),
        ("out.pre3.std".to_string(), reals(&[-1.0], &[1])),
    ]);
    let detail = run(&sample).detail;
    for name in ["out.f2.chan_mean: worst", "out.f2.mean: worst", "out.f2.mean (frozen)", "out.pre3.std"] {
        assert!(detail.contains(name), "{name}: {detail}");
    }
    assert!(!detail.contains("produced") && !detail.contains("shape"), "{detail}");
    sample.tensors.insert("out.f9.mean".to_string(), reals(&[0.0], &[1]));
    sample.tensors.retain(|name, _| name == "out.f9.mean");
    assert!(run(&sample).detail.contains("out.f9.mean: was not produced"));
}

#[test]
fn the_weights_must_be_those_of_the_network() {
    let mut sample = network("count");
    sample.json["param_count"] = json!(7);
    assert!(run(&sample).detail.contains("expected 7 parameters"));
    let mut sample = network("extra");
    sample.json["state_shapes"]["layer9.weight"] = json!([3]);
    assert!(run(&sample).detail.contains("`layer9.weight`"));
    let mut sample = network("absent");
    sample.json["state_shapes"].as_object_mut().unwrap().remove("fc.bias");
    assert!(run(&sample).detail.contains("`fc.bias`"));
    let mut sample = network("shape");
    sample.json["state_shapes"]["fc.bias"] = json!([6]);
    assert!(run(&sample).detail.contains("`fc.bias`"));
}

#[test]
fn options_that_nobody_reads_are_unsupported() {
    let mut sample = network("option");
    sample.json["build"]["width"] = json!(0.5);
    let report = run(&sample);
    assert_eq!(report.status, Status::Unsupported);
    assert!(report.detail.contains("with width"), "{}", report.detail);
}

#[test]
fn a_training_step_produces_what_the_case_asks_for() {
    let params = Params::new(Seed::root(2), DType::F32, &Device::Cpu);
    let config = ModelConfig { in_channels: 3, image: [8, 8], classes: 5 };
    build("resnet8", &config, &params.root()).unwrap();
    let mut sample = network("step");
    sample.json["loss"] = json!("model-train-step");
    sample.json["params"]["optimizer"] = json!({"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4});
    sample.tensors.clear();
    for (key, tensor) in params.snapshot().unwrap() {
        sample.tensors.insert(format!("in.param.{key}"), tensor);
    }
    let pixels: Vec<f32> = (0..4 * 3 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    sample.tensors.insert("in.x".to_string(), reals(&pixels, &[4, 3, 8, 8]));
    sample.tensors.insert("in.y".to_string(), integers(&[0, 1, 2, 4]));
    for name in ["out.loss", "out.grad_norm", "out.plain.step2.loss", "out.nesterov.step1.loss"] {
        sample.tensors.insert(name.to_string(), reals(&[-1.0], &[1]));
    }
    for name in ["grad.param.fc.bias", "out.plain.step1.fc.bias", "out.nesterov.step1.fc.bias"] {
        sample.tensors.insert(name.to_string(), reals(&[-1.0; 5], &[5]));
    }
    sample.tensors.insert("out.after.bn1.running_var".to_string(), reals(&[-1.0; 16], &[16]));
    let report = run(&sample);
    assert_eq!(report.status, Status::Failed);
    // All eight were produced (and are wrong); three are written out, the others named.
    assert!(report.detail.contains("and 5 more tensors") && !report.detail.contains("produced"), "{}", report.detail);
}
