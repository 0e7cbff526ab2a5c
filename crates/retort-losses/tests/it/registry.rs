//! Loops over the registry.

use crate::fixture::{
    Bench, build, build_for, flat, init_phase, networks, numbers, scalar, side, small, terms, train_labels, variants,
};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::{BuildContext, Family, LossConfig, Side, registry};
use retort_nn::{Optimizer, OptimizerConfig, Outputs, ParamGroup, Params, Seed};

#[test]
fn ids_tags_and_registry_agree() {
    let defaults = LossConfig::defaults();
    assert_eq!(defaults.len(), registry().len());
    for (config, info) in defaults.iter().zip(registry()) {
        let json = serde_json::to_value(config).unwrap();
        assert_eq!((json["method"].as_str().unwrap(), config.id()), (info.id, info.id));
        assert_eq!(config.weight(), info.weight, "{}", info.id);
        // The tag alone is the default; and what is written is read back.
        let bare = serde_json::from_str::<LossConfig>(&format!(r#"{{"method": "{}"}}"#, info.id)).unwrap();
        assert_eq!(&bare, config);
        assert_eq!(&serde_json::from_value::<LossConfig>(json).unwrap(), config);
        config.validate().unwrap();
    }
    let mut ids: Vec<_> = registry().iter().map(|info| info.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), registry().len());
}

#[test]
fn needs_follow_from_the_declared_inputs() {
    for config in LossConfig::defaults() {
        let (needs, inputs) = (config.needs(), config.info().inputs);
        let sides = [inputs.logits, inputs.embedding, inputs.maps, inputs.pre_activations];
        let teacher = sides.contains(&Side::Both) || sides.contains(&Side::Teacher);
        assert_eq!(needs.teacher, teacher, "{}", config.id());
        assert_eq!(needs.taps.pre_activations, inputs.pre_activations != Side::None, "{}", config.id());
        assert_eq!(needs.taps.maps, inputs.maps != Side::None, "{}", config.id());
        assert_eq!((needs.labels, needs.index), (inputs.labels, inputs.index), "{}", config.id());
    }
}

#[test]
fn defaults_build_and_give_finite_values_and_gradients() {
    for (config, init) in terms(LossConfig::defaults()) {
        let mut bench = Bench { init, ..Bench::new(&config, 6, DType::F32) };
        let term = bench.term().unwrap();
        assert_eq!((term.name, term.value.dims()), (config.id(), &[][..]));
        assert!(scalar(&term.value).is_finite(), "{}", config.id());
        assert!((scalar(&term.weighted().unwrap()) - term.weight * scalar(&term.value)).abs() < 1e-4 * term.weight);
        for (name, part) in &term.parts {
            assert_eq!(part.dims(), &[] as &[usize], "{} {name}", config.id());
            assert!(scalar(part).is_finite(), "{} {name}", config.id());
        }
        let grads = term.value.backward().unwrap();
        for (name, var) in &bench.teacher.vars {
            assert!(grads.get(var).is_none(), "{}: gradient reaches the teacher's {name}", config.id());
        }
        let mut reached = 0;
        for (name, var) in &bench.student.vars {
            if let Some(grad) = grads.get(var) {
                assert!(flat(grad).iter().all(|g| g.is_finite()), "{} {name}", config.id());
                reached += usize::from(flat(grad).iter().any(|g| *g != 0.0));
            }
        }
        let looks_at_student = !init || init_phase(&config).is_some_and(|phase| phase.student);
        assert_eq!(reached > 0, looks_at_student, "{}: nothing reaches the student", config.id());
        for (name, var) in bench.parts() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{}: no gradient for {name}", config.id()));
            assert!(flat(grad).iter().all(|g| g.is_finite()), "{} {name}", config.id());
            if !cancelled(config.id(), &name) {
                assert!(flat(grad).iter().any(|g| *g != 0.0), "{}: {name} never moves", config.id());
            }
        }
        let built = &mut bench.built;
        let untrained = built.params.trainable().is_empty() && built.init_params.trainable().is_empty();
        assert_eq!(untrained, config.info().trainable.is_empty(), "{}", config.id());
        built.loss.after_step().unwrap();
        assert_eq!(built.loss.state().unwrap().is_empty(), config.info().state.is_empty(), "{}", config.id());
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let configs = LossConfig::defaults().into_iter().map(small).chain(variants());
    for (config, init) in terms(configs.collect()) {
        let mut bench = Bench { init, ..Bench::new(&config, 6, DType::F64) };
        // One step first: normalisers are set and banks have moved.
        bench.term().unwrap();
        bench.built.loss.after_step().unwrap();
        let value = bench.term().unwrap().value;
        let grads = value.backward().unwrap();
        // Small, so that no ReLU changes sides in between; the rounding of a large value, divided by it, is no error.
        let h = 1e-6;
        let rounding = f64::EPSILON * scalar(&value).abs() / h;
        let parts = bench.parts();
        let vars: Vec<(String, Var)> = bench.student.vars.iter().cloned().chain(parts).collect();
        let mut probed = 0;
        for (name, var) in vars.into_iter().filter(|(name, _)| !steers(config.id(), name)) {
            let values = flat(var.as_tensor());
            // No gradient must mean no influence, so it is compared as zeros.
            let grad = grads.get(&var).map_or_else(|| vec![0.0; values.len()], flat);
            for i in (0..values.len()).step_by((values.len() / 7).max(1)) {
                let mut at = |x: f64| {
                    let mut moved = values.clone();
                    moved[i] = x;
                    var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    scalar(&bench.term().unwrap().value)
                };
                let slope = (at(values[i] + h) - at(values[i] - h)) / (2.0 * h);
                at(values[i]);
                let error = (grad[i] - slope).abs();
                let allowed = 5e-9 + 1e-5 * slope.abs() + rounding;
                assert!(error <= allowed, "{config:?} {name}[{i}]: {} against {slope}", grad[i]);
                probed += 1;
            }
        }
        assert!(probed >= 7, "{}", config.id());
    }
}

/// A bias directly before a batch norm, which cancels it: its gradient is 0 up to rounding.
fn cancelled(id: &str, name: &str) -> bool {
    match id {
        "fitnet" | "ab" => name.ends_with("conv.bias"),
        "ft" => ["0", "3", "6"].iter().any(|layer| name == format!("translator.encoder.{layer}.bias")),
        "simreg" => ["0", "3", "4"].iter().any(|layer| name == format!("head.{layer}.bias")),
        _ => false,
    }
}

/// What a method reads as a constant and through the graph at once, so that differences show more than the gradient.
fn steers(id: &str, name: &str) -> bool {
    id == "ctkd-instance" && name == "logits"
}

#[test]
fn every_declared_part_moves_in_one_step() {
    for (config, init) in terms(LossConfig::defaults()) {
        // f64, so that a small step is not lost beside a large weight.
        let mut bench = Bench { init, ..Bench::new(&config, 6, DType::F64) };
        let parts = bench.parts();
        let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, dampening: 0.0, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(sgd, vec![ParamGroup::new(parts.clone())]).unwrap();
        let before: Vec<Vec<f64>> = parts.iter().map(|(_, var)| flat(var.as_tensor())).collect();
        let grads = bench.term().unwrap().weighted().unwrap().backward().unwrap();
        assert_eq!(optimizer.without_gradient(&[&grads]), [""; 0], "{}", config.id());
        optimizer.step(&grads, 0.05).unwrap();
        for ((name, var), before) in parts.iter().zip(before) {
            let after = flat(var.as_tensor());
            assert!(after.iter().all(|x| x.is_finite()), "{} {name}", config.id());
            assert!(after != before || cancelled(config.id(), name), "{}: {name} has not moved", config.id());
        }
    }
}

/// What a method gives for two networks with the same outputs: a value found without the crate, or why there is none.
fn of_twins(config: &LossConfig, outputs: &Outputs, labels: &[u32]) -> Result<f64, &'static str> {
    let zero = ["kd", "dkd", "ctkd", "at", "fsp", "nst", "kdsvd", "pkd", "sp", "rkd", "pkt"];
    let biased = ["sinkhorn", "sinkhorn-logits"];
    let random = ["fitnet", "ft", "vid", "ofd", "reviewkd", "simreg", "cc", "crd"];
    match config {
        config if zero.contains(&config.id()) => Ok(0.0),
        config if biased.contains(&config.id()) => Err("is entropic, so it is not 0 for equal laws"),
        config if config.info().family == Family::Distribution => Ok(0.0),
        config if random.contains(&config.id()) => Err("depends on parts with random initial values"),
        LossConfig::CtkdInstance(_) => Err("shifts one of two equal distributions"),
        LossConfig::Ce(_) => Ok(smoothed(outputs, labels, 0.0)),
        LossConfig::LabelSmoothing(c) => Ok(smoothed(outputs, labels, c.smoothing)),
        LossConfig::Focal(_) => Ok(by_row(outputs, labels, |log_p, y| -(1.0 - log_p[y].exp()).powi(2) * log_p[y])),
        LossConfig::MaxEntropy(_) => Ok(by_row(outputs, labels, |log_p, y| {
            0.5 * log_p.iter().map(|l| l.exp() * l).sum::<f64>() / log_p.len() as f64 - log_p[y]
        })),
        LossConfig::TfKdReg(_) => Ok(by_row(outputs, labels, |log_p, y| {
            let u = |c: usize| if c == y { 0.99 } else { 0.01 / (log_p.len() - 1) as f64 };
            let all: f64 = (0..log_p.len()).map(|c| (u(c) / 20.0).exp()).sum();
            let q = |c: usize| (u(c) / 20.0).exp() / all;
            let kl = |(c, l): (usize, &f64)| q(c) * (q(c).ln() - l);
            10.0 * log_p.iter().enumerate().map(kl).sum::<f64>() / log_p.len() as f64 - 0.9 * log_p[y]
        })),
        LossConfig::TfKdRegLib(_) => Ok(by_row(outputs, labels, |log_p, y| {
            let normalizer = log_p.iter().map(|l| (l / 20.0).exp()).sum::<f64>().ln();
            let share = |c: usize| if c == y { 0.9 } else { 0.1 / (log_p.len() - 1) as f64 };
            let soft: f64 = (0..log_p.len()).map(|c| share(c) * (log_p[c] / 20.0 - normalizer)).sum();
            -log_p[y] - soft / 20.0
        })),
        LossConfig::ZipfLsLogits(_) => Ok(by_row(outputs, labels, |log_p, y| {
            let wrong: Vec<f64> = (0..log_p.len()).filter(|&c| c != y).map(|c| log_p[c]).collect();
            let weight = |l: &f64| 1.0 / (1 + log_p.iter().filter(|other| *other > l).count()) as f64;
            let (all, mass) = (wrong.iter().map(weight).sum::<f64>(), wrong.iter().map(|l| l.exp()).sum::<f64>());
            let kl = |l: &f64| weight(l) / all * ((weight(l) / all).ln() - l + mass.ln());
            0.1 * wrong.iter().map(kl).sum::<f64>() - log_p[y]
        })),
        // Stages of equal shapes are compared as they are: (1 - |x|)^2 where |x| < 1, on either side of zero.
        LossConfig::Ab(c) => {
            let stages = &outputs.pre_activations[1..];
            let cost = |x: f64| (c.margin - x.abs()).max(0.0).powi(2);
            let stage = |(i, x): (usize, &Tensor)| {
                let weight = 0.003 * 0.5f64.powi((stages.len() - 1 - i) as i32);
                weight * flat(x).into_iter().map(cost).sum::<f64>() / x.dims()[0] as f64
            };
            Ok(stages.iter().enumerate().map(stage).sum())
        }
        other => panic!("{}: what do identical networks give?", other.id()),
    }
}

