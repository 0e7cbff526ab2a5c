//! Gromov-Wasserstein, at a plan and with a search for one.

use crate::clouds::{
    Clouds, all_close, check_extremes, check_gradient, check_order, check_rotation, check_scale, check_threads,
    check_translation, close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{
    Distance, GromovOptions, InnerDistance, Points, SinkhornOptions, gromov_wasserstein, gromov_wasserstein_at,
    gromov_wasserstein_weighted, sinkhorn_distance,
};

const ALL: [InnerDistance; 3] = [InnerDistance::Euclidean, InnerDistance::SquaredEuclidean, InnerDistance::Cosine];

/// A plan that is nothing special: an entropic one, which turns with the points.
fn plan(c: &Clouds) -> Vec<f64> {
    let options = SinkhornOptions { tolerance: 1e-11, ..Default::default() };
    sinkhorn_distance(c.x(), c.y(), &options).unwrap().solution.plan
}

fn at(inner: InnerDistance) -> impl Fn(&Clouds, &[f64]) -> Distance + Sync {
    move |c, plan| gromov_wasserstein_at(c.x(), c.y(), plan, inner).unwrap()
}

fn search(inner: InnerDistance) -> impl Fn(&Clouds) -> Distance + Sync {
    move |c| gromov_wasserstein(c.x(), c.y(), &GromovOptions { inner, ..Default::default() }).unwrap().distance
}

/// The defining sum over all quadruples.
fn by_definition(c: &Clouds, plan: &[f64], inner: InnerDistance) -> f64 {
    let distance = |x: &[f64], y: &[f64]| {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let square: f64 = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum();
        match inner {
            InnerDistance::Euclidean => square.sqrt(),
            InnerDistance::SquaredEuclidean => square,
            InnerDistance::Cosine => 1.0 - dot(x, y) / (dot(x, x) * dot(y, y)).sqrt(),
        }
    };
    let (x, y) = (c.x(), c.y());
    let mut sum = 0.0;
    for (i, k) in (0..x.len()).flat_map(|i| (0..x.len()).map(move |k| (i, k))) {
        for (j, l) in (0..y.len()).flat_map(|j| (0..y.len()).map(move |l| (j, l))) {
            let off = distance(x.get(i).unwrap(), x.get(k).unwrap()) - distance(y.get(j).unwrap(), y.get(l).unwrap());
            sum += off * off * plan[i * y.len() + j] * plan[k * y.len() + l];
        }
    }
    sum
}

/// Student and teacher of different widths.
fn wide(n: usize, m: usize, seed: u64) -> (Clouds, Clouds) {
    (Clouds::seeded(n, 1, 3, seed), Clouds::seeded(m, 1, 5, seed + 9))
}

#[test]
fn the_value_is_the_sum_over_quadruples() {
    for (n, m) in [(4, 4), (3, 5), (1, 3), (1, 1)] {
        let c = Clouds::seeded(n, m, 3, 2);
        // Sums to 3, and is no coupling of uniform weights.
        let plan: Vec<f64> = (1..=n * m).map(|k| 6.0 * k as f64 / ((n * m) * (n * m + 1)) as f64).collect();
        for inner in ALL {
            close(at(inner)(&c, &plan).value, by_definition(&c, &plan, inner), 1e-12);
        }
    }
}

#[test]
fn gradients_at_a_plan() {
    for (n, m) in [(4, 4), (3, 6), (1, 2)] {
        let c = Clouds::seeded(n, m, 3, 5);
        let plan = plan(&c);
        for inner in ALL {
            check_gradient(&c, 1e-6, |c| at(inner)(c, &plan));
        }
    }
}

#[test]
fn widths_may_differ() {
    let (x, y) = wide(6, 4, 1);
    let plan = vec![1.0 / 24.0; 24];
    for inner in ALL {
        let found = gromov_wasserstein_at(x.x(), y.x(), &plan, inner).unwrap();
        assert_eq!((found.grad_x.len(), found.grad_y.len()), (18, 20));
        let step = 1e-5;
        let value = |by: f64| {
            let mut moved = y.clone();
            moved.x[7] += by;
            gromov_wasserstein_at(x.x(), moved.x(), &plan, inner).unwrap().value
        };
        close(found.grad_y[7], (value(step) - value(-step)) / (2.0 * step), 1e-6);
        let best = gromov_wasserstein(x.x(), y.x(), &GromovOptions { inner, ..Default::default() }).unwrap();
        assert!(best.converged && best.distance.value <= found.value);
    }
}

#[test]
fn points_in_one_place_and_zero_points() {
    // No direction, no gradient, and no division by zero.
    let c = Clouds::new(&[1.0, 1.0, 1.0, 1.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0, 2.0, 1.0], 2);
    for inner in ALL {
        let found = at(inner)(&c, &[1.0 / 9.0; 9]);
        assert!(found.value >= 0.0 && found.grad_x.iter().chain(&found.grad_y).all(|g| g.is_finite()));
        all_close(&found.grad_x[..2], &found.grad_x[2..4], 1e-15);
    }
    assert_eq!(at(InnerDistance::Cosine)(&c, &[1.0 / 9.0; 9]).grad_x[4..], [0.0, 0.0]);
    let same = Clouds::new(&[1.0; 6], &[3.0; 4], 2);
    let found = gromov_wasserstein(same.x(), same.y(), &GromovOptions::default()).unwrap();
    assert!(found.converged && found.iterations == 0 && found.distance.value == 0.0);
}

#[test]
fn the_search_ends_at_a_coupling_that_is_no_worse_than_the_start() {
    for (n, m, seed) in [(12, 12, 1), (9, 14, 2), (14, 9, 3), (1, 4, 4)] {
        let (x, y) = wide(n, m, seed);
        for inner in ALL {
            let found = gromov_wasserstein(x.x(), y.x(), &GromovOptions { inner, ..Default::default() }).unwrap();
            assert!(found.converged && found.gap >= 0.0, "{found:?}");
            for (i, row) in found.plan.chunks(m).enumerate() {
                close(row.iter().sum(), 1.0 / n as f64, 1e-14);
                assert!(row.iter().all(|p| *p >= 0.0), "row {i}");
            }
            for j in 0..m {
                close(found.plan.iter().skip(j).step_by(m).sum(), 1.0 / m as f64, 1e-14);
            }
            let start = vec![1.0 / (n * m) as f64; n * m];
            let before = gromov_wasserstein_at(x.x(), y.x(), &start, inner).unwrap().value;
            assert!(found.distance.value <= before + 1e-12);
            let again = gromov_wasserstein_at(x.x(), y.x(), &found.plan, inner).unwrap();
            assert_eq!(again, found.distance);
        }
    }
}

#[test]
fn a_search_cut_short_says_so() {
    let (x, y) = wide(12, 20, 6);
    let options = GromovOptions { max_iter: 0, ..Default::default() };
    let found = gromov_wasserstein(x.x(), y.x(), &options).unwrap();
    assert!(!found.converged && found.iterations == 0 && found.gap > 0.0);
    all_close(&found.plan, &[1.0 / 240.0; 240], 1e-15);
}

#[test]
fn isometric_clouds_are_matched() {
    let c = Clouds::seeded(10, 1, 2, 8);
    let mut moved = c.permuted(3).reflected().map(|c, v| v + 7.0 * c as f64);
    moved.y.clone_from(&moved.x);
    moved.x.clone_from(&c.x);
    for inner in [InnerDistance::Euclidean, InnerDistance::SquaredEuclidean] {
        let found = gromov_wasserstein(moved.x(), moved.y(), &GromovOptions { inner, ..Default::default() }).unwrap();
        assert!(found.converged && found.distance.value < 1e-11, "{}", found.distance.value);
        for i in 0..10 {
            close(found.plan[(i + 3) % 10 * 10 + i], 0.1, 1e-12);
        }
    }
}

#[test]
fn weights() {
    let c = Clouds::seeded(4, 5, 2, 9);
    let mut doubled = c.clone();
    doubled.x.extend_from_slice(&c.x[..2]);
    let options = GromovOptions::default();
    let one = gromov_wasserstein_weighted(c.x(), c.y(), &[0.4, 0.2, 0.2, 0.2], &[0.2; 5], &options).unwrap();
    let two = gromov_wasserstein(doubled.x(), doubled.y(), &options).unwrap();
    close(one.distance.value, two.distance.value, 1e-10);
    // A point without weight has no say.
    let three =
        gromov_wasserstein_weighted(doubled.x(), c.y(), &[0.4, 0.2, 0.2, 0.2, 0.0], &[0.2; 5], &options).unwrap();
    close(one.distance.value, three.distance.value, 1e-10);
    all_close(&three.distance.grad_x[8..], &[0.0; 2], 1e-15);
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn invariances(c in clouds(1..7, 1..4)) {
        for inner in ALL {
            let metric = |c: &Clouds| at(inner)(c, &plan(c));
            check_order(&c, true, 1e-6, metric);
            check_rotation(&c, 1e-6, metric);
            let power = [2, 4, 0][inner as usize];
            check_scale(&c, power, 1e-6, metric);
            if inner != InnerDistance::Cosine {
                check_translation(&c, 1e-6, metric);
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let c = Clouds::seeded(90, 70, 4, 1);
    for inner in ALL {
        check_threads(&c, search(inner));
    }
}

#[test]
fn extreme_coordinates() {
    for inner in ALL {
        let options = GromovOptions { inner, ..Default::default() };
        check_extremes(|c| Ok(gromov_wasserstein(c.x(), c.y(), &options)?.distance));
    }
}

#[test]
fn errors_name_the_argument() {
    let x = Points::new("student", &[0.0, 1.0], 1).unwrap();
    let message = |plan: &[f64]| gromov_wasserstein_at(x, x, plan, InnerDistance::Euclidean).unwrap_err().to_string();
    assert_eq!(message(&[0.5; 3]), "plan: expected 2 x 2 entries, found 3");
    assert_eq!(message(&[0.5, -0.5, 0.5, 0.5]), "plan: expected a finite mass >= 0, found -0.5 at index 1");
    assert_eq!(message(&[0.5, 0.5, f64::NAN, 0.5]), "plan: expected a finite mass >= 0, found NaN at index 2");
    let options = GromovOptions { tolerance: 0.0, ..Default::default() };
    assert!(gromov_wasserstein(x, x, &options).unwrap_err().to_string().starts_with("option `tolerance`"));
    let weighted = |a: &[f64]| gromov_wasserstein_weighted(x, x, a, &[0.5; 2], &GromovOptions::default()).unwrap_err();
    assert_eq!(weighted(&[1.0]).to_string(), "a: expected 2 weights, found 1");
}
