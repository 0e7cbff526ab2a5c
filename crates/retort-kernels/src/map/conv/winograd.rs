//! 3x3 convolutions with stride 1 by Winograd's F(2x2, 3x3): 16 multiplications for four outputs in place of 36.
//!
//! `Y = A' [(G w G') * (B' d B)] A` for each 2x2 tile of outputs and the 4x4 patch `d` that it depends on
//! (Lavin and Gray 2016, arXiv 1509.09308); the products are summed over the source channels, which makes one matrix
//! product for each of the 16 places of a patch.
//! The input gradient is the same with flipped weights, the weight gradient the adjoint:
//! `dw = G' [sum of (B' d B) * (A dY A')] G`.
//! All factors are 0, 1 and 1/2, so that the rounding errors are those of the direct sum.

mod transform;

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{AddProducts, Compute, Products, Run, Sums};
use super::pack::{FEW, Group, Nesting, Order, each};
use super::pass::{Finish, FinishBlock, group_width};
use super::planes::{Fill, Source};
use crate::InstructionSet;
use crate::conv::geometry::Geometry;
use crate::conv::plan::Planes;
use crate::map::buffer::{BLOCK, Buffer, Pixel};
use crate::map::node::Dims;
use crate::map::pass::{Part, by_images};
use crate::simd::Float;
use transform::{Side, Transform, Transposed, Untransform, Weights};

/// Places of a patch.
const PLACES: usize = 16;

/// Bytes that the transformed patches of a chunk may take; they should stay in the second cache.
const CHUNK: usize = 1 << 20;

/// Fewest tiles of a chunk: below, the weights would be read too often.
const FEWEST: usize = 128;

/// Weight gradients above this size (of one place) are computed place by place over all images.
const RESIDENT: usize = 1 << 17;

/// Fewest channels on both sides; with 16 the transformations cost more than they save (32x32 maps, batch 64: 1.2 times
/// the time of the direct form).
const LEAST: usize = 2 * BLOCK;

/// Whether a convolution is one for this module.
pub(super) fn applies(g: &Geometry) -> bool {
    g.kernel == [3, 3]
        && g.spec.stride == [1, 1]
        && g.spec.dilation == [1, 1]
        && g.spec.padding.iter().all(|&p| p <= 2)
        && g.spec.groups == 1
        && g.c_in >= LEAST
        && g.c_out >= LEAST
        && g.output.iter().chain(&g.input).all(|&n| n >= 3)
}

/// 2x2 tiles of a map.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    cols: usize,
}

impl Tiles {
    fn of(size: [usize; 2]) -> Self {
        Self { rows: size[0].div_ceil(2), cols: size[1].div_ceil(2) }
    }

    /// Tiles of a chunk that is computed at once, for so many channels on both sides.
    fn chunk(channels: usize, element: usize) -> usize {
        (CHUNK / (PLACES * channels * element)).clamp(FEWEST, 1024)
    }

    /// Images of a chunk: several small ones, or one.
    fn images(self, chunk: usize) -> usize {
        (chunk / (self.rows * self.cols)).max(1)
    }

    /// Strips of tile rows of an image.
    fn strips(self, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        let count = (self.rows * self.cols).div_ceil(chunk).clamp(1, self.rows);
        let rows = self.rows;
        (0..count).map(move |i| i * rows / count..(i + 1) * rows / count)
    }
}

/// The padded rows of a strip of tiles: `reach` 2 for patches, 0 for the tiles themselves.
fn strip(size: [usize; 2], pad: [usize; 2], tiles: Tiles, rows: &Range<usize>, reach: usize) -> Planes {
    Planes {
        size,
        phases: vec![[2 * rows.start, 0]],
        step: [1; 2],
        pad,
        rows: 2 * rows.len() + reach,
        width: 2 * tiles.cols + reach,
    }
}

/// Pixels from place to place: odd, so that the sixteen streams of a transformation fall into different sets of the
/// caches.
fn distance(blocks: usize, tiles: usize) -> usize {
    (blocks * tiles) | 1
}

/// The forward pass or the input gradient.
pub(super) struct Pass<T: Float> {
    size: [usize; 2],
    pad: [usize; 2],
    order: Order,
    /// `[group][place]` and then as in `order`.
    weights: Buffer<T>,
    sources: usize,
    target: Dims,
}

impl<T: Float> Pass<T> {
    pub(super) fn forward(set: InstructionSet, g: &Geometry, w: &[T]) -> Self {
        let order = Order::forward(g, group_width::<T>(set));
        let sources = g.c_in;
        let packed = packed(set, &order, |source, target, tap| w[(target * sources + source) * 9 + tap]);
        Self {
            size: g.input,
            pad: g.spec.padding,
            order,
            weights: packed,
            sources: g.c_in.div_ceil(BLOCK),
            target: Dims { batch: g.batch, channels: g.c_out, size: g.output },
        }
    }

