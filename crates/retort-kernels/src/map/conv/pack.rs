//! The order in which the kernels read weights and write their gradients.

use std::ops::Range;

use rayon::prelude::*;

use crate::conv::geometry::Geometry;
use crate::map::buffer::{BLOCK, Buffer, Pixel};
use crate::simd::Float;

/// Pixels below which it is not worth waking another thread.
pub(crate) const FEW: usize = 1 << 13;

/// Source channels of one block that a group of target channels depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) block: usize,
    pub(crate) lanes: Range<usize>,
}

/// One or two blocks of target channels that are computed together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// Target blocks.
    pub(crate) blocks: Range<usize>,
    pub(crate) segments: Vec<Segment>,
    /// Where its weights start for one tap, in pixels.
    at: usize,
}

impl Group {
    /// Source channels over all segments.
    fn lanes(&self) -> usize {
        self.segments.iter().map(|s| s.lanes.len()).sum()
    }
}

/// The groups of a convolution in one direction; weights are `[group][segment][tap][lane][block]`.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) groups: Vec<Group>,
    targets: usize,
    /// Pixels of all groups for one tap.
    len: usize,
    /// Channels of a convolution group, source and target.
    per_group: [usize; 2],
}

impl Order {
    /// `width`: blocks that a kernel computes together.
    fn new(convolution_groups: usize, per_group: [usize; 2], width: usize) -> Self {
        let [source, target] = per_group;
        let targets = target * convolution_groups;
        let (mut groups, mut at) = (Vec::new(), 0);
        let blocks = targets.div_ceil(BLOCK);
        for first in (0..blocks).step_by(width) {
            let blocks = first..(first + width).min(blocks);
            let last = (blocks.end * BLOCK).min(targets) - 1;
            let from = (first * BLOCK / target) * source;
            let to = (last / target + 1) * source;
            let group = Group { at, segments: segments(from..to), blocks };
            at += group.lanes() * group.blocks.len();
            groups.push(group);
        }
        Self { groups, targets, len: at, per_group }
    }

    /// From input to output channels.
    pub(crate) fn forward(g: &Geometry, width: usize) -> Self {
        Self::new(g.spec.groups, [g.group_in(), g.group_out()], width)
    }

    /// From output to input channels.
    pub(crate) fn backward(g: &Geometry, width: usize) -> Self {
        Self::new(g.spec.groups, [g.group_out(), g.group_in()], width)
    }

    /// Most blocks of a group.
    pub(crate) fn width(&self) -> usize {
        self.groups.iter().map(|group| group.blocks.len()).max().unwrap_or(0)
    }

    /// Pixels for so many taps.
    pub(crate) fn len(&self, taps: usize) -> usize {
        self.len * taps
    }

    /// Pixels of a group.
    pub(crate) fn range(&self, group: &Group, taps: usize) -> Range<usize> {
        let from = group.at * taps;
        from..from + group.lanes() * group.blocks.len() * taps
    }

    /// Calls `f(source channel, target channels, pixels, first lane)` for every source channel of a group and the target
    /// channels of each block that belong to it; the source channel is counted in its convolution group, and the pixels
    /// are those of the taps, counted from the start of the group.
    #[inline(always)]
    fn visit(&self, group: &Group, taps: usize, mut f: impl FnMut(usize, Range<usize>, Taps, usize)) {
        let [source_size, target_size] = self.per_group;
        let width = group.blocks.len();
        let mut before = 0;
        for segment in &group.segments {
            let lanes = segment.lanes.len();
            let (start, stride) = (before * taps, lanes * width);
            for (i, lane) in segment.lanes.clone().enumerate() {
                let source = segment.block * BLOCK + lane;
                for block in group.blocks.clone() {
                    let from = block * BLOCK;
                    // Targets of the convolution group that the source belongs to.
                    let first = (source / source_size * target_size).max(from);
                    let last = ((source / source_size + 1) * target_size).min((from + BLOCK).min(self.targets));
                    let pixels = Taps { first: start + i * width + block - group.blocks.start, stride };
                    if first < last {
                        f(source % source_size, first..last, pixels, first - from);
                    }
                }
            }
            before += lanes * width;
        }
    }

    /// Weights in this order; `weight(source channel in its group, target channel, tap)`.
    pub(crate) fn pack<T: Float>(&self, taps: &[usize], weight: impl Fn(usize, usize, usize) -> T + Sync) -> Buffer<T> {
        let mut values = Buffer::zeroed(self.len(taps.len()));
        let many = values.len() >= FEW;
        each(self.split(&mut values, taps.len()), &self.groups, many, |to, group| {
            self.visit(group, taps.len(), |source, targets, pixels, lane| {
                for (i, &tap) in taps.iter().enumerate() {
                    let to = &mut to[pixels.first + i * pixels.stride].0[lane..];
                    for (to, target) in to.iter_mut().zip(targets.clone()) {
                        *to = weight(source, target, tap);
                    }
                }
            });
        });
        values
    }

    /// The pixels of each group.
    pub(crate) fn split<'a, T>(&self, mut values: &'a mut [Pixel<T>], taps: usize) -> Vec<&'a mut [Pixel<T>]> {
        let mut parts = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let (part, rest) = values.split_at_mut(self.range(group, taps).len());
            parts.push(part);
            values = rest;
        }
        parts
    }

    /// The rows of each group's target channels, each of so many values.
    pub(crate) fn rows<'a, T>(&self, mut values: &'a mut [T], row: usize) -> Vec<&'a mut [T]> {
        let mut parts = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let rows = (group.blocks.end * BLOCK).min(self.targets) - group.blocks.start * BLOCK;
            let (part, rest) = values.split_at_mut(rows * row);
            parts.push(part);
            values = rest;
        }
        parts
    }

    /// From this order to `[target][source][tap]`.
    pub(crate) fn unpack<T: Float>(&self, taps: usize, values: &[Pixel<T>]) -> Vec<T> {
        let row = self.per_group[0] * taps;
        let mut to = vec![T::default(); self.targets * row];
        each(self.rows(&mut to, row), &self.groups, values.len() >= FEW, |to, group| {
            let values = &values[self.range(group, taps)];
            let rows = group.blocks.start * BLOCK;
            self.visit(group, taps, |source, targets, pixels, lane| {
                for i in 0..taps {
                    let values = &values[pixels.first + i * pixels.stride].0[lane..];
                    for (target, &value) in targets.clone().zip(values) {
                        to[(target - rows) * row + source * taps + i] = value;
                    }
                }
            });
        });
        to
    }
}

/// Where the taps of a weight lie.
#[derive(Clone, Copy)]
struct Taps {
    first: usize,
    stride: usize,
}

/// Calls `f` for each group with its part of something, side by side if it is worth it.
pub(crate) fn each<P: Send>(parts: Vec<P>, groups: &[Group], many: bool, f: impl Fn(P, &Group) + Sync + Send) {
    if many {
        parts.into_par_iter().zip(groups).for_each(|(part, group)| f(part, group));
    } else {
        parts.into_iter().zip(groups).for_each(|(part, group)| f(part, group));
    }
}

/// The blocks of a range of channels.
fn segments(channels: Range<usize>) -> Vec<Segment> {
    (channels.start / BLOCK..channels.end.div_ceil(BLOCK))
        .map(|block| {
            let from = channels.start.max(block * BLOCK);
            let to = channels.end.min((block + 1) * BLOCK);
            Segment { block, lanes: from - block * BLOCK..to - block * BLOCK }
        })
        .collect()
}
