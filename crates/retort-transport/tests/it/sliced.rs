//! Sliced distances.

use crate::clouds::{
    Clouds, all_close, check_extremes, check_gradient, check_order, check_scale, check_threads, check_translation,
    close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{
    Ascent, Distance, Points, line, max_sliced_w2, max_sliced_w2_learned, random_directions, sliced_cramer, sliced_w2,
    w2,
};

fn w2_over(c: &Clouds, count: usize) -> Distance {
    let drawn = random_directions(count, c.d, 3).unwrap();
    sliced_w2(c.x(), c.y(), Points::new("directions", &drawn, c.d).unwrap()).unwrap().distance
}

fn cramer_over(c: &Clouds, count: usize) -> Distance {
    let drawn = random_directions(count, c.d, 3).unwrap();
    sliced_cramer(c.x(), c.y(), Points::new("directions", &drawn, c.d).unwrap()).unwrap().distance
}

fn axes(d: usize) -> Vec<f64> {
    (0..d * d).map(|at| if at / d == at % d { 1.0 } else { 0.0 }).collect()
}

#[test]
fn the_mean_of_lines_by_hand() {
    let c = Clouds::new(&[0.0, 0.0, 4.0, 2.0], &[1.0, 5.0], 2);
    let axes = axes(2);
    let found = sliced_w2(c.x(), c.y(), Points::new("directions", &axes, 2).unwrap()).unwrap();
    // On the first axis {0, 4} against {1}: (1 + 9)/2; on the second {0, 2} against {5}: (25 + 9)/2.
    assert_eq!(found.per_direction, [5.0, 17.0]);
    assert_eq!(found.distance.value, 11.0);
    assert_eq!(found.distance.grad_x, [-0.5, -2.5, 1.5, -1.5]);
    assert_eq!(found.distance.grad_y, [-1.0, 4.0]);
}

#[test]
fn every_line_is_the_distance_on_the_line() {
    let c = Clouds::seeded(33, 21, 5, 1);
    // More directions than one task and one slab hold, and a rest.
    let drawn = random_directions(67, 5, 9).unwrap();
    let directions = Points::new("directions", &drawn, 5).unwrap();
    let (w, e) = (sliced_w2(c.x(), c.y(), directions).unwrap(), sliced_cramer(c.x(), c.y(), directions).unwrap());
    let project = |points: Points<'_>, theta: &[f64]| -> Vec<f64> {
        points.rows().map(|row| row.iter().zip(theta).map(|(a, b)| a * b).sum()).collect()
    };
    let (mut grad, mut total) = (vec![0.0; c.x.len()], 0.0);
    for (l, theta) in directions.rows().enumerate() {
        let (px, py) = (project(c.x(), theta), project(c.y(), theta));
        let on_line = line::wasserstein(&px, &py, 2.0).unwrap();
        close(w.per_direction[l], on_line.value, 1e-13);
        close(e.per_direction[l], line::cramer(&px, &py).unwrap().value, 1e-13);
        total += on_line.value / 67.0;
        for (grad, by) in grad.chunks_mut(5).zip(&on_line.grad_x) {
            grad.iter_mut().zip(theta).for_each(|(g, t)| *g += by * t / 67.0);
        }
    }
    close(w.distance.value, total, 1e-13);
    all_close(&w.distance.grad_x, &grad, 1e-13);
}

#[test]
fn the_largest_line_and_the_first_of_equal_ones() {
    let c = Clouds::new(&[0.0, 0.0], &[3.0, -3.0], 2);
    let axes = axes(2);
    let found = max_sliced_w2(c.x(), c.y(), Points::new("directions", &axes, 2).unwrap()).unwrap();
    assert_eq!((found.argmax, found.distance.value), (0, 9.0));
    assert_eq!((found.distance.grad_x, found.distance.grad_y), (vec![-6.0, 0.0], vec![6.0, 0.0]));
}

#[test]
fn a_learned_direction_rises_and_finds_the_difference_of_two_points() {
    let c = Clouds::new(&[1.0, 2.0, -1.0], &[3.0, 2.0, 4.0], 3);
    let options = Ascent { steps: 200, step: 0.5 };
    let found = max_sliced_w2_learned(c.x(), c.y(), &[0.0, 1.0, 0.0], &options).unwrap();
    // At the start the projections coincide and there is no slope to climb.
    assert_eq!((found.values[0], found.values[200], found.slope), (0.0, 0.0, 0.0));
    let found = max_sliced_w2_learned(c.x(), c.y(), &[1.0, 0.0, 0.0], &options).unwrap();
    assert!(found.values.windows(2).all(|pair| pair[1] >= pair[0]) && found.values.len() == 201);
    close(found.distance.value, 29.0, 1e-12);
    let root = 29f64.sqrt();
    all_close(&found.direction, &[2.0 / root, 0.0, 5.0 / root], 1e-6);
    assert!(found.slope < 1e-6);
    let none = max_sliced_w2_learned(c.x(), c.y(), &[1.0, 0.0, 0.0], &Ascent { steps: 0, step: 1.0 }).unwrap();
    assert_eq!((none.values, none.distance.grad_x), (vec![4.0], vec![-4.0, 0.0, 0.0]));
}

