//! What the systems of self-distillation promise beyond what holds for every system.

use crate::systems::{Case, leaves, named, refusal};
use crate::{StopAfter, bytes, losses};
use candle_core::{DType, Device, Tensor, Var};
use retort_datasets::{Batch, Loader, LoaderConfig};
use retort_nn::{Checkpoint, Mode, Network, Params, Taps, Tensors};
use retort_trainers::engine::{Phase, Silent, Step, StepOutput};
use retort_trainers::{Error, Kind, SystemConfig};
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn case(json: &str) -> Case {
    Case::new(serde_json::from_str(json).unwrap(), vec![], vec![])
}

/// Every system of this family with its published settings.
fn family() -> Vec<Case> {
    let systems = SystemConfig::defaults().into_iter().filter(|system| system.info().kind == Kind::SelfDistillation);
    systems.map(|system| Case::new(system, vec![], vec![])).collect()
}

/// Other settings than the published ones.
const VARIANTS: &[&str] = &[
    r#"{"kind":"zipf-ls","ranking":"logits","loss":{"loss_mask":true}}"#,
    r#"{"kind":"zipf-ls","ranking":"friend","loss":{"distribution":{"kind":"exponential-decay","exp_lambda":0.5}}}"#,
    r#"{"kind":"zipf-ls","upsample":false,"loss":{"distribution":{"kind":"random-uniform"}}}"#,
    r#"{"kind":"zipf-ls","deeplayer":3,"loss":{"distribution":{"kind":"random-pareto","shape":1.5}}}"#,
    r#"{"kind":"mixskd","loss":{"mix_cross_entropy":false,"train_discriminators":false}}"#,
    r#"{"kind":"mixskd","loss":{"discriminators":"adversarial"}}"#,
    r#"{"kind":"mixskd","loss":{"discriminators":"off"}}"#,
    r#"{"kind":"frskd","width":1,"depth":1,"refined":"before-relu","loss":{"detach_teacher":false}}"#,
    r#"{"kind":"bake","partners":1,"loss":{"omega":0.9}}"#,
    r#"{"kind":"sfr","smoothing":"even","assignment":"same-place"}"#,
    r#"{"kind":"sfr","smoothing":"fixed","assignment":"random"}"#,
    r#"{"kind":"sfr","loss":{"node_weights":"cross-reference","many_to_one":{"mode":"attention","tau":0.5}}}"#,
    r#"{"kind":"sfr","loss":{"alpha":0.0}}"#,
    r#"{"kind":"sfr","smoothing":"none","loss":{"beta":0.0,"l2_weight":0.0}}"#,
    r#"{"kind":"sfr","loss":{"alpha":0.0,"beta":0.0}}"#,
    r#"{"kind":"mixed-images","method":"cutmix"}"#,
    r#"{"kind":"mixed-images","method":"manifold-mixup"}"#,
    r#"{"kind":"mixed-images","method":"mixup","alpha":1.0}"#,
];

/// A batch as the loop hands it to the first phase.
fn batch(case: &Case, phase: &Phase) -> Batch {
    let config = LoaderConfig {
        batch_size: 15,
        sampling: phase.plan.sampling,
        drop_last: false,
        views: phase.plan.views.clone(),
        seed: 1,
    };
    Loader::new(case.train.clone(), config).unwrap().epoch(0).next().unwrap().unwrap()
}

fn step(phase: &mut Phase, batch: &Batch) -> StepOutput {
    phase.objective.step(&Step { batch, epoch: 0, step: 0, lr: 0.02, turn: 0 }).unwrap()
}

/// The plain network with these values, and its store.
fn network(weights: Tensors) -> (Box<dyn Network>, Params) {
    let params = Params::from_tensors(weights, DType::F32, &Device::Cpu);
    (retort_models::build("resnet8", &crate::DIGITS, &params.root()).unwrap(), params)
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn under(state: &Tensors, prefix: &str) -> Tensors {
    let found = state.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone())));
    found.collect()
}

/// Cuts a run off after so many steps and goes on from what `change` makes of the checkpoint.
fn resumed(case: &Case, cut: usize, change: impl Fn(&mut Tensors)) -> retort_trainers::Result<Vec<Phase>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.safetensors");
    let stop = AtomicBool::new(false);
    let result = case.run(&mut case.phases()?, Some(&path), &stop, &mut StopAfter(cut, &stop));
    assert!(matches!(result, Err(Error::Interrupted)));
    edit(&path, change);
    let mut phases = case.phases()?;
    case.run(&mut phases, Some(&path), &AtomicBool::new(false), &mut Silent)?;
    Ok(phases)
}

