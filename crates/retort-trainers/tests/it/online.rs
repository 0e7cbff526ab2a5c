//! Networks that learn from each other.

use crate::{DIGITS, StopAfter, bytes, data, losses};
use candle_core::{DType, Device, Tensor};
use retort_datasets::{Batch, Dataset, Loader, LoaderConfig, Sampling, TransformConfig, ViewConfig};
use retort_losses::online::{RampedSettings, cl_ilr, total};
use retort_models::{Peers, PeersConfig};
use retort_nn::{Decay, Mode, Network, OptimizerConfig, Params, ScheduleConfig, Seed, Taps, Tensors};
use retort_trainers::engine::{BatchPlan, CheckpointPolicy, Observer, Phase, Silent, Step, Summary, Trainer};
use retort_trainers::{Error, Kind, Recipe, Result, SystemConfig, SystemContext, Trained};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A run of a system, given as in a manifest.
struct Run {
    system: SystemConfig,
    student: &'static str,
    train: Dataset,
    views: usize,
    batch_size: usize,
    sampling: Sampling,
}

impl Run {
    fn of(json: &str) -> Self {
        let system: SystemConfig = serde_json::from_str(json).unwrap();
        let (train, _) = data();
        let views = system.views();
        Self { system, student: "resnet8", train, views, batch_size: 15, sampling: Sampling::Shuffled }
    }

    fn phases(&self) -> Result<Vec<Phase>> {
        let view = ViewConfig::new(vec![
            TransformConfig::RandomCrop { padding: 1 },
            TransformConfig::HorizontalFlip { probability: 0.5 },
        ]);
        let views = vec![view; self.views];
        let recipe = Recipe {
            epochs: 1,
            plan: BatchPlan { batch_size: self.batch_size, sampling: self.sampling, views },
            optimizer: OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, dampening: 0.0, weight_decay: 5e-4 },
            schedule: ScheduleConfig { lr: 0.02, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.0 } },
        };
        let list = if self.system.info().losses { r#"[{"method":"ce"}]"# } else { "[]" };
        self.system.phases(&SystemContext {
            student: self.student,
            model: DIGITS,
            losses: &losses(list),
            teachers: &[],
            train: &self.train,
            recipe: &recipe,
            teacher_outputs: None,
            seed: Seed::root(1),
            device: Device::Cpu,
        })
    }

    fn phase(&self) -> Phase {
        self.phases().unwrap().pop().unwrap()
    }

    fn go(&self, phases: &mut [Phase], at: Option<&Path>, stop: &AtomicBool, by: &mut dyn Observer) -> Result<Summary> {
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

    fn trained(&self) -> (Summary, Phase) {
        let mut phases = self.phases().unwrap();
        let summary = self.go(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
        (Summary { seconds: vec![], ..summary }, phases.pop().unwrap())
    }

    /// The first batch of a phase.
    fn batch(&self, phase: &Phase) -> Batch {
        let config = LoaderConfig {
            batch_size: phase.plan.batch_size,
            sampling: phase.plan.sampling,
            drop_last: false,
            views: phase.plan.views.clone(),
            seed: 1,
        };
        Loader::new(self.train.clone(), config).unwrap().epoch(0).next().unwrap().unwrap()
    }

    fn refusal(&self) -> String {
        match self.phases() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{:?} was not refused", self.system),
        }
    }
}

fn step(batch: &Batch) -> Step<'_> {
    Step { batch, epoch: 0, step: 0, lr: 0.02, turn: 0 }
}

