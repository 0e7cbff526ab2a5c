//! 3x3 convolutions by Winograd's algorithm: with stride 1, 36 multiplications for sixteen outputs in place of 144, with
//! stride 2, 81.
//!
//! `Y = A' [(G w G') * (B' d B)] A` for each 4x4 tile of outputs and the patch `d` that it depends on
//! (Lavin and Gray 2016, arXiv 1509.09308); the products are summed over the source channels, which makes one matrix
//! product for each of the places of a patch.
//! The input gradient is the same with flipped weights (with stride 2 from 5x5 patches of gradients to 8x8 tiles), the
//! weight gradient the adjoint: `dw = G' [sum of (B' d B) * (A dY A')] G`.
//!
//! With stride 1 the rounding errors are larger than those of the direct sum: about 1e-6 of the largest result in `f32`,
//! up to 4e-6 with 256 channels. 2x2 tiles would have the direct sum's, for 64 multiplications in place of 36.

mod stride_one;
mod stride_two;
mod transform;
mod weights;

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{AddProducts, Compute, Products, Run, Sums};
use super::pack::{Group, Order};
use super::pass::{Finish, FinishBlock, group_width};
use super::planes::{Fill, Source};
use crate::InstructionSet;
use crate::conv::geometry::Geometry;
use crate::conv::plan::Planes;
use crate::map::buffer::{BLOCK, Buffer, Pixel};
use crate::map::node::Dims;
use crate::map::pass::{Part, by_images};
use crate::simd::Float;
use transform::{Side, Transform, Untransform};
use weights::Taps;

/// Different weights of a convolution.
const KINDS: usize = 36;

/// The stride of a convolution, which says how it is cut into tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stride {
    One,
    Two,
}

impl Stride {
    fn of(g: &Geometry) -> Self {
        if g.spec.stride == [2, 2] { Self::Two } else { Self::One }
    }

    /// Places along an axis.
    fn axis(self) -> usize {
        match self {
            Self::One => 6,
            Self::Two => 9,
        }
    }

    /// Places of a patch.
    fn places(self) -> usize {
        self.axis().pow(2)
    }

    /// The weight that a place is multiplied with: with stride 2, the last four places of an axis have one in common.
    fn kind(self, place: usize) -> usize {
        match self {
            Self::One => place,
            Self::Two => (place / 9).min(5) * 6 + (place % 9).min(5),
        }
    }

    /// Rows and columns of what is transformed, and from one to the next.
    fn patch(self, side: Side) -> [usize; 2] {
        match (self, side) {
            (_, Side::Gradient) => [4, 4],
            (Self::One, _) => [6, 4],
            (Self::Two, Side::Input) => [9, 8],
            (Self::Two, Side::BackInput) => [5, 4],
        }
    }

    /// Rows and columns of the results of a patch.
    fn tile(self, side: Side) -> usize {
        match (self, side) {
            (Self::Two, Side::BackInput) => 8,
            _ => 4,
        }
    }
}

/// Bytes that the transformed patches of a chunk may take; they should stay in the second cache.
const CHUNK: usize = 1 << 20;

/// Fewest tiles of a chunk, two runs of the micro-kernel: below, the weights would be read too often.
const FEWEST: usize = 28;

/// Weight gradients above this size (of one kind) are computed kind by kind over all images.
const RESIDENT: usize = 40 << 10;

/// Chunks whose patches wait together for such a gradient.
const ROUND: usize = 32;

/// Fewest channels on both sides; with 16 the transformations cost what they save (32x32 maps, batch 64), with stride 2
/// more.
const LEAST: usize = 2 * BLOCK;

