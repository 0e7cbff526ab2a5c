//! How a convolution is laid out as sums over flat planes of pixels: positions of sixteen channels.
//!
//! Each block of channels of an image is copied into a zero-padded plane, row after row (`map/conv/planes.rs`).
//! Where the stride is larger than 1 the padded plane is split into its phases (rows `a, a + s, a + 2s ..` and the same
//! for columns), each a plane of its own.
//! Then the output at row `i`, column `j` for one tap is the pixel `i * width + j + offset` of a plane, with an offset
//! that depends on the tap only; so a whole run of outputs, over row ends, is a run of the plane, and any map width
//! fills the tiles of registers.
//! The columns between the end of an output row and the start of the next hold junk that goes nowhere.

use super::geometry::Geometry;

/// How the blocks of a map are laid out as planes.
#[derive(Debug)]
pub(crate) struct Planes {
    /// Size of the map.
    pub(crate) size: [usize; 2],
    /// First padded row and column of each phase.
    pub(crate) phases: Vec<[usize; 2]>,
    pub(crate) step: [usize; 2],
    /// Rows and columns of zeros before the map.
    pub(crate) pad: [usize; 2],
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

/// Outputs that share their taps: all of a forward pass, or one phase of an input gradient.
#[derive(Debug)]
pub(crate) struct Job {
    /// Taps that contribute.
    pub(crate) taps: Vec<usize>,
    /// Their offsets in the source planes.
    pub(crate) offsets: Vec<usize>,
    /// Rows and columns of outputs.
    pub(crate) size: [usize; 2],
    /// Where the first output goes in the target map.
    pub(crate) first: [usize; 2],
    /// Distance of neighbours in the target map.
    pub(crate) step: [usize; 2],
}

impl Job {
    /// Length of the flat run of outputs.
    pub(crate) fn run(&self, width: usize) -> usize {
        (self.size[0] - 1) * width + self.size[1]
    }
}

/// Zeros at a row's end can be shared with those at the start of the next one.
fn shared(pad: usize, step: usize, width: usize, size: usize) -> usize {
    if step == 1 { pad.min(width.saturating_sub(pad + size)) } else { 0 }
}

/// The forward pass: planes of the input, one job.
pub(crate) fn forward(g: &Geometry) -> (Planes, Job) {
    let stride = g.spec.stride;
    let mut phases: Vec<[usize; 2]> = Vec::new();
    let mut extent = [0; 2];
    let places: Vec<(usize, [usize; 2])> = (0..g.taps())
        .map(|t| {
            let tap = g.tap(t);
            let phase = [tap[0] % stride[0], tap[1] % stride[1]];
            let at = [tap[0] / stride[0], tap[1] / stride[1]];
            extent = [extent[0].max(at[0]), extent[1].max(at[1])];
            let index = phases.iter().position(|p| *p == phase).unwrap_or_else(|| {
                phases.push(phase);
                phases.len() - 1
            });
            (index, at)
        })
        .collect();
    let rows = g.output[0] + extent[0];
    let width = g.output[1] + extent[1];
    // Not below the width of an output row: the weight gradient keeps rows apart.
    let width = width - shared(g.spec.padding[1], stride[1], width, g.input[1]).min(extent[1]);
    let offsets = places.iter().map(|(p, at)| (p * rows + at[0]) * width + at[1]).collect();
    let planes = Planes { size: g.input, phases, step: stride, pad: g.spec.padding, rows, width };
    let job = Job { taps: (0..g.taps()).collect(), offsets, size: g.output, first: [0; 2], step: [1; 2] };
    (planes, job)
}

/// One axis of the part of a map that lies in one phase of its padded plane.
pub(crate) struct Span {
    /// First index in the phase.
    pub(crate) from: usize,
    pub(crate) count: usize,
    /// Where that is in the map.
    pub(crate) first: usize,
}

impl Span {
    pub(crate) fn of(phase: usize, stride: usize, padding: usize, size: usize) -> Self {
        let from = padding.saturating_sub(phase).div_ceil(stride);
        let first = phase + from * stride - padding;
        Self { from, count: size.saturating_sub(first).div_ceil(stride), first: first.min(size) }
    }
}

/// The input gradient: planes of the output gradient, one job for each phase of the input.
///
/// Input positions that no output depends on have no taps, and get zeros.
pub(crate) fn backward(g: &Geometry) -> (Planes, Vec<Job>) {
    let stride = g.spec.stride;
    let mut jobs = Vec::new();
    // Furthest a tap looks back, and the first and last index that is asked for, on each axis.
    let (mut back, mut low, mut high) = ([0; 2], [usize::MAX; 2], [0; 2]);
    for t in 0..g.taps() {
        let tap = g.tap(t);
        back = [back[0].max(tap[0] / stride[0]), back[1].max(tap[1] / stride[1])];
    }
    // Phases beyond the padded input are empty.
    let phases = [0, 1].map(|i| stride[i].min(g.input[i] + g.spec.padding[i]));
    for a in 0..phases[0] {
        for b in 0..phases[1] {
            let rows = Span::of(a, stride[0], g.spec.padding[0], g.input[0]);
            let cols = Span::of(b, stride[1], g.spec.padding[1], g.input[1]);
            if rows.count == 0 || cols.count == 0 {
                continue;
            }
            low = [low[0].min(rows.from), low[1].min(cols.from)];
            high = [high[0].max(rows.from + rows.count), high[1].max(cols.from + cols.count)];
            jobs.push(([a, b], rows, cols));
        }
    }
    let pad = [back[0].saturating_sub(low[0]), back[1].saturating_sub(low[1])];
    let rows = g.output[0].max(high[0]) + pad[0];
    let width = g.output[1].max(high[1]) + pad[1];
    let width = width - shared(pad[1], 1, width, g.output[1]);
    let jobs = jobs
        .into_iter()
        .map(|(phase, r, c)| {
            // The later a tap, the further back it looks: in this order the offsets grow.
            let taps: Vec<usize> = (0..g.taps())
                .rev()
                .filter(|&t| {
                    let tap = g.tap(t);
                    [tap[0] % stride[0], tap[1] % stride[1]] == phase
                })
                .collect();
            let offsets = taps
                .iter()
                .map(|&t| {
                    let tap = g.tap(t);
                    let row = r.from + pad[0] - tap[0] / stride[0];
                    row * width + c.from + pad[1] - tap[1] / stride[1]
                })
                .collect();
            Job { taps, offsets, size: [r.count, c.count], first: [r.first, c.first], step: stride }
        })
        .collect();
    let planes = Planes { size: g.output, phases: vec![[0; 2]], step: [1; 2], pad, rows, width };
    (planes, jobs)
}
