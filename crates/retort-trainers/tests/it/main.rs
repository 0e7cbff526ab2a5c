//! The loop's promises: same bits, resume, clear stops.

mod batches;
mod online;
mod phases;
mod probe;
mod self_distillation;
mod self_supervised;
mod systems;

use candle_core::{DType, Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use retort_datasets::{Batch, Dataset, Sampling, Split, TransformConfig, ViewConfig};
use retort_losses::{EnsembleRule, LossConfig, Term};
use retort_models::ModelConfig;
use retort_nn::{Decay, Network, OptimizerConfig, ParamGroup, ScheduleConfig, Seed, Tensors};
use retort_trainers::engine::{
    BatchPlan, BatchTransform, CheckpointPolicy, EpochRecord, Evaluated, Identity, Objective, Observer, Phase, Silent,
    Step, StepOutput, StepReport, Summary, Trainer,
};
use retort_trainers::offline::{Offline, OfflineConfig, frozen, student_weights};
use retort_trainers::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const DIGITS: ModelConfig = ModelConfig { in_channels: 1, image: [8, 8], classes: 10 };

fn data() -> (Dataset, Dataset) {
    let load = |split, n| retort_datasets::load("digits-8x8", split, None).unwrap().take_balanced(n).unwrap();
    (load(Split::Train, 60), load(Split::Test, 40))
}

fn losses(json: &str) -> Vec<LossConfig> {
    serde_json::from_str(json).unwrap()
}

fn phase(objective: Box<dyn Objective>, epochs: usize) -> Phase {
    Phase {
        name: "distil".into(),
        epochs,
        plan: BatchPlan {
            batch_size: 16,
            sampling: Sampling::Shuffled,
            views: vec![ViewConfig::new(vec![
                TransformConfig::RandomCrop { padding: 1 },
                TransformConfig::HorizontalFlip { probability: 0.5 },
            ])],
        },
        transform: Box::new(Identity),
        optimizer: OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, dampening: 0.0, weight_decay: 5e-4 },
        schedule: ScheduleConfig { lr: 0.05, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.0 } },
        objective,
    }
}

fn teacher() -> Arc<dyn Network> {
    let (train, _) = data();
    let config = OfflineConfig {
        student: "resnet14",
        model: DIGITS,
        losses: &losses(r#"[{"method":"ce"}]"#),
        teachers: vec![],
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed: Seed::root(9),
        device: Device::Cpu,
    };
    let weights = student_weights(&Offline::new(&config).unwrap()).unwrap();
    Arc::from(frozen("resnet14", &DIGITS, weights, &Device::Cpu).unwrap())
}

fn student(list: &str) -> Result<Box<dyn Objective>> {
    let (train, _) = data();
    let config = OfflineConfig {
        student: "resnet8",
        model: DIGITS,
        losses: &losses(list),
        teachers: vec![teacher()],
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed: Seed::root(1),
        device: Device::Cpu,
    };
    Ok(Box::new(Offline::new(&config)?))
}

fn run(
    phases: &mut [Phase],
    checkpoint: Option<&Path>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let (train, test) = data();
    let policy = |path: &Path| CheckpointPolicy { path: path.into(), every: Duration::ZERO, fingerprint: "abc".into() };
    let trainer = Trainer {
        train: &train,
        test: &test,
        seed: Seed::root(1),
        device: Device::Cpu,
        test_views: vec![ViewConfig::default()],
        eval_batch_size: 32,
        evaluate_every: 1,
        bounds: false,
        checkpoint: checkpoint.map(policy),
        stop,
    };
    trainer.run(phases, observer)
}

fn straight(list: &str, epochs: usize) -> (Vec<EpochRecord>, Vec<Vec<u8>>) {
    let mut phases = [phase(student(list).unwrap(), epochs)];
    let summary = run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    (summary.epochs, bytes(&phases[0].objective.state().unwrap()))
}

fn bytes(tensors: &Tensors) -> Vec<Vec<u8>> {
    let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    tensors.values().map(|t| flat(t).iter().flat_map(|x| x.to_bits().to_le_bytes()).collect()).collect()
}

/// Raises the stop flag after so many steps.
struct StopAfter<'a>(usize, &'a AtomicBool);

