//! What only one family does.

use crate::check::shaken;
use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor};
use retort_models::{
    Branch, Error, Family, Flavour, ModelConfig, PreActivationConfig, ResNetConfig, ResNetStem, Stage, VggConfig, build,
};
use retort_nn::{Init, Mode, Network, Outputs, Params, Seed, Taps};

const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [8, 11], classes: 3 };
/// A narrow VGG with blocks of one and of two convolutions.
fn narrow_vgg() -> VggConfig {
    VggConfig::uniform([3, 4, 4, 5, 6], [1, 2, 1, 2, 1])
}

fn wide(depth: usize, widen: usize, config: &ModelConfig, store: &Params) -> Result<Box<dyn Network>, Error> {
    Family::PreActivation(PreActivationConfig::wide(depth, widen)?).build("wrn", config, &store.root())
}

fn narrow(config: &ModelConfig, store: &Params) -> Result<Box<dyn Network>, Error> {
    Family::Vgg(narrow_vgg()).build("vgg", config, &store.root())
}

/// A VGG whose blocks change their width inside.
fn several_widths() -> VggConfig {
    VggConfig { blocks: [vec![3, 4], vec![4], vec![5, 3, 4], vec![6], vec![5, 7]], normalised: true }
}

/// A network of two narrow stages with a stem for large images and one for small ones.
fn residual(branch: Branch, stem: ResNetStem) -> Family {
    Family::ResNet(ResNetConfig { stem, stages: narrow_stages(), ..ResNetConfig::imagenet(branch, [1; 4]) })
}

fn pre_activation(flavour: Flavour, branch: Branch) -> Family {
    Family::PreActivation(PreActivationConfig {
        flavour,
        branch,
        stem: 4,
        stages: narrow_stages(),
        ..PreActivationConfig::resnet18()
    })
}

fn narrow_stages() -> Vec<Stage> {
    vec![Stage { channels: 4, blocks: 2, stride: 1 }, Stage { channels: 6, blocks: 1, stride: 2 }]
}

/// Every kind of block and shortcut once.
fn kinds() -> Vec<Family> {
    let large = ResNetStem { channels: 4, ..ResNetStem::imagenet() };
    let bare = ResNetStem { activated: false, ..ResNetStem::small(4) };
    let Family::ResNet(unnormalised) = residual(Branch::Bottleneck, ResNetStem::small(4)) else { unreachable!() };
    let unnormalised =
        ResNetConfig { projection: ResNetConfig::self_distillation_resnet50().projection, ..unnormalised };
    vec![
        residual(Branch::Basic, large),
        residual(Branch::Bottleneck, bare),
        Family::ResNet(unnormalised),
        pre_activation(Flavour::Activated, Branch::Basic),
        pre_activation(Flavour::Raw, Branch::Basic),
        pre_activation(Flavour::Raw, Branch::Bottleneck),
        Family::PreActivation(PreActivationConfig::wide(10, 1).unwrap()),
        Family::PreActivation(PreActivationConfig::wide(10, 2).unwrap()),
        Family::Vgg(narrow_vgg()),
        Family::Vgg(VggConfig { normalised: false, ..narrow_vgg() }),
        Family::Vgg(several_widths()),
        Family::PreActivation(PreActivationConfig {
            stem_kernel: 5,
            stem_stride: 2,
            ..PreActivationConfig::wide(10, 1).unwrap()
        }),
    ]
}

/// `sum(coefficients * logits)` in training mode.
fn objective(network: &dyn Network, x: &Tensor) -> Tensor {
    let logits = network.forward(x, Mode::Train, Taps::ALL).unwrap().logits;
    let coefficients = Init::Normal { std: 1.0 }.draw(logits.dims(), Seed::root(4), DType::F64, &Device::Cpu).unwrap();
    (logits * coefficients).unwrap().sum_all().unwrap()
}

