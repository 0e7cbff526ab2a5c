//! Heads on vectors and the small modules made of them.

use crate::check::{check_directional_derivative, distance, normal};
use candle_core::{DType, Device, Tensor, Var};
use retort_models::{
    Aggregator, Head, HeadLayer, MapAdapter, MapDiscriminator, PairWeights, SelfTeacher, SimRegHead, SqueezeModule,
};
use retort_nn::{MapShape, Mode, Params, Result, Seed};

fn store() -> Params {
    Params::new(Seed::root(1), DType::F64, &Device::Cpu)
}

/// Every published head: name, parameters, multiply-adds, and how to build it.
type Row = (&'static str, usize, usize, fn(&Params) -> Result<Head>);

const HEADS: &[Row] = &[
    ("simreg 4", 37_792, 64 * 128 + 128 * 64 + 64 * 128 + 128 * 96, |p| {
        Head::simreg(SimRegHead::Four, 64, 96, &p.root())
    }),
    ("simreg 2", 20_704, 64 * 128 + 128 * 96, |p| Head::simreg(SimRegHead::Two, 64, 96, &p.root())),
    ("simreg 2 activated", 20_704 + 256, 64 * 128 + 128 * 96, |p| {
        Head::simreg(SimRegHead::TwoActivated, 64, 96, &p.root())
    }),
    ("simreg 1", 128 + 65 * 96, 64 * 96, |p| Head::simreg(SimRegHead::Linear, 64, 96, &p.root())),
    ("mcl", 24_832, 64 * 128 + 128 * 128, |p| Head::mcl(64, 128, 128, &p.root())),
    ("sskd", 2 * 65 * 64, 2 * 64 * 64, |p| Head::sskd(64, &p.root())),
    ("embed", 65 * 128, 64 * 128, |p| Head::embed(64, 128, &p.root())),
    ("linear embed", 65 * 128, 64 * 128, |p| Head::linear_embed(64, 128, &p.root())),
    ("mlp embed", 65 * 256 + 257 * 128, 64 * 256 + 256 * 128, |p| Head::mlp_embed(64, 128, &p.root())),
    ("linear probe", 65 * 10, 640, |p| Head::linear_probe(64, 10, &p.root())),
    ("nonlinear probe", 65 * 200 + 400 + 201 * 10, 64 * 200 + 2000, |p| Head::nonlinear_probe(64, 10, &p.root())),
    ("regression", 65 * 512 + 1024 + 513 * 512 + 1024 + 513, 64 * 512 + 512 * 512 + 512, |p| {
        Head::label_regression(64, &p.root())
    }),
    ("projector", 4 * (64 * 64 + 128) + 64 * 96, 4 * 64 * 64 + 64 * 96, |p| Head::span_projector(64, 96, 5, &p.root())),
];

#[test]
fn heads_have_their_published_sizes_and_train() {
    for (name, parameters, multiply_adds, build) in HEADS {
        let store = store();
        let head = build(&store).unwrap();
        assert_eq!((store.parameter_count(), head.multiply_adds()), (*parameters, *multiply_adds), "{name}");
        let x = normal(&[8, head.inputs()], 2);
        let run = || head.forward_seeded(&x, Mode::Train, Seed::root(3)).unwrap();
        let y = run();
        assert_eq!(y.dims(), [8, head.outputs()], "{name}");
        let gradients = (y * normal(&[8, head.outputs()], 4)).unwrap().sum_all().unwrap().backward().unwrap();
        for (key, var) in store.trainable() {
            let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name}: {key} got no gradient"));
            let values = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(values.iter().all(|g| g.is_finite()), "{name}: {key}");
        }
        // The same again from the same weights; and after saving and loading.
        let expected = head.forward(&x, Mode::Eval).unwrap();
        let loaded = build(&Params::from_tensors(store.snapshot().unwrap(), DType::F64, &Device::Cpu)).unwrap();
        assert_eq!(distance(&expected, &loaded.forward(&x, Mode::Eval).unwrap()), 0.0, "{name}");
        assert_eq!(distance(&run(), &run()), 0.0, "{name}");
    }
}

