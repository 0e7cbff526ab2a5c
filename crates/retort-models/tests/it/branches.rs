//! Auxiliary classifiers: counts of the published tables, keys, initial values, gradients.

use crate::check::{distance, normal, shaken};
use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor, Var};
use retort_models::{
    Branch, BranchInit, BranchRow, BranchedNetwork, Branches, BranchesConfig, Family, InvertedFlavour, InvertedStage,
    MobileNetV2Config, ModelConfig, Peers, PeersConfig, PreActivationConfig, Pyramid, PyramidConfig, Repeat,
    ResNetConfig, SelfTeacher, ShuffleNetV1Config, ShuffleNetV2Config, VggConfig, dense_votes, info, registry,
};
use retort_nn::{Init, Mode, Params, Seed, Taps, Tensors};
use std::collections::BTreeSet;

const CIFAR: ModelConfig = ModelConfig::CIFAR100;
const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [16, 16], classes: 3 };

fn family(name: &str) -> Family {
    info(name).unwrap().family.clone()
}

fn declared() -> Params {
    Params::declared(DType::F32, &Device::Cpu)
}

/// Parameters, multiply-adds, convolutions and batch norms of a network with its branches, and the branches' outputs.
fn counts(family: &Family, rows: &BranchesConfig) -> (usize, usize, usize, usize, Vec<usize>) {
    let store = declared();
    let network = BranchedNetwork::new("network", family, &CIFAR, rows, &store.root()).unwrap();
    let outputs = network.branches.specs().iter().map(|spec| spec.classes).collect();
    let state = store.snapshot().unwrap();
    let convolutions = state.values().filter(|tensor| tensor.rank() == 4).count();
    let norms = state.keys().filter(|name| name.ends_with("running_mean")).count();
    (store.parameter_count(), network.multiply_adds(), convolutions, norms, outputs)
}

#[test]
fn hsakd_counts_equal_the_reference() {
    for (name, parameters, multiply_adds, convolutions, norms, branches) in [
        ("resnet20", 1_041_316, 94_373_120, 48, 48, 3),
        ("resnet56", 3_067_684, 292_553_984, 132, 132, 3),
        ("resnet8x4", 4_790_836, 429_036_544, 21, 21, 3),
        ("resnet32x4", 26_340_916, 2_542_965_760, 77, 77, 3),
        ("wrn_16_2", 2_631_588, 239_684_096, 35, 32, 3),
        ("wrn_40_1", 2_054_212, 193_463_552, 90, 88, 3),
        ("wrn_40_2", 8_024_484, 768_166_400, 91, 88, 3),
        ("vgg13", 46_511_844, 1_002_981_376, 32, 32, 4),
        ("ShuffleV1", 4_067_998, 87_129_216, 109, 109, 3),
        ("ShuffleV2", 5_875_516, 117_040_768, 127, 127, 3),
        ("ResNet50", 100_681_956, 3_599_769_600, 143, 143, 4),
    ] {
        let family = family(name);
        let found = counts(&family, &BranchesConfig::hsakd(&family, 100));
        assert_eq!(found, (parameters, multiply_adds, convolutions, norms, vec![400; branches]), "{name}");
    }
    let family = Family::MobileNetV2(MobileNetV2Config::hsakd());
    let found = counts(&family, &BranchesConfig::hsakd(&family, 100));
    assert_eq!(found, (5_484_332, 86_569_472, 156, 156, vec![400; 4]));
}

#[test]
fn lmcl_counts_equal_the_reference() {
    let residual = |depth, branch| Family::ResNet(ResNetConfig::cifar(depth, branch, [16, 16, 32, 64]).unwrap());
    for (family, parameters, multiply_adds, convolutions, norms) in [
        (residual(32, Branch::Basic), 2_563_704, 273_552_896, 132, 132),
        (residual(110, Branch::Bottleneck), 6_363_896, 674_748_416, 446, 446),
        (family("wrn_16_2"), 3_822_968, 403_614_720, 62, 54),
        (Family::ShuffleNetV2(ShuffleNetV2Config::of_size(1.0, 3).unwrap()), 7_524_712, 198_661_888, 224, 224),
    ] {
        // The table counts the two networks of a run.
        let found = counts(&family, &BranchesConfig::lmcl(&family, 100));
        let halves = (parameters / 2, multiply_adds / 2, convolutions / 2, norms / 2, vec![100; 2]);
        assert_eq!(found, halves, "{family:?}");
    }
}

