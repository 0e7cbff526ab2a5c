//! Peers behind a shared trunk or side by side, and what is between them.

use crate::check::{check_directional_derivative, distance, normal};
use crate::{flat, images, params};
use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::{Conv2dSpec, conv2d};
use retort_models::{
    Branch, Family, FusionModule, Gate, HcgNetConfig, ModelConfig, MultiScaleAttention, MultiScaleConfig,
    PeerAttention, Peers, PeersConfig, PreActivationConfig, Pyramid, PyramidConfig, ResNetConfig, ShuffleNetV2Config,
    info,
};
use retort_nn::{MapShape, Mode, Network, Params, Seed, Taps};

const CIFAR: ModelConfig = ModelConfig::CIFAR100;
const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [12, 12], classes: 3 };

fn declared() -> Params {
    Params::declared(DType::F32, &Device::Cpu)
}

fn wide() -> Params {
    Params::new(Seed::root(1), DType::F64, &Device::Cpu)
}

/// The networks of mutual contrastive learning.
fn mcl_families() -> Vec<(&'static str, Family)> {
    let resnet = |depth, branch| {
        let config = ResNetConfig::cifar(depth, branch, [16, 16, 32, 64]).unwrap();
        Family::ResNet(ResNetConfig { classifier: "classifier", ..config })
    };
    let wrn = |depth, widen| Family::PreActivation(PreActivationConfig::wide(depth, widen).unwrap());
    let shuffle = |size| Family::ShuffleNetV2(ShuffleNetV2Config::of_size(size, 3).unwrap());
    vec![
        ("resnet32", resnet(32, Branch::Basic)),
        ("resnet56", resnet(56, Branch::Basic)),
        ("resnet110", resnet(110, Branch::Bottleneck)),
        ("wrn_16_2", wrn(16, 2)),
        ("wrn_40_2", wrn(40, 2)),
        ("wrn_28_4", wrn(28, 4)),
        ("ShuffleNetV2_05x", shuffle(0.5)),
        ("ShuffleNetV2_1x", shuffle(1.0)),
        ("hcgnet_A1", Family::HcgNet(HcgNetConfig::A1)),
        ("hcgnet_A2", Family::HcgNet(HcgNetConfig::A2)),
    ]
}

#[test]
fn mcl_counts_equal_the_reference() {
    let reference = [
        ("resnet32", 945_512, 138_260_992, 1_819_552, 204_416_000, 64),
        ("resnet56", 1_723_240, 251_507_200, 3_318_944, 374_285_312, 64),
        ("resnet110", 2_341_736, 334_907_392, 4_517_344, 507_269_120, 256),
        ("wrn_16_2", 1_406_568, 202_236_928, 2_712_864, 302_483_456, 128),
        ("wrn_40_2", 4_510_312, 655_221_760, 8_697_632, 981_960_704, 128),
        ("wrn_28_4", 11_744_360, 1_691_240_448, 22_679_776, 2_556_973_056, 256),
        ("ShuffleNetV2_05x", 888_584, 21_988_352, 1_754_272, 35_848_192, 1024),
        ("ShuffleNetV2_1x", 2_712_208, 90_188_544, 5_331_752, 153_186_816, 1024),
        ("hcgnet_A1", 2_205_302, 308_538_072, 4_057_426, 427_670_712, 414),
        ("hcgnet_A2", 6_267_358, 977_336_432, 11_169_209, 1_215_354_112, 716),
    ];
    for ((name, family), (expected, params_2, adds_2, params_4, adds_4, embedding)) in
        mcl_families().iter().zip(reference)
    {
        assert_eq!(*name, expected);
        for (peers, parameters, multiply_adds) in [(2, params_2, adds_2), (4, params_4, adds_4)] {
            let store = declared();
            let peers = Peers::new(name, family, &CIFAR, &PeersConfig::mcl(family, peers), &store.root()).unwrap();
            assert_eq!((store.parameter_count(), peers.multiply_adds()), (parameters, multiply_adds), "{name}");
            assert!(peers.specs().iter().all(|spec| spec.embedding == embedding), "{name}");
        }
    }
}

