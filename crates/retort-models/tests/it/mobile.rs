//! MobileNet, MobileNetV2, ShuffleNet, ShuffleNetV2 and LeNet-5.

use crate::check::{check_directional_derivative, distance, normal, shaken};
use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor, Var};
use retort_models::{
    Error, Family, InvertedStage, LeNetConfig, MobileNetV1Config, MobileNetV2Config, ModelConfig, SeparableUnit,
    ShuffleNetV1Config, ShuffleNetV2Config, build, info,
};
use retort_nn::{Mode, Network, Outputs, Params, Seed, Taps, Tensors};

const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [13, 16], classes: 3 };

/// A member of every family that is small enough for `f64`.
fn narrow() -> Vec<(&'static str, Family)> {
    let stage = |(expansion, channels, blocks, stride)| InvertedStage {
        expansion,
        channels,
        blocks,
        stride,
        shown: blocks == 2,
    };
    let stages = [(1, 3, 1, 1), (2, 4, 2, 2), (3, 5, 1, 1)].map(stage).to_vec();
    let inverted =
        |family| Family::MobileNetV2(MobileNetV2Config { stem: 4, stages: stages.clone(), last: 6, ..family });
    let unit = |(channels, stride)| SeparableUnit { channels, stride };
    let units = |rows: &[(usize, usize)]| rows.iter().copied().map(unit).collect::<Vec<_>>();
    let mobile = MobileNetV1Config { stem: 4, stages: vec![units(&[(5, 1)]), units(&[(6, 2), (7, 1)])] };
    let shuffle = ShuffleNetV1Config { out_planes: [36, 60, 84], blocks: [1, 2, 1], groups: 3 };
    let split = ShuffleNetV2Config { out_planes: [4, 6, 8], last: 5, blocks: [1, 2, 1], stem_kernel: 3 };
    vec![
        ("plain", inverted(plain(6, 0.5, 2))),
        ("stem1", inverted(MobileNetV2Config::hsakd())),
        ("tiny", inverted(MobileNetV2Config::tiny_imagenet())),
        ("mobile", Family::MobileNetV1(mobile)),
        ("shuffle", Family::ShuffleNetV1(shuffle)),
        ("split", Family::ShuffleNetV2(split)),
        ("lenet", Family::LeNet(LeNetConfig { convolutions: [3, 4], hidden: [6, 5] })),
    ]
}

fn plain(expansion: usize, width: f64, stem_stride: usize) -> MobileNetV2Config {
    MobileNetV2Config::cifar(expansion, width, stem_stride).unwrap()
}

/// A state with every weight and statistic away from its start.
fn state(family: &Family, dtype: DType) -> Tensors {
    let store = Params::new(Seed::root(1), dtype, &Device::Cpu);
    family.build("start", &SMALL, &store.root()).unwrap();
    shaken(&store, dtype)
}

/// The same with gains so large that values beyond 6 occur.
fn loud(family: &Family, dtype: DType) -> Tensors {
    let mut state = state(family, dtype);
    for (name, tensor) in &mut state {
        if name.ends_with(".weight") && tensor.rank() == 1 {
            *tensor = (&*tensor * 4.0).unwrap();
        }
    }
    state
}

fn network(family: &Family, state: Tensors) -> Box<dyn Network> {
    let store = Params::from_tensors(state, DType::F32, &Device::Cpu);
    let network = family.build("network", &SMALL, &store.root()).unwrap();
    assert!(store.unused().is_empty());
    network
}

fn everything(family: &Family) -> Outputs {
    network(family, loud(family, DType::F32)).forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap()
}

const CIFAR: ModelConfig = ModelConfig::CIFAR100;