#[test]
fn counts_of_self_distillation_equal_the_reference() {
    let preact = family("preact_resnet18");
    let found = counts(&preact, &BranchesConfig::dks(&preact, 100));
    assert_eq!(found, (29_022_700, 882_726_912, 33, 27, vec![100; 2]));
    let found = counts(&preact, &BranchesConfig::byot(&preact, 100));
    assert_eq!(found, (19_581_420, 731_731_968, 29, 23, vec![100; 2]));

    let store = declared();
    let family = family("mixskd_backbone");
    let rows = BranchesConfig::mixskd(&family, 100);
    let network = BranchedNetwork::new("mixskd", &family, &CIFAR, &rows, &store.root()).unwrap();
    let last = *network.backbone.spec().maps.last().unwrap();
    let branches = network.branches.specs();
    assert_eq!((branches.len(), branches[0].maps.last()), (3, Some(&last)));
    let teacher = SelfTeacher::new(4, last, 100, &store.root().child("final_aux_classifier")).unwrap();
    assert_eq!(store.parameter_count(), 42_380_084);
    assert_eq!((network.multiply_adds(), teacher.multiply_adds()), (1_360_928_768, 16_828_416));

    let store = declared();
    let network = info("preact_resnet18").unwrap().family.build("preact", &CIFAR, &store.root()).unwrap();
    let (scope, config) = (store.root().child("pyramid"), PyramidConfig::default());
    let pyramid = Pyramid::new(network.spec().stages(), 100, config, &scope).unwrap();
    assert_eq!(store.parameter_count(), 17_593_238);
    assert_eq!(network.spec().multiply_adds + pyramid.multiply_adds(), 947_640_320);
}

#[test]
fn every_network_of_the_registry_grows_branches() {
    let mut grown = 0;
    for model in registry() {
        let config = ModelConfig { in_channels: 3, image: [64, 64], classes: 10 };
        let rows = BranchesConfig::hsakd(&model.family, 10);
        if rows.rows.is_empty() {
            continue;
        }
        grown += 1;
        let spec = model.spec(&config).unwrap();
        let branches = Branches::new(&model.family, &spec, &rows, &declared().root()).unwrap();
        let last: Vec<_> = branches.specs().iter().map(|spec| (spec.maps.last().copied(), spec.embedding)).collect();
        let own = (spec.maps.last().unwrap().channels, spec.embedding);
        let alike = last.iter().all(|(map, embedding)| (map.unwrap().channels, *embedding) == own);
        // What comes out of a block of HCGNet depends on what goes in.
        assert!(alike || matches!(model.family, Family::HcgNet(_)), "{}: {last:?}", model.name);
        for rows in [BranchesConfig::lmcl(&model.family, 10), BranchesConfig::probes(&model.family, 10)] {
            let branches = Branches::new(&model.family, &spec, &rows, &declared().root()).unwrap();
            assert!(branches.specs().iter().all(|spec| spec.classes == 10), "{}", model.name);
        }
        for config in [PeersConfig::mcl(&model.family, 3), PeersConfig::one(&model.family, 2)] {
            let peers =
                Peers::new(model.name, &model.family, &ModelConfig::CIFAR100, &config, &declared().root()).unwrap();
            assert!(peers.multiply_adds() > peers.specs()[0].multiply_adds, "{}", model.name);
        }
    }
    assert!(grown > 30, "{grown}");
}

