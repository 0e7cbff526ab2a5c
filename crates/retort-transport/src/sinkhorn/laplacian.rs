//! Newton's equation for the column duals, solved by elimination.
//!
//! Its matrix `diag(q) - P' diag(1/a) P` is the Laplacian of a network: between columns j and k there is a conductance
//! `sum_i P_ij P_ik / a_i`.
//! Elimination that keeps to the conductances, as Grassmann, Taksar and Heyman (1985) do for Markov chains, never
//! subtracts, so that links of 1e-20 beside links of 1 are as exact as these.

use super::kernel::add;
use rayon::prelude::*;

/// Shares `P_ij / a_i` below this are no link.
const WEAKEST: f64 = 1e-30;

/// A plan `a_i u_i K_ij w_j` whose rows sum to `a`.
pub(super) struct Rows<'a> {
    pub(super) kernel: &'a [f64],
    pub(super) a: &'a [f64],
    pub(super) u: &'a [f64],
    pub(super) w: &'a [f64],
}

/// Solves `(diag(q + leak) - P' diag(1/a) P) d = slope`, where `q` are the column sums of P.
pub(super) fn solve(plan: &Rows<'_>, slope: &[f64], leak: &[f64]) -> Vec<f64> {
    let m = slope.len();
    // Row j holds the conductances to the columns after j.
    let mut links = vec![0.0; m * m];
    links.par_chunks_exact_mut(m).enumerate().with_min_len(8).for_each(|(j, row)| {
        let shares = (0..plan.a.len()).map(|i| (i, plan.u[i] * plan.kernel[i * m + j] * plan.w[j]));
        let strong = shares.filter(|(_, share)| *share > WEAKEST);
        let row = &mut row[j + 1..];
        add_rows(row, plan.kernel, m, strong.map(|(i, share)| (i, share * plan.a[i] * plan.u[i])));
        row.iter_mut().zip(&plan.w[j + 1..]).for_each(|(x, w)| *x *= w);
    });
    let (mut d, mut leak, mut degree) = (slope.to_vec(), leak.to_vec(), vec![0.0; m]);
    let mut shares = Vec::with_capacity(m);
    for k in 0..m {
        let (done, row) = links.split_at_mut(k * m);
        // What flows to k when the columns before it go.
        shares.clear();
        shares.extend((0..k).map(|j| (j, done[j * m + k] / degree[j])).filter(|(_, share)| *share > 0.0));
        for (j, share) in &shares {
            d[k] += share * d[*j];
            leak[k] += share * leak[*j];
        }
        let row = &mut row[k + 1..m];
        add_rows(row, done, m, shares.iter().copied());
        degree[k] = row.iter().sum::<f64>() + leak[k];
    }
    for k in (0..m).rev() {
        let row = &links[k * m + k + 1..(k + 1) * m];
        let pull: f64 = row.iter().zip(&d[k + 1..]).map(|(x, d)| x * d).sum();
        d[k] = if degree[k] > 0.0 { (d[k] + pull) / degree[k] } else { 0.0 };
    }
    d
}

/// Adds the ends of rows of a matrix with `m` columns to `out`, each with its factor, four at a time.
fn add_rows(out: &mut [f64], matrix: &[f64], m: usize, mut terms: impl Iterator<Item = (usize, f64)>) {
    let start = m - out.len();
    let row = |i: usize| &matrix[i * m + start..(i + 1) * m];
    let mut four = [(0, 0.0); 4];
    loop {
        let mut found = 0;
        for (slot, term) in four.iter_mut().zip(&mut terms) {
            *slot = term;
            found += 1;
        }
        if found < 4 {
            four[..found].iter().for_each(|&(i, c)| add(out, [row(i)], [c]));
            return;
        }
        add(out, four.map(|(i, _)| row(i)), four.map(|(_, c)| c));
    }
}
