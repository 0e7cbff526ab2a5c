//! Exact distances: values by hand, gradients by differences, invariances, borders.

use crate::assignment::random;
use proptest::prelude::*;
use retort_transport::{
    ClassReduction, Cost, Distance, Error, FeatureScale, JointOptions, LabelCost, Points, Result, TransportOptions, w1,
    w1_weighted, w2, w2_conditional, w2_joint, w2_weighted,
};

const DEFAULT: TransportOptions = TransportOptions { max_pivots: 1_000_000 };
const SUM: ClassReduction = ClassReduction::Sum;

fn student(values: &[f64], width: usize) -> Points<'_> {
    Points::new("student", values, width).unwrap()
}

fn teacher(values: &[f64], width: usize) -> Points<'_> {
    Points::new("teacher", values, width).unwrap()
}

/// Compares a gradient with central differences of the value.
fn check_gradient(x: &[f64], gradient: &[f64], value: impl Fn(&[f64]) -> f64) {
    let step = 1e-6;
    for k in 0..x.len() {
        let moved = |by: f64| {
            let mut x = x.to_vec();
            x[k] += by;
            value(&x)
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        assert!((slope - gradient[k]).abs() < 1e-6 * (1.0 + slope.abs()), "at {k}: {slope} but {}", gradient[k]);
    }
}

/// Labels 0, 1, 2, ... in turn.
fn labels(len: usize, classes: u32) -> Vec<u32> {
    (0..len as u32).map(|i| i * 7 % classes).collect()
}

/// The rows from the last to the first.
fn reversed(values: &[f64], width: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = values.chunks_exact(width).collect();
    rows.iter().rev().flat_map(|row| row.iter()).copied().collect()
}

/// A rotation in the plane of the first two coordinates, then in that of the last two.
fn rotated(values: &[f64], width: usize) -> Vec<f64> {
    let mut values = values.to_vec();
    for row in values.chunks_exact_mut(width) {
        for k in [0, width - 2] {
            let (a, b) = (row[k], row[k + 1]);
            (row[k], row[k + 1]) = (0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b);
        }
    }
    values
}

fn map(values: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
    values.iter().map(|&x| f(x)).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-10 * (1.0 + a.abs().max(b.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariances(seed in any::<u64>(), n in 1usize..12, m in 1usize..12, shift in -50f64..50.0, scale in 0.01f64..20.0) {
        let (x, y) = (random(seed, n * 3), random(!seed, m * 3));
        let value = |x: &[f64], y: &[f64]| {
            let (x, y) = (student(x, 3), teacher(y, 3));
            (w1(x, y).unwrap().distance.value, w2(x, y).unwrap().distance.value)
        };
        let (one, two) = value(&x, &y);
        prop_assert!(one * one <= two * (1.0 + 1e-12), "Jensen");
        for (x, y) in [
            (reversed(&x, 3), y.clone()),
            (x.clone(), reversed(&y, 3)),
            (map(&x, |c| c + shift), map(&y, |c| c + shift)),
            (rotated(&x, 3), rotated(&y, 3)),
            (y.clone(), x.clone()),
        ] {
            let moved = value(&x, &y);
            prop_assert!(close(moved.0, one) && close(moved.1, two), "{moved:?} but {one}, {two}");
        }
        let scaled = value(&map(&x, |c| c * scale), &map(&y, |c| c * scale));
        prop_assert!(close(scaled.0, scale * one) && close(scaled.1, scale * scale * two));
    }

    #[test]
    fn a_permutation_is_at_distance_zero(seed in any::<u64>(), n in 1usize..40, offset in -1e8f64..1e8) {
        let x = map(&random(seed, n * 4), |c| c + offset);
        let y = reversed(&x, 4);
        for w in [w1(student(&x, 4), teacher(&y, 4)).unwrap(), w2(student(&x, 4), teacher(&y, 4)).unwrap()] {
            prop_assert_eq!(w.distance.value, 0.0);
            prop_assert!(w.distance.grad_x.iter().chain(&w.distance.grad_y).all(|g| *g == 0.0));
        }
    }

    #[test]
    fn order_of_the_distances(seed in any::<u64>(), n in 1usize..30, classes in 1u32..5) {
        let (x, y, labels) = (random(seed, n * 3), random(!seed, n * 3), labels(n, classes));
        let (x, y) = (student(&x, 3), teacher(&y, 3));
        let w2 = w2(x, y).unwrap().distance.value;
        let cw2 = w2_conditional(x, y, &labels, &labels, ClassReduction::Weighted).unwrap().distance.value;
        let paired = x.values().iter().zip(y.values()).map(|(x, y)| (x - y) * (x - y)).sum::<f64>() / n as f64;
        prop_assert!(w2 <= cw2 + 1e-12 && cw2 <= paired + 1e-12, "{w2} {cw2} {paired}");
    }

    #[test]
    fn limits_of_the_joint_distance(seed in any::<u64>(), n in 1usize..25, classes in 1u32..5, max in any::<bool>()) {
        let (x, y, labels) = (random(seed, n * 3), random(!seed, n * 3), labels(n, classes));
        let (x, y) = (student(&x, 3), teacher(&y, 3));
        let cost = LabelCost::OneHotSq { x: &labels, y: &labels };
        let scale = if max { FeatureScale::Max } else { FeatureScale::None };
        let joint = |beta| w2_joint(x, y, cost, &JointOptions { beta, scale }).unwrap();
        let w2 = w2(x, y).unwrap().distance.value;
        let cw2 = w2_conditional(x, y, &labels, &labels, ClassReduction::Weighted).unwrap().distance.value;
        for (beta, limit) in [(0.0, w2), (1e-12, w2), (1e4, cw2), (1e9, cw2)] {
            let joint = joint(beta);
            prop_assert!((joint.distance.value - joint.scale * limit).abs() < 1e-7, "beta {}", beta);
        }
        prop_assert_eq!(joint(1e9).label_part, 0.0);
        // More weight on labels never lowers the features' part.
        prop_assert!(joint(0.1).feature_part <= joint(10.0).feature_part + 1e-12);
    }

    #[test]
    fn labels_that_are_permuted_along_change_nothing(seed in any::<u64>(), n in 2usize..20, m in 2usize..20) {
        let (x, y) = (random(seed, n * 3), random(!seed, m * 3));
        let (lx, ly) = (labels(n, 3), labels(m, 4));
        let (x2, lx2): (_, Vec<u32>) = (reversed(&x, 3), lx.iter().rev().copied().collect());
        for reduction in [SUM, ClassReduction::Mean, ClassReduction::Weighted] {
            let value = |x: &[f64], lx: &[u32]| {
                w2_conditional(student(x, 3), teacher(&y, 3), lx, &ly, reduction).unwrap().distance.value
            };
            prop_assert!(close(value(&x, &lx), value(&x2, &lx2)));
        }
        let logits = random(seed ^ 5, n * 4);
        let (backwards, other) = (reversed(&logits, 4), random(seed ^ 6, m * 4));
        let value = |x: &[f64], z: &[f64]| {
            let cost = LabelCost::Kl { x: student(z, 4), y: teacher(&other, 4) };
            w2_joint(student(x, 3), teacher(&y, 3), cost, &JointOptions::default()).unwrap().distance.value
        };
        prop_assert!(close(value(&x, &logits), value(&x2, &backwards)));
    }
}

#[test]
fn gradients_of_the_plain_distances() {
    for (n, m) in [(7, 7), (5, 8), (1, 4), (4, 1)] {
        let (x, y) = (random(1, n * 3), random(2, m * 3));
        for f in [w1, w2] {
            let w = f(student(&x, 3), teacher(&y, 3)).unwrap().distance;
            check_gradient(&x, &w.grad_x, |x| f(student(x, 3), teacher(&y, 3)).unwrap().distance.value);
            check_gradient(&y, &w.grad_y, |y| f(student(&x, 3), teacher(y, 3)).unwrap().distance.value);
        }
    }
    let (x, y, a, b) = (random(3, 12), random(4, 15), [0.5, 0.0, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.0]);
    for f in [w1_weighted, w2_weighted] {
        let w = f(student(&x, 3), teacher(&y, 3), &a, &b, &DEFAULT).unwrap().distance;
        let value = |x: &[f64], y: &[f64]| f(student(x, 3), teacher(y, 3), &a, &b, &DEFAULT).unwrap().distance.value;
        check_gradient(&x, &w.grad_x, |x| value(x, &y));
        check_gradient(&y, &w.grad_y, |y| value(&x, y));
        assert_eq!((&w.grad_x[3..6], &w.grad_y[12..]), (&[0.0; 3][..], &[0.0; 3][..]));
    }
}

#[test]
fn gradients_of_the_conditional_distance() {
    let (x, y, lx, ly) = (random(5, 30), random(6, 24), labels(10, 4), labels(8, 3));
    for reduction in [SUM, ClassReduction::Mean, ClassReduction::Weighted] {
        let f = |x: &[f64], y: &[f64]| w2_conditional(student(x, 3), teacher(y, 3), &lx, &ly, reduction).unwrap();
        let c = f(&x, &y);
        assert!(c.converged);
        assert_eq!((&c.classes[..], &c.skipped[..]), (&[0, 1, 2][..], &[3][..]));
        check_gradient(&x, &c.distance.grad_x, |x| f(x, &y).distance.value);
        check_gradient(&y, &c.distance.grad_y, |y| f(&x, y).distance.value);
        let cost = Cost::squared_euclidean(student(&x, 3), teacher(&y, 3)).unwrap();
        let planned: f64 = c.plan.entries().iter().map(|&(i, j, mass)| mass * cost.get(i).unwrap()[j]).sum();
        assert!(close(planned, c.distance.value));
        assert!(c.plan.entries().iter().all(|&(i, j, _)| lx[i] == ly[j]));
    }
}

fn soft_labels<'a>(kind: usize, z: &'a [f64], t: &'a [f64]) -> LabelCost<'a> {
    let (x, y) = (student(z, 4), teacher(t, 4));
    match kind {
        0 => LabelCost::LogitsSq { x, y },
        1 => LabelCost::ProbsSq { x, y },
        _ => LabelCost::Kl { x, y },
    }
}

#[test]
fn gradients_of_the_joint_distance() {
    let (x, y, z, t) =
        (random(7, 18), random(8, 18), map(&random(9, 24), |c| 3.0 * c), map(&random(10, 24), |c| 3.0 * c));
    let options = JointOptions { beta: 0.7, scale: FeatureScale::None };
    for kind in 0..3 {
        let f = |x: &[f64], y: &[f64], z: &[f64], t: &[f64]| {
            w2_joint(student(x, 3), teacher(y, 3), soft_labels(kind, z, t), &options).unwrap()
        };
        let w = f(&x, &y, &z, &t);
        assert!(close(w.distance.value, w.feature_part + 0.7 * w.label_part));
        assert!(close(w.distance.value, w.transport.value));
        check_gradient(&x, &w.distance.grad_x, |x| f(x, &y, &z, &t).distance.value);
        check_gradient(&y, &w.distance.grad_y, |y| f(&x, y, &z, &t).distance.value);
        check_gradient(&z, &w.grad_logits_x, |z| f(&x, &y, z, &t).distance.value);
        check_gradient(&t, &w.grad_logits_y, |t| f(&x, &y, &z, t).distance.value);
    }
    // The maximum is a constant: the gradient is that of the unscaled features times s.
    let logits = soft_labels(0, &z, &t);
    let w = w2_joint(student(&x, 3), teacher(&y, 3), logits, &JointOptions::default()).unwrap();
    assert_eq!(w.scale, 1.0 / Cost::squared_euclidean(student(&x, 3), teacher(&y, 3)).unwrap().largest());
    for i in 0..6 {
        let pulled = |k: usize| -> f64 {
            let ours = w.transport.plan.entries().iter().filter(|e| e.0 == i);
            ours.map(|&(_, j, mass)| 2.0 * w.scale * mass * (x[i * 3 + k] - y[j * 3 + k])).sum()
        };
        (0..3).for_each(|k| assert!(close(pulled(k), w.distance.grad_x[i * 3 + k])));
    }
}

#[test]
fn label_costs_by_hand() {
    let (x, y) = ([0.0], [3.0]);
    let (z, t) = ([0.0, 3f64.ln()], [0.0, 0.0]);
    let options = JointOptions { beta: 2.0, scale: FeatureScale::Max };
    let joint = |cost| w2_joint(student(&x, 1), teacher(&y, 1), cost, &options).unwrap();
    let (sz, tz) = (student(&z, 2), teacher(&t, 2));
    // Softmax of z is (1/4, 3/4), that of t (1/2, 1/2).
    let hard = joint(LabelCost::OneHotSq { x: &[4], y: &[9] });
    assert_eq!((hard.distance.value, hard.feature_part, hard.label_part, hard.scale), (5.0, 1.0, 2.0, 1.0 / 9.0));
    assert_eq!(hard.distance.grad_x, [-6.0 / 9.0]);
    assert!(hard.grad_logits_x.is_empty() && hard.grad_logits_y.is_empty());
    assert!(close(joint(LabelCost::LogitsSq { x: sz, y: tz }).label_part, 3f64.ln().powi(2)));
    assert!(close(joint(LabelCost::ProbsSq { x: sz, y: tz }).label_part, 0.125));
    let kl = joint(LabelCost::Kl { x: sz, y: tz });
    assert!(close(kl.label_part, 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln()));
    assert!(kl.grad_logits_y.iter().zip([0.5, -0.5]).all(|(g, e)| close(*g, e)));
}

#[test]
fn no_common_class_is_zero() {
    let (x, y) = (random(1, 6), random(2, 4));
    let c = w2_conditional(student(&x, 2), teacher(&y, 2), &[1, 1, 5], &[2, 0], SUM).unwrap();
    assert_eq!(c.distance, Distance { value: 0.0, grad_x: vec![0.0; 6], grad_y: vec![0.0; 4] });
    assert!(c.classes.is_empty() && c.per_class.is_empty() && c.plan.entries().is_empty() && c.converged);
    assert_eq!(c.skipped, [0, 1, 2, 5]);
}

#[test]
fn weights_of_the_classes() {
    let (x, y) = ([0.0, 1.0, 10.0, 99.0], [2.0, 3.0, 13.0]);
    let (lx, ly) = ([0, 0, 1, 7], [0, 0, 1]);
    let value = |r| w2_conditional(student(&x, 1), teacher(&y, 1), &lx, &ly, r).unwrap().distance.value;
    assert_eq!(value(SUM), 4.0 + 9.0);
    assert_eq!(value(ClassReduction::Mean), 6.5);
    assert!(close(value(ClassReduction::Weighted), (2.0 * 4.0 + 9.0) / 3.0));
}

#[test]
fn single_points_and_duplicates() {
    let w = w2(student(&[1.0, 2.0], 2), teacher(&[4.0, 6.0], 2)).unwrap();
    assert_eq!(
        (w.distance.value, &w.distance.grad_x[..], &w.distance.grad_y[..]),
        (25.0, &[-6.0, -8.0][..], &[6.0, 8.0][..])
    );
    let w = w1(student(&[1.0, 2.0], 2), teacher(&[4.0, 6.0], 2)).unwrap();
    assert_eq!((w.distance.value, &w.distance.grad_x[..]), (5.0, &[-3.0 / 5.0, -4.0 / 5.0][..]));
    // All points of a side equal: everything goes everywhere at the same price.
    let (x, y) = (vec![0.0; 20], vec![2.0; 14]);
    let w = w2(student(&x, 2), teacher(&y, 2)).unwrap();
    assert!(close(w.distance.value, 8.0));
    assert!(w.distance.grad_x.iter().all(|g| close(*g, -0.4)), "{:?}", w.distance.grad_x);
    let zeros = w2_joint(
        student(&x, 2),
        teacher(&x, 2),
        LabelCost::OneHotSq { x: &[0; 10], y: &[1; 10] },
        &JointOptions::default(),
    );
    let zeros = zeros.unwrap();
    assert!(close(zeros.distance.value, 2.0));
    assert_eq!((zeros.feature_part, zeros.scale), (0.0, 1.0));
}

#[test]
fn extreme_coordinates() {
    let (x, y) = (random(1, 24), random(2, 24));
    let plain = w2(student(&x, 3), teacher(&y, 3)).unwrap();
    for power in [490, -490] {
        let scale = 2f64.powi(power);
        let (x, y) = (map(&x, |c| c * scale), map(&y, |c| c * scale));
        let w = w2(student(&x, 3), teacher(&y, 3)).unwrap();
        assert_eq!(w.transport.plan, plain.transport.plan);
        assert_eq!(w.distance.value, plain.distance.value * scale * scale);
    }
    let first = w1(student(&x, 3), teacher(&y, 3)).unwrap();
    for power in [1000, -1000] {
        let scale = 2f64.powi(power);
        let (x, y) = (map(&x, |c| c * scale), map(&y, |c| c * scale));
        let w = w1(student(&x, 3), teacher(&y, 3)).unwrap();
        assert!((w.distance.value / scale - first.distance.value).abs() < 1e-14);
        assert!(w.distance.grad_x.iter().zip(&first.distance.grad_x).all(|(a, b)| (a - b).abs() < 1e-14));
    }
    // Logits whose softmax is 0 and 1.
    let z = [1e4, -1e4, 0.0, -1e4, 1e4, 0.0];
    let cost = LabelCost::Kl { x: student(&z, 3), y: teacher(&z, 3) };
    let w = w2_joint(student(&x[..6], 3), teacher(&y[..6], 3), cost, &JointOptions { beta: 1.0, ..Default::default() });
    let w = w.unwrap();
    assert!(w.distance.value.is_finite() && w.grad_logits_x.iter().chain(&w.grad_logits_y).all(|g| g.is_finite()));
}

#[test]
fn errors_name_what_is_wrong() {
    let (x, y) = (random(1, 12), random(2, 12));
    let message = |r: Result<f64>| r.unwrap_err().to_string();
    let two = |x: Points<'_>, y: Points<'_>| w2(x, y).map(|w| w.distance.value);
    let widths = "student and teacher: expected points of the same width, found 3 and 4";
    assert_eq!(message(two(student(&x, 3), teacher(&y, 4))), widths);
    assert_eq!(message(w1(student(&x, 3), teacher(&y, 4)).map(|w| w.distance.value)), widths);
    let far = [1e200, 0.0];
    let overflow = message(two(student(&far, 1), teacher(&[0.0], 1)));
    assert!(overflow.starts_with("squared distance between student and teacher: expected a finite cost"), "{overflow}");
    assert_eq!(w1(student(&far, 1), teacher(&[0.0], 1)).unwrap().distance.value, 5e199);
    assert!(w1(student(&[f64::MAX], 1), teacher(&[-f64::MAX], 1)).is_err());

    let (x, y) = (student(&x, 3), teacher(&y, 3));
    let conditional = |lx: &[u32], ly: &[u32]| w2_conditional(x, y, lx, ly, SUM).map(|c| c.distance.value);
    assert_eq!(message(conditional(&[0; 3], &[0; 4])), "labels of student: expected 4 labels, found 3");
    assert_eq!(message(conditional(&[0; 4], &[0; 5])), "labels of teacher: expected 4 labels, found 5");

    let hard = LabelCost::OneHotSq { x: &[0; 4], y: &[0; 4] };
    for beta in [-1.0, f64::NAN, f64::INFINITY] {
        let bad = w2_joint(x, y, hard, &JointOptions { beta, ..Default::default() });
        assert!(matches!(bad, Err(Error::Option { field: "beta", .. })));
    }
    let joint = |cost| w2_joint(x, y, cost, &JointOptions::default()).map(|w| w.distance.value);
    assert_eq!(
        message(joint(LabelCost::OneHotSq { x: &[0; 4], y: &[0; 2] })),
        "labels of teacher: expected 4 labels, found 2"
    );
    let logits = random(3, 12);
    let z = Points::new("student logits", &logits, 3).unwrap();
    let short = Points::new("teacher logits", &logits[..9], 3).unwrap();
    assert_eq!(message(joint(LabelCost::Kl { x: z, y: short })), "teacher logits: expected 4 rows, found 3");
    let wide = Points::new("teacher logits", &logits, 4).unwrap();
    assert!(message(joint(LabelCost::ProbsSq { x: z, y: wide })).contains("same width, found 3 and 4"));
    let huge = [1e308, -1e308, 0.0, 1e308, -1e308, 0.0, 1e308, -1e308, 0.0, 1e308, -1e308, 0.0];
    let huge = Points::new("student logits", &huge, 3).unwrap();
    for cost in [LabelCost::Kl { x: huge, y: huge }, LabelCost::LogitsSq { x: huge, y: z }] {
        assert!(message(joint(cost)).contains("student logits and"));
    }
    let a = [0.5, 0.5];
    assert!(matches!(w2_weighted(x, y, &a, &a, &DEFAULT), Err(Error::Shape { what, .. }) if what == "a"));
    assert!(matches!(w1_weighted(x, y, &[0.25; 4], &a, &DEFAULT), Err(Error::Shape { what, .. }) if what == "b"));
}

#[test]
fn threads_change_no_bit() {
    let (x, y) = (random(1, 150 * 40), random(2, 170 * 40));
    let (lx, ly) = (labels(150, 6), labels(170, 6));
    let all = || {
        let (x, y) = (student(&x, 40), teacher(&y, 40));
        let kl = LabelCost::Kl { x, y };
        (
            w1(x, y).unwrap(),
            w2(x, y).unwrap(),
            w2_conditional(x, y, &lx, &ly, SUM).unwrap(),
            w2_joint(x, y, kl, &JointOptions::default()).unwrap(),
        )
    };
    let with = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(all);
    assert!(with(1) == with(2));
}
