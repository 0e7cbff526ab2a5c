//! Every kind of training, from the registry: it learns, repeats, goes on where it was cut off, and leaves alone what it must.

use crate::{DIGITS, StopAfter, bytes, data, losses};
use candle_core::{Device, Tensor};
use retort_datasets::{Dataset, Modality, Sampling, TransformConfig, ViewConfig};
use retort_losses::{EnsembleRule, LossConfig};
use retort_models::ModelConfig;
use retort_nn::{Decay, Mode, Network, OptimizerConfig, ScheduleConfig, Seed, Taps, Tensors};
use retort_trainers::engine::{BatchPlan, CheckpointPolicy, Observer, Phase, Silent, Step, Summary, Trainer};
use retort_trainers::offline::Ensemble;
use retort_trainers::{Error, Kind, Recipe, Result, SystemConfig, SystemContext, Teachers, Trained};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A run of a system on the digits.
pub(crate) struct Case {
    pub(crate) system: SystemConfig,
    pub(crate) student: &'static str,
    pub(crate) model: ModelConfig,
    pub(crate) losses: Vec<LossConfig>,
    pub(crate) teachers: Vec<Trained>,
    pub(crate) train: Dataset,
    pub(crate) views: Vec<ViewConfig>,
    pub(crate) epochs: usize,
    pub(crate) teacher_outputs: Option<PathBuf>,
}

fn view() -> ViewConfig {
    ViewConfig::new(vec![
        TransformConfig::RandomCrop { padding: 1 },
        TransformConfig::HorizontalFlip { probability: 0.5 },
    ])
}

impl Case {
    pub(crate) fn new(system: SystemConfig, losses: Vec<LossConfig>, teachers: Vec<Trained>) -> Self {
        let views = vec![view(); system.info().views];
        let (train, _) = data();
        let (model, student) = (DIGITS, "resnet8");
        Self { system, student, model, losses, teachers, train, views, epochs: 2, teacher_outputs: None }
    }

    pub(crate) fn phases(&self) -> Result<Vec<Phase>> {
        let recipe = Recipe {
            epochs: self.epochs,
            plan: BatchPlan { batch_size: 15, sampling: Sampling::Shuffled, views: self.views.clone() },
            optimizer: OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, dampening: 0.0, weight_decay: 5e-4 },
            schedule: ScheduleConfig { lr: 0.02, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.0 } },
        };
        self.system.phases(&SystemContext {
            student: self.student,
            model: self.model,
            losses: &self.losses,
            teachers: &self.teachers,
            train: &self.train,
            recipe: &recipe,
            teacher_outputs: self.teacher_outputs.clone(),
            seed: Seed::root(1),
            device: Device::Cpu,
        })
    }

    pub(crate) fn run(
        &self,
        phases: &mut [Phase],
        at: Option<&Path>,
        stop: &AtomicBool,
        by: &mut dyn Observer,
    ) -> Result<Summary> {
        let (_, test) = data();
        let policy =
            |path: &Path| CheckpointPolicy { path: path.into(), every: Duration::ZERO, fingerprint: "abc".into() };
        let trainer = Trainer {
            train: &self.train,
            test: &test,
            seed: Seed::root(1),
            device: Device::Cpu,
            test_views: vec![ViewConfig::default()],
            eval_batch_size: 32,
            evaluate_every: 1,
            bounds: false,
            checkpoint: at.map(policy),
            stop,
        };
        trainer.run(phases, by)
    }

    pub(crate) fn straight(&self) -> (Summary, Vec<Phase>) {
        let mut phases = self.phases().unwrap();
        let summary = self.run(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
        (Summary { seconds: vec![], ..summary }, phases)
    }

    /// What the run leaves.
    pub(crate) fn trained(&self) -> Trained {
        let (_, phases) = self.straight();
        let weights = phases.last().unwrap().objective.weights().unwrap();
        let classifies = self.system.info().kind != Kind::SelfSupervised;
        Trained { model: self.student.into(), config: self.model, weights, classifies }
    }
}

pub(crate) fn named(id: &str) -> SystemConfig {
    SystemConfig::defaults().into_iter().find(|system| system.id() == id).unwrap()
}

