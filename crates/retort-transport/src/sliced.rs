//! Distances averaged over lines: sliced W2, max-sliced W2, sliced Cramer.

use crate::linalg::{Columns, Times, contract};
use crate::line::{self, Sorted};
use crate::{Distance, Error, Points, Result, checks, moments};
use rayon::prelude::*;

/// Directions that one task projects and sorts.
const DIRECTIONS: usize = 8;
/// Directions whose derivatives are held at a time.
const SLAB: usize = 64;
/// Points whose gradient one task sums.
const ROWS: usize = 64;
/// By how much the norm of a direction may differ from 1: directions in f32 come in.
const UNIT: f64 = 1e-3;

/// A mean over lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliced {
    /// The mean, with its gradients.
    pub distance: Distance,
    /// The value on each line, in the order of the directions.
    pub per_direction: Vec<f64>,
}

/// The largest of some lines.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxSliced {
    /// The largest value, with its gradients.
    pub distance: Distance,
    /// The value on each line, in the order of the directions.
    pub per_direction: Vec<f64>,
    /// The line with the largest value, from 0; the first of equal ones.
    pub argmax: usize,
}

/// A direction found by gradient ascent.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedSlice {
    /// The value along the direction found, with its gradients; the direction is held constant.
    pub distance: Distance,
    /// The direction found, of norm 1.
    pub direction: Vec<f64>,
    /// The value at the start and after each step; it never falls.
    pub values: Vec<f64>,
    /// `||dv/dtheta||` along the sphere over `2 v` at the end: 0 at a stationary direction.
    pub slope: f64,
}

/// How a direction is learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Ascent {
    /// Number of steps; each evaluates one direction.
    pub steps: usize,
    /// Tangent of the angle of a step. A step that doesn't raise the value is taken back, and the next is half as long.
    pub step: f64,
}

impl Default for Ascent {
    fn default() -> Self {
        Self { steps: 20, step: 0.5 }
    }
}

/// Sliced W2 squared: the mean over directions of the 1-D W2 squared of the projections.
///
/// `(1/L) sum_l W_2^2(X theta_l, Y theta_l)`, each term as in [`line::wasserstein`] with `p = 2`.
/// POT returns the square root. For directions uniform on the sphere the expectation is at most `W_2^2 / d`: multiply
/// by d to compare scales.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, `directions`: `[L, d]`, rows of norm 1 (they enter as they are, not normalised again).
///
/// # Gradient
///
/// `d/dx_i = (1/L) sum_l (sum 2 w (x_i - y_j) theta_l) theta_l`, over the intervals (of lengths `w`) on which the
/// projections of `x_i` and `y_j` meet. Where projections coincide it is a subgradient.
///
/// # Errors
///
/// Different widths, a direction whose norm is not 1 within 1e-3, a result that overflows.
///
/// Source: N. Bonneel, J. Rabin, G. Peyre, H. Pfister, "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, random_directions, sliced_w2};
/// let x = Points::new("student", &[0.0, 0.0, 1.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[0.0, 2.0, 1.0, 2.0], 2)?;
/// let axes = Points::new("directions", &[1.0, 0.0, 0.0, 1.0], 2)?;
/// let sliced = sliced_w2(x, y, axes)?;
/// assert_eq!(sliced.per_direction, [0.0, 4.0]);
/// assert_eq!(sliced.distance.value, 2.0);
///
/// let drawn = random_directions(100, 2, 7)?;
/// assert!(sliced_w2(x, y, Points::new("directions", &drawn, 2)?)?.distance.value > 0.0);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sliced_w2(x: Points<'_>, y: Points<'_>, directions: Points<'_>) -> Result<Sliced> {
    mean_over_lines("sliced-w2", x, y, directions, line::w2_into)
}

/// Sliced Cramer distance: the mean over directions of `integral (F - G)^2` of the projections.
///
/// Each term as in [`line::cramer`]; it needs no bandwidth and grows with the distance, not with its square.
///
/// # Shapes
///
/// As [`sliced_w2`].
///
/// # Gradient
///
/// `d/dx_i = (1/(L n)) sum_l [mean_j sign((x_i - y_j) theta_l) - mean_j sign((x_i - x_j) theta_l)] theta_l`.
///
/// # Errors
///
/// Those of [`sliced_w2`].
///
/// Source: S. Kolouri, N. Ketz, A. Soltoggio, P. Pilly, "Sliced Cramer Synaptic Consolidation for Preserving Deeply
/// Learned Representations", 2020.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, sliced_cramer};
/// let x = Points::new("student", &[0.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[3.0, 1.0], 2)?;
/// let axes = Points::new("directions", &[1.0, 0.0, 0.0, 1.0], 2)?;
/// assert_eq!(sliced_cramer(x, y, axes)?.per_direction, [3.0, 1.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sliced_cramer(x: Points<'_>, y: Points<'_>, directions: Points<'_>) -> Result<Sliced> {
    mean_over_lines("sliced-cramer", x, y, directions, line::cramer_into)
}

