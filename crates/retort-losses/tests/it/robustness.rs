//! Degenerate and extreme inputs, for every method.

use crate::fixture::{
    Bench, Side, build_for, flat, init_phase, networks, numbers, random_side, scalar, side, small, terms,
};
use candle_core::{DType, Device, Tensor};
use retort_losses::{LossConfig, output, relational};
use retort_nn::NetworkSpec;

/// Value and gradients of one batch are finite; says which input broke which method.
fn finite(what: &str, (config, init): &(LossConfig, bool), student: Side, teacher: Side) {
    let b = student.outputs.logits.dims()[0];
    let mut bench = Bench { init: *init, ..Bench::with_sides(config, b, DType::F32, student, teacher) };
    for step in 0..2 {
        let term = bench.term().unwrap_or_else(|e| panic!("{} on {what}: {e}", config.id()));
        let value = scalar(&term.value);
        assert!(value.is_finite(), "{} on {what}, step {step}: {value}", config.id());
        let grads = term.value.backward().unwrap();
        let parts = bench.parts();
        for (name, var) in bench.student.vars.iter().chain(&parts) {
            let worst = grads.get(var).map(flat).unwrap_or_default().into_iter().find(|g| !g.is_finite());
            assert_eq!(worst, None, "{} on {what}, step {step}: gradient of {name}", config.id());
        }
        bench.built.loss.after_step().unwrap();
    }
}

/// A network's numbers as a function of the tensor and the position.
fn filled(config: &LossConfig, teacher: bool, b: usize, f: impl Fn(&str, usize, f64) -> f64) -> Side {
    let (s, t) = networks(config);
    let spec = if teacher { t } else { s };
    side(&spec, b, DType::F32, |name, shape| {
        let values = numbers(&format!("{}.{name}", spec.name), shape.iter().product());
        values.into_iter().enumerate().map(|(i, x)| f(name, i, x)).collect()
    })
}

#[test]
fn degenerate_batches_are_finite() {
    type Fill = fn(&str, usize, f64) -> f64;
    let plain: Fill = |_, _, x| x;
    let cases: [(&str, Fill, Fill); 12] = [
        ("zeros", |_, _, _| 0.0, |_, _, _| 0.0),
        ("a zero student", |_, _, _| 0.0, plain),
        ("a zero teacher", plain, |_, _, _| 0.0),
        ("a constant student", |_, _, _| 0.7, plain),
        ("zeros in the first sample", |_, i, x| if i < 4 { 0.0 } else { x }, plain),
        ("logits of +-1e4", |n, _, x| if n == "logits" { x.signum() * 1e4 } else { x }, plain),
        ("teacher logits of +-1e4", plain, |n, _, x| if n == "logits" { x.signum() * 1e4 } else { x }),
        (
            "opposite saturated logits",
            |_, i, _| if i % 2 == 0 { 1e4 } else { -1e4 },
            |_, i, _| if i % 2 == 1 { 1e4 } else { -1e4 },
        ),
        ("large values", |_, _, x| 1e3 * x, |_, _, x| 1e3 * x),
        ("small values", |_, _, x| 1e-6 * x, |_, _, x| 1e-6 * x),
        ("tiny values", |_, _, x| 1e-20 * x, |_, _, x| 1e-20 * x),
        ("rectified values", |_, _, x| x.max(0.0), |_, _, x| x.max(0.0)),
    ];
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).collect()) {
        for (what, s, t) in cases {
            finite(what, &(config.clone(), init), filled(&config, false, 6, s), filled(&config, true, 6, t));
        }
        // All samples alike.
        let (s, t) = networks(&config);
        let repeat = |spec: &retort_nn::NetworkSpec| {
            side(spec, 6, DType::F32, |name, shape| {
                let one = numbers(name, shape.iter().product::<usize>() / 6);
                one.iter().copied().cycle().take(6 * one.len()).collect()
            })
        };
        finite("one sample six times", &(config.clone(), init), repeat(&s), repeat(&t));
    }
}

#[test]
fn a_batch_of_one_is_defined() {
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).collect()) {
        let plain = |_: &str, _, x| x;
        if matches!(config, LossConfig::Coral(_) | LossConfig::GaussianKl(_) | LossConfig::Simreg(_)) {
            // A single row has no variance.
            let (student, teacher) = (filled(&config, false, 1, plain), filled(&config, true, 1, plain));
            let message = Bench::with_sides(&config, 1, DType::F32, student, teacher).term().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}: ", config.id())) && message.contains("at least 2"), "{message}");
            continue;
        }
        finite(
            "one sample",
            &(config.clone(), init),
            filled(&config, false, 1, plain),
            filled(&config, true, 1, plain),
        );
        // Every part that is trained keeps its place in the graph: the engine refuses a parameter without gradient.
        let (student, teacher) = (filled(&config, false, 1, plain), filled(&config, true, 1, plain));
        let mut bench = Bench { init, ..Bench::with_sides(&config, 1, DType::F32, student, teacher) };
        let grads = bench.term().unwrap().value.backward().unwrap();
        for (name, var) in &bench.parts() {
            assert!(grads.get(var).is_some(), "{}: no gradient of {name} with one sample", config.id());
        }
    }
}

