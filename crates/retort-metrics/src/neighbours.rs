//! What embeddings are worth without training anything on them: nearest neighbours, and how much of the space they fill.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Test rows whose similarities are in memory at once.
const TEST_ROWS: usize = 256;
/// Training rows that they are compared with at once: 4 MiB of similarities.
const TRAIN_ROWS: usize = 2048;
/// Steps in which similarities are compared: far below what an embedding of f32 means, far above the rounding of a sum.
const STEPS: f64 = (1u64 << 40) as f64;

/// Accuracies of k-nearest-neighbour classification by majority vote, one for each entry of `ks`, in `[0, 1]` (SimReg,
/// Navaneet et al. 2021, judges embeddings by 1 and 20 neighbours).
///
/// Near is what has a large cosine similarity; a row of zeros is at similarity 0 to all.
/// Of classes with equally many votes the one whose nearest member is nearest wins; of equally near rows the first one
/// is the nearer. Similarities are compared in steps of 2^-40, so that neither the rounding of a sum nor the number of
/// threads decides between rows that are alike.
///
/// # Shapes
///
/// `train`: `[N, D]` with N labels, `test`: `[M, D]` with M labels. Never more than a block of the N x M similarities
/// is in memory.
///
/// # Errors
///
/// Shapes or numbers of labels that do not fit, no rows, a value that is not finite, a k that is not in `1 ..= N`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let train = Tensor::new(&[[1f32, 0.0], [0.9, 0.1], [0.0, 1.0]], &Device::Cpu)?;
/// let test = Tensor::new(&[[5f32, 1.0], [1.0, 5.0]], &Device::Cpu)?;
/// let accuracies = retort_metrics::knn_accuracy(&train, &[0, 0, 1], &test, &[0, 1], &[1, 3])?;
/// assert_eq!(accuracies, [1.0, 0.5]);
/// # Ok::<(), retort_metrics::Error>(())
/// ```
pub fn knn_accuracy(
    train: &Tensor,
    train_labels: &[u32],
    test: &Tensor,
    test_labels: &[u32],
    ks: &[usize],
) -> Result<Vec<f64>> {
    let found = Neighbours::new([train, test], [train_labels, test_labels], ks)?;
    Ok(ks.iter().map(|&k| found.accuracy(test_labels, k, |_, _| 1.0)).collect())
}

/// Accuracy of k-nearest-neighbour classification where a neighbour at cosine similarity s has `exp(s / temperature)`
/// votes, in `[0, 1]`: the monitor of instance discrimination (Wu et al. 2018, arXiv 1805.01978).
///
/// Squeeze-and-Span (Yang et al. 2022) watches it with 200 neighbours at temperature 0.1. Everything else is as for
/// [`knn_accuracy`].
///
/// # Errors
///
/// As for [`knn_accuracy`]; a temperature that is not a finite number > 0.
pub fn weighted_knn_accuracy(
    train: &Tensor,
    train_labels: &[u32],
    test: &Tensor,
    test_labels: &[u32],
    k: usize,
    temperature: f64,
) -> Result<f64> {
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::Value(format!("`temperature` must be finite and > 0, found {temperature}")));
    }
    let found = Neighbours::new([train, test], [train_labels, test_labels], &[k])?;
    // All votes of a row in units of the nearest neighbour's: no temperature makes them overflow.
    Ok(found.accuracy(test_labels, k, |nearest, s| ((s - nearest) / temperature).exp()))
}

/// How many directions embeddings fill: `exp(-sum_i p_i ln p_i)` with `p_i` the shares of the singular values of the
/// centred rows in their sum (Roy and Vetterli 2007, "The effective rank").
///
/// From 1 for rows on a line to `min(N - 1, D)`; 0 where all rows are equal. A collapse shows as a small one.
///
/// # Shapes
///
/// `embeddings`: `[N, D]`.
///
/// # Errors
///
/// Another shape, fewer than 2 rows, a value that is not finite.
pub fn effective_rank(embeddings: &Tensor) -> Result<f64> {
    let rows = Rows::centred(embeddings)?;
    let values = Mat::from_fn(rows.n, rows.d, |i, j| rows.values[i * rows.d + j]).singular_values();
    let values = values.map_err(|error| Error::Value(format!("the embeddings have no singular values: {error:?}")))?;
    let total: f64 = values.iter().sum();
    if total == 0.0 {
        return Ok(0.0);
    }
    let entropy = |share: f64| if share > 0.0 { -share * share.ln() } else { 0.0 };
    Ok(values.iter().map(|value| entropy(value / total)).sum::<f64>().exp())
}