#[test]
fn directions_are_reproducible_and_uniform() {
    assert_eq!(random_directions(3, 4, 7).unwrap(), random_directions(9, 4, 7).unwrap()[..12]);
    assert_ne!(random_directions(3, 4, 7).unwrap(), random_directions(3, 4, 8).unwrap());
    let (count, d) = (20_000, 3);
    let drawn = random_directions(count, d, 1).unwrap();
    for row in drawn.chunks(d) {
        close(row.iter().map(|x| x * x).sum(), 1.0, 1e-14);
    }
    for a in 0..d {
        let mean = drawn.chunks(d).map(|row| row[a]).sum::<f64>() / count as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        for b in 0..d {
            let moment = drawn.chunks(d).map(|row| row[a] * row[b]).sum::<f64>() / count as f64;
            let expected = if a == b { 1.0 / 3.0 } else { 0.0 };
            assert!((moment - expected).abs() < 0.02, "{moment}");
        }
    }
    // A third of the sphere lies above height 1/3 (Archimedes).
    let above = drawn.chunks(d).filter(|row| row[2] > 1.0 / 3.0).count() as f64 / count as f64;
    assert!((above - 1.0 / 3.0).abs() < 0.02);
    assert!(random_directions(5, 1, 0).unwrap().iter().all(|x| x.abs() == 1.0));
}

#[test]
fn bad_arguments_are_named() {
    let c = Clouds::new(&[0.0, 0.0], &[1.0, 1.0], 2);
    let with = |values: &[f64], d| {
        let directions = Points::new("directions", values, d).unwrap();
        sliced_w2(c.x(), c.y(), directions).map(|s| s.distance.value).map_err(|e| e.to_string())
    };
    assert!(with(&[1.0, 0.0, 0.8, 0.7], 2).unwrap_err().starts_with("directions: expected a row of norm 1"));
    assert!(with(&[1.0, 0.0, 0.0], 3).unwrap_err().contains("same width"));
    // Rounded to f32, and a little beyond.
    assert!(with(&[f64::from(0.6f32), f64::from(0.8f32)], 2).is_ok());
    assert!(with(&[1.0009, 0.0], 2).is_ok() && with(&[1.0011, 0.0], 2).is_err() && with(&[0.0, 0.0], 2).is_err());
    assert!(random_directions(0, 3, 0).is_err() && random_directions(3, 0, 0).is_err());
    assert!(random_directions(usize::MAX, 2, 0).is_err() && random_directions(usize::MAX / 16, 8, 0).is_err());
    let learn = |start: &[f64], step| max_sliced_w2_learned(c.x(), c.y(), start, &Ascent { steps: 1, step });
    assert!(learn(&[], 0.1).is_err() && learn(&[1.0], 0.1).is_err() && learn(&[1.0, 1.0], 0.1).is_err());
    assert!(learn(&[1.0, 0.0], 0.0).is_err() && learn(&[1.0, 0.0], f64::NAN).is_err());
}

#[test]
fn extremes() {
    let axes = axes(2);
    let directions = Points::new("directions", &axes, 2).unwrap();
    check_extremes(|c| sliced_w2(c.x(), c.y(), directions).map(|s| s.distance));
    check_extremes(|c| sliced_cramer(c.x(), c.y(), directions).map(|s| s.distance));
    check_extremes(|c| max_sliced_w2(c.x(), c.y(), directions).map(|s| s.distance));
    check_extremes(|c| max_sliced_w2_learned(c.x(), c.y(), &[0.6, 0.8], &Ascent::default()).map(|s| s.distance));
}

#[test]
fn threads_change_nothing() {
    let c = Clouds::seeded(150, 130, 20, 2);
    check_threads(&c, |c| w2_over(c, 100));
    check_threads(&c, |c| cramer_over(c, 100));
}

