//! Generators, discriminators and the networks around them.

use crate::check::{check_directional_derivative, distance, normal, shaken};
use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_models::generative::{
    Autoencoder, AutoencoderConfig, Condition, ConditionalBatchNorm, Discriminator, DiscriminatorConfig, Entrance,
    Generator, GeneratorConfig, GroupNorm, LabelEmbedding, LabelReader, RatioConfig, RatioNet, SpectralConv2d,
    SpectralWeight, Style,
};
use retort_nn::{Init, Mode, Params, Seed, Tensors};

const STYLES: [Style; 2] = [Style::Plain, Style::Residual];
const CONDITIONS: [Condition; 3] = [Condition::None, Condition::Classes(3), Condition::Embedding(5)];

fn f64_store() -> Params {
    Params::new(Seed::root(1), DType::F64, &Device::Cpu)
}

fn f32_store() -> Params {
    Params::new(Seed::root(1), DType::F32, &Device::Cpu)
}

fn loaded(state: Tensors) -> Params {
    Params::from_tensors(state, DType::F64, &Device::Cpu)
}

fn frozen(state: Tensors) -> Params {
    Params::frozen(state, DType::F64, &Device::Cpu)
}

fn wide(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn generator(style: Style, condition: Condition, entrance: Entrance) -> GeneratorConfig {
    let channels = vec![6, 5, 4];
    GeneratorConfig { style, latent: 4, channels, condition, entrance, image_channels: 2, image: [8, 12] }
}

fn discriminator(style: Style, condition: Condition) -> DiscriminatorConfig {
    let channels = vec![4, 6, 6];
    DiscriminatorConfig { style, channels, halvings: 2, condition, image_channels: 2, image: [8, 13] }
}

/// Three conditions for a batch of three.
fn given(condition: Condition) -> Option<Var> {
    match condition {
        Condition::None => None,
        Condition::Classes(_) => Some(Var::new(&[2u32, 0, 2], &Device::Cpu).unwrap()),
        Condition::Embedding(size) => Some(Var::from_tensor(&normal(&[3, size], 7)).unwrap()),
    }
}

/// Every generator of the small test size, with a store whose state is away from its start.
fn each_generator(mut f: impl FnMut(&GeneratorConfig, &Params)) {
    for style in STYLES {
        for condition in CONDITIONS {
            for entrance in [Entrance::Norms, Entrance::Noise] {
                let config = generator(style, condition, entrance);
                let start = f64_store();
                Generator::new(&config, &start.root()).unwrap();
                f(&config, &loaded(shaken(&start, DType::F64)));
            }
        }
    }
}

/// The same for discriminators; some training passes bring the singular vectors to where they belong.
fn each_discriminator(mut f: impl FnMut(&DiscriminatorConfig, &Params)) {
    for style in STYLES {
        for condition in CONDITIONS {
            let config = discriminator(style, condition);
            let start = f64_store();
            Discriminator::new(&config, &start.root()).unwrap();
            let store = loaded(shaken(&start, DType::F64));
            let network = Discriminator::new(&config, &store.root()).unwrap();
            for _ in 0..3 {
                network.forward(&normal(&[3, 2, 8, 13], 5), given(condition).as_deref(), Mode::Train).unwrap();
            }
            f(&config, &loaded(store.snapshot().unwrap()));
        }
    }
}

fn weighted(x: &Tensor, seed: u64) -> Tensor {
    (x * normal(x.dims(), seed)).unwrap().sum_all().unwrap()
}

#[test]
fn spectral_norm_is_pytorchs() {
    // Two training passes and one in evaluation of `torch.nn.utils.spectral_norm` 2.15 on a convolution, from even
    // vectors.
    let store = f64_store();
    let shape = [2, 2, 1, 2];
    let conv = SpectralConv2d::new(&store.root(), shape, Conv2dSpec::new(1, 0), Init::PyTorch).unwrap();
    let mut state = store.snapshot().unwrap();
    assert_eq!(state.keys().collect::<Vec<_>>(), ["bias", "weight_orig", "weight_u", "weight_v"]);
    assert_eq!(store.trainable().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["bias", "weight_orig"]);
    state.insert("weight_orig".into(), wide(&[1., 2., 0., -1., 3., 0., 1., 1.], &shape));
    store.load(&state).unwrap();
    let x = wide(&[1., -1., 2., 0.5, 1., -2.], &[1, 2, 1, 3]);
    let pass = |mode| {
        let y = conv.forward(&FeatureMap::from_tensor(&x).unwrap(), None, Activation::None, mode).unwrap();
        let y = y.to_tensor().unwrap();
        let loss = (&y * wide(&[1., 2., -1., 3.], &[1, 2, 1, 2])).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let (_, weight) = &store.trainable()[1];
        (y, gradients.get(weight).unwrap().clone(), store.snapshot().unwrap())
    };
    let check = |found: &Tensor, expected: &[f64]| {
        assert!(distance(&found.flatten_all().unwrap(), &wide(expected, &[expected.len()])) < 1e-12, "{found}");
    };
    let (y, gradient, state) = pass(Mode::Train);
    check(&y, &[-0.6004290311595761, 1.5010725778989404, 1.3509653201090464, -1.2008580623191523]);
    check(&state["weight_u"], &[0.5240974256643347, 0.851658316704544]);
    check(&state["weight_v"], &[0.8728715609439696, 0.4364357804719848, 0.2182178902359924, 0.0]);
    let expected = [
        0.05025049831593015,
        1.0758760536872234,
        0.8381525424233998,
        -0.9006435467393642,
        -0.6313524147386101,
        2.3862544328487876,
        0.8929127008446057,
        -2.1015016090585164,
    ];
    check(&gradient, &expected);
    let second = pass(Mode::Train);
    for (y, gradient, state) in [second, pass(Mode::Eval)] {
        check(&y, &[-0.5880539588037307, 1.4701348970093266, 1.323121407308394, -1.1761079176074611]);
        check(&state["weight_u"], &[0.42194877794177177, 0.9066196715235366]);
        check(&state["weight_v"], &[0.9114622564341869, 0.3102850234669572, 0.25210658156690274, 0.09696406983342415]);
        let expected = [
            -0.011414254101694887,
            0.9782895255418242,
            0.8132369257153488,
            -0.8520157546630246,
            -0.5688724673003382,
            2.2649073069814394,
            0.903026190078974,
            -1.9935893398229378,
        ];
        check(&gradient, &expected);
    }
}

#[test]
fn spectral_norm_finds_the_largest_singular_value() {
    // W = [[3, 0], [4, 5]]: W W^T = [[9, 12], [12, 41]] has trace 50 and determinant 225, so its roots are 45 and 5.
    let store = f64_store();
    let weight = SpectralWeight::new(&store.root(), &[2, 2], Init::PyTorch).unwrap();
    let mut state = store.snapshot().unwrap();
    state.insert("weight_orig".into(), wide(&[3., 0., 4., 5.], &[2, 2]));
    store.load(&state).unwrap();
    for _ in 0..40 {
        weight.get(Mode::Train).unwrap();
    }
    let expected = (wide(&[3., 0., 4., 5.], &[2, 2]) / 45f64.sqrt()).unwrap();
    assert!(distance(&weight.get(Mode::Eval).unwrap(), &expected) < 1e-12);
    // Its singular vectors are [1, 3] / sqrt(10) and [1, 1] / sqrt(2).
    let state = store.snapshot().unwrap();
    let root = |n: f64| n.sqrt().recip();
    assert!(distance(&state["weight_u"], &wide(&[root(10.), 3. * root(10.)], &[2])) < 1e-9);
    assert!(distance(&state["weight_v"], &wide(&[root(2.), root(2.)], &[2])) < 1e-9);
    // A frozen store divides once, and has no training mode.
    let fixed = SpectralWeight::new(&frozen(state).root(), &[2, 2], Init::PyTorch).unwrap();
    assert!(distance(&fixed.get(Mode::Eval).unwrap(), &expected) < 1e-12);
    assert!(fixed.get(Mode::Train).is_err());
}

#[test]
fn a_later_pass_does_not_change_an_earlier_gradient() {
    // Real and generated images are judged one after the other, and then comes the gradient of both.
    for mode in [Mode::Train, Mode::Eval] {
        let gradient = |passes: usize| {
            let store = f64_store();
            let weight = SpectralWeight::new(&store.root(), &[3, 4], Init::PyTorch).unwrap();
            let loss = weighted(&weight.get(mode).unwrap(), 3);
            (0..passes).for_each(|_| drop(weight.get(Mode::Train).unwrap()));
            loss.backward().unwrap().get(&store.trainable()[0].1).unwrap().clone()
        };
        assert_eq!(distance(&gradient(0), &gradient(5)), 0.0);
    }
}

#[test]
fn conditional_norms_scale_and_shift_by_class() {
    let store = f64_store();
    let norm = ConditionalBatchNorm::new(&store.root(), 1, Condition::Classes(2)).unwrap();
    let keys = ["bn.running_mean", "bn.running_var", "embed_beta.weight", "embed_gamma.weight"];
    let mut state = store.snapshot().unwrap();
    assert_eq!(state.keys().collect::<Vec<_>>(), keys);
    let x = FeatureMap::from_tensor(&wide(&[1., 3., 5., 7.], &[2, 1, 1, 2])).unwrap();
    let labels = Tensor::new(&[1u32, 0], &Device::Cpu).unwrap();
    let values = |mode| norm.forward(&x, &labels, mode, Activation::None).unwrap().to_tensor().unwrap();
    // Mean 4, biased variance 5, unbiased 20 / 3. The tables start at 0: nothing is scaled.
    let root = (5f64 + 1e-5).sqrt();
    let normal = |x: f64| (x - 4.0) / root;
    let shape = [2, 1, 1, 2];
    let expected = [1., 3., 5., 7.].map(normal);
    assert!(distance(&values(Mode::Train), &wide(&expected, &shape)) < 1e-12);
    let running = store.snapshot().unwrap();
    assert!(distance(&running["bn.running_mean"], &wide(&[0.4], &[1])) < 1e-12);
    assert!(distance(&running["bn.running_var"], &wide(&[0.9 + 2.0 / 3.0], &[1])) < 1e-12);
    // Class 0: scaled by 3 and shifted by 1; class 1: scaled by 0.5, shifted by -2.
    state.insert("embed_gamma.weight".into(), wide(&[2., -0.5], &[2, 1]));
    state.insert("embed_beta.weight".into(), wide(&[1., -2.], &[2, 1]));
    store.load(&state).unwrap();
    let expected = [normal(1.) / 2. - 2., normal(3.) / 2. - 2., 3. * normal(5.) + 1., 3. * normal(7.) + 1.];
    assert!(distance(&values(Mode::BatchStatistics), &wide(&expected, &shape)) < 1e-12);
    let after = store.snapshot().unwrap();
    assert_eq!(distance(&after["bn.running_mean"], &wide(&[0.], &[1])), 0.0, "batch statistics leave no trace");
    // Running mean 0, variance 1.
    let scale = 1.00001f64.sqrt().recip();
    let expected = [scale / 2. - 2., 1.5 * scale - 2., 15. * scale + 1., 21. * scale + 1.];
    assert!(distance(&values(Mode::Eval), &wide(&expected, &shape)) < 1e-12);
}

#[test]
fn generator_gradients_agree_with_central_differences() {
    each_generator(|config, store| {
        let network = Generator::new(config, &store.root()).unwrap();
        let noise = Var::from_tensor(&normal(&[3, 4], 5)).unwrap();
        let condition = given(config.condition);
        let mut inputs = vec![noise.clone()];
        inputs.extend(condition.clone().filter(|given| given.dtype().is_float()));
        check_directional_derivative(store, &inputs, || {
            let found = network.forward(&noise, condition.as_deref(), Mode::Train).unwrap();
            let maps = found.maps.iter().map(|map| weighted(&map.to_tensor().unwrap(), 2));
            maps.fold(weighted(&found.images, 1), |sum, map| (sum + map).unwrap())
        });
    });
}

#[test]
fn discriminator_gradients_agree_with_central_differences() {
    each_discriminator(|config, store| {
        let network = Discriminator::new(config, &store.root()).unwrap();
        let images = Var::from_tensor(&normal(&[3, 2, 8, 13], 5)).unwrap();
        let condition = given(config.condition);
        let mut inputs = vec![images.clone()];
        inputs.extend(condition.clone().filter(|given| given.dtype().is_float()));
        // In evaluation: a training step of the iteration moves the singular vectors, which the gradient leaves out.
        check_directional_derivative(store, &inputs, || {
            let found = network.forward(&images, condition.as_deref(), Mode::Eval).unwrap();
            (weighted(&found.scores, 1) + weighted(&found.features, 2)).unwrap()
        });
    });
}

#[test]
fn frozen_networks_agree() {
    let noise = normal(&[3, 4], 5);
    each_generator(|config, store| {
        let open = Generator::new(config, &store.root()).unwrap();
        let fixed = Generator::new(config, &frozen(store.snapshot().unwrap()).root()).unwrap();
        let condition = given(config.condition);
        let condition = condition.map(|given| given.as_tensor().detach());
        let run = |network: &Generator, mode| network.forward(&noise, condition.as_ref(), mode);
        let found = run(&fixed, Mode::Eval).unwrap();
        assert!(distance(&found.images, &run(&open, Mode::Eval).unwrap().images) < 1e-12);
        assert!(!found.images.track_op());
        let values: Vec<f64> = found.images.flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|x| x.abs() <= 1.0));
        assert!(run(&fixed, Mode::Train).is_err());
    });
    let images = normal(&[3, 2, 8, 13], 5);
    each_discriminator(|config, store| {
        let open = Discriminator::new(config, &store.root()).unwrap();
        let fixed = Discriminator::new(config, &frozen(store.snapshot().unwrap()).root()).unwrap();
        let condition = given(config.condition).map(|given| given.as_tensor().detach());
        let run = |network: &Discriminator, mode| network.forward(&images, condition.as_ref(), mode);
        let (found, expected) = (run(&fixed, Mode::Eval).unwrap(), run(&open, Mode::Eval).unwrap());
        assert!(distance(&found.scores, &expected.scores) < 1e-12);
        assert!(distance(&found.features, &expected.features) < 1e-12);
        assert!(!found.scores.track_op());
        assert!(run(&fixed, Mode::Train).is_err());
    });
}

