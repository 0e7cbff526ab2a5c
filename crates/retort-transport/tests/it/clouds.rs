//! Clouds for property tests, and the properties that many distances share.

use proptest::prelude::*;
use retort_transport::{Distance, Error, Points, random_directions};

/// Two clouds of the same width.
#[derive(Clone, Debug)]
pub(crate) struct Clouds {
    pub(crate) x: Vec<f64>,
    pub(crate) y: Vec<f64>,
    pub(crate) d: usize,
}

impl Clouds {
    pub(crate) fn new(x: &[f64], y: &[f64], d: usize) -> Self {
        Self { x: x.to_vec(), y: y.to_vec(), d }
    }

    /// Normal-like clouds from a seed; y is shifted and stretched.
    pub(crate) fn seeded(n: usize, m: usize, d: usize, seed: u64) -> Self {
        let root = (d as f64).sqrt();
        let draw = |n, seed| random_directions(n, d, seed).unwrap();
        let x = draw(n, seed).iter().map(|v| v * root).collect();
        let y = draw(m, seed + 1).iter().map(|v| 1.3 * v * root + 0.4).collect();
        Self { x, y, d }
    }

    pub(crate) fn x(&self) -> Points<'_> {
        Points::new("student", &self.x, self.d).unwrap()
    }

    pub(crate) fn y(&self) -> Points<'_> {
        Points::new("teacher", &self.y, self.d).unwrap()
    }

    /// The rows of x turned by `turn` places, those of y by twice as many.
    pub(crate) fn permuted(&self, turn: usize) -> Self {
        let mut out = self.clone();
        let (n, m) = (self.x().len(), self.y().len());
        out.x.rotate_left(turn % n * self.d);
        out.y.rotate_left(2 * turn % m * self.d);
        out
    }

    /// Every coordinate of both clouds through a function of its column.
    pub(crate) fn map(&self, f: impl Fn(usize, f64) -> f64) -> Self {
        let all = |v: &[f64]| v.iter().enumerate().map(|(at, v)| f(at % self.d, *v)).collect();
        Self { x: all(&self.x), y: all(&self.y), d: self.d }
    }

    /// Both clouds reflected at the plane across a vector: an orthogonal map that mixes all coordinates.
    pub(crate) fn reflected(&self) -> Self {
        let v: Vec<f64> = (0..self.d).map(|c| 1.0 + 0.3 * c as f64).collect();
        let square: f64 = v.iter().map(|v| v * v).sum();
        let all = |points: &[f64]| {
            let rows = points.chunks(self.d);
            rows.flat_map(|row| {
                let along = 2.0 * row.iter().zip(&v).map(|(a, b)| a * b).sum::<f64>() / square;
                row.iter().zip(&v).map(move |(a, b)| a - along * b).collect::<Vec<_>>()
            })
            .collect()
        };
        Self { x: all(&self.x), y: all(&self.y), d: self.d }
    }

    pub(crate) fn swapped(&self) -> Self {
        Self { x: self.y.clone(), y: self.x.clone(), d: self.d }
    }
}

/// Clouds of `points` rows and `widths` columns.
pub(crate) fn clouds(points: std::ops::Range<usize>, widths: std::ops::Range<usize>) -> impl Strategy<Value = Clouds> {
    let coordinates = |count: usize| proptest::collection::vec(-3.0..3.0f64, count);
    (points.clone(), points, widths)
        .prop_flat_map(move |(n, m, d)| (coordinates(n * d), coordinates(m * d), Just(d)))
        .prop_map(|(x, y, d)| Clouds { x, y, d })
}

/// Thirty-two cases a property.
pub(crate) fn few() -> ProptestConfig {
    ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() }
}

#[track_caller]
pub(crate) fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs())), "{a} and {b} differ by {:e}", a - b);
}

#[track_caller]
pub(crate) fn all_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).for_each(|(a, b)| close(*a, *b, tolerance));
}

/// Both gradients against central differences of the value.
#[track_caller]
pub(crate) fn check_gradient(clouds: &Clouds, tolerance: f64, metric: impl Fn(&Clouds) -> Distance) {
    let found = metric(clouds);
    let step = 1e-5;
    let slope = |at: usize, of_y: bool| {
        let value = |by: f64| {
            let mut moved = clouds.clone();
            let side = if of_y { &mut moved.y } else { &mut moved.x };
            side[at] += by;
            metric(&moved).value
        };
        (value(step) - value(-step)) / (2.0 * step)
    };
    let by_x: Vec<f64> = (0..clouds.x.len()).map(|at| slope(at, false)).collect();
    let by_y: Vec<f64> = (0..clouds.y.len()).map(|at| slope(at, true)).collect();
    all_close(&found.grad_x, &by_x, tolerance);
    all_close(&found.grad_y, &by_y, tolerance);
}