#[test]
fn shapes_equal_the_reference() {
    let shapes = |name: &str, in_channels, size, expected: &[[usize; 3]], embedding| {
        let config = ModelConfig { in_channels, image: [size, size], classes: 10 };
        let spec = info(name).unwrap().spec(&config).unwrap();
        let found: Vec<_> = spec.maps.iter().map(|map| [map.channels, map.height, map.width]).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(spec.embedding, embedding, "{name}");
    };
    let halved = [[16, 16, 16], [12, 16, 16], [16, 8, 8], [48, 4, 4], [160, 2, 2]];
    shapes("MobileNetV2", 3, 32, &halved, 1280);
    shapes("MobileNetV2_stem1", 3, 32, &halved.map(|[channels, h, w]| [channels, 2 * h, 2 * w]), 1280);
    // The stem's padding of a 1x1 window widens the map.
    let tiny = [[32, 66, 66], [24, 33, 33], [32, 17, 17], [64, 9, 9], [1280, 9, 9]];
    shapes("tinyimagenet_MobileNetV2", 3, 64, &tiny, 1280);
    shapes("MobileNetV1", 3, 224, &[[128, 56, 56], [256, 28, 28], [512, 14, 14], [1024, 7, 7]], 1024);
    shapes("ShuffleV1", 3, 32, &[[24, 32, 32], [240, 16, 16], [480, 8, 8], [960, 4, 4]], 960);
    shapes("ShuffleV2", 3, 32, &[[24, 32, 32], [116, 16, 16], [232, 8, 8], [464, 4, 4]], 1024);
    shapes("ShuffleNetV2_05x_cifar", 3, 32, &[[24, 32, 32], [48, 16, 16], [96, 8, 8], [192, 4, 4]], 1024);
    shapes("lenet5", 1, 28, &[[6, 28, 28], [16, 10, 10]], 84);
}

#[test]
fn options_scale_the_networks() {
    let count = |family: Family, classes| {
        let store = Params::declared(DType::F32, &Device::Cpu);
        family.build("network", &ModelConfig { classes, ..CIFAR }, &store.root()).unwrap();
        store.parameter_count()
    };
    assert_eq!(count(Family::MobileNetV2(plain(2, 0.25, 2)), 10), 162_370);
    let shuffle = ShuffleNetV1Config { out_planes: [60, 120, 240], blocks: [2, 2, 2], groups: 3 };
    assert_eq!(count(Family::ShuffleNetV1(shuffle), 10), 21_793);
    // Python's int(c * width), and the last convolution grows with widths above 1 only.
    let channels = |width| plain(6, width, 2).stages.iter().map(|stage| stage.channels).collect::<Vec<_>>();
    assert_eq!(channels(0.35), [5, 8, 11, 22, 33, 56, 112]);
    assert_eq!((plain(6, 0.35, 2).stem, plain(6, 0.35, 2).last, plain(6, 1.4, 2).last), (11, 1280, 1792));
    for (size, out_planes, last, blocks) in [
        (0.2, [40, 80, 160], 512, [3, 3, 3]),
        (0.3, [40, 80, 160], 512, [3, 7, 3]),
        (0.5, [48, 96, 192], 1024, [3, 7, 3]),
        (1.0, [116, 232, 464], 1024, [3, 7, 3]),
        (1.5, [176, 352, 704], 1024, [3, 7, 3]),
        (2.0, [224, 488, 976], 2048, [3, 7, 3]),
    ] {
        let expected = ShuffleNetV2Config { out_planes, last, blocks, stem_kernel: 1 };
        assert_eq!(ShuffleNetV2Config::of_size(size, 1).unwrap(), expected);
        let config = ModelConfig { image: [9, 14], ..CIFAR };
        let store = params();
        let network = Family::ShuffleNetV2(expected).build("network", &config, &store.root()).unwrap();
        let outputs = network.forward(&images(&config, 1), Mode::Eval, Taps::default()).unwrap();
        assert_eq!(outputs.embedding.dims(), [1, last]);
    }
}

