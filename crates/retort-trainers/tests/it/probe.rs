//! Judging a network leaves it alone, and gives the same numbers every time.

use crate::{DIGITS, bytes, data};
use candle_core::{DType, Device, Tensor};
use retort_datasets::{Modality, Split, TransformConfig, ViewConfig};
use retort_models::ModelConfig;
use retort_nn::{Decay, Mode, Network, Params, Seed, Taps};
use retort_trainers::offline::frozen;
use retort_trainers::probe::{LinearProbeConfig, ProbeConfig, ProbeData, ProbeReport, probe};
use retort_trainers::{Error, Result};

/// A network that could be trained, whose running statistics are not those of the start.
fn network(name: &str, model: &ModelConfig) -> (Params, Box<dyn Network>) {
    let params = Params::new(Seed::root(5), DType::F32, &Device::Cpu);
    let network = retort_models::build(name, model, &params.root()).unwrap();
    let [height, width] = model.image;
    let values = (0..4 * model.in_channels * height * width).map(|i| (i as f32 * 0.7).sin()).collect();
    let images = Tensor::from_vec(values, (4, model.in_channels, height, width), &Device::Cpu).unwrap();
    network.forward(&images, Mode::Train, Taps::default()).unwrap();
    (params, network)
}

fn config() -> ProbeConfig {
    // So few steps need a rate that does not fall.
    let linear = LinearProbeConfig { batch_size: 16, lr: 0.2, schedule: Decay::Constant, ..Default::default() };
    ProbeConfig { linear, stages: true, ..ProbeConfig::default() }
}

fn judge(network: &dyn Network, config: &ProbeConfig, view: ViewConfig) -> Result<ProbeReport> {
    let (train, test) = data();
    probe(network, ProbeData { train: &train, test: &test, view }, config, Seed::root(2), &Device::Cpu)
}

#[test]
fn a_random_network_already_tells_digits_apart_and_stays_as_it_was() {
    let (params, network) = network("resnet8", &DIGITS);
    let before = params.snapshot().unwrap();
    let report = judge(network.as_ref(), &config(), ViewConfig::default()).unwrap();
    assert_eq!(bytes(&before), bytes(&params.snapshot().unwrap()));
    let names: Vec<&str> = report.measures.keys().map(String::as_str).collect();
    assert_eq!(names, ["knn-1", "knn-20", "linear", "linear-f1", "linear-f2", "linear-f3", "linear-nll"]);
    // Chance is 0.1 and ln 10 = 2.3; the first stages of a random network know little. The last one's mean is the embedding.
    for name in ["knn-1", "knn-20", "linear", "linear-f3"] {
        assert!((0.3..=1.0).contains(&report.measures[name]), "{report:?}");
    }
    assert!(report.measures["linear-nll"] < 2.0, "{report:?}");
    // A frozen copy folds its batch norms, and shows the same up to rounding.
    let copy = frozen("resnet8", &DIGITS, before, &Device::Cpu).unwrap();
    let again = judge(copy.as_ref(), &config(), ViewConfig::default()).unwrap();
    assert!((report.measures["linear-nll"] - again.measures["linear-nll"]).abs() < 1e-2);
}

#[test]
fn the_same_probe_gives_the_same_bits_with_one_and_two_threads_and_other_seeds_others() {
    let (_params, network) = network("resnet8", &DIGITS);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| judge(network.as_ref(), &config(), ViewConfig::default()).unwrap())
    };
    let report = with(1);
    assert_eq!(report, with(2));
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<ProbeReport>(&text).unwrap(), report);
    let (train, test) = data();
    let data = ProbeData { train: &train, test: &test, view: ViewConfig::default() };
    let other = probe(network.as_ref(), data, &config(), Seed::root(3), &Device::Cpu).unwrap();
    assert_eq!(report.measures["knn-20"], other.measures["knn-20"]);
    assert_ne!(report.measures["linear-nll"], other.measures["linear-nll"]);
}

