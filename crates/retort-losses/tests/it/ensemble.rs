//! Several teachers.

use crate::fixture::{Bench, Side, flat, networks, norms, random, random_side, scalar, small, spec, train_labels};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::output::kd;
use retort_losses::{BuildContext, Context, EnsembleDistiller, EnsembleRule, LossConfig, Result, Term, merged_logits};
use retort_nn::{NetworkSpec, Outputs, Params, Seed};

const CPU: &Device = &Device::Cpu;

fn parse(json: &str) -> LossConfig {
    small(serde_json::from_str(json).unwrap())
}

/// A loss for several teachers, with the parameters that it declared.
struct Lifted {
    params: Params,
    init_params: Params,
    loss: EnsembleDistiller,
}

fn build(config: &LossConfig, student: &NetworkSpec, teachers: &[NetworkSpec], dtype: DType) -> Result<Lifted> {
    build_by(config, student, teachers, dtype, EnsembleRule::default())
}

fn build_by(
    config: &LossConfig,
    student: &NetworkSpec,
    teachers: &[NetworkSpec],
    dtype: DType,
    rule: EnsembleRule,
) -> Result<Lifted> {
    // The stores and seeds of `fixture::build`.
    let params = |name: &str| Params::new(Seed::root(3).child(name), dtype, CPU);
    let (params, init_params) = (params("parts"), params("init"));
    let (labels, norms): (_, Vec<_>) = (train_labels(), teachers.iter().map(|t| norms(t, dtype)).collect());
    let context = |(teacher, norms)| BuildContext {
        student,
        teacher: Some(teacher),
        train_labels: &labels,
        seed: Seed::root(3),
        scope: params.root(),
        init_scope: init_params.root(),
        teacher_norms: Some(norms),
    };
    let contexts: Vec<_> = teachers.iter().zip(norms.iter().map(Vec::as_slice)).map(context).collect();
    let loss = EnsembleDistiller::build(config, &contexts, rule)?;
    Ok(Lifted { params, init_params, loss })
}

/// The teacher of the fixture and another of the same shapes.
fn two(config: &LossConfig) -> (NetworkSpec, [NetworkSpec; 2]) {
    let (student, teacher) = networks(config);
    let other = NetworkSpec { name: "other".into(), ..teacher.clone() };
    (student, [teacher, other])
}

/// The batch of a bench, its teacher left out.
fn batch(bench: &Bench) -> Context<'_> {
    Context {
        student: &bench.student.outputs,
        teacher: None,
        labels: &bench.labels,
        label_ids: &bench.label_ids,
        index: &bench.index,
        epoch: bench.epoch,
    }
}

fn outputs(sides: &[Side]) -> Vec<Outputs> {
    sides.iter().map(|side| side.outputs.clone()).collect()
}

fn sides(teachers: &[NetworkSpec], b: usize, dtype: DType) -> Vec<Side> {
    teachers.iter().map(|teacher| random_side(teacher, b, dtype)).collect()
}

fn student_gradient(bench: &Bench, term: &Term) -> Vec<f64> {
    let grads = term.weighted().unwrap().backward().unwrap();
    let of = |(_, var): &(String, Var)| grads.get(var).map_or_else(|| vec![0.0; var.elem_count()], flat);
    bench.student.vars.iter().flat_map(of).collect()
}

fn close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: {a} against {b}");
    }
}

// Merged logits