/// Mean over the dimensions of the standard deviation (unbiased variance) of embeddings `[N, D]`: 0 where all rows are
/// equal.
///
/// # Errors
///
/// As for [`effective_rank`].
pub fn mean_std(embeddings: &Tensor) -> Result<f64> {
    Ok(Rows::centred(embeddings)?.mean_std())
}

/// [`mean_std`] of the rows scaled to length 1, times `sqrt(D)`: 0 where all rows point in one direction, about 1 where
/// they point everywhere. It does not depend on the scale of the embeddings (Chen and He 2021, arXiv 2011.10566).
///
/// # Errors
///
/// As for [`effective_rank`].
pub fn unit_std(embeddings: &Tensor) -> Result<f64> {
    let rows = Rows::new("embeddings", embeddings)?.normalised();
    let d = rows.d as f64;
    Ok(rows.minus_mean()?.mean_std() * d.sqrt())
}

/// A matrix on the host, in f64.
struct Rows {
    values: Vec<f64>,
    n: usize,
    d: usize,
}

impl Rows {
    fn new(what: &str, tensor: &Tensor) -> Result<Self> {
        let (n, d) = match *tensor.dims() {
            [n, d] if n * d > 0 => (n, d),
            _ => {
                let message = format!("{what}: expected [N, D] with at least one entry, found {:?}", tensor.dims());
                return Err(Error::Shape(message));
            }
        };
        let values: Vec<f64> =
            tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(place) => Err(Error::Value(format!("{what}: row {} is not finite", place / d))),
            None => Ok(Self { values, n, d }),
        }
    }

    fn centred(embeddings: &Tensor) -> Result<Self> {
        Self::new("embeddings", embeddings)?.minus_mean()
    }

    /// Rows of length 1; a row of zeros stays one.
    fn normalised(mut self) -> Self {
        for row in self.values.chunks_exact_mut(self.d) {
            // Squares of what is at most 1 do not overflow.
            let largest = row.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
            if largest > 0.0 {
                row.iter_mut().for_each(|x| *x /= largest);
                let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x /= length);
            }
        }
        self
    }

    /// The rows minus their mean, which is found relative to the first row: equal rows become exactly 0.
    fn minus_mean(mut self) -> Result<Self> {
        if self.n < 2 {
            return Err(Error::Shape(format!("embeddings: expected at least 2 rows, found {}", self.n)));
        }
        let first = self.values[..self.d].to_vec();
        let mut mean = vec![0.0; self.d];
        for row in self.values.chunks_exact_mut(self.d) {
            for ((x, first), mean) in row.iter_mut().zip(&first).zip(&mut mean) {
                *x -= first;
                *mean += *x / self.n as f64;
            }
        }
        for row in self.values.chunks_exact_mut(self.d) {
            row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
        }
        Ok(self)
    }

    /// Of centred rows.
    fn mean_std(&self) -> f64 {
        let mut squares = vec![0.0; self.d];
        for row in self.values.chunks_exact(self.d) {
            squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        squares.iter().map(|sum| (sum / (self.n - 1) as f64).sqrt()).sum::<f64>() / self.d as f64
    }

    fn tensor(self) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.values, (self.n, self.d), &Device::Cpu)?)
    }
}

/// A training row near a test row; a larger one is farther away, or stored later.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// The similarity plus 2, in [`STEPS`].
    near: Reverse<i64>,
    row: u32,
}

impl Candidate {
    fn new(similarity: f64, row: usize) -> Self {
        // The numbers are positive, so that cutting them off behind a half rounds them.
        Self { near: Reverse(((similarity + 2.0) * STEPS + 0.5) as i64), row: row as u32 }
    }

    fn similarity(&self) -> f64 {
        self.near.0 as f64 / STEPS - 2.0
    }
}

/// The training rows nearest to each test row, nearest first: their labels and similarities.
struct Neighbours(Vec<Vec<(u32, f64)>>);