/// The derivative along a random direction of all parameters, against a central difference.
fn check_directional_derivative(build: impl Fn(&Params) -> Box<dyn Network>) {
    let store = Params::new(Seed::root(1), DType::F64, &Device::Cpu);
    build(&store);
    let store = Params::from_tensors(shaken(&store, DType::F64), DType::F64, &Device::Cpu);
    let network = build(&store);
    let [height, width] = SMALL.image;
    let shape = [4, SMALL.in_channels, height, width];
    let x = Init::Normal { std: 1.0 }.draw(&shape, Seed::root(5), DType::F64, &Device::Cpu).unwrap();
    let gradients = objective(network.as_ref(), &x).backward().unwrap();
    let start = store.snapshot().unwrap();
    let mut expected = 0.0;
    let mut direction = Vec::new();
    for (name, var) in store.trainable() {
        let step =
            Init::Normal { std: 1.0 }.draw(var.dims(), Seed::root(6).child(&name), DType::F64, &Device::Cpu).unwrap();
        let along = (gradients.get(&var).unwrap() * &step).unwrap().sum_all().unwrap();
        expected += along.to_scalar::<f64>().unwrap();
        direction.push((name, var, step));
    }
    // So small that no unit crosses its kink on the way: at 1e-6 one of the first network does, which moves the
    // difference by 0.5 %. Rounding leaves 8 digits.
    let h = 1e-8;
    let value = |sign: f64| {
        for (name, var, step) in &direction {
            var.set(&(&start[name] + (step * (sign * h)).unwrap()).unwrap()).unwrap();
        }
        objective(network.as_ref(), &x).to_scalar::<f64>().unwrap()
    };
    let found = (value(1.0) - value(-1.0)) / (2.0 * h);
    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} and {expected}");
}

#[test]
fn gradients_agree_with_central_differences() {
    check_directional_derivative(|store| wide(16, 1, &SMALL, store).unwrap());
    for family in kinds() {
        check_directional_derivative(|store| family.build("kind", &SMALL, &store.root()).unwrap());
    }
}

#[test]
fn taps_do_not_move_the_running_statistics_twice() {
    for name in ["resnet8", "wrn_16_1", "vgg8", "preresnet20"] {
        let config = ModelConfig { in_channels: 1, image: [9, 10], classes: 3 };
        let after = |taps: Taps| {
            let store = params();
            let network = build(name, &config, &store.root()).unwrap();
            network.forward(&images(&config, 4), Mode::Train, taps).unwrap();
            let snapshot = store.snapshot().unwrap();
            snapshot.into_iter().filter(|(name, _)| name.contains("running")).map(|(_, t)| flat(&t)).collect::<Vec<_>>()
        };
        assert_eq!(after(Taps::ALL), after(Taps::default()), "{name}");
    }
}

#[test]
fn wide_pre_activations_are_the_normalisations_that_follow() {
    let start = params();
    wide(16, 2, &SMALL, &start).unwrap();
    let state = shaken(&start, DType::F32);
    let network = wide(16, 2, &SMALL, &Params::from_tensors(state.clone(), DType::F32, &Device::Cpu)).unwrap();
    let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
    let norms = ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"];
    for ((norm, map), pre) in norms.iter().zip(outputs.stages()).zip(outputs.stage_pre_activations()) {
        let vector = |key: &str| flat(&state[&format!("{norm}.{key}")]);
        let (weight, bias, mean, var) =
            (vector("weight"), vector("bias"), vector("running_mean"), vector("running_var"));
        let [batch, channels, height, width] = <[usize; 4]>::from(map.dims4().unwrap());
        assert_eq!(channels, weight.len());
        let (map, pre) = (flat(map), flat(pre));
        for i in 0..batch * channels * height * width {
            let c = i / (height * width) % channels;
            let expected = weight[c] * (map[i] - mean[c]) / (var[c] + 1e-5).sqrt() + bias[c];
            assert!((pre[i] - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{norm}: {} {expected}", pre[i]);
        }
    }
}

#[test]
fn wide_shortcuts_take_the_raw_map_or_project_the_activated_one() {
    let start = params();
    wide(16, 1, &SMALL, &start).unwrap();
    let mut state = shaken(&start, DType::F32);
    // Without their last convolution the branches are silent and the shortcuts are all that is left.
    for (_, weight) in state.iter_mut().filter(|(name, _)| name.ends_with("conv2.weight")) {
        *weight = weight.zeros_like().unwrap();
    }
    let network = wide(16, 1, &SMALL, &Params::from_tensors(state.clone(), DType::F32, &Device::Cpu)).unwrap();
    let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
    assert!(flat(&outputs.maps[0]).iter().any(|x| *x < 0.0), "the stem is not activated");
    assert_eq!(flat(&outputs.maps[1]), flat(&outputs.maps[0]));
    for (group, map) in [(2, &outputs.maps[2]), (3, &outputs.maps[3])] {
        let activated = retort_kernels::relu(&outputs.pre_activations[group - 1]).unwrap();
        let weight = &state[&format!("block{group}.layer.0.convShortcut.weight")];
        let spec = retort_kernels::Conv2dSpec::new(2, 0);
        assert_eq!(flat(map), flat(&retort_kernels::conv2d(&activated, weight, None, &spec).unwrap()));
    }
}

/// `family` with shaken weights in which the last convolution of every block is silent: the shortcuts are all that is
/// left.
fn shortcuts(family: &Family) -> Outputs {
    let start = params();
    family.build("kind", &SMALL, &start.root()).unwrap();
    let mut state = shaken(&start, DType::F32);
    for (_, weight) in state.iter_mut().filter(|(name, _)| name.ends_with("conv2.weight")) {
        *weight = weight.zeros_like().unwrap();
    }
    let store = Params::from_tensors(state, DType::F32, &Device::Cpu);
    let network = family.build("kind", &SMALL, &store.root()).unwrap();
    network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap()
}

#[test]
fn identity_shortcuts_take_the_activated_or_the_raw_map() {
    let activated = shortcuts(&pre_activation(Flavour::Activated, Branch::Basic));
    assert!(flat(&activated.maps[0]).iter().all(|x| *x >= 0.0), "the stem is activated");
    assert!(flat(&activated.maps[1]).iter().all(|x| *x >= 0.0), "what is added is activated");
    assert_ne!(flat(&activated.maps[1]), flat(&activated.maps[0]));
    assert!(activated.pre_activations.is_empty());

    let raw = shortcuts(&pre_activation(Flavour::Raw, Branch::Basic));
    assert!(flat(&raw.maps[0]).iter().any(|x| *x < 0.0), "the stem is not activated");
    assert_eq!(flat(&raw.maps[1]), flat(&raw.maps[0]));
    let pooled = retort_kernels::relu(&raw.pre_activations[2]).unwrap().mean((2, 3)).unwrap();
    for (a, b) in flat(&raw.embedding).iter().zip(flat(&pooled)) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "the last sum is normalised and activated: {a} {b}");
    }
}

