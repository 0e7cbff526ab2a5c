//! Scans of one row of costs: where the solvers spend their time.
//!
//! Written over fixed arrays of lanes, which the compiler turns into vector instructions.
//! `if a < b { a } else { b }` instead of `f64::min`, which has to mind NaN; costs and duals are never NaN.
//! The index of a minimum is looked up afterwards, in the block that holds it.

const LANES: usize = 8;
const BLOCK: usize = 64;

#[inline]
fn low(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

#[inline]
fn high(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

fn lowest(lanes: [f64; LANES]) -> f64 {
    lanes.into_iter().fold(f64::INFINITY, low)
}

/// A smallest value, the first column that has it, and the smallest value of all other columns.
#[derive(Clone, Copy)]
pub(crate) struct Smallest {
    pub(crate) value: f64,
    pub(crate) column: usize,
    /// Infinite if there is no other column.
    pub(crate) second: f64,
}

/// The smallest `cost_j - dual_j`.
pub(crate) fn smallest(cost: &[f64], dual: &[f64]) -> (f64, usize) {
    let (mut best, mut start) = (f64::INFINITY, 0);
    for (b, (cost, dual)) in cost.chunks(BLOCK).zip(dual.chunks(BLOCK)).enumerate() {
        let ((cost, cost_rest), (dual, dual_rest)) = (cost.as_chunks::<LANES>(), dual.as_chunks::<LANES>());
        let mut lanes = [f64::INFINITY; LANES];
        for (cost, dual) in cost.iter().zip(dual) {
            for l in 0..LANES {
                lanes[l] = low(cost[l] - dual[l], lanes[l]);
            }
        }
        for (lane, (cost, dual)) in lanes.iter_mut().zip(cost_rest.iter().zip(dual_rest)) {
            *lane = low(cost - dual, *lane);
        }
        let block = lowest(lanes);
        if block < best {
            (best, start) = (block, b * BLOCK);
        }
    }
    (best, start + reduced(&cost[start..], &dual[start..]).position(|x| x == best).unwrap_or(0))
}

/// The two smallest `cost_j - dual_j`.
pub(crate) fn two_smallest(cost: &[f64], dual: &[f64]) -> Smallest {
    let (mut best, mut second, mut start) = (f64::INFINITY, f64::INFINITY, 0);
    for (b, (cost, dual)) in cost.chunks(BLOCK).zip(dual.chunks(BLOCK)).enumerate() {
        let ((cost, cost_rest), (dual, dual_rest)) = (cost.as_chunks::<LANES>(), dual.as_chunks::<LANES>());
        let (mut first, mut next) = ([f64::INFINITY; LANES], [f64::INFINITY; LANES]);
        for (cost, dual) in cost.iter().zip(dual) {
            for l in 0..LANES {
                let x = cost[l] - dual[l];
                next[l] = low(high(first[l], x), next[l]);
                first[l] = low(x, first[l]);
            }
        }
        for (l, x) in reduced(cost_rest, dual_rest).enumerate() {
            next[l] = low(high(first[l], x), next[l]);
            first[l] = low(x, first[l]);
        }
        for l in 0..LANES {
            second = low(high(best, first[l]), low(second, next[l]));
            if first[l] < best {
                (best, start) = (first[l], b * BLOCK);
            }
        }
    }
    let at = reduced(&cost[start..], &dual[start..]).position(|x| x == best).unwrap_or(0);
    Smallest { value: best, column: start + at, second }
}

/// Lowers every `key_j` to `cost_j - dual_j - offset` where that is less; returns the smallest key and its column.
pub(crate) fn relax(cost: &[f64], dual: &[f64], offset: f64, key: &mut [f64]) -> (f64, usize) {
    let (mut best, mut start) = (f64::INFINITY, 0);
    let blocks = cost.chunks(BLOCK).zip(dual.chunks(BLOCK)).zip(key.chunks_mut(BLOCK));
    for (b, ((cost, dual), key)) in blocks.enumerate() {
        let ((cost, cost_rest), (dual, dual_rest)) = (cost.as_chunks::<LANES>(), dual.as_chunks::<LANES>());
        let (key, key_rest) = key.as_chunks_mut::<LANES>();
        let mut lanes = [f64::INFINITY; LANES];
        for ((cost, dual), key) in cost.iter().zip(dual).zip(key) {
            for l in 0..LANES {
                key[l] = low(cost[l] - dual[l] - offset, key[l]);
                lanes[l] = low(key[l], lanes[l]);
            }
        }
        for ((lane, key), x) in lanes.iter_mut().zip(key_rest).zip(reduced(cost_rest, dual_rest)) {
            *key = low(x - offset, *key);
            *lane = low(*key, *lane);
        }
        let block = lowest(lanes);
        if block < best {
            (best, start) = (block, b * BLOCK);
        }
    }
    (best, start + key[start..].iter().position(|&k| k == best).unwrap_or(0))
}

fn reduced<'a>(cost: &'a [f64], dual: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    cost.iter().zip(dual).map(|(cost, dual)| cost - dual)
}