/// Max-sliced W2 squared over given directions.
///
/// `max_l W_2^2(X theta_l, Y theta_l)`; at most `W_2^2`.
///
/// # Shapes
///
/// As [`sliced_w2`].
///
/// # Gradient
///
/// That of the line with the largest value: a subgradient of the maximum.
///
/// # Errors
///
/// Those of [`sliced_w2`].
///
/// Source: I. Deshpande et al., "Max-Sliced Wasserstein Distance and its Use for GANs", 2019, arXiv 1904.05877.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, max_sliced_w2};
/// let x = Points::new("student", &[0.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[1.0, 2.0], 2)?;
/// let axes = Points::new("directions", &[1.0, 0.0, 0.0, 1.0], 2)?;
/// let max = max_sliced_w2(x, y, axes)?;
/// assert_eq!((max.distance.value, max.argmax), (4.0, 1));
/// assert_eq!(max.distance.grad_x, [0.0, -4.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn max_sliced_w2(x: Points<'_>, y: Points<'_>, directions: Points<'_>) -> Result<MaxSliced> {
    let lines = Lines::new(x, y, directions)?;
    let mut per_direction = vec![0.0; directions.len()];
    let mut slab = Slab::new(&lines);
    for (block, values) in per_direction.chunks_mut(SLAB).enumerate() {
        slab.fill(&lines, block * SLAB, values, line::w2_into);
    }
    let argmax =
        (0..per_direction.len()).fold(0, |best, l| if per_direction[l] > per_direction[best] { l } else { best });
    let slice = lines.slice(directions.row(argmax));
    let distance = slice.distance(directions.row(argmax));
    Ok(MaxSliced { distance: checks::finite("max-sliced-w2", distance)?, per_direction, argmax })
}

/// Max-sliced W2 squared along a direction learned by projected gradient ascent.
///
/// From `start`, each step goes `step` along the unit tangent of `dv/dtheta` and back to the sphere, where
/// `v(theta) = W_2^2(X theta, Y theta)` and `dv/dtheta = sum_ij 2 w_ij ((x_i - y_j) theta) (x_i - y_j)` with the
/// coupling of the projections held constant. The maximum is not concave: what comes out is a lower bound of the
/// max-sliced distance, at least the value at `start`.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, `start`: d numbers of norm 1 within 1e-3, which are normalised.
///
/// # Gradient
///
/// At the direction found, held constant.
///
/// # Errors
///
/// Different widths, a start whose norm is not 1, `step` not positive, a result that overflows.
///
/// Source: as [`max_sliced_w2`].
///
/// # Example
///
/// ```
/// use retort_transport::{Ascent, Points, max_sliced_w2_learned};
/// let x = Points::new("student", &[0.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[3.0, 4.0], 2)?;
/// let learned = max_sliced_w2_learned(x, y, &[1.0, 0.0], &Ascent { steps: 60, step: 0.5 })?;
/// assert!((learned.distance.value - 25.0).abs() < 1e-6);
/// assert!((learned.direction[1] - 0.8).abs() < 1e-4);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn max_sliced_w2_learned(x: Points<'_>, y: Points<'_>, start: &[f64], options: &Ascent) -> Result<LearnedSlice> {
    checks::positive("step", options.step)?;
    let start = Points::new("start", start, start.len())?;
    let lines = Lines::new(x, y, start)?;
    let mut direction = start.values().to_vec();
    normalise(&mut direction);
    let mut slice = lines.slice(&direction);
    let (mut values, mut step) = (vec![slice.value], options.step);
    for _ in 0..options.steps {
        let mut next = lines.tangent(&slice, &direction);
        normalise(&mut next);
        next.iter_mut().zip(&direction).for_each(|(t, theta)| *t = theta + step * *t);
        normalise(&mut next);
        let there = lines.slice(&next);
        if there.value > slice.value {
            (slice, direction) = (there, next);
        } else {
            step *= 0.5;
        }
        values.push(slice.value);
    }
    let tangent = lines.tangent(&slice, &direction);
    let slope = if slice.value > 0.0 { norm(&tangent) / (2.0 * slice.value) } else { 0.0 };
    let distance = checks::finite("max-sliced-w2", slice.distance(&direction))?;
    Ok(LearnedSlice { distance, direction, values, slope })
}

