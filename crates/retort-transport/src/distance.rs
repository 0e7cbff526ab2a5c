//! What a distance returns.

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