impl Neighbours {
    /// As many as the largest of `ks` says.
    fn new([train, test]: [&Tensor; 2], [train_labels, test_labels]: [&[u32]; 2], ks: &[usize]) -> Result<Self> {
        let train = Rows::new("training embeddings", train)?;
        let test = Rows::new("test embeddings", test)?;
        if train.d != test.d {
            let message = format!("embeddings must have one width, found {} (training) and {} (test)", train.d, test.d);
            return Err(Error::Shape(message));
        }
        for (what, rows, labels) in [("training", train.n, train_labels.len()), ("test", test.n, test_labels.len())] {
            if rows != labels {
                return Err(Error::Shape(format!("{rows} rows of {what} embeddings but {labels} labels")));
            }
        }
        if let Some(k) = ks.iter().find(|&&k| k == 0 || k > train.n) {
            let message = format!("`k` must be from 1 to the {} training rows, found {k}", train.n);
            return Err(Error::Value(message));
        }
        let most = ks.iter().copied().max().unwrap_or(0);
        let heaps = nearest(train, test, most)?;
        let named = |c: Candidate| (train_labels[c.row as usize], c.similarity());
        let sorted = |heap: BinaryHeap<Candidate>| heap.into_sorted_vec().into_iter().map(named).collect();
        Ok(Self(heaps.into_par_iter().map(sorted).collect()))
    }

    /// Share of test rows whose class is elected by the first k neighbours; `votes` sees the similarity of the nearest
    /// one and that of the voter.
    fn accuracy(&self, labels: &[u32], k: usize, votes: impl Fn(f64, f64) -> f64) -> f64 {
        let right = self.0.iter().zip(labels).filter(|(found, label)| elected(&found[..k], &votes) == Some(**label));
        right.count() as f64 / labels.len() as f64
    }
}

/// The class with most votes; of several the one that comes first.
fn elected(neighbours: &[(u32, f64)], votes: impl Fn(f64, f64) -> f64) -> Option<u32> {
    let nearest = neighbours.first()?.1;
    let mut sums: Vec<(u32, f64)> = Vec::new();
    for &(label, similarity) in neighbours {
        let vote = votes(nearest, similarity);
        match sums.iter_mut().find(|(known, _)| *known == label) {
            Some((_, sum)) => *sum += vote,
            None => sums.push((label, vote)),
        }
    }
    // `>` keeps the first of equal sums.
    sums.into_iter().reduce(|best, new| if new.1 > best.1 { new } else { best }).map(|(label, _)| label)
}

/// The k rows of `train` that are nearest to each row of `test`, the farthest of them on top.
fn nearest(train: Rows, test: Rows, k: usize) -> Result<Vec<BinaryHeap<Candidate>>> {
    let (n, mut found) = (train.n, vec![BinaryHeap::with_capacity(k); test.n]);
    let (train, test) = (train.normalised().tensor()?, test.normalised().tensor()?);
    for start in (0..n).step_by(TRAIN_ROWS) {
        let columns = TRAIN_ROWS.min(n - start);
        let block = train.narrow(0, start, columns)?.t()?;
        for (i, heaps) in found.chunks_mut(TEST_ROWS).enumerate() {
            let rows = test.narrow(0, i * TEST_ROWS, heaps.len())?;
            let similarities: Vec<f64> = rows.matmul(&block)?.flatten_all()?.to_vec1()?;
            let rows = heaps.par_iter_mut().zip(similarities.par_chunks(columns));
            rows.for_each(|(heap, row)| keep(heap, row, start, k));
        }
    }
    Ok(found)
}

