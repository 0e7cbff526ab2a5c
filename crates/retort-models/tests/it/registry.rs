//! What every entry of the registry promises: a model gets these tests by existing.

use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor, Var};
use retort_models::{
    Branch, Error, Family, HcgNetConfig, MlpConfig, MobileNetV1Config, MobileNetV2Config, ModelConfig, ModelInfo,
    PreActivationConfig, ResNetConfig, ResNetStem, ShuffleNetV1Config, Stage, VggConfig, build, info, registry,
};
use retort_nn::{Checkpoint, Init, Mode, Network, Outputs, Params, Seed, Taps, Tensors};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

const CIFAR10: ModelConfig = ModelConfig { classes: 10, ..ModelConfig::CIFAR100 };
const CIFAR100: ModelConfig = ModelConfig::CIFAR100;
const IMAGENET: ModelConfig = ModelConfig { in_channels: 3, image: [224, 224], classes: 1000 };
const MNIST: ModelConfig = ModelConfig { in_channels: 1, image: [28, 28], classes: 10 };
const TINY_IMAGENET: ModelConfig = ModelConfig { in_channels: 3, image: [64, 64], classes: 200 };

/// Name, parameters and multiply-adds, counted on the reference implementation where it is not said otherwise.
const COUNTS: &[(&str, ModelConfig, usize, usize)] = &[
    ("resnet8", CIFAR100, 83_892, 12_507_392),
    ("resnet14", CIFAR100, 181_108, 26_663_168),
    ("resnet20", CIFAR100, 278_324, 40_818_944),
    ("resnet32", CIFAR100, 472_756, 69_130_496),
    ("resnet44", CIFAR100, 667_188, 97_442_048),
    ("resnet56", CIFAR100, 861_620, 125_753_600),
    ("resnet110", CIFAR100, 1_736_564, 253_155_584),
    ("resnet8x4", CIFAR100, 1_233_540, 177_071_104),
    ("resnet32x4", CIFAR100, 7_433_860, 1_083_040_768),
    // Not in the reference counts: sums over the layers, as they give resnet8x4's reference counts.
    ("resnet8x4_double", CIFAR100, 4_875_428, 706_463_744),
    ("wrn_16_1", CIFAR100, 180_916, 26_663_168),
    ("wrn_16_2", CIFAR100, 703_284, 101_118_464),
    ("wrn_28_2", CIFAR100, 1_479_220, 214_364_672),
    ("wrn_28_4", CIFAR100, 5_872_180, 845_620_224),
    ("wrn_40_1", CIFAR100, 569_780, 83_286_272),
    ("wrn_40_2", CIFAR100, 2_255_156, 327_610_880),
    ("vgg8", CIFAR100, 3_965_028, 96_192_512),
    ("vgg11", CIFAR100, 9_277_284, 209_438_720),
    ("vgg13", CIFAR100, 9_462_180, 284_936_192),
    ("vgg16", CIFAR100, 14_774_436, 398_182_400),
    ("vgg19", CIFAR100, 20_086_692, 511_428_608),
    // Not in the reference counts: vgg16 without its 4224 batch norms of two parameters.
    ("gnosis_vgg16", CIFAR100, 14_774_436 - 2 * 4224, 398_182_400),
    ("ResNet18", CIFAR100, 11_220_132, 555_468_800),
    ("ResNet34", CIFAR100, 21_328_292, 1_159_448_576),
    ("ResNet50", CIFAR100, 23_705_252, 1_298_014_208),
    ("imagenet_resnet18", IMAGENET, 11_689_512, 1_814_073_344),
    ("imagenet_resnet18", CIFAR10, 11_181_642, 37_016_576),
    ("imagenet_resnet18", CIFAR100, 11_227_812, 37_062_656),
    ("imagenet_resnet34", IMAGENET, 21_797_672, 3_663_761_408),
    ("imagenet_resnet34", CIFAR10, 21_289_802, 74_765_312),
    ("imagenet_resnet34", CIFAR100, 21_335_972, 74_811_392),
    ("imagenet_resnet50", IMAGENET, 25_557_032, 4_089_184_256),
    ("mcl_resnet110", CIFAR100, 1_170_868, 167_453_696),
    ("selfkd_resnet50", CIFAR100, 23_697_572, 1_298_014_208),
    ("mixskd_backbone", CIFAR100, 11_220_132, 555_468_800),
    // Not in the reference counts: shapes and sizes are those of ResNet18.
    ("sns_resnet18", CIFAR100, 11_220_132, 555_468_800),
    ("preact_resnet18", CIFAR100, 11_217_444, 555_468_800),
    ("preresnet20", CIFAR100, 278_132, 40_818_944),
    ("preresnet56", CIFAR100, 613_556, 87_237_632),
    ("hcgnet_A1", CIFAR100, 1_102_651, 154_269_036),
    // Half of the two networks of the table.
    ("hcgnet_A2", CIFAR100, 3_133_679, 488_668_216),
    ("MobileNetV2", CIFAR100, 812_836, 6_523_648),
    ("MobileNetV2_stem1", CIFAR100, 812_836, 25_710_592),
    ("tinyimagenet_MobileNetV2", TINY_IMAGENET, 2_497_480, 215_708_992),
    ("MobileNetV1", IMAGENET, 4_231_976, 568_740_352),
    ("ShuffleV1", CIFAR100, 949_258, 38_691_456),
    ("ShuffleV2", CIFAR100, 1_355_528, 44_504_448),
    ("ShuffleNetV2_05x_cifar", CIFAR100, 444_292, 10_994_176),
    ("ShuffleNetV2_1x_cifar", CIFAR100, 1_356_104, 45_094_272),
    ("lenet5", MNIST, 61_706, 416_520),
    // Not in the reference counts: sums of inputs x outputs + outputs over the layers.
    ("mlp-512-256-128", MNIST, 567_434, 566_528),
    ("mlp-512-256-128", CIFAR100, 1_750_500, 1_749_504),
    ("mlp-512-256-128-128-128", MNIST, 600_458, 599_296),
    ("mlp-512-256-128-128-128", CIFAR100, 1_783_524, 1_782_272),
];