fn number(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Names of the tensors that differ.
fn moved(before: &Tensors, after: &Tensors) -> Vec<String> {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let bits = |t: &Tensor| bytes(&Tensors::from([(String::new(), t.clone())]));
    before.iter().filter(|(name, t)| bits(t) != bits(&after[*name])).map(|(name, _)| name.clone()).collect()
}

#[test]
fn mutual_learning_of_one_network_is_plain_training_to_the_bit() {
    let leaves = |json: &str| {
        let run = Run::of(json);
        let mut phases = run.phases().unwrap();
        let summary = run.go(&mut phases, None, &AtomicBool::new(false), &mut Silent).unwrap();
        let last = summary.epochs.last().unwrap();
        (last.evaluations.clone(), last.train_accuracy, bytes(&phases[0].objective.weights().unwrap()))
    };
    let expected = leaves(r#"{"kind":"distil"}"#);
    for rest in ["", r#","target":"ensemble""#, r#","update":"sequential""#] {
        let found = leaves(&format!(r#"{{"kind":"dml","others":0{rest}}}"#));
        assert!(found == expected, "{rest}");
    }
    assert!(leaves(r#"{"kind":"dml","others":0,"target":"ensemble","update":"sequential"}"#) == expected);
}

#[test]
fn networks_in_turn_move_one_by_one_and_have_the_terms_of_all_at_once() {
    for target in ["each", "ensemble"] {
        let of = |update: &str| {
            let run = Run::of(&format!(r#"{{"kind":"dml","others":2,"update":"{update}","target":"{target}"}}"#));
            let phase = run.phase();
            let batch = run.batch(&phase);
            (phase, batch)
        };
        let (mut joint, batch) = of("joint");
        let expected: Vec<f64> =
            joint.objective.step(&step(&batch)).unwrap().terms.iter().map(|term| number(&term.value)).collect();
        let (mut sequential, batch) = of("sequential");
        let groups = sequential.objective.groups();
        assert_eq!((sequential.objective.turns(), groups.len()), (3, 3));
        let mut sums = [0.0; 2];
        for turn in 0..3 {
            let output = sequential.objective.step(&Step { turn, ..step(&batch) }).unwrap();
            assert_eq!(output.logits.is_some(), turn == 0);
            for (sum, term) in sums.iter_mut().zip(&output.terms) {
                *sum += number(&term.value);
            }
            let grads = total(&output.terms).unwrap().backward().unwrap();
            for (k, group) in groups.iter().enumerate() {
                assert!(
                    group.params.iter().all(|(_, var)| grads.get(var).is_some() == (k == turn)),
                    "turn {turn}, {k}"
                );
            }
        }
        for (sum, expected) in sums.iter().zip(&expected) {
            assert!((sum - expected).abs() < 1e-5 * expected.abs().max(1.0), "{target}: {sum} {expected}");
        }
    }
}

#[test]
fn a_network_imitates_what_those_before_it_say_after_their_update() {
    let run = Run::of(r#"{"kind":"dml","others":1,"update":"sequential"}"#);
    let mut phase = run.phase();
    let batch = run.batch(&phase);
    let groups = phase.objective.groups();
    let imitation = |phase: &mut Phase, turn: usize| {
        let terms = phase.objective.step(&Step { turn, ..step(&batch) }).unwrap().terms;
        number(&terms.iter().find(|term| term.name != "ce").unwrap().value)
    };
    let start = phase.objective.state().unwrap();
    imitation(&mut phase, 0);
    let stale = imitation(&mut phase, 1);
    phase.objective.load_state(&start).unwrap();
    let terms = phase.objective.step(&Step { turn: 0, ..step(&batch) }).unwrap().terms;
    let grads = total(&terms).unwrap().backward().unwrap();
    for (_, var) in &groups[0].params {
        let moved = (var.as_tensor() - (grads.get(var).unwrap() * 0.5).unwrap()).unwrap();
        var.set(&moved.detach()).unwrap();
    }
    let fresh = imitation(&mut phase, 1);
    assert!((fresh - stale).abs() > 1e-3 * stale.abs(), "{fresh} and {stale}");
    // A pass without gradient does not move running statistics: each network's have moved once.
    let end = phase.objective.state().unwrap();
    let mut once = run.phase();
    once.objective.load_state(&start).unwrap();
    once.objective.step(&Step { turn: 0, ..step(&batch) }).unwrap();
    let expected = once.objective.state().unwrap();
    let running = |name: &&String| name.starts_with("student.") && name.contains("running");
    assert!(start.keys().filter(running).count() > 0);
    for name in start.keys().filter(running) {
        assert_eq!(values(&end[name]), values(&expected[name]), "{name}");
    }
}

#[test]
fn networks_of_kdcl_have_an_augmentation_each() {
    let run = Run::of(r#"{"kind":"kdcl"}"#);
    let batch = run.batch(&run.phase());
    let ce = |batch: &Batch| {
        let terms = run.phase().objective.step(&step(batch)).unwrap().terms;
        let parts = &terms.iter().find(|term| term.name == "ce").unwrap().parts;
        parts.iter().map(|(_, value)| number(value)).collect::<Vec<f64>>()
    };
    let before = ce(&batch);
    let mut other = batch.clone();
    other.more_views[0] = (&other.more_views[0] * 0.5).unwrap();
    let after = ce(&other);
    assert_eq!(before.len(), 2);
    assert!(before[0] == after[0] && before[1] != after[1], "{before:?} {after:?}");
}

#[test]
fn networks_of_several_architectures_learn_together() {
    for (kind, more) in [("dml", ""), ("kdcl", ""), ("mcl", r#","logit_kd":true"#), ("ffl", ""), ("lmcl", "")] {
        let run = Run::of(&format!(r#"{{"kind":"{kind}","others":["resnet14","wrn_16_1"]{more}}}"#));
        let (summary, phase) = run.trained();
        let names: Vec<&String> = summary.epochs[0].evaluations.keys().collect();
        for name in ["student", "peer1", "peer2", "ensemble"] {
            assert!(names.contains(&&name.to_string()), "{kind}: {names:?}");
        }
        assert!(summary.epochs[0].loss.is_finite());
        let specs: Vec<String> =
            phase.objective.evaluated().iter().take(3).map(|e| e.network.spec().name.clone()).collect();
        assert_eq!(specs, ["resnet8", "resnet14", "wrn_16_1"], "{kind}");
    }
}

/// Every system of this kind, and their other forms.
fn everything() -> Vec<Run> {
    let own = |system: &SystemConfig| {
        let info = system.info();
        info.kind == Kind::Online && info.id != "hssakd-online" || info.id == "mcl-moco"
    };
    let defaults = SystemConfig::defaults().into_iter().filter(own);
    let mut runs: Vec<Run> = defaults.map(|system| Run::of(&serde_json::to_string(&system).unwrap())).collect();
    assert_eq!(runs.len(), 11);
    let more = [
        r#"{"kind":"dml","others":2,"update":"sequential"}"#,
        r#"{"kind":"kdcl","others":2,"loss":{"teacher":"min-logit"}}"#,
        r#"{"kind":"okddip","form":"branches"}"#,
        r#"{"kind":"mfef","fusion":false}"#,
        r#"{"kind":"mfef","scales":false,"others":["resnet14"]}"#,
        r#"{"kind":"mcl","others":3,"logit_kd":true}"#,
        r#"{"kind":"mcl","form":"branches"}"#,
        r#"{"kind":"mcl-memory","others":2,"negatives":16,"positives":2,"logit_kd":true}"#,
        r#"{"kind":"mcl-moco","others":["resnet14"],"queue":20,"dim":16}"#,
        r#"{"kind":"lmcl","meta_every":2}"#,
        r#"{"kind":"lmcl","meta":"off"}"#,
    ];
    runs.extend(more.map(Run::of));
    runs
}

#[test]
fn what_is_deployed_is_the_plain_student() {
    let plain = Params::new(Seed::root(2), DType::F32, &Device::Cpu);
    retort_models::build("resnet8", &DIGITS, &plain.root()).unwrap();
    for run in everything() {
        let (_, phase) = run.trained();
        let weights = phase.objective.weights().unwrap();
        plain.load(&weights).unwrap_or_else(|e| panic!("{:?}: {e}", run.system));
        let classifies = run.system.info().kind != Kind::SelfSupervised;
        let trained = Trained { model: "resnet8".into(), config: DIGITS, weights, classifies };
        let alone = trained.network(&Device::Cpu).unwrap();
        let evaluated = phase.objective.evaluated();
        let Some(student) = evaluated.first() else {
            assert!(!classifies);
            continue;
        };
        let images = run.batch(&phase).images;
        let said =
            |network: &dyn Network| values(&network.forward(&images, Mode::Eval, Taps::default()).unwrap().logits);
        let (found, expected) = (said(alone.as_ref()), said(student.network));
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3 * b.abs().max(1.0);
        assert!(found.iter().zip(&expected).all(close), "{:?}", run.system);
    }
}

#[test]
fn other_forms_go_on_where_they_were_cut_off() {
    for run in everything().into_iter().skip(11) {
        let leaves = |summary: Summary, phase: &Phase| {
            (Summary { seconds: vec![], ..summary }, bytes(&phase.objective.state().unwrap()))
        };
        let (summary, phase) = run.trained();
        let expected = leaves(summary, &phase);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.safetensors");
        // Once before and once after the second step.
        for cut in [1, 2] {
            let stop = AtomicBool::new(false);
            let result = run.go(&mut run.phases().unwrap(), Some(&path), &stop, &mut StopAfter(cut, &stop));
            assert!(matches!(result, Err(Error::Interrupted)), "{:?}", run.system);
        }
        let mut phases = run.phases().unwrap();
        let summary = run.go(&mut phases, Some(&path), &AtomicBool::new(false), &mut Silent).unwrap();
        assert!(leaves(summary, &phases[0]) == expected, "{:?}", run.system);
    }
}

#[test]
fn students_start_alike_in_every_form_of_complete_networks() {
    let start = |json: &str| bytes(&Run::of(json).phase().objective.weights().unwrap());
    let expected = start(r#"{"kind":"distil"}"#);
    for kind in ["dml", "kdcl", "okddip", "ffl", "mfef", "mcl", "mcl-memory", "mcl-moco", "lmcl"] {
        assert!(start(&format!(r#"{{"kind":"{kind}"}}"#)) == expected, "{kind}");
    }
}

#[test]
fn networks_of_a_cohort_start_apart() {
    let state = Run::of(r#"{"kind":"dml","others":2}"#).phase().objective.state().unwrap();
    let key = "conv1.weight";
    let [a, b, c] = ["student", "peer1", "peer2"].map(|name| values(&state[&format!("{name}.{key}")]));
    assert!(a != b && b != c && a != c);
}

#[test]
fn ensembles_gates_fusions_and_heads_are_evaluated_by_name() {
    let names = |json: &str| {
        let (summary, _) = Run::of(json).trained();
        summary.epochs[0].evaluations.keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(r#"{"kind":"one"}"#), "ensemble gated peer1 peer2 student");
    assert_eq!(names(r#"{"kind":"ffl"}"#), "ensemble fused peer1 student");
    assert_eq!(names(r#"{"kind":"mfef","fusion":false}"#), "ensemble fused peer1 student");
    assert_eq!(names(r#"{"kind":"lmcl"}"#), "ensemble head1 head2 peer1 student");
    assert_eq!(names(r#"{"kind":"okddip","others":2,"form":"branches"}"#), "ensemble peer1 peer2 student");
}

#[test]
fn imitation_starts_with_the_ramp() {
    for kind in ["one", "cl-ilr", "okddip", "ffl", "mfef"] {
        let run = Run::of(&format!(r#"{{"kind":"{kind}"}}"#));
        let mut phase = run.phase();
        let batch = run.batch(&phase);
        let mut weight = |epoch| phase.objective.step(&Step { epoch, ..step(&batch) }).unwrap().terms[1].weight;
        assert_eq!((weight(0), weight(80)), ((-5f64).exp(), 1.0), "{kind}");
    }
}

#[test]
fn the_gradient_that_enters_a_trunk_is_divided_by_the_number_of_branches() {
    let run = Run::of(r#"{"kind":"cl-ilr","others":2}"#);
    let mut phase = run.phase();
    let batch = run.batch(&phase);
    let state = phase.objective.state().unwrap();
    let output = phase.objective.step(&step(&batch)).unwrap();
    let found = total(&output.terms).unwrap().backward().unwrap();
    // The same branches without rescaling.
    let own = state.iter().map(|(name, t)| (name.strip_prefix("student.").unwrap().to_string(), t.clone()));
    let params = Params::from_tensors(own.collect(), DType::F32, &Device::Cpu);
    let family = &retort_models::info("resnet8").unwrap().family;
    let peers = Peers::new("resnet8", family, &DIGITS, &PeersConfig::one(family, 3), &params.root()).unwrap();
    let outputs = peers.forward(&batch.images, Mode::Train, Taps::default()).unwrap().peers;
    let logits: Vec<Tensor> = outputs.iter().map(|peer| peer.logits.clone()).collect();
    let settings = RampedSettings::default();
    let terms = cl_ilr(&logits, batch.labels().unwrap(), &settings, settings.ramp(0)).unwrap();
    let plain = total(&terms).unwrap().backward().unwrap();
    let groups = phase.objective.groups();
    let mut trunk = 0;
    for ((name, var), (_, other)) in groups[0].params.iter().zip(params.trainable()) {
        let factor = if name.contains("layer3_") || name.contains("classifier_") { 1.0 } else { 3.0 };
        trunk += usize::from(factor == 3.0);
        let (found, plain) = (values(found.get(var).unwrap()), values(plain.get(&other).unwrap()));
        let close = |(f, p): (&f32, &f32)| (f * factor - p).abs() < 1e-5 + 1e-3 * p.abs();
        assert!(found.iter().zip(&plain).all(close), "{name}");
    }
    assert!(trunk > 0 && trunk < groups[0].params.len());
}

#[test]
fn a_meta_step_moves_the_weights_of_pairs_and_nothing_else() {
    let run = Run::of(r#"{"kind":"lmcl","meta_every":2}"#);
    let mut phase = run.phase();
    let batch = run.batch(&phase);
    let mut after = |number: usize| {
        phase.objective.step(&Step { step: number, ..step(&batch) }).unwrap();
        let before = phase.objective.state().unwrap();
        phase.objective.after_step().unwrap();
        let after = phase.objective.state().unwrap();
        // The optimiser has no momentum yet before its first step.
        let old: Tensors =
            after.iter().map(|(name, t)| (name.clone(), before.get(name).unwrap_or(t).clone())).collect();
        (moved(&old, &after), after.len() - before.len())
    };
    assert_eq!(after(0), (vec![], 0), "it is not due");
    let (names, new) = after(1);
    // A weight and a bias for each of two networks and three stages.
    assert_eq!(names.iter().filter(|name| name.starts_with("pair-weights.")).count(), 12, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("pair-weights.") || name.starts_with("memory.")), "{names:?}");
    assert_eq!(new, 12, "a buffer for each");
    assert!(!phase.objective.groups().iter().flat_map(|g| &g.params).any(|(name, _)| name.starts_with("pair-weights")));

    let run = Run::of(r#"{"kind":"lmcl","meta":"off"}"#);
    let mut phase = run.phase();
    phase.objective.step(&step(&batch)).unwrap();
    let before = phase.objective.state().unwrap();
    phase.objective.after_step().unwrap();
    assert!(moved(&before, &phase.objective.state().unwrap()).is_empty());
    assert!(before.keys().all(|name| !name.starts_with("pair-weights")));
}

#[test]
fn the_meta_gradient_is_the_slope_of_the_cross_entropy_after_a_virtual_step() {
    const RATE: f64 = 0.02;
    const REACH: f64 = 0.1;
    let run = Run::of(r#"{"kind":"lmcl","meta_every":1}"#);
    let mut phase = run.phase();
    let batch = run.batch(&phase);
    let start = phase.objective.state().unwrap();
    phase.objective.step(&Step { lr: RATE, ..step(&batch) }).unwrap();
    phase.objective.after_step().unwrap();
    let end = phase.objective.state().unwrap();
    // The first buffer of SGD is the gradient with weight decay.
    let own = start.iter().filter(|(name, _)| name.starts_with("pair-weights."));
    let gradient = own.map(|(name, weight)| {
        let buffer = &end[&format!("memory.{name}.first")];
        (name.clone(), (buffer - (weight * 5e-4).unwrap()).unwrap())
    });
    let gradient: Tensors = gradient.collect();
    let length = gradient.values().map(|g| number(&g.sqr().unwrap().sum_all().unwrap())).sum::<f64>().sqrt();
    assert!(length > 0.0);
    // The projections moved along the gradient by so much.
    let after = |reach: f64| {
        let mut state = start.clone();
        for (name, g) in &gradient {
            state.insert(name.clone(), (&start[name] + (g * (reach / length)).unwrap()).unwrap());
        }
        let mut phase = run.phase();
        phase.objective.load_state(&state).unwrap();
        let terms = phase.objective.step(&step(&batch)).unwrap().terms;
        let names: Vec<&str> = terms.iter().map(|term| term.name).collect();
        assert_eq!(names, ["ce", "lmcl-logit-kd", "vcl", "soft-vcl", "icl", "soft-icl"]);
        let grads = total(&terms[2..]).unwrap().backward().unwrap();
        for (_, var) in phase.objective.groups().iter().flat_map(|group| &group.params) {
            if let Some(grad) = grads.get(var) {
                var.set(&(var.as_tensor().copy().unwrap().detach() - (grad * RATE).unwrap()).unwrap()).unwrap();
            }
        }
        let terms = phase.objective.step(&step(&batch)).unwrap().terms;
        let heads = terms[0].parts.iter().filter(|(name, _)| name.starts_with("head"));
        heads.map(|(_, value)| number(value)).sum::<f64>()
    };
    let slope = (after(REACH) - after(-REACH)) / (2.0 * REACH);
    assert!((slope - length).abs() < 0.05 * length, "expected a slope of {length}, found {slope}");
}

#[test]
fn banks_take_the_embeddings_of_the_batch_after_the_step() {
    let run = Run::of(r#"{"kind":"mcl-memory","negatives":8}"#);
    let mut phase = run.phase();
    let batch = run.batch(&phase);
    let bank = |phase: &Phase, k: usize| -> Vec<Vec<f32>> {
        phase.objective.state().unwrap()[&format!("memory.bank{k}")].to_vec2().unwrap()
    };
    let start = [0, 1].map(|k| bank(&phase, k));
    phase.objective.step(&step(&batch)).unwrap();
    assert!([0, 1].map(|k| bank(&phase, k)) == start, "the step itself leaves them");
    phase.objective.after_step().unwrap();
    for (k, start) in start.iter().enumerate() {
        for (row, (old, new)) in start.iter().zip(bank(&phase, k)).enumerate() {
            assert_eq!(*old != new, batch.index.contains(&(row as u32)), "row {row}");
        }
    }
    let terms = |step_number| {
        let mut phase = run.phase();
        let output = phase.objective.step(&Step { step: step_number, ..step(&batch) }).unwrap();
        output.terms.iter().map(|term| number(&term.value)).collect::<Vec<_>>()
    };
    assert_eq!(terms(3), terms(3));
    assert_ne!(terms(3)[1..], terms(4)[1..], "other negatives in another step");
}

#[test]
fn copies_follow_their_networks_and_the_classifiers_stay() {
    let after = |momentum: f64| {
        let json = format!(r#"{{"kind":"mcl-moco","queue":20,"dim":8,"momentum":{momentum}}}"#);
        let run = Run::of(&json);
        let start = run.phase().objective.state().unwrap();
        let (summary, phase) = run.trained();
        assert!(summary.epochs[0].evaluations.is_empty() && summary.epochs[0].train_accuracy.is_none());
        (start, phase.objective.state().unwrap())
    };
    let same = |a: &Tensor, b: &Tensor| values(a) == values(b);
    let (start, end) = after(1.0);
    for name in ["student-key.conv1.weight", "peer1-key-head.linear.weight", "student.fc.weight", "peer1.fc.bias"] {
        assert!(same(&start[name], &end[name]), "{name}");
    }
    assert!(!same(&start["student.conv1.weight"], &end["student.conv1.weight"]));
    assert!(!same(&start["peer1-head.linear.weight"], &end["peer1-head.linear.weight"]));
    assert!(same(&start["student-key.conv1.weight"], &start["student.conv1.weight"]), "they start as copies");
    assert!(!same(&start["memory.queue0"], &end["memory.queue0"]));
    // 60 keys went into 20 places.
    assert_eq!(end["memory.position"].to_vec1::<f64>().unwrap(), [0.0]);
    let (_, end) = after(0.0);
    for (key, query) in
        [("student-key.conv1.weight", "student.conv1.weight"), ("peer1-key-head.linear.bias", "peer1-head.linear.bias")]
    {
        assert!(same(&end[key], &end[query]), "{key}");
    }
}

#[test]
fn batches_hold_several_images_of_each_class() {
    let each = |json: &str, batch_size: usize| {
        let run = Run { batch_size, ..Run::of(json) };
        let phase = run.phase();
        let batch = run.batch(&phase);
        let mut labels = batch.label_ids.clone();
        labels.sort_unstable();
        labels.dedup();
        (batch.len() / labels.len(), batch.len() % labels.len())
    };
    // The smallest number that leaves no more classes than there are.
    assert_eq!(each(r#"{"kind":"mcl"}"#, 15), (3, 0));
    assert_eq!(each(r#"{"kind":"mcl"}"#, 16), (2, 0));
    assert_eq!(each(r#"{"kind":"lmcl"}"#, 24), (3, 0));
    assert_eq!(each(r#"{"kind":"lmcl","per_class":4}"#, 24), (4, 0));
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    let refusal = |json: &str| Run::of(json).refusal();
    for kind in ["dml", "kdcl", "one", "cl-ilr", "okddip", "ffl", "mfef", "mcl", "mcl-memory", "mcl-moco", "lmcl"] {
        let text = refusal(&format!(r#"{{"kind":"{kind}","others":16}}"#));
        assert!(text.contains(kind) && text.contains("`others`") && text.contains("16"), "{text}");
        let text = refusal(&format!(r#"{{"kind":"{kind}","others":{}}}"#, u64::from(u32::MAX)));
        assert!(text.contains("`others`"), "{text}");
    }
    for kind in ["dml", "kdcl", "okddip", "ffl", "mcl", "mcl-memory", "mcl-moco", "lmcl"] {
        let text = refusal(&format!(r#"{{"kind":"{kind}","others":["resnet14","resnet9"]}}"#));
        assert!(text.contains("resnet9") && text.contains("did you mean"), "{kind}: {text}");
    }
    let expect = |json: &str, parts: &[&str]| {
        let text = refusal(json);
        parts.iter().for_each(|part| assert!(text.contains(part), "{json}: {part} in {text}"));
    };
    expect(r#"{"kind":"okddip","others":1}"#, &["`others`", "2 to 15", "found 1"]);
    expect(r#"{"kind":"okddip","others":["resnet14","resnet8x4"]}"#, &["64 of `resnet14`", "256 of `resnet8x4`"]);
    expect(r#"{"kind":"okddip","others":["resnet14","resnet8"],"form":"branches"}"#, &["`others`", "branches"]);
    expect(r#"{"kind":"mcl","per_class":4}"#, &["`per_class`", "10 classes", "found 4", "15"]);
    expect(r#"{"kind":"mcl","per_class":1}"#, &["`per_class`", "at least 2"]);
    expect(r#"{"kind":"lmcl","per_class":15}"#, &["`per_class`", "found 15"]);
    expect(r#"{"kind":"lmcl","meta_every":0}"#, &["`meta_every`"]);
    expect(r#"{"kind":"lmcl","meta":"off","projection":64}"#, &["`projection`", "off"]);
    expect(r#"{"kind":"mfef","fusion_weight_decay":-1.0}"#, &["`fusion_weight_decay`", "-1"]);
    expect(r#"{"kind":"mcl-memory","negatives":0}"#, &["`negatives`", "found 0"]);
    expect(r#"{"kind":"mcl-memory","momentum":2.0}"#, &["momentum", "2"]);
    expect(r#"{"kind":"mcl-moco","momentum":-0.1}"#, &["`momentum`", "-0.1"]);
    expect(r#"{"kind":"mcl-moco","queue":0}"#, &["`queue`"]);
    for (kind, field) in [("mcl", "loss\":{\"tau\":0.0}"), ("mcl-memory", "tau\":0.0"), ("mcl-moco", "tau\":0.0")] {
        expect(&format!(r#"{{"kind":"{kind}","{field}}}"#), &["tau", kind]);
    }
    for kind in ["one", "cl-ilr", "okddip", "ffl", "mfef", "lmcl", "kdcl"] {
        expect(&format!(r#"{{"kind":"{kind}","loss":{{"temperature":0.0}}}}"#), &["temperature", "0"]);
    }
    expect(r#"{"kind":"ffl","others":["mlp-512-256-128"]}"#, &["`mlp-512-256-128`", "maps"]);
    expect(r#"{"kind":"lmcl","others":["mlp-512-256-128"]}"#, &["`mlp-512-256-128`", "stages"]);
    let text = Run { student: "mlp-512-256-128", ..Run::of(r#"{"kind":"one"}"#) }.refusal();
    assert!(text.contains("groups of blocks"), "{text}");
    let text = Run { views: 1, ..Run::of(r#"{"kind":"kdcl","others":2}"#) }.refusal();
    assert!(text.contains("3 view") && text.contains("found 1"), "{text}");
    let text = Run { batch_size: 17, ..Run::of(r#"{"kind":"mcl"}"#) }.refusal();
    assert!(text.contains("`batch_size` = 17"), "{text}");
    let partners = Sampling::SameClassPartners { partners: 1 };
    let text = Run { sampling: partners, ..Run::of(r#"{"kind":"mcl"}"#) }.refusal();
    assert!(text.contains("ClassBalanced") && text.contains("SameClassPartners"), "{text}");
    let of_class = |wanted: &[u32], most: usize| {
        let (train, _) = data();
        let rows: Vec<u32> =
            (0u32..).take(train.len()).filter(|&row| wanted.contains(&train.labels()[row as usize])).collect();
        let mut kept = rows.clone();
        kept.truncate(most);
        train.select(&kept).unwrap()
    };
    let single = Run { train: of_class(&[3], 6), ..Run::of(r#"{"kind":"mcl-memory"}"#) }.refusal();
    assert!(single.contains("at least 2 classes, found 1"), "{single}");
    let few = Run { train: of_class(&[3], 1), ..Run::of(r#"{"kind":"mcl-memory"}"#) }.refusal();
    assert!(few.contains("class 3"), "{few}");
}