#[test]
fn the_activated_flavour_pools_the_raw_sum() {
    let family = pre_activation(Flavour::Activated, Branch::Basic);
    let network = family.build("kind", &SMALL, &params().root()).unwrap();
    let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
    let last = outputs.maps.last().unwrap();
    assert!(flat(last).iter().any(|x| *x < 0.0));
    for (a, b) in flat(&outputs.embedding).iter().zip(flat(&last.mean((2, 3)).unwrap())) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
    }
}

#[test]
fn the_stem_is_shown_before_its_pooling() {
    let store = params();
    let config = ModelConfig { in_channels: 3, image: [64, 50], classes: 3 };
    let network = build("imagenet_resnet18", &config, &store.root()).unwrap();
    let sizes: Vec<_> = network.spec().maps.iter().map(|map| [map.height, map.width]).collect();
    assert_eq!(sizes, [[32, 25], [16, 13], [8, 7], [4, 4], [2, 2]]);
    let outputs = network.forward(&images(&config, 2), Mode::Eval, Taps::ALL).unwrap();
    assert!(flat(&outputs.maps[0]).iter().all(|x| *x >= 0.0), "f0 is activated");
    assert_eq!(flat(&outputs.pre_activations[0]), flat(&outputs.maps[0]));
}

#[test]
fn flavours_of_residual_networks_differ_where_they_should() {
    let state = |name: &str| {
        let store = params();
        build(name, &ModelConfig::CIFAR100, &store.root()).unwrap();
        store.snapshot().unwrap()
    };
    let shared = state("selfkd_resnet50");
    assert!(shared.contains_key("layer1.0.shortcut.0.weight") && !shared.contains_key("layer1.0.shortcut.1.weight"));
    let bound = 1.0 / (64f32 * 9.0).sqrt();
    let largest = flat(&shared["layer1.1.conv2.weight"]).iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(largest <= bound && largest > 0.99 * bound, "{largest} and {bound}");

    let encoder = state("sns_resnet18");
    assert_eq!(encoder["conv1.weight"].dims(), [64, 3, 3, 3]);
    for (key, tensor) in encoder.iter().filter(|(key, _)| key.contains("bn") && key.ends_with("weight")) {
        let start = if key.ends_with("bn2.weight") { 0.0 } else { 1.0 };
        assert!(flat(tensor).iter().all(|x| *x == start), "{key}");
    }

    let config = ModelConfig { in_channels: 1, image: [8, 8], classes: 3 };
    let network = build("mixskd_backbone", &config, &params().root()).unwrap();
    let outputs = network.forward(&images(&config, 2), Mode::Eval, Taps::ALL).unwrap();
    assert!(flat(&outputs.maps[0]).iter().any(|x| *x < 0.0), "nothing activates the stem");

    let family = Family::ResNet(ResNetConfig::regression(20, [16, 16, 32, 64]).unwrap());
    let config = ModelConfig { in_channels: 3, image: [64, 64], classes: 1 };
    let network = family.build("resnet20", &config, &params().root()).unwrap();
    let sizes: Vec<_> = network.spec().maps.iter().map(|map| map.height).collect();
    assert_eq!(sizes, [64, 32, 16, 8]);
}

