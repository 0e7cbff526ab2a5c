//! Registry-driven tests: every model gets them by existing.

use candle_core::{DType, Device, Tensor};
use retort_models::{Block, CifarResNet, CifarResNetConfig, Error, ModelConfig, build, info, registry};
use retort_nn::{Mode, Params, Seed, Taps};

/// Name, parameters, multiply-adds at 100 classes and 3x32x32, counted on the reference implementation.
const REFERENCE: &[(&str, usize, usize)] = &[
    ("resnet8", 83_892, 12_507_392),
    ("resnet14", 181_108, 26_663_168),
    ("resnet20", 278_324, 40_818_944),
    ("resnet32", 472_756, 69_130_496),
    ("resnet44", 667_188, 97_442_048),
    ("resnet56", 861_620, 125_753_600),
    ("resnet110", 1_736_564, 253_155_584),
    ("resnet8x4", 1_233_540, 177_071_104),
    ("resnet32x4", 7_433_860, 1_083_040_768),
];

fn images(config: &ModelConfig, batch: usize) -> Tensor {
    let shape = [batch, config.in_channels, config.image[0], config.image[1]];
    retort_nn::Init::Normal { std: 1.0 }.draw(&shape, Seed::root(5), DType::F32, &Device::Cpu).unwrap()
}

fn params() -> Params {
    Params::new(Seed::root(1), DType::F32, &Device::Cpu)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn counts_equal_the_reference() {
    assert_eq!(registry().len(), REFERENCE.len(), "add the new model's published counts to this table");
    for &(name, parameters, multiply_adds) in REFERENCE {
        let store = params();
        build(name, &ModelConfig::CIFAR100, &store.root()).unwrap();
        assert_eq!(store.parameter_count(), parameters, "{name}");
        assert_eq!(info(name).unwrap().multiply_adds(&ModelConfig::CIFAR100).unwrap(), multiply_adds, "{name}");
    }
}

#[test]
fn shapes_are_those_of_the_spec() {
    for model in registry() {
        for (in_channels, size) in [(1, 28), (3, 17)] {
            let config = ModelConfig { in_channels, image: [size, size], classes: 7 };
            let network = build(model.name, &config, &params().root()).unwrap();
            let outputs = network.forward(&images(&config, 1), Mode::Eval, Taps::ALL).unwrap();
            let spec = network.spec();
            assert_eq!(outputs.logits.dims(), [1, 7]);
            assert_eq!(outputs.embedding.dims(), [1, spec.embedding]);
            assert_eq!(outputs.maps.len(), spec.maps.len());
            assert_eq!(outputs.pre_activations.len(), spec.maps.len());
            for ((map, pre), shape) in outputs.maps.iter().zip(&outputs.pre_activations).zip(&spec.maps) {
                assert_eq!(map.dims(), [1, shape.channels, shape.height, shape.width], "{}", model.name);
                assert_eq!(pre.dims(), map.dims());
                assert_eq!(flat(map), flat(pre).iter().map(|x| x.max(0.0)).collect::<Vec<_>>());
            }
            let plain = network.forward(&images(&config, 1), Mode::Eval, Taps::default()).unwrap();
            assert_eq!(flat(&plain.logits), flat(&outputs.logits), "{}: taps must not change the result", model.name);
            assert!(plain.maps.is_empty() && plain.pre_activations.is_empty());
        }
    }
}

#[test]
fn gradients_reach_every_parameter() {
    // Deeper members repeat the same blocks.
    for model in registry().iter().filter(|m| !["resnet110", "resnet56", "resnet44", "resnet32x4"].contains(&m.name)) {
        let (store, config) = (params(), ModelConfig { in_channels: 1, image: [9, 9], classes: 3 });
        let network = build(model.name, &config, &store.root()).unwrap();
        let outputs = network.forward(&images(&config, 3), Mode::Train, Taps::default()).unwrap();
        let grads = outputs.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in store.trainable() {
            let grad = flat(grads.get(&var).unwrap_or_else(|| panic!("{}: {name} got no gradient", model.name)));
            assert!(grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.0), "{}: {name}", model.name);
        }
    }
}

#[test]
fn save_and_load_are_bit_identical_and_frozen_agrees() {
    for model in registry().iter().filter(|m| !["resnet110", "resnet32x4"].contains(&m.name)) {
        let (store, config) = (params(), ModelConfig { in_channels: 1, image: [8, 8], classes: 3 });
        let network = build(model.name, &config, &store.root()).unwrap();
        // One training pass moves the running statistics away from their start.
        network.forward(&images(&config, 4), Mode::Train, Taps::default()).unwrap();
        let expected = flat(&network.forward(&images(&config, 2), Mode::Eval, Taps::default()).unwrap().logits);
        let snapshot = store.snapshot().unwrap();

        let copy = Params::from_tensors(snapshot.clone(), DType::F32, &Device::Cpu);
        let loaded = build(model.name, &config, &copy.root()).unwrap();
        assert!(copy.unused().is_empty());
        assert_eq!(flat(&loaded.forward(&images(&config, 2), Mode::Eval, Taps::default()).unwrap().logits), expected);

        let frozen_store = Params::frozen(snapshot, DType::F32, &Device::Cpu);
        let frozen = build(model.name, &config, &frozen_store.root()).unwrap();
        let outputs = frozen.forward(&images(&config, 2), Mode::Eval, Taps::ALL).unwrap();
        assert!(!outputs.logits.track_op(), "a frozen network must not build a graph");
        let scale = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
        for (a, b) in flat(&outputs.logits).iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-5 * scale, "{}: {a} and {b}", model.name);
        }
        assert!(frozen.forward(&images(&config, 2), Mode::Train, Taps::default()).is_err());
    }
}

#[test]
fn training_mode_is_deterministic() {
    let run = || {
        let (store, config) = (params(), ModelConfig { in_channels: 3, image: [12, 12], classes: 5 });
        let network = build("resnet14", &config, &store.root()).unwrap();
        let outputs = network.forward(&images(&config, 6), Mode::Train, Taps::default()).unwrap();
        let grads = outputs.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        store.trainable().iter().map(|(_, v)| flat(grads.get(v).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn bad_requests_are_errors() {
    let message = build("resnet80", &ModelConfig::CIFAR100, &params().root()).err().unwrap().to_string();
    assert!(message.contains("`resnet80`") && message.contains("did you mean `resnet8`"), "{message}");
    let config = ModelConfig { classes: 0, ..ModelConfig::CIFAR100 };
    assert!(matches!(build("resnet8", &config, &params().root()), Err(Error::Config { .. })));
    let odd = CifarResNetConfig { depth: 9, block: Block::Basic, channels: [16, 16, 32, 64] };
    assert!(CifarResNet::new("resnet9", &odd, &ModelConfig::CIFAR100, &params().root()).is_err());
    let network = build("resnet8", &ModelConfig::CIFAR100, &params().root()).unwrap();
    let wrong = Tensor::zeros((1, 1, 32, 32), DType::F32, &Device::Cpu).unwrap();
    let message = network.forward(&wrong, Mode::Eval, Taps::default()).unwrap_err().to_string();
    assert!(message.contains("[B, 3, 32, 32]") && message.contains("[1, 1, 32, 32]"), "{message}");
}