#[test]
fn keys_are_those_of_the_code_bases() {
    let keys = |name: &str, expected: &[&str], absent: &[&str]| {
        let store = Params::declared(DType::F32, &Device::Cpu);
        info(name).unwrap().family.build(name, &CIFAR, &store.root()).unwrap();
        let names = store.snapshot().unwrap();
        for key in expected {
            assert!(names.contains_key(*key), "{name}: {key}");
        }
        for key in absent {
            assert!(!names.contains_key(*key), "{name}: {key}");
        }
        names
    };
    keys(
        "MobileNetV2",
        &[
            "conv1.0.weight",
            "conv1.1.running_var",
            "blocks.0.0.conv.0.weight",
            "blocks.3.3.conv.7.bias",
            "conv2.1.bias",
        ],
        &["conv1.0.bias", "blocks.0.0.conv.2.weight", "classifier.weight"],
    );
    let names = keys("MobileNetV2", &["classifier.0.weight"], &[]);
    assert_eq!(names["blocks.6.0.conv.3.weight"].dims(), [480, 1, 3, 3]);
    keys("MobileNetV2_stem1", &["classifier.weight", "classifier.bias"], &["classifier.0.weight"]);
    let names = keys(
        "tinyimagenet_MobileNetV2",
        &[
            "pre.0.bias",
            "pre.1.weight",
            "stage1.residual.0.bias",
            "stage2.1.residual.7.bias",
            "stage7.residual.6.weight",
        ],
        &["stage1.0.residual.0.weight", "classifier.weight"],
    );
    assert_eq!(names["conv1.0.weight"].dims(), [1280, 320, 1, 1]);
    assert_eq!(names["conv2.weight"].dims(), [100, 1280, 1, 1]);
    let first_and_last =
        ["model.0.0.weight", "model.0.1.bias", "model.1.0.weight", "model.13.4.running_mean", "fc.bias"];
    keys("MobileNetV1", &first_and_last, &["model.0.3.weight", "model.14.0.weight"]);
    keys("ShuffleV1", &["conv1.weight", "bn1.bias", "layer2.7.conv3.weight", "layer3.3.bn3.bias", "linear.bias"], &[]);
    keys(
        "ShuffleV2",
        &["layer1.0.conv5.weight", "layer1.1.bn3.bias", "conv2.weight", "bn2.bias"],
        &["layer1.1.bn4.bias"],
    );
    keys("lenet5", &["conv1.bias", "conv2.weight", "fc1.weight", "fc2.bias", "fc3.weight"], &[]);
}

#[test]
fn gradients_agree_with_central_differences() {
    for (name, family) in narrow() {
        let state = if name == "tiny" { loud(&family, DType::F64) } else { state(&family, DType::F64) };
        let store = Params::from_tensors(state, DType::F64, &Device::Cpu);
        let network = family.build(name, &SMALL, &store.root()).unwrap();
        let x = Var::from_tensor(&normal(&[3, SMALL.in_channels, SMALL.image[0], SMALL.image[1]], 5)).unwrap();
        check_directional_derivative(&store, std::slice::from_ref(&x), || {
            let outputs = network.forward(&x, Mode::Train, Taps::ALL).unwrap();
            // Every output takes part, so that the way through each tap is seen, too.
            let weighted = all(&outputs).into_iter().map(|part| (&part * normal(part.dims(), 4)).unwrap());
            weighted.map(|part| part.sum_all().unwrap()).reduce(|a, b| (a + b).unwrap()).unwrap()
        });
    }
}

fn all(outputs: &Outputs) -> Vec<Tensor> {
    let maps = outputs.maps.iter().chain(&outputs.pre_activations);
    maps.chain([&outputs.embedding, &outputs.logits]).cloned().collect()
}

#[test]
fn frozen_networks_agree_with_unfrozen_ones() {
    let x = normal(&[2, SMALL.in_channels, SMALL.image[0], SMALL.image[1]], 5);
    for (name, family) in narrow() {
        let outputs = |store: Params| {
            let network = family.build(name, &SMALL, &store.root()).unwrap();
            assert_eq!(
                network.forward(&x, Mode::Train, Taps::default()).is_err(),
                store.trainable().is_empty(),
                "{name}"
            );
            network.forward(&x, Mode::Eval, Taps::ALL).unwrap()
        };
        let trainable = Params::from_tensors(loud(&family, DType::F64), DType::F64, &Device::Cpu);
        let expected = outputs(trainable.clone());
        // The training pass has moved the statistics, so this is the state that the frozen network starts from.
        let found = outputs(Params::frozen(trainable.snapshot().unwrap(), DType::F64, &Device::Cpu));
        assert!(!found.logits.track_op(), "{name}");
        for (found, expected) in all(&found).iter().zip(&all(&expected)) {
            let scale = distance(expected, &expected.zeros_like().unwrap());
            let error = distance(found, expected);
            assert!(error <= 1e-12 * scale.max(1.0), "{name}: {error} of {scale}");
        }
    }
}