#[test]
fn keys_are_those_of_the_reference() {
    let keys = |name: &str, peers: usize| {
        let (_, family) = mcl_families().into_iter().find(|(other, _)| *other == name).unwrap();
        let store = declared();
        Peers::new(name, &family, &CIFAR, &PeersConfig::mcl(&family, peers), &store.root()).unwrap();
        store.snapshot().unwrap().into_keys().collect::<Vec<_>>()
    };
    for (name, peers, some) in [
        (
            "resnet32",
            4,
            &[
                "conv1.weight",
                "layer1.4.bn2.bias",
                "layer2_0.0.conv1.weight",
                "layer3_3.1.bn1.weight",
                "classifier_2.bias",
            ][..],
        ),
        (
            "wrn_16_2",
            4,
            &[
                "conv1.weight",
                "block1.layer.0.bn1.bias",
                "block2_1.layer.0.conv1.weight",
                "bn_3.running_var",
                "classifier_0.weight",
            ],
        ),
        (
            "ShuffleNetV2_05x",
            4,
            &["layer1.0.conv1.weight", "layer3_1.0.conv5.weight", "conv2_0.weight", "bn2_3.weight", "linear_2.weight"],
        ),
        (
            "resnet32",
            2,
            &[
                "module_list.0.conv1.weight",
                "module_list.1.layer3.0.downsample.1.bias",
                "module_list.1.classifier.weight",
            ],
        ),
    ] {
        let keys = keys(name, peers);
        for key in some {
            assert!(keys.iter().any(|other| other == key), "{name}: {key} is missing");
        }
        assert!(!keys.iter().any(|key| key.starts_with("layer2.") || key.starts_with("fc")), "{name}");
    }
}

/// The registry's networks have RepDistiller's keys, their MCL peers those of MCL's code.
#[test]
fn peers_of_registry_names_have_the_keys_of_mutual_contrastive_learning() {
    for (name, two, four) in [
        ("resnet32", "module_list.1.classifier.weight", "classifier_3.weight"),
        ("mcl_resnet110", "module_list.1.classifier.weight", "classifier_3.weight"),
        ("wrn_16_2", "module_list.1.classifier.weight", "classifier_3.weight"),
        ("ShuffleNetV2_05x_cifar", "module_list.1.linear.weight", "linear_3.weight"),
        ("hcgnet_A1", "module_list.1.classifier.weight", "classifier_3.weight"),
    ] {
        let family = &info(name).unwrap().family;
        for (peers, key) in [(2, two), (4, four)] {
            let store = declared();
            Peers::new(name, family, &CIFAR, &PeersConfig::mcl(family, peers), &store.root()).unwrap();
            let keys = store.shapes();
            assert!(keys.contains_key(key), "{name}: {key} is missing");
            assert!(!keys.keys().any(|key| key.contains(".fc.")), "{name}");
        }
    }
    let store = declared();
    let family = &info("resnet32").unwrap().family;
    Peers::new("resnet32", family, &CIFAR, &PeersConfig::complete(2), &store.root()).unwrap();
    assert!(store.shapes().contains_key("module_list.0.fc.weight"), "others keep the network's own");
}

#[test]
fn classifiers_behind_a_trunk_start_as_in_the_reference() {
    let family = Family::PreActivation(PreActivationConfig::wide(10, 1).unwrap());
    let bias = |config: &PeersConfig, key: &str| {
        let store = params();
        Peers::new("wrn", &family, &CIFAR, config, &store.root()).unwrap();
        flat(&store.snapshot().unwrap()[key])
    };
    let drawn = bias(&PeersConfig::mcl(&family, 3), "classifier_1.bias");
    let largest = drawn.iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(largest <= 0.125 && largest > 0.1, "{largest}");
    assert!(bias(&PeersConfig::mcl(&family, 2), "module_list.1.classifier.bias").iter().all(|value| *value == 0.0));
}

/// Small networks.
fn narrow() -> Vec<(&'static str, Family)> {
    vec![
        ("resnet", Family::ResNet(ResNetConfig::cifar(8, Branch::Basic, [4, 4, 6, 8]).unwrap())),
        ("wide", Family::PreActivation(PreActivationConfig::wide(10, 1).unwrap())),
        (
            "shuffle",
            Family::ShuffleNetV2(ShuffleNetV2Config {
                out_planes: [8, 12, 16],
                last: 20,
                blocks: [1; 3],
                stem_kernel: 3,
            }),
        ),
        ("hcgnet", Family::HcgNet(HcgNetConfig { growth: [4, 4, 4], layers: 1 })),
        ("vgg", Family::Vgg(retort_models::VggConfig::uniform([3, 4, 4, 5, 6], [1; 5]))),
    ]
}

#[test]
fn a_peer_is_a_network_of_its_own() {
    for (name, family) in narrow() {
        for config in [PeersConfig::mcl(&family, 3), PeersConfig::one(&family, 2), PeersConfig::complete(2)] {
            let store = params();
            let peers = Peers::new(name, &family, &SMALL, &config, &store.root()).unwrap();
            let x = images(&SMALL, 2);
            let outputs = peers.forward(&x, Mode::Eval, Taps::ALL).unwrap();
            assert_eq!((outputs.peers.len(), outputs.trunk.is_some()), (config.peers, config.shared.is_some()));
            for (i, outputs) in outputs.peers.iter().enumerate() {
                let peer = peers.peer(i).unwrap();
                let alone = peer.forward(&x, Mode::Eval, Taps::ALL).unwrap();
                assert_eq!(flat(&outputs.logits), flat(&alone.logits), "{name}");
                let spec = peer.spec();
                let found: Vec<_> = outputs.maps.iter().map(|map| map.dims()[1..].to_vec()).collect();
                let expected: Vec<_> = spec.maps.iter().map(|map| vec![map.channels, map.height, map.width]).collect();
                assert_eq!(found, expected, "{name}");
                assert_eq!(alone.maps.len(), outputs.maps.len());
                assert_eq!(outputs.pre_activations.len(), outputs.maps.len());
                assert_eq!(peer.stage_norms().unwrap().map(|norms| norms.len()), norms(&family), "{name}");
                assert_eq!(peer.classifier().unwrap().weight().dims(), [3, spec.embedding]);
            }
            // No two peers are alike.
            assert!(flat(&outputs.peers[0].logits) != flat(&outputs.peers[1].logits), "{name}");
            assert!(peers.peer(config.peers).is_none());
        }
    }
}