/// Networks of `specs/architectures.json` by another name than ours or at another size than CIFAR-100's.
const ELSEWHERE: &[(&str, &str, ModelConfig)] = &[
    ("hsakd/mobilenetV2", "MobileNetV2_stem1", CIFAR100),
    ("hsakd/resnet8", "resnet8", CIFAR100),
    ("lmcl/resnet32_cifar", "resnet32", CIFAR100),
    ("lmcl/resnet110_cifar", "mcl_resnet110", CIFAR100),
    ("lmcl/wrn_16_2_cifar", "wrn_16_2", CIFAR100),
    ("lmcl/ShuffleNetV2_05x_cifar", "ShuffleNetV2_05x_cifar", CIFAR100),
    ("lmcl/ShuffleNetV2_1x_cifar", "ShuffleNetV2_1x_cifar", CIFAR100),
    ("lmcl/hcgnet_A1_cifar", "hcgnet_A1", CIFAR100),
    ("selfkd/CIFAR_ResNet18", "preact_resnet18", CIFAR100),
    ("selfkd/CIFAR_ResNet50", "selfkd_resnet50", CIFAR100),
    ("selfkd/MixSKD backbone", "mixskd_backbone", CIFAR100),
    ("selfkd/manifold_mixup_CIFAR_ResNet18", "preact_resnet18", CIFAR100),
    ("imagenet/resnet18", "imagenet_resnet18", IMAGENET),
    ("imagenet/resnet34", "imagenet_resnet34", IMAGENET),
    ("imagenet/resnet50", "imagenet_resnet50", IMAGENET),
    ("imagenet/MobileNetV1", "MobileNetV1", IMAGENET),
    ("tiny/MobileNetV2", "tinyimagenet_MobileNetV2", TINY_IMAGENET),
    ("gnosis/preresnet20", "preresnet20", CIFAR100),
    ("gnosis/preresnet56", "preresnet56", CIFAR100),
    ("gnosis/lenet", "lenet5", MNIST),
    ("kddm/resnet18/c10", "imagenet_resnet18", CIFAR10),
    ("kddm/resnet18/c100", "imagenet_resnet18", CIFAR100),
    ("kddm/resnet34/c10", "imagenet_resnet34", CIFAR10),
    ("kddm/resnet34/c100", "imagenet_resnet34", CIFAR100),
];

