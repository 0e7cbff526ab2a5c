//! The fully connected family.

use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor, Var};
use retort_models::{Error, Family, MlpConfig, ModelConfig, build, info};
use retort_nn::{Init, Mode, Network, Params, Seed, Taps};

const STUDENT: &str = "mlp-512-256-128";
const TEACHER: &str = "mlp-512-256-128-128-128";
const MNIST: ModelConfig = ModelConfig { in_channels: 1, image: [28, 28], classes: 10 };
const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [3, 2], classes: 3 };

fn small(store: &Params) -> Box<dyn Network> {
    Family::Mlp(MlpConfig { hidden: vec![7, 5] }).build("mlp", &SMALL, &store.root()).unwrap()
}

#[test]
fn counts_and_keys_at_28x28() {
    for (name, parameters, multiply_adds) in [(STUDENT, 567_434, 566_528), (TEACHER, 600_458, 599_296)] {
        let store = params();
        build(name, &MNIST, &store.root()).unwrap();
        assert_eq!(store.parameter_count(), parameters, "{name}");
        assert_eq!(info(name).unwrap().spec(&MNIST).unwrap().multiply_adds, multiply_adds, "{name}");
    }
    let store = params();
    build(STUDENT, &MNIST, &store.root()).unwrap();
    let shapes: Vec<_> = store.snapshot().unwrap().into_iter().map(|(name, t)| (name, t.dims().to_vec())).collect();
    let expected: Vec<(String, Vec<usize>)> = [
        ("classifier.bias", vec![10]),
        ("classifier.weight", vec![10, 128]),
        ("feature_extractor.0.bias", vec![512]),
        ("feature_extractor.0.weight", vec![512, 784]),
        ("feature_extractor.2.bias", vec![256]),
        ("feature_extractor.2.weight", vec![256, 512]),
        ("feature_extractor.4.bias", vec![128]),
        ("feature_extractor.4.weight", vec![128, 256]),
    ]
    .map(|(name, shape)| (name.to_string(), shape))
    .into();
    assert_eq!(shapes, expected);
}

#[test]
fn values_are_those_of_the_formula() {
    let store = params();
    let network = small(&store);
    let x = images(&SMALL, 4);
    let outputs = network.forward(&x, Mode::Train, Taps::ALL).unwrap();
    let state = store.snapshot().unwrap();
    let layer = |rows: Vec<Vec<f32>>, name: &str, relu: bool| -> Vec<Vec<f32>> {
        let weight = state[&format!("{name}.weight")].to_vec2::<f32>().unwrap();
        let bias = state[&format!("{name}.bias")].to_vec1::<f32>().unwrap();
        let unit = |row: &[f32], k: usize| {
            let sum = bias[k] + weight[k].iter().zip(row).map(|(w, x)| w * x).sum::<f32>();
            if relu { sum.max(0.0) } else { sum }
        };
        rows.iter().map(|row| (0..bias.len()).map(|k| unit(row, k)).collect()).collect()
    };
    // Pixels in the order channel, row, column, as PyTorch flattens them.
    let pixels = flat(&x).chunks(12).map(<[f32]>::to_vec).collect();
    let embedding = layer(layer(pixels, "feature_extractor.0", true), "feature_extractor.2", true);
    let logits = layer(embedding.clone(), "classifier", false);
    for (found, expected) in [(&outputs.embedding, embedding), (&outputs.logits, logits)] {
        for (a, b) in flat(found).iter().zip(expected.concat()) {
            assert!((a - b).abs() <= 1e-6, "{a} and {b}");
        }
    }
    assert!(flat(&outputs.embedding).iter().all(|x| *x >= 0.0));
    assert!(outputs.maps.is_empty() && outputs.pre_activations.is_empty());
    assert!(outputs.stages().is_empty() && outputs.stage_pre_activations().is_empty() && outputs.last_map().is_err());
    assert!(network.spec().maps.is_empty() && network.spec().stages().is_empty() && !network.spec().pre_activations);
    assert!(network.stage_norms().unwrap().is_none());
}