#[test]
fn mixskd_branches_of_imagenet_networks_have_fixed_numbers_of_blocks() {
    let blocks = |name: &str| {
        let rows = BranchesConfig::mixskd(&family(name), 1000).rows;
        rows.iter().map(|row| row.groups.iter().map(|repeat| repeat.blocks).collect()).collect::<Vec<Vec<_>>>()
    };
    let fixed = vec![vec![Some(4), Some(6), Some(3)], vec![Some(6), Some(3)], vec![Some(3)]];
    assert_eq!(blocks("imagenet_resnet18"), fixed);
    assert_eq!(blocks("imagenet_resnet50"), fixed);
    assert_eq!(blocks("ResNet18"), [vec![None; 3], vec![None; 2], vec![None]]);
    let places = |name: &str| {
        let rows = BranchesConfig::mixskd(&family(name), 1000).rows;
        rows.iter().map(|row| (row.map, row.groups[0].group)).collect::<Vec<_>>()
    };
    assert_eq!(
        (places("imagenet_resnet18"), places("ResNet18")),
        (vec![(1, 1), (2, 2), (3, 3)], vec![(1, 1), (2, 2), (3, 3)])
    );
}

/// Everything below the branches' scope up to the first block of a group, and other direct keys.
fn keys(family: &Family, rows: &BranchesConfig, depth: usize) -> BTreeSet<String> {
    let store = declared();
    let spec = family.build("network", &CIFAR, &store.root()).unwrap().spec().clone();
    let store = declared();
    Branches::new(family, &spec, rows, &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    state.keys().map(|key| key.split('.').take(depth).collect::<Vec<_>>().join(".")).collect()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(ToString::to_string).collect()
}

#[test]
fn keys_are_those_of_the_reference() {
    let hsakd = |name: &str, depth| keys(&family(name), &BranchesConfig::hsakd(&family(name), 100), depth);
    let heads = ["fc1", "fc2", "fc3"];
    let extractors = |places: &[(usize, &[usize])]| {
        let key = |branch: usize| move |place: &usize| format!("block_extractor{branch}.{place}");
        places.iter().flat_map(|(branch, places)| places.iter().map(key(*branch))).collect::<BTreeSet<_>>()
    };
    let first_two = |keys: BTreeSet<String>| {
        keys.into_iter().filter(|key| key.starts_with("block_extractor")).collect::<BTreeSet<_>>()
    };
    assert_eq!(first_two(hsakd("resnet20", 2)), extractors(&[(1, &[0, 1]), (2, &[0]), (3, &[0])]));
    assert_eq!(
        hsakd("resnet20", 1),
        &set(&heads) | &set(&["block_extractor1", "block_extractor2", "block_extractor3"])
    );
    assert!(hsakd("resnet20", 9).contains("block_extractor1.0.0.downsample.0.weight"));
    assert!(!hsakd("resnet20", 9).contains("block_extractor3.0.0.downsample.0.weight"));

    let wide = hsakd("wrn_16_2", 9);
    assert!(wide.contains("block_extractor1.1.layer.0.convShortcut.weight") && wide.contains("bn3.running_var"));
    assert!(!wide.contains("block_extractor3.0.layer.0.convShortcut.weight"));

    let places: [(usize, &[usize]); 4] = [(1, &[1, 4, 7, 9]), (2, &[1, 4, 6]), (3, &[1, 3]), (4, &[0, 2])];
    assert_eq!(first_two(hsakd("vgg13", 2)), extractors(&places));
    assert!(hsakd("vgg13", 9).contains("block_extractor4.2.3.bias"));

    let places: [(usize, &[usize]); 3] = [(1, &[0, 1, 2, 3]), (2, &[0, 1, 2]), (3, &[0, 1, 2])];
    assert_eq!(first_two(hsakd("ShuffleV2", 2)), extractors(&places));
    assert!(hsakd("ShuffleV2", 9).is_superset(&set(&["block_extractor1.2.weight", "block_extractor1.3.running_mean"])));

    let mobile = Family::MobileNetV2(MobileNetV2Config::hsakd());
    let mobile = keys(&mobile, &BranchesConfig::hsakd(&mobile, 100), 9);
    let some = [
        "block_extractor1.4.0.conv.0.weight",
        "block_extractor4.0.2.conv.7.bias",
        "conv2_4.0.weight",
        "conv2_1.1.bias",
    ];
    assert!(mobile.is_superset(&set(&some)) && mobile.contains("fc4.weight"));

    let zipf = keys(&family("preact_resnet18"), &BranchesConfig::zipf(100), 9);
    assert_eq!(zipf, set(&["linear2.bias", "linear2.weight", "linear3.bias", "linear3.weight"]));
}

/// Narrow members of all families, and the branches of HSAKD.
fn narrow() -> Vec<(&'static str, Family)> {
    let stage = |channels, blocks, stride, shown| InvertedStage { expansion: 2, channels, blocks, stride, shown };
    let stages = vec![stage(4, 1, 1, false), stage(6, 1, 2, true), stage(6, 2, 2, false), stage(8, 1, 1, true)];
    let mobile = MobileNetV2Config {
        flavour: InvertedFlavour::Plain,
        stem: 4,
        stem_stride: 1,
        stages,
        last: 10,
        classifier: "classifier",
    };
    let wide = PreActivationConfig::wide(10, 1).unwrap();
    let stages = vec![retort_models::Stage { channels: 4, blocks: 1, stride: 1 }; 3];
    let activated = PreActivationConfig { stages, stem: 4, ..PreActivationConfig::resnet18() };
    vec![
        ("resnet", Family::ResNet(ResNetConfig::cifar(8, Branch::Basic, [4, 4, 6, 8]).unwrap())),
        ("bottleneck", Family::ResNet(ResNetConfig::cifar(11, Branch::Bottleneck, [2, 2, 3, 4]).unwrap())),
        ("wide", Family::PreActivation(wide)),
        ("preact", Family::PreActivation(activated)),
        ("vgg", Family::Vgg(VggConfig::uniform([3, 4, 4, 5, 6], [1, 2, 1, 1, 2]))),
        ("mobile", Family::MobileNetV2(mobile)),
        (
            "shuffle1",
            Family::ShuffleNetV1(ShuffleNetV1Config { out_planes: [48, 96, 192], blocks: [1, 2, 1], groups: 3 }),
        ),
        (
            "shuffle2",
            Family::ShuffleNetV2(ShuffleNetV2Config {
                out_planes: [8, 12, 16],
                last: 20,
                blocks: [1, 1, 1],
                stem_kernel: 1,
            }),
        ),
    ]
}

fn branched(name: &str, family: &Family, store: &Params) -> BranchedNetwork {
    let rows = BranchesConfig::hsakd(family, SMALL.classes);
    BranchedNetwork::new(name, family, &SMALL, &rows, &store.root()).unwrap()
}

#[test]
fn maps_have_the_shapes_of_the_specs() {
    for (name, family) in narrow() {
        let network = branched(name, &family, &params());
        let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
        for (spec, outputs) in network.branches.specs().iter().zip(&outputs.branches) {
            assert_eq!(outputs.logits.dims(), [2, 12], "{name}");
            assert_eq!(outputs.embedding.dims(), [2, spec.embedding], "{name}");
            let found: Vec<_> = outputs.maps.iter().map(|map| map.dims()[1..].to_vec()).collect();
            let expected: Vec<_> = spec.maps.iter().map(|map| vec![map.channels, map.height, map.width]).collect();
            assert_eq!(found, expected, "{name}");
            assert_eq!(outputs.pre_activations.len(), if spec.pre_activations { found.len() } else { 0 }, "{name}");
            let relu = |x: &Tensor| retort_kernels::relu(x).unwrap();
            if let (Family::ResNet(_), [.., pre]) = (&family, &outputs.pre_activations[..]) {
                assert_eq!(distance(outputs.last_map().unwrap(), &relu(pre)), 0.0);
            }
        }
        // The last maps of all branches are as large as the network's own.
        let last = network.backbone.spec().maps.last().unwrap();
        let all = network.branches.specs();
        assert!(all.iter().all(|spec| spec.maps.last().unwrap() == last), "{name}");
        let plain = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::default()).unwrap();
        assert!(plain.branches.iter().all(|branch| branch.maps.is_empty() && branch.pre_activations.is_empty()));
        assert_eq!(flat(&plain.branches[0].logits), flat(&outputs.branches[0].logits), "{name}");
    }
}

