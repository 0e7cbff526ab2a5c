//! The iteration for a cloud against itself.

use super::Sinkhorn;
use super::kernel::Kernel;
use super::solve::Problem;

/// Solves for one dual on both sides; the costs are those of a cloud with itself, and `a` is `b`.
///
/// With T the update of one side, `f <- (T f + T T f) / 2`. Near the solution T multiplies errors by eigenvalues
/// `-s` with s in [0, 1], because the kernel of squared distances is positive; the mean of both by `(s^2 - s) / 2`, which
/// is never beyond -1/8, whatever eps is.
pub(super) fn solve(problem: Problem<'_>) -> Sinkhorn {
    let Problem { cost, a, eps, options, .. } = problem;
    let n = a.len();
    let mut kernel = Kernel::new(n, n);
    kernel.fill(cost, &vec![0.0; n], eps);
    let (mut u, mut w, mut sums, mut totals) = (vec![1.0; n], a.to_vec(), vec![0.0; n], vec![0.0; n]);
    let mut iterations = 0;
    loop {
        kernel.sweep(&w, |i, sum| a[i] / sum, &mut sums, &mut totals);
        let error: f64 = w.iter().zip(&sums).zip(a).map(|((w, s), a)| (w * s - a).abs()).sum();
        // Half for the rows, half for the columns.
        if error <= 0.45 * options.tolerance || iterations >= options.max_iter {
            break;
        }
        iterations += 1;
        for i in 0..n {
            u[i] = (sums[i] * totals[i]).sqrt().recip();
            w[i] = a[i] * u[i];
        }
    }
    let f: Vec<f64> = u.iter().map(|u| eps * u.ln()).collect();
    Sinkhorn::conclude(problem, kernel.into_plan(cost, &w, &w), (f.clone(), f), iterations, 0)
}
