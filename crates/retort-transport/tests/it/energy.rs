//! The energy distance.

use crate::clouds::{
    Clouds, check_extremes, check_gradient, check_order, check_rotation, check_scale, check_threads, check_translation,
    close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{Distance, Estimator, energy_distance, line};

fn biased(c: &Clouds) -> Distance {
    energy_distance(c.x(), c.y(), Estimator::Biased).unwrap()
}

fn unbiased(c: &Clouds) -> Distance {
    energy_distance(c.x(), c.y(), Estimator::Unbiased).unwrap()
}

#[test]
fn by_hand() {
    // x: (0,0), (0,2); y: (0,0). E|X-Y| = 1, E|X-X'| = 1 over all pairs, 2 over distinct ones.
    let c = Clouds::new(&[0.0, 0.0, 0.0, 2.0], &[0.0, 0.0], 2);
    let found = biased(&c);
    assert_eq!(found.value, 1.0);
    // The point on y: 2/2 (0 - (0,-1)/2); the other: 2/2 ((0,1) - (0,1)/2).
    assert_eq!(found.grad_x, [0.0, 0.5, 0.0, 0.5]);
    assert_eq!(found.grad_y, [0.0, -1.0]);
    let c = Clouds::new(&[0.0, 0.0, 0.0, 2.0], &[0.0, 0.0, 0.0, 0.0], 2);
    assert_eq!(unbiased(&c).value, 2.0 - 2.0 - 0.0);
}

#[test]
fn identical_points_and_borders() {
    let c = Clouds::new(&[2.5; 6], &[2.5; 4], 2);
    for found in [biased(&c), unbiased(&c)] {
        assert_eq!(found, Distance { value: 0.0, grad_x: vec![0.0; 6], grad_y: vec![0.0; 4] });
    }
    let one = Clouds::new(&[1.0], &[3.0], 1);
    assert_eq!(biased(&one), Distance { value: 4.0, grad_x: vec![-2.0], grad_y: vec![2.0] });
    let error = energy_distance(one.x(), one.y(), Estimator::Unbiased).unwrap_err().to_string();
    assert_eq!(error, "student: expected at least 2 points, found 1");
    let wide = Clouds::new(&[0.0, 1.0], &[0.0, 1.0], 2);
    assert!(energy_distance(one.x(), wide.y(), Estimator::Biased).is_err());
    check_extremes(|c| energy_distance(c.x(), c.y(), Estimator::Biased));
    // Neither squares that overflow nor squares that vanish.
    for size in [1e-200, 1e200] {
        let c = Clouds::new(&[0.0, 0.0], &[3.0 * size, 4.0 * size], 2);
        let found = biased(&c);
        close(found.value / size, 10.0, 1e-14);
        close(found.grad_y[1], 1.6, 1e-14);
    }
}

#[test]
fn threads_change_nothing() {
    let c = Clouds::seeded(150, 130, 20, 2);
    check_threads(&c, biased);
    check_threads(&c, unbiased);
}

#[test]
fn far_from_the_origin_no_digit_is_lost() {
    let c = Clouds::seeded(40, 50, 6, 5).map(|_, v| (v * 1024.0).round() / 1024.0);
    let far = c.map(|_, v| v + 1_048_576.0);
    close(biased(&c).value, biased(&far).value, 1e-14);
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn gradients(c in clouds(2..6, 2..4)) {
        check_gradient(&c, 1e-6, biased);
        check_gradient(&c, 1e-6, unbiased);
    }

    #[test]
    fn invariances(c in clouds(2..7, 1..4)) {
        for metric in [biased, unbiased] {
            check_order(&c, true, 1e-12, metric);
            check_rotation(&c, 1e-12, metric);
            check_scale(&c, 1, 1e-12, metric);
            close(metric(&c).value, metric(&c.map(|_, v| v + 1e3)).value, 1e-9);
        }
        if c.d > 1 {
            check_translation(&c, 1e-8, biased);
        }
    }

    #[test]
    fn never_negative_and_zero_at_identity(c in clouds(1..7, 1..4)) {
        prop_assert!(biased(&c).value >= -1e-15);
        let same = Clouds { y: c.x.clone(), ..c };
        let found = biased(&same);
        prop_assert_eq!(found.value, 0.0);
        prop_assert!(found.grad_x.iter().chain(&found.grad_y).all(|g| *g == 0.0));
    }

    #[test]
    fn on_the_line_it_is_the_closed_form(c in clouds(2..9, 1..2)) {
        close(biased(&c).value, line::energy(&c.x, &c.y, Estimator::Biased).unwrap().value, 1e-12);
        close(unbiased(&c).value, line::energy(&c.x, &c.y, Estimator::Unbiased).unwrap().value, 1e-12);
    }
}
