//! The iteration for two different sides.

use super::kernel::{Kernel, weighted_rows};
use super::{Sinkhorn, laplacian};
use crate::{Cost, SinkhornOptions};

/// Spread of the exponents at the first level of the regularisation: from there no good start is needed.
const FIRST_SPREAD: f64 = 60.0;
/// Factor between two levels, and the error of the marginals at which the next one begins.
const LEVEL: f64 = 4.0;
const LEVEL_ERROR: f64 = 3e-3;
/// A start that is given is kept if its marginals are off by less.
const GOOD_START: f64 = 0.1;
/// The column scalings move into the kernel when their logarithms exceed this.
const ABSORB: f64 = 50.0;
/// So many sweeps are cheaper than a Newton step.
const PATIENCE: f64 = 20.0;
/// A Newton step changes no dual by more than so many eps.
const LONGEST: f64 = 40.0;
/// Above so many columns Newton's equation is left to conjugate gradients.
const DIRECT: usize = 1024;
/// Newton steps in vain after which rounding is taken to be the limit.
const IN_VAIN: usize = 3;

/// A problem with positive weights that sum to 1.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub(super) cost: &'a Cost,
    pub(super) a: &'a [f64],
    pub(super) b: &'a [f64],
    pub(super) eps: f64,
    pub(super) options: &'a SinkhornOptions,
}

/// State: `P_ij = a_i K_ij v_j b_j / sums_i`, whose rows always sum to `a`.
struct Solver<'a> {
    problem: Problem<'a>,
    kernel: Kernel,
    /// The regularisation and the column duals in the kernel.
    eps: f64,
    g: Vec<f64>,
    /// Column scalings, and times `b`.
    v: Vec<f64>,
    w: Vec<f64>,
    /// `sum_j K_ij v_j b_j`.
    sums: Vec<f64>,
    /// `sum_i a_i K_ij / sums_i`: `1 / v_j` at the solution.
    totals: Vec<f64>,
    /// `sum_j |sum_i P_ij - b_j|`.
    error: f64,
    iterations: usize,
    newton_steps: usize,
    newton_in_vain: usize,
    /// Whether conjugate gradients have failed at this level.
    direct: bool,
}

/// Solves, starting from the column duals `start` if they are good.
pub(super) fn solve(problem: Problem<'_>, start: Option<&[f64]>) -> Sinkhorn {
    let mut solver = Solver::new(problem);
    if !start.is_some_and(|g| solver.try_start(g)) {
        for eps in solver.start() {
            solver.iterate(LEVEL_ERROR);
            solver.set_level(eps);
        }
    }
    // A little less than asked for: the plan is summed up anew at the end.
    solver.iterate(0.9 * problem.options.tolerance);
    solver.conclude()
}

impl<'a> Solver<'a> {
    fn new(problem: Problem<'a>) -> Self {
        let (n, m) = (problem.cost.rows(), problem.cost.columns());
        Self {
            problem,
            kernel: Kernel::new(n, m),
            eps: problem.eps,
            g: vec![0.0; m],
            v: vec![1.0; m],
            w: problem.b.to_vec(),
            sums: vec![0.0; n],
            totals: vec![0.0; m],
            error: f64::INFINITY,
            iterations: 0,
            newton_steps: 0,
            newton_in_vain: 0,
            direct: false,
        }
    }

    fn try_start(&mut self, g: &[f64]) -> bool {
        self.g.copy_from_slice(g);
        self.set_level(self.problem.eps);
        self.error < GOOD_START
    }

    /// Starts from the solution at infinite eps; returns the levels that follow the first.
    fn start(&mut self) -> Vec<f64> {
        let Problem { cost, a, eps, .. } = self.problem;
        self.g = weighted_rows(cost.values(), a, self.g.len());
        let spread = self.set_level(eps);
        let higher = std::iter::successors(Some(eps), |e| Some(e * LEVEL));
        let mut levels: Vec<f64> = higher.take_while(|e| e * FIRST_SPREAD < spread).collect();
        if let Some(highest) = levels.last() {
            self.set_level(highest * LEVEL);
        }
        levels.reverse();
        levels
    }