#[test]
fn merged_probabilities_are_the_mean() {
    let softmax = |z: &Tensor, t: f64| candle_nn::ops::softmax(&(z / t).unwrap(), 1).unwrap();
    let z = ["a", "b", "c"].map(|label| (random(label, &[4, 5], DType::F64) * 6.0).unwrap());
    let all: Vec<&Tensor> = z.iter().collect();
    for t in [0.5, 1.0, 4.0] {
        let merged = merged_logits(&all, t, EnsembleRule::ProbabilityMean).unwrap();
        let mean = (z.iter().skip(1).fold(softmax(&z[0], t), |sum, z| (sum + softmax(z, t)).unwrap()) / 3.0).unwrap();
        close(&flat(&softmax(&merged, t)), &flat(&mean), 1e-13, "probabilities");
    }
    let merged = merged_logits(&all, 4.0, EnsembleRule::LogitMean).unwrap();
    close(&flat(&merged), &flat(&((&z[0] + &z[1] + &z[2]).unwrap() / 3.0).unwrap()), 1e-14, "logits");
    // Of one teacher the distribution is its own.
    let alone = merged_logits(&all[..1], 4.0, EnsembleRule::ProbabilityMean).unwrap();
    close(&flat(&softmax(&alone, 1.0)), &flat(&softmax(&z[0], 1.0)), 1e-13, "alone");
}

#[test]
fn merging_has_no_order_and_no_overflow() {
    let z = ["a", "b", "c"].map(|label| (random(label, &[4, 5], DType::F32) * 6.0).unwrap());
    for rule in [EnsembleRule::ProbabilityMean, EnsembleRule::LogitMean] {
        let merged = |order: [usize; 3]| flat(&merged_logits(&order.map(|i| &z[i]), 4.0, rule).unwrap());
        close(&merged([2, 0, 1]), &merged([0, 1, 2]), 1e-7, "order");
        for scale in [80.0, 1e4] {
            let wide = |label: &str| (random(label, &[4, 5], DType::F32).sign().unwrap() * scale).unwrap();
            let merged = merged_logits(&[&wide("a"), &wide("b")], 1.0, rule).unwrap();
            assert!(flat(&merged).iter().all(|z| z.is_finite()));
        }
    }
    // Opposite certainties are half of each: the others stay where they were.
    let (a, b) = (Tensor::new(&[[80f32, -80.0]], CPU).unwrap(), Tensor::new(&[[-80f32, 80.0]], CPU).unwrap());
    let merged = flat(&merged_logits(&[&a, &b], 1.0, EnsembleRule::ProbabilityMean).unwrap());
    close(&merged, &[0.5f64.ln(); 2], 1e-7, "halves");
}

#[test]
fn what_cannot_be_merged_is_an_error() {
    let (a, b) = (random("a", &[4, 5], DType::F32), random("b", &[4, 6], DType::F32));
    let message = |logits: &[&Tensor], t| merged_logits(logits, t, EnsembleRule::default()).unwrap_err().to_string();
    assert!(message(&[], 4.0).contains("at least one teacher"));
    let shapes = message(&[&a, &b], 4.0);
    assert!(shapes.contains("[4, 5]") && shapes.contains("[4, 6]"), "{shapes}");
    assert!(message(&[&a], 0.0).contains("`temperature`"));
    let var = Var::from_tensor(&a).unwrap();
    assert!(!merged_logits(&[&var], 4.0, EnsembleRule::default()).unwrap().track_op());
}

