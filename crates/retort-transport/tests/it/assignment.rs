//! The assignment solver against all permutations, and its certificates.

use proptest::prelude::*;
use retort_transport::{Assignment, Cost, Error, Points, assignment};

/// Numbers in [-1, 1) from a seed (splitmix64).
pub(crate) fn random(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 11
    };
    (0..len).map(|_| next() as f64 / (1u64 << 52) as f64 - 1.0).collect()
}

pub(crate) fn cost(values: Vec<f64>, rows: usize, columns: usize) -> Cost {
    Cost::new(values, rows, columns).unwrap()
}

/// The least cost over all ways to give rows their own columns, rows <= columns.
pub(crate) fn exhaustive(cost: &Cost) -> f64 {
    fn best(cost: &Cost, row: usize, taken: &mut Vec<bool>) -> f64 {
        if row == cost.rows() {
            return 0.0;
        }
        let mut least = f64::INFINITY;
        for j in 0..cost.columns() {
            if !taken[j] {
                taken[j] = true;
                least = least.min(cost.get(row).unwrap()[j] + best(cost, row + 1, taken));
                taken[j] = false;
            }
        }
        least
    }
    best(cost, 0, &mut vec![false; cost.columns()])
}

/// Solves and checks pairs, prices and the value.
fn solved(cost: &Cost) -> Assignment {
    let best = assignment(cost);
    let tolerance = 1e-12 * cost.largest() * cost.rows().max(cost.columns()) as f64;
    let check = best.certificate(cost).unwrap();
    assert_eq!(check.marginal_error, 0.0);
    assert_eq!(best.pairs().count(), cost.rows().min(cost.columns()));
    assert!(check.worst_violation <= 1e-13 * cost.largest(), "{check:?}");
    assert!(check.gap.abs() <= tolerance, "{check:?}");
    assert!((check.primal - best.value).abs() <= tolerance);
    for (i, j) in best.pairs() {
        assert!(
            (best.u[i] + best.v[j] - cost.get(i).unwrap()[j]).abs() <= 1e-13 * cost.largest(),
            "no equality at {i}, {j}"
        );
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_permutation_is_cheaper(seed in any::<u64>(), n in 1usize..=7, extra in 0usize..=1, levels in 0u8..4) {
        let mut values = random(seed, n * (n + extra));
        if levels > 0 {
            // Few levels: many ties.
            values.iter_mut().for_each(|x| *x = (*x * f64::from(levels)).round());
        }
        let wide = cost(values, n, n + extra);
        let least = exhaustive(&wide);
        prop_assert!((solved(&wide).value - least).abs() < 1e-12);
        let turned = (0..n * (n + extra)).map(|k| wide.get(k % n).unwrap()[k / n]).collect();
        prop_assert!((solved(&cost(turned, n + extra, n)).value - least).abs() < 1e-12);
    }

    #[test]
    fn order_and_constants_do_not_matter(seed in any::<u64>(), n in 2usize..40, offset in -1e3f64..1e3) {
        let values = random(seed, n * n);
        let best = solved(&cost(values.clone(), n, n));
        let reversed = solved(&cost(values.iter().rev().copied().collect(), n, n));
        prop_assert!((best.value - reversed.value).abs() < 1e-11);
        let raised = values.iter().enumerate().map(|(k, x)| x + if k < n { offset } else { 0.0 }).collect();
        prop_assert!((solved(&cost(raised, n, n)).value - best.value - offset).abs() < 1e-9);
    }
}

#[test]
fn certificates_at_size() {
    for (rows, columns) in [(64, 64), (128, 128), (512, 512), (300, 400), (400, 300), (5, 700), (700, 5)] {
        let best = solved(&cost(random(rows as u64, rows * columns), rows, columns));
        assert_eq!(best.columns.iter().flatten().count(), rows.min(columns));
    }
}

#[test]
fn certificates_of_clouds_up_to_512_points() {
    for (n, width, seed) in [(64, 2, 1), (128, 64, 2), (256, 8, 3), (512, 2, 4), (512, 64, 5), (512, 16, 6)] {
        let (x, y) = (random(seed, n * width), random(seed + 100, n * width));
        let clouds = (Points::new("x", &x, width).unwrap(), Points::new("y", &y, width).unwrap());
        solved(&Cost::squared_euclidean(clouds.0, clouds.1).unwrap());
        solved(&Cost::euclidean(clouds.0, clouds.1).unwrap());
    }
}

#[test]
fn ties_and_duplicates() {
    for n in [2, 3, 17, 100] {
        assert_eq!(solved(&cost(vec![3.0; n * n], n, n)).value, 3.0 * n as f64);
        assert_eq!(solved(&cost(vec![0.0; n * (n + 3)], n, n + 3)).value, 0.0);
        // Two kinds of rows and columns that should meet.
        let blocks = (0..n * n).map(|k| if (k / n) % 2 == (k % n) % 2 { -1.0 } else { 5.0 }).collect();
        assert_eq!(solved(&cost(blocks, n, n)).value, -(n as f64));
        let digits = random(n as u64, n * n).iter().map(|x| (x * 2.0).floor()).collect();
        solved(&cost(digits, n, n));
    }
}

#[test]
fn long_paths_go_to_the_simplex() {
    // Every column is cheapest at the first row: the shortest paths visit almost all rows each time.
    let n = 200;
    let product: Vec<f64> = (0..n * n).map(|k| ((k / n + 1) * (k % n + 1)) as f64).collect();
    let expected: usize = (1..=n).map(|i| i * (n + 1 - i)).sum();
    let best = solved(&cost(product, n, n));
    assert_eq!(best.value, expected as f64);
    assert_eq!(best.columns, (0..n).rev().map(Some).collect::<Vec<_>>());
    // The same with noise, so that it takes pivots.
    let noise = random(1, n * n);
    solved(&cost((0..n * n).map(|k| ((k / n + 1) * (k % n + 1)) as f64 + 50.0 * noise[k]).collect(), n, n));
}

#[test]
fn borders() {
    let one = solved(&cost(vec![-7.5], 1, 1));
    assert_eq!((one.columns, one.value), (vec![Some(0)], -7.5));
    assert_eq!(solved(&cost(vec![3.0, 1.0, 2.0], 1, 3)).columns, [Some(1)]);
    assert_eq!(solved(&cost(vec![3.0, 1.0, 2.0], 3, 1)).columns, [None, Some(0), None]);
    assert_eq!(solved(&cost(vec![-0.0, 0.0, 0.0, -0.0], 2, 2)).value, 0.0);
    // Sums of these would overflow or vanish.
    let unit = random(3, 100);
    let chosen = solved(&cost(unit.clone(), 10, 10)).columns;
    for scale in [2f64.powi(1000), 2f64.powi(-990)] {
        let scaled = cost(unit.iter().map(|x| x * scale).collect(), 10, 10);
        assert_eq!(assignment(&scaled).columns, chosen);
    }
    let top = cost(vec![f64::MAX, -f64::MAX, 0.0, f64::MAX], 2, 2);
    assert_eq!(assignment(&top).columns, [Some(1), Some(0)]);
    let smallest = cost(vec![5e-324, 0.0, 0.0, 5e-324], 2, 2);
    assert_eq!(assignment(&smallest).columns, [Some(1), Some(0)]);
}

#[test]
fn bad_matrices_are_refused() {
    assert!(matches!(Cost::new(vec![], 0, 0), Err(Error::Shape { .. })));
    assert!(matches!(Cost::new(vec![1.0; 5], 2, 3), Err(Error::Shape { .. })));
    assert!(matches!(Cost::new(vec![1.0; 4], usize::MAX, 4), Err(Error::Shape { .. })));
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for index in [0, 3, 8, 9] {
            let mut values = vec![1.0; 10];
            values[index] = bad;
            let error = Cost::new(values, 2, 5).unwrap_err();
            assert!(matches!(error, Error::Value { index: i, .. } if i == index), "{error}");
        }
    }
}