/// The sum of all logits with random coefficients.
fn objective(logits: &[Tensor]) -> Tensor {
    let part = |(i, logits): (usize, &Tensor)| {
        let coefficients = normal(logits.dims(), 40 + i as u64).to_dtype(logits.dtype()).unwrap();
        (logits * coefficients).unwrap().sum_all().unwrap()
    };
    let parts: Vec<Tensor> = logits.iter().enumerate().map(part).collect();
    Tensor::stack(&parts, 0).unwrap().sum_all().unwrap()
}

#[test]
fn gradients_reach_every_parameter() {
    for (name, family) in narrow() {
        let store = params();
        let network = branched(name, &family, &store);
        let outputs = network.forward(&images(&SMALL, 4), Mode::Train, Taps::default()).unwrap();
        let logits: Vec<Tensor> = outputs.branches.iter().map(|branch| branch.logits.clone()).collect();
        let gradients = objective(&logits).backward().unwrap();
        // The classifier of the network, what leads from the last map to it, and nothing else, is outside of the
        // branches.
        let outside: Vec<String> = store
            .trainable()
            .into_iter()
            .filter(|(_, var)| {
                let gradient = gradients.get(var);
                gradient.is_none_or(|gradient| !flat(gradient).iter().all(|g| g.is_finite()))
            })
            .map(|(name, _)| name)
            .collect();
        let tail =
            ["backbone.fc", "backbone.linear", "backbone.classifier", "backbone.bn1", "backbone.conv2", "backbone.bn2"];
        assert!(outside.iter().all(|name| tail.iter().any(|tail| name.starts_with(tail))), "{name}: {outside:?}");
        assert!(outside.len() <= 5, "{name}: {outside:?}");
    }
}

