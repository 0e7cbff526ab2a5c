//! Numbers that no network has, given to public functions: each is an error, and soon.

use candle_core::{DType, Device};
use retort_models::{
    Aggregator, BranchInit, BranchRow, BranchedNetwork, Branches, BranchesConfig, Error, Family, FusionModule, Gate,
    HcgNetConfig, Head, HeadLayer, InvertedStage, MapDiscriminator, MlpConfig, MobileNetV2Config, ModelConfig,
    MultiScaleAttention, MultiScaleConfig, PairWeights, PeerAttention, Peers, PeersConfig, Pyramid, PyramidConfig,
    Repeat, ResNetConfig, SelfTeacher, SqueezeModule, Stage, VggConfig, info,
};
use retort_nn::{MapShape, NetworkSpec, Params};

const MOST: usize = usize::MAX;
const SMALL: ModelConfig = ModelConfig { in_channels: 2, image: [16, 16], classes: 3 };
/// No entry is 0 and none of their products fits into memory.
const ABSURD: [usize; 4] = [1 << 20, 1 << 32, 1 << 63, MOST];

fn declared() -> Params {
    Params::declared(DType::F32, &Device::Cpu)
}

fn map(channels: usize, height: usize, width: usize) -> MapShape {
    MapShape { channels, height, width }
}

fn family(name: &str) -> Family {
    info(name).unwrap().family.clone()
}

/// Shapes with one side of 0 or of an absurd size.
fn shapes() -> Vec<MapShape> {
    let sizes = [0, 1 << 21, 1 << 40, MOST];
    sizes.into_iter().flat_map(|n| [map(n, 4, 4), map(4, n, 4), map(4, 4, n), map(n, n, n)]).collect()
}

#[test]
fn heads_refuse_absurd_sizes() {
    let check = |what: &str, result: Result<(), Error>| assert!(result.is_err(), "{what}");
    for shape in shapes() {
        check("self-teacher", SelfTeacher::new(4, shape, 10, &declared().root()).map(drop));
        check("fusion", FusionModule::new(&[shape; 2], 10, &declared().root()).map(drop));
        check("fusion", FusionModule::new(&[map(4, 4, 4), shape], 10, &declared().root()).map(drop));
        let config = MultiScaleConfig::default();
        check("attention", MultiScaleAttention::new(shape, config, &declared().root()).map(drop));
        let maps = [map(4, 4, 4), shape];
        check("pyramid", Pyramid::new(&maps, 10, PyramidConfig::default(), &declared().root()).map(drop));
    }
    let scope = || declared().root();
    for n in [0, 1 << 40, MOST] {
        check("self-teacher", SelfTeacher::new(n, map(4, 4, 4), 10, &scope()).map(drop));
        check("self-teacher", SelfTeacher::new(4, map(4, 4, 4), n, &scope()).map(drop));
        check("fusion", FusionModule::new(&[map(4, 4, 4); 2], n, &scope()).map(drop));
        let pyramid = |classes, width| {
            let config = PyramidConfig { width, ..PyramidConfig::default() };
            Pyramid::new(&[map(4, 4, 4), map(4, 2, 2)], classes, config, &scope()).map(drop)
        };
        check("pyramid", pyramid(n, 2));
        check("pyramid", pyramid(10, n));
        check("gate", Gate::new(n, 2, &scope()).map(drop));
        check("peer attention", PeerAttention::new(n, 2, &scope()).map(drop));
        check("aggregator", Aggregator::new(n, 3, &scope()).map(drop));
        check("pair weights", PairWeights::new(&[vec![4], vec![n]], 8, &scope()).map(drop));
        check("discriminator", MapDiscriminator::new(n, 8, &scope()).map(drop));
        check("squeeze module", SqueezeModule::new(&[4, n], 8, 3, 8, &scope()).map(drop));
        check("squeeze module", SqueezeModule::new(&[4], n, 3, 8, &scope()).map(drop));
        check("head", Head::new("head", 4, &[HeadLayer::Linear(n)], &scope()).map(drop).map_err(Into::into));
        check("head", Head::new("head", n, &[HeadLayer::Linear(4)], &scope()).map(drop).map_err(Into::into));
    }
    check("squeeze module", SqueezeModule::new(&[4; 65], 8, 3, 8, &scope()).map(drop));
    check("fusion", FusionModule::new(&[map(4, 4, 4); 65], 10, &scope()).map(drop));
    check("fusion", FusionModule::new(&[], 10, &scope()).map(drop));
    // Within their own bounds, but too many weights together.
    check("fusion", FusionModule::new(&[map(1 << 15, 4, 4); 2], 10, &scope()).map(drop));
    let attention = MultiScaleConfig::default();
    check("attention", MultiScaleAttention::new(map(1 << 16, 4, 4), attention, &scope()).map(drop));
}

/// Every number of a network description, made absurd one at a time.
fn descriptions() -> Vec<NetworkSpec> {
    let good = info("resnet8").unwrap().spec(&SMALL).unwrap();
    let mut found = Vec::new();
    for n in [0].into_iter().chain(ABSURD) {
        let n = if n == 1 << 20 { (1 << 20) + 1 } else { n };
        found.push(NetworkSpec { image: [n, 16], ..good.clone() });
        found.push(NetworkSpec { image: [16, n], ..good.clone() });
        found.push(NetworkSpec { maps: vec![map(n, 16, 16); 4], ..good.clone() });
        found.push(NetworkSpec { maps: vec![map(16, n, 16); 4], ..good.clone() });
        found.push(NetworkSpec { maps: vec![map(16, 16, n); 4], ..good.clone() });
    }
    found
}