#[test]
fn keys_are_those_of_the_reference() {
    let keys = |name: &str| {
        let (.., build) = HEADS.iter().find(|row| row.0 == name).unwrap();
        let store = store();
        build(&store).unwrap();
        let keys = store.trainable().into_iter().map(|(key, _)| key).filter(|key| key.ends_with("weight"));
        keys.map(|key| key.trim_end_matches(".weight").to_string()).collect::<Vec<_>>()
    };
    assert_eq!(keys("simreg 4"), ["0", "1", "3", "4", "5", "7"]);
    assert_eq!(keys("simreg 2"), ["0", "1"]);
    assert_eq!(keys("simreg 2 activated"), ["0", "1", "3"]);
    assert_eq!(keys("mcl"), ["proj_head.0", "proj_head.2"]);
    assert_eq!(keys("sskd"), ["proj_head.0", "proj_head.2"]);
    assert_eq!(keys("embed"), ["linear"]);
    assert_eq!(keys("mlp embed"), ["linear1", "linear2"]);
    assert_eq!(keys("nonlinear probe"), ["0", "2", "4"]);
    assert_eq!(keys("regression"), ["0", "1", "3", "4", "6"]);
    assert_eq!(keys("projector"), ["0", "1", "10", "12", "3", "4", "6", "7", "9"]);
}

#[test]
fn gradients_agree_with_central_differences() {
    for layers in [
        vec![HeadLayer::Linear(4), HeadLayer::BatchNorm, HeadLayer::Relu, HeadLayer::LinearWithoutBias(3)],
        vec![
            HeadLayer::BatchNorm,
            HeadLayer::Linear(4),
            HeadLayer::Relu,
            HeadLayer::Dropout(0.4),
            HeadLayer::Normalise,
        ],
        vec![HeadLayer::Relu, HeadLayer::Linear(2), HeadLayer::Normalise],
    ] {
        let store = store();
        let head = Head::new("head", 5, &layers, &store.root()).unwrap();
        let x = Var::from_tensor(&normal(&[6, 5], 1)).unwrap();
        check_directional_derivative(&store, std::slice::from_ref(&x), || {
            let y = head.forward_seeded(&x, Mode::Train, Seed::root(7)).unwrap();
            (y * normal(&[6, head.outputs()], 2)).unwrap().sum_all().unwrap()
        });
    }
}

#[test]
fn embeddings_have_length_one_and_zero_stays_zero() {
    let store = store();
    let head = Head::new("head", 3, &[HeadLayer::Normalise], &store.root()).unwrap();
    let x = Var::new(&[[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [1e-6, 0.0, 0.0]], &Device::Cpu).unwrap();
    let y = head.forward(&x, Mode::Eval).unwrap();
    let rows = y.to_vec2::<f64>().unwrap();
    assert_eq!(rows[1], [0.0; 3]);
    assert!((rows[0][0] - 0.6).abs() < 1e-15 && (rows[0][2] - 0.8).abs() < 1e-15 && (rows[2][0] - 1.0).abs() < 1e-11);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().all(|g| g.is_finite()));
}

#[test]
fn dropout_keeps_the_mean_and_follows_its_seed() {
    let head = Head::new("head", 1000, &[HeadLayer::Dropout(0.25)], &store().root()).unwrap();
    let x = Tensor::ones((20, 1000), DType::F64, &Device::Cpu).unwrap();
    let run = |seed| head.forward_seeded(&x, Mode::Train, Seed::root(seed)).unwrap();
    let values = run(1).flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(values.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-15));
    let dropped = values.iter().filter(|&&v| v == 0.0).count();
    // 20,000 draws: five standard deviations are 306.
    assert!((4_694..5_306).contains(&dropped), "{dropped}");
    assert_eq!(distance(&run(1), &run(1)), 0.0);
    assert!(distance(&run(1), &run(2)) > 0.0);
    for mode in [Mode::Eval, Mode::BatchStatistics] {
        assert_eq!(distance(&head.forward(&x, mode).unwrap(), &x), 0.0);
    }
    assert!(head.forward(&x, Mode::Train).unwrap_err().to_string().contains("needs a seed"));
}

#[test]
fn impossible_heads_are_errors() {
    let message = |inputs, layer| Head::new("head", inputs, &[layer], &store().root()).err().unwrap().to_string();
    assert!(message(0, HeadLayer::Relu).contains("inputs must be positive"));
    assert!(message(3, HeadLayer::Linear(0)).contains("outputs must be positive"));
    assert!(message(1 << 20, HeadLayer::Linear(1 << 20)).contains("at most 268435456 weights"));
    for share in [-0.1, 1.0, f64::NAN] {
        assert!(message(3, HeadLayer::Dropout(share)).contains("dropout must be from 0 to below 1"));
    }
    assert!(Head::span_projector(4, 4, 0, &store().root()).is_err());
    assert!(Head::span_projector(4, 4, usize::MAX, &store().root()).is_err());
    let head = Head::simreg(SimRegHead::Four, 4, 3, &store().root()).unwrap();
    let message = head.forward(&normal(&[2, 5], 1), Mode::Eval).unwrap_err().to_string();
    assert!(message.contains("simreg head") && message.contains("[B, 4]") && message.contains("[2, 5]"), "{message}");
    // The variance of a single row is undefined.
    assert!(head.forward(&normal(&[1, 4], 1), Mode::Train).is_err());
    assert!(head.forward(&normal(&[1, 4], 1), Mode::Eval).is_ok());
}