/// The variance of one value is undefined: the batch must hold a second image where the last map is a single pixel.
#[test]
fn a_batch_of_one_with_maps_of_one_pixel_is_refused_in_training() {
    let config = ModelConfig { in_channels: 3, image: [32, 32], classes: 3 };
    let network = build("imagenet_resnet18", &config, &params().root()).unwrap();
    let message = network.forward(&images(&config, 1), Mode::Train, Taps::default()).unwrap_err().to_string();
    assert!(message.contains("batch") && message.contains("more than one value"), "{message}");
    assert!(network.forward(&images(&config, 1), Mode::Eval, Taps::default()).is_ok());
    assert!(network.forward(&images(&config, 2), Mode::Train, Taps::default()).is_ok());
}

#[test]
fn frozen_networks_agree_with_trained_ones_and_pass_gradients_to_the_images() {
    for family in kinds() {
        let build = |store: &Params| family.build("kind", &SMALL, &store.root()).unwrap();
        let start = Params::new(Seed::root(1), DType::F64, &Device::Cpu);
        build(&start);
        let state = shaken(&start, DType::F64);
        let open = build(&Params::from_tensors(state.clone(), DType::F64, &Device::Cpu));
        let frozen = build(&Params::frozen(state, DType::F64, &Device::Cpu));
        let x = images(&SMALL, 2).to_dtype(DType::F64).unwrap();
        let variable = candle_core::Var::from_tensor(&x).unwrap();
        let expected = open.forward(&x, Mode::Eval, Taps::ALL).unwrap();
        for input in [&x, variable.as_tensor()] {
            let outputs = frozen.forward(input, Mode::Eval, Taps::ALL).unwrap();
            assert_eq!(outputs.logits.track_op(), input.track_op());
            let found = [&outputs.maps, &outputs.pre_activations].into_iter().flatten().chain([&outputs.logits]);
            let wanted = [&expected.maps, &expected.pre_activations].into_iter().flatten().chain([&expected.logits]);
            for (a, b) in found.zip(wanted) {
                let worst = (a - b).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                assert!(worst.iter().all(|d| d.abs() < 1e-9));
            }
        }
        let logits = frozen.forward(&variable, Mode::Eval, Taps::default()).unwrap().logits;
        let gradients = logits.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&variable).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(gradient.iter().any(|g| *g != 0.0));
        assert!(frozen.forward(&x, Mode::Train, Taps::default()).is_err());
    }
}

#[test]
fn vgg_pools_a_fourth_time_at_64_rows_only() {
    for (image, last) in [([64, 64], [4, 4]), ([64, 33], [4, 2]), ([63, 64], [7, 8]), ([65, 64], [8, 8])] {
        let config = ModelConfig { image, ..SMALL };
        let network = narrow(&config, &params()).unwrap();
        let outputs = network.forward(&images(&config, 1), Mode::Eval, Taps::ALL).unwrap();
        for (map, shape) in outputs.maps.iter().zip(&network.spec().maps) {
            assert_eq!(map.dims()[1..], [shape.channels, shape.height, shape.width]);
        }
        assert_eq!(outputs.maps[4].dims()[2..], last);
    }
}