/// Whether a convolution is one for this module.
pub(super) fn applies(g: &Geometry) -> bool {
    let [height, width] = g.output;
    let step = match g.spec.stride {
        [1, 1] => g.spec.padding.iter().all(|&p| p <= 2),
        // Where much of the last tiles lies outside, there is little or nothing to save.
        [2, 2] => {
            let (tiles, direct) = (81 * Grid::of(4, g.output).len(), 9 * height * width);
            g.spec.padding == [1, 1] && 5 * tiles <= 4 * direct
        }
        _ => false,
    };
    step && g.kernel == [3, 3]
        && g.spec.dilation == [1, 1]
        && g.spec.groups == 1
        && g.c_in >= LEAST
        && g.c_out >= LEAST
        && g.output.iter().chain(&g.input).all(|&n| n >= 3)
}

/// The tiles of a map.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    cols: usize,
}

impl Grid {
    fn of(tile: usize, size: [usize; 2]) -> Self {
        Self { rows: size[0].div_ceil(tile), cols: size[1].div_ceil(tile) }
    }

    /// Tiles of a chunk that is computed at once, for so many channels on both sides.
    fn chunk(stride: Stride, channels: usize, element: usize) -> usize {
        (CHUNK / (stride.places() * channels * element)).clamp(FEWEST, 1024)
    }

    fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Images of a chunk: several small ones, or one.
    fn images(self, chunk: usize) -> usize {
        (chunk / self.len()).max(1)
    }

    /// Strips of tile rows of an image.
    fn strips(self, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        let count = self.len().div_ceil(chunk).clamp(1, self.rows);
        let rows = self.rows;
        (0..count).map(move |i| i * rows / count..(i + 1) * rows / count)
    }
}

/// The padded rows of some rows of patches; `[size, step]` of a patch.
fn strip([patch, step]: [usize; 2], (size, pad): ([usize; 2], [usize; 2]), rows: &Range<usize>, cols: usize) -> Planes {
    let reach = |tiles: usize| step * (tiles - 1) + patch;
    Planes {
        size,
        phases: vec![[step * rows.start, 0]],
        step: [1; 2],
        pad,
        rows: reach(rows.len()),
        width: reach(cols),
    }
}

/// Pixels from place to place: odd, so that the streams of a transformation fall into different sets of the
/// caches.
fn distance(blocks: usize, tiles: usize) -> usize {
    (blocks * tiles) | 1
}

/// The forward pass or the input gradient.
pub(super) struct Pass<T: Float> {
    stride: Stride,
    side: Side,
    size: [usize; 2],
    pad: [usize; 2],
    order: Order,
    /// `[group][kind]` and then as in `order`.
    weights: Buffer<T>,
    sources: usize,
    target: Dims,
}

impl<T: Float> Pass<T> {
    pub(super) fn forward(set: InstructionSet, g: &Geometry, w: &[T]) -> Self {
        let order = Order::forward(g, group_width::<T>(set));
        let stride = Stride::of(g);
        Self {
            stride,
            side: Side::Input,
            size: g.input,
            pad: g.spec.padding,
            weights: Taps::forward(g).pack(set, stride, &order, w),
            order,
            sources: g.c_in.div_ceil(BLOCK),
            target: Dims { batch: g.batch, channels: g.c_out, size: g.output },
        }
    }

    pub(super) fn backward(set: InstructionSet, g: &Geometry, w: &[T]) -> Self {
        let order = Order::backward(g, group_width::<T>(set));
        let stride = Stride::of(g);
        Self {
            stride,
            side: Side::BackInput,
            size: g.output,
            pad: if stride == Stride::Two { [0; 2] } else { g.spec.padding.map(|p| 2 - p) },
            weights: Taps::backward(g).pack(set, stride, &order, w),
            order,
            sources: g.c_out.div_ceil(BLOCK),
            target: Dims { batch: g.batch, channels: g.c_in, size: g.input },
        }
    }

    pub(super) fn target(&self) -> Dims {
        self.target
    }

    fn grid(&self) -> Grid {
        Grid::of(self.stride.tile(self.side), self.target.size)
    }

    /// Images that are best computed together.
    pub(super) fn together(&self) -> usize {
        self.grid().images(self.chunk())
    }

