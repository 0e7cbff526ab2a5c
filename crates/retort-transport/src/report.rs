//! What an iterative solver reports beside its result.

/// How an entropic transport iteration ended.
///
/// A result that has not converged is returned all the same, with `converged` false: the value is then a lower bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convergence {
    /// Whether `marginal_error` is at most the tolerance.
    pub converged: bool,
    /// Sweeps over the costs, each an update of both duals, on all levels of the regularisation together.
    pub iterations: usize,
    /// Newton steps on the dual.
    pub newton_steps: usize,
    /// `sum_i |sum_j P_ij - a_i| + sum_j |sum_i P_ij - b_j|` of the plan P that is returned.
    pub marginal_error: f64,
}