#[test]
fn dead_channels_are_finite() {
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).collect()) {
        // Every second channel of every map and every second column of the other tensors.
        let dead = |spec: &NetworkSpec| {
            side(spec, 6, DType::F32, |name, shape| {
                let (channels, size) = (shape[1], shape[2..].iter().product::<usize>());
                let values = numbers(&format!("{}.{name}", spec.name), shape.iter().product());
                values
                    .into_iter()
                    .enumerate()
                    .map(|(i, x)| if i / size % channels % 2 == 0 { 0.0 } else { x })
                    .collect()
            })
        };
        let ((s, t), pair) = (networks(&config), (config.clone(), init));
        finite("dead channels of the student", &pair, dead(&s), filled(&config, true, 6, |_, _, x| x));
        finite("dead channels of the teacher", &pair, filled(&config, false, 6, |_, _, x| x), dead(&t));
        finite("dead channels of both", &pair, dead(&s), dead(&t));
    }
}

#[test]
fn one_class_is_defined_or_refused_by_name() {
    let mut refusals = Vec::new();
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).collect()) {
        let (mut student, mut teacher) = networks(&config);
        (student.classes, teacher.classes) = (1, 1);
        let (s, t) = (random_side(&student, 4, DType::F32), random_side(&teacher, 4, DType::F32));
        let run = || {
            let built = build_for(&config, &(student, teacher), &[0; 20], DType::F32)?;
            let mut bench = Bench { init, ..Bench::with_built(built, 4, s, t) };
            bench.label_ids = vec![0; 4];
            bench.labels = Tensor::zeros(4, DType::U32, &Device::Cpu).unwrap();
            bench.term()
        };
        match run() {
            Ok(term) => {
                assert!(scalar(&term.value).is_finite(), "{}", config.id());
                term.value.backward().unwrap();
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with(&format!("{}: ", config.id())) && message.contains("classes"), "{message}");
                refusals.push(config.id());
            }
        }
    }
    // What they are made of are other classes: smoothed labels, ranked classes, the binary part of dkd, negatives of crd.
    assert_eq!(refusals, ["tf-kd-reg-lib", "zipf-ls-logits", "dkd", "crd"]);
}

#[test]
fn a_batch_of_one_class_is_defined() {
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).collect()) {
        let mut bench = Bench { init, ..Bench::new(&config, 5, DType::F32) };
        bench.index = vec![0, 4, 8, 12, 16];
        bench.label_ids = vec![0; 5];
        bench.labels = Tensor::zeros(5, DType::U32, &Device::Cpu).unwrap();
        let term = bench.term().unwrap();
        assert!(scalar(&term.value).is_finite(), "{}", config.id());
    }
}

#[test]
fn nan_stays_visible() {
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).collect()) {
        for in_teacher in [false, true] {
            let looks_at_student = !init || init_phase(&config).is_some_and(|phase| phase.student);
            if !(if in_teacher { config.needs().teacher } else { looks_at_student }) {
                continue;
            }
            let poison = |_: &str, i: usize, x: f64| if i == 3 { f64::NAN } else { x };
            let plain = |_: &str, _: usize, x: f64| x;
            let (student, teacher) = if in_teacher {
                (filled(&config, false, 4, plain), filled(&config, true, 4, poison))
            } else {
                (filled(&config, false, 4, poison), filled(&config, true, 4, plain))
            };
            let mut bench = Bench { init, ..Bench::with_sides(&config, 4, DType::F32, student, teacher) };
            let value = bench.term().map(|t| scalar(&t.value));
            // A solver could not end with such an input: it names the tensor.
            let seen = match &value {
                Ok(value) => value.is_nan(),
                Err(error) => {
                    let (message, side) = (error.to_string(), if in_teacher { "teacher" } else { "student" });
                    message.starts_with(config.id()) && message.contains(side) && message.contains("finite")
                }
            };
            assert!(seen, "{} (teacher: {in_teacher}): {value:?}", config.id());
        }
    }
}

#[test]
fn batches_that_do_not_fit_are_errors_that_name_the_method() {
    for (config, init) in terms(LossConfig::defaults().into_iter().map(small).filter(|c| c.needs().teacher).collect()) {
        if init && init_phase(&config).is_some_and(|phase| !phase.student) {
            continue;
        }
        let plain = |_: &str, _, x| x;
        let (student, teacher) = (filled(&config, false, 4, plain), filled(&config, true, 3, plain));
        let mut bench = Bench { init, ..Bench::with_sides(&config, 4, DType::F32, student, teacher) };
        let message = bench.term().unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: ", config.id())), "{message}");
        assert!(message.contains("[4, ") && message.contains("[3, "), "{message}");
    }
}

#[test]
fn integers_and_mixed_types_are_named_errors() {
    let whole = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap();
    let (single, double) = (whole.to_dtype(DType::F32).unwrap(), whole.to_dtype(DType::F64).unwrap());
    for error in [output::kd(&whole, &whole, 4.0), relational::similarity_preserving(&whole, &whole)] {
        let message = error.unwrap_err().to_string();
        assert!(message.contains("floating-point") && message.contains("U32"), "{message}");
    }
    let message = output::kd(&single, &double, 4.0).unwrap_err().to_string();
    assert!(message.contains("F32") && message.contains("F64"), "{message}");
}
