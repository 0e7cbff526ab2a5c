//! The checked sizes of a convolution.

use super::Conv2dSpec;

/// Sizes of one convolution; a transposed one is described by its adjoint.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) spec: Conv2dSpec,
}

impl Geometry {
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input channels of a group.
    pub(super) fn group_in(&self) -> usize {
        self.c_in / self.spec.groups
    }

    /// Output channels of a group.
    pub(super) fn group_out(&self) -> usize {
        self.c_out / self.spec.groups
    }

    pub(super) fn weight_len(&self) -> usize {
        self.c_out * self.group_in() * self.taps()
    }

    /// Where tap `t` looks, in rows and columns from the first tap.
    pub(super) fn tap(&self, t: usize) -> [usize; 2] {
        [t / self.kernel[1] * self.spec.dilation[0], t % self.kernel[1] * self.spec.dilation[1]]
    }
}