#[test]
fn a_score_is_a_linear_layer_and_a_projection() {
    each_discriminator(|config, store| {
        let network = Discriminator::new(config, &store.root()).unwrap();
        let condition = given(config.condition);
        let found = network.forward(&normal(&[3, 2, 8, 13], 5), condition.as_deref(), Mode::Eval).unwrap();
        let state = store.snapshot().unwrap();
        let weight = |key: &str| {
            let [w, u, v] = ["weight_orig", "weight_u", "weight_v"].map(|name| state[&format!("{key}.{name}")].clone());
            let column = v.unsqueeze(1).unwrap();
            let sigma = (w.matmul(&column).unwrap().squeeze(1).unwrap() * u).unwrap().sum_all().unwrap();
            w.broadcast_div(&sigma).unwrap()
        };
        let vector = weight("linear").broadcast_as((3, 6)).unwrap();
        let vector = match (config.condition, &condition) {
            (Condition::Classes(_), Some(labels)) => {
                (vector + weight("embed").index_select(labels, 0).unwrap()).unwrap()
            }
            (Condition::Embedding(_), Some(given)) => {
                (vector + given.matmul(&weight("embed").t().unwrap()).unwrap()).unwrap()
            }
            _ => vector,
        };
        let scores = (vector * &found.features).unwrap().sum_keepdim(1).unwrap();
        let expected = scores.broadcast_add(&state["linear.bias"]).unwrap();
        assert!(distance(&found.scores, &expected) < 1e-12);
        // The features are sums over positions of the last map, with a ReLU in front in residual networks.
        let last = found.maps.last().unwrap().to_tensor().unwrap();
        let last = if config.style == Style::Residual { retort_kernels::relu(&last).unwrap() } else { last };
        assert!(distance(&found.features, &last.sum((2, 3)).unwrap()) < 1e-9);
    });
}