fn counts(name: &str, config: &ModelConfig) -> (usize, usize) {
    let model = info(name).unwrap();
    (model.parameter_count(config).unwrap(), model.spec(config).unwrap().multiply_adds)
}

#[test]
fn counts_equal_the_reference() {
    for &(name, config, parameters, multiply_adds) in COUNTS {
        assert_eq!(counts(name, &config), (parameters, multiply_adds), "{name} at {config:?}");
    }
    let counted: BTreeSet<&str> = COUNTS.iter().map(|row| row.0).collect();
    let known: BTreeSet<&str> = registry().iter().map(|model| model.name).collect();
    assert_eq!(counted, known, "add the new model's published counts to this table");
    assert_eq!(known.len(), registry().len(), "a name is taken twice");
}

/// Compares every network of the machine-readable table, and says which entries of it are no single network of the
/// registry.
#[test]
#[ignore = "compares with stored numbers: set RETORT_GOLDEN, beside which lies the folder specs, add `-- --ignored`"]
fn counts_equal_the_machine_readable_table() {
    let golden = std::env::var_os("RETORT_GOLDEN").expect("RETORT_GOLDEN names a directory of golden cases");
    let path = std::path::Path::new(&golden).join("../specs/architectures.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |entry: &serde_json::Value| {
        let number = |key: &str| usize::try_from(entry[key].as_u64().unwrap()).unwrap();
        (number("params"), number("macs"))
    };
    for (name, entry) in table["repdistiller"].as_object().unwrap() {
        assert_eq!(counts(name, &CIFAR100), numbers(entry), "{name}");
        let spec = info(name).unwrap().spec(&CIFAR100).unwrap();
        let maps = spec.maps.iter().map(|map| serde_json::json!([map.channels, map.height, map.width]));
        let shown: Vec<_> = maps.chain([serde_json::json!([spec.embedding])]).collect();
        assert_eq!(serde_json::Value::from(shown), entry["feats"], "{name}");
    }
    let others = table["others"].as_object().unwrap();
    for &(key, name, config) in ELSEWHERE {
        assert_eq!(counts(name, &config), numbers(&others[key]), "{key}");
    }
    let known: BTreeSet<&str> = ELSEWHERE.iter().map(|row| row.0).collect();
    let rest: Vec<&String> = others.keys().filter(|key| !known.contains(key.as_str())).collect();
    eprintln!("{} networks compared; no single network of the registry: {rest:?}", others.len() - rest.len());
}