#[test]
fn an_order_of_points_changes_no_bit() {
    let c = Clouds::seeded(41, 30, 7, 3);
    assert_eq!(w2_over(&c, 30).value.to_bits(), w2_over(&c.permuted(5), 30).value.to_bits());
    let same = Clouds { y: c.permuted(11).x, ..c };
    assert_eq!(w2_over(&same, 30).value, 0.0);
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn gradients(c in clouds(1..6, 1..4)) {
        check_gradient(&c, 1e-6, |c| w2_over(c, 5));
        let drawn = random_directions(4, c.d, 3).unwrap();
        let found = max_sliced_w2(c.x(), c.y(), Points::new("directions", &drawn, c.d).unwrap()).unwrap();
        let best = drawn[found.argmax * c.d..][..c.d].to_vec();
        let line = Points::new("best", &best, c.d).unwrap();
        check_gradient(&c, 1e-6, |c| sliced_w2(c.x(), c.y(), line).unwrap().distance);
        let alone = sliced_w2(c.x(), c.y(), line).unwrap().distance;
        all_close(&found.distance.grad_x, &alone.grad_x, 1e-13);
        all_close(&found.distance.grad_y, &alone.grad_y, 1e-13);
    }

    #[test]
    fn cramer_gradients(c in clouds(1..5, 2..4)) {
        // The slope of |z| jumps where two projections meet.
        let drawn = random_directions(3, c.d, 3).unwrap();
        let all: Vec<&[f64]> = c.x.chunks(c.d).chain(c.y.chunks(c.d)).collect();
        let apart = drawn.chunks(c.d).all(|theta| {
            let mut p: Vec<f64> = all.iter().map(|row| row.iter().zip(theta).map(|(a, b)| a * b).sum()).collect();
            p.sort_by(f64::total_cmp);
            p.windows(2).all(|w| w[1] - w[0] > 1e-4)
        });
        prop_assume!(apart);
        check_gradient(&c, 1e-6, |c| cramer_over(c, 3));
    }

    #[test]
    fn invariances(c in clouds(1..7, 1..4)) {
        check_order(&c, true, 1e-12, |c| w2_over(c, 6));
        check_order(&c, true, 1e-12, |c| cramer_over(c, 6));
        check_translation(&c, 1e-9, |c| w2_over(c, 6));
        close(cramer_over(&c, 6).value, cramer_over(&c.map(|_, v| v + 1e3), 6).value, 1e-9);
        check_scale(&c, 2, 1e-12, |c| w2_over(c, 6));
        check_scale(&c, 1, 1e-12, |c| cramer_over(c, 6));
    }

    #[test]
    fn rotated_clouds_and_directions_give_the_same(c in clouds(1..7, 2..4)) {
        let axes = axes(c.d);
        let turned = Clouds { x: axes.clone(), y: axes.clone(), d: c.d }.reflected().x;
        let over = |c: &Clouds, values: &[f64]| {
            sliced_w2(c.x(), c.y(), Points::new("directions", values, c.d).unwrap()).unwrap().per_direction
        };
        all_close(&over(&c, &axes), &over(&c.reflected(), &turned), 1e-12);
    }

    #[test]
    fn equal_clouds_are_at_distance_zero(c in clouds(1..7, 1..4)) {
        let same = Clouds { y: c.x.clone(), ..c };
        for found in [w2_over(&same, 4), cramer_over(&same, 4)] {
            prop_assert_eq!(found.value, 0.0);
            prop_assert!(found.grad_x.iter().chain(&found.grad_y).all(|g| *g == 0.0));
        }
    }

    /// Over an orthonormal basis the mean is at most W2^2 / d, every line at most W2^2.
    #[test]
    fn slices_bound_transport_from_below(c in clouds(1..7, 1..5)) {
        let whole = w2(c.x(), c.y()).unwrap().distance.value;
        let basis = Clouds { x: axes(c.d), y: axes(c.d), d: c.d }.reflected().x;
        let basis = Points::new("basis", &basis, c.d).unwrap();
        let mean = sliced_w2(c.x(), c.y(), basis).unwrap().distance.value;
        prop_assert!(mean <= whole / c.d as f64 + 1e-12, "{} {}", mean, whole);
        prop_assert!(max_sliced_w2(c.x(), c.y(), basis).unwrap().distance.value <= whole + 1e-12);
        let learned = max_sliced_w2_learned(c.x(), c.y(), basis.get(0).unwrap(), &Ascent::default()).unwrap();
        prop_assert!(learned.distance.value <= whole + 1e-12);
        prop_assert!(learned.values.windows(2).all(|pair| pair[1] >= pair[0]));
        // Many directions: the mean over the sphere, up to sampling.
        prop_assert!(w2_over(&c, 2000).value <= 1.1 * whole / c.d as f64 + 1e-12);
    }
}