#[test]
fn a_part_of_the_labels_and_a_modality_are_the_callers_choice() {
    let half = ModelConfig { image: [8, 4], ..DIGITS };
    let (_params, network) = network("resnet8", &half);
    let (_, test) = data();
    let train = retort_datasets::load("digits-8x8", Split::Train, None).unwrap().take_balanced(20).unwrap();
    let view = ViewConfig { modality: Modality::LeftHalf, ..ViewConfig::default() };
    let config = ProbeConfig { stages: false, ..config() };
    let data = ProbeData { train: &train, test: &test, view };
    let report = probe(network.as_ref(), data, &config, Seed::root(2), &Device::Cpu).unwrap();
    assert_eq!(
        report.measures.keys().map(String::as_str).collect::<Vec<_>>(),
        ["knn-1", "knn-20", "linear", "linear-nll"]
    );
    assert!(report.measures["knn-1"] > 0.2, "{report:?}");
    // Images of another shape than the network's.
    let whole = ProbeData { train: &train, test: &test, view: ViewConfig::default() };
    assert!(probe(network.as_ref(), whole, &config, Seed::root(2), &Device::Cpu).is_err());
}

#[test]
fn a_manifest_may_say_as_little_as_it_likes() {
    let parsed: ProbeConfig = serde_json::from_str(
        r#"{"knn": [], "linear": {"epochs": 7, "lr": 0.1, "schedule": {"kind": "cosine"}}, "stages": true}"#,
    )
    .unwrap();
    let linear = LinearProbeConfig { epochs: 7, lr: 0.1, schedule: Decay::Cosine { floor: 0.0 }, ..Default::default() };
    assert_eq!(parsed, ProbeConfig { knn: vec![], linear, stages: true });
    assert!(serde_json::from_str::<ProbeConfig>(r#"{"linear": {"epoch": 7}}"#).is_err());
    ProbeConfig::default().validate().unwrap();
}

#[test]
fn what_cannot_be_judged_is_named() {
    let (_params, network) = network("resnet8", &DIGITS);
    let (train, test) = data();
    let message = |change: &dyn Fn(&mut ProbeConfig)| {
        let mut config = config();
        change(&mut config);
        judge(network.as_ref(), &config, ViewConfig::default()).unwrap_err().to_string()
    };
    assert!(message(&|c| c.knn = vec![1, 0]).contains("`knn`: must be at least 1"));
    assert!(message(&|c| c.knn = vec![61]).contains("60 training images, found 61"));
    assert!(message(&|c| c.linear.epochs = 0).contains("`linear.epochs`"));
    assert!(message(&|c| c.linear.batch_size = 0).contains("`linear.batch_size`"));
    assert!(message(&|c| c.linear.lr = f64::NAN).contains("`lr`"));
    assert!(message(&|c| c.linear.momentum = 1.0).contains("`momentum`"));
    assert!(message(&|c| c.linear.weight_decay = -1.0).contains("`weight_decay`"));

    let view = ViewConfig::new(vec![TransformConfig::RandomCrop { padding: 1 }]);
    let text = judge(network.as_ref(), &config(), view).unwrap_err().to_string();
    assert!(text.contains("without augmentation") && text.contains("`random-crop`"), "{text}");

    let unlabelled = train.clone().without_labels().unwrap();
    let on = |train, test| {
        let data = ProbeData { train, test, view: ViewConfig::default() };
        probe(network.as_ref(), data, &config(), Seed::root(2), &Device::Cpu).unwrap_err().to_string()
    };
    assert!(on(&unlabelled, &test).contains("`train`") && on(&train, &unlabelled).contains("`test`"));

    let (_params, without_maps) = self::network("mlp-512-256-128", &DIGITS);
    let text = judge(without_maps.as_ref(), &config(), ViewConfig::default()).unwrap_err().to_string();
    assert!(text.contains("`stages`") && text.contains("shows no maps"), "{text}");
}

#[test]
fn a_classifier_that_runs_away_stops_and_names_itself() {
    let (_params, network) = network("resnet8", &DIGITS);
    let mut config = config();
    config.linear.lr = 1e30;
    let error = judge(network.as_ref(), &config, ViewConfig::default()).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { phase, term, .. } if phase == "probe" && term == "linear"), "{error}");
}
