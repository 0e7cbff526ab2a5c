//! Eigenvalues and eigenvectors of small symmetric matrices, on the host in f64.

/// Eigenvalues in descending order with orthonormal eigenvectors.
pub(crate) struct Spectrum {
    pub(crate) values: Vec<f64>,
    /// Vector `j` is row `j`; its entry of largest magnitude is positive.
    vectors: Vec<f64>,
}

impl Spectrum {
    /// The vector that belongs to `values[j]`.
    pub(crate) fn vector(&self, j: usize) -> &[f64] {
        let n = self.values.len();
        &self.vectors[j * n..(j + 1) * n]
    }
}

/// Sweeps for one eigenvalue; two are usual.
const MAX_SWEEPS: usize = 64;

/// The spectrum of the symmetric matrix with these `n * n` entries.
///
/// Householder's reduction to a tridiagonal matrix, then implicit QL steps: about `8 n^3` multiplications, and an error
/// of some units in the last place of the largest eigenvalue.
/// A matrix with an entry that is not finite has the spectrum NaN; the zero matrix has the unit vectors.
///
/// The sign of an eigenvector is arbitrary; here the first entry of largest magnitude is positive.
pub(crate) fn symmetric(mut a: Vec<f64>, n: usize) -> Spectrum {
    debug_assert_eq!(a.len(), n * n, "the matrix is square");
    if a.iter().any(|x| !x.is_finite()) {
        return Spectrum { values: vec![f64::NAN; n], vectors: vec![f64::NAN; n * n] };
    }
    // Entries near 1, so that no square over- or underflows.
    let scale = a.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    if scale > 0.0 {
        a.iter_mut().for_each(|x| *x /= scale);
    }
    let mut basis = vec![0.0; n * n];
    basis.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    let (mut diagonal, mut off) = tridiagonal(&mut a, n, &mut basis);
    diagonalise(&mut diagonal, &mut off, &mut basis);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]));
    let mut vectors = Vec::with_capacity(n * n);
    for &j in &order {
        let vector = &basis[j * n..(j + 1) * n];
        let largest = vector.iter().fold(0.0, |max: f64, &x| if x.abs() > max.abs() { x } else { max });
        vectors.extend(vector.iter().map(|x| if largest < 0.0 { -x } else { *x }));
    }
    Spectrum { values: order.iter().map(|&j| diagonal[j] * scale).collect(), vectors }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `x += factor * y`.
pub(crate) fn axpy(x: &mut [f64], factor: f64, y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
}

/// Reduces `a` to a tridiagonal matrix by reflections, which are applied to the rows of `basis` too.
///
/// Returns the diagonal and, in the first n - 1 places of the second vector, what stands beside it.
fn tridiagonal(a: &mut [f64], n: usize, basis: &mut [f64]) -> (Vec<f64>, Vec<f64>) {
    let mut off = vec![0.0; n];
    let mut w = vec![0.0; n];
    for k in 0..n.saturating_sub(1) {
        let from = k + 1;
        let mut v = a[k * n + from..(k + 1) * n].to_vec();
        if v[1..].iter().all(|x| *x == 0.0) {
            off[k] = v[0];
            continue;
        }
        // Divided by the largest, so that no square underflows.
        let largest = v.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        v.iter_mut().for_each(|x| *x /= largest);
        // The reflection I - 2 v v^T takes the column below the diagonal to a multiple of the first unit vector.
        let norm = dot(&v, &v).sqrt().copysign(v[0]);
        off[k] = -norm * largest;
        v[0] += norm;
        let length = dot(&v, &v).sqrt();
        v.iter_mut().for_each(|x| *x /= length);
        // From both sides: A - v w^T - w v^T with w = 2 A v - 2 (v^T A v) v.
        let w = &mut w[from..];
        for (w, row) in w.iter_mut().zip(a.chunks_exact(n).skip(from)) {
            *w = 2.0 * dot(&row[from..], &v);
        }
        let along = dot(w, &v);
        axpy(w, -along, &v);
        for (i, row) in a.chunks_exact_mut(n).skip(from).enumerate() {
            axpy(&mut row[from..], -v[i], w);
            axpy(&mut row[from..], -w[i], &v);
        }
        let mut shadow = vec![0.0; n];
        let rows = || (from..n).map(|i| i * n..(i + 1) * n).zip(&v);
        rows().for_each(|(row, v)| axpy(&mut shadow, 2.0 * v, &basis[row]));
        rows().for_each(|(row, v)| axpy(&mut basis[row], -v, &shadow));
    }
    (a.iter().step_by(n + 1).copied().collect(), off)
}