    /// Tiles of a chunk: their patches and the sums of a group.
    fn chunk(&self) -> usize {
        Grid::chunk(self.stride, (self.sources + self.order.width()) * BLOCK, size_of::<T>())
    }

    /// Computes some images, one chunk after the other.
    pub(super) fn images(
        &self,
        set: InstructionSet,
        source: Source<'_, T>,
        first: usize,
        part: Part<'_, T>,
        finish: &impl Finish<T>,
    ) {
        let (together, tiles) = (self.together(), self.grid());
        for (i, (to, partials)) in by_images(self.target, part, together).enumerate() {
            let first = first + i * together;
            for rows in tiles.strips(self.chunk()) {
                self.strip(set, source, (first, rows), (&mut *to, &mut *partials), finish);
            }
        }
    }

    /// Computes a strip of some images; after the last one the blocks are finished.
    fn strip(
        &self,
        set: InstructionSet,
        source: Source<'_, T>,
        (first, rows): (usize, Range<usize>),
        (to, partials): Part<'_, T>,
        finish: &impl Finish<T>,
    ) {
        let whole = self.grid();
        let each = rows.len() * whole.cols;
        let images = to.len() / self.target.image();
        let (image, cols) = ((self.size, self.pad), whole.cols);
        let patches = Strip { source, image, stride: self.stride, side: self.side, rows: rows.clone(), cols }
            .transformed(set, first..first + images);
        let (len, area, all) = (each * images, self.target.area(), self.target.blocks());
        let mut sums = Buffer::stale(self.stride.places() * distance(self.order.width(), len));
        for group in &self.order.groups {
            let blocks = group.blocks.len();
            let weights = &self.weights[self.order.range(group, KINDS)];
            let each_kind = weights.len() / KINDS;
            for place in 0..self.stride.places() {
                let weights = &weights[self.stride.kind(place) * each_kind..][..each_kind];
                let segments = &group.segments;
                let run = Run { segments, offsets: &[0], plane: len, len, blocks, stride: len, places: None };
                let planes = &patches[place * distance(self.sources, len)..][..self.sources * len];
                let to = &mut sums[place * distance(blocks, len)..][..blocks * len];
                T::dispatch(set, Compute { run, planes, weights, to });
            }
            // The sums of a group are used up before the next ones: fewer of them wait in the cache.
            for image in 0..images {
                for block in group.blocks.clone() {
                    let at = image * all + block;
                    let to = &mut to[at * area..(at + 1) * area];
                    let back = Untransform {
                        sums: &sums,
                        stride: self.stride,
                        side: self.side,
                        blocks,
                        tiles: len,
                        block: block - group.blocks.start,
                        first: image * each,
                        cols,
                        rows: rows.clone(),
                        size: self.target.size,
                        to: &mut *to,
                    };
                    T::dispatch(set, back);
                    if rows.end == whole.rows {
                        partials[at] = T::dispatch(set, FinishBlock { finish, at: (first + image, block), to });
                    }
                }
            }
        }
    }
}

/// Some rows of the tiles of images.
struct Strip<'a, T: Float> {
    source: Source<'a, T>,
    /// Size and padding of an image.
    image: ([usize; 2], [usize; 2]),
    stride: Stride,
    side: Side,
    rows: Range<usize>,
    cols: usize,
}

impl<T: Float> Strip<'_, T> {
    /// `[place][block][tile]` of some images.
    fn transformed(&self, set: InstructionSet, images: Range<usize>) -> Buffer<T> {
        let &Self { source, stride, side, .. } = self;
        let grid = Grid { rows: self.rows.len(), cols: self.cols };
        let shape = strip(stride.patch(side), self.image, &self.rows, self.cols);
        let (blocks, tiles) = (source.blocks(), grid.len() * images.len());
        let mut to = Buffer::stale(stride.places() * distance(blocks, tiles));
        let mut planes = Buffer::stale(shape.pixels(1));
        for (i, image) in images.enumerate() {
            let first = i * grid.len();
            // Block by block: the planes of one stay in the first cache.
            for block in 0..blocks {
                let blocks_of_planes = block..block + 1;
                T::dispatch(set, Fill { planes: &shape, source, image, blocks: blocks_of_planes, to: &mut planes });
                let (planes, shape, to) = (&*planes, &shape, &mut *to);
                T::dispatch(set, Transform { planes, shape, stride, side, block, blocks, grid, first, tiles, to });
            }
        }
        to
    }
}