    /// Goes on with another regularisation; returns the spread of the costs less the column duals.
    fn set_level(&mut self, eps: f64) -> f64 {
        self.direct = false;
        self.absorb(eps)
    }

    /// Moves the scalings into a kernel of regularisation `eps`.
    fn absorb(&mut self, eps: f64) -> f64 {
        for (g, v) in self.g.iter_mut().zip(&mut self.v) {
            *g += self.eps * v.ln();
            *v = 1.0;
        }
        self.eps = eps;
        let spread = self.kernel.fill(self.problem.cost, &self.g, eps);
        self.update_rows();
        spread
    }

    /// Updates the row duals for the present column scalings, and measures the columns.
    fn update_rows(&mut self) {
        let Problem { a, b, .. } = self.problem;
        for ((w, v), b) in self.w.iter_mut().zip(&self.v).zip(b) {
            *w = v * b;
        }
        self.kernel.sweep(&self.w, |i, sum| a[i] / sum, &mut self.sums, &mut self.totals);
        self.error = self.slope().map(f64::abs).sum();
    }

    /// `b - P'1`, the derivative of the dual value with respect to the column duals.
    fn slope(&self) -> impl Iterator<Item = f64> + '_ {
        self.problem.b.iter().zip(&self.w).zip(&self.totals).map(|((b, w), t)| b - w * t)
    }

    /// Updates the column duals, then the row duals.
    fn sweep(&mut self) {
        self.iterations += 1;
        self.v.iter_mut().zip(&self.totals).for_each(|(v, t)| *v = t.recip());
        if self.v.iter().all(|v| v.ln().abs() <= ABSORB) {
            return self.update_rows();
        }
        for j in 0..self.v.len() {
            if self.v[j].ln().abs() > ABSORB {
                (self.g[j], self.v[j]) = (self.column_dual(j), 1.0);
            }
        }
        self.absorb(self.eps);
    }

    /// The column update from the costs themselves: the kernel may have underflowed.
    fn column_dual(&self, j: usize) -> f64 {
        let Problem { cost, a, .. } = self.problem;
        let row = |i: usize| cost.row(i)[j] + self.kernel.top()[i] + self.eps * self.sums[i].ln();
        super::softmin(self.eps, a.iter().enumerate().map(|(i, a)| (*a, row(i))))
    }

    /// Sweeps, and Newton steps where sweeps would take long, until the error is at most `goal`.
    ///
    /// A sweep comes last: it is what sets the duals of columns too light to show in the error.
    fn iterate(&mut self, goal: f64) {
        let options = self.problem.options;
        let mut sweeps = 0;
        while self.iterations < options.max_iter {
            let before = self.error;
            self.sweep();
            sweeps += 1;
            if self.error <= goal {
                return;
            }
            let rate = self.error / before;
            let left = if rate < 1.0 { (self.error / goal).ln() / -rate.ln() } else { f64::INFINITY };
            let may = self.newton_steps < options.max_newton && self.newton_in_vain < IN_VAIN;
            if may && sweeps >= 3 && left > PATIENCE {
                self.newton(goal);
            }
        }
    }

    /// A Newton step on the dual value as a function of the column duals, the row duals being updated exactly.
    fn newton(&mut self, goal: f64) {
        let slope: Vec<f64> = self.slope().collect();
        // Every column leaks so much that no dual can move by more than LONGEST (discrete maximum principle); the leaks
        // vanish with the error, so the convergence stays quadratic.
        let leak: Vec<f64> = slope.iter().map(|s| s.abs() / LONGEST).collect();
        // As exact as the next error can be small: its square, or the goal.
        let precision = self.error.max(0.1 * goal / self.error).min(0.1);
        let mut direction = self.newton_direction(&slope, &leak, precision);
        // Rounding, and conjugate gradients that end early, can leave the bound.
        direction.iter_mut().for_each(|d| *d = if d.is_nan() { 0.0 } else { d.clamp(-LONGEST, LONGEST) });
        let rise: f64 = slope.iter().zip(&direction).map(|(s, d)| s * d).sum();
        let (v, before, mut step) = (self.v.clone(), self.error, 1.0);
        // The dual value is concave: a derivative that is still positive means that the step was not too long.
        while self.step_to(&v, &direction, step) < -0.1 * rise && step > 1e-3 {
            step *= 0.3;
        }
        self.newton_steps += 1;
        self.newton_in_vain += usize::from(self.error >= before && before < 1e-6);
    }

    /// Sets the scalings to `v exp(step direction)`; returns the derivative of the dual value along the direction there.
    fn step_to(&mut self, v: &[f64], direction: &[f64], step: f64) -> f64 {
        for ((new, v), d) in self.v.iter_mut().zip(v).zip(direction) {
            *new = v * (step * d).exp();
        }
        self.update_rows();
        self.slope().zip(direction).map(|(s, d)| s * d).sum()
    }

    fn newton_direction(&mut self, slope: &[f64], leak: &[f64], precision: f64) -> Vec<f64> {
        let u: Vec<f64> = self.sums.iter().map(|s| s.recip()).collect();
        let may_be_direct = slope.len() <= DIRECT;
        if !self.direct {
            // An elimination costs about as much as m/4 sweeps.
            let passes = if may_be_direct { 8 + slope.len() / 4 } else { DIRECT };
            let (direction, solved) = self.conjugate_gradients(&u, slope, leak, precision, passes);
            if solved || !may_be_direct {
                return direction;
            }
            self.direct = true;
        }
        let plan = laplacian::Rows { kernel: self.kernel.values(), a: self.problem.a, u: &u, w: &self.w };
        laplacian::solve(&plan, slope, leak)
    }

    /// Solves Newton's equation like [`laplacian::solve`], to a relative precision; says whether it got there.
    fn conjugate_gradients(
        &mut self,
        u: &[f64],
        slope: &[f64],
        leak: &[f64],
        precision: f64,
        passes: usize,
    ) -> (Vec<f64>, bool) {
        let (a, m) = (self.problem.a, slope.len());
        let diagonal: Vec<f64> = (0..m).map(|j| self.w[j] * self.totals[j] + leak[j]).collect();
        let divided = |r: &[f64]| r.iter().zip(&diagonal).map(|(r, d)| r / d).collect::<Vec<_>>();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let mut d = vec![0.0; m];
        let mut r = slope.to_vec();
        let mut p = divided(&r);
        let mut rest = dot(&r, &p);
        let goal = rest * precision * precision;
        let (mut sums, mut totals) = (vec![0.0; u.len()], vec![0.0; m]);
        for _ in 0..passes {
            let wp: Vec<f64> = self.w.iter().zip(&p).map(|(w, p)| w * p).collect();
            self.kernel.sweep(&wp, |i, sum| a[i] * u[i] * u[i] * sum, &mut sums, &mut totals);
            let image: Vec<f64> = (0..m).map(|j| diagonal[j] * p[j] - self.w[j] * totals[j]).collect();
            let length = rest / dot(&p, &image);
            if !(length > 0.0 && length.is_finite()) {
                break;
            }
            for j in 0..m {
                d[j] += length * p[j];
                r[j] -= length * image[j];
            }
            let z = divided(&r);
            let next = dot(&r, &z);
            if next <= goal {
                return (d, true);
            }
            p.iter_mut().zip(&z).for_each(|(p, z)| *p = z + next / rest * *p);
            rest = next;
        }
        (d, false)
    }

    fn conclude(self) -> Sinkhorn {
        let Self { problem, kernel, eps, mut g, v, w, sums, .. } = self;
        let f = kernel.top().iter().zip(&sums).map(|(t, s)| -t - eps * s.ln()).collect();
        g.iter_mut().zip(&v).for_each(|(g, v)| *g += eps * v.ln());
        let scale: Vec<f64> = problem.a.iter().zip(&sums).map(|(a, s)| a / s).collect();
        let coupling = kernel.into_plan(problem.cost, &scale, &w);
        Sinkhorn::conclude(problem, coupling, (f, g), self.iterations, self.newton_steps)
    }
}
