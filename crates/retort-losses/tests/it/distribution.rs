//! What is common to the distances between feature laws: the coefficient, the regressor, drawn directions, state.

use crate::fixture::{Bench, build_for, networks, numbers, random, scalar, side, spec, train_labels};
use candle_core::{DType, Device, Tensor};
use retort_losses::LossConfig;
use retort_losses::distribution::{self, Discrepancy, Estimator, Kernel, Reduction};

fn parse(text: &str) -> LossConfig {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_first_batch_is_the_unit_of_the_weight_and_stays_it_after_a_restart() {
    let config = parse(r#"{"method": "energy-distance", "weight": 0.5}"#);
    let mut bench = Bench::new(&config, 6, DType::F64);
    let first = bench.term().unwrap();
    assert!((first.weight * scalar(&first.value) - 0.5).abs() < 1e-12);
    bench.built.loss.after_step().unwrap();
    let state = bench.built.loss.state().unwrap();

    // Other features: the weight does not move, neither here nor in a loss that goes on from the state.
    let (student, teacher) = networks(&config);
    let make = |label: &str, network: &retort_nn::NetworkSpec| {
        side(network, 6, DType::F64, |name, shape| numbers(&format!("{label}.{name}"), shape.iter().product()))
    };
    let mut later = Bench::with_sides(&config, 6, DType::F64, make("a", &student), make("b", &teacher));
    assert_ne!(later.term().unwrap().weight, first.weight);
    later.built.loss.load_state(&state).unwrap();
    assert_eq!(later.term().unwrap().weight, first.weight);

    let fixed = parse(r#"{"method": "energy-distance", "weight": 0.5, "matching": {"coefficient": "fixed"}}"#);
    assert_eq!(Bench::new(&fixed, 6, DType::F64).term().unwrap().weight, 0.5);
    for (name, tensor) in [("scale", Tensor::new(1f32, &Device::Cpu)), ("more", Tensor::new(1f64, &Device::Cpu))] {
        let mut broken = state.clone();
        broken.insert(name.into(), tensor.unwrap());
        let message = later.built.loss.load_state(&broken).unwrap_err().to_string();
        assert!(message.starts_with("energy-distance: ") && message.contains(name), "{message}");
    }
}

#[test]
fn a_negative_first_distance_is_no_unit() {
    let config = parse(r#"{"method": "mmd", "kernel": {"kind": "linear"}, "estimator": "unbiased"}"#);
    let (student, teacher) = networks(&config);
    let make = |network: &retort_nn::NetworkSpec| {
        side(network, 6, DType::F64, |name, shape| numbers(name, shape.iter().product()))
    };
    let mut bench = Bench::with_sides(&config, 6, DType::F64, make(&student), make(&teacher));
    let message = bench.term().unwrap_err().to_string();
    assert!(message.starts_with("mmd: the first batch's distance is -") && message.contains("fixed"), "{message}");
}

#[test]
fn widths_must_agree_unless_a_layer_is_trained_between_them() {
    let pair = (spec("student", &[[3, 8]], 5), spec("teacher", &[[3, 8]], 9));
    let build = |text: &str| build_for(&parse(text), &pair, &train_labels(), DType::F32);
    let message = build(r#"{"method": "w2-empirical"}"#).err().unwrap().to_string();
    assert!(
        message.contains("found 5 in the student and 9 in the teacher") && message.contains("regressor"),
        "{message}"
    );
    let parts = |text: &str| -> Vec<String> {
        build(text).unwrap().params.trainable().into_iter().map(|(name, _)| name).collect()
    };
    let linear = parts(r#"{"method": "w2-empirical", "matching": {"regressor": "linear"}}"#);
    assert_eq!(linear, ["regressor.linear.bias", "regressor.linear.weight"]);
    let bn = parts(r#"{"method": "w2-empirical", "matching": {"regressor": "linear-bn"}}"#);
    assert_eq!(bn, ["regressor.bn.bias", "regressor.bn.weight", "regressor.linear.weight"]);
    assert!(parts(r#"{"method": "gromov-wasserstein"}"#).is_empty());
}

#[test]
fn directions_change_from_step_to_step_and_come_back_with_the_state() {
    let config = parse(r#"{"method": "sliced-w2", "projections": 3}"#);
    let mut bench = Bench::new(&config, 6, DType::F64);
    let first = scalar(&bench.term().unwrap().value);
    assert_eq!(scalar(&bench.term().unwrap().value), first);
    bench.built.loss.after_step().unwrap();
    let (second, state) = (scalar(&bench.term().unwrap().value), bench.built.loss.state().unwrap());
    assert_ne!(first, second);
    let mut resumed = Bench::new(&config, 6, DType::F64);
    resumed.built.loss.load_state(&state).unwrap();
    assert_eq!(scalar(&resumed.term().unwrap().value), second);
}

#[test]
fn the_order_of_the_teachers_rows_is_of_no_consequence() {
    let (x, y) = (random("x", &[7, 4], DType::F64), random("y", &[7, 4], DType::F64));
    let turned = Tensor::cat(&[&y.narrow(0, 3, 4).unwrap(), &y.narrow(0, 0, 3).unwrap()], 0).unwrap();
    let labels = [0, 1, 0, 1, 2, 2, 0];
    let other = [1, 2, 2, 0, 0, 1, 0];
    let value = |d: retort_losses::Result<Discrepancy>| scalar(&d.unwrap().value);
    let directions = random("directions", &[1, 4], DType::F64);
    let norm = directions.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
    let directions = directions.broadcast_div(&norm).unwrap();
    let kernel = Kernel::default();
    let all = |y: &Tensor, labels_y: &[u32]| {
        [
            value(distribution::w2(&x, y)),
            value(distribution::w1(&x, y)),
            value(distribution::w2_conditional(&x, y, &labels, labels_y, Reduction::Weighted)),
            value(distribution::sinkhorn_divergence(&x, y, &distribution::Entropic::default())),
            value(distribution::sliced_w2(&x, y, &directions)),
            value(distribution::gaussian_w2(&x, y, 0.1, true)),
            value(distribution::coral(&x, y, distribution::SecondMoment::Log, 0.1)),
            value(distribution::mmd(&x, y, &kernel, Estimator::Unbiased)),
            value(distribution::energy_distance(&x, y, Estimator::Biased)),
        ]
    };
    for (a, b) in all(&y, &labels).into_iter().zip(all(&turned, &other)) {
        assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{a} {b}");
    }
    assert!(value(distribution::w2(&x, &y)) <= value(distribution::paired_l2(&x, &y)));
    // A common shift of both clouds changes nothing, so the two derivatives cancel.
    let x = candle_core::Var::from_tensor(&x).unwrap();
    let found = distribution::w2(&x, &y).unwrap();
    let own = found.value.backward().unwrap().get(&x).unwrap().sum(0).unwrap();
    let sum: Vec<f64> = (own + found.grad_teacher.sum(0).unwrap()).unwrap().to_vec1().unwrap();
    assert!(sum.iter().all(|g| g.abs() < 1e-12), "{sum:?}");
}

#[test]
fn classes_that_never_meet_give_zero_and_no_gradient() {
    let x = candle_core::Var::from_tensor(&random("x", &[3, 2], DType::F32)).unwrap();
    let y = random("y", &[2, 2], DType::F32);
    for found in [
        distribution::w2_conditional(&x, &y, &[0, 1, 2], &[3, 4], Reduction::Mean),
        distribution::mmd_conditional(
            &x,
            &y,
            &[0, 1, 2],
            &[3, 4],
            &Kernel::default(),
            Estimator::Biased,
            Reduction::Sum,
        ),
    ] {
        let found = found.unwrap();
        assert_eq!((scalar(&found.value), found.detail("classes").is_none()), (0.0, true));
        let grads = found.value.backward().unwrap();
        let grad: Vec<f32> = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(grad, [0.0; 6]);
    }
}

#[test]
fn an_iteration_that_does_not_converge_says_so() {
    let (x, y) = (random("x", &[8, 3], DType::F32), random("y", &[8, 3], DType::F32));
    let converged = |max_iter, tolerance| {
        let options = distribution::Entropic { relative_eps: 1e-3, max_iter, tolerance, ..Default::default() };
        scalar(distribution::sinkhorn(&x, &y, &options).unwrap().detail("converged").unwrap())
    };
    assert_eq!((converged(500, 1e-6), converged(1, 1e-300)), (1.0, 0.0));
}