#[test]
fn sizes_follow_the_images() {
    // Height, width, first map and last map.
    let cases = [([28, 28], [7, 7], [3, 3]), ([32, 32], [4, 4], [4, 4]), ([64, 64], [4, 4], [4, 4])];
    for (image, base, last) in cases {
        for channels in [1, 3] {
            let small = GeneratorConfig::small(channels, image);
            let blocks = small.channels.len() - 1;
            assert_eq!([image[0] >> blocks, image[1] >> blocks], base);
            assert_eq!(small.channels[..3], [64, 32, 16]);
            let network = Generator::new(&small, &f32_store().root()).unwrap();
            let noise = normal(&[2, 64], 5).to_dtype(DType::F32).unwrap();
            let found = network.forward(&noise, None, Mode::Train).unwrap();
            assert_eq!(found.images.dims(), [2, channels, image[0], image[1]]);
            assert_eq!(found.maps.len(), blocks);

            let judge = Discriminator::new(&DiscriminatorConfig::small(channels, image), &f32_store().root()).unwrap();
            let found = judge.forward(&found.images, None, Mode::Train).unwrap();
            assert_eq!(found.scores.dims(), [2, 1]);
            assert_eq!(found.features.dims(), [2, 64]);
            assert_eq!(found.maps.last().unwrap().dims()[2..], last);
        }
        // The wide ones are only declared.
        let store = Params::declared(DType::F32, &Device::Cpu);
        let config = GeneratorConfig::sngan(3, image);
        assert_eq!(config.channels, vec![256; if image[0] == 64 { 5 } else { config.channels.len() }]);
        Generator::new(&config, &store.root()).unwrap();
        let store = Params::declared(DType::F32, &Device::Cpu);
        Discriminator::new(&DiscriminatorConfig::sngan(3, image), &store.root()).unwrap();
    }
}