#[test]
fn branches_refuse_descriptions_of_no_network() {
    for name in ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "MobileNetV1", "ShuffleV1", "ShuffleV2", "hcgnet_A1"] {
        let family = family(name);
        let rows = BranchesConfig {
            rows: vec![BranchRow { map: 1, groups: vec![Repeat::whole(0)], classifier: None }],
            outputs: 3,
            init: BranchInit::Network,
        };
        for spec in descriptions() {
            assert!(Branches::new(&family, &spec, &rows, &declared().root()).is_err(), "{name}: {spec:?}");
        }
        let spec = info(name).unwrap().spec(&SMALL).unwrap();
        for outputs in [0, 1 << 40, MOST] {
            let rows = BranchesConfig { outputs, ..rows.clone() };
            assert!(Branches::new(&family, &spec, &rows, &declared().root()).is_err(), "{name}: {outputs}");
        }
        let mut wide = spec.clone();
        wide.maps.iter_mut().for_each(|map| map.channels = 1 << 16);
        let wide = Branches::new(&family, &wide, &rows, &declared().root()).err().map(|error| error.to_string());
        assert!(wide.is_none_or(|message| message.starts_with("model `")), "{name}");
        let rows = BranchesConfig { rows: vec![rows.rows[0].clone(); 65], ..rows };
        assert!(Branches::new(&family, &spec, &rows, &declared().root()).is_err(), "{name}: 65 branches");
    }
}

#[test]
fn transitions_that_leave_no_channel_are_refused() {
    let family = Family::HcgNet(HcgNetConfig { growth: [4; 3], layers: 1 });
    for transitions in 1..12 {
        let groups = vec![Repeat::keeping_size(1); transitions];
        let row = BranchRow { map: 0, groups, classifier: None };
        let rows = BranchesConfig { rows: vec![row], outputs: 3, init: BranchInit::Network };
        let store = declared();
        match BranchedNetwork::new("hcgnet", &family, &SMALL, &rows, &store.root()) {
            Ok(_) => assert!(store.shapes().values().all(|shape| !shape.contains(&0)), "{transitions}"),
            Err(error) => {
                assert!(transitions > 1 && error.to_string().contains("at least 8 channels"), "{error}");
            }
        }
    }
}

#[test]
fn counts_of_absurd_sizes_stay_at_the_largest_number() {
    // The largest images: any product of their sides and a network's weights is beyond 64 bits.
    let config = ModelConfig { in_channels: 3, image: [1 << 20; 2], classes: 10 };
    let family = family("resnet32x4");
    for peers in [PeersConfig::complete(3), PeersConfig::mcl(&family, 4), PeersConfig::one(&family, 5)] {
        let peers = Peers::new("network", &family, &config, &peers, &declared().root()).unwrap();
        assert!(peers.multiply_adds() >= peers.specs()[0].multiply_adds);
    }
    let rows = BranchesConfig::hsakd(&family, 10);
    let network = BranchedNetwork::new("network", &family, &config, &rows, &declared().root()).unwrap();
    assert!(network.multiply_adds() >= network.branches.multiply_adds());
    let teacher = SelfTeacher::new(4, map(1 << 12, 1 << 20, 1 << 20), 10, &declared().root()).unwrap();
    assert_eq!(teacher.multiply_adds(), MOST);
}

#[test]
fn families_of_absurd_sizes_are_refused_by_name() {
    let refused = |family: Family, config: &ModelConfig, parts: &[&str]| {
        let message = family.build("mine", config, &declared().root()).err().unwrap().to_string();
        assert!(message.contains("`mine`"), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "expected {parts:?} in {message}");
    };
    for name in ["resnet8", "vgg8", "MobileNetV2", "lenet5", "mlp-512-256-128", "hcgnet_A1", "ShuffleV1"] {
        for (config, part) in [
            (
                ModelConfig { classes: 17_000_000_000, ..SMALL },
                "classes must be positive and at most 1048576, found 17000000000",
            ),
            (ModelConfig { in_channels: 1 << 30, ..SMALL }, "in_channels must be positive and at most 65536"),
            (ModelConfig { image: [16, 1 << 30], ..SMALL }, "image width must be"),
        ] {
            refused(family(name), &config, &[part]);
        }
    }
    // 16 GiB and more by numbers that are each in range.
    let Family::ResNet(plain) = family("resnet8") else { unreachable!() };
    let wide = |channels, blocks| {
        Family::ResNet(ResNetConfig { stages: vec![Stage { channels, blocks, stride: 1 }], ..plain.clone() })
    };
    refused(wide(1 << 16, 1), &SMALL, &["has more than 268435456 entries"]);
    refused(wide(4096, 256), &SMALL, &["a network must have at most 1073741824 weights"]);
    refused(Family::Vgg(VggConfig::uniform([4096; 5], [256; 5])), &SMALL, &["a network must have at most"]);
    refused(Family::Vgg(VggConfig::uniform([8; 5], [MOST; 5])), &SMALL, &["convolutions of a block"]);
    refused(Family::Mlp(MlpConfig { hidden: vec![16_000; 100] }), &SMALL, &["a network must have at most"]);
    let stage = InvertedStage { expansion: 64, channels: 1 << 16, blocks: 1, stride: 1, shown: true };
    let mobile = MobileNetV2Config { stages: vec![stage; 2], ..MobileNetV2Config::hsakd() };
    refused(Family::MobileNetV2(mobile), &SMALL, &["has more than 268435456 entries"]);
    let peers = PeersConfig::complete(64);
    let message =
        Peers::new("mine", &family("ResNet50"), &SMALL, &peers, &declared().root()).err().unwrap().to_string();
    assert!(message.contains("all peers must have at most 1073741824 weights"), "{message}");
}