/// Runs `check` over all models, two at a time: the networks are small and most kernels too short to share.
fn every_model(check: impl Fn(&'static ModelInfo) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(model) = registry().get(next.fetch_add(1, Ordering::Relaxed)) {
            check(model);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

/// The image that a model is run on: small, and large enough that no batch norm sees a single value per channel.
fn small_image(model: &ModelInfo) -> usize {
    match &model.family {
        // 64 pixels become 2 behind stem, pooling and three stages.
        Family::ResNet(config) if config.stem.pooled => 64,
        Family::MobileNetV1(_) => 64,
        _ => 28,
    }
}

/// A state in which no batch norm is at its start, so that no gradient is 0 for a weight of 0.
fn moved(store: &Params) -> Tensors {
    let move_one = |(name, tensor): (String, Tensor)| {
        if tensor.rank() != 1 {
            return (name, tensor);
        }
        let noise = Init::Normal { std: 0.1 }.draw(tensor.dims(), Seed::root(9).child(&name), DType::F32, &Device::Cpu);
        let noise = noise.unwrap();
        let noise = if name.ends_with("running_var") { noise.sqr().unwrap() } else { noise };
        (name, (tensor + noise).unwrap())
    };
    store.snapshot().unwrap().into_iter().map(move_one).collect()
}

fn bits(t: &Tensor) -> Vec<u32> {
    flat(t).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_network_keeps_its_promises() {
    every_model(|model| {
        let size = small_image(model);
        let config = ModelConfig { in_channels: 1, image: [size, size], classes: 7 };
        let store = params();
        let network = build(model.name, &config, &store.root()).unwrap();
        store.load(&moved(&store)).unwrap();
        assert_eq!(model.spec(&config).unwrap(), *network.spec(), "{}", model.name);
        assert_eq!(model.parameter_count(&config).unwrap(), store.parameter_count(), "{}", model.name);
        shows_what_it_declares(network.as_ref(), &config);
        learns_the_same_twice_and_everywhere(model.name, network.as_ref(), &config, &store);
        can_be_copied_and_frozen(model, network.as_ref(), &config, &store);
    });
}

fn shows_what_it_declares(network: &dyn Network, config: &ModelConfig) {
    let spec = network.spec();
    let name = &spec.name;
    let outputs = network.forward(&images(config, 2), Mode::Eval, Taps::ALL).unwrap();
    assert_eq!(outputs.logits.dims(), [2, config.classes], "{name}");
    assert_eq!(outputs.embedding.dims(), [2, spec.embedding], "{name}");
    let shapes: Vec<_> = spec.maps.iter().map(|map| vec![2, map.channels, map.height, map.width]).collect();
    let found = |maps: &[Tensor]| maps.iter().map(|map| map.dims().to_vec()).collect::<Vec<_>>();
    assert_eq!(found(&outputs.maps), shapes, "{name}");
    assert_eq!(found(&outputs.pre_activations), if spec.pre_activations { shapes } else { vec![] }, "{name}");
    let plain = network.forward(&images(config, 2), Mode::Eval, Taps::default()).unwrap();
    assert_eq!(bits(&plain.logits), bits(&outputs.logits), "{name}: taps must not change the result");
    assert_eq!(bits(&plain.embedding), bits(&outputs.embedding), "{name}: taps must not change the result");
    assert!(plain.maps.is_empty() && plain.pre_activations.is_empty(), "{name}");
    if let Some(classifier) = network.classifier() {
        assert_eq!(classifier.weight().dims(), [config.classes, spec.embedding], "{name}");
    }
    check_pre_activations(name, &outputs);
    let norms = network.stage_norms().unwrap();
    for (norm, shape) in norms.iter().flatten().zip(spec.stages()) {
        assert_eq!((norm.weight.dims(), norm.bias.dims()), (&[shape.channels][..], &[shape.channels][..]), "{name}");
    }
    assert!(norms.is_none_or(|norms| norms.len() == spec.stages().len()), "{name}");
}

/// A map is the ReLU of its pre-activation, unless the family's maps are not activated or in another order.
fn check_pre_activations(name: &str, outputs: &Outputs) {
    let others = ["wrn_", "preresnet", "hcgnet", "ShuffleV2", "ShuffleNetV2"];
    let plain = !others.iter().any(|prefix| name.starts_with(prefix));
    for (map, pre) in outputs.stages().iter().zip(outputs.stage_pre_activations()) {
        let activated: Vec<f32> = flat(pre).iter().map(|x| x.max(0.0)).collect();
        assert_eq!(flat(map) == activated, plain, "{name}");
    }
}

/// Gradients of one batch in training mode by name, and the running statistics after it, on `threads` threads.
fn step(network: &dyn Network, config: &ModelConfig, store: &Params, threads: usize) -> (Tensors, Tensors) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let outputs = network.forward(&images(config, 3), Mode::Train, Taps::default()).unwrap();
        let gradients = outputs.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = |(name, var): (String, Var)| Some((name, gradients.get(&var)?.clone()));
        let found = store.trainable().into_iter().filter_map(gradient).collect();
        (found, store.snapshot().unwrap().into_iter().filter(|(name, _)| name.contains("running")).collect())
    })
}