/// The sums of a weight gradient as `[group][kind]` and then as in the order.
pub(super) struct Adjoint {
    g: Geometry,
    stride: Stride,
    order: Order,
}

impl Adjoint {
    pub(super) fn new<T: Float>(set: InstructionSet, g: &Geometry) -> Self {
        Self { g: g.clone(), stride: Stride::of(g), order: Order::forward(g, group_width::<T>(set)) }
    }

    /// Pixels of the sums.
    pub(super) fn len(&self) -> usize {
        self.order.len(KINDS)
    }

    /// Whether the sums are small enough for several copies of them.
    pub(super) fn by_slices<T: Float>(&self) -> bool {
        self.order.len(1) * size_of::<Pixel<T>>() <= RESIDENT
    }

    /// From the sums to `[O, I, 3, 3]`.
    pub(super) fn unpack<T: Float>(&self, set: InstructionSet, kinds: &mut [Pixel<T>]) -> Vec<T> {
        Taps::forward(&self.g).unpack(set, self.stride, &self.order, kinds)
    }

    /// Patches and gradients of a strip of some images, and their tiles.
    fn strip<T: Float>(
        &self,
        set: InstructionSet,
        (x, dy): (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        rows: &Range<usize>,
    ) -> Transformed<T> {
        let cols = self.grid().cols;
        let strip = |source, image, side| Strip { source, image, stride: self.stride, side, rows: rows.clone(), cols };
        let len = rows.len() * cols * images.len();
        Transformed {
            patches: strip(x, (self.g.input, self.g.spec.padding), Side::Input).transformed(set, images.clone()),
            gradients: strip(dy, (self.g.output, [0; 2]), Side::Gradient).transformed(set, images),
            len,
        }
    }

    /// The sums of each kind of each group.
    fn split<'a, T: Float>(&self, to: &'a mut [Pixel<T>]) -> Vec<(&Group, usize, &'a mut [Pixel<T>])> {
        let of_group = |(group, to): (_, &'a mut [Pixel<T>])| {
            let len = self.order.range(group, 1).len();
            to.chunks_exact_mut(len).enumerate().map(move |(kind, to)| (group, kind, to))
        };
        self.order.groups.iter().zip(self.order.split(to, KINDS)).flat_map(of_group).collect()
    }

    /// Adds the products of the places of one kind of some strips to the sums of a group.
    fn add<T: Float>(
        &self,
        set: InstructionSet,
        strips: &[Transformed<T>],
        (group, kind, to): (&Group, usize, &mut [Pixel<T>]),
    ) {
        let (sources, targets) = (self.g.c_in.div_ceil(BLOCK), self.g.c_out.div_ceil(BLOCK));
        let places: Vec<_> = (0..self.stride.places()).filter(|&place| self.stride.kind(place) == kind).collect();
        for Transformed { patches, gradients, len } in strips {
            let sums = places.iter().map(|place| Sums {
                planes: &patches[place * distance(sources, *len)..][..sources * len],
                plane: *len,
                dy: &gradients[place * distance(targets, *len)..][group.blocks.start * len..targets * len],
                stride: *len,
            });
            let (segments, blocks) = (&group.segments, group.blocks.len());
            let products = Products { segments, offsets: &[0], len: *len, blocks };
            T::dispatch(set, AddProducts { products, images: &sums.collect::<Vec<_>>(), to: &mut *to });
        }
    }

    fn grid(&self) -> Grid {
        Grid::of(self.stride.tile(Side::Input), self.g.output)
    }