#[test]
fn branches_leave_a_detached_network_alone() {
    for (name, family) in narrow() {
        let store = params();
        let network = branched(name, &family, &store);
        let before = store.snapshot().unwrap();
        let x = images(&SMALL, 4);
        let outputs = network.forward_branches(&x, Mode::Train, Taps::ALL).unwrap();
        let eval = network.backbone.forward(&x, Mode::Eval, Taps::default()).unwrap().logits;
        assert_eq!(flat(&outputs.backbone.logits), flat(&eval), "{name}");
        assert!(!outputs.backbone.logits.track_op() && outputs.backbone.maps.iter().all(|map| !map.track_op()));
        let logits: Vec<Tensor> = outputs.branches.iter().map(|branch| branch.logits.clone()).collect();
        let gradients = objective(&logits).backward().unwrap();
        for (key, var) in store.trainable() {
            assert_eq!(gradients.get(&var).is_some(), key.starts_with("auxiliary_classifier."), "{name}: {key}");
        }
        let after = store.snapshot().unwrap();
        let moved: Vec<&String> = before.keys().filter(|key| flat(&before[*key]) != flat(&after[*key])).collect();
        assert!(
            !moved.is_empty() && moved.iter().all(|key| key.starts_with("auxiliary_classifier.")),
            "{name}: {moved:?}"
        );
    }
}

#[test]
fn weights_are_seeded_saved_and_loaded() {
    for (name, family) in narrow() {
        let [one, two] = [params(), params()].map(|store| (branched(name, &family, &store), store));
        let x = images(&SMALL, 2);
        let run = |network: &BranchedNetwork, mode| {
            let outputs = network.forward(&x, mode, Taps::default()).unwrap();
            let all = outputs.branches.iter().map(|branch| &branch.logits).chain([&outputs.backbone.logits]);
            all.flat_map(flat).collect::<Vec<f32>>()
        };
        assert_eq!(run(&one.0, Mode::Train), run(&two.0, Mode::Train), "{name}");
        let state: Tensors = shaken(&one.1, DType::F32);
        two.1.load(&state).unwrap();
        let loaded = branched(name, &family, &Params::from_tensors(state.clone(), DType::F32, &Device::Cpu));
        assert_eq!(run(&two.0, Mode::Eval), run(&loaded, Mode::Eval), "{name}");
        // Folded batch norms agree up to rounding, here in f64.
        let wide: Tensors = state.into_iter().map(|(key, t)| (key, t.to_dtype(DType::F64).unwrap())).collect();
        let x = x.to_dtype(DType::F64).unwrap();
        let [open, frozen] = [Params::from_tensors, Params::frozen].map(|store| {
            let network = branched(name, &family, &store(wide.clone(), DType::F64, &Device::Cpu));
            network.forward(&x, Mode::Eval, Taps::default()).unwrap().branches
        });
        for (a, b) in open.iter().zip(&frozen) {
            assert!(distance(&a.logits, &b.logits) < 1e-9 * flat64(&a.logits).max(1.0), "{name}");
        }
        let frozen = branched(name, &family, &Params::frozen(wide, DType::F64, &Device::Cpu));
        assert!(frozen.branches.forward(&[], Mode::Train, Taps::default()).is_err());
        let maps = frozen.backbone.forward(&x, Mode::Eval, Taps::ALL).unwrap().maps;
        assert!(frozen.branches.forward(&maps, Mode::Train, Taps::default()).is_err(), "{name}");
    }
}