#[test]
fn initial_values_are_those_of_the_reference() {
    let store = params();
    build("vgg8", &ModelConfig::CIFAR100, &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    let spread = |name: &str| {
        let values = flat(&state[name]);
        (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt()
    };
    assert!((spread("classifier.weight") / 0.01 - 1.0).abs() < 0.02);
    assert!((spread("block3.0.weight") / (2.0f64 / (9.0 * 512.0)).sqrt() - 1.0).abs() < 0.02);
    assert!(spread("classifier.bias") == 0.0 && spread("block3.0.bias") == 0.0);

    let store = params();
    build("wrn_16_2", &ModelConfig::CIFAR100, &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    let largest = |name: &str| flat(&state[name]).iter().fold(0f32, |m, v| m.max(v.abs()));
    let bound = 1.0 / 128f32.sqrt();
    assert!(largest("fc.weight") <= bound && largest("fc.weight") > 0.99 * bound);
    assert_eq!(largest("fc.bias"), 0.0);
}

#[test]
fn impossible_configurations_are_errors() {
    for (depth, widen, words) in [(15, 1, "6n + 4"), (4, 1, "found 4"), (16, 0, "widen"), (16, usize::MAX, "widen")] {
        let message = wide(depth, widen, &SMALL, &params()).err().unwrap().to_string();
        assert!(message.contains(words), "{message}");
    }
    for (image, words) in [([7, 9], "8x8"), ([9, 7], "found 9x7"), ([64, 15], "16x16"), ([8, 0], "positive")] {
        let message = narrow(&ModelConfig { image, ..SMALL }, &params()).err().unwrap().to_string();
        assert!(message.contains(words), "{message}");
    }
    let empty = VggConfig::uniform([3, 4, 4, 5, 6], [1, 1, 0, 1, 1]);
    assert!(matches!(Family::Vgg(empty).build("vgg", &SMALL, &params().root()), Err(Error::Config { .. })));
    let Family::ResNet(plain) = residual(Branch::Basic, ResNetStem::small(4)) else { unreachable!() };
    let with_stem = |stem| ResNetConfig { stem, ..plain.clone() };
    let with_stage = |stage| ResNetConfig { stages: vec![stage], ..plain.clone() };
    let stage = narrow_stages()[0];
    for (family, words) in [
        (with_stem(ResNetStem { kernel: 4, ..plain.stem }), "odd, found 4"),
        (with_stem(ResNetStem { stride: 0, ..plain.stem }), "stem stride must be from 1"),
        (with_stem(ResNetStem { channels: usize::MAX, ..plain.stem }), "found 18446744073709551615"),
        (with_stage(Stage { blocks: 0, ..stage }), "blocks must be from 1"),
        (with_stage(Stage { blocks: 1 << 40, ..stage }), "found 1099511627776"),
        (with_stage(Stage { channels: usize::MAX / 4, ..stage }), "channels must be from 1"),
        (ResNetConfig { stages: vec![], ..plain.clone() }, "number of stages"),
    ] {
        let message = Family::ResNet(family).build("resnet", &SMALL, &params().root()).err().unwrap().to_string();
        assert!(message.contains("`resnet`") && message.contains(words), "{message}");
    }
    for depth in [0, 1, 2, 9, 6 << 50, usize::MAX] {
        assert!(ResNetConfig::cifar(depth, Branch::Basic, [4; 4]).is_err(), "{depth}");
        assert!(PreActivationConfig::fidelity(depth).is_err(), "{depth}");
    }
    // The smallest images that each family takes.
    let tiny = |image| ModelConfig { image, ..SMALL };
    for (network, image) in
        [(wide(10, 1, &tiny([1, 2]), &params()).unwrap(), [1, 2]), (narrow(&tiny([8, 8]), &params()).unwrap(), [8, 8])]
    {
        assert!(network.forward(&images(&tiny(image), 1), Mode::Eval, Taps::ALL).is_ok());
    }
}

#[test]
fn a_network_without_pre_activations_has_no_norms_of_them() {
    for (name, stages) in
        [("preact_resnet18", None), ("preresnet20", Some(3)), ("wrn_16_1", Some(3)), ("resnet8", Some(3))]
    {
        let network = build(name, &SMALL, &params().root()).unwrap();
        assert_eq!(network.stage_norms().unwrap().map(|norms| norms.len()), stages, "{name}");
    }
    // A convolution without batch norm has none either, though it shows its value.
    let network = build("gnosis_vgg16", &SMALL, &params().root()).unwrap();
    assert!(network.spec().pre_activations && network.stage_norms().unwrap().is_none());
}

#[test]
fn blocks_of_several_widths_and_without_batch_norm_have_the_keys_of_their_places() {
    let keys = |config: VggConfig| {
        let store = params();
        Family::Vgg(config).build("vgg", &SMALL, &store.root()).unwrap();
        store.shapes()
    };
    let shapes = keys(several_widths());
    assert_eq!(shapes["block0.3.weight"], [4, 3, 3, 3]);
    assert_eq!(shapes["block2.0.weight"], [5, 4, 3, 3]);
    assert_eq!(shapes["block2.6.weight"], [4, 3, 3, 3]);
    assert_eq!(shapes["block2.7.running_var"], [4]);
    assert_eq!(shapes["classifier.weight"], [3, 7]);
    let shapes = keys(VggConfig { normalised: false, ..several_widths() });
    assert_eq!(shapes["block2.4.weight"], [4, 3, 3, 3]);
    assert_eq!(shapes["block2.4.bias"], [4]);
    assert!(!shapes.keys().any(|key| key.contains("running") || key.starts_with("block2.1.")));
}