/// Directions drawn uniformly from the sphere: `count` rows of `width` numbers with norm 1.
///
/// Normal numbers, normalised. They come from SplitMix64 as a counter (Steele, Lea, Flood 2014) and the Box-Muller
/// transform: number `c` of row `l` depends on `seed`, `width`, `l` and `c` only, so more directions begin with the
/// fewer. The last bits may depend on the platform's `ln`, `sin` and `cos`.
///
/// # Errors
///
/// `count` or `width` 0, or more numbers than memory holds.
///
/// # Example
///
/// ```
/// let few = retort_transport::random_directions(2, 3, 1)?;
/// let more = retort_transport::random_directions(5, 3, 1)?;
/// assert_eq!(few, more[..6]);
/// let square: f64 = few[..3].iter().map(|x| x * x).sum();
/// assert!((square - 1.0).abs() < 1e-12);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn random_directions(count: usize, width: usize, seed: u64) -> Result<Vec<f64>> {
    let mut out = Vec::new();
    let numbers = count.checked_mul(width).filter(|&numbers| numbers > 0 && out.try_reserve_exact(numbers).is_ok());
    let Some(numbers) = numbers else {
        let (expected, found) = ("count and width > 0 that fit into memory".into(), format!("{count} x {width}"));
        return Err(Error::Shape { what: "directions".into(), expected, found });
    };
    out.resize(numbers, 0.0);
    let pairs = width.div_ceil(2) as u64;
    let key = mix(seed);
    for (row, l) in out.chunks_exact_mut(width).zip(0u64..) {
        for (pair, p) in row.chunks_mut(2).zip(0u64..) {
            let at = l.wrapping_mul(pairs).wrapping_add(p).wrapping_mul(2);
            pair.iter_mut().zip(normal_pair(key, at)).for_each(|(x, z)| *x = z);
        }
        if norm(row) == 0.0 {
            row[0] = 1.0;
        }
        normalise(row);
    }
    Ok(out)
}

/// Two independent normal numbers from the uniform numbers `at` and `at + 1` of a stream.
fn normal_pair(key: u64, at: u64) -> [f64; 2] {
    // 53 bits each: the first in (0, 1], for the logarithm, the second in [0, 1).
    let bits = |at: u64| (mix(key.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 11) as f64;
    let unit = (-53f64).exp2();
    let radius = (-2.0 * ((bits(at) + 1.0) * unit).ln()).sqrt();
    let angle = std::f64::consts::TAU * (bits(at.wrapping_add(1)) * unit);
    [radius * angle.cos(), radius * angle.sin()]
}

/// The finaliser of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Divides by the norm; a row of zeros stays.
fn normalise(row: &mut [f64]) {
    // Twice, so that squares of large or small numbers neither overflow nor vanish.
    let largest = row.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    if largest > 0.0 && largest.is_finite() {
        row.iter_mut().for_each(|x| *x /= largest);
        let norm = norm(row);
        row.iter_mut().for_each(|x| *x /= norm);
    }
}

/// A distance of two sorted samples that writes its derivatives.
type OnLine = fn(&Sorted, &Sorted, &mut [f64], &mut [f64]) -> f64;

fn mean_over_lines(
    metric: &'static str,
    x: Points<'_>,
    y: Points<'_>,
    directions: Points<'_>,
    on_line: OnLine,
) -> Result<Sliced> {
    let lines = Lines::new(x, y, directions)?;
    let count = directions.len();
    let mut per_direction = vec![0.0; count];
    let (mut grad_x, mut grad_y) = (vec![0.0; x.values().len()], vec![0.0; y.values().len()]);
    let mut slab = Slab::new(&lines);
    for (block, values) in per_direction.chunks_mut(SLAB).enumerate() {
        slab.fill(&lines, block * SLAB, values, on_line);
        let thetas = &directions.values()[block * SLAB * lines.width..][..values.len() * lines.width];
        pull_back(&slab.by_x, lines.n, thetas, lines.width, &mut grad_x);
        pull_back(&slab.by_y, lines.m, thetas, lines.width, &mut grad_y);
    }
    let share = 1.0 / count as f64;
    grad_x.iter_mut().chain(&mut grad_y).for_each(|g| *g *= share);
    let value = per_direction.iter().map(|v| v * share).sum();
    Ok(Sliced { distance: checks::finite(metric, Distance { value, grad_x, grad_y })?, per_direction })
}

/// Adds `sum_l slopes[l][i] theta_l` to the gradient of point i.
fn pull_back(slopes: &[f64], n: usize, thetas: &[f64], width: usize, grad: &mut [f64]) {
    let depth = thetas.len() / width;
    grad.par_chunks_mut(ROWS * width).enumerate().for_each(|(block, grad)| {
        let slopes = Columns::part(slopes, n, block * ROWS, grad.len() / width);
        contract(Times, depth, slopes, Columns::all(thetas, width), grad);
    });
}

/// Two clouds, coordinate by coordinate and close to the origin, and the directions likewise.
struct Lines {
    n: usize,
    m: usize,
    width: usize,
    count: usize,
    x: Vec<f64>,
    y: Vec<f64>,
    thetas: Vec<f64>,
}

impl Lines {
    fn new(x: Points<'_>, y: Points<'_>, directions: Points<'_>) -> Result<Self> {
        x.same_width(&y)?;
        x.same_width(&directions)?;
        if let Some(row) = directions.rows().position(|row| (norm(row) - 1.0).abs() > UNIT) {
            let (expected, found) = ("a row of norm 1", norm(directions.row(row)));
            let index = row * directions.width();
            return Err(Error::Value { what: directions.name().into(), expected, found, index });
        }
        let (width, count) = (x.width(), directions.len());
        let origin = moments::middle(x, y);
        Ok(Self {
            n: x.len(),
            m: y.len(),
            width,
            count,
            x: moments::columns(x, &origin),
            y: moments::columns(y, &origin),
            thetas: moments::columns(directions, &vec![0.0; width]),
        })
    }

    /// The line along one direction.
    fn slice(&self, direction: &[f64]) -> Slice {
        let (mut by_x, mut by_y) = (vec![0.0; self.n], vec![0.0; self.m]);
        let theta = Columns::all(direction, 1);
        let (mut px, mut py) = (by_x.clone(), by_y.clone());
        contract(Times, self.width, theta, Columns::all(&self.x, self.n), &mut px);
        contract(Times, self.width, theta, Columns::all(&self.y, self.m), &mut py);
        let value = line::w2_into(&Sorted::new(&px), &Sorted::new(&py), &mut by_x, &mut by_y);
        Slice { value, by_x, by_y }
    }

    /// `dv/dtheta` without its part along the direction.
    fn tangent(&self, slice: &Slice, direction: &[f64]) -> Vec<f64> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (x, y) = (self.x.chunks_exact(self.n), self.y.chunks_exact(self.m));
        let mut out: Vec<f64> = x.zip(y).map(|(x, y)| dot(x, &slice.by_x) + dot(y, &slice.by_y)).collect();
        let along = dot(&out, direction);
        out.iter_mut().zip(direction).for_each(|(g, theta)| *g -= along * theta);
        out
    }
}