fn maps(channels: &[usize]) -> Vec<Var> {
    let map = |(i, &channels): (usize, &usize)| Var::from_tensor(&normal(&[4, channels, 3 + i, 2], i as u64)).unwrap();
    channels.iter().enumerate().map(map).collect()
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}

#[test]
fn the_squeeze_module_sums_its_laterals() {
    let store = store();
    let module = SqueezeModule::new(&[3, 2], 5, 3, 4, &store.root()).unwrap();
    let keys: Vec<String> = store.trainable().into_iter().map(|(key, _)| key).collect();
    assert!(keys.contains(&"to_repr.6.bias".to_string()) && !keys.contains(&"to_repr.0.bias".to_string()));
    let (vars, tensors) = {
        let vars = maps(&[3, 2]);
        let t = tensors(&vars);
        (vars, t)
    };
    assert_eq!(module.forward(&tensors, Mode::Train).unwrap().dims(), [4, 4]);
    check_directional_derivative(&store, &vars, || {
        (module.forward(&tensors, Mode::Train).unwrap() * normal(&[4, 4], 9)).unwrap().sum_all().unwrap()
    });
    // With one layer it is linear in every map.
    let single = SqueezeModule::new(&[3, 2], 5, 1, 4, &self::store().root()).unwrap();
    let zero: Vec<Tensor> = tensors.iter().map(|t| t.zeros_like().unwrap()).collect();
    let at = |a: &Tensor, b: &Tensor| single.forward(&[a.clone(), b.clone()], Mode::Eval).unwrap();
    let both = (at(&tensors[0], &tensors[1]) + at(&zero[0], &zero[1])).unwrap();
    let each = (at(&tensors[0], &zero[1]) + at(&zero[0], &tensors[1])).unwrap();
    assert!(distance(&both, &each) < 1e-12);

    // The published sizes for a generator with maps of 512, 512, 256 and 128 channels.
    let declared = Params::declared(DType::F32, &Device::Cpu);
    SqueezeModule::new(&[512, 512, 256, 128], 2048, 3, 2048, &declared.root()).unwrap();
    let laterals = (512 + 512 + 256 + 128 + 4) * 2048;
    assert_eq!(declared.parameter_count(), laterals + 3 * 2048 * 2048 + 2048 + 4 * 2048);

    assert!(module.forward(&tensors[..1], Mode::Eval).unwrap_err().to_string().contains("expected 2 maps, found 1"));
    for (channels, hidden, layers) in [(&[][..], 5, 3), (&[0], 5, 3), (&[3], 0, 3), (&[3], 5, 0), (&[3], 5, 65)] {
        assert!(SqueezeModule::new(channels, hidden, layers, 4, &self::store().root()).is_err());
    }
}

#[test]
fn the_aggregator_mixes_logits() {
    let store = store();
    let aggregator = Aggregator::new(5, 3, &store.root()).unwrap();
    assert_eq!(store.parameter_count(), 16 * 5 + 6 * 3);
    let embeddings: Vec<Var> = (0..3).map(|s| Var::from_tensor(&normal(&[4, 5], s)).unwrap()).collect();
    let e = tensors(&embeddings);
    let logits: Vec<Tensor> = (0..3).map(|s| normal(&[4, 6], 10 + s)).collect();
    let shares = aggregator.shares(&e).unwrap();
    let total = shares.sum(1).unwrap().to_vec1::<f64>().unwrap();
    assert!(total.iter().all(|total| (total - 1.0).abs() < 1e-12));
    let same = [&logits[0], &logits[0], &logits[0]].map(Clone::clone);
    assert!(distance(&aggregator.forward(&e, &same).unwrap(), &logits[0]) < 1e-12);
    check_directional_derivative(&store, &embeddings, || {
        (aggregator.forward(&e, &logits).unwrap() * normal(&[4, 6], 20)).unwrap().sum_all().unwrap()
    });
    assert!(aggregator.forward(&e[..2], &logits).is_err() && aggregator.forward(&e, &logits[..2]).is_err());
    assert!(
        Aggregator::new(0, 3, &self::store().root()).is_err()
            && Aggregator::new(usize::MAX, 3, &self::store().root()).is_err()
    );
}