#[test]
fn losses_that_can_be_merged_say_so() {
    let mergeable: Vec<&str> =
        LossConfig::defaults().iter().filter(|c| c.teacher_temperature().is_some()).map(LossConfig::id).collect();
    assert_eq!(mergeable, ["kd", "dkd"]);
    assert_eq!(parse(r#"{"method": "kd", "temperature": 2.5}"#).teacher_temperature(), Some(2.5));
    let uniform = parse(r#"{"method": "sinkhorn-logits", "temperature": 2.0, "cost": "uniform"}"#);
    assert_eq!(uniform.teacher_temperature(), Some(2.0));
    // By their word: the loss depends on the softened probabilities alone.
    for json in [
        r#"{"method": "kd", "temperature": 2.5}"#,
        r#"{"method": "dkd", "temperature": 2.5}"#,
        r#"{"method": "sinkhorn-logits", "temperature": 2.5, "cost": "uniform"}"#,
    ] {
        let mut bench = Bench::new(&parse(json), 5, DType::F64);
        let plain = scalar(&bench.term().unwrap().value);
        let logits = merged_logits(&[&bench.teacher.outputs.logits], 2.5, EnsembleRule::ProbabilityMean).unwrap();
        bench.teacher.outputs =
            Outputs { embedding: logits.clone(), logits, maps: Vec::new(), pre_activations: Vec::new() };
        let merged = scalar(&bench.term().unwrap().value);
        assert!((merged - plain).abs() < 1e-9 * (1.0 + plain), "{json}: {merged} {plain}");
    }
}

// One teacher

#[test]
fn with_one_teacher_nothing_is_lifted() {
    for config in LossConfig::defaults().into_iter().map(small) {
        let (student, teacher) = networks(&config);
        let mut bench = Bench::new(&config, 6, DType::F32);
        let mut lifted = build(&config, &student, &[teacher], DType::F32).unwrap();
        let names = |params: &Params| params.shapes().into_keys().collect::<Vec<_>>();
        assert_eq!(names(&lifted.params), names(&bench.built.params), "{}", config.id());
        assert_eq!(names(&lifted.init_params), names(&bench.built.init_params), "{}", config.id());
        for _ in 0..2 {
            let teachers = [bench.teacher.outputs.clone()];
            let ours = lifted.loss.term(&batch(&bench), &teachers).unwrap();
            let plain = bench.term().unwrap();
            assert_eq!((ours.name, ours.weight), (plain.name, plain.weight));
            assert_eq!(scalar(&ours.value).to_bits(), scalar(&plain.value).to_bits(), "{}", config.id());
            let parts = |term: &Term| term.parts.iter().map(|(n, x)| (n.clone(), flat(x))).collect::<Vec<_>>();
            assert_eq!(parts(&ours), parts(&plain), "{}", config.id());
            if plain.value.track_op() {
                assert_eq!(student_gradient(&bench, &ours), student_gradient(&bench, &plain), "{}", config.id());
            }
            lifted.loss.after_step().unwrap();
            bench.built.loss.after_step().unwrap();
        }
        let (ours, plain) = (lifted.loss.state().unwrap(), bench.built.loss.state().unwrap());
        assert!(ours.keys().eq(plain.keys()), "{}", config.id());
        assert!(ours.values().zip(plain.values()).all(|(a, b)| flat(a) == flat(b)), "{}", config.id());
        lifted.loss.load_state(&plain).unwrap();
    }
}

// Several teachers

/// Methods without parts that draw random numbers: a stream for each teacher.
const DRAWS: [&str; 3] = ["sliced-w2", "max-sliced-w2", "sliced-cramer"];

#[test]
fn identical_teachers_are_one_teacher() {
    let mut compared = 0;
    let defaults = LossConfig::defaults().into_iter().map(small).chain([
        parse(r#"{"method": "sinkhorn-logits", "cost": "uniform", "temperature": 2.0}"#),
        parse(r#"{"method": "ctkd", "loss": {"kind": "dkd"}}"#),
    ]);
    for config in defaults {
        let theta = matches!(config, LossConfig::Ctkd(_));
        if (!config.info().trainable.is_empty() && !theta) || DRAWS.contains(&config.id()) {
            continue;
        }
        let (student, teacher) = networks(&config);
        for rule in [EnsembleRule::ProbabilityMean, EnsembleRule::LogitMean] {
            let mut bench = Bench::new(&config, 6, DType::F64);
            let teachers = vec![teacher.clone(); 3];
            let mut lifted = build_by(&config, &student, &teachers, DType::F64, rule).unwrap();
            let shown = vec![bench.teacher.outputs.clone(); 3];
            let ours = lifted.loss.term(&batch(&bench), &shown).unwrap();
            let plain = bench.term().unwrap();
            let value = |term: &Term| [scalar(&term.weighted().unwrap())];
            close(&value(&ours), &value(&plain), 1e-11, config.id());
            if plain.value.track_op() {
                close(&student_gradient(&bench, &ours), &student_gradient(&bench, &plain), 1e-10, config.id());
            }
        }
        compared += 1;
    }
    assert!(compared >= 20, "{compared}");
}

#[test]
fn several_teachers_of_kd_are_one_that_stands_for_all() {
    let config = parse(r#"{"method": "kd", "temperature": 3.0, "weight": 0.5}"#);
    let (student, teachers) = two(&config);
    let (bench, shown) = (Bench::new(&config, 5, DType::F64), sides(&teachers, 5, DType::F64));
    let logits: Vec<&Tensor> = shown.iter().map(|side| &side.outputs.logits).collect();
    for rule in [EnsembleRule::ProbabilityMean, EnsembleRule::LogitMean] {
        let mut lifted = build_by(&config, &student, &teachers, DType::F64, rule).unwrap();
        let term = lifted.loss.term(&batch(&bench), &outputs(&shown)).unwrap();
        let merged = merged_logits(&logits, 3.0, rule).unwrap();
        let want = kd(&bench.student.outputs.logits, &merged, 3.0).unwrap();
        assert_eq!((term.weight, scalar(&term.value)), (0.5, scalar(&want)));
        let turned: Vec<Outputs> = outputs(&shown).into_iter().rev().collect();
        let term = lifted.loss.term(&batch(&bench), &turned).unwrap();
        close(&[scalar(&term.value)], &[scalar(&want)], 1e-13, "order");
        let grads = term.value.backward().unwrap();
        assert!(shown.iter().flat_map(|side| &side.vars).all(|(_, var)| grads.get(var).is_none()));
    }
    // Not the mean of two divergences.
    let each = logits.iter().map(|t| scalar(&kd(&bench.student.outputs.logits, t, 3.0).unwrap())).sum::<f64>() / 2.0;
    let mut lifted = build(&config, &student, &teachers, DType::F64).unwrap();
    assert!(scalar(&lifted.loss.term(&batch(&bench), &outputs(&shown)).unwrap().value) < each);
}

#[test]
fn every_other_loss_is_the_mean_over_its_teachers() {
    for json in [
        r#"{"method": "fitnet", "map": 3}"#,
        r#"{"method": "at"}"#,
        r#"{"method": "simreg"}"#,
        r#"{"method": "crd"}"#,
        r#"{"method": "ctkd"}"#,
        // In units of each teacher's first batch: the weights differ.
        r#"{"method": "w2-empirical"}"#,
    ] {
        let config = parse(json);
        let (student, teachers) = two(&config);
        let (bench, shown) = (Bench::new(&config, 6, DType::F64), sides(&teachers, 6, DType::F64));
        let mut lifted = build(&config, &student, &teachers, DType::F64).unwrap();
        let ours = lifted.loss.term(&batch(&bench), &outputs(&shown)).unwrap();
        // Each alone, below the scope and the seed of its name.
        let params = Params::new(Seed::root(3).child("parts"), DType::F64, CPU);
        let labels = train_labels();
        let terms: Vec<Term> = (0..2)
            .map(|i| {
                let name = format!("t{}", i + 1);
                let mut loss = config
                    .build(&BuildContext {
                        student: &student,
                        teacher: Some(&teachers[i]),
                        train_labels: &labels,
                        seed: Seed::root(3).child(&name),
                        scope: params.root().child(&name),
                        init_scope: params.root().child("init").child(&name),
                        teacher_norms: None,
                    })
                    .unwrap();
                loss.term(&Context { teacher: Some(&shown[i].outputs), ..batch(&bench) }).unwrap()
            })
            .collect();
        let names = |params: &Params| params.shapes().into_keys().collect::<Vec<_>>();
        assert_eq!(names(&lifted.params), names(&params), "{json}");
        let mean = terms.iter().map(|term| scalar(&term.weighted().unwrap())).sum::<f64>() / 2.0;
        close(&[scalar(&ours.weighted().unwrap())], &[mean], 1e-13, json);
        let [a, b] = [0, 1].map(|i| student_gradient(&bench, &terms[i]));
        let mean: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (a + b) / 2.0).collect();
        close(&student_gradient(&bench, &ours), &mean, 1e-13, json);
        // The log shows each teacher.
        for (i, term) in terms.iter().enumerate() {
            let part = |name: &str| scalar(&ours.parts.iter().find(|(part, _)| part == name).unwrap().1);
            assert_eq!(part(&format!("t{}", i + 1)), scalar(&term.value), "{json}");
            for (name, value) in &term.parts {
                assert_eq!(part(&format!("t{}.{name}", i + 1)), scalar(value), "{json}");
            }
        }
    }
}

#[test]
fn teachers_may_be_of_different_kinds() {
    let student = spec("student", &[[3, 8], [4, 8], [6, 4]], 5);
    let teachers = [spec("a", &[[3, 8], [4, 8], [7, 4]], 9), spec("b", &[[5, 8], [8, 8], [9, 2]], 12)];
    for json in [r#"{"method": "fitnet"}"#, r#"{"method": "at"}"#, r#"{"method": "simreg"}"#, r#"{"method": "kd"}"#] {
        let config = parse(json);
        let bench = Bench::with_sides(
            &parse(r#"{"method": "ce"}"#),
            6,
            DType::F32,
            random_side(&student, 6, DType::F32),
            random_side(&teachers[0], 6, DType::F32),
        );
        let mut lifted = build(&config, &student, &teachers, DType::F32).unwrap();
        let shown = outputs(&sides(&teachers, 6, DType::F32));
        assert!(scalar(&lifted.loss.term(&batch(&bench), &shown).unwrap().value).is_finite(), "{json}");
    }
    // What one teacher alone would be refused for.
    let mut other = teachers.clone();
    other[1].classes = 7;
    let message = build(&parse(r#"{"method": "kd"}"#), &student, &other, DType::F32).map(drop).unwrap_err().to_string();
    assert!(message.starts_with("kd: ") && message.contains('7'), "{message}");
}

#[test]
fn phases_before_the_training_are_lifted_too() {
    for json in [r#"{"method": "ab"}"#, r#"{"method": "fsp"}"#, r#"{"method": "ft"}"#] {
        let config = parse(json);
        let (student, teachers) = two(&config);
        let (bench, shown) = (Bench::new(&config, 6, DType::F64), sides(&teachers, 6, DType::F64));
        let mut lifted = build(&config, &student, &teachers, DType::F64).unwrap();
        let term = lifted.loss.init_term(&batch(&bench), &outputs(&shown)).unwrap();
        assert!(scalar(&term.value) > 0.0, "{json}");
        let grads = term.value.backward().unwrap();
        for (name, var) in lifted.init_params.trainable() {
            assert!(name.starts_with("t1.") || name.starts_with("t2."), "{json}: {name}");
            assert!(grads.get(&var).is_some(), "{json}: {name}");
        }
        assert!(lifted.loss.term(&batch(&bench), &outputs(&shown)).is_ok());
    }
    let config = parse(r#"{"method": "at"}"#);
    let (student, teachers) = two(&config);
    let (bench, shown) = (Bench::new(&config, 6, DType::F64), sides(&teachers, 6, DType::F64));
    let mut lifted = build(&config, &student, &teachers, DType::F64).unwrap();
    assert!(lifted.loss.init_term(&batch(&bench), &outputs(&shown)).is_err());
}

#[test]
fn task_losses_do_not_look_at_teachers() {
    let config = parse(r#"{"method": "ce"}"#);
    let (student, teachers) = two(&config);
    let mut bench = Bench::new(&config, 5, DType::F32);
    let mut lifted = build(&config, &student, &teachers, DType::F32).unwrap();
    let plain = scalar(&bench.term().unwrap().value);
    let shown = outputs(&sides(&teachers, 5, DType::F32));
    for shown in [&shown[..], &shown[..1], &[]] {
        assert_eq!(scalar(&lifted.loss.term(&batch(&bench), shown).unwrap().value), plain);
    }
}

#[test]
fn another_number_of_teachers_is_an_error() {
    for (json, count) in [(r#"{"method": "kd"}"#, 2), (r#"{"method": "at"}"#, 2), (r#"{"method": "kd"}"#, 1)] {
        let config = parse(json);
        let (student, teachers) = two(&config);
        let bench = Bench::new(&config, 5, DType::F32);
        let mut lifted = build(&config, &student, &teachers[..count], DType::F32).unwrap();
        let shown = outputs(&sides(&[teachers.to_vec(), teachers.to_vec()].concat(), 5, DType::F32));
        for found in [0, 3] {
            let message = lifted.loss.term(&batch(&bench), &shown[..found]).unwrap_err().to_string();
            assert!(
                message.contains(&format!("{count} teachers")) && message.contains(&found.to_string()),
                "{message}"
            );
        }
    }
    let config = parse(r#"{"method": "kd"}"#);
    assert!(EnsembleDistiller::build(&config, &[], EnsembleRule::default()).is_err());
}

// Banks

/// The values of steps `from..to`, each with rows of its own.
fn steps(lifted: &mut Lifted, from: usize, to: usize) -> Vec<f64> {
    let config = parse(r#"{"method": "crd"}"#);
    let (_, teachers) = two(&config);
    let mut bench = Bench::new(&config, 5, DType::F32);
    let shown = outputs(&sides(&teachers, 5, DType::F32));
    let mut step = |i: usize| {
        bench.index = (0..5).map(|b| ((b * 3 + i) % 20) as u32).collect();
        let value = scalar(&lifted.loss.term(&batch(&bench), &shown).unwrap().value);
        lifted.loss.after_step().unwrap();
        value
    };
    (from..to).map(&mut step).collect()
}

#[test]
fn each_teacher_has_a_bank_of_its_own_that_is_saved() {
    let config = parse(r#"{"method": "crd"}"#);
    let (student, teachers) = two(&config);
    let make = || build(&config, &student, &teachers, DType::F32).unwrap();
    let whole = steps(&mut make(), 0, 6);
    let mut first = make();
    assert_eq!(steps(&mut first, 0, 3), whole[..3]);
    let state = first.loss.state().unwrap();
    let names: Vec<&str> = state.keys().map(String::as_str).collect();
    let each = ["log_z", "student_bank", "teacher_bank"];
    let both: Vec<String> = ["t1", "t2"].iter().flat_map(|t| each.map(|name| format!("{t}.{name}"))).collect();
    assert_eq!(names, both);
    assert_ne!(flat(&state["t1.student_bank"]), flat(&state["t2.student_bank"]));
    // The state is a snapshot.
    steps(&mut first, 3, 5);
    let mut second = make();
    second.loss.load_state(&state).unwrap();
    assert_eq!(steps(&mut second, 3, 6), whole[3..]);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let config = parse(r#"{"method": "crd"}"#);
    let (student, teachers) = two(&config);
    let mut lifted = build(&config, &student, &teachers, DType::F32).unwrap();
    let before = lifted.loss.state().unwrap();
    steps(&mut lifted, 0, 3);
    let good = lifted.loss.state().unwrap();
    let mut refuse = |change: &dyn Fn(&mut retort_nn::Tensors), expected: &str| {
        let mut state = before.clone();
        change(&mut state);
        let message = lifted.loss.load_state(&state).unwrap_err().to_string();
        assert!(message.starts_with("crd: ") && message.contains(expected), "{message}");
        let after = lifted.loss.state().unwrap();
        assert!(after.iter().all(|(name, tensor)| flat(tensor) == flat(&good[name])), "{expected}");
    };
    refuse(&|s| drop(s.remove("t2.student_bank")), "student_bank");
    refuse(&|s| drop(s.insert("t3.student_bank".into(), random("x", &[2], DType::F32))), "t3.student_bank");
    refuse(&|s| drop(s.insert("student_bank".into(), random("x", &[2], DType::F32))), "`student_bank`");
    refuse(&|s| drop(s.insert("t2.bank".into(), random("x", &[2], DType::F32))), "bank");
    lifted.loss.load_state(&good).unwrap();
}
