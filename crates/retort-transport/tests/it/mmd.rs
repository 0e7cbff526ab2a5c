//! Maximum mean discrepancy.

use crate::clouds::{
    Clouds, all_close, check_extremes, check_gradient, check_order, check_rotation, check_scale, check_threads,
    check_translation, close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{Bandwidth, ClassReduction, Distance, Estimator, Kernel, MmdOptions, mmd, mmd_conditional, w1};

fn rbf(bandwidth: Bandwidth, multipliers: &[f64]) -> Kernel {
    Kernel::Rbf { bandwidth, multipliers: multipliers.to_vec() }
}

fn with(kernel: Kernel, estimator: Estimator) -> impl Fn(&Clouds) -> Distance + Sync {
    let options = MmdOptions { kernel, estimator };
    move |c| mmd(c.x(), c.y(), &options).unwrap().distance
}

const BOTH: [Estimator; 2] = [Estimator::Biased, Estimator::Unbiased];

#[test]
fn by_hand() {
    let c = Clouds::new(&[0.0, 2.0], &[1.0, 1.0, 4.0], 1);
    close(with(Kernel::Linear, Estimator::Biased)(&c).value, 1.0, 1e-15);
    // x x' = 0, y y' = (1 + 4 + 4)/3 over distinct pairs, x y = 1 * 2.
    close(with(Kernel::Linear, Estimator::Unbiased)(&c).value, 0.0 + 3.0 - 4.0, 1e-15);
    // (xy + 1)^2: within x 1, 1, 1, 25; within y 4 (4 times), 25 (4 times), 289; across 1 (3 times), 9, 9, 81.
    let square = with(Kernel::Polynomial { degree: 2, coef0: 1.0 }, Estimator::Biased)(&c);
    close(square.value, 28.0 / 4.0 + 405.0 / 9.0 - 2.0 * 102.0 / 6.0, 1e-15);
    let k = |d: f64| (-d * d / 8.0).exp();
    let gauss = with(rbf(Bandwidth::Fixed(2.0), &[1.0]), Estimator::Unbiased)(&c);
    let by_hand = k(2.0) + (1.0 + 2.0 * k(3.0)) / 3.0 - 2.0 * (2.0 * k(1.0) + k(4.0) + 2.0 * k(1.0) + k(2.0)) / 6.0;
    close(gauss.value, by_hand, 1e-14);
}

#[test]
fn bandwidths_by_hand() {
    let c = Clouds::new(&[0.0, 2.0], &[1.0, 5.0], 1);
    let found = |bandwidth, multipliers: &[f64]| {
        mmd(c.x(), c.y(), &MmdOptions { kernel: rbf(bandwidth, multipliers), ..MmdOptions::default() })
            .unwrap()
            .bandwidths
    };
    // XX 0 2 2 0, YY 0 4 4 0, XY 1 5 1 3.
    all_close(&found(Bandwidth::MeanDistance, &[1.0, 2.0]), &[22.0 / 12.0, 44.0 / 12.0], 1e-15);
    // Squares 4 16 1 25 1 9: the middle ones are 4 and 9.
    all_close(&found(Bandwidth::Median, &[0.5]), &[0.5 * 6.5f64.sqrt()], 1e-15);
    assert_eq!(found(Bandwidth::Fixed(3.0), &[1.0]), [3.0]);
    let linear = MmdOptions { kernel: Kernel::Linear, ..MmdOptions::default() };
    assert_eq!(mmd(c.x(), c.y(), &linear).unwrap().bandwidths, [1.0]);
}

#[test]
fn the_median_over_several_blocks() {
    for (n, m) in [(40, 31), (33, 40), (1, 1), (1, 2)] {
        let c = Clouds::seeded(n, m, 3, 4);
        let all: Vec<&[f64]> = c.x.chunks(3).chain(c.y.chunks(3)).collect();
        let mut squares = Vec::new();
        let mut sum = 0.0;
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let square: f64 = a.iter().zip(*b).map(|(a, b)| (a - b) * (a - b)).sum();
                if i < j {
                    squares.push(square);
                }
                // YX is the transpose of XY and does not count again.
                sum += if i >= n && j < n { 0.0 } else { square.sqrt() };
            }
        }
        squares.sort_by(f64::total_cmp);
        let (low, high) = (squares[(squares.len() - 1) / 2], squares[squares.len() / 2]);
        let median = mmd(c.x(), c.y(), &MmdOptions { kernel: rbf(Bandwidth::Median, &[1.0]), ..MmdOptions::default() });
        close(median.unwrap().bandwidths[0], (0.5 * (low + high)).sqrt(), 1e-13);
        let mean = mmd(c.x(), c.y(), &MmdOptions::default()).unwrap().bandwidths[0];
        close(mean, sum / (n * n + m * m + n * m) as f64, 1e-13);
    }
}

