//! Learning from two views without labels, in a loop that has no network to evaluate.

use crate::{DIGITS, StopAfter, bytes, data, phase, run};
use candle_core::Device;
use retort_datasets::ViewConfig;
use retort_losses::EnsembleRule;
use retort_models::ModelConfig;
use retort_nn::{Seed, Tensors};
use retort_trainers::engine::{EpochRecord, Objective, Phase, Silent, Summary, Trainer};
use retort_trainers::offline::{Offline, OfflineConfig, frozen, student_weights};
use retort_trainers::probe::{LinearProbeConfig, ProbeConfig, ProbeData, probe};
use retort_trainers::self_supervised::{SelfSupervised, SelfSupervisedConfig, SelfSupervisedMethod, SimsiamConfig};
use retort_trainers::{Error, Result};
use std::sync::atomic::AtomicBool;

const VICREG: &str = r#"{"method": {"kind": "vicreg"}, "projector": [32, 32]}"#;
const SIMSIAM: &str = r#"{"method": {"kind": "simsiam", "bottleneck": 8}, "projector": [32, 24, 16]}"#;

fn config(text: &str) -> SelfSupervisedConfig {
    serde_json::from_str(text).unwrap()
}

fn objective(text: &str) -> Result<SelfSupervised> {
    SelfSupervised::new("resnet8", &DIGITS, &config(text), Seed::root(1), &Device::Cpu)
}

/// 4 steps an epoch, on two augmented views.
fn phases(text: &str, epochs: usize) -> [Phase; 1] {
    let mut phase = phase(Box::new(objective(text).unwrap()), epochs);
    phase.plan.views.push(phase.plan.views[0].clone());
    [phase]
}

fn straight(text: &str, epochs: usize) -> (Summary, Tensors) {
    let mut phases = phases(text, epochs);
    let summary = run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    (summary, phases[0].objective.state().unwrap())
}

fn comparable((summary, state): (Summary, Tensors)) -> (Vec<EpochRecord>, Vec<Vec<u8>>) {
    (summary.epochs, bytes(&state))
}

#[test]
fn terms_and_what_a_collapse_shows_in_are_logged_apart() {
    for (text, name, own) in [
        (VICREG, "vicreg", &["similarity", "variance", "covariance"][..]),
        (SIMSIAM, "simsiam", &["projection.unit-std"]),
    ] {
        let summary = straight(text, 6).0;
        let terms = &summary.epochs[5].terms;
        let mut expected = vec![name.to_string()];
        let common = ["embedding.std", "embedding.rank", "projection.std", "projection.rank"];
        expected.extend(own.iter().chain(&common).map(|part| format!("{name}.{part}")));
        expected.sort();
        assert_eq!(terms.keys().cloned().collect::<Vec<_>>(), expected);
        let rank = terms[&format!("{name}.embedding.rank")];
        assert!((1.0..16.0).contains(&rank) && terms[&format!("{name}.embedding.std")] > 0.0, "{terms:?}");
        assert!(summary.epochs[5].loss < summary.epochs[0].loss, "{:?}", summary.epochs);
        if name == "vicreg" {
            let sum = 25.0 * (terms["vicreg.similarity"] + terms["vicreg.variance"]) + terms["vicreg.covariance"];
            assert!((sum - terms["vicreg"]).abs() < 1e-4 * sum, "{terms:?}");
        } else {
            assert!(
                (-1.0..=1.0).contains(&terms["simsiam"]) && terms["simsiam.projection.unit-std"] > 0.1,
                "{terms:?}"
            );
        }
    }
}