fn edit(path: &Path, change: impl Fn(&mut Tensors)) {
    let mut checkpoint = Checkpoint::load(path).unwrap();
    change(&mut checkpoint.tensors);
    checkpoint.save(path).unwrap();
}

fn state(phases: &[Phase]) -> Tensors {
    phases.last().unwrap().objective.state().unwrap()
}

#[test]
fn other_settings_train_and_go_on_bit_for_bit() {
    for json in VARIANTS {
        let case = case(json);
        let (summary, expected, _) = leaves(&case);
        assert!(summary.epochs.iter().all(|epoch| epoch.loss.is_finite()), "{json}");
        assert!(summary.epochs[0].terms != summary.epochs[1].terms, "{json} learns");
        assert!(bytes(&state(&resumed(&case, 6, |_| ()).unwrap())) == expected, "{json}");
    }
}

#[test]
fn what_a_run_leaves_is_the_plain_network_which_starts_as_everywhere() {
    let ce = losses(r#"[{"method":"ce"}]"#);
    let plain = Case { epochs: 0, ..Case::new(SystemConfig::default(), ce, vec![]) }.trained().weights;
    let variants = VARIANTS.iter().map(|json| case(json));
    for case in family().into_iter().chain(variants) {
        let id = case.system.id();
        let mut left = Case { epochs: 0, ..case }.trained();
        assert!(left.network(&Device::Cpu).is_ok(), "{}", left.model);
        if id == "virtual-softmax" {
            // It has no bias.
            assert_eq!(values(&left.weights["fc.bias"]), [0.0; 10]);
            left.weights.insert("fc.bias".into(), plain["fc.bias"].clone());
        }
        assert_eq!(left.weights.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
        assert!(bytes(&left.weights) == bytes(&plain), "{id}");
    }
}

#[test]
fn partners_of_cs_kd_get_no_gradient_and_move_the_running_statistics_once_more() {
    let case = case(r#"{"kind":"cs-kd"}"#);
    let mut phases = case.phases().unwrap();
    let mut batch = batch(&case, &phases[0]);
    assert_eq!(batch.len(), 30);
    let before = phases[0].objective.weights().unwrap();
    let images = Var::from_tensor(&batch.images).unwrap();
    batch.images = images.as_tensor().clone();
    let output = step(&mut phases[0], &batch);
    let after = phases[0].objective.weights().unwrap();

    let mut total = output.terms[0].weighted().unwrap();
    for term in &output.terms[1..] {
        total = (total + term.weighted().unwrap()).unwrap();
    }
    let grads = total.backward().unwrap();
    let gradient = values(grads.get(&images).unwrap());
    let (anchors, partners) = gradient.split_at(15 * 64);
    assert!(anchors.iter().any(|g| *g != 0.0) && partners.iter().all(|g| *g == 0.0));

    let (plain, params) = network(before);
    let mut seen = vec![];
    for start in [0, 15] {
        let rows = batch.images.narrow(0, start, 15).unwrap().detach();
        plain.forward(&rows, Mode::Train, Taps::default()).unwrap();
        seen.push(bytes(&params.snapshot().unwrap()));
    }
    assert!(seen[0] != bytes(&after), "the anchors alone");
    assert!(seen[1] == bytes(&after), "anchors, then partners");
}

#[test]
fn what_is_kept_between_steps_is_in_the_checkpoint_and_is_needed() {
    let rows = [
        ("ps-kd", vec!["predictions"]),
        ("dlb", vec!["images", "labels", "logits"]),
        ("sfr", vec!["counts", "sums", "table"]),
    ];
    for (id, names) in rows {
        let case = Case::new(named(id), vec![], vec![]);
        let (_, phases) = case.straight();
        let expected = state(&phases);
        assert_eq!(under(&expected, "memory.").keys().collect::<Vec<_>>(), names, "{id}");
        let dropped = resumed(&case, 6, |tensors| tensors.retain(|name, _| !name.contains(".memory.")));
        match dropped {
            // Without a last batch the step is a first one.
            Ok(phases) => assert!(id == "dlb" && bytes(&state(&phases)) != bytes(&expected)),
            Err(error) => {
                let text = error.to_string();
                assert!(id != "dlb" && text.contains(names[0]) && text.contains("missing"), "{id}: {text}");
            }
        }
    }
}

#[test]
fn ps_kd_starts_by_the_labels_and_keeps_the_predictions_of_each_row() {
    let case = case(r#"{"kind":"ps-kd"}"#);
    let mut phases = case.phases().unwrap();
    let bank = |phases: &[Phase]| state(phases)["memory.predictions"].to_vec2::<f32>().unwrap();
    let before = bank(&phases);
    for (row, &label) in before.iter().zip(case.train.labels()) {
        assert!(row.iter().enumerate().all(|(c, p)| *p == f32::from(u8::from(c == label as usize))));
    }
    let batch = batch(&case, &phases[0]);
    let output = step(&mut phases[0], &batch);
    assert_eq!(bank(&phases), before, "nothing moves before the optimiser has");
    phases[0].objective.after_step().unwrap();
    let said = output.logits.unwrap().to_vec2::<f32>().unwrap();
    let after = bank(&phases);
    for row in 0..60 {
        match batch.index.iter().position(|&index| index as usize == row) {
            Some(place) => {
                let sum: f64 = said[place].iter().map(|z| f64::from(*z).exp()).sum();
                let probability = |z: &f32| f64::from(*z).exp() / sum;
                let close = |(p, z): (&f32, &f32)| (f64::from(*p) - probability(z)).abs() < 1e-6;
                assert!(after[row].iter().zip(&said[place]).all(close), "row {row}");
            }
            None => assert_eq!(after[row], before[row]),
        }
    }
}

#[test]
fn the_reference_of_mixskd_forgets_to_train_its_discriminators() {
    let end = |json: &str, epochs: usize| {
        let case = Case { epochs, ..case(json) };
        state(&case.straight().1)
    };
    let part = |state: &Tensors, name: &str| bytes(&under(state, name));
    let reference = r#"{"kind":"mixskd","loss":{"mix_cross_entropy":false,"train_discriminators":false}}"#;
    let ours = r#"{"kind":"mixskd"}"#;
    for name in ["discriminators.", "self-teacher."] {
        let (start, left) = (part(&end(reference, 0), name), part(&end(reference, 1), name));
        assert!(!start.is_empty() && start == left, "{name}");
        assert!(part(&end(ours, 1), name) != start, "{name}");
    }
    let off = end(r#"{"kind":"mixskd","loss":{"discriminators":"off"}}"#, 0);
    assert!(under(&off, "discriminators.").is_empty());
}

#[test]
fn the_teacher_of_tf_kd_self_is_trained_first_and_stays_to_the_bit() {
    let case = case(r#"{"kind":"tf-kd-self"}"#);
    let mut phases = case.phases().unwrap();
    let no_stop = AtomicBool::new(false);
    let first = case.run(&mut phases[..1], None, &no_stop, &mut Silent).unwrap();
    let teacher = bytes(&under(&state(&phases[..1]), "teacher."));
    let second = case.run(&mut phases[1..], None, &no_stop, &mut Silent).unwrap();
    assert!(bytes(&under(&state(&phases), "teacher.")) == teacher);
    assert!(bytes(&under(&state(&phases), "student.")) != teacher);
    assert!(first.epochs[1].evaluations.contains_key("teacher"));
    assert!(second.epochs[1].evaluations["student"].agreement.is_some());
    // Cut off in the second phase, where the teacher comes out of the checkpoint: 8 steps in the first one.
    let expected = state(&case.straight().1);
    assert!(bytes(&under(&expected, "teacher.")) == teacher);
    for cut in [8, 10, 13] {
        assert!(bytes(&state(&resumed(&case, cut, |_| ()).unwrap())) == bytes(&expected), "cut after step {cut}");
    }
}

#[test]
fn the_virtual_softmax_leaves_no_bias() {
    let weights = case(r#"{"kind":"virtual-softmax"}"#).trained().weights;
    assert_eq!(values(&weights["fc.bias"]), [0.0; 10]);
}

#[test]
fn auxiliary_classifiers_are_judged_by_themselves() {
    let names = |json: &str| {
        let (summary, _) = Case { epochs: 1, ..case(json) }.straight();
        summary.epochs[0].evaluations.keys().cloned().collect::<Vec<_>>()
    };
    for json in [r#"{"kind":"dks"}"#, r#"{"kind":"byot"}"#, r#"{"kind":"mixskd"}"#, VARIANTS[3]] {
        assert_eq!(names(json), ["head1", "head2", "student"], "{json}");
    }
    assert_eq!(names(r#"{"kind":"frskd"}"#), ["student"]);
}

#[test]
fn sfr_leaves_out_what_is_switched_off() {
    let terms = |json: &str| {
        let (summary, phases) = Case { epochs: 1, ..case(json) }.straight();
        let terms = summary.epochs[0].terms.keys().filter(|name| !name.contains('.')).cloned().collect::<Vec<_>>();
        (terms, !under(&state(&phases), "adapters.").is_empty())
    };
    assert_eq!(terms(r#"{"kind":"sfr"}"#).0, ["sfr-dls", "sfr-emd-l2", "sfr-many-to-one"]);
    let all_off = r#"{"kind":"sfr","smoothing":"none","loss":{"alpha":0.0,"beta":0.0}}"#;
    assert_eq!(terms(all_off), (vec!["ce".to_string()], false));
}

#[test]
fn settings_and_networks_that_do_not_fit_are_refused_when_the_phases_are_made() {
    let settings = [
        (r#"{"kind":"ps-kd","alpha":1.5}"#, "`alpha` must be in 0 ..= 1, found 1.5"),
        (r#"{"kind":"bake","partners":0}"#, "`partners`"),
        (r#"{"kind":"bake","loss":{"omega":1.0}}"#, "omega"),
        (r#"{"kind":"dlb","temperature":0.0}"#, "temperature"),
        (r#"{"kind":"ddgsd","feature_weight":-1.0}"#, "feature_weight"),
        (r#"{"kind":"dks","temperature":0.0}"#, "`temperature`"),
        (r#"{"kind":"byot","feature_weight":-1.0}"#, "feature_weight"),
        (r#"{"kind":"sad","power":0.5}"#, "power"),
        (r#"{"kind":"frskd","loss":{"beta":-1.0}}"#, "beta"),
        (r#"{"kind":"frskd","width":0}"#, "width"),
        (r#"{"kind":"mixskd","alpha":0.0}"#, "`alpha`"),
        (r#"{"kind":"mixskd","loss":{"temperature":-1.0}}"#, "temperature"),
        (r#"{"kind":"zipf-ls","deeplayer":4}"#, "`deeplayer` must be in 1 ..= 3, found 4"),
        (r#"{"kind":"zipf-ls","deeplayer":2,"ranking":"logits"}"#, "`deeplayer`"),
        (r#"{"kind":"zipf-ls","loss":{"distribution":{"kind":"linear-decay","smallest_prob":0.5}}}"#, "smallest_prob"),
        (r#"{"kind":"tf-kd-self","alpha":2.0}"#, "alpha"),
        (r#"{"kind":"sfr","loss":{"reduction":3}}"#, "`reduction` must divide the 64 channels"),
        (r#"{"kind":"sfr","loss":{"epsilon":2.0}}"#, "epsilon"),
        (
            r#"{"kind":"sfr","assignment":"random","loss":{"node_weights":"cross-reference"}}"#,
            "`loss.node_weights` has no effect",
        ),
        (r#"{"kind":"sfr","assignment":"random","loss":{"alpha":0.0}}"#, "`assignment` has no effect"),
        (r#"{"kind":"sfr","smoothing":"none","loss":{"epsilon":0.2}}"#, "`loss.epsilon` has no effect"),
        (r#"{"kind":"zipf-ls","ranking":"logits","upsample":false}"#, "`upsample` has no effect"),
        (r#"{"kind":"zipf-ls","loss":{"heads_weight":0.5}}"#, "`loss.heads_weight` has no effect"),
        (
            r#"{"kind":"mixskd","loss":{"discriminators":"off","train_discriminators":false}}"#,
            "`loss.train_discriminators` has no effect",
        ),
        (r#"{"kind":"mixed-images","alpha":-1.0}"#, "`alpha`"),
    ];
    for (json, expected) in settings {
        let text = refusal(&case(json));
        assert!(text.contains(expected), "{json}: {text}");
    }
    let with = |json: &str, student: &'static str, image: [usize; 2]| {
        let mut case = case(json);
        (case.student, case.model.image) = (student, image);
        refusal(&case)
    };
    let text = with(r#"{"kind":"sad"}"#, "resnet8", [6, 6]);
    assert!(text.contains("half as large") && text.contains("[3, 3]") && text.contains("[2, 2]"), "{text}");
    // A perceptron has no stages.
    for json in [
        r#"{"kind":"sad"}"#,
        r#"{"kind":"dks"}"#,
        r#"{"kind":"byot"}"#,
        r#"{"kind":"frskd"}"#,
        r#"{"kind":"mixskd"}"#,
        r#"{"kind":"zipf-ls"}"#,
        r#"{"kind":"zipf-ls","deeplayer":2}"#,
        r#"{"kind":"sfr"}"#,
        r#"{"kind":"mixed-images","method":"manifold-mixup"}"#,
    ] {
        assert!(!with(json, "mlp-512-256-128", [8, 8]).is_empty(), "{json}");
    }
    for case in family() {
        let (id, unlabelled) = (case.system.id(), case.train.without_labels().unwrap());
        let text = refusal(&Case { train: unlabelled, ..case });
        assert!(text.contains("expected a class for every training row"), "{id}: {text}");
    }
    let mut ddgsd = case(r#"{"kind":"ddgsd"}"#);
    ddgsd.views.truncate(1);
    assert!(refusal(&ddgsd).contains("2 view(s)"));
}
