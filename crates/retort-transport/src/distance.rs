//! What a distance returns.

use crate::Points;

/// A value with its derivatives with respect to both clouds, row after row like the clouds themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Distance {
    /// The value.
    pub value: f64,
    /// `d value / d x`.
    pub grad_x: Vec<f64>,
    /// `d value / d y`.
    pub grad_y: Vec<f64>,
}

impl Distance {
    /// 0 with zero gradients.
    pub(crate) fn zero(x: Points<'_>, y: Points<'_>) -> Self {
        Self { value: 0.0, grad_x: vec![0.0; x.values().len()], grad_y: vec![0.0; y.values().len()] }
    }
}