#[test]
fn counts_of_the_published_sizes() {
    // SNGAN at 32x32, layer by layer.
    let store = Params::declared(DType::F32, &Device::Cpu);
    Generator::new(&GeneratorConfig::sngan(3, [32, 32]), &store.root()).unwrap();
    // Linear 128 -> 256 x 16; three blocks of two 3x3, one 1x1 and two norms; norm and convolution.
    let block = 2 * (256 * 256 * 9 + 256) + (256 * 256 + 256) + 2 * 512;
    assert_eq!(store.parameter_count(), 129 * 4096 + 3 * block + 512 + (256 * 27 + 3));
    assert_eq!(store.parameter_count(), 4_276_739);
    let store = Params::declared(DType::F32, &Device::Cpu);
    Discriminator::new(&DiscriminatorConfig::sngan(3, [32, 32]), &store.root()).unwrap();
    let conv = 128 * 128 * 9 + 128;
    let first = (3 * 128 * 9 + 128) + conv + (3 * 128 + 128);
    let second = 2 * conv + (128 * 128 + 128);
    assert_eq!(store.parameter_count(), first + second + 4 * conv + 129);
    assert_eq!(store.parameter_count(), 1_053_825);
}

#[test]
fn conditions_matter_and_the_same_seed_gives_the_same_bits() {
    for style in STYLES {
        for (condition, entrance) in [
            (Condition::Classes(3), Entrance::Norms),
            (Condition::Classes(3), Entrance::Noise),
            (Condition::Embedding(5), Entrance::Norms),
            (Condition::Embedding(5), Entrance::Noise),
        ] {
            let config = generator(style, condition, entrance);
            let start = f64_store();
            Generator::new(&config, &start.root()).unwrap();
            let state = shaken(&start, DType::F64);
            let network = Generator::new(&config, &loaded(state).root()).unwrap();
            let noise = normal(&[3, 4], 5);
            let other = match condition {
                Condition::Classes(_) => Tensor::new(&[1i64, 1, 1], &Device::Cpu).unwrap(),
                _ => normal(&[3, 5], 8),
            };
            let images = |given: &Tensor| network.forward(&noise, Some(given), Mode::Eval).unwrap().images;
            let first = given(condition).unwrap();
            assert!(distance(&images(&first), &images(&other)) > 1e-4);
            assert_eq!(distance(&images(&first), &images(&first)), 0.0);

            let again = f64_store();
            Generator::new(&config, &again.root()).unwrap();
            for (key, tensor) in start.snapshot().unwrap() {
                assert_eq!(distance(&tensor, &again.snapshot().unwrap()[&key]), 0.0, "{key}");
            }
        }
    }
}