/// The largest absolute value.
fn flat64(t: &Tensor) -> f64 {
    distance(t, &t.zeros_like().unwrap())
}

#[test]
fn branches_differentiate_as_they_should() {
    for (name, family) in narrow().into_iter().filter(|(name, _)| ["wide", "shuffle2", "vgg"].contains(name)) {
        let start = Params::new(Seed::root(1), DType::F64, &Device::Cpu);
        branched(name, &family, &start);
        let store = Params::from_tensors(shaken(&start, DType::F64), DType::F64, &Device::Cpu);
        let spec = family.build(name, &SMALL, &declared().root()).unwrap().spec().clone();
        let rows = BranchesConfig::hsakd(&family, SMALL.classes);
        let branches = Branches::new(&family, &spec, &rows, &store.root().child("auxiliary_classifier")).unwrap();
        let map = |(i, map): (usize, &retort_nn::MapShape)| {
            Var::from_tensor(&normal(&[3, map.channels, map.height, map.width], 60 + i as u64)).unwrap()
        };
        let read: Vec<usize> = rows.rows.iter().map(|row| row.map).collect();
        let maps: Vec<Var> = spec.maps.iter().enumerate().map(map).collect();
        let inputs: Vec<Var> =
            maps.iter().enumerate().filter(|(i, _)| read.contains(i)).map(|(_, map)| map.clone()).collect();
        crate::check::check_directional_derivative(&store, &inputs, || {
            let maps: Vec<Tensor> = maps.iter().map(|map| map.as_tensor().clone()).collect();
            let outputs = branches.forward(&maps, Mode::Train, Taps::default()).unwrap();
            objective(&outputs.iter().map(|branch| branch.logits.clone()).collect::<Vec<_>>())
        });
    }
}