fn norms(family: &Family) -> Option<usize> {
    family.build("network", &SMALL, &params().root()).unwrap().stage_norms().unwrap().map(|norms| norms.len())
}

#[test]
fn peers_with_the_weights_of_a_network_are_that_network() {
    for (name, family) in narrow() {
        let single = params();
        let network = family.build(name, &SMALL, &single.root()).unwrap();
        let x = images(&SMALL, 2);
        let expected = network.forward(&x, Mode::Eval, Taps::ALL).unwrap();
        for config in [PeersConfig::mcl(&family, 3), PeersConfig::cl_ilr(&family, 2), PeersConfig::complete(2)] {
            let store = params();
            let peers = Peers::new(name, &family, &SMALL, &config, &store.root()).unwrap();
            assert_eq!(peers.specs()[1].multiply_adds, network.spec().multiply_adds, "{name}");
            let state = store.snapshot().unwrap();
            // The keys of a peer without its number are those of the network, but for the names of the classifier.
            let weights = single.snapshot().unwrap();
            let mut unmatched = 0;
            let renamed = state.into_iter().map(|(key, tensor)| {
                let plain = (0..3).fold(key.clone(), |key, i| {
                    key.replace(&format!("module_list.{i}."), "").replace(&format!("_{i}."), ".")
                });
                let plain = plain.replace("bn.", "bn1.");
                let plain = if weights.contains_key(&plain) { plain } else { plain.replace("classifier.", "fc.") };
                unmatched += usize::from(!weights.contains_key(&plain));
                (key, weights.get(&plain).cloned().unwrap_or(tensor))
            });
            store.load(&renamed.collect()).unwrap();
            assert_eq!(unmatched, 0, "{name}");
            for outputs in peers.forward(&x, Mode::Eval, Taps::ALL).unwrap().peers {
                assert_eq!(flat(&outputs.logits), flat(&expected.logits), "{name}");
                for (a, b) in outputs.pre_activations.iter().zip(&expected.pre_activations) {
                    assert_eq!(flat(a), flat(b), "{name}");
                }
            }
        }
    }
}

fn objective(peers: &Peers, x: &Tensor) -> Tensor {
    let outputs = peers.forward(x, Mode::Train, Taps::default()).unwrap();
    let part = |(i, outputs): (usize, &retort_nn::Outputs)| {
        let coefficients = normal(outputs.logits.dims(), 40 + i as u64).to_dtype(x.dtype()).unwrap();
        (&outputs.logits * coefficients).unwrap().sum_all().unwrap()
    };
    let parts: Vec<Tensor> = outputs.peers.iter().enumerate().map(part).collect();
    Tensor::stack(&parts, 0).unwrap().sum_all().unwrap()
}

#[test]
fn gradients_reach_every_parameter_and_are_rescaled_in_the_trunk_alone() {
    for (name, family) in narrow() {
        let plain = PeersConfig { shared: Some(1), ..PeersConfig::complete(3) };
        let rescaled = PeersConfig { rescales: true, ..plain };
        let x = normal(&[4, 2, 12, 12], 3);
        let run = |config: &PeersConfig| {
            let store = wide();
            let peers = Peers::new(name, &family, &SMALL, config, &store.root()).unwrap();
            let loss = objective(&peers, &x);
            let gradients = loss.backward().unwrap();
            let gradient = |(key, var): (String, Var)| {
                let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name}: {key} got no gradient")).clone();
                (key, gradient)
            };
            (loss.to_scalar::<f64>().unwrap(), store.trainable().into_iter().map(gradient).collect::<Vec<_>>())
        };
        let ((value, plain), (same, rescaled)) = (run(&plain), run(&rescaled));
        assert_eq!(value, same);
        for ((key, a), (_, b)) in plain.iter().zip(&rescaled) {
            let own = (0..3).any(|i| key.contains(&format!("_{i}.")));
            let expected = if own { a.clone() } else { (a / 3.0).unwrap() };
            let size = distance(a, &a.zeros_like().unwrap());
            assert!(distance(&expected, b) <= 1e-12 * (1.0 + size), "{name}: {key}");
        }
    }
}