    fn chunk<T: Float>(&self) -> usize {
        let blocks = self.g.c_in.div_ceil(BLOCK) + self.g.c_out.div_ceil(BLOCK);
        Grid::chunk(self.stride, blocks * BLOCK, size_of::<T>())
    }

    /// Adds some images, one chunk after the other.
    pub(super) fn slice<T: Float>(
        &self,
        set: InstructionSet,
        sources: (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        to: &mut [Pixel<T>],
    ) {
        let (tiles, chunk) = (self.grid(), self.chunk::<T>());
        let together = tiles.images(chunk);
        for first in images.clone().step_by(together) {
            for rows in tiles.strips(chunk) {
                let strip = [self.strip(set, sources, first..(first + together).min(images.end), &rows)];
                for part in self.split(to) {
                    self.add(set, &strip, part);
                }
            }
        }
    }

    /// Adds all images, [`ROUND`] chunks after the other: the patches first, then the kinds side by side.
    pub(super) fn all<T: Float>(
        &self,
        set: InstructionSet,
        sources: (Source<'_, T>, Source<'_, T>),
        to: &mut [Pixel<T>],
    ) {
        let tiles = self.grid();
        let together = tiles.images(self.chunk::<T>()).min(self.g.batch.div_ceil(2));
        let images = |first: usize| first..(first + together).min(self.g.batch);
        let firsts: Vec<usize> = (0..self.g.batch).step_by(together).collect();
        for firsts in firsts.chunks(ROUND) {
            let strips = firsts.par_iter().map(|&first| self.strip(set, sources, images(first), &(0..tiles.rows)));
            let strips: Vec<_> = strips.collect();
            // A kind after the other: its patches are read once for all groups.
            let mut kinds: Vec<Vec<_>> = (0..KINDS).map(|_| Vec::new()).collect();
            for part in self.split(to) {
                kinds[part.1].push(part);
            }
            kinds.into_par_iter().for_each(|parts| parts.into_iter().for_each(|part| self.add(set, &strips, part)));
        }
    }
}

/// The transformed tiles of some images: patches of the input, squares of the output gradient.
struct Transformed<T: Float> {
    patches: Buffer<T>,
    gradients: Buffer<T>,
    len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Conv2dSpec;

    fn geometry(channels: usize, size: usize, spec: Conv2dSpec) -> Geometry {
        let output = (size + 2 * spec.padding[0] - 2 * spec.dilation[0] - 1) / spec.stride[0] + 1;
        let (c_in, c_out) = (channels, channels);
        Geometry { batch: 2, c_in, c_out, input: [size; 2], output: [output; 2], kernel: [3, 3], spec }
    }

    #[test]
    fn the_networks_of_the_literature_use_it() {
        for size in [7, 8, 14, 16, 28, 32] {
            assert!(applies(&geometry(32, size, Conv2dSpec::new(1, 1))), "{size}");
        }
        for size in [8, 14, 16, 28, 32, 56] {
            assert!(applies(&geometry(32, size, Conv2dSpec::new(2, 1))), "{size}");
        }
    }

    #[test]
    fn what_it_does_not_serve_goes_another_way() {
        for g in [
            geometry(16, 32, Conv2dSpec::new(1, 1)),
            geometry(64, 32, Conv2dSpec::new(1, 1).with_groups(2)),
            geometry(32, 32, Conv2dSpec::new(1, 1).with_dilation(2)),
            geometry(32, 32, Conv2dSpec::new(2, 0)),
            geometry(32, 2, Conv2dSpec::new(1, 1)),
            // Five outputs fill two tiles of four badly.
            geometry(32, 10, Conv2dSpec::new(2, 1)),
        ] {
            assert!(!applies(&g), "{g:?}");
        }
    }

    #[test]
    fn strips_are_all_rows_in_order() {
        let grid = Grid::of(4, [45, 46]);
        let strips: Vec<_> = grid.strips(50).collect();
        assert!(strips.len() > 1);
        assert_eq!(strips.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    }
}