#[test]
fn taps_change_neither_results_nor_statistics() {
    for (name, family) in narrow() {
        let after = |taps| {
            let store = Params::from_tensors(loud(&family, DType::F32), DType::F32, &Device::Cpu);
            let network = family.build(name, &SMALL, &store.root()).unwrap();
            let logits = network.forward(&images(&SMALL, 3), Mode::Train, taps).unwrap().logits;
            let mut values: Vec<_> = store.snapshot().unwrap().values().map(flat).collect();
            values.push(flat(&logits));
            values
        };
        assert_eq!(after(Taps::ALL), after(Taps::default()), "{name}");
    }
}

fn family(name: &str) -> Family {
    narrow().into_iter().find(|(other, _)| *other == name).unwrap().1
}

/// `[B, C, H, W]` as `[b][c]` rows of positions.
fn planes(map: &Tensor) -> Vec<Vec<f32>> {
    let (batch, channels, height, width) = map.dims4().unwrap();
    map.reshape((batch * channels, height * width)).unwrap().to_vec2().unwrap()
}

fn positive(plane: &[f32]) -> Vec<f32> {
    plane.iter().map(|x| x.max(0.0)).collect()
}

#[test]
fn pre_activations_of_the_second_shufflenet_are_in_the_order_before_the_shuffle() {
    let outputs = everything(&family("split"));
    assert_eq!(flat(&outputs.maps[0]), flat(&outputs.pre_activations[0]));
    for (map, pre) in outputs.stages().iter().zip(outputs.stage_pre_activations()) {
        let (batch, channels, ..) = map.dims4().unwrap();
        let (map, pre) = (planes(map), planes(pre));
        assert!(pre.iter().flatten().any(|x| *x < 0.0));
        for image in 0..batch {
            for i in 0..channels {
                // Channel i of half g is channel g of pair i.
                let (half, place) = (i / (channels / 2), i % (channels / 2));
                let from = image * channels;
                assert_eq!(map[from + 2 * place + half], positive(&pre[from + i]));
            }
            let untouched = &pre[image * channels..][..channels / 2];
            assert!(untouched.iter().flatten().all(|x| *x >= 0.0), "the first half is activated already");
        }
    }
}

#[test]
fn pre_activations_become_the_features_by_their_activation() {
    for name in ["shuffle", "mobile", "lenet"] {
        let outputs = everything(&family(name));
        for (i, (map, pre)) in outputs.maps.iter().zip(&outputs.pre_activations).enumerate() {
            assert_eq!(flat(map), positive(&flat(pre)), "{name}");
            // Entry 0 is f0 itself, but for MobileNet.
            assert_eq!(flat(map) != flat(pre), i > 0 || name == "mobile", "{name}, map {i}");
        }
    }
    for name in ["plain", "stem1", "tiny"] {
        let network = network(&family(name), loud(&family(name), DType::F32));
        let outputs = network.forward(&images(&SMALL, 1), Mode::Eval, Taps::ALL).unwrap();
        assert!(!network.spec().pre_activations && outputs.pre_activations.is_empty());
        assert!(outputs.maps.len() == network.spec().maps.len() && !outputs.maps.is_empty());
    }
}

#[test]
fn pooled_channels_of_a_shufflenet_count_the_border() {
    // Stage 1 has one block: its last 24 channels are means of f0.
    let outputs = everything(&family("shuffle"));
    let (stem, stage) = (&outputs.maps[0], &outputs.maps[1]);
    let (batch, _, height, width) = stem.dims4().unwrap();
    let (_, channels, h, w) = stage.dims4().unwrap();
    assert_eq!([channels, h, w], [36, height.div_ceil(2), width.div_ceil(2)]);
    let (stem, stage) = (planes(stem), planes(stage));
    for image in 0..batch {
        for channel in 0..24 {
            let (from, to) = (&stem[image * 24 + channel], &stage[image * 36 + 12 + channel]);
            for (row, column) in [(0, 0), (0, 1), (1, 1), (h - 1, w - 1)] {
                let rows = (2 * row).saturating_sub(1)..(2 * row + 2).min(height);
                let columns = (2 * column).saturating_sub(1)..(2 * column + 2).min(width);
                let sum: f32 = rows.flat_map(|r| columns.clone().map(move |c| r * width + c)).map(|i| from[i]).sum();
                let found = to[row * w + column];
                assert!((found - sum / 9.0).abs() <= 1e-6 * sum.abs().max(1.0), "{found} and {}", sum / 9.0);
            }
        }
    }
}