#[test]
fn peers_train_in_the_same_way_twice() {
    let (name, family) = narrow().remove(1);
    let run = || {
        let store = params();
        let peers = Peers::new(name, &family, &SMALL, &PeersConfig::mcl(&family, 3), &store.root()).unwrap();
        let outputs = peers.forward(&images(&SMALL, 3), Mode::Train, Taps::default()).unwrap();
        (outputs.peers.iter().flat_map(|peer| flat(&peer.logits)).collect::<Vec<_>>(), store)
    };
    let ((a, one), (b, two)) = (run(), run());
    assert_eq!(a, b);
    let (one, two) = (one.snapshot().unwrap(), two.snapshot().unwrap());
    assert!(one.iter().all(|(key, tensor)| flat(tensor) == flat(&two[key])));
    // One pass of the trunk, whatever the number of peers.
    let single = params();
    let network = family.build(name, &SMALL, &single.root()).unwrap();
    network.forward(&images(&SMALL, 3), Mode::Train, Taps::default()).unwrap();
    let single = single.snapshot().unwrap();
    let key = "block1.layer.0.bn1.running_mean";
    assert_eq!(flat(&single[key]), flat(&one[key]));
}

#[test]
fn one_shares_all_but_the_last_stage() {
    let shared = |name: &str| PeersConfig::one(&info(name).unwrap().family, 3).shared;
    assert_eq!([shared("resnet32"), shared("wrn_16_2"), shared("ResNet18")], [Some(2), Some(2), Some(3)]);
    // The transition goes with the block before it; MobileNetV2's rows go with the map that they lead to.
    assert_eq!([shared("hcgnet_A1"), shared("MobileNetV2"), shared("vgg8")], [Some(4), Some(5), Some(3)]);
    let hcgnet = &info("hcgnet_A1").unwrap().family;
    assert_eq!(PeersConfig::mcl(hcgnet, 4).shared, Some(2));
    assert_eq!(PeersConfig::mcl(hcgnet, 2).shared, None);
}

#[test]
fn impossible_peers_are_errors() {
    let resnet = &info("resnet8").unwrap().family;
    let message = |family: &Family, peers, shared| {
        let config = PeersConfig { shared, ..PeersConfig::complete(peers) };
        Peers::new("network", family, &SMALL, &config, &declared().root()).err().unwrap().to_string()
    };
    for (peers, shared, words) in [
        (0, None, "peers must be from 1 to 64, found 0"),
        (65, Some(1), "found 65"),
        (2, Some(4), "shared must be at most 3, found 4"),
    ] {
        assert!(message(resnet, peers, shared).contains(words));
    }
    let mlp = &info("mlp-512-256-128").unwrap().family;
    assert!(message(mlp, 2, Some(0)).contains("no groups"));
    assert!(Peers::new("mlp", mlp, &SMALL, &PeersConfig::complete(2), &declared().root()).is_ok());
    let peers = Peers::new("network", resnet, &SMALL, &PeersConfig::mcl(resnet, 3), &params().root()).unwrap();
    let wrong = Tensor::zeros((1, 3, 12, 12), DType::F32, &Device::Cpu).unwrap();
    assert!(peers.forward(&wrong, Mode::Eval, Taps::default()).unwrap_err().to_string().contains("[1, 3, 12, 12]"));
}