impl Observer for StopAfter<'_> {
    fn on_step(&mut self, _: &StepReport<'_>) {
        self.0 -= 1;
        if self.0 == 0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

const EVERYTHING: &str = r#"[
    {"method":"ce"}, {"method":"kd"}, {"method":"fitnet"}, {"method":"at"}, {"method":"vid"}, {"method":"cc"},
    {"method":"crd","negatives":8,"dim":16}
]"#;

#[test]
fn the_same_run_gives_the_same_bits_with_one_and_two_threads() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| straight(EVERYTHING, 2))
    };
    let (records, state) = with(1);
    assert_eq!((records.clone(), state), with(2));
    assert_eq!(records.len(), 2);
    assert!(records[1].evaluations["student"].agreement.is_some());
    assert!(
        records[1].terms.contains_key("crd") && records[1].terms.contains_key("at.stage0"),
        "{:?}",
        records[1].terms
    );
}

#[test]
fn an_interrupted_run_continues_bit_for_bit() {
    let expected = straight(EVERYTHING, 2);
    // 4 steps an epoch: cut at the first step, in the middle, at the end of an epoch, in the second epoch; twice in a row.
    for cuts in [vec![1], vec![2], vec![4], vec![6], vec![3, 2]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        for cut in cuts {
            let stop = AtomicBool::new(false);
            let mut phases = [phase(student(EVERYTHING).unwrap(), 2)];
            let result = run(&mut phases, Some(&path), &stop, &mut StopAfter(cut, &stop));
            assert!(matches!(result, Err(Error::Interrupted)));
        }
        let mut phases = [phase(student(EVERYTHING).unwrap(), 2)];
        let summary = run(&mut phases, Some(&path), &AtomicBool::new(false), &mut Silent).unwrap();
        assert_eq!((summary.epochs, bytes(&phases[0].objective.state().unwrap())), expected);
    }
}