/// W2 squared on one line, with the derivatives with respect to the projections.
struct Slice {
    value: f64,
    by_x: Vec<f64>,
    by_y: Vec<f64>,
}

impl Slice {
    fn distance(&self, direction: &[f64]) -> Distance {
        let spread = |by: &[f64]| by.iter().flat_map(|g| direction.iter().map(move |theta| g * theta)).collect();
        Distance { value: self.value, grad_x: spread(&self.by_x), grad_y: spread(&self.by_y) }
    }
}

/// The derivatives with respect to the projections on up to [`SLAB`] directions, direction after direction.
struct Slab {
    by_x: Vec<f64>,
    by_y: Vec<f64>,
}

/// Memory of one task.
#[derive(Default)]
struct Scratch {
    projections: Vec<f64>,
    x: Sorted,
    y: Sorted,
}

impl Slab {
    fn new(lines: &Lines) -> Self {
        let held = lines.count.min(SLAB);
        Self { by_x: vec![0.0; held * lines.n], by_y: vec![0.0; held * lines.m] }
    }

    /// The values of the directions from `first` on, and their derivatives.
    fn fill(&mut self, lines: &Lines, first: usize, values: &mut [f64], on_line: OnLine) {
        let (n, m) = (lines.n, lines.m);
        let tasks = values
            .par_chunks_mut(DIRECTIONS)
            .zip(self.by_x.par_chunks_mut(DIRECTIONS * n))
            .zip(self.by_y.par_chunks_mut(DIRECTIONS * m))
            .enumerate();
        tasks.for_each_init(Scratch::default, |scratch, (block, ((values, by_x), by_y))| {
            let held = values.len();
            let thetas = Columns::part(&lines.thetas, lines.count, first + block * DIRECTIONS, held);
            scratch.projections.clear();
            scratch.projections.resize(held * (n + m), 0.0);
            let (px, py) = scratch.projections.split_at_mut(held * n);
            contract(Times, lines.width, thetas, Columns::all(&lines.x, n), px);
            contract(Times, lines.width, thetas, Columns::all(&lines.y, m), py);
            let rows = px.chunks_exact(n).zip(py.chunks_exact(m));
            let slopes = by_x.chunks_exact_mut(n).zip(by_y.chunks_exact_mut(m));
            for ((value, (px, py)), (by_x, by_y)) in values.iter_mut().zip(rows).zip(slopes) {
                scratch.x.fill(px);
                scratch.y.fill(py);
                *value = on_line(&scratch.x, &scratch.y, by_x, by_y);
            }
        });
    }
}
