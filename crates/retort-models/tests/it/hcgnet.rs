//! Networks of hybrid connectivity.

use crate::check::{check_directional_derivative, distance, normal, shaken};
use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor, Var};
use retort_models::{Error, Family, HcgNetConfig, ModelConfig, info};
use retort_nn::{MapShape, Mode, Network, Params, Seed, Taps, Tensors};

const TINY: HcgNetConfig = HcgNetConfig { growth: [4, 8, 4], layers: 2 };
const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [7, 10], classes: 3 };

fn tiny(config: &ModelConfig, store: &Params) -> Result<Box<dyn Network>, Error> {
    Family::HcgNet(TINY).build("hcgnet", config, &store.root())
}

/// A state with every value away from its start.
fn state(dtype: DType) -> Tensors {
    let start = Params::new(Seed::root(1), dtype, &Device::Cpu);
    tiny(&SMALL, &start).unwrap();
    shaken(&start, dtype)
}

fn loaded(state: Tensors, dtype: DType) -> (Params, Box<dyn Network>) {
    let store = Params::from_tensors(state, dtype, &Device::Cpu);
    let network = tiny(&SMALL, &store).unwrap();
    (store, network)
}

/// Parameters and multiply-adds of one network, parameters of four behind a shared trunk: of the published table.
#[test]
fn counts_equal_the_reference() {
    let table =
        [("hcgnet_A1", 1_102_651, 154_269_036, 414, 4_057_426), ("hcgnet_A2", 3_133_679, 488_668_216, 716, 11_169_209)];
    for (name, parameters, multiply_adds, embedding, four) in table {
        let model = info(name).unwrap();
        let spec = model.spec(&ModelConfig::CIFAR100).unwrap();
        assert_eq!(model.parameter_count(&ModelConfig::CIFAR100).unwrap(), parameters, "{name}");
        assert_eq!((spec.multiply_adds, spec.embedding), (multiply_adds, embedding), "{name}");
        assert!(!spec.maps.is_empty() && spec.pre_activations);

        let store = Params::declared(DType::F32, &Device::Cpu);
        model.family.build(name, &ModelConfig::CIFAR100, &store.root()).unwrap();
        let state = store.snapshot().unwrap();
        let weights = || state.iter().filter(|(key, _)| !key.contains("running"));
        let trunk = ["features.conv0", "features.HybridBlock1.", "features.Transition1."];
        let shared = weights().filter(|(key, _)| trunk.iter().any(|prefix| key.starts_with(prefix)));
        let shared: usize = shared.map(|(_, weight)| weight.elem_count()).sum();
        assert_eq!(4 * parameters - 3 * shared, four, "{name}");
        assert_eq!(weights().filter(|(_, weight)| weight.rank() == 4).count(), 313);
        assert_eq!(state.keys().filter(|key| key.ends_with("running_mean")).count(), 157);
    }
}

#[test]
fn maps_are_the_blocks_before_their_transitions() {
    let spec = info("hcgnet_A1").unwrap().spec(&ModelConfig::CIFAR100).unwrap();
    let shapes = [(24, 32), (120, 32), (252, 16), (414, 8)];
    let expected = shapes.map(|(channels, size)| MapShape { channels, height: size, width: size });
    assert_eq!(spec.maps, expected);
}

#[test]
fn a_layer_appends_to_what_it_was_fed_with() {
    let (_, network) = loaded(state(DType::F32), DType::F32);
    let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
    let [stem, block] = [&outputs.maps[0], &outputs.maps[1]];
    assert_eq!((stem.dims(), block.dims()), (&[2, 8, 7, 10][..], &[2, 16, 7, 10][..]));
    assert_eq!(flat(&block.narrow(1, 0, 8).unwrap()), flat(stem));
    assert_eq!(outputs.maps[2].dims(), [2, 8 + 16, 4, 5]);
    assert_eq!(outputs.maps[3].dims(), [2, 12 + 8, 2, 3]);
}

