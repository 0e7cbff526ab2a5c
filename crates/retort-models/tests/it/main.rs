//! Registry-driven tests: every model gets them by existing.

mod families;
mod mlp;

use candle_core::{DType, Device, Tensor};
use retort_models::{Block, CifarResNet, CifarResNetConfig, Error, ModelConfig, build, info, registry};
use retort_nn::{Mode, Params, Seed, Taps};

/// Name, parameters, multiply-adds at 100 classes and 3x32x32, counted on the reference implementation where it is not said otherwise.
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
    ("wrn_16_1", 180_916, 26_663_168),
    ("wrn_16_2", 703_284, 101_118_464),
    ("wrn_28_2", 1_479_220, 214_364_672),
    ("wrn_28_4", 5_872_180, 845_620_224),
    ("wrn_40_1", 569_780, 83_286_272),
    ("wrn_40_2", 2_255_156, 327_610_880),
    ("vgg8", 3_965_028, 96_192_512),
    ("vgg11", 9_277_284, 209_438_720),
    ("vgg13", 9_462_180, 284_936_192),
    ("vgg16", 14_774_436, 398_182_400),
    ("vgg19", 20_086_692, 511_428_608),
    // Not in the reference counts: sums of inputs x outputs + outputs over the layers.
    ("mlp-512-256-128", 1_750_500, 1_749_504),
    ("mlp-512-256-128-128-128", 1_783_524, 1_782_272),
];

/// Deep or wide members that repeat the blocks of others: left out of the gradient test.
const HEAVY: &[&str] = &[
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet32x4",
    "wrn_28_2",
    "wrn_28_4",
    "wrn_40_1",
    "wrn_40_2",
    "vgg13",
    "vgg16",
    "vgg19",
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
            }
            assert_eq!(spec.pre_activations, !spec.maps.is_empty(), "{}", model.name);
            let stem = |maps: &[Tensor]| maps.first().map(flat);
            assert_eq!(stem(&outputs.maps), stem(&outputs.pre_activations), "{}", model.name);
            for (map, pre) in outputs.stages().iter().zip(outputs.stage_pre_activations()) {
                let activated: Vec<f32> = flat(pre).iter().map(|x| x.max(0.0)).collect();
                // The maps of wide residual networks are the raw sums in front of the normalisation.
                assert_eq!(flat(map) == activated, !model.name.starts_with("wrn_"), "{}", model.name);
            }
            let plain = network.forward(&images(&config, 1), Mode::Eval, Taps::default()).unwrap();
            assert_eq!(flat(&plain.logits), flat(&outputs.logits), "{}: taps must not change the result", model.name);
            assert!(plain.maps.is_empty() && plain.pre_activations.is_empty());
        }
    }
}

#[test]
fn gradients_reach_every_parameter() {
    for model in registry().iter().filter(|m| !HEAVY.contains(&m.name)) {
        let (store, config) = (params(), ModelConfig { in_channels: 1, image: [9, 9], classes: 3 });
        let network = build(model.name, &config, &store.root()).unwrap();
        let outputs = network.forward(&images(&config, 3), Mode::Train, Taps::default()).unwrap();
        let grads = outputs.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in store.trainable() {
            let grad = flat(grads.get(&var).unwrap_or_else(|| panic!("{}: {name} got no gradient", model.name)));
            let size = grad.iter().fold(0f32, |m, g| m.max(g.abs()));
            assert!(grad.iter().all(|g| g.is_finite()), "{}: {name}", model.name);
            match weight_of_cancelled_bias(&name) {
                None => assert!(size > 0.0, "{}: {name}", model.name),
                Some(weight) => {
                    let (_, var) = store.trainable().into_iter().find(|(name, _)| *name == weight).unwrap();
                    let scale = flat(grads.get(&var).unwrap()).iter().fold(0f32, |m, g| m.max(g.abs()));
                    assert!(size <= 1e-3 * scale, "{}: {name}: {size} against {scale}", model.name);
                }
            }
        }
    }
}

/// The weight next to the bias `name` if batch statistics cancel that bias: the convolutions of VGG, `block{B}.{3j}`.
fn weight_of_cancelled_bias(name: &str) -> Option<String> {
    let [block, index, "bias"] = name.split('.').collect::<Vec<_>>()[..] else { return None };
    let convolution = block.starts_with("block") && index.parse::<usize>().is_ok_and(|i| i.is_multiple_of(3));
    convolution.then(|| format!("{block}.{index}.weight"))
}

#[test]
fn save_and_load_are_bit_identical_and_frozen_agrees() {
    let heavy = ["resnet110", "resnet32x4", "wrn_28_4", "wrn_40_2", "vgg16", "vgg19"];
    for model in registry().iter().filter(|m| !heavy.contains(&m.name)) {
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
