//! Distances on the line.

use crate::clouds::{Clouds, all_close, check_extremes, check_gradient, check_order, close, clouds, few};
use proptest::prelude::*;
use retort_transport::{Error, Estimator, line};

#[test]
fn transport_by_hand() {
    // Sorted: 0 1 5 against 2 3 4.
    let w = line::wasserstein(&[5.0, 0.0, 1.0], &[4.0, 2.0, 3.0], 1.0).unwrap();
    close(w.value, (2.0 + 2.0 + 1.0) / 3.0, 1e-15);
    all_close(&w.grad_x, &[1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0], 1e-15);
    let w = line::wasserstein(&[5.0, 0.0, 1.0], &[4.0, 2.0, 3.0], 3.0).unwrap();
    close(w.value, (8.0 + 8.0 + 1.0) / 3.0, 1e-15);
    all_close(&w.grad_y, &[-1.0, 4.0, 4.0], 1e-15);
}

#[test]
fn unequal_counts_by_hand() {
    // Quantiles: 0 on (0, 1/2), 4 on (1/2, 1) against 1, 2, 6 on thirds.
    let w = line::wasserstein(&[4.0, 0.0], &[6.0, 1.0, 2.0], 2.0).unwrap();
    close(w.value, 1.0 / 3.0 + 4.0 / 6.0 + 4.0 / 6.0 + 4.0 / 3.0, 1e-15);
    all_close(&w.grad_x, &[2.0 / 6.0 * 2.0 - 2.0 / 3.0 * 2.0, -2.0 / 3.0 - 4.0 / 6.0], 1e-15);
}

#[test]
fn cramer_and_energy_by_hand() {
    // F - G is 1/2 on (0, 1), 0 on (1, 2) and -1/2 on (2, 3).
    let c = line::cramer(&[0.0, 3.0], &[1.0, 2.0]).unwrap();
    assert_eq!(c.value, 0.25 + 0.0 + 0.25);
    let e = line::energy(&[0.0, 3.0], &[1.0, 2.0], Estimator::Biased).unwrap();
    // 2 (1 + 2 + 2 + 1)/4 - 6/4 - 2/4
    assert_eq!(e.value, 1.0);
    let e = line::energy(&[0.0, 3.0], &[1.0, 2.0], Estimator::Unbiased).unwrap();
    assert_eq!(e.value, 3.0 - 3.0 - 1.0);
}

#[test]
fn ties_take_the_mean_of_both_sides() {
    // sign(0) = 0: against x = 1 the points y are below, equal, above.
    let c = line::cramer(&[1.0], &[0.0, 1.0, 1.0, 2.0]).unwrap();
    assert_eq!(c.grad_x, [0.0]);
    let c = line::cramer(&[1.0, 1.0], &[1.0, 1.0, -0.0]).unwrap();
    close(c.grad_x[0], 1.0 / 6.0, 1e-15);
    assert_eq!(c.grad_x[0], c.grad_x[1]);
    let w = line::wasserstein(&[0.0, -0.0, 0.0], &[-0.0, 0.0, 0.0], 1.0).unwrap();
    assert_eq!((w.value, w.grad_x), (0.0, vec![0.0; 3]));
}

#[test]
fn numbers_that_differ_in_the_last_bits_are_sorted() {
    let up = |k: u64| f64::from_bits(1f64.to_bits() + k);
    let x: Vec<f64> = [5, 3, 9, 1, 0, 7, 2, 8, 6, 4].iter().map(|k| up(*k)).collect();
    let y: Vec<f64> = (0..10).map(up).collect();
    let w = line::wasserstein(&x, &y, 2.0).unwrap();
    assert_eq!(w.value, 0.0);
    let negative: Vec<f64> = x.iter().map(|x| -x).collect();
    let w = line::wasserstein(&negative, &y.iter().map(|y| -y).collect::<Vec<_>>(), 1.0).unwrap();
    assert_eq!(w.value, 0.0);
}

#[test]
fn weights_are_shares() {
    let a = line::wasserstein_weighted(&[0.0, 9.0, 4.0], &[2.0, 0.0, 2.0], &[1.0, 2.0], &[5.0, 5.0], 2.0).unwrap();
    let b = line::wasserstein(&[0.0, 4.0], &[1.0, 2.0], 2.0).unwrap();
    assert_eq!((a.value, a.grad_x[1]), (b.value, 0.0));
    assert_eq!([a.grad_x[0], a.grad_x[2]], [b.grad_x[0], b.grad_x[1]]);
}

