//! Copies blocks of a map into zero-padded planes, normalising or differentiating on the way.

use std::ops::Range;

use rayon::prelude::*;

use crate::InstructionSet;
use crate::conv::plan::{Planes, Span};
use crate::map::buffer::{BLOCK, Buffer, Pixel, elements_mut};
use crate::map::node::{Gradient, Node};
use crate::map::pass::{Copied, Normalised, Read, Sloped};
use crate::simd::{Float, Kernel, Simd};

/// Pixels between the one that is read and the one that is asked for: maps come from far away.
const AHEAD: usize = 48;

/// What a plane is filled with.
#[derive(Clone, Copy)]
pub(super) enum Source<'a, T: Float> {
    /// The values of a map.
    Values(&'a Node<T>),
    /// The gradient of a map.
    Gradient(&'a Node<T>, &'a Gradient<T>),
}

impl<'a, T: Float> Source<'a, T> {
    /// Blocks of channels.
    pub(super) fn blocks(self) -> usize {
        self.node().dims.blocks()
    }

    fn node(self) -> &'a Node<T> {
        match self {
            Self::Values(node) | Self::Gradient(node, _) => node,
        }
    }

    /// The pixels of an image where nothing is to be done to them.
    fn stored(self, image: usize) -> Option<&'a [Pixel<T>]> {
        let all = match self {
            Self::Values(node) if node.is_plain() => &node.stored,
            Self::Gradient(_, gradient) if gradient.slope.is_none() => &gradient.values,
            _ => return None,
        };
        let len = self.node().dims.image();
        Some(&all[image * len..(image + 1) * len])
    }
}

impl Planes {
    /// Pixels of a block.
    pub(super) fn plane(&self) -> usize {
        self.phases.len() * self.rows * self.width
    }

    /// Pixels of a buffer for so many blocks: shared borders reach less than a row beyond the last plane.
    pub(super) fn pixels(&self, blocks: usize) -> usize {
        blocks * self.plane() + self.width
    }

    /// Whether the planes are the map itself.
    fn is_map(&self) -> bool {
        self.step == [1; 2] && self.pad == [0; 2] && [self.rows, self.width] == self.size && self.phases.len() == 1
    }

    /// The planes of an image: the map itself where that will do, else `scratch` of [`Planes::pixels`] pixels, filled.
    pub(super) fn of<'s, T: Float>(
        &self,
        set: InstructionSet,
        source: Source<'s, T>,
        image: usize,
        scratch: &'s mut [Pixel<T>],
    ) -> &'s [Pixel<T>] {
        if self.is_map()
            && let Some(stored) = source.stored(image)
        {
            return stored;
        }
        let blocks = 0..source.blocks();
        T::dispatch(set, Fill { planes: self, source, image, blocks, to: scratch });
        scratch
    }

    #[inline(always)]
    fn fill_blocks<V: Simd>(
        &self,
        source: Source<'_, V::Elem>,
        image: usize,
        blocks: Range<usize>,
        to: &mut [Pixel<V::Elem>],
    ) {
        let (node, plane) = (source.node(), self.plane());
        let end = blocks.len() * plane;
        to[end..end + self.width].fill(Pixel::zero());
        for (block, to) in blocks.zip(to.chunks_exact_mut(plane)) {
            let x = node.block(image, block);
            for part in (0..BLOCK).step_by(V::LANES) {
                // SAFETY: the readers have the pixels of a block, `fill_pixels` asks for no others; `part` is a part of a pixel.
                unsafe {
                    match source {
                        Source::Values(node) => match &node.normal {
                            None => self.fill_pixels(Copied::<V>::new(x, part), to, part),
                            Some(normal) => {
                                self.fill_pixels(Normalised::<V>::new(x, normal, block, node.act, part), to, part);
                            }
                        },
                        Source::Gradient(node, gradient) => {
                            let from = image * node.dims.image() + block * node.dims.area();
                            let g = &gradient.values[from..from + x.len()];
                            match &gradient.slope {
                                None => self.fill_pixels(Copied::<V>::new(g, part), to, part),
                                Some(slope) => self.fill_pixels(Sloped::<V>::new((g, x), slope, block, part), to, part),
                            }
                        }
                    }
                }
            }
        }
    }

    /// Fills the planes of a block.
    ///
    /// # Safety
    ///
    /// The reader must have the pixels of the map.
    #[inline(always)]
    unsafe fn fill_pixels<V: Simd, R: Read<V>>(&self, reader: R, to: &mut [Pixel<V::Elem>], part: usize) {
        let zero = V::Elem::default();
        for (phase, to) in self.phases.iter().zip(to.chunks_exact_mut(self.rows * self.width)) {
            let cols = Span::of(phase[1], self.step[1], self.pad[1], self.size[1]);
            let first = cols.from.min(self.width);
            let count = cols.count.min(self.width - first);
            for (row, to) in to.chunks_exact_mut(self.width).enumerate() {
                let source = (phase[0] + row * self.step[0]).wrapping_sub(self.pad[0]);
                let count = if source < self.size[0] { count } else { 0 };
                // SAFETY: `row * width` pixels of the target, a row of the map from `cols.first` in steps.
                unsafe {
                    let zero = V::splat(zero);
                    let target = elements_mut(to).add(part);
                    for i in (0..first).chain(first + count..self.width) {
                        zero.store(target.add(i * BLOCK));
                    }
                    let from = source.wrapping_mul(self.size[1]).wrapping_add(cols.first);
                    let target = target.add(first * BLOCK);
                    for i in 0..count {
                        reader.ask(from + AHEAD + i * self.step[1]);
                        reader.at(from + i * self.step[1]).store(target.add(i * BLOCK));
                    }
                }
            }
        }
    }
}

/// The planes of some blocks of an image.
pub(super) struct Fill<'a, T: Float> {
    pub(super) planes: &'a Planes,
    pub(super) source: Source<'a, T>,
    pub(super) image: usize,
    pub(super) blocks: Range<usize>,
    /// Pixels for them as of [`Planes::pixels`].
    pub(super) to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Fill<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        self.planes.fill_blocks::<V>(self.source, self.image, self.blocks, self.to);
    }
}

/// The planes of all images, one after the other.
pub(super) fn fill_all<T: Float>(set: InstructionSet, planes: &Planes, source: Source<'_, T>) -> (Buffer<T>, usize) {
    let dims = source.node().dims;
    let len = planes.pixels(dims.blocks());
    let mut all = Buffer::stale(dims.batch * len);
    all.par_chunks_mut(len).enumerate().for_each(|(image, to)| {
        T::dispatch(set, Fill { planes, source, image, blocks: 0..dims.blocks(), to });
    });
    (all, len)
}
