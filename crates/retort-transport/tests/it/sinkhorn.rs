//! Entropic transport: its solutions are recognised by their form and marginals, whatever found them.

use crate::clouds::{
    Clouds, all_close, check_extremes, check_gradient, check_order, check_rotation, check_scale, check_threads,
    check_translation, close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{
    Cost, Distance, Error, Points, Regularisation, Sinkhorn, SinkhornOptions, class_costs, sinkhorn, sinkhorn_distance,
    sinkhorn_distance_weighted, sinkhorn_divergence, sinkhorn_divergence_weighted, sinkhorn_histograms, w2,
};

fn exact(eps: Regularisation) -> SinkhornOptions {
    SinkhornOptions { eps, tolerance: 1e-11, ..Default::default() }
}

fn absolute(eps: f64) -> SinkhornOptions {
    exact(Regularisation::Absolute(eps))
}

fn relative(factor: f64) -> SinkhornOptions {
    exact(Regularisation::RelativeToMean(factor))
}

fn distance(options: SinkhornOptions) -> impl Fn(&Clouds) -> Distance + Sync {
    move |c| sinkhorn_distance(c.x(), c.y(), &options).unwrap().distance
}

fn divergence(options: SinkhornOptions) -> impl Fn(&Clouds) -> Distance + Sync {
    move |c| sinkhorn_divergence(c.x(), c.y(), &options).unwrap().distance
}

fn uniform(n: usize) -> Vec<f64> {
    vec![1.0 / n as f64; n]
}

fn sum(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().sum()
}

/// A plan of the form `a_i b_j exp((f_i + g_j - C_ij) / eps)` with the right marginals is the solution: there is no other.
#[track_caller]
fn check_solution(cost: &Cost, a: &[f64], b: &[f64], found: &Sinkhorn, tolerance: f64) {
    let m = b.len();
    assert!(found.convergence.converged && found.convergence.marginal_error <= tolerance, "{:?}", found.convergence);
    assert!(found.f.iter().chain(&found.g).all(|f| f.is_finite()));
    let mut off = 0.0;
    for (i, a) in a.iter().enumerate() {
        off += (sum(found.plan[i * m..][..m].iter().copied()) - a).abs();
    }
    for (j, b) in b.iter().enumerate() {
        off += (sum(found.plan.iter().skip(j).step_by(m).copied()) - b).abs();
    }
    assert!(off <= 1.01 * tolerance, "marginals off by {off:e}");
    // The rounding of a difference of costs, in units of eps.
    let relative = 1e-12 + 8.0 * f64::EPSILON * cost.largest() / found.eps;
    let (mut kl, mut transport) = (0.0, 0.0);
    for (at, (p, c)) in found.plan.iter().zip(cost.values()).enumerate() {
        let (i, j) = (at / m, at % m);
        let formula = a[i] * b[j] * ((found.f[i] + found.g[j] - c) / found.eps).exp();
        assert!((p - formula).abs() <= relative * formula + 1e-100, "{p} is not {formula}");
        transport += p * c;
        kl += if *p > 0.0 { p * (p / (a[i] * b[j])).ln() } else { 0.0 };
    }
    close(found.transport, transport, 1e-11);
    close(found.kl, kl, 1e-9);
    close(found.value, transport + found.eps * kl, 1e-8);
}

#[test]
fn two_points_by_hand() {
    let cost = Cost::new(vec![0.0, 1.0, 1.0, 0.0], 2, 2).unwrap();
    let half = [0.5, 0.5];
    let found = sinkhorn(&cost, &half, &half, &absolute(0.5)).unwrap();
    // By symmetry f = g everywhere: 1/4 exp(2 f / eps) (1 + exp(-1 / eps)) = 1/2.
    let share = (-2f64).exp();
    close(found.value, 0.5 * (2.0 / (1.0 + share)).ln(), 1e-14);
    all_close(&found.plan, &[1.0, share, share, 1.0].map(|x| 0.5 * x / (1.0 + share)), 1e-14);
    close(found.transport, share / (1.0 + share), 1e-14);
    check_solution(&cost, &half, &half, &found, 1e-11);
}

#[test]
fn one_point_on_a_side_leaves_no_choice() {
    let cost = Cost::new(vec![3.0, -1.0, 7.0], 1, 3).unwrap();
    let b = [0.25, 0.5, 0.25];
    let found = sinkhorn(&cost, &[1.0], &b, &absolute(0.1)).unwrap();
    all_close(&found.plan, &b, 1e-15);
    close(found.value, 2.0, 1e-14);
    assert!(found.kl < 1e-14);
    let one = sinkhorn(&Cost::new(vec![-4.0], 1, 1).unwrap(), &[1.0], &[1.0], &absolute(1.0)).unwrap();
    assert_eq!((one.value, one.plan[0], one.kl), (-4.0, 1.0, 0.0));
}

#[test]
fn converges_from_a_thousandth_to_ten_times_the_mean_cost() {
    for (n, m) in [(24, 24), (24, 32), (64, 64), (7, 90)] {
        let plain = Clouds::seeded(n, m, 8, 3);
        let mut twice = plain.clone();
        twice.x.copy_within(0..n / 2 * 8, n / 2 * 8);
        let mut shuffled = plain.permuted(2);
        let common = n.min(m) * 8;
        shuffled.y[..common].copy_from_slice(&plain.x[..common]);
        let mut far = plain.clone();
        far.y.iter_mut().for_each(|y| *y += 50.0);
        for clouds in [plain, twice, shuffled, far] {
            let cost = Cost::squared_euclidean(clouds.x(), clouds.y()).unwrap();
            let (a, b) = (uniform(n), uniform(m));
            for factor in [1e-3, 3e-3, 0.01, 0.05, 0.3, 1.0, 10.0] {
                let options = SinkhornOptions { tolerance: 1e-9, ..relative(factor) };
                check_solution(&cost, &a, &b, &sinkhorn(&cost, &a, &b, &options).unwrap(), 1e-9);
            }
        }
    }
}

#[test]
fn larger_problems_converge_too() {
    let clouds = Clouds::seeded(256, 300, 16, 8);
    let cost = Cost::squared_euclidean(clouds.x(), clouds.y()).unwrap();
    let (a, b) = (uniform(256), uniform(300));
    for factor in [1e-3, 0.02, 0.05] {
        let options = SinkhornOptions { tolerance: 1e-9, ..relative(factor) };
        check_solution(&cost, &a, &b, &sinkhorn(&cost, &a, &b, &options).unwrap(), 1e-9);
    }
}

#[test]
fn weights_may_be_zero_or_nearly() {
    let clouds = Clouds::seeded(5, 4, 3, 1);
    let cost = Cost::squared_euclidean(clouds.x(), clouds.y()).unwrap();
    let (a, b) = ([0.5, 0.0, 0.25, 0.0, 0.25], [1.0 - 1e-120 - 1e-30, 0.0, 1e-30, 1e-120]);
    let found = sinkhorn(&cost, &a, &b, &absolute(0.7)).unwrap();
    check_solution(&cost, &a, &b, &found, 1e-11);
    // The duals without weight follow from the update formula.
    for i in 0..5 {
        let total = sum((0..4).map(|j| b[j] * ((found.g[j] - cost.get(i).unwrap()[j]) / 0.7).exp()));
        close(found.f[i], -0.7 * total.ln(), 1e-12);
    }
    for j in 0..4 {
        let total = sum((0..5).map(|i| a[i] * ((found.f[i] - cost.get(i).unwrap()[j]) / 0.7).exp()));
        close(found.g[j], -0.7 * total.ln(), 1e-10);
    }
    // Points without weight change nothing else.
    let x: Vec<f64> = [0, 2, 4].iter().flat_map(|&i| clouds.x().get(i).unwrap().to_vec()).collect();
    let part = Cost::squared_euclidean(Points::new("x", &x, 3).unwrap(), clouds.y()).unwrap();
    let alone = sinkhorn(&part, &[0.5, 0.25, 0.25], &b, &absolute(0.7)).unwrap();
    close(found.value, alone.value, 1e-12);
}

#[test]
fn a_point_twice_is_a_point_with_twice_the_weight() {
    let clouds = Clouds::seeded(4, 5, 3, 6);
    let mut doubled = clouds.clone();
    doubled.x.extend_from_slice(&clouds.x[..3]);
    let heavy = [0.4, 0.2, 0.2, 0.2];
    let options = absolute(0.3);
    let one = sinkhorn_distance_weighted(clouds.x(), clouds.y(), &heavy, &uniform(5), &options).unwrap();
    let two = sinkhorn_distance(doubled.x(), doubled.y(), &options).unwrap();
    close(one.distance.value, two.distance.value, 1e-10);
    all_close(&one.distance.grad_y, &two.distance.grad_y, 1e-9);
    let one = sinkhorn_divergence_weighted(clouds.x(), clouds.y(), &heavy, &uniform(5), &options).unwrap();
    let two = sinkhorn_divergence(doubled.x(), doubled.y(), &options).unwrap();
    close(one.distance.value, two.distance.value, 1e-10);
    all_close(&one.distance.grad_y, &two.distance.grad_y, 1e-9);
}

#[test]
fn what_has_not_converged_says_so_and_bounds_the_value_from_below() {
    let clouds = Clouds::seeded(30, 30, 4, 2);
    let solve = |max_iter, max_newton| {
        let options = SinkhornOptions { max_iter, max_newton, ..relative(0.002) };
        sinkhorn_distance(clouds.x(), clouds.y(), &options).unwrap().solution
    };
    let (best, mut last) = (solve(500, 50), f64::NEG_INFINITY);
    assert!(best.convergence.converged && best.convergence.newton_steps > 0);
    for max_iter in [1, 10, 100] {
        let found = solve(max_iter, 0);
        assert!(!found.convergence.converged && found.convergence.marginal_error > 1e-11);
        assert_eq!((found.convergence.iterations, found.convergence.newton_steps), (max_iter, 0));
        assert!(found.value <= best.value + 1e-12 && found.value >= last, "{} after {last}", found.value);
        last = found.value;
    }
    // Without Newton steps it takes longer to get to the same place.
    let options = SinkhornOptions { max_iter: 1_000_000, max_newton: 0, tolerance: 1e-9, ..relative(0.02) };
    let plain = sinkhorn_distance(clouds.x(), clouds.y(), &options).unwrap();
    let fast = sinkhorn_distance(clouds.x(), clouds.y(), &relative(0.02)).unwrap();
    assert!(plain.solution.convergence.converged && plain.solution.convergence.newton_steps == 0);
    close(plain.distance.value, fast.distance.value, 1e-9);
    all_close(&plain.solution.plan, &fast.solution.plan, 1e-8);
}

#[test]
fn the_limits_of_eps() {
    let clouds = Clouds::seeded(12, 17, 3, 4);
    let best = w2(clouds.x(), clouds.y()).unwrap().distance.value;
    let mean = |points: Points<'_>, c: usize| points.rows().map(|row| row[c]).sum::<f64>() / points.len() as f64;
    let means = sum((0..3).map(|c| (mean(clouds.x(), c) - mean(clouds.y(), c)).powi(2)));
    let all = Cost::squared_euclidean(clouds.x(), clouds.y()).unwrap();
    let average = sum(all.values().iter().copied()) / (12.0 * 17.0);
    // The bias is at most eps ln 12.
    let small = distance(relative(1e-4))(&clouds).value;
    assert!(small > best && small < best + 2.5e-4 * average);
    close(divergence(relative(1e-4))(&clouds).value, best, 1e-3);
    for eps in [1e6, 1e12, 1e300] {
        close(distance(relative(eps))(&clouds).value, average, 2e-6);
        close(divergence(relative(eps))(&clouds).value, means, 2e-6);
    }
}

#[test]
fn gradients() {
    for (n, m, d, eps) in [(6, 6, 3, 0.5), (5, 8, 2, 0.05), (4, 3, 4, 20.0), (1, 3, 2, 1.0)] {
        let clouds = Clouds::seeded(n, m, d, 7);
        check_gradient(&clouds, 1e-6, distance(absolute(eps)));
        check_gradient(&clouds, 1e-6, divergence(absolute(eps)));
    }
}

#[test]
fn duals_are_derivatives_by_the_weights() {
    let clouds = Clouds::seeded(4, 5, 2, 9);
    let (a, b) = ([0.1, 0.2, 0.3, 0.4], uniform(5));
    let options = absolute(0.4);
    let moved = |by: f64| [a[0] + by, a[1] - by, a[2], a[3]];
    let step = 1e-5;
    let ot = |a: &[f64]| sinkhorn_distance_weighted(clouds.x(), clouds.y(), a, &b, &options).unwrap();
    let slope = (ot(&moved(step)).distance.value - ot(&moved(-step)).distance.value) / (2.0 * step);
    let f = ot(&a).solution.f;
    close(f[0] - f[1], slope, 1e-7);
    let s = |a: &[f64]| sinkhorn_divergence_weighted(clouds.x(), clouds.y(), a, &b, &options).unwrap();
    let slope = (s(&moved(step)).distance.value - s(&moved(-step)).distance.value) / (2.0 * step);
    let f = s(&a).potential_x;
    close(f[0] - f[1], slope, 1e-7);
}

#[test]
fn the_divergence_of_equal_clouds_is_zero_at_once() {
    for n in [1, 3, 40] {
        let clouds = Clouds::seeded(n, n, 6, 5);
        let mut shuffled = clouds.permuted(3);
        shuffled.x.clone_from(&clouds.x);
        shuffled.y = clouds.permuted(3).x;
        for factor in [1e-3, 0.05, 10.0] {
            let found = sinkhorn_divergence(shuffled.x(), shuffled.y(), &relative(factor)).unwrap();
            assert!(found.converged() && found.between.convergence.iterations <= 1, "{:?}", found.between);
            assert!(found.distance.value < 1e-10, "{}", found.distance.value);
            assert!(found.distance.grad_x.iter().chain(&found.distance.grad_y).all(|g| g.abs() < 1e-9));
        }
    }
}

#[test]
fn all_points_in_one_place() {
    let same = Clouds::new(&[2.0; 6], &[2.0; 4], 2);
    let found = sinkhorn_divergence(same.x(), same.y(), &SinkhornOptions::default()).unwrap();
    assert!(found.converged());
    assert_eq!((found.distance.value, found.distance.grad_x), (0.0, vec![0.0; 6]));
    let found = sinkhorn_distance(same.x(), same.y(), &SinkhornOptions::default()).unwrap();
    assert_eq!(found.distance.value, 0.0);
    all_close(&found.solution.plan, &[1.0 / 6.0; 6], 1e-15);
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn solutions_have_the_form(c in clouds(1..12, 1..5), eps in 0.01..10.0f64) {
        let cost = Cost::squared_euclidean(c.x(), c.y()).unwrap();
        let (a, b) = (uniform(c.x().len()), uniform(c.y().len()));
        check_solution(&cost, &a, &b, &sinkhorn(&cost, &a, &b, &absolute(eps)).unwrap(), 1e-11);
    }

    #[test]
    fn invariances(c in clouds(1..9, 1..5), factor in 0.02..2.0f64) {
        check_order(&c, true, 1e-8, distance(relative(factor)));
        check_order(&c, true, 1e-8, divergence(relative(factor)));
        check_rotation(&c, 1e-8, distance(relative(factor)));
        check_rotation(&c, 1e-8, divergence(relative(factor)));
        check_scale(&c, 2, 1e-8, distance(relative(factor)));
        check_scale(&c, 2, 1e-8, divergence(relative(factor)));
    }

    #[test]
    fn a_common_shift_changes_nothing(c in clouds(1..9, 1..5), factor in 0.1..2.0f64) {
        let options = SinkhornOptions { tolerance: 1e-9, ..relative(factor) };
        check_translation(&c, 1e-7, distance(options));
        check_translation(&c, 1e-7, divergence(options));
    }

    #[test]
    fn the_divergence_is_not_negative_and_bounded_by_an_optimal_plan(c in clouds(1..9, 1..5), factor in 0.02..2.0f64) {
        let parts = sinkhorn_divergence(c.x(), c.y(), &relative(factor)).unwrap();
        // The value is cut at 0; what it is made of may not be far below.
        let uncut = parts.between.value - 0.5 * (parts.within_x.value + parts.within_y.value);
        prop_assert!(uncut >= -1e-7 * (1.0 + parts.between.value.abs()), "{uncut}");
        let found = parts.distance.value;
        // The optimal plan costs W2^2 + eps KL(P || a b'), KL is at most the entropy of either law, and the terms that are
        // subtracted are not negative. W2^2 alone is no bound.
        let costs = Cost::squared_euclidean(c.x(), c.y()).unwrap();
        let eps = factor * costs.values().iter().sum::<f64>() / costs.values().len() as f64;
        let entropy = (c.x().len().min(c.y().len()) as f64).ln();
        prop_assert!(found <= w2(c.x(), c.y()).unwrap().distance.value + eps * entropy + 1e-8);
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let clouds = Clouds::seeded(210, 190, 5, 3);
    for factor in [0.003, 0.05] {
        let options = SinkhornOptions { eps: Regularisation::RelativeToMean(factor), ..Default::default() };
        check_threads(&clouds, distance(options));
        check_threads(&clouds, divergence(options));
    }
}

#[test]
fn extreme_coordinates() {
    for factor in [1e-6, 0.05, 1e6] {
        let options = SinkhornOptions { eps: Regularisation::RelativeToMean(factor), ..Default::default() };
        check_extremes(|c| Ok(sinkhorn_distance(c.x(), c.y(), &options)?.distance));
        check_extremes(|c| Ok(sinkhorn_divergence(c.x(), c.y(), &options)?.distance));
    }
}

#[test]
fn costs_out_of_reach_of_the_kernel() {
    // Absolute eps far below the differences of the costs, and costs of both signs.
    let cost = Cost::new(vec![-1e6, 0.0, 5.0, 1e6, 0.0, -1e6], 2, 3).unwrap();
    let (a, b) = ([0.5, 0.5], [0.25, 0.25, 0.5]);
    for eps in [1e-3, 1.0, 1e9] {
        let found = sinkhorn(&cost, &a, &b, &SinkhornOptions { tolerance: 1e-7, ..absolute(eps) }).unwrap();
        assert!(found.plan.iter().chain(&found.f).chain(&found.g).all(|x| x.is_finite()));
    }
    let found = sinkhorn(&cost, &a, &b, &absolute(1.0)).unwrap();
    close(found.value, -0.75e6, 1e-5);
}

fn logits(seed: u64, rows: usize, classes: usize) -> Clouds {
    Clouds::seeded(rows, rows, classes, seed).map(|_, z| 2.0 * z)
}

fn ground(classes: usize) -> Cost {
    class_costs(Clouds::seeded(classes, 1, 3, 12).x()).unwrap()
}

#[test]
fn histograms_are_means_of_single_problems() {
    let (c, cost) = (logits(3, 5, 7), ground(7));
    let options = absolute(0.1);
    let found = sinkhorn_histograms(c.x(), c.y(), &cost, 2.0, &options).unwrap();
    assert!(found.converged() && found.convergence.len() == 5);
    close(found.value, sum(found.per_sample.iter().copied()) / 5.0, 1e-14);
    let softmax = |z: &[f64]| {
        let powers: Vec<f64> = z.iter().map(|z| (z / 2.0).exp()).collect();
        let total: f64 = powers.iter().sum();
        powers.iter().map(|e| e / total).collect::<Vec<_>>()
    };
    for i in 0..5 {
        let (p, q) = (softmax(c.x().get(i).unwrap()), softmax(c.y().get(i).unwrap()));
        let single = sinkhorn(&cost, &p, &q, &options).unwrap();
        close(single.value, found.per_sample[i], 1e-12);
        check_solution(&cost, &p, &q, &single, 1e-11);
    }
    check_gradient(&c, 1e-6, |c| {
        let found = sinkhorn_histograms(c.x(), c.y(), &cost, 2.0, &options).unwrap();
        Distance { value: found.value, grad_x: found.grad_student, grad_y: found.grad_teacher }
    });
}

#[test]
fn certain_predictions() {
    // Softmax weights of exactly 0: all mass goes from class 0 to class 2, and all gradients vanish.
    let cost = ground(3);
    let (s, t) = ([1e5, 0.0, 0.0], [0.0, 0.0, 1e5]);
    let (s, t) = (Points::new("student", &s, 3).unwrap(), Points::new("teacher", &t, 3).unwrap());
    let found = sinkhorn_histograms(s, t, &cost, 1.0, &absolute(0.05)).unwrap();
    close(found.value, cost.get(0).unwrap()[2], 1e-15);
    assert!(found.converged() && found.grad_student.iter().chain(&found.grad_teacher).all(|g| *g == 0.0));
    // One class: nothing can move.
    let one = Points::new("student", &[3.0, -2.0], 1).unwrap();
    let none = sinkhorn_histograms(one, one, &ground(1), 1.0, &SinkhornOptions::default()).unwrap();
    assert_eq!((none.value, none.grad_student), (0.0, vec![0.0; 2]));
}

#[test]
fn costs_between_classes() {
    let points = [1.0, 0.0, 0.0, 2.0, -3.0, 0.0, 0.0, 0.0];
    let cost = class_costs(Points::new("head", &points, 2).unwrap()).unwrap();
    let expected = [0.0, 0.5, 1.0, 0.5, 0.5, 0.0, 0.5, 0.5, 1.0, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0];
    all_close(cost.values(), &expected, 1e-15);
    let same = class_costs(Points::new("head", &[2.0, 2.0, 1e150, 1e150], 2).unwrap()).unwrap();
    assert!(same.values().iter().all(|c| *c <= 1.0 && *c >= 0.0));
}

#[test]
fn errors_name_the_argument() {
    let cost = Cost::new(vec![0.0, 1.0, 1.0, 0.0], 2, 2).unwrap();
    let half = [0.5, 0.5];
    let message =
        |a: &[f64], b: &[f64], options: SinkhornOptions| sinkhorn(&cost, a, b, &options).unwrap_err().to_string();
    let fine = SinkhornOptions::default();
    assert_eq!(message(&[1.0], &half, fine), "a: expected 2 weights, found 1");
    assert_eq!(message(&half, &[1.5, -0.5], fine), "b: expected a finite weight >= 0, found -0.5 at index 1");
    assert_eq!(message(&half, &[0.5, f64::NAN], fine), "b: expected a finite weight >= 0, found NaN at index 1");
    assert_eq!(message(&[0.5, 0.6], &half, fine), "a: expected weights of sum 1, found 1.1");
    for eps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        for eps in [Regularisation::Absolute(eps), Regularisation::RelativeToMean(eps)] {
            assert!(message(&half, &half, exact(eps)).starts_with("option `eps`: expected a positive finite number"));
        }
    }
    assert!(message(&half, &half, absolute(1e-16)).contains("at least 1e-15 of the largest cost"));
    assert!(message(&half, &half, SinkhornOptions { max_iter: 0, ..fine }).starts_with("option `max_iter`"));
    assert!(message(&half, &half, SinkhornOptions { tolerance: 0.0, ..fine }).starts_with("option `tolerance`"));
    let negative = Cost::new(vec![-1.0, 0.0], 1, 2).unwrap();
    assert!(sinkhorn(&negative, &[1.0], &half, &fine).unwrap_err().to_string().contains("positive mean"));
    let vast = Cost::new(vec![1e305, 0.0], 1, 2).unwrap();
    assert!(sinkhorn(&vast, &[1.0], &half, &fine).unwrap_err().to_string().starts_with("cost: expected entries"));

    let (x, y) = (Points::new("student", &[0.0; 4], 2).unwrap(), Points::new("teacher", &[0.0; 3], 3).unwrap());
    assert!(sinkhorn_distance(x, y, &fine).unwrap_err().to_string().starts_with("student and teacher"));
    assert!(sinkhorn_divergence(x, y, &fine).unwrap_err().to_string().starts_with("student and teacher"));
    assert!(sinkhorn_divergence_weighted(x, x, &[1.0], &half, &fine).unwrap_err().to_string().starts_with("a: "));
    let histograms = |y, cost: &Cost, t| sinkhorn_histograms(x, y, cost, t, &fine).unwrap_err().to_string();
    assert!(histograms(y, &cost, 1.0).starts_with("student and teacher"));
    let one = Points::new("teacher", &[0.0; 2], 2).unwrap();
    assert_eq!(histograms(one, &cost, 1.0), "student and teacher: expected as many rows, found 2 and 1");
    assert_eq!(histograms(x, &negative, 1.0), "cost: expected 2 x 2, found 1 x 2");
    for temperature in [0.0, -1.0, f64::NAN, 1e-310] {
        assert!(histograms(x, &cost, temperature).starts_with("option `temperature`"));
    }
    assert!(matches!(sinkhorn(&cost, &[0.5], &half, &fine), Err(Error::Shape { .. })));
}
