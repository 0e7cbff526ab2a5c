//! Class-balanced batches in the loop, and students without maps.

use crate::{DIGITS, StopAfter, bytes, data, losses, phase, run};
use candle_core::Device;
use rand_chacha::ChaCha8Rng;
use retort_datasets::{Batch, Sampling, ViewConfig};
use retort_losses::{EnsembleRule, LossConfig, MapChoice};
use retort_nn::{Network, Seed};
use retort_trainers::engine::{BatchTransform, EpochRecord, Identity, Phase, Silent};
use retort_trainers::offline::{Offline, OfflineConfig, frozen, student_weights};
use retort_trainers::{Error, Result};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

const STUDENT: &str = "mlp-512-256-128";
const TEACHER: &str = "mlp-512-256-128-128-128";
const LOSSES: &str = r#"[{"method":"ce"},{"method":"kd"},{"method":"rkd"},{"method":"pkt"}]"#;

fn objective(student: &str, teacher: Option<&str>, list: &str) -> Result<Offline> {
    let (train, _) = data();
    let plain = |student, teachers, losses: &[_]| {
        let (seed, ensemble) = (Seed::root(3), EnsembleRule::default());
        let (model, train_labels, device) = (DIGITS, train.labels(), Device::Cpu);
        Offline::new(&OfflineConfig { student, model, losses, teachers, ensemble, train_labels, seed, device })
    };
    let teacher = teacher.map(|name| -> Arc<dyn Network> {
        let start = plain(name, vec![], &losses(r#"[{"method":"ce"}]"#)).unwrap();
        Arc::from(frozen(name, &DIGITS, student_weights(&start).unwrap(), &Device::Cpu).unwrap())
    });
    plain(student, teacher.into_iter().collect(), &losses(list))
}

/// 60 rows, 6 of each of 10 classes, in batches of 5 classes x 3: 4 steps an epoch.
fn balanced(epochs: usize) -> Phase {
    let mut phase = phase(Box::new(objective(STUDENT, Some(TEACHER), LOSSES).unwrap()), epochs);
    phase.plan.batch_size = 15;
    phase.plan.sampling = Sampling::ClassBalanced { classes: 5 };
    phase
}

fn straight() -> (Vec<EpochRecord>, Vec<Vec<u8>>) {
    let mut phases = [balanced(2)];
    let summary = run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    (summary.epochs, bytes(&phases[0].objective.state().unwrap()))
}

/// Notes the labels of every batch.
struct Spy(Arc<Mutex<Vec<Vec<u32>>>>);

impl BatchTransform for Spy {
    fn apply(&self, batch: Batch, rng: &mut ChaCha8Rng) -> Result<Batch> {
        self.0.lock().unwrap().push(batch.label_ids.clone());
        Identity.apply(batch, rng)
    }
}

#[test]
fn every_step_sees_so_many_rows_of_so_many_classes() {
    let seen = Arc::default();
    let mut phase = balanced(2);
    phase.transform = Box::new(Spy(Arc::clone(&seen)));
    run(&mut [phase], None, &AtomicBool::new(false), &mut Silent).unwrap();
    let mut batches = seen.lock().unwrap().clone();
    assert_eq!(batches.len(), 8);
    for labels in &mut batches {
        labels.sort_unstable();
        let runs: Vec<usize> = labels.chunk_by(|a, b| a == b).map(<[u32]>::len).collect();
        assert_eq!(runs, [3; 5]);
    }
}

#[test]
fn the_same_run_gives_the_same_bits_with_one_and_two_threads() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(straight)
    };
    assert_eq!(with(1), with(2));
}

#[test]
fn an_interrupted_run_continues_bit_for_bit() {
    let expected = straight();
    for cuts in [vec![1], vec![4], vec![6], vec![3, 2]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        for cut in cuts {
            let stop = AtomicBool::new(false);
            let result = run(&mut [balanced(2)], Some(&path), &stop, &mut StopAfter(cut, &stop));
            assert!(matches!(result, Err(Error::Interrupted)));
        }
        let mut phases = [balanced(2)];
        let summary = run(&mut phases, Some(&path), &AtomicBool::new(false), &mut Silent).unwrap();
        assert_eq!((summary.epochs, bytes(&phases[0].objective.state().unwrap())), expected);
    }
}

#[test]
fn batches_that_cannot_be_formed_are_an_error() {
    for (batch_size, classes, words) in [(15, 11, "`classes`"), (16, 5, "`batch_size`"), (70, 10, "rows of class 0")] {
        let mut phase = balanced(1);
        phase.plan.batch_size = batch_size;
        phase.plan.sampling = Sampling::ClassBalanced { classes };
        let text = run(&mut [phase], None, &AtomicBool::new(false), &mut Silent).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn plain_training_of_a_network_without_maps_learns() {
    let mut phases = [phase(Box::new(objective(STUDENT, None, r#"[{"method":"ce"}]"#).unwrap()), 12)];
    phases[0].plan.views = vec![ViewConfig::default()];
    let summary = run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    assert!(summary.last("student").unwrap().accuracy > 0.6, "{:?}", summary.last("student"));
}

/// Some find out when they are built, the others in the first step; none panics, none trains on nothing.
#[test]
fn methods_that_read_maps_refuse_networks_without() {
    for config in LossConfig::defaults() {
        let list = format!("[{}]", serde_json::to_string(&config).unwrap());
        let reads_maps = config.info().inputs.which != MapChoice::None;
        for (student, teacher) in [(STUDENT, TEACHER), (STUDENT, "resnet8"), ("resnet8", STUDENT)] {
            let one_epoch = |objective| {
                let mut phases = [phase(Box::new(objective), 1)];
                run(&mut phases, None, &AtomicBool::new(false), &mut Silent).map(drop)
            };
            let result = objective(student, Some(teacher), &list).and_then(|objective| match reads_maps {
                true => one_epoch(objective),
                false => Ok(()),
            });
            match result {
                Ok(()) => assert!(!reads_maps, "{}: {student}, {teacher}", config.id()),
                // Widths that differ.
                Err(error) => assert!(reads_maps || error.to_string().starts_with(config.id()), "{error}"),
            }
        }
    }
}