#[test]
fn initial_values_are_those_of_the_reference() {
    let spread = |tensor: &Tensor| {
        let values = flat(tensor);
        (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let state = |name: &str, family: &Family, init: BranchInit| {
        let spec = family.build(name, &SMALL, &declared().root()).unwrap().spec().clone();
        let rows = BranchesConfig { init, ..BranchesConfig::hsakd(family, 100) };
        let store = params();
        Branches::new(family, &spec, &rows, &store.root()).unwrap();
        store.snapshot().unwrap()
    };
    let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
    // The deviation of PyTorch's default is that of a uniform distribution.
    let pytorch = |fan_in: f64| 1.0 / (3.0 * fan_in).sqrt();

    let vgg = Family::Vgg(VggConfig::uniform([8, 16, 16, 32, 32], [1; 5]));
    let reference = state("vgg", &vgg, BranchInit::Hsakd);
    close(spread(&reference["block_extractor4.0.0.weight"]), pytorch(9.0 * 32.0));
    assert!(spread(&reference["block_extractor4.0.0.bias"]) > 0.0);
    close(spread(&reference["fc1.weight"]), pytorch(32.0));
    assert!(spread(&reference["fc1.bias"]) > 0.0);
    let as_network = state("vgg", &vgg, BranchInit::Network);
    close(spread(&as_network["block_extractor4.0.0.weight"]), (2.0f64 / (9.0 * 32.0)).sqrt());
    close(spread(&as_network["fc1.weight"]), 0.01);
    assert_eq!(spread(&as_network["block_extractor4.0.0.bias"]) + spread(&as_network["fc1.bias"]), 0.0);

    let shuffle = Family::ShuffleNetV1(ShuffleNetV1Config { out_planes: [48, 96, 192], blocks: [1; 3], groups: 3 });
    let reference = state("shuffle", &shuffle, BranchInit::Hsakd);
    close(spread(&reference["block_extractor3.0.0.conv3.weight"]), (2.0f64 / 192.0).sqrt());
    assert_eq!(spread(&reference["fc1.bias"]), 0.0);
    let as_network = state("shuffle", &shuffle, BranchInit::Network);
    close(spread(&as_network["block_extractor3.0.0.conv3.weight"]), pytorch(48.0 / 3.0));
    assert!(spread(&as_network["fc1.bias"]) > 0.0);

    for name in ["resnet8", "wrn_16_1"] {
        let reference = state(name, &family(name), BranchInit::Hsakd);
        assert_eq!(spread(&reference["fc2.bias"]), 0.0);
        close(spread(&reference["fc2.weight"]), pytorch(64.0));
    }
    let mobile = Family::MobileNetV2(MobileNetV2Config::hsakd());
    close(spread(&state("mobile", &mobile, BranchInit::Hsakd)["fc1.weight"]), 0.01);
}

#[test]
fn a_vgg_of_64_rows_has_the_same_branches() {
    let family = Family::Vgg(VggConfig::uniform([3, 4, 4, 5, 6], [1; 5]));
    let config = ModelConfig { image: [64, 64], ..SMALL };
    let rows = BranchesConfig::hsakd(&family, 3);
    let store = params();
    let network = BranchedNetwork::new("vgg", &family, &config, &rows, &store.root()).unwrap();
    assert!(store.snapshot().unwrap().contains_key("auxiliary_classifier.block_extractor1.9.0.weight"));
    let outputs = network.forward(&images(&config, 1), Mode::Eval, Taps::ALL).unwrap();
    let sizes: Vec<usize> = outputs.branches.iter().map(|branch| branch.last_map().unwrap().dims()[2]).collect();
    assert_eq!(sizes, [8, 8, 8, 4]);
}

#[test]
fn dense_votes_are_those_of_each_position() {
    let family = family("preact_resnet18");
    let store = params();
    let config = ModelConfig { in_channels: 3, image: [16, 16], classes: 5 };
    let network = family.build("preact", &config, &store.root()).unwrap();
    let heads = Branches::new(&family, network.spec(), &BranchesConfig::zipf(5), &store.root()).unwrap();
    let outputs = network.forward(&images(&config, 2), Mode::Eval, Taps::ALL).unwrap();
    let shallow = heads.forward(&outputs.maps, Mode::Eval, Taps::ALL).unwrap();
    assert_eq!(distance(shallow[0].last_map().unwrap(), &outputs.maps[3]), 0.0);
    let pooled = heads.classifiers()[1].forward(&retort_kernels::global_avg_pool2d(&outputs.maps[2]).unwrap()).unwrap();
    assert!(distance(&shallow[1].logits, &pooled) < 1e-6);

    for (classifier, map) in heads.classifiers().into_iter().zip([&outputs.maps[3], &outputs.maps[2]]) {
        for upsampled in [false, true] {
            let votes = dense_votes(classifier, map, upsampled).unwrap();
            let (_, channels, height, width) = map.dims4().unwrap();
            let map = match upsampled {
                true => retort_kernels::resize_bilinear2d(map, [2 * height, 2 * width]).unwrap(),
                false => map.clone(),
            };
            let (_, _, height, width) = map.dims4().unwrap();
            assert_eq!(votes.dims(), [2, height * width]);
            let votes = votes.to_vec2::<u32>().unwrap();
            for (sample, row, column) in [(0, 0, 0), (1, height - 1, 1), (1, 1, width - 1)] {
                let at = map.narrow(0, sample, 1).unwrap().narrow(2, row, 1).unwrap().narrow(3, column, 1).unwrap();
                let logits = classifier.forward(&at.reshape((1, channels)).unwrap()).unwrap();
                let best = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap()[0];
                assert_eq!(votes[sample][row * width + column], best);
            }
        }
    }
    let message = dense_votes(heads.classifiers()[0], &outputs.maps[1], false).unwrap_err().to_string();
    assert!(message.contains("expected 256 channels") && message.contains("64"), "{message}");
    assert!(dense_votes(heads.classifiers()[0], &outputs.logits, false).is_err());
}

#[test]
fn rows_of_ones_own_are_as_good() {
    let family = family("resnet8");
    let row = |map, groups| BranchRow { map, groups, classifier: None };
    let rows = vec![row(0, vec![Repeat::whole(0), Repeat::with_blocks(1, 3), Repeat::keeping_size(2)]), row(3, vec![])];
    let config = BranchesConfig { rows, outputs: 7, init: BranchInit::Network };
    let store = params();
    let network = BranchedNetwork::new("resnet8", &family, &SMALL, &config, &store.root()).unwrap();
    let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
    let sizes: Vec<usize> = outputs.branches[0].maps.iter().map(|map| map.dims()[2]).collect();
    assert_eq!(sizes, [16, 16, 8, 8]);
    assert_eq!(distance(&outputs.branches[1].embedding, &outputs.backbone.embedding), 0.0);
    assert!(store.snapshot().unwrap().contains_key("auxiliary_classifier.block_extractor1.1.2.conv1.weight"));
    // Every linear layer and convolution once: 7 x 64 weights at the end of both.
    assert_eq!(network.branches.specs()[1].multiply_adds, 7 * 64);
}

#[test]
fn impossible_branches_are_errors() {
    let resnet = family("resnet8");
    let spec = resnet.build("resnet8", &SMALL, &declared().root()).unwrap().spec().clone();
    let message = |family: &Family, rows: Vec<BranchRow>, outputs: usize| {
        let config = BranchesConfig { rows, outputs, init: BranchInit::Hsakd };
        Branches::new(family, &spec, &config, &declared().root()).err().unwrap().to_string()
    };
    let row = |map, repeat| vec![BranchRow { map, groups: vec![repeat], classifier: None }];
    for (rows, outputs, words) in [
        (row(4, Repeat::whole(0)), 3, "map must be below 4, found 4"),
        (row(1, Repeat::whole(3)), 3, "group must be below 3, found 3"),
        (row(1, Repeat::with_blocks(1, 0)), 3, "blocks must be from 1 to 256, found 0"),
        (row(1, Repeat::with_blocks(1, usize::MAX)), 3, "blocks"),
        (row(1, Repeat::whole(1)), 0, "outputs of a branch must be positive"),
        (vec![], 3, "number of branches must be from 1 to 64, found 0"),
    ] {
        let message = message(&resnet, rows, outputs);
        assert!(message.contains(words) && message.contains("resnet8"), "{message}");
    }
    let mlp = family("mlp-512-256-128");
    assert!(message(&mlp, row(0, Repeat::whole(0)), 3).contains("no groups"));
    for rows in [BranchesConfig::hsakd(&mlp, 3), BranchesConfig::dks(&mlp, 3), BranchesConfig::mixskd(&mlp, 3)] {
        assert!(Branches::new(&mlp, &spec, &rows, &declared().root()).is_err());
    }
    let absurd = BranchesConfig::hsakd(&resnet, usize::MAX);
    assert!(Branches::new(&resnet, &spec, &absurd, &params().root()).is_err());

    let branches = Branches::new(&resnet, &spec, &BranchesConfig::hsakd(&resnet, 3), &params().root()).unwrap();
    let draw = |shape: &[usize]| Init::Constant(0.5).draw(shape, Seed::root(1), DType::F32, &Device::Cpu).unwrap();
    let message = branches.forward(&[draw(&[1, 16, 16, 16])], Mode::Eval, Taps::ALL).unwrap_err().to_string();
    assert!(message.contains("expected the 4 maps") && message.contains("found 1"), "{message}");
    let wrong = [&[1, 16, 16, 16], &[1, 16, 16, 15], &[1, 32, 8, 8], &[1, 64, 4, 4]].map(|shape| draw(&shape[..]));
    let message = branches.forward(&wrong, Mode::Eval, Taps::ALL).unwrap_err().to_string();
    assert!(message.contains("branch 1") && message.contains("[1, 16, 16, 15]"), "{message}");
}