#[test]
fn only_the_activations_of_the_capped_network_end_at_six() {
    let largest = |name: &str| {
        let outputs = everything(&family(name));
        flat(&outputs.maps[0]).iter().fold(0f32, |m, x| m.max(*x))
    };
    assert_eq!(largest("tiny"), 6.0);
    assert!(largest("plain") > 6.0);
    // The sums behind the rows are not activated.
    for name in ["plain", "tiny"] {
        assert!(flat(&everything(&family(name)).maps[1]).iter().any(|x| *x < 0.0), "{name}");
    }
}

#[test]
fn norms_are_those_before_the_activations() {
    let norms = |name: &str, config: &ModelConfig| {
        let store = params();
        let network = build(name, config, &store.root()).unwrap();
        let norms = network.stage_norms().unwrap();
        norms.map(|norms| norms.iter().map(|norm| norm.weight.dims()[0]).collect::<Vec<_>>())
    };
    let config = ModelConfig { image: [16, 16], ..CIFAR };
    assert_eq!(norms("MobileNetV2", &config), Some(vec![12, 16, 48, 160]));
    assert_eq!(norms("MobileNetV1", &config), Some(vec![256, 512, 1024]));
    assert_eq!(norms("ShuffleV1", &config), None);
    assert_eq!(norms("ShuffleV2", &config), None);
    assert_eq!(norms("lenet5", &config), None);
}