/// Gradients reach every parameter; running statistics and gradients have the same bits in a second run on another
/// number of threads.
fn learns_the_same_twice_and_everywhere(name: &str, network: &dyn Network, config: &ModelConfig, store: &Params) {
    let start = store.snapshot().unwrap();
    let (gradients, statistics) = step(network, config, store, 2);
    store.load(&start).unwrap();
    let again = step(network, config, store, 1);
    let same = |a: &Tensors, b: &Tensors| a.keys().eq(b.keys()) && a.iter().all(|(key, t)| bits(t) == bits(&b[key]));
    assert!(same(&gradients, &again.0) && same(&statistics, &again.1), "{name}: a second run differs");

    for (key, _) in store.trainable() {
        let gradient = gradients.get(&key).unwrap_or_else(|| panic!("{name}: {key} got no gradient"));
        assert!(flat(gradient).iter().all(|g| g.is_finite()), "{name}: {key}");
        let weight = key.strip_suffix(".bias").map(|layer| format!("{layer}.weight"));
        match weight.filter(|_| is_cancelled(name, &key, &start)) {
            None => assert!(largest(gradient) > 0.0, "{name}: {key}"),
            Some(weight) => {
                let (size, scale) = (largest(gradient), largest(&gradients[&weight]));
                assert!(size <= 1e-3 * scale, "{name}: {key}: {size} against {scale}");
            }
        }
    }
}

fn largest(t: &Tensor) -> f32 {
    flat(t).iter().fold(0f32, |most, x| most.max(x.abs()))
}

/// Whether `key` is the bias of a convolution that a batch norm or a softmax cancels, so that rounding is all its
/// gradient.
fn is_cancelled(name: &str, key: &str, state: &Tensors) -> bool {
    let Some(layer) = key.strip_suffix(".bias") else { return false };
    let normalised = !name.starts_with("lenet") && !name.starts_with("gnosis_vgg");
    let convolution = normalised && state[&format!("{layer}.weight")].rank() == 4;
    // Gates end with convolutions whose bias counts, and so does one network.
    let counts = ["fc2", "fc3x3", "fc5x5"].iter().any(|gate| layer.ends_with(gate));
    let classifies = (name, layer) == ("tinyimagenet_MobileNetV2", "conv2");
    convolution && !counts && !classifies
}

/// A copy from the saved state has the same bits; the frozen form agrees up to rounding and keeps no graph.
fn can_be_copied_and_frozen(model: &ModelInfo, network: &dyn Network, config: &ModelConfig, store: &Params) {
    let name = model.name;
    let x = images(config, 2);
    let taps = Taps { maps: true, pre_activations: false };
    let expected = network.forward(&x, Mode::Eval, taps).unwrap();
    let state = saved(store, name);

    let copy = Params::from_tensors(state.clone(), DType::F32, &Device::Cpu);
    let loaded = build(name, config, &copy.root()).unwrap();
    assert!(copy.unused().is_empty(), "{name}");
    let outputs = loaded.forward(&x, Mode::Eval, taps).unwrap();
    for (a, b) in all(&outputs).zip(all(&expected)) {
        assert_eq!(bits(a), bits(b), "{name}: the loaded network differs");
    }
    drop((loaded, copy));

    let frozen = Params::frozen(state, DType::F32, &Device::Cpu);
    let network = build(name, config, &frozen.root()).unwrap();
    let outputs = network.forward(&x, Mode::Eval, taps).unwrap();
    for (a, b) in all(&outputs).zip(all(&expected)) {
        assert!(!a.track_op(), "{name}: a frozen network must not build a graph");
        let scale = largest(b).max(1.0);
        let worst = flat(a).iter().zip(flat(b)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(worst <= 1e-5 * scale, "{name}: {worst} against {scale}");
    }
    assert!(network.forward(&x, Mode::Train, taps).is_err(), "{name}");
}

fn all(outputs: &Outputs) -> impl Iterator<Item = &Tensor> {
    outputs.maps.iter().chain([&outputs.embedding, &outputs.logits])
}

/// The state through a file.
fn saved(store: &Params, name: &str) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.safetensors"));
    Checkpoint { tensors: store.snapshot().unwrap(), meta: serde_json::Value::Null }.save(&path).unwrap();
    Checkpoint::load(&path).unwrap().tensors
}

/// Channels and sides of the images that every network is run on.
const IMAGES: [(usize, usize); 6] = [(1, 28), (3, 28), (1, 32), (3, 32), (1, 64), (3, 64)];

/// Multiply-adds up to which a network is run by default.
const SMALL: usize = 100_000_000;

fn with_images((in_channels, side): (usize, usize)) -> ModelConfig {
    ModelConfig { in_channels, image: [side; 2], classes: 5 }
}