#[test]
fn identical_points_are_at_distance_zero() {
    let c = Clouds::new(&[0.1; 6], &[0.1; 4], 2);
    for bandwidth in [Bandwidth::MeanDistance, Bandwidth::Median, Bandwidth::Fixed(1.0)] {
        for estimator in BOTH {
            let found = with(rbf(bandwidth, &[0.5, 1.0]), estimator)(&c);
            assert_eq!(found, Distance { value: 0.0, grad_x: vec![0.0; 6], grad_y: vec![0.0; 4] });
        }
    }
    // Most pairs coincide: the median is 0, and the result shows it.
    let c = Clouds::new(&[1.0, 1.0, 1.0, 1.0], &[1.0, 2.0], 1);
    let found =
        mmd(c.x(), c.y(), &MmdOptions { kernel: rbf(Bandwidth::Median, &[1.0]), ..MmdOptions::default() }).unwrap();
    assert_eq!((found.bandwidths[0], found.distance.value), (0.0, 0.0));
}

#[test]
fn bad_arguments_are_named() {
    let c = Clouds::new(&[0.0, 1.0], &[2.0], 1);
    let error = |kernel, estimator| mmd(c.x(), c.y(), &MmdOptions { kernel, estimator }).unwrap_err().to_string();
    for kernel in [Kernel::Linear, Kernel::Polynomial { degree: 2, coef0: 1.0 }, MmdOptions::default().kernel] {
        assert_eq!(error(kernel, Estimator::Unbiased), "teacher: expected at least 2 points, found 1");
    }
    for s in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(error(rbf(Bandwidth::Fixed(s), &[1.0]), Estimator::Biased).starts_with("option `bandwidth`"));
        assert!(error(rbf(Bandwidth::Median, &[1.0, s]), Estimator::Biased).starts_with("option `multipliers`"));
    }
    assert!(error(rbf(Bandwidth::Median, &[]), Estimator::Biased).starts_with("option `multipliers`"));
    for degree in [0, u32::MAX] {
        assert!(error(Kernel::Polynomial { degree, coef0: 0.0 }, Estimator::Biased).starts_with("option `degree`"));
    }
    assert!(error(Kernel::Polynomial { degree: 1, coef0: f64::NAN }, Estimator::Biased).starts_with("option `coef0`"));
    let labels = mmd_conditional(c.x(), c.y(), &[0], &[0], &MmdOptions::default(), ClassReduction::Sum);
    assert!(labels.unwrap_err().to_string().starts_with("labels of student"));
    let options = MmdOptions { estimator: Estimator::Unbiased, ..MmdOptions::default() };
    let alone = mmd_conditional(c.x(), c.y(), &[3, 3], &[3], &options, ClassReduction::Sum);
    assert_eq!(alone.unwrap_err().to_string(), "class 3 of teacher: expected at least 2 points, found 1");
}

