//! The checked sizes of a convolution.

use super::Conv2dSpec;

/// Sizes of one convolution; a transposed one is described by its adjoint.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) spec: Conv2dSpec,
}

impl Geometry {
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input channels of a group.
    pub(crate) fn group_in(&self) -> usize {
        self.c_in / self.spec.groups
    }

    /// Output channels of a group.
    pub(crate) fn group_out(&self) -> usize {
        self.c_out / self.spec.groups
    }

    /// Where tap `t` looks, in rows and columns from the first tap.
    pub(crate) fn tap(&self, t: usize) -> [usize; 2] {
        [t / self.kernel[1] * self.spec.dilation[0], t % self.kernel[1] * self.spec.dilation[1]]
    }
}