#[test]
fn initial_values_follow_the_code_bases() {
    let fresh = |name: &str| {
        let store = params();
        build(name, &ModelConfig { image: [16, 16], ..CIFAR }, &store.root()).unwrap();
        store.snapshot().unwrap()
    };
    let spread = |tensor: &Tensor| {
        let values = flat(tensor);
        (values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let largest = |tensor: &Tensor| flat(tensor).iter().fold(0f32, |m, x| m.max(x.abs()));
    let mobile = fresh("MobileNetV2");
    // Not divided by the groups: 4,320 draws, so 5 % are 4 standard errors.
    assert!((spread(&mobile["blocks.6.0.conv.3.weight"]) / (2.0f64 / (9.0 * 480.0)).sqrt() - 1.0).abs() < 0.05);
    assert!((spread(&mobile["classifier.0.weight"]) / 0.01 - 1.0).abs() < 0.02);
    assert_eq!(largest(&mobile["classifier.0.bias"]), 0.0);
    let bounds = [
        ("ShuffleV1", "layer3.1.conv3.weight", 80.0),
        ("ShuffleV1", "layer3.1.conv2.weight", 9.0),
        ("ShuffleV2", "conv2.weight", 464.0),
        ("ShuffleV2", "linear.weight", 1024.0),
        ("MobileNetV1", "model.13.3.weight", 1024.0),
        ("tinyimagenet_MobileNetV2", "stage6.1.residual.3.bias", 9.0),
        ("tinyimagenet_MobileNetV2", "conv2.weight", 1280.0),
        ("lenet5", "fc1.weight", 64.0),
    ];
    for (name, key, fan_in) in bounds {
        let (found, bound) = (largest(&fresh(name)[key]), 1.0 / f32::sqrt(fan_in));
        assert!(found <= bound && found > 0.97 * bound, "{name}: {key}: {found} of {bound}");
    }
}

#[test]
fn lenet_takes_other_images() {
    for (in_channels, image, flat) in [(1, [28, 28], 400), (3, [32, 32], 576), (2, [12, 17], 16 * 2)] {
        let config = ModelConfig { in_channels, image, classes: 10 };
        let store = params();
        let network = build("lenet5", &config, &store.root()).unwrap();
        assert_eq!(store.snapshot().unwrap()["fc1.weight"].dims(), [120, flat]);
        let outputs = network.forward(&images(&config, 2), Mode::Train, Taps::ALL).unwrap();
        assert_eq!(outputs.logits.dims(), [2, 10]);
        for (map, shape) in outputs.maps.iter().zip(&network.spec().maps) {
            assert_eq!(map.dims(), [2, shape.channels, shape.height, shape.width]);
        }
    }
}

/// The message of a configuration that is refused.
fn refused(family: &Family, config: &ModelConfig) -> String {
    let store = Params::declared(DType::F32, &Device::Cpu);
    match family.build("network", config, &store.root()) {
        Err(error @ Error::Config { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{family:?} was built for {config:?}"),
    }
}

#[test]
fn impossible_configurations_are_errors() {
    for (expansion, width, stem_stride, words) in [
        (0, 0.5, 2, "expansion must be from 1 to 64, found 0"),
        (usize::MAX, 0.5, 2, "expansion"),
        (6, f64::NAN, 2, "width must be from 1/16 to 16, found NaN"),
        (6, -1.0, 2, "found -1"),
        (6, 1e300, 2, "width"),
        (6, 0.05, 2, "width"),
        (6, 0.5, 0, "stem_stride"),
        (6, 0.5, 3, "stem_stride must be from 1 to 2, found 3"),
    ] {
        let message = MobileNetV2Config::cifar(expansion, width, stem_stride).unwrap_err().to_string();
        assert!(message.contains(words) && message.contains("MobileNetV2"), "{message}");
    }
    for (net_size, stem_kernel, words) in
        [(0.7, 1, "one of 0.2, 0.3, 0.5, 1, 1.5, 2, found 0.7"), (f64::NAN, 1, "NaN"), (1.0, 2, "stem_kernel")]
    {
        let message = ShuffleNetV2Config::of_size(net_size, stem_kernel).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    let groups = |groups| Family::ShuffleNetV1(ShuffleNetV1Config { groups, ..ShuffleNetV1Config::cifar() });
    let planes = |out_planes| Family::ShuffleNetV1(ShuffleNetV1Config { out_planes, ..ShuffleNetV1Config::cifar() });
    let halves = |out_planes| {
        Family::ShuffleNetV2(ShuffleNetV2Config { out_planes, ..ShuffleNetV2Config::of_size(1.0, 1).unwrap() })
    };
    let stages = |blocks| {
        let mut family = MobileNetV2Config::hsakd();
        family.stages[3].blocks = blocks;
        Family::MobileNetV2(family)
    };
    let lenet = |hidden| Family::LeNet(LeNetConfig { hidden, ..LeNetConfig::lenet5() });
    for (family, words) in [
        (groups(0), "groups must be from 1"),
        (groups(4), "4 groups, found 54"),
        (groups(usize::MAX), "groups"),
        (planes([24, 480, 960]), "must grow from stage to stage, found 24 behind 24"),
        (planes([240, 240, 960]), "must grow"),
        (planes([25, 480, 960]), "3 groups, found 0"),
        (planes([240, 480, usize::MAX]), "out_planes"),
        (halves([116, 232, 463]), "must be even, found 463"),
        (halves([0, 232, 464]), "out_planes must be from 1"),
        (stages(0), "blocks must be from 1 to 256, found 0"),
        (stages(usize::MAX), "blocks"),
        (Family::MobileNetV1(MobileNetV1Config { stem: 0, ..MobileNetV1Config::imagenet() }), "stem channels"),
        (Family::MobileNetV1(MobileNetV1Config { stem: 8, stages: vec![] }), "number of stages must be from 2"),
        (lenet([0, 84]), "hidden must be from 1"),
        (lenet([120, usize::MAX]), "hidden"),
    ] {
        let message = refused(&family, &SMALL);
        assert!(message.contains(words) && message.contains("`network`"), "{message}");
    }
    for image in [[11, 40], [40, 11], [1, 1], [2, 2]] {
        let message = refused(&Family::LeNet(LeNetConfig::lenet5()), &ModelConfig { image, ..SMALL });
        assert!(message.contains("too small"), "{message}");
    }
    for (_, family) in narrow() {
        for image in [[0, 32], [32, 0]] {
            assert!(refused(&family, &ModelConfig { image, ..SMALL }).contains("positive"));
        }
        assert!(refused(&family, &ModelConfig { classes: 0, ..SMALL }).contains("positive"));
    }
}

#[test]
fn the_smallest_images_pass() {
    for (name, family) in narrow().into_iter().filter(|(name, _)| *name != "lenet") {
        for image in [[1, 1], [1, 5], [2, 3]] {
            let config = ModelConfig { image, ..SMALL };
            let network = family.build(name, &config, &params().root()).unwrap();
            let outputs = network.forward(&images(&config, 2), Mode::Train, Taps::ALL).unwrap();
            for (map, shape) in outputs.maps.iter().zip(&network.spec().maps) {
                assert_eq!(map.dims(), [2, shape.channels, shape.height, shape.width], "{name}");
            }
        }
    }
}
