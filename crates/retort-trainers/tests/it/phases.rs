//! Runs of several phases, and optimisers that take two gradients.

use crate::{StopAfter, bytes, losses, phase, run, teacher};
use candle_core::Device;
use retort_losses::EnsembleRule;
use retort_nn::{OptimizerConfig, Seed, Tensors};
use retort_trainers::engine::{EpochRecord, Phase, Silent};
use retort_trainers::offline::{Offline, OfflineConfig, student_weights};
use retort_trainers::{Error, Result};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// All phases of a run of one epoch each.
fn phases(list: &str) -> Vec<Phase> {
    let (train, _) = crate::data();
    let objective = Offline::new(&OfflineConfig {
        student: "resnet8",
        model: crate::DIGITS,
        losses: &losses(list),
        teachers: vec![teacher()],
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed: Seed::root(1),
        device: Device::Cpu,
    })
    .unwrap();
    let init = objective.init_phases().unwrap().into_iter();
    let mut phases: Vec<Phase> =
        init.map(|(name, init, objective)| Phase { name, ..phase(Box::new(objective), init.epochs) }).collect();
    phases.push(phase(Box::new(objective), 1));
    phases
}

const AB: &str = r#"[{"method":"ce"},{"method":"ab","init_epochs":1}]"#;
const FT: &str = r#"[{"method":"ce"},{"method":"ft","init_epochs":1}]"#;
const FSP: &str = r#"[{"method":"ce"},{"method":"fsp","init_epochs":1}]"#;
const ALL: &str =
    r#"[{"method":"ce"},{"method":"ab","init_epochs":1},{"method":"ft","init_epochs":1},{"method":"kd"}]"#;

fn changed(before: &Tensors, after: &Tensors) -> Vec<String> {
    let differ = before.iter().zip(after).filter(|((_, a), (_, b))| {
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values(a) != values(b)
    });
    differ.map(|((name, _), _)| name.clone()).collect()
}

/// What the first phase of a run changes.
fn changed_by_init(list: &str) -> Vec<String> {
    let mut phases = phases(list);
    let before = phases[0].objective.state().unwrap();
    run(&mut phases[..1], None, &AtomicBool::new(false), &mut Silent).unwrap();
    changed(&before, &phases[0].objective.state().unwrap())
}

#[test]
fn a_phase_before_the_training_trains_what_its_term_reaches() {
    for list in [AB, FSP] {
        let names = changed_by_init(list);
        for part in ["student.conv1.weight", "student.layer3.0.bn2.weight", "student.bn1.running_mean"] {
            assert!(names.iter().any(|name| name == part), "{list}: {part} in {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("student.fc.") || name.starts_with("method.")), "{names:?}");
    }
    let names = changed_by_init(FT);
    assert!(!names.is_empty() && names.iter().all(|name| name.starts_with("init.ft.")), "{names:?}");
}

#[test]
fn the_training_leaves_the_parts_of_the_phase_before_alone() {
    let mut phases = phases(ALL);
    assert_eq!(phases.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["init-ab", "init-ft", "distil"]);
    let (init, training) = phases.split_at_mut(2);
    run(init, None, &AtomicBool::new(false), &mut Silent).unwrap();
    let before = training[0].objective.state().unwrap();
    run(training, None, &AtomicBool::new(false), &mut Silent).unwrap();
    let names = changed(&before, &training[0].objective.state().unwrap());
    assert!(!names.iter().any(|name| name.starts_with("init.")), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("student.fc.")), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("method.ft.translator.")), "{names:?}");
}

/// In the training nobody runs the teacher for them.
#[test]
fn methods_that_only_learn_before_the_training_are_0_in_it() {
    for list in [AB, FSP] {
        let (epochs, _) = finish(list, None, &AtomicBool::new(false), 0).unwrap();
        let last = epochs.last().unwrap();
        let idle: Vec<&f64> = last.terms.iter().filter(|(name, _)| *name != "ce").map(|(_, value)| value).collect();
        assert_eq!(idle, [&0.0], "{list}: {:?}", last.terms);
        assert_eq!(last.loss, last.terms["ce"], "{list}");
    }
}

fn finish(
    list: &str,
    path: Option<&Path>,
    stop: &AtomicBool,
    steps: usize,
) -> Result<(Vec<EpochRecord>, Vec<Vec<u8>>)> {
    let mut phases = phases(list);
    let summary = match steps {
        0 => run(&mut phases, path, stop, &mut Silent)?,
        steps => run(&mut phases, path, stop, &mut StopAfter(steps, stop))?,
    };
    Ok((summary.epochs, bytes(&phases[phases.len() - 1].objective.state().unwrap())))
}

#[test]
fn a_run_of_several_phases_continues_bit_for_bit() {
    let expected = finish(ALL, None, &AtomicBool::new(false), 0).unwrap();
    assert_eq!(expected.0.len(), 3);
    assert!(expected.0[0].evaluations.is_empty() && expected.0[0].terms.contains_key("ab"));
    // 4 steps a phase: in the first phase, between two phases, in the second, in the training; twice in a row.
    for cuts in [vec![2], vec![4], vec![6], vec![11], vec![3, 4]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        for cut in cuts {
            let stop = AtomicBool::new(false);
            assert!(matches!(finish(ALL, Some(&path), &stop, cut), Err(Error::Interrupted)));
        }
        assert_eq!(finish(ALL, Some(&path), &AtomicBool::new(false), 0).unwrap(), expected);
    }
}

/// Weights after two epochs on `list` with an optimiser.
fn trained(list: &str, optimizer: &str) -> Tensors {
    let mut phases = phases(list);
    let last = phases.len() - 1;
    phases[last].optimizer = serde_json::from_str::<OptimizerConfig>(optimizer).unwrap();
    phases[last].epochs = 2;
    run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    student_weights(phases[last].objective.as_ref()).unwrap()
}

#[test]
fn dot_with_delta_0_is_sgd_and_with_another_it_is_not() {
    let kd = r#"[{"method":"ce"},{"method":"kd"}]"#;
    let sgd = trained(kd, r#"{"kind":"sgd","momentum":0.9,"weight_decay":0.0005}"#);
    let dot = |delta: f64| trained(kd, &format!(r#"{{"kind":"dot","delta":{delta},"weight_decay":0.0005}}"#));
    let distance = |a: &Tensors, b: &Tensors| {
        let differences = a.iter().filter(|(name, _)| name.ends_with("weight")).map(|(name, t)| {
            let values = (t - &b[name]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().fold(0f32, |max, x| max.max(x.abs()))
        });
        differences.fold(0f32, f32::max)
    };
    // Two sums in place of one: equal up to rounding.
    assert!(distance(&sgd, &dot(0.0)) < 1e-3, "{}", distance(&sgd, &dot(0.0)));
    assert!(distance(&sgd, &dot(0.075)) > 1e-3);
}

#[test]
fn dot_needs_a_task_and_a_method() {
    for list in [r#"[{"method":"kd"}]"#, r#"[{"method":"ce"}]"#] {
        let mut phases = phases(list);
        phases[0].optimizer = serde_json::from_str(r#"{"kind":"dot"}"#).unwrap();
        let error = run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap_err().to_string();
        assert!(error.contains("`dot` keeps the gradients") && error.contains("alone"), "{list}: {error}");
    }
}
