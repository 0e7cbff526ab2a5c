//! Options beside the defaults: spread of label smoothing, squared distances, kernels, samplers.

use crate::fixture::{Bench, build_for, flat, networks, random, random_side, scalar, small, train_labels};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::contrastive::NegativesBy;
use retort_losses::feature::{self, PolynomialKernel, neuron_selectivity, neuron_selectivity_with};
use retort_losses::output::{Spread, label_smoothing};
use retort_losses::relational::{relational, relational_squared};
use retort_losses::{LossConfig, Result};
use std::collections::BTreeSet;
use std::slice::from_ref;

const CPU: &Device = &Device::Cpu;

fn parse(json: &str) -> LossConfig {
    serde_json::from_str(json).unwrap()
}

/// Checks the gradient of `f` at `x` by central differences.
fn check_gradient(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    let var = Var::from_tensor(x).unwrap();
    let grad = flat(f(&var).unwrap().backward().unwrap().get(&var).unwrap());
    let values = flat(x);
    for i in 0..values.len() {
        let at = |h: f64| {
            let mut moved = values.clone();
            moved[i] += h;
            scalar(&f(&Tensor::from_vec(moved, x.shape(), CPU).unwrap()).unwrap())
        };
        let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
        assert!((grad[i] - slope).abs() < 1e-8 + 1e-6 * slope.abs(), "{i}: {} {slope}", grad[i]);
    }
}

#[test]
fn the_two_spreads_differ_by_the_labels_share() {
    let (z, labels) = (random("z", &[6, 5], DType::F64), Tensor::new(&[0u32, 4, 2, 2, 1, 3], CPU).unwrap());
    let loss = |eps: f64, spread| scalar(&label_smoothing(&z, &labels, eps, spread).unwrap());
    let hard = loss(0.0, Spread::All);
    assert_eq!(hard, loss(0.0, Spread::Wrong));
    // `wrong` moves eps away from the label, `all` only 4/5 of it, along the same line.
    let (all, wrong) = (loss(0.3, Spread::All) - hard, loss(0.3, Spread::Wrong) - hard);
    assert!(all.abs() > 1e-3 && (all - 0.8 * wrong).abs() < 1e-13, "{all} {wrong}");
    // All of the mass: the uniform distribution, or none on the label.
    let log_p = |row: usize| {
        let z = &flat(&z)[row * 5..][..5];
        let normalizer = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        z.iter().map(|z| z - normalizer).collect::<Vec<_>>()
    };
    let ids = [0, 4, 2, 2, 1, 3];
    let mean = |f: &dyn Fn(&[f64], usize) -> f64| (0..6).map(|b| f(&log_p(b), ids[b])).sum::<f64>() / 6.0;
    let sum = |p: &[f64]| p.iter().sum::<f64>();
    assert!((loss(1.0, Spread::All) + mean(&|p, _| sum(p) / 5.0)).abs() < 1e-13);
    assert!((loss(1.0, Spread::Wrong) + mean(&|p, y| (sum(p) - p[y]) / 4.0)).abs() < 1e-13);
    check_gradient(&z, |z| label_smoothing(z, &labels, 0.3, Spread::Wrong));
}