#[test]
fn extremes() {
    let kernels = [
        Kernel::Linear,
        Kernel::Polynomial { degree: 3, coef0: 1.0 },
        rbf(Bandwidth::MeanDistance, &[0.25, 4.0]),
        rbf(Bandwidth::Median, &[1.0]),
        rbf(Bandwidth::Fixed(1.5), &[1.0]),
        rbf(Bandwidth::Fixed(1e-300), &[1e-300, 1e300]),
        rbf(Bandwidth::Fixed(1e300), &[1.0]),
    ];
    for kernel in kernels {
        let options = MmdOptions { kernel, estimator: Estimator::Biased };
        check_extremes(|c| mmd(c.x(), c.y(), &options).map(|m| m.distance));
    }
}

#[test]
fn a_relative_bandwidth_stands_any_scale() {
    let c = Clouds::seeded(5, 7, 3, 1);
    let metric = with(MmdOptions::default().kernel, Estimator::Biased);
    for size in [1e-200, 1e200] {
        close(metric(&c.map(|_, v| v * size)).value, metric(&c).value, 1e-13);
    }
}

#[test]
fn classes_are_their_own_distances() {
    let c = Clouds::seeded(9, 8, 3, 6);
    let (labels_x, labels_y) = ([4, 0, 4, 2, 0, 4, 2, 9, 9], [2, 2, 4, 4, 7, 4, 2, 7]);
    let options = MmdOptions { kernel: rbf(Bandwidth::Median, &[1.0, 2.0]), estimator: Estimator::Unbiased };
    let found = |reduction| mmd_conditional(c.x(), c.y(), &labels_x, &labels_y, &options, reduction).unwrap();
    let pick = |v: &[f64], labels: &[u32], class| -> Vec<f64> {
        v.chunks(3).zip(labels).filter(|(_, l)| **l == class).flat_map(|(row, _)| row).copied().collect()
    };
    let alone = |class| {
        let some = Clouds { x: pick(&c.x, &labels_x, class), y: pick(&c.y, &labels_y, class), d: 3 };
        mmd(some.x(), some.y(), &options).unwrap().distance
    };
    let (two, four) = (alone(2), alone(4));
    let sum = found(ClassReduction::Sum);
    assert_eq!(sum.classes, [2, 4]);
    assert_eq!(sum.per_class, [two.value, four.value]);
    close(sum.distance.value, two.value + four.value, 1e-15);
    assert_eq!(sum.distance.grad_x[..3], four.grad_x[..3]);
    assert_eq!(sum.distance.grad_x[3..6], [0.0; 3]);
    assert_eq!(sum.distance.grad_y[..3], two.grad_y[..3]);
    close(found(ClassReduction::Mean).distance.value, 0.5 * (two.value + four.value), 1e-15);
    let weighted = found(ClassReduction::Weighted).distance;
    close(weighted.value, 0.4 * two.value + 0.6 * four.value, 1e-15);
    close(weighted.grad_x[0], 0.6 * four.grad_x[0], 1e-15);
}

#[test]
fn no_common_class_gives_zero() {
    let c = Clouds::seeded(2, 3, 2, 0);
    for reduction in [ClassReduction::Sum, ClassReduction::Mean, ClassReduction::Weighted] {
        let found = mmd_conditional(c.x(), c.y(), &[0, 1], &[2, 3, 2], &MmdOptions::default(), reduction).unwrap();
        assert_eq!(found.distance, Distance { value: 0.0, grad_x: vec![0.0; 4], grad_y: vec![0.0; 6] });
        assert!(found.classes.is_empty() && found.per_class.is_empty());
    }
}