    pub(super) fn backward(set: InstructionSet, g: &Geometry, w: &[T]) -> Self {
        let order = Order::backward(g, group_width::<T>(set));
        let targets = g.c_in;
        // Flipped in both directions.
        let packed = packed(set, &order, |source, target, tap| w[(source * targets + target) * 9 + 8 - tap]);
        Self {
            size: g.output,
            pad: g.spec.padding.map(|p| 2 - p),
            order,
            weights: packed,
            sources: g.c_out.div_ceil(BLOCK),
            target: Dims { batch: g.batch, channels: g.c_in, size: g.input },
        }
    }

    pub(super) fn target(&self) -> Dims {
        self.target
    }

    /// Images that are best computed together.
    pub(super) fn together(&self) -> usize {
        Tiles::of(self.target.size).images(self.chunk())
    }

    /// Tiles of a chunk: their patches and the sums of a group.
    fn chunk(&self) -> usize {
        Tiles::chunk((self.sources + self.order.width()) * BLOCK, size_of::<T>())
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
        let (together, tiles) = (self.together(), Tiles::of(self.target.size));
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
        let whole = Tiles::of(self.target.size);
        let tiles = Tiles { rows: rows.len(), cols: whole.cols };
        let each = tiles.rows * tiles.cols;
        let images = to.len() / self.target.image();
        let patches = transformed(
            set,
            Strip { source, shape: strip(self.size, self.pad, whole, &rows, 2), tiles, side: Side::Input },
            first..first + images,
        );
        let (len, area, all) = (each * images, self.target.area(), self.target.blocks());
        let mut sums = Buffer::stale(PLACES * distance(self.order.width(), len));
        for group in &self.order.groups {
            let blocks = group.blocks.len();
            let weights = &self.weights[self.order.range(group, PLACES)];
            for (place, weights) in weights.chunks_exact(weights.len() / PLACES).enumerate() {
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
                        blocks,
                        tiles: len,
                        block: block - group.blocks.start,
                        first: image * each,
                        cols: tiles.cols,
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

/// Weights as `[group][place]` and then as in the order.
fn packed<T: Float>(set: InstructionSet, order: &Order, weight: impl Fn(usize, usize, usize) -> T + Sync) -> Buffer<T> {
    let mut taps = order.pack((&[0, 1, 2, 3, 4, 5, 6, 7, 8], Nesting::TapFirst), weight);
    let mut places = Buffer::stale(order.len(PLACES));
    transform_weights(set, order, (&mut taps, &mut places), Transposed::No);
    places
}

/// Transforms the weights of each group from the taps to the places or back.
fn transform_weights<T: Float>(
    set: InstructionSet,
    order: &Order,
    (taps, places): (&mut [Pixel<T>], &mut [Pixel<T>]),
    direction: Transposed,
) {
    let many = places.len() >= FEW;
    let parts = order.split(taps, 9).into_iter().zip(order.split(places, PLACES)).collect();
    each(parts, &order.groups, many, |(taps, places), _| {
        T::dispatch(set, Weights { taps, places, direction });
    });
}

/// Tiles of some images.
struct Strip<'a, T: Float> {
    source: Source<'a, T>,
    shape: Planes,
    tiles: Tiles,
    side: Side,
}

/// `[place][block][tile]` of some images.
fn transformed<T: Float>(set: InstructionSet, strip: Strip<'_, T>, images: Range<usize>) -> Buffer<T> {
    let each = strip.tiles.rows * strip.tiles.cols;
    let (blocks, tiles) = (strip.source.blocks(), each * images.len());
    let mut to = Buffer::stale(PLACES * distance(blocks, tiles));
    let mut planes = Buffer::stale(strip.shape.pixels(1));
    for (i, image) in images.enumerate() {
        // Block by block: the planes of one stay in the first cache.
        for block in 0..blocks {
            let (source, to_planes) = (strip.source, &mut planes);
            T::dispatch(set, Fill { planes: &strip.shape, source, image, blocks: block..block + 1, to: to_planes });
            let transform = Transform {
                planes: &planes,
                shape: &strip.shape,
                block,
                blocks,
                strip: strip.tiles,
                first: i * each,
                tiles,
                kind: strip.side,
                to: &mut to,
            };
            T::dispatch(set, transform);
        }
    }
    to
}

/// The sums of a weight gradient as `[group][place]` and then as in the order.
pub(super) struct Adjoint {
    g: Geometry,
    order: Order,
}

impl Adjoint {
    pub(super) fn new<T: Float>(set: InstructionSet, g: &Geometry) -> Self {
        Self { g: g.clone(), order: Order::forward(g, group_width::<T>(set)) }
    }

    /// Pixels of the sums.
    pub(super) fn len(&self) -> usize {
        self.order.len(PLACES)
    }

    /// Whether the sums are small enough for several copies of them.
    pub(super) fn by_slices<T: Float>(&self) -> bool {
        self.order.len(1) * size_of::<Pixel<T>>() <= RESIDENT
    }

    /// From the sums to `[O, I, 3, 3]`.
    pub(super) fn unpack<T: Float>(&self, set: InstructionSet, places: &mut [Pixel<T>]) -> Vec<T> {
        let mut taps = Buffer::stale(self.order.len(9));
        transform_weights(set, &self.order, (&mut taps, places), Transposed::Yes);
        self.order.unpack((9, Nesting::TapFirst), &taps)
    }

    /// Patches and gradients of a strip of some images, and their tiles.
    fn strip<T: Float>(
        &self,
        set: InstructionSet,
        (x, dy): (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        rows: &Range<usize>,
    ) -> Transformed<T> {
        let whole = Tiles::of(self.g.output);
        let tiles = Tiles { rows: rows.len(), cols: whole.cols };
        let shape = strip(self.g.input, self.g.spec.padding, whole, rows, 2);
        let patches = Strip { source: x, shape, tiles, side: Side::Input };
        let shape = strip(self.g.output, [0; 2], whole, rows, 0);
        let gradients = Strip { source: dy, shape, tiles, side: Side::Gradient };
        let len = tiles.rows * tiles.cols * images.len();
        Transformed {
            patches: transformed(set, patches, images.clone()),
            gradients: transformed(set, gradients, images),
            len,
        }
    }

    /// The sums of each place of each group.
    fn split<'a, T: Float>(&self, to: &'a mut [Pixel<T>]) -> Vec<(&Group, usize, &'a mut [Pixel<T>])> {
        let of_group = |(group, to): (_, &'a mut [Pixel<T>])| {
            let len = self.order.range(group, 1).len();
            to.chunks_exact_mut(len).enumerate().map(move |(place, to)| (group, place, to))
        };
        self.order.groups.iter().zip(self.order.split(to, PLACES)).flat_map(of_group).collect()
    }

    /// Adds the products of one place of some strips to the sums of a group.
    fn add<T: Float>(
        &self,
        set: InstructionSet,
        strips: &[Transformed<T>],
        (group, place, to): (&Group, usize, &mut [Pixel<T>]),
    ) {
        let (sources, targets) = (self.g.c_in.div_ceil(BLOCK), self.g.c_out.div_ceil(BLOCK));
        for Transformed { patches, gradients, len } in strips {
            let dy = &gradients[place * distance(targets, *len)..][group.blocks.start * len..targets * len];
            let planes = &patches[place * distance(sources, *len)..][..sources * len];
            let images = [Sums { planes, plane: *len, dy, stride: *len }];
            let blocks = group.blocks.len();
            let products = Products { segments: &group.segments, offsets: &[0], len: *len, blocks };
            T::dispatch(set, AddProducts { products, images: &images, to: &mut *to });
        }
    }

    fn chunk<T: Float>(&self) -> usize {
        let blocks = self.g.c_in.div_ceil(BLOCK) + self.g.c_out.div_ceil(BLOCK);
        Tiles::chunk(blocks * BLOCK, size_of::<T>())
    }

    /// Adds some images, one chunk after the other.
    pub(super) fn slice<T: Float>(
        &self,
        set: InstructionSet,
        sources: (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        to: &mut [Pixel<T>],
    ) {
        let (tiles, chunk) = (Tiles::of(self.g.output), self.chunk::<T>());
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

    /// Adds all images: the patches first, then the places side by side.
    pub(super) fn all<T: Float>(
        &self,
        set: InstructionSet,
        sources: (Source<'_, T>, Source<'_, T>),
        to: &mut [Pixel<T>],
    ) {
        let tiles = Tiles::of(self.g.output);
        let together = tiles.images(self.chunk::<T>()).min(self.g.batch.div_ceil(2));
        let firsts: Vec<usize> = (0..self.g.batch).step_by(together).collect();
        let strips: Vec<_> = firsts
            .into_par_iter()
            .map(|first| self.strip(set, sources, first..(first + together).min(self.g.batch), &(0..tiles.rows)))
            .collect();
        // A place after the other: its patches are read once for all groups.
        let mut places: Vec<Vec<_>> = (0..PLACES).map(|_| Vec::new()).collect();
        for part in self.split(to) {
            places[part.1].push(part);
        }
        places.into_par_iter().for_each(|parts| parts.into_iter().for_each(|part| self.add(set, &strips, part)));
    }
}

/// The transformed tiles of some images: patches of the input, squares of the output gradient.
struct Transformed<T: Float> {
    patches: Buffer<T>,
    gradients: Buffer<T>,
    len: usize,
}