fn runs(model: &ModelInfo, config: &ModelConfig) {
    let network = build(model.name, config, &params().root()).unwrap();
    shows_what_it_declares(network.as_ref(), config);
}

#[test]
fn images_of_other_sizes_and_colours_are_taken() {
    let left_out = std::sync::Mutex::new(Vec::new());
    every_model(|model| {
        for images in IMAGES {
            let config = with_images(images);
            let spec = model.spec(&config).unwrap_or_else(|error| panic!("{error}"));
            match spec.multiply_adds > SMALL {
                true => left_out.lock().unwrap().push(format!("{} {}x{}", model.name, images.0, images.1)),
                false => runs(model, &config),
            }
        }
        // Odd, oblong, and as small as it gets: what is not taken is refused by name before the first batch.
        for image in [[17, 23], [9, 9], [1, 2]] {
            let config = ModelConfig { in_channels: 2, image, classes: 5 };
            match model.spec(&config) {
                Err(error) => assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(model.name)),
                Ok(spec) if spec.multiply_adds > 10_000_000 => {}
                Ok(_) => runs(model, &config),
            }
        }
    });
    let mut left_out = left_out.into_inner().unwrap();
    left_out.sort();
    let all = IMAGES.len() * registry().len();
    eprintln!("{} of {all} not run, {LARGE_ONES}: {}", left_out.len(), left_out.join(", "));
}

const LARGE_ONES: &str = "`cargo test -p retort-models --test it -- --ignored large_networks` runs them";