fn scalar(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

#[test]
fn the_gate_weighs_peers() {
    let store = wide();
    let gate = Gate::new(5, 3, &store.root()).unwrap();
    let keys: Vec<String> = store.snapshot().unwrap().into_keys().collect();
    assert_eq!(keys, ["bn.bias", "bn.running_mean", "bn.running_var", "bn.weight", "gate.bias", "gate.weight"]);
    let trunk = Var::from_tensor(&normal(&[6, 5], 1)).unwrap();
    let shares = gate.forward(&trunk, Mode::Train).unwrap();
    // relu(bn(x W^T + b)) by hand, with the weight 1 and bias 0 of the start.
    let state = store.snapshot().unwrap();
    let x = trunk.matmul(&state["gate.weight"].t().unwrap()).unwrap().broadcast_add(&state["gate.bias"]).unwrap();
    let centred = x.broadcast_sub(&x.mean_keepdim(0).unwrap()).unwrap();
    let std = (centred.sqr().unwrap().mean_keepdim(0).unwrap() + 1e-5).unwrap().sqrt().unwrap();
    let x = centred.broadcast_div(&std).unwrap().maximum(0.0).unwrap().exp().unwrap();
    let expected = x.broadcast_div(&x.sum_keepdim(1).unwrap()).unwrap();
    assert!(distance(&shares, &expected) < 1e-12);

    let logits: Vec<Tensor> = (0..3).map(|k| normal(&[6, 4], 10 + k)).collect();
    let mixed = Gate::mix(&shares, &logits).unwrap();
    let entry = |t: &Tensor, i: usize, j: usize| t.to_vec2::<f64>().unwrap()[i][j];
    let by_hand: f64 = (0..3).map(|k| entry(&shares, 2, k) * entry(&logits[k], 2, 1)).sum();
    assert!((entry(&mixed, 2, 1) - by_hand).abs() < 1e-12);

    check_directional_derivative(&store, std::slice::from_ref(&trunk), || {
        let mixed = Gate::mix(&gate.forward(&trunk, Mode::Train).unwrap(), &logits).unwrap();
        (mixed * normal(&[6, 4], 20)).unwrap().sum_all().unwrap()
    });
    assert!(gate.forward(&normal(&[1, 5], 1), Mode::Train).is_err());
    assert!(gate.forward(&normal(&[2, 4], 1), Mode::Eval).unwrap_err().to_string().contains("[2, 4]"));
    assert!(Gate::mix(&shares, &logits[..2]).is_err() && Gate::new(5, 0, &declared().root()).is_err());
}

#[test]
fn attention_is_a_softmax_over_the_peers() {
    let store = wide();
    let attention = PeerAttention::new(16, 2, &store.root()).unwrap();
    assert_eq!(store.parameter_count(), 2 * 32);
    let embeddings: Vec<Tensor> = (0..3).map(|k| normal(&[4, 16], k)).collect();
    let shares = attention.forward(&embeddings).unwrap();
    assert_eq!(shares.dims(), [4, 3, 3]);
    let state = store.snapshot().unwrap();
    let project =
        |key: &str, k: usize| embeddings[k].narrow(0, 1, 1).unwrap().matmul(&state[key].t().unwrap()).unwrap();
    let score = |i: usize, j: usize| {
        scalar(&(project("query.weight", i) * project("key.weight", j)).unwrap().sum_all().unwrap()).exp()
    };
    let expected = score(2, 0) / (0..3).map(|j| score(2, j)).sum::<f64>();
    assert!((shares.to_vec3::<f64>().unwrap()[1][2][0] - expected).abs() < 1e-12);
    check_directional_derivative(&store, &[], || {
        (attention.forward(&embeddings).unwrap() * normal(&[4, 3, 3], 9)).unwrap().sum_all().unwrap()
    });
    assert!(attention.forward(&[]).is_err() && PeerAttention::new(8, 0, &declared().root()).is_err());
}

const MAP: MapShape = MapShape { channels: 8, height: 5, width: 4 };

fn map(shape: MapShape, seed: u64) -> Var {
    Var::from_tensor(&normal(&[3, shape.channels, shape.height, shape.width], seed)).unwrap()
}

#[test]
fn fusion_takes_maps_of_several_shapes() {
    let other = MapShape { channels: 6, height: 10, width: 8 };
    let store = wide();
    let fusion = FusionModule::new(&[MAP, MAP, other], 7, &store.root()).unwrap();
    let keys: Vec<String> = store.trainable().into_iter().map(|(key, _)| key).collect();
    let expected = [
        "bn1.bias",
        "bn1.weight",
        "bn1_1.bias",
        "bn1_1.weight",
        "conv1.weight",
        "conv1_1.weight",
        "fc2.bias",
        "fc2.weight",
        "project2.weight",
    ];
    assert_eq!(keys, expected);
    // Projection, depthwise convolution, 1x1 convolution, classifier.
    assert_eq!(fusion.multiply_adds(), 6 * 8 * 80 + 24 * 9 * 20 + 24 * 8 * 20 + 8 * 7);
    let maps = [map(MAP, 1), map(MAP, 2), map(other, 3)];
    let tensors: Vec<Tensor> = maps.iter().map(|map| map.as_tensor().clone()).collect();
    let outputs = fusion.forward(&tensors, Mode::Train, Taps::ALL).unwrap();
    assert_eq!((outputs.logits.dims(), outputs.maps[0].dims()), (&[3, 7][..], &[3, 8, 5, 4][..]));
    check_directional_derivative(&store, &maps, || {
        let logits = fusion.forward(&tensors, Mode::Train, Taps::default()).unwrap().logits;
        (logits * normal(&[3, 7], 9)).unwrap().sum_all().unwrap()
    });
    let frozen = Params::frozen(store.snapshot().unwrap(), DType::F64, &Device::Cpu);
    let folded = FusionModule::new(&[MAP, MAP, other], 7, &frozen.root()).unwrap();
    let run = |fusion: &FusionModule| fusion.forward(&tensors, Mode::Eval, Taps::default()).unwrap().logits;
    assert!(distance(&run(&fusion), &run(&folded)) < 1e-12);
    assert!(fusion.forward(&tensors[..2], Mode::Eval, Taps::default()).is_err());
    assert!(fusion.forward(&[0, 1, 0].map(|i| tensors[i].clone()), Mode::Eval, Taps::default()).is_err());
    assert!(FusionModule::new(&[], 7, &declared().root()).is_err());
    assert!(FusionModule::new(&[MapShape { height: 0, ..MAP }], 7, &declared().root()).is_err());
}

#[test]
fn each_part_of_the_attention_can_be_left_out() {
    let x = map(MAP, 1);
    for (scales, attention, parameters) in [
        // 2 to 2 channels with windows of 3, 5, 7 and 9, the groups of 4, 8 and 16 not dividing them.
        (true, false, 4 * (9 + 25 + 49 + 81)),
        (false, true, 8 + 1 + 8 + 8 + 2 * 49),
        (true, true, 4 * (9 + 25 + 49 + 81) + 8 + 1 + 8 + 8 + 2 * 49),
        (false, false, 0),
    ] {
        let store = wide();
        let module = MultiScaleAttention::new(MAP, MultiScaleConfig { scales, attention }, &store.root()).unwrap();
        assert_eq!(store.parameter_count(), parameters);
        let y = module.forward(&x, Mode::Eval).unwrap();
        assert_eq!(y.dims(), x.dims());
        match scales || attention {
            false => assert_eq!(distance(&y, &x), 0.0),
            true => check_directional_derivative(&store, std::slice::from_ref(&x), || {
                (module.forward(&x, Mode::Train).unwrap() * normal(x.dims(), 9)).unwrap().sum_all().unwrap()
            }),
        }
        if !scales && attention {
            // Both attentions are shares.
            let ratio = (y / x.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(ratio.iter().all(|ratio| (0.0..1.0).contains(ratio)));
        }
    }
    // EPSANet's groups, where they fit.
    let store = declared();
    let large = MapShape { channels: 128, ..MAP };
    MultiScaleAttention::new(large, MultiScaleConfig::default(), &store.root()).unwrap();
    let state = store.snapshot().unwrap();
    let shapes: Vec<_> = (0..4).map(|s| state[&format!("scale{s}.weight")].dims().to_vec()).collect();
    assert_eq!(shapes, [[32, 32, 3, 3], [32, 8, 5, 5], [32, 4, 7, 7], [32, 2, 9, 9]]);
    let odd = MapShape { channels: 6, ..MAP };
    let message =
        MultiScaleAttention::new(odd, MultiScaleConfig::default(), &declared().root()).err().unwrap().to_string();
    assert!(message.contains("multiple of 4, found 6"), "{message}");
    assert!(
        MultiScaleAttention::new(odd, MultiScaleConfig { scales: false, attention: true }, &declared().root()).is_ok()
    );
}

/// Layers by name, in evaluation.
struct Layers(retort_nn::Tensors);

impl Layers {
    fn of(store: &Params) -> Self {
        Self(crate::check::shaken(store, DType::F64))
    }

    fn get(&self, key: &str) -> &Tensor {
        &self.0[key]
    }

    fn conv(&self, key: &str, x: &Tensor, padding: usize, groups: usize) -> Tensor {
        let spec = Conv2dSpec::new(1, padding).with_groups(groups);
        conv2d(x, self.get(&format!("{key}.weight")), None, &spec).unwrap()
    }

    fn norm(&self, key: &str, x: &Tensor) -> Tensor {
        let vector = |part: &str| {
            let vector = self.get(&format!("{key}.{part}"));
            vector.reshape((1, vector.elem_count(), 1, 1)).unwrap()
        };
        let std = (vector("running_var") + 1e-5).unwrap().sqrt().unwrap();
        let x = x.broadcast_sub(&vector("running_mean")).unwrap().broadcast_div(&std).unwrap();
        x.broadcast_mul(&vector("weight")).unwrap().broadcast_add(&vector("bias")).unwrap()
    }

    fn linear(&self, key: &str, x: &Tensor) -> Tensor {
        let y = x.matmul(&self.get(&format!("{key}.weight")).t().unwrap()).unwrap();
        y.broadcast_add(self.get(&format!("{key}.bias"))).unwrap()
    }

    /// `scale relu(weights)[i] / (sum relu(weights) + 1e-6)`, for all of the summands.
    fn mean(&self, key: &str, summands: &[&Tensor]) -> Tensor {
        let weights: Vec<f64> = self.get(key).to_vec1::<f64>().unwrap().iter().map(|w| w.max(0.0)).collect();
        let total = weights.iter().sum::<f64>() + 1e-6;
        let part = |(x, w): (&&Tensor, &f64)| (*x * (w / total)).unwrap();
        assert_eq!(summands.len(), weights.len());
        summands.iter().zip(&weights).map(part).reduce(|a, b| (a + b).unwrap()).unwrap()
    }
}

fn positive(x: &Tensor) -> Tensor {
    x.maximum(0.0).unwrap()
}

#[test]
fn fusion_computes_its_formula() {
    let start = wide();
    FusionModule::new(&[MAP, MAP], 7, &start.root()).unwrap();
    let layers = Layers::of(&start);
    let store = Params::from_tensors(layers.0.clone(), DType::F64, &Device::Cpu);
    let fusion = FusionModule::new(&[MAP, MAP], 7, &store.root()).unwrap();
    let maps = [map(MAP, 1), map(MAP, 2)].map(|map| map.as_tensor().clone());
    let x = positive(&layers.norm("bn1", &layers.conv("conv1", &Tensor::cat(&maps, 1).unwrap(), 1, 16)));
    let x = positive(&layers.norm("bn1_1", &layers.conv("conv1_1", &x, 0, 1)));
    let expected = layers.linear("fc2", &x.mean((2, 3)).unwrap());
    let found = fusion.forward(&maps, Mode::Eval, Taps::ALL).unwrap();
    assert!(distance(&found.logits, &expected) < 1e-12 && distance(&found.maps[0], &x) < 1e-12);
}

#[test]
fn attention_computes_its_formula() {
    let store = wide();
    let module = MultiScaleAttention::new(MAP, MultiScaleConfig::default(), &store.root()).unwrap();
    let layers = Layers(store.snapshot().unwrap());
    let x = map(MAP, 1);
    let part = |s: usize| layers.conv(&format!("scale{s}"), &x.narrow(1, 2 * s, 2).unwrap(), 1 + s, 1);
    let m = Tensor::cat(&[part(0), part(1), part(2), part(3)], 1).unwrap();
    let sigmoid = |x: Tensor| ((x.neg().unwrap().exp().unwrap() + 1.0).unwrap()).recip().unwrap();
    let hidden = positive(&layers.linear("channel.0", &m.mean((2, 3)).unwrap()));
    let a = sigmoid(layers.linear("channel.2", &hidden)).reshape((3, 8, 1, 1)).unwrap();
    let m = m.broadcast_mul(&a).unwrap();
    let both = Tensor::cat(&[m.mean_keepdim(1).unwrap(), m.max_keepdim(1).unwrap()], 1).unwrap();
    let expected = m.broadcast_mul(&sigmoid(layers.conv("spatial", &both, 3, 1))).unwrap();
    assert!(distance(&module.forward(&x, Mode::Eval).unwrap(), &expected) < 1e-12);
}

#[test]
fn the_pyramid_computes_its_formula() {
    let shape = |channels, height, width| MapShape { channels, height, width };
    let shapes = [shape(2, 7, 8), shape(3, 4, 4), shape(4, 2, 2)];
    let config = PyramidConfig { width: 3, depth: 1 };
    let start = wide();
    Pyramid::new(&shapes, 5, config, &start.root()).unwrap();
    let layers = Layers::of(&start);
    let store = Params::from_tensors(layers.0.clone(), DType::F64, &Device::Cpu);
    let pyramid = Pyramid::new(&shapes, 5, config, &store.root()).unwrap();
    let maps: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, shape)| map(*shape, i as u64).as_tensor().clone()).collect();

    let point = |key: &str, x: &Tensor| layers.norm(&format!("{key}.1"), &layers.conv(&format!("{key}.0"), x, 0, 1));
    let block = |key: &str, x: &Tensor| {
        let x = layers.conv(&format!("{key}.0.0"), &positive(x), 1, x.dims()[1]);
        layers.norm(&format!("{key}.0.2"), &layers.conv(&format!("{key}.0.1"), &x, 0, 1))
    };
    let lateral = |s: usize| point(&format!("lateral.{s}"), &positive(&maps[s]));
    let second = |s: usize| point(&format!("lateral2.{s}"), &positive(&maps[s]));
    let up = |s: usize, coarse: &Tensor| {
        let size = [shapes[s].height, shapes[s].width];
        let resized = retort_kernels::resize_nearest2d(&positive(coarse), size).unwrap();
        let neighbour = point(&format!("up_sample.{s}"), &resized);
        block(&format!("up.{s}"), &layers.mean(&format!("up_weight.{s}"), &[&lateral(s), &neighbour]))
    };
    // Windows of three rows around the odd ones (7 rows: -1, 1, 3, 5) or from the even ones on (4 rows: 0, 2).
    let pooled = |x: &Tensor| {
        let (batch, channels, height, width) = x.dims4().unwrap();
        let values = positive(x).flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let window = |i: usize, size: usize| {
            let first = (2 * i) as isize - (size % 2) as isize;
            (first..first + 3).filter(move |&at| at >= 0 && at < size as isize).map(|at| at as usize)
        };
        let mut out = Vec::new();
        for plane in values.chunks(height * width) {
            for i in 0..height.div_ceil(2) {
                for j in 0..width.div_ceil(2) {
                    let cells = window(i, height).flat_map(|r| window(j, width).map(move |c| plane[r * width + c]));
                    out.push(cells.fold(0.0, f64::max));
                }
            }
        }
        Tensor::from_vec(out, (batch, channels, height.div_ceil(2), width.div_ceil(2)), &Device::Cpu).unwrap()
    };
    let u3 = lateral(2);
    let u2 = up(1, &u3);
    let g1 = up(0, &u2);
    let below = point("down_sample.0", &pooled(&g1));
    let g2 = block("down.0", &layers.mean("down_weight.0", &[&second(1), &u2, &below]));
    let below = point("down_sample.1", &pooled(&g2));
    let g3 = block("down.1", &layers.mean("down_weight.1", &[&second(2), &below]));
    let logits = layers.linear("fc", &positive(&g3).mean((2, 3)).unwrap());
    let found = pyramid.forward(&maps, Mode::Eval, Taps::ALL).unwrap();
    for (found, expected) in found.pre_activations.iter().chain([&found.logits]).zip([&g1, &g2, &g3, &logits]) {
        assert!(distance(found, expected) < 1e-11 * (1.0 + distance(expected, &expected.zeros_like().unwrap())));
    }
}