/// Puts those rows into the heap that are nearer than its farthest one.
fn keep(heap: &mut BinaryHeap<Candidate>, similarities: &[f64], start: usize, k: usize) {
    for (i, &similarity) in similarities.iter().enumerate() {
        let candidate = Candidate::new(similarity, start + i);
        if heap.len() < k {
            heap.push(candidate);
        } else if let Some(mut farthest) = heap.peek_mut()
            && candidate < *farthest
        {
            *farthest = candidate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(i: usize, k: usize) -> f32 {
        ((i * 7919 + k * 104_729) as f64 * 0.618).sin() as f32
    }

    fn tensor(n: usize, d: usize, f: impl Fn(usize, usize) -> f32) -> Tensor {
        let values: Vec<f32> = (0..n * d).map(|i| f(i / d, i % d)).collect();
        Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap()
    }

    /// Everything sorted, no blocks: similarities in f64, rounded to the same steps.
    fn plain(train: &Tensor, labels: &[u32], test: &Tensor, k: usize) -> Vec<Vec<(u32, f64)>> {
        let rows = |t: &Tensor| -> Vec<Vec<f64>> { t.to_dtype(DType::F64).unwrap().to_vec2().unwrap() };
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let cosine = |x: &[f64], y: &[f64]| dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
        let train = rows(train);
        let of = |query: &Vec<f64>| {
            let mut all: Vec<(i64, usize)> = train.iter().map(|x| cosine(x, query)).enumerate().map(step).collect();
            all.sort_by_key(|&(near, row)| (-near, row));
            all[..k].iter().map(|&(near, row)| (labels[row], near as f64 / STEPS)).collect()
        };
        let round = rows(test);
        round.iter().map(of).collect()
    }

    fn step((row, similarity): (usize, f64)) -> (i64, usize) {
        ((similarity * STEPS).round() as i64, row)
    }

    #[test]
    fn blocks_change_nothing() {
        // Beyond the borders of both blocks, and with copies of rows far apart.
        let (n, m, d) = (2 * TRAIN_ROWS + 37, TEST_ROWS + 11, 3);
        let train = tensor(n, d, |i, k| noise(i % 3000, k));
        let test = tensor(m, d, |i, k| noise(i * 9, k) + 0.2 * noise(i, k + 5));
        let labels: Vec<u32> = (0..n as u32).map(|i| i * i % 7).collect();
        let expected = plain(&train, &labels, &test, 20);
        let found = Neighbours::new([&train, &test], [&labels, &vec![0; m]], &[20, 1]).unwrap().0;
        for (found, expected) in found.iter().zip(&expected) {
            let classes = |list: &[(u32, f64)]| list.iter().map(|(label, _)| *label).collect::<Vec<_>>();
            assert_eq!(classes(found), classes(expected));
            assert!(found.iter().zip(expected).all(|(a, b)| (a.1 - b.1).abs() < 1e-11));
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (train, test) = (tensor(700, 33, noise), tensor(300, 33, |i, k| noise(i + 5000, k)));
        let labels = |n: u32| (0..n).map(|i| i % 5).collect::<Vec<_>>();
        let (a, b) = (labels(700), labels(300));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let voted = knn_accuracy(&train, &a, &test, &b, &[1, 20, 200]).unwrap();
                let weighted = weighted_knn_accuracy(&train, &a, &test, &b, 200, 0.1).unwrap();
                (voted, weighted, effective_rank(&train).unwrap().to_bits(), mean_std(&train).unwrap().to_bits())
            })
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn ties_go_to_the_nearer_neighbour_and_then_to_the_first_row() {
        // Angles 0, 10, 20, 30 degrees beside a test row at 4 degrees.
        let at = |degrees: f32| vec![degrees.to_radians().cos(), degrees.to_radians().sin()];
        let rows =
            |angles: &[f32]| Tensor::new(angles.iter().map(|a| at(*a)).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let (train, test) = (rows(&[30.0, 20.0, 10.0, 0.0]), rows(&[4.0]));
        let labels = [2, 1, 1, 2];
        // Nearest first: 2, 1, 1, 2.
        let hits = |class| knn_accuracy(&train, &labels, &test, &[class], &[1, 2, 3, 4]).unwrap();
        assert_eq!((hits(2), hits(1)), (vec![1.0, 1.0, 0.0, 1.0], vec![0.0, 0.0, 1.0, 0.0]));
        // The same row with two labels, and longer in one place: the first one is taken.
        let twice = Tensor::new(&[[1f32, 1.0], [3.0, 3.0]], &Device::Cpu).unwrap();
        let query = Tensor::new(&[[0.3f32, 0.3]], &Device::Cpu).unwrap();
        assert_eq!(knn_accuracy(&twice, &[5, 6], &query, &[5], &[1, 2]).unwrap(), [1.0, 1.0]);
    }

    #[test]
    fn votes_fall_with_the_distance() {
        // One neighbour at similarity 1, two at 0.6.
        let train = Tensor::new(&[[1f32, 0.0], [0.6, 0.8], [0.6, 0.8]], &Device::Cpu).unwrap();
        let test = Tensor::new(&[[2f32, 0.0]], &Device::Cpu).unwrap();
        let hit = |temperature| weighted_knn_accuracy(&train, &[0, 1, 1], &test, &[0], 3, temperature).unwrap();
        // exp(0.4 / T) against 2: they are equal at T = 0.4 / ln 2 = 0.577.
        assert_eq!((hit(0.1), hit(0.57), hit(0.58), hit(1e-4)), (1.0, 1.0, 0.0, 1.0));
        assert_eq!(knn_accuracy(&train, &[0, 1, 1], &test, &[0], &[3]).unwrap(), [0.0]);
    }

    #[test]
    fn rows_of_zeros_and_huge_numbers_have_neighbours() {
        let train = Tensor::new(&[[0f64, 0.0], [1e300, 1e300], [-1e-300, 0.0]], &Device::Cpu).unwrap();
        let test = Tensor::new(&[[1e-200f64, 1e-200], [0.0, 0.0], [-1e200, 0.0]], &Device::Cpu).unwrap();
        // All are equally near to a row of zeros.
        assert_eq!(knn_accuracy(&train, &[0, 1, 2], &test, &[1, 0, 2], &[1]).unwrap(), [1.0]);
    }

    #[test]
    fn wrong_input_is_named() {
        let (train, test) = (tensor(4, 3, noise), tensor(2, 3, noise));
        let message = |train: &Tensor, a: &[u32], test: &Tensor, b: &[u32], ks: &[usize]| {
            knn_accuracy(train, a, test, b, ks).unwrap_err().to_string()
        };
        for k in [0, 5] {
            let text = message(&train, &[0; 4], &test, &[0; 2], &[1, k]);
            assert!(text.contains("from 1 to the 4 training rows") && text.ends_with(&k.to_string()), "{text}");
        }
        assert!(message(&train, &[0; 3], &test, &[0; 2], &[1]).contains("4 rows of training embeddings but 3 labels"));
        assert!(message(&train, &[0; 4], &test, &[0; 1], &[1]).contains("2 rows of test embeddings but 1 labels"));
        assert!(message(&train, &[0; 4], &tensor(2, 4, noise), &[0; 2], &[1]).contains("3 (training) and 4 (test)"));
        assert!(message(&tensor(0, 3, noise), &[], &test, &[0; 2], &[1]).contains("training embeddings"));
        let nan = tensor(2, 3, |i, _| if i == 1 { f32::NAN } else { 1.0 });
        assert!(message(&train, &[0; 4], &nan, &[0; 2], &[1]).contains("test embeddings: row 1 is not finite"));
        assert_eq!(knn_accuracy(&train, &[0; 4], &test, &[0; 2], &[]).unwrap(), [0.0; 0]);
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(weighted_knn_accuracy(&train, &[0; 4], &test, &[0; 2], 1, temperature).is_err());
        }
        assert!(effective_rank(&train.narrow(0, 0, 1).unwrap()).unwrap_err().to_string().contains("at least 2 rows"));
        assert!(mean_std(&nan).unwrap_err().to_string().contains("row 1"));
    }

    #[test]
    fn spread_by_hand() {
        // Two equal axes and one of half their length: shares 0.4, 0.4, 0.2.
        let cross = |i: usize, k: usize| if i / 2 == k { [1.0, 1.0, 0.5][k] * [1.0, -1.0][i % 2] } else { 0.0 };
        let cross = (tensor(6, 3, cross) + 7.0).unwrap();
        let expected = (-0.8 * 0.4f64.ln() - 0.2 * 0.2f64.ln()).exp();
        assert!((effective_rank(&cross).unwrap() - expected).abs() < 1e-9);
        let std = |axis: f64| (2.0 * axis * axis / 5.0).sqrt();
        assert!((mean_std(&cross).unwrap() - (2.0 * std(1.0) + std(0.5)) / 3.0).abs() < 1e-9);
        // A line, and a point that is no binary fraction.
        let line = tensor(9, 5, |i, k| 0.1 * (k as f32 + 1.0) * i as f32);
        assert!((effective_rank(&line).unwrap() - 1.0).abs() < 1e-5);
        let point = tensor(50, 5, |_, k| 0.1 * k as f32 + 0.3);
        let found = (effective_rank(&point).unwrap(), mean_std(&point).unwrap(), unit_std(&point).unwrap());
        assert_eq!(found, (0.0, 0.0, 0.0));
        // Fewer rows than dimensions.
        assert!(effective_rank(&tensor(4, 20, noise)).unwrap() <= 3.0 + 1e-9);
    }

    #[test]
    fn unit_std_knows_directions_only() {
        let spread = tensor(400, 8, noise);
        let scaled = tensor(400, 8, |i, k| noise(i, k) * (1.0 + i as f32));
        let (a, b) = (unit_std(&spread).unwrap(), unit_std(&scaled).unwrap());
        assert!((a - b).abs() < 1e-6 && (0.9..1.05).contains(&a), "{a}, {b}");
        let ray = tensor(30, 4, |i, k| (i as f32 + 1.0) * (k as f32 - 1.5));
        assert!(unit_std(&ray).unwrap() < 1e-6);
    }
}