fn smoothed(outputs: &Outputs, labels: &[u32], smoothing: f64) -> f64 {
    by_row(outputs, labels, |log_p, y| {
        let mean = log_p.iter().sum::<f64>() / log_p.len() as f64;
        -((1.0 - smoothing) * log_p[y] + smoothing * mean)
    })
}

/// The mean over the samples of a function of the log-probabilities and the label.
fn by_row(outputs: &Outputs, labels: &[u32], loss: impl Fn(&[f64], usize) -> f64) -> f64 {
    let logits: Vec<Vec<f64>> = outputs.logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    let row = |(z, &label): (&Vec<f64>, &u32)| {
        let normalizer = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        loss(&z.iter().map(|z| z - normalizer).collect::<Vec<_>>(), label as usize)
    };
    logits.iter().zip(labels).map(row).sum::<f64>() / labels.len() as f64
}

#[test]
fn identical_networks_give_what_is_known() {
    let mut known = 0;
    for (config, init) in terms(LossConfig::defaults()) {
        let (spec, _) = networks(&config);
        let make = || side(&spec, 6, DType::F32, |name, shape| numbers(name, shape.iter().product()));
        let built = build_for(&config, &(spec.clone(), spec.clone()), &train_labels(), DType::F32).unwrap();
        let mut bench = Bench { init, ..Bench::with_built(built, 6, make(), make()) };
        let Ok(expected) = of_twins(&config, &bench.student.outputs, &bench.label_ids) else { continue };
        known += 1;
        let term = bench.term().unwrap();
        let error = (scalar(&term.value) - expected).abs();
        assert!(error < if expected == 0.0 { 1e-7 } else { 1e-6 }, "{}: {}", config.id(), scalar(&term.value));
        if expected != 0.0 {
            continue;
        }
        let grads = term.value.backward().unwrap();
        for (name, var) in &bench.student.vars {
            if let Some(grad) = grads.get(var) {
                assert!(flat(grad).iter().all(|g| g.abs() < 1e-6), "{} {name}", config.id());
            }
        }
    }
    assert_eq!(known, 36);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (config, init) in terms(LossConfig::defaults()) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut bench = Bench { init, ..Bench::new(&config, 6, DType::F32) };
                let term = bench.term().unwrap();
                let grads = term.value.backward().unwrap();
                let mut bits = vec![scalar(&term.value).to_bits()];
                let parts = bench.parts();
                for (_, var) in bench.student.vars.iter().chain(&parts) {
                    bits.extend(grads.get(var).map(flat).unwrap_or_default().iter().map(|g| g.to_bits()));
                }
                bits
            })
        };
        assert_eq!(run(1), run(2), "{}", config.id());
    }
}