fn plain() -> Trained {
    Case { epochs: 1, ..Case::new(SystemConfig::default(), losses(r#"[{"method":"ce"}]"#), vec![]) }.trained()
}

/// A case for a system with whatever it starts from.
fn case(system: SystemConfig) -> Case {
    let teachers = match system.teachers() {
        Teachers::None => vec![],
        Teachers::Any | Teachers::One => vec![plain()],
        Teachers::Of(id) => vec![case(named(id)).trained()],
    };
    let list = if system.info().losses { r#"[{"method":"ce"},{"method":"ctkd"},{"method":"simreg"}]"# } else { "[]" };
    Case::new(system, losses(list), teachers)
}

fn cases() -> Vec<Case> {
    let joint = serde_json::from_str(r#"{"kind":"hsakd-teacher","joint":true}"#).unwrap();
    let simsiam = serde_json::from_str(r#"{"kind":"self-supervised","method":{"kind":"simsiam"}}"#).unwrap();
    // Queues of 65,536 keys would be most of the work here.
    let moco: SystemConfig = serde_json::from_str(r#"{"kind":"mcl-moco","queue":64}"#).unwrap();
    let sequential = serde_json::from_str(r#"{"kind":"dml","update":"sequential"}"#).unwrap();
    // Its other optimiser takes three steps.
    let often = serde_json::from_str(r#"{"kind":"lmcl","meta_every":3}"#).unwrap();
    let others = SystemConfig::defaults().into_iter().filter(|system| system.id() != moco.id());
    others.chain([joint, simsiam, moco.clone(), sequential, often]).map(case).collect()
}

pub(crate) fn leaves(case: &Case) -> (Summary, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (summary, phases) = case.straight();
    let objective = &phases.last().unwrap().objective;
    (summary, bytes(&objective.state().unwrap()), bytes(&objective.weights().unwrap()))
}

#[test]
fn every_system_gives_the_same_bits_with_one_and_two_threads() {
    for case in cases() {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| leaves(&case))
        };
        let (summary, state, weights) = with(1);
        assert!((summary.clone(), state, weights) == with(2), "{}", case.system.id());
        let last = summary.epochs.last().unwrap();
        assert!(last.loss.is_finite() && !last.terms.is_empty(), "{}", case.system.id());
        let evaluated = last.evaluations.contains_key("student");
        assert_eq!(evaluated, case.system.info().kind != Kind::SelfSupervised, "{}", case.system.id());
    }
}

#[test]
fn every_system_goes_on_in_the_middle_of_a_phase_bit_for_bit() {
    for case in cases() {
        let expected = leaves(&case);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        // 4 steps an epoch: one run that is cut off in the first epoch, at its end, and in the second.
        for more in [2, 2, 3] {
            let stop = AtomicBool::new(false);
            let cut_off = case.run(&mut case.phases().unwrap(), Some(&path), &stop, &mut StopAfter(more, &stop));
            assert!(matches!(cut_off, Err(Error::Interrupted)), "{}", case.system.id());
        }
        let mut phases = case.phases().unwrap();
        let summary = case.run(&mut phases, Some(&path), &AtomicBool::new(false), &mut Silent).unwrap();
        let objective = &phases.last().unwrap().objective;
        let found = (
            Summary { seconds: vec![], ..summary },
            bytes(&objective.state().unwrap()),
            bytes(&objective.weights().unwrap()),
        );
        assert!(found == expected, "{}", case.system.id());
    }
}

/// A batch as the first phase of a case sees it.
fn first_batch(case: &Case, phase: &Phase) -> retort_datasets::Batch {
    let config = retort_datasets::LoaderConfig {
        batch_size: 15,
        sampling: Sampling::Shuffled,
        drop_last: false,
        views: phase.plan.views.clone(),
        seed: 1,
    };
    let batch = retort_datasets::Loader::new(case.train.clone(), config).unwrap().epoch(0).next().unwrap().unwrap();
    phase.transform.apply(batch, &mut Seed::root(3).rng()).unwrap()
}

#[test]
fn the_logged_terms_are_the_loss_that_is_optimised() {
    for case in cases() {
        let mut phases = case.phases().unwrap();
        let batch = first_batch(&case, &phases[0]);
        let output = phases[0].objective.step(&Step { batch: &batch, epoch: 0, step: 0, lr: 0.02, turn: 0 }).unwrap();
        let scalar = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap().to_scalar::<f64>().unwrap();
        let logged: f64 = output.terms.iter().map(|term| term.weight * scalar(&term.value)).sum();
        let optimised: f64 = output.terms.iter().map(|term| scalar(&term.weighted().unwrap())).sum();
        assert!((logged - optimised).abs() < 1e-5 * logged.abs().max(1.0), "{}", case.system.id());
        let names: std::collections::BTreeSet<&str> = output.terms.iter().map(|term| term.name).collect();
        assert_eq!(names.len(), output.terms.len(), "terms of one name would be added in the log: {names:?}");
        // What a record says of a whole epoch: weights do not change in the middle of one. A second step, as what was
        // said in the step before may be a term of its own.
        phases[0].objective.after_step().unwrap();
        let next = phases[0].objective.step(&Step { batch: &batch, epoch: 0, step: 1, lr: 0.02, turn: 0 }).unwrap();
        let both = output.terms.iter().chain(&next.terms).map(|term| (term.name, term.weight));
        let weights: std::collections::BTreeMap<&str, f64> = both.collect();
        let first = phases[0].name.clone();
        let (summary, _) = case.straight();
        let record = &summary.epochs[0];
        assert_eq!(record.phase, first);
        let sum: f64 = weights.iter().map(|(name, weight)| weight * record.terms[*name]).sum();
        assert!((sum - record.loss).abs() < 1e-5 * sum.abs().max(1.0), "{}: {sum} {}", case.system.id(), record.loss);
    }
}

#[test]
fn a_system_with_a_frozen_network_leaves_it_as_it_is_to_the_bit() {
    let teacher = plain();
    for id in ["hsakd-teacher", "sskd-teacher"] {
        let case = Case::new(named(id), vec![], vec![teacher.clone()]);
        let left = case.trained();
        assert!(left.weights.len() > teacher.weights.len(), "{id} trains something beside the network");
        // Weights and running statistics.
        assert_eq!(bytes(&left.backbone()), bytes(&teacher.weights), "{id}");
        let (summary, phases) = case.straight();
        // The network that was there all the time, not the copy that is saved.
        let images = first_batch(&case, &phases[0]).images;
        let said = |network: &dyn Network| network.forward(&images, Mode::Eval, Taps::default()).unwrap().logits;
        let kept = said(phases[0].objective.evaluated()[0].network);
        let values = |z: &Tensor| z.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&kept), values(&said(teacher.network(&Device::Cpu).unwrap().as_ref())), "{id}");
        let groups = phases[0].objective.groups();
        let trained = groups.iter().flat_map(|group| &group.params).map(|(name, _)| name);
        assert!(trained.clone().all(|name| name.starts_with("branches.") || name.starts_with("head.")), "{id}");
        let terms = |epoch: usize| &summary.epochs[epoch].terms;
        assert!(terms(0) != terms(1), "{id} learns");
    }
    // Joint training moves the network.
    let joint: SystemConfig = serde_json::from_str(r#"{"kind":"hsakd-teacher","joint":true}"#).unwrap();
    let start = Case { epochs: 0, ..Case::new(joint.clone(), vec![], vec![]) }.trained();
    let end = Case::new(joint, vec![], vec![]).trained();
    assert_ne!(bytes(&start.backbone()), bytes(&end.backbone()));
}

#[test]
fn heads_are_judged_by_themselves_and_dropped_at_the_end() {
    let case = case(named("hsakd"));
    let (summary, phases) = case.straight();
    let names: Vec<&String> = summary.epochs[1].evaluations.keys().collect();
    assert_eq!(names, ["head1", "head2", "head3", "student"]);
    assert!(summary.epochs[1].evaluations["student"].agreement.is_some());
    assert!(summary.epochs[1].evaluations["head1"].agreement.is_none());
    let plain = Case { epochs: 0, ..Case::new(SystemConfig::default(), losses(r#"[{"method":"ce"}]"#), vec![]) };
    let weights = phases[0].objective.weights().unwrap();
    assert_eq!(weights.keys().collect::<Vec<_>>(), plain.trained().weights.keys().collect::<Vec<_>>());
}

#[test]
fn two_networks_that_teach_each_other_start_apart() {
    let case = Case { epochs: 0, ..case(named("hssakd-online")) };
    let state = case.phases().unwrap()[0].objective.state().unwrap();
    for (name, first) in state.iter().filter(|(name, first)| name.starts_with("first.") && first.rank() > 1) {
        let second = &state[&name.replacen("first.", "second.", 1)];
        let values = |z: &Tensor| z.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_ne!(values(first), values(second), "{name}");
    }
}

#[test]
fn students_of_one_seed_start_alike_in_every_system() {
    let start = |case: Case| bytes(&Case { epochs: 0, ..case }.trained().backbone());
    let expected = start(Case::new(SystemConfig::default(), losses(r#"[{"method":"ce"}]"#), vec![]));
    // Branches on a trunk have names of their own, virtual softmax has no bias, and some systems train another network.
    let apart = ["one", "cl-ilr", "virtual-softmax", "hsakd-teacher", "sskd-teacher"];
    for case in cases().into_iter().filter(|case| !apart.contains(&case.system.id())) {
        let id = case.system.id();
        assert_eq!(start(case), expected, "{id}");
    }
}

pub(crate) fn refusal(case: &Case) -> String {
    match case.phases() {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{} was not refused", case.system.id()),
    }
}

#[test]
fn teachers_that_do_not_fit_are_refused_by_name_and_number() {
    let with = |id: &str, change: &dyn Fn(&mut Case)| {
        let mut case = case(named(id));
        change(&mut case);
        refusal(&case)
    };
    for id in ["hsakd", "sskd", "hsakd-teacher", "sskd-teacher"] {
        assert!(with(id, &|case| case.teachers.clear()).contains("needs one trained teacher, found 0"), "{id}");
    }
    for id in ["hsakd", "sskd"] {
        let text = with(id, &|case| case.model.classes = 7);
        assert!(text.contains("same images and classes") && text.contains("7") && text.contains("10"), "{id}: {text}");
        let text = with(id, &|case| case.model.in_channels = 3);
        assert!(text.contains("in_channels: 3"), "{id}: {text}");
        let text = with(id, &|case| case.teachers = vec![plain()]);
        assert!(text.contains("trained no") && text.contains(&format!("{id}-teacher")), "{id}: {text}");
    }
    // A VGG has four branches, a residual network three.
    let text = with("hsakd", &|case| {
        case.student = "vgg8";
        case.model.image = [32, 32];
        case.teachers[0].config.image = [32, 32];
    });
    assert!(text.contains("found 4 of `vgg8` and 3 of `resnet8`"), "{text}");
    let text = with("hsakd-teacher", &|case| case.student = "resnet14");
    assert!(text.contains("expected `resnet14`") && text.contains("found `resnet8`"), "{text}");
    let text = with("hsakd-teacher", &|case| case.model.image = [8, 4]);
    assert!(text.contains("8, 4"), "{text}");
    let text = with("hssakd-online", &|case| case.student = "mlp-512-256-128");
    assert!(text.contains("`mlp-512-256-128` has no stages"), "{text}");
    let text = with("hssakd-online", &|case| {
        case.system = serde_json::from_str(r#"{"kind":"hssakd-online","peer":"resnet9"}"#).unwrap();
    });
    assert!(text.contains("resnet9") && text.contains("did you mean"), "{text}");
    let text = with("hsakd", &|case| case.losses = losses(r#"[{"method":"kd"}]"#));
    assert!(text.contains("reads no `losses`") && text.contains("`kd`"), "{text}");
    let text = with("distil", &|case| case.losses.clear());
    assert!(text.contains("at least one loss"), "{text}");
    let text = with("sskd", &|case| case.views[0].modality = Modality::Sobel);
    assert!(text.contains("modality"), "{text}");
    let text = with("hsakd", &|case| {
        case.system = serde_json::from_str(r#"{"kind":"hsakd","temperature":0.0}"#).unwrap();
    });
    assert!(text.contains("temperature"), "{text}");
    let text = with("hsakd", &|case| {
        case.system = serde_json::from_str(r#"{"kind":"hsakd","joint_weight":0.5}"#).unwrap();
    });
    assert!(text.contains("`joint_weight` belongs to `hssakd-online`") && text.contains("0.5"), "{text}");
    let text = with("hssakd-online", &|case| {
        case.system = serde_json::from_str(r#"{"kind":"hssakd-online","weights":{"kd_weight":-1.0}}"#).unwrap();
    });
    assert!(text.contains("hssakd-online: field `kd_weight`"), "{text}");
    let text = with("self-supervised", &|case| {
        case.system = serde_json::from_str(r#"{"kind":"self-supervised","projector":[64,1000000]}"#).unwrap();
    });
    assert!(text.contains("`projector`") && text.contains("1000000"), "{text}");
    // An embedding of another width where the loss cannot bridge it.
    let text = with("distil", &|case| {
        case.losses = losses(r#"[{"method":"ce"},{"method":"w2-empirical"}]"#);
        case.student = "resnet8x4";
    });
    assert!(text.contains("64") && text.contains("256"), "{text}");
}

#[test]
fn rotated_views_are_cropped_one_by_one_with_black_around() {
    let case = case(named("sskd-teacher"));
    let phase = &case.phases().unwrap()[0];
    assert_eq!(phase.plan.views[0].transforms.len(), 1, "the crop comes behind the rotation");
    let batch = first_batch(&case, phase);
    assert_eq!((batch.images.dims(), batch.len()), ([60, 1, 8, 8].as_slice(), 15));
    let config = retort_datasets::LoaderConfig {
        batch_size: 15,
        sampling: Sampling::Shuffled,
        drop_last: false,
        views: phase.plan.views.clone(),
        seed: 1,
    };
    let loader = retort_datasets::Loader::new(case.train.clone(), config).unwrap();
    let turned = retort_datasets::batch::rotate4(&loader.epoch(0).next().unwrap().unwrap().images).unwrap();
    let normalization = case.train.normalization();
    let black = (0.0 - normalization.mean[0]) / normalization.std[0];
    let rows = |images: &Tensor| images.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    let mut moves = std::collections::BTreeSet::new();
    for (from, to) in rows(&turned).iter().zip(rows(&batch.images)) {
        let moved = |dy: isize, dx: isize| -> Vec<f32> {
            let at = |i: isize| {
                let (y, x) = (i / 8 + dy, i % 8 + dx);
                if (0..8).contains(&y) && (0..8).contains(&x) { from[(y * 8 + x) as usize] } else { black }
            };
            (0..64).map(at).collect()
        };
        let found = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dy, dx))).find(|&(dy, dx)| moved(dy, dx) == to);
        moves.insert(found.expect("every view is a crop of its rotation"));
    }
    assert!(moves.len() > 4, "views are moved apart from each other: {moves:?}");
}

#[test]
fn several_teachers_speak_as_one() {
    let teachers: Vec<Trained> = (0..2)
        .map(|i| {
            let mut trained = plain();
            let scaled = |t: &Tensor| (t * f64::from(1 + i)).unwrap();
            trained.weights = trained.weights.iter().map(|(k, v)| (k.clone(), scaled(v))).collect();
            trained
        })
        .collect();
    let networks = || teachers.iter().map(|t| t.network(&Device::Cpu).unwrap()).collect::<Vec<_>>();
    let images = data().1;
    let batch = retort_datasets::Loader::eval(images, 16).unwrap().epoch(0).next().unwrap().unwrap().images;
    let said = |network: &dyn Network| network.forward(&batch, Mode::Eval, Taps::default()).unwrap().logits;
    let softmax = |z: &Tensor| candle_nn_softmax(z);
    let ensemble = Ensemble::new(networks(), EnsembleRule::ProbabilityMean).unwrap();
    let [a, b] = [0, 1].map(|i| softmax(&said(networks()[i].as_ref())));
    let mean: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 0.5 * (a + b)).collect();
    let found = softmax(&said(&ensemble));
    assert!(mean.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-6));
    // A run with two teachers, and the same with them the other way round, for a merged and for a mean loss.
    let list = r#"[{"method":"ce"},{"method":"kd"},{"method":"at"}]"#;
    let of = |teachers: Vec<Trained>| {
        let (summary, _) = Case { epochs: 1, ..Case::new(SystemConfig::default(), losses(list), teachers) }.straight();
        (summary.epochs[0].terms["kd"], summary.epochs[0].terms["at"], summary.epochs[0].evaluations.len())
    };
    let (there, back) = (of(teachers.clone()), of(teachers.iter().rev().cloned().collect()));
    assert!((there.0 - back.0).abs() < 1e-4 * there.0 && (there.1 - back.1).abs() < 1e-4 * there.1);
    assert_eq!(there.2, 2, "the student and the teachers as one");
    let other = Trained { config: ModelConfig { classes: 9, ..DIGITS }, ..plain() };
    assert!(other.network(&Device::Cpu).is_err(), "weights of another number of classes");
}

fn candle_nn_softmax(z: &Tensor) -> Vec<f64> {
    let rows: Vec<Vec<f32>> = z.to_vec2().unwrap();
    let softmax = |row: Vec<f32>| {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        let exp: Vec<f64> = row.iter().map(|x| f64::from(x - max).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.into_iter().map(move |x| x / sum)
    };
    rows.into_iter().flat_map(softmax).collect()
}

#[test]
fn a_table_of_teacher_outputs_is_kept_and_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let table: SystemConfig = serde_json::from_str(r#"{"kind":"distil","teacher_table":true}"#).unwrap();
    for model in ["resnet8", "wrn_16_1", "mlp-512-256-128"] {
        let ce = losses(r#"[{"method":"ce"}]"#);
        let teacher = Case { student: model, epochs: 1, ..Case::new(SystemConfig::default(), ce, vec![]) }.trained();
        let list = losses(r#"[{"method":"ce"},{"method":"kd"},{"method":"simreg"}]"#);
        let new = |system: &SystemConfig, at: Option<PathBuf>| Case {
            views: vec![ViewConfig::default()],
            teacher_outputs: at,
            ..Case::new(system.clone(), list.clone(), vec![teacher.clone()])
        };
        let without = new(&SystemConfig::default(), None).straight().0;
        let expected = leaves(&new(&table, None));
        for (a, b) in without.epochs.iter().zip(&expected.0.epochs) {
            assert!((a.loss - b.loss).abs() < 1e-3 * a.loss, "{model}: {} and {}", a.loss, b.loss);
        }
        let at = folder.path().join(model);
        assert!(leaves(&new(&table, Some(at.clone()))) == expected, "{model}: a folder changes no bit");
        let files = || std::fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        assert_eq!(files().len(), 1, "{model}");
        let written = std::fs::metadata(&files()[0]).unwrap().modified().unwrap();
        assert!(leaves(&new(&table, Some(at.clone()))) == expected, "{model}");
        assert_eq!(std::fs::metadata(&files()[0]).unwrap().modified().unwrap(), written, "{model}: read, not written");
        // A damaged file is made again.
        std::fs::write(&files()[0], b"nonsense").unwrap();
        assert!(leaves(&new(&table, Some(at.clone()))) == expected, "{model}");
        // So is one of which a number has changed.
        let mut bytes = std::fs::read(&files()[0]).unwrap();
        *bytes.last_mut().unwrap() ^= 0x40;
        std::fs::write(&files()[0], bytes).unwrap();
        assert!(leaves(&new(&table, Some(at.clone()))) == expected, "{model}");
    }
    let with = |list: &str, views: Vec<ViewConfig>| {
        refusal(&Case { views, ..Case::new(table.clone(), losses(list), vec![plain()]) })
    };
    let text = with(r#"[{"method":"kd"}]"#, vec![view()]);
    assert!(text.contains("teacher_augmentation = []"), "{text}");
    let text = with(r#"[{"method":"ce"},{"method":"at"}]"#, vec![ViewConfig::default()]);
    assert!(text.contains("maps"), "{text}");
    let text = with(r#"[{"method":"ce"}]"#, vec![ViewConfig::default()]);
    assert!(text.contains("no loss of the row reads a teacher"), "{text}");
}

#[test]
fn terms_may_have_weight_0() {
    for (id, json) in [
        ("hsakd", r#"{"kind":"hsakd","heads_weight":0.0}"#),
        ("sskd", r#"{"kind":"sskd","ss_weight":0.0}"#),
        ("hssakd-online", r#"{"kind":"hssakd-online","weights":{"heads_weight":0.0}}"#),
    ] {
        let mut case = case(named(id));
        case.system = serde_json::from_str(json).unwrap();
        let (summary, _) = case.straight();
        assert!(summary.epochs.iter().all(|epoch| epoch.loss.is_finite()), "{id}");
    }
}

#[test]
fn a_student_without_labels_keeps_its_classifier_and_sees_no_label() {
    let (train, _) = data();
    let unlabelled = train.without_labels().unwrap();
    let list = losses(r#"[{"method":"simreg"}]"#);
    let case = Case { train: unlabelled, ..Case::new(SystemConfig::default(), list, vec![plain()]) };
    let start = Case { epochs: 0, ..Case::new(SystemConfig::default(), case.losses.clone(), vec![plain()]) }.trained();
    let (summary, phases) = case.straight();
    assert!(summary.epochs[1].evaluations.is_empty() && summary.epochs[1].train_accuracy.is_none());
    let end: Tensors = phases[0].objective.weights().unwrap();
    let same = |name: &str| {
        let values = |t: &Tensors| t[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values(&start.weights) == values(&end)
    };
    assert!(same("fc.weight") && same("fc.bias") && !same("conv1.weight"));
    // Labels cannot be had where there are none.
    let text = refusal(&Case { losses: losses(r#"[{"method":"simreg"},{"method":"ce"}]"#), ..case });
    assert!(text.contains("`ce` reads labels"), "{text}");
}