#[test]
fn smoothing_over_wrong_classes_needs_two() {
    let wrong = parse(r#"{"method": "label-smoothing", "spread": "wrong"}"#);
    let (mut student, teacher) = networks(&wrong);
    build_for(&wrong, &(student.clone(), teacher.clone()), &train_labels(), DType::F32).unwrap();
    student.classes = 1;
    let message = match build_for(&wrong, &(student, teacher), &train_labels(), DType::F32) {
        Ok(_) => panic!("was built"),
        Err(error) => error.to_string(),
    };
    assert_eq!(message, "label-smoothing: `spread` over the wrong classes needs at least two classes, found one");
    // Over all of one class: nothing to learn.
    let one = Tensor::new(&[[3.0], [-1.0]], CPU).unwrap();
    let labels = Tensor::new(&[0u32, 0], CPU).unwrap();
    assert_eq!(scalar(&label_smoothing(&one, &labels, 0.1, Spread::All).unwrap()), 0.0);
}

#[test]
fn squared_distances_by_hand() {
    // Squared distances 1, 4, 1 and 1, 1, 4 with mean 2 each: differences of 3/2 in two pairs, which cost 1 each.
    let s = Tensor::new(&[[0.0], [1.0], [2.0]], CPU).unwrap();
    let t = Tensor::new(&[[1.0], [0.0], [2.0]], CPU).unwrap();
    let squared = relational_squared(&s, &t).unwrap();
    assert!((scalar(&squared.distance) - 4.0 / 9.0).abs() < 1e-14, "{}", scalar(&squared.distance));
    let plain = relational(&s, &t).unwrap();
    assert_eq!(scalar(&squared.angle), scalar(&plain.angle));
    // Distances 1, 2, 1 with mean 4/3: two differences of 3/4.
    assert!((scalar(&plain.distance) - 4.0 * 0.5 * 0.5625 / 9.0).abs() < 1e-14);
}

#[test]
fn squared_distances_have_their_gradient_and_ignore_scale_and_order() {
    let (s, t) = (random("s", &[5, 3], DType::F64), random("t", &[5, 4], DType::F64));
    check_gradient(&s, |s| relational_squared(s, &t)?.combine(25.0, 50.0));
    let value = |s: &Tensor, t: &Tensor| scalar(&relational_squared(s, t).unwrap().distance);
    assert!((value(&s, &t) - value(&(&s * 7.0).unwrap(), &t)).abs() < 1e-13);
    let order = Tensor::new(&[3u32, 0, 4, 1, 2], CPU).unwrap();
    let [ps, pt] = [&s, &t].map(|x| x.index_select(&order, 0).unwrap());
    assert!((value(&s, &t) - value(&ps, &pt)).abs() < 1e-13);
    assert_eq!(value(&s, &s), 0.0);
    assert_eq!(value(&s.narrow(0, 0, 1).unwrap(), &t.narrow(0, 0, 1).unwrap()), 0.0);
    // Duplicates are constants.
    let twice = Var::from_tensor(&Tensor::cat(&[&s, &s], 0).unwrap()).unwrap();
    let loss = relational_squared(&twice, &random("u", &[10, 4], DType::F64)).unwrap().combine(25.0, 50.0).unwrap();
    assert!(flat(loss.backward().unwrap().get(&twice).unwrap()).iter().all(|g| g.is_finite() && g.abs() < 1e3));
    let same = Var::from_tensor(&Tensor::ones((4, 3), DType::F64, CPU).unwrap()).unwrap();
    let loss = relational_squared(&same, &t.narrow(0, 0, 4).unwrap()).unwrap().combine(25.0, 50.0).unwrap();
    assert_eq!(flat(loss.backward().unwrap().get(&same).unwrap()), [0.0; 12]);
}

#[test]
fn squared_is_an_option_of_rkd() {
    let value = |json| scalar(&Bench::new(&parse(json), 6, DType::F64).term().unwrap().value);
    let plain = value(r#"{"method": "rkd"}"#);
    assert_eq!(plain, value(r#"{"method": "rkd", "squared": false}"#));
    assert_ne!(plain, value(r#"{"method": "rkd", "squared": true}"#));
}

#[test]
fn kernels_of_nst_by_hand() {
    // Unit channels along (3, 4) / 5 against (1, 0), inner product 0.6.
    let s = Tensor::new(&[[[[3.0, 4.0]]]], CPU).unwrap();
    let t = Tensor::new(&[[[[2.0, 0.0]]]], CPU).unwrap();
    let value = |degree, offset| {
        let kernel = PolynomialKernel { degree, offset };
        scalar(&neuron_selectivity_with(from_ref(&s), from_ref(&t), kernel).unwrap().total)
    };
    for (degree, offset) in [(1, 0.0), (1, 2.0), (2, 0.0), (2, 0.5), (3, 0.0), (4, 1.0)] {
        let k = |x: f64| (x + offset).powi(degree as i32);
        assert!((value(degree, offset) - (2.0 * k(1.0) - 2.0 * k(0.6))).abs() < 1e-12, "{degree} {offset}");
    }
    let plain = scalar(&neuron_selectivity(from_ref(&s), from_ref(&t)).unwrap().total);
    assert_eq!(value(2, 0.0), plain);
    for (degree, offset, field) in
        [(0, 0.0, "degree"), (17, 0.0, "degree"), (2, -1.0, "offset"), (2, f64::NAN, "offset")]
    {
        let kernel = PolynomialKernel { degree, offset };
        let direct = neuron_selectivity_with(from_ref(&s), from_ref(&t), kernel).unwrap_err().to_string();
        let config = LossConfig::Nst(feature::NstConfig { degree, offset, ..Default::default() });
        for message in [direct, config.validate().unwrap_err().to_string()] {
            assert!(message.starts_with(&format!("nst: field `{field}`")), "{message}");
        }
    }
}

#[test]
fn kernels_of_nst_have_their_gradients() {
    // Wide and narrow maps: by channel and, for the default kernel, by position.
    for (shape_s, shape_t) in [([2, 2, 3, 3], [2, 3, 3, 3]), ([2, 5, 1, 2], [2, 6, 1, 2])] {
        let s = random("s", &shape_s, DType::F64);
        let t = random("t", &shape_t, DType::F64);
        for (degree, offset) in [(1, 0.0), (2, 0.0), (2, 0.7), (3, 0.0), (3, 0.5), (5, 1.0)] {
            let kernel = PolynomialKernel { degree, offset };
            check_gradient(&s, |s| Ok(neuron_selectivity_with(from_ref(s), from_ref(&t), kernel)?.total));
        }
        let zero = Var::from_tensor(&s.zeros_like().unwrap()).unwrap();
        let kernel = PolynomialKernel { degree: 3, offset: 0.5 };
        let loss = neuron_selectivity_with(&[zero.as_tensor().clone()], &[t], kernel).unwrap().total;
        assert!(scalar(&loss).is_finite());
        assert!(loss.backward().unwrap().get(&zero).is_none_or(|g| flat(g).iter().all(|g| *g == 0.0)));
    }
}

#[test]
fn samplers_of_crd_are_options() {
    let value = |json: &str, labels: &[u32]| {
        let config = small(parse(json));
        let networks = networks(&config);
        let sides = (random_side(&networks.0, 5, DType::F64), random_side(&networks.1, 5, DType::F64));
        let built = build_for(&config, &networks, labels, DType::F64)?;
        Bench::with_built(built, 5, sides.0, sides.1).term().map(|term| scalar(&term.value))
    };
    let labels = train_labels();
    let plain = value(r#"{"method": "crd"}"#, &labels).unwrap();
    let mut seen = BTreeSet::from([plain.to_bits()]);
    for json in [
        r#"{"method": "crd", "mode": "relax"}"#,
        r#"{"method": "crd", "percent": 0.5}"#,
        r#"{"method": "crd", "negatives_by": "instance"}"#,
        r#"{"method": "crd", "negatives_by": "any"}"#,
    ] {
        let value = value(json, &labels).unwrap();
        assert!(value.is_finite() && seen.insert(value.to_bits()), "{json}: {value}");
    }
    assert_eq!(plain, value(r#"{"method": "crd", "negatives_by": "class", "percent": 1}"#, &labels).unwrap());
    // Without classes.
    for by in ["instance", "any"] {
        let config = format!(r#"{{"method": "crd", "negatives_by": "{by}"}}"#);
        assert!(!parse(&config).needs().labels && parse(&config).needs().index);
        assert_eq!(value(&config, &labels).unwrap(), value(&config, &[0; 20]).unwrap());
        assert!(value(&config, &[]).is_err());
    }
    let message = value(r#"{"method": "crd"}"#, &[0; 20]).unwrap_err().to_string();
    assert!(message.starts_with("crd: ") && message.contains("`instance`"), "{message}");
    assert!(parse(r#"{"method": "crd"}"#).needs().labels);
}

#[test]
fn samplers_that_need_classes_say_so() {
    for (json, expected) in [
        (
            r#""negatives_by": "instance", "mode": "relax""#,
            "field `mode`: expected `exact` unless `negatives_by` is `class`, found `relax`",
        ),
        (
            r#""negatives_by": "any", "percent": 0.5"#,
            "field `percent`: expected 1 unless `negatives_by` is `class`, found 0.5",
        ),
        (r#""percent": 0"#, "field `percent`: expected a number above 0 and at most 1, found 0"),
        (r#""percent": 1.01"#, "field `percent`: expected a number above 0 and at most 1, found 1.01"),
    ] {
        let config = parse(&format!(r#"{{"method": "crd", {json}}}"#));
        assert_eq!(config.validate().unwrap_err().to_string(), format!("crd: {expected}"));
    }
    let message = serde_json::from_str::<LossConfig>(r#"{"method": "crd", "negatives_by": "classes"}"#).unwrap_err();
    assert!(message.to_string().contains("`instance`"), "{message}");
    assert_eq!(NegativesBy::default(), NegativesBy::Class);
}