#[test]
fn a_method_that_needs_a_teacher_says_so() {
    for config in LossConfig::defaults() {
        let (student, _) = networks(&config);
        let params = Params::new(Seed::root(3), DType::F32, &Device::Cpu);
        let (scope, train_labels) = (params.root(), crate::fixture::train_labels());
        let ctx = BuildContext {
            student: &student,
            teacher: None,
            train_labels: &train_labels,
            seed: Seed::root(3),
            init_scope: scope.child("init"),
            scope,
            teacher_norms: None,
        };
        match config.build(&ctx) {
            Ok(_) => assert!(!config.needs().teacher, "{}", config.id()),
            Err(error) => {
                assert!(config.needs().teacher, "{}", config.id());
                let message = error.to_string();
                assert!(message.starts_with(&format!("{}: needs a teacher", config.id())), "{message}");
            }
        }
    }
}

#[test]
fn initial_parts_depend_on_the_seed_alone() {
    for config in LossConfig::defaults() {
        let parts = || {
            let built = build(&config, DType::F32);
            [built.params.trainable(), built.init_params.trainable()].concat()
        };
        for ((name, x), (_, y)) in parts().iter().zip(parts()) {
            assert_eq!(flat(x.as_tensor()), flat(y.as_tensor()), "{} {name}", config.id());
        }
    }
}