#[test]
fn students_of_one_seed_start_alike_whatever_the_losses() {
    let start = |list: &str| {
        let state = student(list).unwrap().state().unwrap();
        bytes(&state.into_iter().filter(|(name, _)| name.starts_with("student.")).collect())
    };
    assert_eq!(start(r#"[{"method":"ce"}]"#), start(EVERYTHING));
}

#[test]
fn checkpoints_of_other_runs_and_shapes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.safetensors");
    let stop = AtomicBool::new(false);
    let ce = r#"[{"method":"ce"}]"#;
    let mut phases = [phase(student(ce).unwrap(), 1)];
    run(&mut phases, Some(&path), &stop, &mut StopAfter(1, &stop)).unwrap_err();

    let message = |path: &Path, list: &str| {
        let mut phases = [phase(student(list).unwrap(), 1)];
        run(&mut phases, Some(path), &AtomicBool::new(false), &mut Silent).unwrap_err().to_string()
    };
    // The same fingerprint but another list of losses: parameters are missing.
    let text = message(&path, r#"[{"method":"ce"},{"method":"cc"}]"#);
    assert!(text.contains("run.safetensors") && text.contains("cc.embed_s"), "{text}");

    let mut checkpoint = retort_nn::Checkpoint::load(&path).unwrap();
    let name = "objective.student.fc.bias".to_string();
    checkpoint.tensors.insert(name, Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    checkpoint.save(&path).unwrap();
    let text = message(&path, ce);
    assert!(text.contains("`fc.bias`") && text.contains("[10]") && text.contains("[3]"), "{text}");

    checkpoint.meta["fingerprint"] = "other".into();
    checkpoint.save(&path).unwrap();
    let text = message(&path, ce);
    assert!(text.contains("expected fingerprint abc, found other"), "{text}");

    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(message(&path, ce).contains("run.safetensors"));
}

/// One scalar parameter; its loss is `w * factor(step)`.
struct Toy {
    w: Var,
    unused: Option<Var>,
    bad_step: Option<usize>,
    network: Arc<dyn Network>,
    seen: Arc<AtomicUsize>,
}

impl Toy {
    fn new() -> Self {
        let w = Var::new(&[1f32], &Device::Cpu).unwrap();
        Self { w, unused: None, bad_step: None, network: teacher(), seen: Arc::default() }
    }
}

impl Objective for Toy {
    fn groups(&self) -> Vec<ParamGroup> {
        let mut params = vec![("w".to_string(), self.w.clone())];
        params.extend(self.unused.clone().map(|v| ("unused".to_string(), v)));
        vec![ParamGroup::new(params)]
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        self.seen.store(step.batch.index.len(), Ordering::Relaxed);
        let factor = if self.bad_step == Some(step.step) { f64::NAN } else { 1.0 };
        let value = self.w.affine(factor, 0.0)?.sum_all()?;
        Ok(StepOutput { terms: vec![Term { name: "toy", weight: 1.0, value, parts: vec![] }], logits: None })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.network.as_ref(), None)]
    }

    fn weights(&self) -> Result<Tensors> {
        self.state()
    }

    fn state(&self) -> Result<Tensors> {
        Ok(Tensors::from([("w".to_string(), self.w.copy()?)]))
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        Ok(self.w.set(&state["w"])?)
    }
}

#[test]
fn a_term_that_is_not_finite_stops_the_run_and_names_itself() {
    let mut toy = Toy::new();
    toy.bad_step = Some(5);
    let w = toy.w.clone();
    let text = run(&mut [phase(Box::new(toy), 2)], None, &AtomicBool::new(false), &mut Silent).unwrap_err().to_string();
    for part in ["`distil`", "epoch 2", "step 2", "`toy`", "NaN", "samples"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(w.to_vec1::<f32>().unwrap()[0].is_finite());
}

#[test]
fn a_parameter_without_gradient_is_an_error() {
    let mut toy = Toy::new();
    toy.unused = Some(Var::new(&[1f32], &Device::Cpu).unwrap());
    let text = run(&mut [phase(Box::new(toy), 1)], None, &AtomicBool::new(false), &mut Silent).unwrap_err().to_string();
    assert!(text.contains("`unused`") && text.contains("toy"), "{text}");
}

/// Keeps the first half of a batch.
struct Halve;

impl BatchTransform for Halve {
    fn apply(&self, batch: Batch, _rng: &mut ChaCha8Rng) -> Result<Batch> {
        let half = batch.index.len() / 2;
        let cut = |t: &Tensor| t.narrow(0, 0, half);
        let index = batch.index[..half].to_vec();
        Ok(Batch {
            images: cut(&batch.images)?,
            labels: batch.labels.as_ref().map(cut).transpose()?,
            index,
            label_ids: batch.label_ids[..half].to_vec(),
            ..batch
        })
    }
}

#[test]
fn transforms_and_phases_are_extension_points() {
    let toy = Toy::new();
    let seen = toy.seen.clone();
    let mut first = phase(Box::new(toy), 1);
    first.transform = Box::new(Halve);
    first.name = "init".into();
    let second = phase(student(r#"[{"method":"ce"}]"#).unwrap(), 1);
    let summary = run(&mut [first, second], None, &AtomicBool::new(false), &mut Silent).unwrap();
    let names: Vec<&str> = summary.epochs.iter().map(|e| e.phase.as_str()).collect();
    assert_eq!(names, ["init", "distil"]);
    // 60 samples in batches of 16: the last one has 12, halved to 6.
    assert_eq!(seen.load(Ordering::Relaxed), 6);
}

#[test]
fn plain_training_learns() {
    let (train, test) = data();
    let config = OfflineConfig {
        student: "resnet8",
        model: DIGITS,
        losses: &losses(r#"[{"method":"ce"}]"#),
        teachers: vec![],
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed: Seed::root(1),
        device: Device::Cpu,
    };
    let mut phases = [phase(Box::new(Offline::new(&config).unwrap()), 12)];
    phases[0].plan.views = vec![ViewConfig::default()];
    let summary = run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
    let last = summary.last("student").unwrap();
    assert_eq!(last.samples, test.len());
    assert!(last.accuracy > 0.6 && last.agreement.is_none(), "{last:?}");
    assert!(summary.epochs[0].loss > summary.epochs[11].loss);
}

#[test]
fn a_teacher_is_asked_for_by_name() {
    let (train, _) = data();
    let config = OfflineConfig {
        student: "resnet8",
        model: DIGITS,
        losses: &losses(r#"[{"method":"kd"}]"#),
        teachers: vec![],
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed: Seed::root(1),
        device: Device::Cpu,
    };
    assert!(Offline::new(&config).err().unwrap().to_string().contains("teacher"));
}