/// Turns a tridiagonal matrix into a diagonal one by rotations, which are applied to the rows of `basis` too.
fn diagonalise(d: &mut [f64], e: &mut [f64], basis: &mut [f64]) {
    let n = d.len();
    for l in 0..n {
        for _ in 0..MAX_SWEEPS {
            // Beside entries near 1 the square of the machine precision is nothing.
            let split = |m: &usize| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[*m + 1].abs() + f64::EPSILON);
            let m = (l..n - 1).find(split).unwrap_or(n - 1);
            if m == l {
                break;
            }
            sweep(d, e, basis, l, m);
        }
    }
}

/// One QL step with Wilkinson's shift on the block `l ..= m`.
fn sweep(d: &mut [f64], e: &mut [f64], basis: &mut [f64], l: usize, m: usize) {
    let n = d.len();
    let q = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let mut g = d[m] - d[l] + e[l] / (q + q.hypot(1.0).copysign(q));
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let t = (d[i] - g) * s + 2.0 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        let (upper, lower) = basis[i * n..(i + 2) * n].split_at_mut(n);
        for (x, y) in upper.iter_mut().zip(lower) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers in (-1, 1).
    fn numbers(n: usize, k: f64) -> Vec<f64> {
        (0..n).map(|i| ((i as f64 * k).sin() * 43_758.545_3).fract()).collect()
    }

    /// `X^T X` of a matrix with `rows` rows.
    fn gram(rows: usize, n: usize) -> Vec<f64> {
        let x = numbers(rows * n, 1.7);
        let entry = |i: usize, j: usize| (0..rows).map(|r| x[r * n + i] * x[r * n + j]).sum();
        (0..n * n).map(|at| entry(at / n, at % n)).collect()
    }

    fn check(a: &[f64], n: usize) {
        let s = symmetric(a.to_vec(), n);
        let scale = a.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs())) * n as f64;
        for i in 0..n {
            assert!(i == 0 || s.values[i] <= s.values[i - 1]);
            let v = s.vector(i);
            for (row, v_r) in a.chunks(n).zip(v) {
                assert!((dot(row, v) - s.values[i] * v_r).abs() < 1e-14 * scale, "residual of vector {i} of {n}");
            }
            for j in 0..n {
                let expected = f64::from(u8::from(i == j));
                assert!((dot(v, s.vector(j)) - expected).abs() < 1e-13, "vectors {i} and {j} of {n}");
            }
            let largest = v.iter().fold(0.0, |max: f64, &x| if x.abs() > max.abs() { x } else { max });
            assert!(largest > 0.0);
        }
    }

    #[test]
    fn products_residuals_and_order_for_many_sizes() {
        for n in [1, 2, 3, 4, 5, 8, 17, 32, 65] {
            check(&gram(2 * n, n), n);
            check(&gram(n.div_ceil(3), n), n);
        }
    }

    #[test]
    fn extreme_matrices_are_decomposed_too() {
        let n = 6;
        let identity: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect();
        for scale in [1.0, 1e-120, 1e120] {
            check(&gram(9, n).iter().map(|x| scale * x).collect::<Vec<_>>(), n);
            check(&identity.iter().map(|x| scale * x).collect::<Vec<_>>(), n);
        }
        check(&vec![0.0; n * n], n);
        check(&vec![0.7; n * n], n);
        // A graded one: seventy orders of magnitude.
        check(&(0..n * n).map(|i| 10f64.powi(-7 * (i / n + i % n) as i32)).collect::<Vec<_>>(), n);
        let mut broken = identity;
        broken[3] = f64::NAN;
        assert!(symmetric(broken, n).values.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn a_known_spectrum() {
        let s = symmetric(vec![2.0, 1.0, 1.0, 2.0], 2);
        assert!((s.values[0] - 3.0).abs() < 1e-15 && (s.values[1] - 1.0).abs() < 1e-15);
        assert!(s.vector(0).iter().all(|x| (x - 0.5f64.sqrt()).abs() < 1e-15));
    }
}