#[test]
fn a_tied_channel_maximum_has_one_gradient() {
    let store = wide();
    let module =
        MultiScaleAttention::new(MAP, MultiScaleConfig { scales: false, attention: true }, &store.root()).unwrap();
    // Even shares of the channels, so that equal channels stay equal.
    let mut state = store.snapshot().unwrap();
    for (_, value) in state.iter_mut().filter(|(name, _)| name.starts_with("channel.")) {
        *value = value.zeros_like().unwrap();
    }
    store.load(&state).unwrap();
    let x = Var::ones((1, 8, 5, 4), DType::F64, &Device::Cpu).unwrap();
    let gradients = module.forward(&x, Mode::Eval).unwrap().sum_all().unwrap().backward().unwrap();
    let values = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(values.iter().all(|g| g.is_finite()));
    // Eight equal channels by place: one of them is the maximum, the others have the same gradient as each other.
    for place in 0..20 {
        let mut of_channels: Vec<f64> = (0..8).map(|channel| values[channel * 20 + place]).collect();
        of_channels.sort_by(f64::total_cmp);
        let [low, high] = [of_channels[1] - of_channels[0], of_channels[7] - of_channels[6]].map(|gap| gap > 1e-12);
        let middle = of_channels[6] - of_channels[1];
        assert!(middle < 1e-12 && (low != high), "place {place}: {of_channels:?}");
    }
}