/// What keeps the projections apart is the two terms: without them all images end in one point.
#[test]
fn a_collapse_shows_in_the_log() {
    let growth = |method: &str| {
        let epochs = straight(&format!(r#"{{"method": {method}, "projector": [32, 32]}}"#), 8).0.epochs;
        epochs[7].terms["vicreg.projection.std"] / epochs[0].terms["vicreg.projection.std"]
    };
    let (kept, lost) = (growth(r#"{"kind":"vicreg"}"#), growth(r#"{"kind":"vicreg","variance":0,"covariance":0}"#));
    assert!(kept > 1.0 && lost < 0.5, "{kept}, {lost}");
}

#[test]
fn a_loop_without_an_evaluated_network_leaves_whole_records() {
    let (summary, _) = straight(VICREG, 2);
    assert_eq!(summary.epochs.len(), 2);
    for record in &summary.epochs {
        assert!(record.evaluations.is_empty() && record.train_accuracy.is_none() && record.loss.is_finite());
    }
    assert!(summary.last("student").is_none() && summary.best_accuracy("student").is_none());
    let text = serde_json::to_string(&summary).unwrap();
    assert!(!text.contains("evaluations") && !text.contains("train_accuracy") && !text.contains("null"), "{text}");
    assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
}

#[test]
fn images_without_labels_will_do() {
    let (train, test) = data();
    let unlabelled = train.clone().without_labels().unwrap();
    let trained = |train, test| {
        let trainer = Trainer {
            train,
            test,
            seed: Seed::root(1),
            device: Device::Cpu,
            test_views: vec![ViewConfig::default()],
            eval_batch_size: 32,
            evaluate_every: 1,
            bounds: true,
            checkpoint: None,
            stop: &AtomicBool::new(false),
        };
        let mut phases = phases(SIMSIAM, 1);
        let summary = trainer.run(&mut phases, &mut Silent).unwrap();
        comparable((summary, phases[0].objective.state().unwrap()))
    };
    assert_eq!(trained(&unlabelled, &unlabelled), trained(&train, &test));
}

#[test]
fn the_same_run_gives_the_same_bits_with_one_and_two_threads() {
    for text in [VICREG, SIMSIAM] {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| comparable(straight(text, 2)))
        };
        assert_eq!(with(1), with(2));
    }
}

#[test]
fn an_interrupted_run_continues_bit_for_bit() {
    for text in [VICREG, SIMSIAM] {
        let expected = comparable(straight(text, 2));
        // 4 steps an epoch: at the first step, at the end of an epoch, in the second epoch; twice in a row.
        for cuts in [vec![1], vec![4], vec![6], vec![3, 2]] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("run.safetensors");
            for cut in cuts {
                let stop = AtomicBool::new(false);
                let result = run(&mut phases(text, 2), Some(&path), &stop, &mut StopAfter(cut, &stop));
                assert!(matches!(result, Err(Error::Interrupted)));
            }
            let mut phases = phases(text, 2);
            let summary = run(&mut phases, Some(&path), &AtomicBool::new(false), &mut Silent).unwrap();
            assert_eq!(comparable((summary, phases[0].objective.state().unwrap())), expected);
        }
    }
}

#[test]
fn the_classifier_is_left_alone_and_everything_else_learns() {
    for text in [VICREG, SIMSIAM] {
        let (before, after) = (objective(text).unwrap().state().unwrap(), straight(text, 1).1);
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, tensor) in &before {
            let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let moved = values(tensor) != values(&after[name]);
            assert_eq!(moved, !name.starts_with("student.fc."), "{name}");
        }
        let groups = objective(text).unwrap().groups();
        assert!(!groups[0].params.iter().any(|(name, _)| name.starts_with("student.fc.")));
        assert_eq!(after.keys().any(|name| name.starts_with("method.predictor.")), text == SIMSIAM);
    }
    // Networks keep their classifiers in different ways.
    let model = ModelConfig { image: [32, 32], ..DIGITS };
    for name in ["vgg8", "mlp-512-256-128", "wrn_16_1", "MobileNetV2", "ShuffleV1", "lenet5"] {
        let objective = SelfSupervised::new(name, &model, &config(VICREG), Seed::root(1), &Device::Cpu).unwrap();
        let trained = objective.groups()[0].params.iter().filter(|(name, _)| name.starts_with("student.")).count();
        let state = objective.state().unwrap();
        let weights = state.keys().filter(|k| k.starts_with("student.") && !k.contains("running_")).count();
        assert_eq!(weights - trained, 2, "{name}: weight and bias of the classifier");
    }
}

#[test]
fn the_backbone_starts_as_a_student_does_and_can_be_frozen_and_judged() {
    let (train, test) = data();
    let plain = Offline::new(&OfflineConfig {
        student: "resnet8",
        model: DIGITS,
        losses: &crate::losses(r#"[{"method":"ce"}]"#),
        teachers: vec![],
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed: Seed::root(1),
        device: Device::Cpu,
    });
    let start = student_weights(&objective(SIMSIAM).unwrap()).unwrap();
    assert_eq!(bytes(&start), bytes(&student_weights(&plain.unwrap()).unwrap()));

    let mut phases = phases(VICREG, 1);
    run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    let network = frozen("resnet8", &DIGITS, student_weights(phases[0].objective.as_ref()).unwrap(), &Device::Cpu);
    let data = ProbeData { train: &train, test: &test, view: ViewConfig::default() };
    let config = ProbeConfig { linear: LinearProbeConfig { epochs: 2, ..Default::default() }, ..Default::default() };
    let report = probe(network.unwrap().as_ref(), data, &config, Seed::root(1), &Device::Cpu).unwrap();
    assert_eq!(report.measures.len(), 4);
}

#[test]
fn settings_and_batches_that_cannot_be_are_named() {
    let message = |text: &str| objective(text).err().unwrap().to_string();
    assert!(message(r#"{"projector": []}"#).contains("`projector`: expected at least one width"));
    assert!(message(r#"{"projector": [8, 0]}"#).contains("`projector`"));
    assert!(message(r#"{"method": {"kind": "simsiam", "bottleneck": 0}}"#).contains("`bottleneck`"));
    assert!(message(r#"{"method": {"kind": "vicreg", "covariance": -1}}"#).contains("`covariance`"));
    for text in
        [r#"{"method": {"kind": "vicreg", "bottleneck": 3}}"#, r#"{"method": {"kind": "byol"}}"#, r#"{"width": 1}"#]
    {
        assert!(serde_json::from_str::<SelfSupervisedConfig>(text).is_err(), "{text}");
    }
    let defaults = SelfSupervisedConfig::default();
    assert_eq!(config("{}"), defaults);
    let simsiam =
        SelfSupervisedConfig { method: SelfSupervisedMethod::Simsiam(SimsiamConfig { bottleneck: 64 }), ..defaults };
    assert_eq!(config(r#"{"method": {"kind": "simsiam"}}"#), simsiam);

    let failed =
        |mut phases: [Phase; 1]| run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap_err().to_string();
    let mut one_view = phases(VICREG, 1);
    one_view[0].plan.views.truncate(1);
    assert!(failed(one_view).contains("expected two views of every image, found one"));
    // 60 images: 59 and 1.
    let mut rest = phases(VICREG, 1);
    rest[0].plan.batch_size = 59;
    assert!(failed(rest).contains("`batch_size`: must leave no rest of a single image"));
}
