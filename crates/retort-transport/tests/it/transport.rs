//! Transport with arbitrary marginals.

use crate::assignment::{cost, exhaustive, random};
use proptest::prelude::*;
use retort_transport::{Certificate, Cost, Error, Plan, Transport, TransportOptions, transport, uniform_transport};

const DEFAULT: TransportOptions = TransportOptions { max_pivots: 1_000_000 };

/// Positive numbers that sum to 1, apart from rounding.
fn masses(seed: u64, len: usize) -> Vec<f64> {
    let raw: Vec<f64> = random(seed, len).iter().map(|x| (x + 1.0).powi(3)).collect();
    let total: f64 = raw.iter().sum();
    raw.iter().map(|x| x / total).collect()
}

/// Solves and checks plan and duals.
fn solved(cost: &Cost, a: &[f64], b: &[f64]) -> Transport {
    let best = transport(cost, a, b, &DEFAULT).unwrap();
    check(cost, a, b, &best);
    best
}

fn check(cost: &Cost, a: &[f64], b: &[f64], best: &Transport) {
    let total: f64 = a.iter().sum();
    let check = best.certificate(cost, a, b).unwrap();
    assert!(best.converged);
    assert!(check.marginal_error <= 1e-14 * total, "{check:?}");
    assert!(check.worst_violation <= 1e-13 * cost.largest(), "{check:?}");
    assert!(check.gap.abs() <= 1e-12 * cost.largest() * total, "{check:?}");
    assert_eq!(check.primal, best.value);
    assert!(best.plan.entries().len() < a.len() + b.len(), "no vertex of the polytope");
    for &(i, j, mass) in best.plan.entries() {
        assert!(mass > 0.0);
        assert!(
            (best.u[i] + best.v[j] - cost.get(i).unwrap()[j]).abs() <= 1e-13 * cost.largest(),
            "no equality at {i}, {j}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn multiplicities_are_repeated_rows(seed in any::<u64>(), rows in 1usize..=4, columns in 1usize..=4, levels in 0u8..3) {
        // Seven units, dealt to rows and columns at random; some get none.
        let deal = |seed, len: usize| {
            let mut counts = vec![0usize; len];
            random(seed, 7).iter().for_each(|x| counts[((x + 1.0) / 2.0 * len as f64) as usize % len] += 1);
            counts
        };
        let (a, b) = (deal(seed, rows), deal(!seed, columns));
        let mut values = random(seed ^ 1, rows * columns);
        if levels > 0 {
            values.iter_mut().for_each(|x| *x = (*x * f64::from(levels)).round());
        }
        let small = cost(values, rows, columns);
        let repeat = |counts: &[usize]| -> Vec<usize> {
            counts.iter().enumerate().flat_map(|(i, &count)| vec![i; count]).collect()
        };
        let (i, j) = (repeat(&a), repeat(&b));
        let large = i.iter().flat_map(|&i| j.iter().map(|&j| small.get(i).unwrap()[j]).collect::<Vec<_>>()).collect();
        let least = exhaustive(&cost(large, 7, 7));
        let weights = |counts: &[usize]| counts.iter().map(|&c| c as f64).collect::<Vec<_>>();
        let best = solved(&small, &weights(&a), &weights(&b));
        prop_assert!((best.value - least).abs() < 1e-12, "{} but {least}", best.value);
    }

    #[test]
    fn random_marginals_carry_a_certificate(seed in any::<u64>(), rows in 1usize..30, columns in 1usize..30) {
        let (mut a, mut b) = (masses(seed, rows), masses(!seed, columns));
        let problem = cost(random(seed ^ 2, rows * columns), rows, columns);
        let best = solved(&problem, &a, &b);
        // Twice the mass costs twice as much.
        a.iter_mut().chain(&mut b).for_each(|x| *x *= 2.0);
        prop_assert!((solved(&problem, &a, &b).value - 2.0 * best.value).abs() < 1e-12);
    }

    #[test]
    fn a_line_is_transported_in_order(seed in any::<u64>(), rows in 1usize..12, columns in 1usize..12) {
        let (mut x, mut y) = (random(seed, rows), random(!seed, columns));
        x.sort_by(f64::total_cmp);
        y.sort_by(f64::total_cmp);
        let squares = x.iter().flat_map(|x| y.iter().map(move |y| (x - y) * (x - y))).collect();
        // The quantile functions are steps with breaks at k / n and k / m.
        let steps = rows * columns;
        let sorted: f64 = (0..steps).map(|k| (x[k / columns] - y[k / rows]).powi(2)).sum::<f64>() / steps as f64;
        let best = uniform_transport(&cost(squares, rows, columns), &DEFAULT);
        prop_assert!((best.value - sorted).abs() < 1e-12);
    }
}

#[test]
fn certificates_at_size() {
    for (rows, columns) in [(300, 400), (400, 300), (256, 256), (3, 900), (900, 2)] {
        let problem = cost(random(rows as u64, rows * columns), rows, columns);
        let (a, b) = (masses(1, rows), masses(2, columns));
        solved(&problem, &a, &b);
        let (a, b) = (vec![1.0 / rows as f64; rows], vec![1.0 / columns as f64; columns]);
        let uniform = uniform_transport(&problem, &DEFAULT);
        check(&problem, &a, &b, &uniform);
        assert!((solved(&problem, &a, &b).value - uniform.value).abs() < 1e-13);
    }
}

#[test]
fn uniform_flows_are_exact() {
    let best = uniform_transport(&cost(random(5, 32 * 48), 32, 48), &DEFAULT);
    // 32 and 48 points: everything moves in units of 1/96.
    assert!(best.plan.entries().iter().all(|e| [1.0 / 96.0, 2.0 / 96.0].contains(&e.2)));
    let square = uniform_transport(&cost(random(5, 9), 3, 3), &DEFAULT);
    assert!(square.plan.entries().iter().all(|e| e.2 == 1.0 / 3.0));
    assert_eq!(square.pivots, 0);
}

#[test]
fn zero_masses_take_no_part() {
    let problem = cost(random(7, 30), 5, 6);
    let (a, b) = ([0.0, 0.5, 0.0, 0.25, 0.25], [0.0, 0.0, 0.125, 0.625, 0.25, 0.0]);
    let best = solved(&problem, &a, &b);
    assert!(best.plan.entries().iter().all(|&(i, j, _)| a[i] > 0.0 && b[j] > 0.0));
    assert!(best.u.iter().chain(&best.v).all(|price| price.is_finite()));
    let part = cost([1, 3, 4].into_iter().flat_map(|i| problem.get(i).unwrap()[2..5].to_vec()).collect(), 3, 3);
    assert_eq!(solved(&part, &[0.5, 0.25, 0.25], &[0.125, 0.625, 0.25]).value, best.value);
    let single = solved(&problem, &[0.0, 0.0, 3.0, 0.0, 0.0], &[0.0, 3.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(single.plan.entries(), [(2, 1, 3.0)]);
}

#[test]
fn ties_everywhere() {
    let (a, b) = (masses(1, 40), masses(2, 25));
    assert!((solved(&cost(vec![2.0; 1000], 40, 25), &a, &b).value - 2.0).abs() < 1e-14);
    let digits = random(9, 1000).iter().map(|x| (x * 2.0).floor()).collect();
    solved(&cost(digits, 40, 25), &a, &b);
    // Equal masses make every tree degenerate.
    let blocks = (0..60 * 40).map(|k| f64::from((k / 40 + k % 40) % 3 == 0)).collect();
    let blocks = cost(blocks, 60, 40);
    check(&blocks, &[1.0 / 60.0; 60], &[1.0 / 40.0; 40], &uniform_transport(&blocks, &DEFAULT));
}

#[test]
fn extreme_numbers() {
    let (a, b) = (masses(1, 12), masses(2, 9));
    let unit = random(3, 108);
    let plain = solved(&cost(unit.clone(), 12, 9), &a, &b);
    for power in [1000, -900] {
        let scale = 2f64.powi(power);
        let scaled = transport(&cost(unit.iter().map(|x| x * scale).collect(), 12, 9), &a, &b, &DEFAULT).unwrap();
        assert_eq!(scaled.plan, plain.plan);
        assert_eq!(scaled.value, plain.value * scale);
    }
    // Weights of very different size, down to the smallest there are.
    let a = [1e-30, 1.0, 1e-12, 5e-324];
    let total: f64 = a.iter().sum();
    solved(&cost(random(4, 8), 4, 2), &a, &[0.25 * total, 0.75 * total]);
    for scale in [1e250, 1e-250] {
        let (a, b) = ([0.3 * scale, 0.7 * scale], [0.6 * scale, 0.4 * scale]);
        assert_eq!(solved(&cost(vec![0.0, 1.0, 1.0, 0.0], 2, 2), &a, &b).plan.entries().len(), 3);
    }
}

#[test]
fn a_limit_that_is_reached_is_reported() {
    let problem = cost(random(11, 600), 20, 30);
    let (a, b) = (masses(1, 20), masses(2, 30));
    let best = solved(&problem, &a, &b);
    assert!(best.pivots > 3);
    let stopped = transport(&problem, &a, &b, &TransportOptions { max_pivots: best.pivots - 1 }).unwrap();
    assert!(!stopped.converged);
    assert_eq!(stopped.pivots, best.pivots - 1);
    let check = stopped.certificate(&problem, &a, &b).unwrap();
    assert!(check.marginal_error < 1e-15 && check.worst_violation > 0.0, "{check:?}");
    assert!(stopped.value >= best.value);
    let enough = transport(&problem, &a, &b, &TransportOptions { max_pivots: best.pivots }).unwrap();
    assert_eq!(enough, best);
}

#[test]
fn bad_marginals_are_refused() {
    let problem = cost(vec![0.0; 6], 2, 3);
    let third = [1.0 / 3.0; 3];
    let refused = |a: &[f64], b: &[f64]| transport(&problem, a, b, &DEFAULT).unwrap_err();
    assert!(matches!(refused(&[1.0], &third), Error::Shape { what, .. } if what == "a"));
    assert!(matches!(refused(&[0.5, 0.5], &[1.0]), Error::Shape { what, .. } if what == "b"));
    assert!(matches!(refused(&[1.5, -0.5], &third), Error::Value { what, index: 1, .. } if what == "a"));
    assert!(matches!(refused(&[0.5, 0.5], &[0.5, f64::NAN, 0.5]), Error::Value { what, index: 1, .. } if what == "b"));
    assert!(matches!(refused(&[0.5, f64::INFINITY], &third), Error::Value { .. }));
    assert!(matches!(refused(&[0.0, 0.0], &[0.0; 3]), Error::Shape { .. }));
    assert!(matches!(refused(&[f64::MAX, f64::MAX], &third), Error::Shape { .. }));
    let error = refused(&[0.5, 0.6], &third);
    assert!(error.to_string().contains("a and b: expected marginals of equal total mass"), "{error}");
    assert!(transport(&problem, &[0.5, 0.5 + 1e-12], &third, &DEFAULT).is_ok());
}

#[test]
fn certificates_refuse_other_shapes() {
    let problem = cost(vec![1.0; 6], 2, 3);
    let plan = Plan::new(2, 3, vec![(1, 2, 0.5), (0, 0, 0.5)]).unwrap();
    assert_eq!(plan.entries(), [(0, 0, 0.5), (1, 2, 0.5)]);
    assert_eq!(plan.dense(), [0.5, 0.0, 0.0, 0.0, 0.0, 0.5]);
    assert_eq!((plan.row_sums(), plan.column_sums()), (vec![0.5; 2], vec![0.5, 0.0, 0.5]));
    let (a, b, u, v) = ([0.5; 2], [0.5, 0.0, 0.25], [1.0; 2], [0.0, 0.5, 0.0]);
    let check = Certificate::new(&problem, &a, &b, &plan, &u, &v).unwrap();
    assert_eq!((check.primal, check.dual, check.gap), (1.0, 1.0, 0.0));
    assert_eq!((check.worst_violation, check.marginal_error), (0.5, 0.25));
    assert!(Certificate::new(&problem, &a, &b, &plan, &u, &v[1..]).is_err());
    assert!(Certificate::new(&problem, &a[1..], &b, &plan, &u, &v).is_err());
    assert!(Certificate::new(&cost(vec![1.0; 4], 2, 2), &a, &a, &plan, &u, &u).is_err());
    assert!(Plan::new(2, 3, vec![(2, 0, 1.0)]).is_err());
    assert!(Plan::new(2, 3, vec![(0, 0, f64::NAN)]).is_err());
}