#[test]
fn threads_change_nothing() {
    let c = Clouds::seeded(150, 130, 20, 2);
    for kernel in [
        rbf(Bandwidth::MeanDistance, &[1.0]),
        rbf(Bandwidth::Median, &[0.5, 2.0]),
        Kernel::Linear,
        Kernel::Polynomial { degree: 3, coef0: 1.0 },
    ] {
        check_threads(&c, with(kernel, Estimator::Unbiased));
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn gradients(c in clouds(2..6, 1..4), coef0 in 0.0..2.0f64, s in 0.5..3.0f64) {
        for estimator in BOTH {
            check_gradient(&c, 1e-6, with(Kernel::Linear, estimator));
            check_gradient(&c, 1e-6, with(Kernel::Polynomial { degree: 3, coef0 }, estimator));
            check_gradient(&c, 1e-6, with(rbf(Bandwidth::Fixed(s), &[0.5, 1.0, 2.0]), estimator));
        }
    }

    /// A bandwidth from the data is a constant: the gradient is that of the same number.
    #[test]
    fn data_bandwidths_are_constants(c in clouds(2..6, 1..4)) {
        for bandwidth in [Bandwidth::MeanDistance, Bandwidth::Median] {
            let kernel = rbf(bandwidth, &[1.0, 2.0]);
            let found = mmd(c.x(), c.y(), &MmdOptions { kernel, ..MmdOptions::default() }).unwrap();
            prop_assume!(found.bandwidths[0] > 0.0);
            let fixed = with(rbf(Bandwidth::Fixed(found.bandwidths[0]), &[1.0, 2.0]), Estimator::Biased)(&c);
            close(found.distance.value, fixed.value, 1e-13);
            all_close(&found.distance.grad_x, &fixed.grad_x, 1e-13);
            all_close(&found.distance.grad_y, &fixed.grad_y, 1e-13);
        }
    }

    #[test]
    fn invariances(c in clouds(2..7, 1..4)) {
        for estimator in BOTH {
            let (mean, median) = (rbf(Bandwidth::MeanDistance, &[1.0]), rbf(Bandwidth::Median, &[0.5, 2.0]));
            for (kernel, power) in [(Kernel::Linear, 2), (mean, 0), (median, 0)] {
                let metric = with(kernel, estimator);
                check_order(&c, true, 1e-11, &metric);
                check_translation(&c, 1e-8, &metric);
                check_rotation(&c, 1e-11, &metric);
                check_scale(&c, power, 1e-11, &metric);
            }
            let poly = with(Kernel::Polynomial { degree: 2, coef0: 1.0 }, estimator);
            check_order(&c, true, 1e-11, &poly);
            check_rotation(&c, 1e-11, &poly);
        }
    }

    #[test]
    fn never_negative_and_zero_at_identity(c in clouds(1..7, 1..4)) {
        let same = Clouds { y: c.x.clone(), ..c.clone() };
        for kernel in [
            Kernel::Linear,
            Kernel::Polynomial { degree: 2, coef0: 1.0 },
            rbf(Bandwidth::Fixed(1.0), &[1.0, 3.0]),
            rbf(Bandwidth::Median, &[1.0]),
        ] {
            let metric = with(kernel, Estimator::Biased);
            prop_assert!(metric(&c).value >= -1e-13);
            let zero = metric(&same);
            prop_assert_eq!(zero.value, 0.0);
            prop_assert!(zero.grad_x.iter().chain(&zero.grad_y).all(|g| *g == 0.0));
        }
    }

    /// The linear form by pairs: the polynomial kernel of degree 1 without a constant, times d.
    #[test]
    fn linear_is_a_polynomial(c in clouds(2..7, 1..4)) {
        for estimator in BOTH {
            let linear = with(Kernel::Linear, estimator)(&c);
            let pairs = with(Kernel::Polynomial { degree: 1, coef0: 0.0 }, estimator)(&c);
            let d = c.d as f64;
            close(linear.value, d * pairs.value, 1e-12);
            all_close(&linear.grad_x, &pairs.grad_x.iter().map(|g| d * g).collect::<Vec<_>>(), 1e-12);
        }
    }

    #[test]
    fn rbf_bounds_w1_from_below(c in clouds(1..7, 1..4), s in 0.2..4.0f64) {
        let w1 = w1(c.x(), c.y()).unwrap().distance.value;
        let found = with(rbf(Bandwidth::Fixed(s), &[1.0]), Estimator::Biased)(&c).value;
        prop_assert!(found.max(0.0).sqrt() <= w1 / s + 1e-7);
        let linear = with(Kernel::Linear, Estimator::Biased)(&c).value;
        prop_assert!(linear.sqrt() <= w1 + 1e-12);
    }
}