#[test]
fn initial_weights_are_those_of_the_styles() {
    let spread = |state: &Tensors, key: &str| {
        let square = state[key].sqr().unwrap().mean_all().unwrap().to_dtype(DType::F64).unwrap();
        square.to_scalar::<f64>().unwrap().sqrt()
    };
    let store = f32_store();
    Generator::new(&GeneratorConfig::small(1, [28, 28]), &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    for key in ["linear.weight", "blocks.0.conv1.weight", "blocks.1.conv1.weight"] {
        assert!((spread(&state, key) / 0.02 - 1.0).abs() < 0.03, "{key}");
    }
    assert_eq!(spread(&state, "linear.bias"), 0.0);
    let store = f32_store();
    let config = DiscriminatorConfig {
        style: Style::Residual,
        channels: vec![32; 2],
        ..discriminator(STYLES[1], CONDITIONS[0])
    };
    Discriminator::new(&config, &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    // A uniform rule of bound b has deviation b / sqrt(3): sqrt(2 gain^2 / (fan in + fan out)).
    let expected = (4.0f64 / (2.0 * 32.0 * 9.0)).sqrt();
    assert!((spread(&state, "blocks.1.conv1.weight_orig") / expected - 1.0).abs() < 0.03);
    let expected = (2.0f64 / (2.0 * 32.0)).sqrt();
    assert!((spread(&state, "blocks.1.shortcut.weight_orig") / expected - 1.0).abs() < 0.05);
}

#[test]
fn group_norm_by_hand() {
    let store = f64_store();
    let norm = GroupNorm::new(&store.root(), 4, 2).unwrap();
    let mut state = store.snapshot().unwrap();
    state.insert("weight".into(), wide(&[1., 2., 1., 1.], &[4]));
    state.insert("bias".into(), wide(&[0., 0., 0., 3.], &[4]));
    store.load(&state).unwrap();
    // Groups (1, 3) and (5, 5): deviations 1 and 0.
    let x = wide(&[1., 3., 5., 5.], &[1, 4]);
    let unit = 1.00001f64.sqrt().recip();
    assert!(distance(&norm.forward(&x).unwrap(), &wide(&[-unit, 2. * unit, 0., 3.], &[1, 4])) < 1e-12);
    assert!(GroupNorm::new(&f64_store().root(), 6, 4).is_err());
    assert!(GroupNorm::new(&f64_store().root(), 6, 0).is_err());
}

#[test]
fn a_ratio_is_that_of_the_formula() {
    for condition in CONDITIONS {
        let config = RatioConfig { hidden: vec![16, 8], ..RatioConfig::new(6, condition) };
        let start = f64_store();
        RatioNet::new(&config, &start.root()).unwrap();
        let mut state = shaken(&start, DType::F64);
        // Far enough up that no ratio is cut off at 0.
        state.insert("main.8.bias".into(), wide(&[4.0], &[1]));
        let store = loaded(state);
        let network = RatioNet::new(&config, &store.root()).unwrap();
        let (state, features, given) = (store.snapshot().unwrap(), normal(&[3, 6], 5), given(condition));
        let linear = |x: &Tensor, key: &str| {
            let y = x.matmul(&state[&format!("main.{key}.weight")].t().unwrap()).unwrap();
            y.broadcast_add(&state[&format!("main.{key}.bias")]).unwrap()
        };
        let grouped = |x: &Tensor, key: &str| {
            let (batch, width) = x.dims2().unwrap();
            let x = x.reshape((batch, 8, width / 8)).unwrap();
            let x = x.broadcast_sub(&x.mean_keepdim(2).unwrap()).unwrap();
            let std = (x.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-5).unwrap().sqrt().unwrap();
            let x = x.broadcast_div(&std).unwrap().reshape((batch, width)).unwrap();
            let x = x.broadcast_mul(&state[&format!("main.{key}.weight")]).unwrap();
            retort_kernels::relu(&x.broadcast_add(&state[&format!("main.{key}.bias")]).unwrap()).unwrap()
        };
        // The condition stands behind the features.
        let x = match (condition, &given) {
            (Condition::Classes(_), Some(labels)) => {
                assert_eq!(state["label_emb.weight"].dims(), [3, 3]);
                Tensor::cat(&[&features, &state["label_emb.weight"].index_select(labels, 0).unwrap()], 1).unwrap()
            }
            (Condition::Embedding(_), Some(given)) => Tensor::cat(&[&features, given.as_tensor()], 1).unwrap(),
            _ => features.clone(),
        };
        let x = grouped(&linear(&grouped(&linear(&x, "0"), "1"), "4"), "5");
        let expected = retort_kernels::relu(&linear(&x, "8")).unwrap();
        let ratio = |seed| network.forward(&features, given.as_deref(), seed).unwrap();
        assert!(distance(&ratio(None), &expected) < 1e-12);

        let seeds = [1, 1, 2].map(|seed| ratio(Some(Seed::root(seed))));
        assert_eq!(distance(&seeds[0], &seeds[1]), 0.0);
        assert!(distance(&seeds[0], &seeds[2]) > 0.0);
        let without = RatioNet::new(&RatioConfig { dropout: 0.0, ..config }, &loaded(state.clone()).root()).unwrap();
        let plain = without.forward(&features, given.as_deref(), Some(Seed::root(1))).unwrap();
        assert!(distance(&plain, &expected) < 1e-12);
        check_directional_derivative(&store, &[], || weighted(&ratio(Some(Seed::root(4))), 6));
    }
    // The published widths.
    let store = Params::declared(DType::F32, &Device::Cpu);
    RatioNet::new(&RatioConfig::new(512, Condition::Classes(100)), &store.root()).unwrap();
    let widths = [612, 1024, 512, 256, 128, 64, 1];
    let layers: usize = widths.windows(2).map(|w| w[0] * w[1] + w[1]).sum();
    assert_eq!(store.parameter_count(), layers + 2 * (1024 + 512 + 256 + 128 + 64) + 100 * 100);
}

#[test]
fn dropout_keeps_the_mean() {
    // One linear layer of equal entries behind the dropout shows the mean of what it lets pass.
    let config = RatioConfig { hidden: vec![4096], dropout: 0.3, ..RatioConfig::new(1, Condition::None) };
    let store = f64_store();
    let network = RatioNet::new(&config, &store.root()).unwrap();
    let mut state = store.snapshot().unwrap();
    // A group norm without scale and with shift 1: every hidden entry is 1.
    state.insert("main.1.weight".into(), wide(&[0.; 4096], &[4096]));
    state.insert("main.1.bias".into(), wide(&[1.; 4096], &[4096]));
    state.insert("main.4.weight".into(), wide(&[1. / 4096.; 4096], &[1, 4096]));
    state.insert("main.4.bias".into(), wide(&[0.], &[1]));
    store.load(&state).unwrap();
    let x = normal(&[50, 1], 5);
    let means =
        network.forward(&x, None, Some(Seed::root(3))).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    // Standard error of one row: sqrt(0.3 / 0.7 / 4096) = 0.0102; of the mean of 50: 0.0015.
    assert!(means.iter().all(|mean| (mean - 1.0).abs() < 0.06 && *mean != 1.0));
    assert!((means.iter().sum::<f64>() / 50.0 - 1.0).abs() < 0.006);
}

#[test]
fn labels_become_vectors_and_are_read_again() {
    let store = f64_store();
    let embedding = LabelEmbedding::new(&store.root().child("y2h"), 16).unwrap();
    let reader = LabelReader::new(&store.root().child("reader"), 6, 16).unwrap();
    let state = store.snapshot().unwrap();
    for (key, shape) in [
        ("y2h.main.0.weight", vec![16, 1]),
        ("y2h.main.1.weight", vec![16]),
        ("y2h.main.9.weight", vec![16, 16]),
        ("y2h.main.10.bias", vec![16]),
        ("y2h.main.12.weight", vec![16, 16]),
        ("reader.x2h.0.weight", vec![512, 6]),
        ("reader.x2h.1.running_var", vec![512]),
        ("reader.x2h.3.weight", vec![16, 512]),
        ("reader.x2h.4.weight", vec![16]),
        ("reader.h2y.0.weight", vec![1, 16]),
    ] {
        assert_eq!(state[key].dims(), shape, "{key}");
    }
    let labels = wide(&[0.1, 0.6, 1.0], &[3]);
    let vectors = embedding.forward(&labels).unwrap();
    assert_eq!(vectors.dims(), [3, 16]);
    assert_eq!(distance(&vectors, &embedding.forward(&labels.unsqueeze(1).unwrap()).unwrap()), 0.0);
    assert_eq!(reader.read(&vectors).unwrap().dims(), [3, 1]);
    assert_eq!(reader.embed(&normal(&[3, 6], 5), Mode::Train).unwrap().dims(), [3, 16]);
    assert!(embedding.forward(&normal(&[3, 2], 5)).is_err());
    assert!(reader.embed(&normal(&[3, 5], 5), Mode::Eval).is_err());

    let store = loaded(shaken(&store, DType::F64));
    let embedding = LabelEmbedding::new(&store.root().child("y2h"), 16).unwrap();
    let reader = LabelReader::new(&store.root().child("reader"), 6, 16).unwrap();
    let inputs = [Var::from_tensor(&labels).unwrap(), Var::from_tensor(&normal(&[3, 6], 5)).unwrap()];
    check_directional_derivative(&store, &inputs, || {
        let embedded = embedding.forward(&inputs[0]).unwrap();
        let found = reader.embed(&inputs[1], Mode::Train).unwrap();
        let read = weighted(&reader.read(&(&embedded + &found).unwrap()).unwrap(), 1);
        (read + (weighted(&embedded, 2) + weighted(&found, 3)).unwrap()).unwrap()
    });
}

#[test]
fn impossible_sizes_are_errors() {
    let base = generator(Style::Plain, Condition::Classes(3), Entrance::Norms);
    let cases = [
        (GeneratorConfig { latent: 0, ..base.clone() }, "latent must be positive"),
        (GeneratorConfig { channels: vec![], ..base.clone() }, "at least one entry"),
        (GeneratorConfig { channels: vec![4, 0], ..base.clone() }, "channels must be positive"),
        (GeneratorConfig { channels: vec![4; 100], ..base.clone() }, "multiple of 2^99"),
        (GeneratorConfig { channels: vec![usize::MAX, 4, 4], ..base.clone() }, "at most 268435456 weights"),
        (GeneratorConfig { image: [8, 10], ..base.clone() }, "multiple of 2^2 for 2 blocks, found 8x10"),
        (GeneratorConfig { image: [0, 8], ..base.clone() }, "image must be positive"),
        (GeneratorConfig { image_channels: 0, ..base.clone() }, "image_channels must be positive"),
        (
            GeneratorConfig { latent: usize::MAX, entrance: Entrance::Noise, ..base.clone() },
            "at most 268435456 weights",
        ),
        (GeneratorConfig { condition: Condition::Classes(0), ..base.clone() }, "classes or entries must be positive"),
        (GeneratorConfig { condition: Condition::Classes(usize::MAX), ..base.clone() }, "at most 268435456 weights"),
    ];
    for (config, words) in cases {
        let message = Generator::new(&config, &f64_store().root()).err().unwrap().to_string();
        assert!(message.contains(words) && message.contains("`generator`"), "{message}");
    }
    let base = discriminator(Style::Residual, Condition::None);
    let cases = [
        (DiscriminatorConfig { channels: vec![], ..base.clone() }, "at least one entry"),
        (DiscriminatorConfig { channels: vec![4, 0, 4], ..base.clone() }, "channels must be positive"),
        (DiscriminatorConfig { halvings: 4, ..base.clone() }, "at most 3 (the blocks), found 4"),
        (DiscriminatorConfig { halvings: 2, image: [3, 9], ..base.clone() }, "image 3x9 allows 1 halvings at most"),
        (DiscriminatorConfig { halvings: usize::MAX, ..base.clone() }, "halvings must be at most 3"),
        (DiscriminatorConfig { image: [8, 0], ..base.clone() }, "image must be positive"),
        (DiscriminatorConfig { channels: vec![usize::MAX; 3], ..base.clone() }, "at most 268435456 weights"),
        (DiscriminatorConfig { condition: Condition::Embedding(0), ..base.clone() }, "must be positive"),
    ];
    for (config, words) in cases {
        let message = Discriminator::new(&config, &f64_store().root()).err().unwrap().to_string();
        assert!(message.contains(words) && message.contains("`discriminator`"), "{message}");
    }
    let base = RatioConfig::new(6, Condition::None);
    for (config, words) in [
        (RatioConfig { features: 0, ..base.clone() }, "features must be positive"),
        (RatioConfig { hidden: vec![12], ..base.clone() }, "multiple of the 8 groups, found 12"),
        (RatioConfig { hidden: vec![0], ..base.clone() }, "found 0"),
        (RatioConfig { dropout: 1.0, ..base.clone() }, "dropout must be in [0, 1), found 1"),
        (RatioConfig { dropout: f64::NAN, ..base.clone() }, "dropout"),
        (RatioConfig { condition: Condition::Classes(usize::MAX), ..base.clone() }, "at most 268435456 weights"),
    ] {
        let message = RatioNet::new(&config, &f64_store().root()).err().unwrap().to_string();
        assert!(message.contains(words) && message.contains("`density ratio network`"), "{message}");
    }
    assert!(LabelEmbedding::new(&f64_store().root(), 12).is_err());
    assert!(LabelEmbedding::new(&f64_store().root(), 0).is_err());
    assert!(LabelReader::new(&f64_store().root(), 0, 8).is_err());
    assert!(SpectralWeight::new(&f64_store().root(), &[], Init::PyTorch).is_err());
    assert!(SpectralWeight::new(&f64_store().root(), &[2, 0], Init::PyTorch).is_err());
    assert!(ConditionalBatchNorm::new(&f64_store().root(), 4, Condition::None).is_err());
    assert!(ConditionalBatchNorm::new(&f64_store().root(), 0, Condition::Classes(2)).is_err());
    // Presets for images of any size are made, and refused when they are built.
    for image in [[0, 0], [1, 1], [1, 1000], [usize::MAX, 8]] {
        for config in [GeneratorConfig::small(1, image), GeneratorConfig::sngan(1, image)] {
            let store = Params::declared(DType::F32, &Device::Cpu);
            assert_eq!(Generator::new(&config, &store.root()).is_ok(), image[0] == 1, "{image:?}");
        }
        for config in [DiscriminatorConfig::small(1, image), DiscriminatorConfig::sngan(1, image)] {
            let store = Params::declared(DType::F32, &Device::Cpu);
            assert_eq!(Discriminator::new(&config, &store.root()).is_ok(), image[0] > 1, "{image:?}");
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let integers = |values: &[i64]| Tensor::new(values, &Device::Cpu).unwrap();
    let network = |condition| {
        let (g, d) = (generator(Style::Plain, condition, Entrance::Norms), discriminator(Style::Plain, condition));
        (Generator::new(&g, &f64_store().root()).unwrap(), Discriminator::new(&d, &f64_store().root()).unwrap())
    };
    let (noise, images) = (normal(&[3, 4], 5), normal(&[3, 2, 8, 13], 5));
    let cases = [
        (Condition::None, Some(integers(&[0, 1, 2])), "expected nothing"),
        (Condition::Classes(3), None, "integer labels [3], found nothing"),
        (Condition::Classes(3), Some(integers(&[0, 1])), "integer labels [3], found I64 [2]"),
        (Condition::Classes(3), Some(integers(&[0, 3, 1])), "from 0 to 2, found 3"),
        (Condition::Classes(3), Some(integers(&[0, -1, 1])), "from 0 to 2, found -1"),
        (Condition::Classes(3), Some(normal(&[3], 1)), "integer labels [3], found F64 [3]"),
        (Condition::Embedding(5), Some(normal(&[3, 4], 1)), "vectors [3, 5], found F64 [3, 4]"),
        (Condition::Embedding(5), None, "found nothing"),
    ];
    for (condition, given, words) in cases {
        let (g, d) = network(condition);
        let messages = [
            g.forward(&noise, given.as_ref(), Mode::Eval).unwrap_err().to_string(),
            d.forward(&images, given.as_ref(), Mode::Eval).unwrap_err().to_string(),
        ];
        assert!(messages.iter().all(|message| message.contains(words)), "{messages:?}");
    }
    let (g, d) = network(Condition::None);
    let message = g.forward(&normal(&[3, 5], 1), None, Mode::Eval).unwrap_err().to_string();
    assert!(message.contains("[B, 4]") && message.contains("[3, 5]"), "{message}");
    let message = d.forward(&normal(&[3, 2, 8, 12], 1), None, Mode::Eval).unwrap_err().to_string();
    assert!(message.contains("[B, 2, 8, 13]") && message.contains("[3, 2, 8, 12]"), "{message}");
    let ratio = RatioNet::new(&RatioConfig::new(6, Condition::None), &f64_store().root()).unwrap();
    assert!(ratio.forward(&normal(&[3, 5], 1), None, None).unwrap_err().to_string().contains("[B, 6]"));
}

#[test]
fn a_discriminator_learns_to_tell_two_kinds_of_images() {
    use retort_nn::{Optimizer, OptimizerConfig, ParamGroup};
    let store = f32_store();
    let config = DiscriminatorConfig::small(1, [12, 12]);
    let network = Discriminator::new(&config, &store.root()).unwrap();
    let config = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, dampening: 0.0, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(config, vec![ParamGroup::new(store.trainable())]).unwrap();
    let noise = |seed| normal(&[16, 1, 12, 12], seed).to_dtype(DType::F32).unwrap();
    let scores = |images: &Tensor, mode| network.forward(images, None, mode).unwrap().scores;
    for step in 0..20 {
        let (real, fake) = ((noise(step) + 0.5).unwrap(), (noise(100 + step) - 0.5).unwrap());
        // Hinge.
        let real = retort_kernels::relu(&(1.0 - scores(&real, Mode::Train)).unwrap()).unwrap();
        let fake = retort_kernels::relu(&(scores(&fake, Mode::Train) + 1.0).unwrap()).unwrap();
        let loss = (real.mean_all().unwrap() + fake.mean_all().unwrap()).unwrap();
        optimizer.step(&loss.backward().unwrap(), 0.02).unwrap();
    }
    let mean = |images| scores(&images, Mode::Eval).mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(mean((noise(1000) + 0.5).unwrap()) > mean((noise(1001) - 0.5).unwrap()) + 1.0);
}

#[test]
fn an_autoencoder_returns_to_the_size_of_its_images() {
    for (image, channels, last) in
        [([28, 28], vec![16, 32], 7), ([32, 32], vec![16, 32, 64], 4), ([64, 64], vec![16, 32, 64, 64], 4)]
    {
        let config = AutoencoderConfig::small(1, image);
        assert_eq!(config.channels, channels);
        let store = f32_store();
        let network = Autoencoder::new(&config, &store.root()).unwrap();
        assert_eq!(store.snapshot().unwrap()["code.weight"].dims(), [128, channels[channels.len() - 1] * last * last]);
        let images = normal(&[2, 1, image[0], image[1]], 5).to_dtype(DType::F32).unwrap();
        let found = network.forward(&images, Mode::Train).unwrap();
        assert_eq!(found.images.dims(), images.dims());
        assert_eq!((found.code.dims(), found.labels.dims()), (&[2, 128][..], &[2, 1][..]));
    }
    let config = AutoencoderConfig { code: 5, channels: vec![4, 6], image_channels: 2, image: [8, 12] };
    let start = f64_store();
    Autoencoder::new(&config, &start.root()).unwrap();
    let state = shaken(&start, DType::F64);
    let store = loaded(state.clone());
    let network = Autoencoder::new(&config, &store.root()).unwrap();
    let images = Var::from_tensor(&normal(&[3, 2, 8, 12], 5)).unwrap();
    let fixed = Autoencoder::new(&config, &frozen(state).root()).unwrap();
    let (open, fixed) = (network.forward(&images, Mode::Eval).unwrap(), fixed.forward(&images, Mode::Eval).unwrap());
    for (a, b) in [(&open.code, &fixed.code), (&open.images, &fixed.images), (&open.labels, &fixed.labels)] {
        assert!(distance(a, b) < 1e-9);
    }
    let code = open.code.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(code.iter().all(|x| *x >= 0.0) && code.iter().any(|x| *x > 0.0));
    check_directional_derivative(&store, std::slice::from_ref(&images), || {
        let found = network.forward(&images, Mode::Train).unwrap();
        let sum = (weighted(&found.code, 1) + weighted(&found.images, 2)).unwrap();
        (sum + weighted(&found.labels, 3)).unwrap()
    });
    for (config, words) in [
        (AutoencoderConfig { code: 0, ..config.clone() }, "code must be positive"),
        (AutoencoderConfig { channels: vec![], ..config.clone() }, "channels must be positive"),
        (AutoencoderConfig { channels: vec![4, 0], ..config.clone() }, "channels must be positive"),
        (AutoencoderConfig { image: [8, 10], ..config.clone() }, "multiple of 2^2"),
        (AutoencoderConfig { image_channels: usize::MAX, ..config.clone() }, "at most 268435456 weights"),
    ] {
        let message = Autoencoder::new(&config, &f64_store().root()).err().unwrap().to_string();
        assert!(message.contains(words), "{message}");
    }
    assert!(network.encode(&normal(&[3, 2, 8, 8], 5), Mode::Eval).unwrap_err().to_string().contains("[B, 2, 8, 12]"));
}