#[test]
fn the_pyramid_goes_up_and_down() {
    let shape = |channels, height, width| MapShape { channels, height, width };
    // Odd and even sizes.
    let shapes = [shape(2, 7, 8), shape(3, 4, 4), shape(4, 2, 2), shape(5, 1, 1)];
    let store = wide();
    let pyramid = Pyramid::new(&shapes, 6, PyramidConfig::default(), &store.root()).unwrap();
    let maps: Vec<Var> = shapes.iter().enumerate().map(|(i, map)| self::map(*map, i as u64)).collect();
    let tensors: Vec<Tensor> = maps.iter().map(|map| map.as_tensor().clone()).collect();
    let outputs = pyramid.forward(&tensors, Mode::Train, Taps::ALL).unwrap();
    let found: Vec<_> = outputs.maps.iter().map(|map| map.dims()[1..].to_vec()).collect();
    assert_eq!(found, [[4, 7, 8], [6, 4, 4], [8, 2, 2], [10, 1, 1]]);
    assert_eq!((outputs.logits.dims(), outputs.embedding.dims()), (&[3, 6][..], &[3, 10][..]));
    for (after, before) in outputs.maps.iter().zip(&outputs.pre_activations) {
        assert_eq!(distance(after, &before.maximum(0.0).unwrap()), 0.0);
    }
    let state = store.snapshot().unwrap();
    assert_eq!(
        [state["up_weight.2"].dims(), state["down_weight.0"].dims(), state["down_weight.2"].dims()],
        [[2], [3], [2]]
    );
    check_directional_derivative(&store, &maps, || {
        let outputs = pyramid.forward(&tensors, Mode::Train, Taps::ALL).unwrap();
        let term = |(i, map): (usize, &Tensor)| (map * normal(map.dims(), 30 + i as u64)).unwrap().sum_all().unwrap();
        let terms: Vec<Tensor> = outputs.maps.iter().chain([&outputs.logits]).enumerate().map(term).collect();
        Tensor::stack(&terms, 0).unwrap().sum_all().unwrap()
    });

    for (shapes, words) in [
        (vec![shape(2, 8, 8)], "at least two maps"),
        (vec![shape(2, 8, 8), shape(2, 8, 8)], "found 8x8 and 8x8"),
        (vec![shape(2, 8, 8), shape(0, 4, 4)], "channels of a map must be positive"),
    ] {
        let message = Pyramid::new(&shapes, 6, PyramidConfig::default(), &declared().root()).err().unwrap().to_string();
        assert!(message.contains(words), "{message}");
    }
    let none = PyramidConfig { width: 0, depth: 1 };
    assert!(Pyramid::new(&shapes, 6, none, &declared().root()).is_err());
    assert!(pyramid.forward(&tensors[..3], Mode::Eval, Taps::default()).is_err());
}