#[test]
fn pre_activations_are_the_normalisations_that_follow() {
    let state = state(DType::F32);
    let (_, network) = loaded(state.clone(), DType::F32);
    let outputs = network.forward(&images(&SMALL, 2), Mode::Eval, Taps::ALL).unwrap();
    let keys = ["features.Transition1.conv1_1x1.norm", "features.Transition2.conv1_1x1.norm", "features.norm5"];
    assert_eq!(outputs.stage_pre_activations().len(), 3);
    for ((key, map), pre) in keys.iter().zip(outputs.stages()).zip(outputs.stage_pre_activations()) {
        let vector = |name: &str| state[&format!("{key}.{name}")].reshape((1, (), 1, 1)).unwrap();
        let std = (vector("running_var") + 1e-5).unwrap().sqrt().unwrap();
        let normal = map.broadcast_sub(&vector("running_mean")).unwrap().broadcast_div(&std).unwrap();
        let expected = normal.broadcast_mul(&vector("weight")).unwrap().broadcast_add(&vector("bias")).unwrap();
        assert!(distance(pre, &expected) < 1e-4, "{key}");
    }
    let norms = network.stage_norms().unwrap().unwrap();
    assert_eq!(norms.len(), 3);
    for (key, norm) in keys.iter().zip(norms) {
        assert_eq!(flat(&norm.weight), flat(&state[&format!("{key}.weight")]));
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for mode in [Mode::Train, Mode::Eval] {
        let (store, network) = loaded(state(DType::F64), DType::F64);
        let x = Var::from_tensor(&normal(&[4, 2, 7, 10], 5)).unwrap();
        let coefficients = normal(&[4, 3], 4);
        check_directional_derivative(&store, std::slice::from_ref(&x), || {
            let logits = network.forward(&x, mode, Taps::default()).unwrap().logits;
            (logits * &coefficients).unwrap().sum_all().unwrap()
        });
    }
}

#[test]
fn gates_ignore_the_biases_of_their_contexts() {
    // A softmax over positions does not change with a shift of all of them.
    let mut state = state(DType::F64);
    let x = normal(&[3, 2, 7, 10], 5);
    let logits = |state| loaded(state, DType::F64).1.forward(&x, Mode::Eval, Taps::default()).unwrap().logits;
    let expected = logits(state.clone());
    let biases = state.iter_mut().filter(|(key, _)| key.contains("context") && key.ends_with("bias"));
    assert_eq!(biases.map(|(_, bias)| *bias = (&*bias + 3.0).unwrap()).count(), 3 * 8);
    assert!(distance(&logits(state), &expected) < 1e-9);
}

#[test]
fn far_scores_stay_finite() {
    let mut state = state(DType::F32);
    for (_, weight) in state.iter_mut().filter(|(key, _)| key.contains("context") || key.contains(".fc")) {
        *weight = (&*weight * 1e4).unwrap();
    }
    let (store, network) = loaded(state, DType::F32);
    let outputs = network.forward(&images(&SMALL, 2), Mode::Train, Taps::default()).unwrap();
    let gradients = outputs.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(flat(&outputs.logits).iter().all(|x| x.is_finite()));
    for (name, var) in store.trainable() {
        assert!(flat(gradients.get(&var).unwrap()).iter().all(|g| g.is_finite()), "{name}");
    }
}

#[test]
fn frozen_networks_agree_with_trained_ones_and_pass_gradients_to_the_images() {
    let state = state(DType::F64);
    let (_, open) = loaded(state.clone(), DType::F64);
    let frozen = tiny(&SMALL, &Params::frozen(state, DType::F64, &Device::Cpu)).unwrap();
    let x = Var::from_tensor(&normal(&[2, 2, 7, 10], 5)).unwrap();
    let expected = open.forward(&x, Mode::Eval, Taps::ALL).unwrap();
    let found = frozen.forward(&x, Mode::Eval, Taps::ALL).unwrap();
    let all = |o: &retort_nn::Outputs| [&o.maps[..], &o.pre_activations[..], std::slice::from_ref(&o.logits)].concat();
    for (a, b) in all(&found).iter().zip(all(&expected)) {
        assert!(distance(a, &b) < 1e-9);
    }
    let gradients = found.logits.sum_all().unwrap().backward().unwrap();
    assert!(distance(gradients.get(&x).unwrap(), &x.zeros_like().unwrap()) > 0.0);
    let plain = frozen.forward(&x.as_tensor().detach(), Mode::Eval, Taps::default()).unwrap();
    assert!(!plain.logits.track_op());
    assert!(frozen.forward(&x, Mode::Train, Taps::default()).is_err());
    // Batch statistics without training: as in the network that is trained.
    let batch = |network: &dyn Network| network.forward(&x, Mode::BatchStatistics, Taps::default()).unwrap().logits;
    assert!(distance(&batch(frozen.as_ref()), &batch(open.as_ref())) < 1e-9);
}

#[test]
fn initial_values_are_those_of_densenet() {
    let store = params();
    Family::HcgNet(HcgNetConfig::A1).build("hcgnet_A1", &ModelConfig::CIFAR100, &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    let spread = |name: &str| {
        let values = flat(&state[name]);
        (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let cases = [("features.Transition2.conv2_3x3.conv", 189 * 9), ("features.HybridBlock3.SMG8.conv1_1x1.conv", 378)];
    for (key, fan_in) in cases {
        let expected = (2.0 / f64::from(fan_in)).sqrt();
        assert!((spread(&format!("{key}.weight")) / expected - 1.0).abs() < 0.02, "{key}");
    }
    assert_eq!(spread("classifier.bias"), 0.0);
    let bound = 1.0 / 126f32.sqrt();
    let largest = flat(&state["features.Transition2.fc1.bias"]).iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest <= bound && largest > 0.8 * bound);
}

#[test]
fn impossible_requests_are_errors() {
    let cases = [
        (HcgNetConfig { growth: [4, 6, 4], ..TINY }, "multiple of 4"),
        (HcgNetConfig { growth: [0, 8, 4], ..TINY }, "found 0"),
        (HcgNetConfig { growth: [4, 8, usize::MAX & !3], ..TINY }, "to 256"),
        (HcgNetConfig { layers: 0, ..TINY }, "layers must be from 1 to 64, found 0"),
        (HcgNetConfig { layers: usize::MAX, ..TINY }, "layers must be from 1 to 64"),
    ];
    for (config, words) in cases {
        let error = Family::HcgNet(config).build("hcgnet", &SMALL, &params().root()).err().unwrap();
        assert!(matches!(error, Error::Config { .. }));
        assert!(error.to_string().contains(words) && error.to_string().contains("`hcgnet`"), "{error}");
    }
    let none = ModelConfig { image: [0, 4], ..SMALL };
    assert!(tiny(&none, &params()).err().unwrap().to_string().contains("positive"));
    // A vector of each image is normalised, so one image cannot be trained with; evaluation takes any size.
    for image in [[1, 1], [1, 5], [3, 2]] {
        let config = ModelConfig { image, ..SMALL };
        let network = tiny(&config, &params()).unwrap();
        assert_eq!(network.forward(&images(&config, 1), Mode::Eval, Taps::ALL).unwrap().logits.dims(), [1, 3]);
        assert!(network.forward(&images(&config, 1), Mode::Train, Taps::default()).is_err());
        assert!(network.forward(&images(&config, 2), Mode::Train, Taps::default()).is_ok());
    }
    let wrong = Tensor::zeros((1, 3, 7, 10), DType::F32, &Device::Cpu).unwrap();
    let message =
        tiny(&SMALL, &params()).unwrap().forward(&wrong, Mode::Eval, Taps::default()).unwrap_err().to_string();
    assert!(message.contains("`hcgnet`") && message.contains("[B, 2, 7, 10]"), "{message}");
}