/// Value and gradients must not depend on the order of the points, and exchange roles with the clouds.
#[track_caller]
pub(crate) fn check_order(clouds: &Clouds, symmetric: bool, tolerance: f64, metric: impl Fn(&Clouds) -> Distance) {
    let found = metric(clouds);
    let turned = metric(&clouds.permuted(1));
    close(found.value, turned.value, tolerance);
    let mut back = Clouds { x: turned.grad_x, y: turned.grad_y, d: clouds.d };
    back.x.rotate_right(1 % clouds.x().len() * clouds.d);
    back.y.rotate_right(2 % clouds.y().len() * clouds.d);
    all_close(&found.grad_x, &back.x, tolerance);
    all_close(&found.grad_y, &back.y, tolerance);
    if symmetric {
        let swapped = metric(&clouds.swapped());
        close(found.value, swapped.value, tolerance);
        all_close(&found.grad_x, &swapped.grad_y, tolerance);
        all_close(&found.grad_y, &swapped.grad_x, tolerance);
    }
}

/// Value and gradients after a common shift, far enough to show lost digits.
#[track_caller]
pub(crate) fn check_translation(clouds: &Clouds, tolerance: f64, metric: impl Fn(&Clouds) -> Distance) {
    let (found, moved) = (metric(clouds), metric(&clouds.map(|c, v| v + 1000.0 * (c as f64 + 1.0))));
    close(found.value, moved.value, tolerance);
    all_close(&found.grad_x, &moved.grad_x, tolerance);
    all_close(&found.grad_y, &moved.grad_y, tolerance);
}

/// The value after a common orthogonal map.
#[track_caller]
pub(crate) fn check_rotation(clouds: &Clouds, tolerance: f64, metric: impl Fn(&Clouds) -> Distance) {
    close(metric(clouds).value, metric(&clouds.reflected()).value, tolerance);
}

/// The value of clouds times 4 must be `4^power` times the value, and the gradient `4^(power - 1)` times.
#[track_caller]
pub(crate) fn check_scale(clouds: &Clouds, power: i32, tolerance: f64, metric: impl Fn(&Clouds) -> Distance) {
    let (found, wide) = (metric(clouds), metric(&clouds.map(|_, v| 4.0 * v)));
    close(found.value, wide.value * 4f64.powi(-power), tolerance);
    let grad_x: Vec<f64> = wide.grad_x.iter().map(|g| g * 4f64.powi(1 - power)).collect();
    all_close(&found.grad_x, &grad_x, tolerance);
}

/// The same bits with one thread and with two.
#[track_caller]
pub(crate) fn check_threads(clouds: &Clouds, metric: impl Fn(&Clouds) -> Distance + Sync) {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = pool.install(|| metric(clouds));
        let all = [found.value].into_iter().chain(found.grad_x).chain(found.grad_y);
        all.map(f64::to_bits).collect::<Vec<_>>()
    };
    assert!(with(1) == with(2), "the number of threads changes bits");
}

/// Finite coordinates of any size give a finite result or an error, never a panic or a NaN.
#[track_caller]
pub(crate) fn check_extremes(metric: impl Fn(&Clouds) -> Result<Distance, Error>) {
    for size in [5e-324, 1e-300, 1e-160, 1e-80, 1.0, 1e80, 1e150, 1e160, 1.7e308] {
        for x in [vec![0.0; 8], vec![1.0; 8], vec![1.0, -1.0, 0.5, 0.3, 0.0, 0.2, -0.7, 1.0]] {
            for y in [vec![0.0; 4], vec![1.0; 4], vec![-0.3, 0.2, 0.9, -1.0, 0.1, 0.4], vec![0.0, -0.0]] {
                if let Ok(found) = metric(&Clouds::new(&x, &y, 2).map(|_, v| v * size)) {
                    let all = found.grad_x.iter().chain(&found.grad_y).chain([&found.value]);
                    assert!(all.into_iter().all(|v| v.is_finite()), "{x:?} {y:?} times {size:e}: {found:?}");
                }
            }
        }
    }
}