#[test]
fn initial_values_are_pytorchs() {
    let store = params();
    build(STUDENT, &MNIST, &store.root()).unwrap();
    for (name, tensor) in store.snapshot().unwrap() {
        let inputs = match name.rsplit_once('.').unwrap().0 {
            "feature_extractor.0" => 784f32,
            "feature_extractor.2" => 512.0,
            "feature_extractor.4" => 256.0,
            _ => 128.0,
        };
        // Uniform within 1 / sqrt(inputs), weights and biases alike.
        let (values, bound) = (flat(&tensor), inputs.sqrt().recip());
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest <= bound && largest > 0.8 * bound, "{name}: {largest} and {bound}");
        let square = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
        if values.len() > 1000 {
            let std = f64::from(bound) / 3f64.sqrt();
            assert!((square.sqrt() / std - 1.0).abs() < 0.03, "{name}");
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let store = Params::new(Seed::root(1), DType::F64, &Device::Cpu);
    let network = small(&store);
    let x = images(&SMALL, 5).to_dtype(DType::F64).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let coefficients = Init::Normal { std: 1.0 }.draw(&[5, 3], Seed::root(4), DType::F64, &Device::Cpu).unwrap();
    let loss = || {
        let logits = network.forward(&x, Mode::Train, Taps::default()).unwrap().logits;
        (logits.sqr().unwrap() * &coefficients).unwrap().sum_all().unwrap()
    };
    let gradients = loss().backward().unwrap();
    let h = 1e-6;
    for (name, var) in store.trainable().into_iter().chain([("images".to_string(), x.clone())]) {
        let (start, shape) = (var.flatten_all().unwrap().to_vec1::<f64>().unwrap(), var.dims().to_vec());
        let found = gradients.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..start.len() {
            let value = |step: f64| {
                let mut moved = start.clone();
                moved[i] += step;
                var.set(&Tensor::from_vec(moved, shape.as_slice(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let expected = (value(h) - value(-h)) / (2.0 * h);
            value(0.0);
            assert!((found[i] - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{name}: {} {expected}", found[i]);
        }
    }
}

/// Logits, embedding and all gradients of one step.
fn step(batch: usize) -> Vec<Vec<u32>> {
    let store = params();
    let network = build(TEACHER, &MNIST, &store.root()).unwrap();
    let outputs = network.forward(&images(&MNIST, batch), Mode::Train, Taps::default()).unwrap();
    let loss = (outputs.logits.sqr().unwrap().sum_all().unwrap() + outputs.embedding.sum_all().unwrap()).unwrap();
    let gradients = loss.backward().unwrap();
    let gradients = store.trainable().into_iter().map(|(_, var)| gradients.get(&var).unwrap().clone());
    let tensors = gradients.chain([outputs.logits, outputs.embedding]);
    tensors.map(|t| flat(&t).iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn threads_do_not_change_a_bit() {
    for batch in [1, 7, 64, 128, 250] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| step(batch))
        };
        assert_eq!(run(1), run(2), "batch {batch}");
    }
}

#[test]
fn a_frozen_network_keeps_its_promises() {
    let start = params();
    let open = small(&start);
    let frozen = small(&Params::frozen(start.snapshot().unwrap(), DType::F32, &Device::Cpu));
    let x = images(&SMALL, 2);
    let logits = |network: &dyn Network, mode| network.forward(&x, mode, Taps::default()).unwrap().logits;
    // Nothing is normalised, so all modes compute the same.
    for mode in [Mode::Eval, Mode::BatchStatistics] {
        assert_eq!(flat(&logits(frozen.as_ref(), mode)), flat(&logits(open.as_ref(), Mode::Train)));
        assert!(!logits(frozen.as_ref(), mode).track_op());
    }
    let message = frozen.forward(&x, Mode::Train, Taps::default()).unwrap_err().to_string();
    assert!(message.contains("`mlp`") && message.contains("frozen"), "{message}");
}

#[test]
fn impossible_configurations_are_errors() {
    let message = |hidden: &[usize], config: &ModelConfig| {
        let error =
            Family::Mlp(MlpConfig { hidden: hidden.to_vec() }).build("mlp", config, &params().root()).err().unwrap();
        assert!(matches!(error, Error::Config { .. }));
        error.to_string()
    };
    assert!(message(&[], &SMALL).contains("at least one hidden layer"));
    assert!(message(&[4, 0], &SMALL).contains("positive"));
    assert!(message(&[4], &ModelConfig { image: [0, 3], ..SMALL }).contains("positive"));
    assert!(message(&[4, usize::MAX], &SMALL).contains("4 x 18446744073709551615"));
    for (image, part) in [
        ([1 << 15, 1 << 15], "at most 268435456 weights"),
        ([usize::MAX, 2], "image height must be"),
        ([2, usize::MAX], "image width must be"),
    ] {
        assert!(message(&[4], &ModelConfig { image, ..SMALL }).contains(part));
        assert!(info(STUDENT).unwrap().spec(&ModelConfig { image, ..SMALL }).is_err());
    }
    assert!(message(&[4], &ModelConfig { classes: usize::MAX, ..SMALL }).contains("at most"));
    let network = small(&params());
    let wrong = Tensor::zeros((1, 12), DType::F32, &Device::Cpu).unwrap();
    let message = network.forward(&wrong, Mode::Eval, Taps::default()).unwrap_err().to_string();
    assert!(message.contains("[B, 2, 3, 2]") && message.contains("[1, 12]"), "{message}");
    // The near miss in a manifest.
    let message = build("mlp-512-256-12", &MNIST, &params().root()).err().unwrap().to_string();
    assert!(message.contains("did you mean `mlp-512-256-128`"), "{message}");
}