/// What the test above leaves out, with batches of one.
#[test]
#[ignore = "half a minute more: `cargo test -p retort-models --test it -- --ignored large_networks`"]
fn large_networks_take_images_of_all_sizes_and_colours() {
    let ran = AtomicUsize::new(0);
    every_model(|model| {
        for config in IMAGES.map(with_images) {
            let spec = model.spec(&config).unwrap();
            if spec.multiply_adds <= SMALL {
                continue;
            }
            let network = build(model.name, &config, &params().root()).unwrap();
            let outputs = network.forward(&images(&config, 1), Mode::Eval, Taps::ALL).unwrap();
            assert_eq!((outputs.logits.dims(), outputs.maps.len()), (&[1, 5][..], spec.maps.len()), "{}", model.name);
            for (map, shape) in outputs.maps.iter().zip(&spec.maps) {
                assert_eq!(map.dims(), [1, shape.channels, shape.height, shape.width], "{}", model.name);
            }
            let finite = |t: &Tensor| flat(t).iter().all(|x| x.is_finite());
            assert!(all(&outputs).all(finite) && outputs.pre_activations.iter().all(finite), "{}", model.name);
            check_pre_activations(model.name, &outputs);
            ran.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(ran.into_inner() > registry().len());
}

/// The kind of a family, and its index among all kinds: a new family does not compile until it has one.
fn kind(family: &Family) -> Option<usize> {
    Some(match family {
        Family::ResNet(_) => 0,
        Family::PreActivation(_) => 1,
        Family::Vgg(_) => 2,
        Family::HcgNet(_) => 3,
        Family::MobileNetV1(_) => 4,
        Family::MobileNetV2(_) => 5,
        Family::ShuffleNetV1(_) => 6,
        Family::ShuffleNetV2(_) => 7,
        Family::LeNet(_) => 8,
        Family::Mlp(_) => 9,
        _ => return None,
    })
}

/// A narrow member of every family, and of every form of stem, block and end that the registry has.
fn narrow_members() -> Vec<(&'static str, Family)> {
    let family = |name: &str| info(name).unwrap().family.clone();
    let stages = |stages: &[Stage]| -> Vec<Stage> {
        let narrow = |stage: &Stage| Stage { channels: stage.channels / 16, blocks: 1, ..*stage };
        stages.iter().map(narrow).collect()
    };
    let mut members: Vec<(&str, Family)> = vec![
        (
            "ShuffleV1",
            Family::ShuffleNetV1(ShuffleNetV1Config { out_planes: [48, 96, 192], blocks: [2; 3], groups: 3 }),
        ),
        ("ShuffleV2", family("ShuffleNetV2_05x_cifar")),
        ("hcgnet_A1", Family::HcgNet(HcgNetConfig { growth: [4, 8, 12], layers: 2 })),
        ("lenet5", family("lenet5")),
        ("mlp-512-256-128", Family::Mlp(MlpConfig { hidden: vec![12, 7] })),
        ("vgg8", Family::Vgg(VggConfig::uniform([4, 6, 8, 8, 8], [1, 2, 1, 2, 1]))),
    ];
    for model in registry() {
        let narrow = match model.family.clone() {
            Family::ResNet(config) => {
                let stem = ResNetStem { channels: 4, ..config.stem };
                Family::ResNet(ResNetConfig { stem, stages: stages(&config.stages), ..config })
            }
            Family::PreActivation(config) => {
                let stages = stages(&config.stages);
                Family::PreActivation(PreActivationConfig { stem: stages[0].channels, stages, ..config })
            }
            Family::MobileNetV1(mut config) => {
                config.stages.iter_mut().flatten().for_each(|unit| unit.channels /= 16);
                Family::MobileNetV1(MobileNetV1Config { stem: 4, ..config })
            }
            Family::MobileNetV2(mut config) => {
                for stage in &mut config.stages {
                    (stage.channels, stage.blocks) = (stage.channels.div_ceil(8), 1);
                }
                Family::MobileNetV2(MobileNetV2Config { stem: 4, last: 20, ..config })
            }
            Family::Vgg(config) if !config.normalised => {
                Family::Vgg(VggConfig { normalised: false, ..VggConfig::uniform([4, 6, 8, 8, 8], [1; 5]) })
            }
            _ => continue,
        };
        members.push((model.name, narrow));
    }
    members
}

#[test]
fn narrow_members_of_every_family_take_images_of_all_sizes_and_colours() {
    let members = narrow_members();
    let kinds: BTreeSet<Option<usize>> = members.iter().map(|(_, family)| kind(family)).collect();
    assert_eq!(kinds, registry().iter().map(|model| kind(&model.family)).collect());
    assert!(!kinds.contains(&None), "a new family needs a narrow member");
    for (name, family) in &members {
        for config in IMAGES.map(with_images) {
            let store = params();
            let network = family.build(name, &config, &store.root()).unwrap();
            assert!(network.spec().multiply_adds < SMALL, "{name} is not narrow");
            shows_what_it_declares(network.as_ref(), &config);
        }
    }
}

#[test]
fn absurd_sizes_are_errors() {
    for model in registry() {
        for (in_channels, image, classes) in [
            (0, [32, 32], 10),
            (3, [0, 32], 10),
            (3, [32, 0], 10),
            (3, [32, 32], 0),
            (usize::MAX, [32, 32], 10),
            (3, [usize::MAX, 32], 10),
            (3, [32, usize::MAX], 10),
            (3, [32, 32], usize::MAX),
        ] {
            let config = ModelConfig { in_channels, image, classes };
            assert!(model.spec(&config).is_err(), "{}: {config:?}", model.name);
            assert!(build(model.name, &config, &params().root()).is_err(), "{}: {config:?}", model.name);
        }
    }
}

#[test]
fn bad_requests_are_errors() {
    let message = build("resnet80", &CIFAR100, &params().root()).err().unwrap().to_string();
    assert!(message.contains("`resnet80`") && message.contains("did you mean `resnet8`"), "{message}");
    let config = ModelConfig { classes: 0, ..CIFAR100 };
    assert!(matches!(build("resnet8", &config, &params().root()), Err(Error::Config { .. })));
    let message = ResNetConfig::cifar(9, Branch::Basic, [16, 16, 32, 64]).unwrap_err().to_string();
    assert!(message.contains("`resnet9`") && message.contains("6n + 2"), "{message}");
    let network = build("resnet8", &CIFAR100, &params().root()).unwrap();
    let wrong = Tensor::zeros((1, 1, 32, 32), DType::F32, &Device::Cpu).unwrap();
    let message = network.forward(&wrong, Mode::Eval, Taps::default()).unwrap_err().to_string();
    assert!(message.contains("[B, 3, 32, 32]") && message.contains("[1, 1, 32, 32]"), "{message}");
}