#[test]
fn bad_arguments_are_named() {
    let message = |r: Result<retort_transport::Distance, Error>| r.unwrap_err().to_string();
    assert!(message(line::wasserstein(&[], &[1.0], 2.0)).starts_with("x:"));
    assert!(message(line::cramer(&[1.0], &[f64::NAN])).starts_with("y:"));
    assert!(message(line::wasserstein(&[0.0], &[1.0], 0.5)).contains("`p`"));
    assert!(message(line::wasserstein(&[0.0], &[1.0], f64::NAN)).contains("`p`"));
    assert!(message(line::energy(&[0.0, 1.0], &[1.0], Estimator::Unbiased)).starts_with("y:"));
    let weighted = |a: &[f64], b: &[f64]| message(line::wasserstein_weighted(&[0.0, 1.0], a, &[1.0], b, 1.0));
    assert!(weighted(&[1.0], &[1.0]).starts_with("weights of x"));
    assert!(weighted(&[1.0, -1.0], &[1.0]).starts_with("weights of x"));
    assert!(weighted(&[1.0, 1.0], &[0.0]).starts_with("weights of y"));
    assert!(message(line::wasserstein(&[1e200], &[-1e200], 2.0)).contains("overflows"));
}

#[test]
fn extremes() {
    for p in [1.0, 2.0, 3.5] {
        check_extremes(|c| line::wasserstein(&c.x, &c.y, p));
        check_extremes(|c| line::wasserstein_weighted(&c.x, &vec![1.0; c.x.len()], &c.y, &vec![3.0; c.y.len()], p));
    }
    check_extremes(|c| line::cramer(&c.x, &c.y));
    check_extremes(|c| line::energy(&c.x, &c.y, Estimator::Biased));
    check_extremes(|c| line::energy(&c.x, &c.y, Estimator::Unbiased));
}

/// The energy distance from its definition.
fn energy_directly(c: &Clouds, estimator: Estimator) -> f64 {
    let sum = |a: &[f64], b: &[f64]| a.iter().flat_map(|a| b.iter().map(move |b| (a - b).abs())).sum::<f64>();
    let (n, m) = (c.x.len() as f64, c.y.len() as f64);
    let less = if estimator == Estimator::Biased { 0.0 } else { 1.0 };
    2.0 * sum(&c.x, &c.y) / (n * m) - sum(&c.x, &c.x) / (n * (n - less)) - sum(&c.y, &c.y) / (m * (m - less))
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn gradients(c in clouds(1..7, 1..2), p in 1.0..4.0f64) {
        // The slope of |d|^p may jump at 0, and the coupling changes where points meet.
        let apart = c.x.iter().all(|x| c.y.iter().all(|y| (x - y).abs() > 1e-3));
        let ranked = |v: &[f64]| {
            let mut v = v.to_vec();
            v.sort_by(f64::total_cmp);
            v.windows(2).all(|w| w[1] - w[0] > 1e-3)
        };
        prop_assume!(apart && ranked(&c.x) && ranked(&c.y));
        check_gradient(&c, 1e-6, |c| line::wasserstein(&c.x, &c.y, p).unwrap());
        let a: Vec<f64> = (0..c.x.len()).map(|i| 1.0 + i as f64).collect();
        let b: Vec<f64> = (0..c.y.len()).map(|i| 2.0 / (1.0 + i as f64)).collect();
        check_gradient(&c, 1e-6, |c| line::wasserstein_weighted(&c.x, &a, &c.y, &b, p).unwrap());
        check_gradient(&c, 1e-6, |c| line::cramer(&c.x, &c.y).unwrap());
        if c.x.len() > 1 && c.y.len() > 1 {
            check_gradient(&c, 1e-6, |c| line::energy(&c.x, &c.y, Estimator::Unbiased).unwrap());
        }
    }

    #[test]
    fn order_and_roles(c in clouds(1..9, 1..2), p in 1.0..4.0f64) {
        check_order(&c, true, 1e-12, |c| line::wasserstein(&c.x, &c.y, p).unwrap());
        check_order(&c, true, 1e-12, |c| line::cramer(&c.x, &c.y).unwrap());
    }

    #[test]
    fn equal_weights_change_nothing(c in clouds(1..9, 1..2), p in 1.0..4.0f64) {
        let weighted = line::wasserstein_weighted(&c.x, &vec![0.7; c.x.len()], &c.y, &vec![2.0; c.y.len()], p).unwrap();
        let plain = line::wasserstein(&c.x, &c.y, p).unwrap();
        close(weighted.value, plain.value, 1e-12);
        all_close(&weighted.grad_x, &plain.grad_x, 1e-11);
    }

    #[test]
    fn energy_is_its_definition(c in clouds(2..9, 1..2)) {
        for estimator in [Estimator::Biased, Estimator::Unbiased] {
            close(line::energy(&c.x, &c.y, estimator).unwrap().value, energy_directly(&c, estimator), 1e-12);
        }
        close(2.0 * line::cramer(&c.x, &c.y).unwrap().value, energy_directly(&c, Estimator::Biased), 1e-12);
    }

    #[test]
    fn equal_samples_are_at_distance_zero(c in clouds(1..9, 1..2)) {
        let mut turned = c.x.clone();
        turned.rotate_left(c.x.len() / 2);
        for found in [line::wasserstein(&c.x, &turned, 2.0), line::cramer(&c.x, &turned)] {
            let found = found.unwrap();
            prop_assert_eq!(found.value, 0.0);
            prop_assert!(found.grad_x.iter().all(|g| *g == 0.0));
        }
    }
}
