//! Weights between `[O, I, 3, 3]` and the order in which they are multiplied: `[group][kind]` and then as in [`Order`].

use super::transform::{Transposed, Weights};
use super::{KINDS, Stride};
use crate::InstructionSet;
use crate::conv::geometry::Geometry;
use crate::map::buffer::{BLOCK, Buffer, Pixel};
use crate::map::conv::pack::{FEW, Group, Order, each};
use crate::simd::Float;

/// Where the nine weights of a source and a target channel lie.
pub(super) struct Taps {
    source: usize,
    target: usize,
    targets: usize,
    /// Whether the last one comes first.
    flipped: bool,
}

impl Taps {
    /// From input to output channels.
    pub(super) fn forward(g: &Geometry) -> Self {
        Self { source: 9, target: 9 * g.c_in, targets: g.c_out, flipped: false }
    }

    /// From output to input channels.
    pub(super) fn backward(g: &Geometry) -> Self {
        Self { source: 9 * g.c_in, target: 9, targets: g.c_in, flipped: true }
    }

    /// The target channels of a block.
    fn lanes(&self, block: usize) -> usize {
        (self.targets - block * BLOCK).min(BLOCK)
    }

    fn at(&self, source: usize, target: usize) -> usize {
        source * self.source + target * self.target
    }

    /// Where a tap lies behind that.
    fn tap(&self, tap: usize) -> usize {
        if self.flipped { 8 - tap } else { tap }
    }

    /// Calls `f(where the nine weights lie, pixel, lane)` for every source and target channel of a segment of a group;
    /// pixels are counted from the segment's first one.
    #[inline(always)]
    fn visit(&self, group: &Group, segment: usize, mut f: impl FnMut(usize, usize, usize)) {
        let (segment, width) = (&group.segments[segment], group.blocks.len());
        for (i, source) in segment.lanes.clone().enumerate() {
            for block in group.blocks.clone() {
                let pixel = i * width + block - group.blocks.start;
                for lane in 0..self.lanes(block) {
                    f(self.at(segment.block * BLOCK + source, block * BLOCK + lane), pixel, lane);
                }
            }
        }
    }

    /// The transformed weights.
    pub(super) fn pack<T: Float>(&self, set: InstructionSet, stride: Stride, order: &Order, w: &[T]) -> Buffer<T> {
        let mut kinds = Buffer::stale(order.len(KINDS));
        let many = kinds.len() >= FEW;
        each(order.split(&mut kinds, KINDS), &order.groups, many, |kinds, group| {
            for_segments(group, |segment, first, len| {
                // Lanes without a channel stay zero.
                let mut taps = Buffer::zeroed(9 * len);
                self.visit(group, segment, |at, pixel, lane| {
                    for tap in 0..9 {
                        taps[tap * len + pixel].0[lane] = w[at + self.tap(tap)];
                    }
                });
                let taps = &mut *taps;
                T::dispatch(set, Weights { stride, taps, kinds, first, direction: Transposed::No });
            });
        });
        kinds
    }

    /// The gradient of the weights, `[O, I, 3, 3]`, from that of the transformed ones; for the forward direction.
    pub(super) fn unpack<T: Float>(
        &self,
        set: InstructionSet,
        stride: Stride,
        order: &Order,
        kinds: &mut [Pixel<T>],
    ) -> Vec<T> {
        let mut w = vec![T::default(); self.targets * self.target];
        let many = kinds.len() >= FEW;
        let parts = order.rows(&mut w, self.target).into_iter().zip(order.split(kinds, KINDS)).collect();
        each(parts, &order.groups, many, |(w, kinds): (&mut [T], &mut [Pixel<T>]), group| {
            let before = self.at(0, group.blocks.start * BLOCK);
            for_segments(group, |segment, first, len| {
                let mut taps = Buffer::stale(9 * len);
                T::dispatch(
                    set,
                    Weights { stride, taps: &mut taps, kinds: &mut *kinds, first, direction: Transposed::Yes },
                );
                self.visit(group, segment, |at, pixel, lane| {
                    for tap in 0..9 {
                        w[at - before + self.tap(tap)] = taps[tap * len + pixel].0[lane];
                    }
                });
            });
        });
        w
    }
}

/// Calls `f(segment, its first pixel of a kind, its pixels)` for each segment of a group.
fn for_segments(group: &Group, mut f: impl FnMut(usize, usize, usize)) {
    let mut first = 0;
    for (i, segment) in group.segments.iter().enumerate() {
        let len = segment.lanes.len() * group.blocks.len();
        f(i, first, len);
        first += len;
    }
}