#[test]
fn pair_weights_follow_the_published_order() {
    let store = store();
    // Three networks of two, one and two stages, each of another width.
    let widths = vec![vec![3, 4], vec![5], vec![2, 3]];
    let weights = PairWeights::new(&widths, 6, &store.root()).unwrap();
    assert_eq!(store.parameter_count(), (3 + 4 + 5 + 2 + 3 + 5) * 6);
    let e: Vec<Vec<Tensor>> = widths
        .iter()
        .enumerate()
        .map(|(i, widths)| {
            widths.iter().enumerate().map(|(k, &width)| normal(&[4, width], (10 * i + k) as u64)).collect()
        })
        .collect();
    let found = weights.forward(&e).unwrap();
    let state = store.snapshot().unwrap();
    let project = |i: usize, k: usize| {
        let key = |part: &str| format!("proj_{i}_{k}.{part}");
        e[i][k].matmul(&state[&key("weight")].t().unwrap()).unwrap().broadcast_add(&state[&key("bias")]).unwrap()
    };
    let mut expected = Vec::new();
    for (i, j) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        for k in 0..widths[i].len() {
            for l in 0..widths[j].len() {
                let (a, b) = (project(i, k).to_vec2::<f64>().unwrap(), project(j, l).to_vec2::<f64>().unwrap());
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let cosine = |(a, b): (&Vec<f64>, &Vec<f64>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                expected.push(a.iter().zip(&b).map(cosine).map(|c| 1.0 / (1.0 + (-c).exp())).collect::<Vec<f64>>());
            }
        }
    }
    let found = found.to_vec2::<f64>().unwrap();
    assert_eq!(found.len(), 16);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-12 && (0.26..0.74).contains(found));
    }
    check_directional_derivative(&store, &[], || {
        (weights.forward(&e).unwrap() * normal(&[16, 4], 50)).unwrap().sum_all().unwrap()
    });
    assert!(weights.forward(&e[..2]).is_err());
    let single = PairWeights::new(&widths[..1], 6, &self::store().root()).unwrap();
    assert!(single.forward(&e[..1]).unwrap_err().to_string().contains("at least two networks"));
}

#[test]
fn the_self_teacher_is_a_convolution_of_all_maps() {
    let store = store();
    let shape = MapShape { channels: 3, height: 4, width: 2 };
    let teacher = SelfTeacher::new(4, shape, 5, &store.root()).unwrap();
    assert_eq!((store.parameter_count(), teacher.multiply_adds()), (36 + 20, 36 * 8 + 15));
    let vars: Vec<Var> = (0..4).map(|k| Var::from_tensor(&normal(&[2, 3, 4, 2], k)).unwrap()).collect();
    let maps = tensors(&vars);
    let state = store.snapshot().unwrap();
    let stacked = Tensor::cat(&maps, 1).unwrap();
    let spec = retort_kernels::Conv2dSpec::new(1, 0);
    let map = retort_kernels::conv2d(&stacked, &state["conv.weight"], None, &spec).unwrap();
    let pooled = retort_kernels::global_avg_pool2d(&map).unwrap();
    let expected = pooled.matmul(&state["fc.weight"].t().unwrap()).unwrap().broadcast_add(&state["fc.bias"]).unwrap();
    assert!(distance(&teacher.forward(&maps).unwrap(), &expected) < 1e-12);
    check_directional_derivative(&store, &vars, || {
        (teacher.forward(&maps).unwrap() * normal(&[2, 5], 9)).unwrap().sum_all().unwrap()
    });
    assert!(teacher.forward(&maps[..3]).is_err() && SelfTeacher::new(0, shape, 5, &self::store().root()).is_err());
}

#[test]
fn the_discriminator_tells_maps_apart() {
    let store = store();
    let discriminator = MapDiscriminator::new(3, 7, &store.root()).unwrap();
    assert_eq!(store.parameter_count(), 4 * 7 + 8 * 2);
    let vars = maps(&[3]);
    assert_eq!(discriminator.forward(&vars[0]).unwrap().dims(), [4, 2]);
    check_directional_derivative(&store, &vars, || {
        (discriminator.forward(&vars[0]).unwrap() * normal(&[4, 2], 9)).unwrap().sum_all().unwrap()
    });
    assert!(discriminator.forward(&maps(&[4])[0]).is_err());
    assert!(MapDiscriminator::new(3, 0, &self::store().root()).is_err());
}

#[test]
fn an_adapter_changes_the_channels_alone() {
    let params = store();
    let adapter = MapAdapter::new(3, 5, &params.root()).unwrap();
    assert_eq!(params.parameter_count(), 15 + 2 * 5);
    let map = normal(&[4, 3, 6, 2], 2);
    let out = adapter.forward(&map, Mode::Train).unwrap();
    assert_eq!(out.dims(), [4, 5, 6, 2]);
    let gradients = (&out * normal(&[4, 5, 6, 2], 3)).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(params.trainable().iter().all(|(_, var)| gradients.get(var).is_some()));
    assert!(adapter.forward(&normal(&[4, 2, 6, 2], 2), Mode::Train).is_err());
    assert!(MapAdapter::new(3, 0, &params.root().child("other")).is_err());
}
