//! Loops over the registry.

use crate::fixture::{Bench, build, flat, networks, numbers, scalar, side, small};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::{BuildContext, LossConfig, Side, registry};
use retort_nn::{Params, Seed};

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
        let both = [inputs.logits, inputs.embedding, inputs.maps].contains(&Side::Both);
        assert_eq!(needs.teacher, both, "{}", config.id());
        assert_eq!(needs.taps.maps, inputs.maps != Side::None, "{}", config.id());
        assert_eq!((needs.labels, needs.index), (inputs.labels, inputs.index), "{}", config.id());
    }
}

#[test]
fn defaults_build_and_give_finite_values_and_gradients() {
    for config in LossConfig::defaults() {
        let mut bench = Bench::new(&config, 6, DType::F32);
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
        assert!(reached > 0, "{}: nothing reaches the student", config.id());
        for (name, var) in bench.params.trainable() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{}: no gradient for {name}", config.id()));
            assert!(flat(grad).iter().all(|g| g.is_finite()), "{} {name}", config.id());
            // Batch norm cancels the bias before it.
            if !(config.id() == "fitnet" && name == "conv.bias") {
                assert!(flat(grad).iter().any(|g| *g != 0.0), "{}: {name} never moves", config.id());
            }
        }
        assert_eq!(bench.params.trainable().is_empty(), config.info().trainable.is_empty(), "{}", config.id());
        bench.loss.after_step().unwrap();
        assert_eq!(bench.loss.state().unwrap().is_empty(), config.info().state.is_empty(), "{}", config.id());
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for config in LossConfig::defaults().into_iter().map(small) {
        let mut bench = Bench::new(&config, 6, DType::F64);
        // One step first: normalisers are set and banks have moved.
        bench.term().unwrap();
        bench.loss.after_step().unwrap();
        let grads = bench.term().unwrap().value.backward().unwrap();
        let parts = bench.params.trainable();
        let vars: Vec<(String, Var)> = bench.student.vars.iter().cloned().chain(parts).collect();
        let mut probed = 0;
        for (name, var) in vars {
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
                // Small, so that no ReLU changes sides in between.
                let h = 1e-6;
                let slope = (at(values[i] + h) - at(values[i] - h)) / (2.0 * h);
                at(values[i]);
                let error = (grad[i] - slope).abs();
                assert!(error <= 5e-9 + 1e-5 * slope.abs(), "{} {name}[{i}]: {} against {slope}", config.id(), grad[i]);
                probed += 1;
            }
        }
        assert!(probed >= 7, "{}", config.id());
    }
}

#[test]
fn identical_networks_have_no_loss() {
    let zero = ["kd", "dkd", "at", "nst", "pkd", "sp", "rkd", "pkt"];
    for config in LossConfig::defaults().into_iter().filter(|c| zero.contains(&c.id())) {
        let (student, _) = networks(&config);
        let make = || side(&student, 6, DType::F32, |name, shape| numbers(name, shape.iter().product()));
        let mut bench = Bench::with_sides(&config, 6, DType::F32, make(), make());
        let term = bench.term().unwrap();
        assert!(scalar(&term.value).abs() < 1e-7, "{}: {}", config.id(), scalar(&term.value));
        let grads = term.value.backward().unwrap();
        for (name, var) in &bench.student.vars {
            if let Some(grad) = grads.get(var) {
                assert!(flat(grad).iter().all(|g| g.abs() < 1e-6), "{} {name}", config.id());
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for config in LossConfig::defaults() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut bench = Bench::new(&config, 6, DType::F32);
                let term = bench.term().unwrap();
                let grads = term.value.backward().unwrap();
                let mut bits = vec![scalar(&term.value).to_bits()];
                let parts = bench.params.trainable();
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
        let ctx =
            BuildContext { student: &student, teacher: None, train_labels: &train_labels, seed: Seed::root(3), scope };
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
        let (a, b) = (build(&config, DType::F32).0, build(&config, DType::F32).0);
        for ((name, x), (_, y)) in a.trainable().iter().zip(b.trainable()) {
            assert_eq!(flat(x.as_tensor()), flat(y.as_tensor()), "{} {name}", config.id());
        }
    }
}
