//! The weight gradient.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{AddProducts, Products, Sums};
use super::pack::{Group, Order};
use super::pass::group_width;
use super::planes::{Source, fill_all};
use crate::InstructionSet;
use crate::conv::geometry::Geometry;
use crate::conv::plan::{Job, Planes, forward};
use crate::map::buffer::{Buffer, Pixel};
use crate::simd::Float;

/// Weight gradients above this size are computed group by group over all images.
const RESIDENT: usize = 1 << 18;

/// Maps below this number of pixels are, too: their sums stay in registers from image to image.
const SMALL: usize = 65;

/// The output gradient as planes without border, its rows as far apart as those of the input's planes.
pub(super) fn rows_of(g: &Geometry, planes: &Planes) -> Planes {
    Planes { size: g.output, phases: vec![[0; 2]], step: [1; 2], pad: [0; 2], rows: g.output[0], width: planes.width }
}

/// Calls `f` with the planes of the input and the rows of the output gradient of each image.
pub(super) fn each_image<T: Float>(
    set: InstructionSet,
    (planes, x): (&Planes, Source<'_, T>),
    (rows, dy): (&Planes, Source<'_, T>),
    images: Range<usize>,
    mut f: impl FnMut(&[Pixel<T>], &[Pixel<T>]),
) {
    let mut x_scratch = Buffer::stale(planes.pixels(x.blocks()));
    let mut dy_scratch = Buffer::stale(rows.pixels(dy.blocks()));
    for image in images {
        f(planes.of(set, x, image, &mut x_scratch), rows.of(set, dy, image, &mut dy_scratch));
    }
}

pub(super) struct Weights {
    g: Geometry,
    /// Of the input.
    planes: Planes,
    job: Job,
    /// Of the output gradient: rows as far apart as in the planes, zeros between them.
    rows: Planes,
    order: Order,
}

impl Weights {
    pub(super) fn new<T: Float>(set: InstructionSet, g: &Geometry) -> Self {
        let (planes, job) = forward(g);
        let rows = rows_of(g, &planes);
        Self { g: g.clone(), planes, job, rows, order: Order::forward(g, group_width::<T>(set)) }
    }

    fn add<T: Float>(&self, set: InstructionSet, group: &Group, images: &[Sums<'_, T>], to: &mut [Pixel<T>]) {
        let products = Products {
            segments: &group.segments,
            offsets: &self.job.offsets,
            len: self.job.run(self.planes.width),
            blocks: group.blocks.len(),
        };
        T::dispatch(set, AddProducts { products, images, to });
    }

    /// The input planes and the rows of the output gradient (and the pixels of a block of them) of an image, for a
    /// group.
    fn sums<'a, T>(
        &self,
        group: &Group,
        planes: &'a [Pixel<T>],
        (rows, stride): (&'a [Pixel<T>], usize),
    ) -> Sums<'a, T> {
        Sums { planes, plane: self.planes.plane(), dy: &rows[group.blocks.start * stride..], stride }
    }

    /// Where the rows of the output gradient start in these planes of it, if they lie there as they should.
    pub(super) fn rows_in(&self, planes: &Planes) -> Option<usize> {
        let fits = planes.width == self.planes.width && planes.step == [1; 2] && planes.phases.len() == 1;
        (fits && planes.size == self.g.output).then(|| planes.pad[0] * planes.width + planes.pad[1])
    }

    /// Adds an image.
    pub(super) fn image<T: Float>(
        &self,
        set: InstructionSet,
        planes: &[Pixel<T>],
        rows: (&[Pixel<T>], usize),
        to: &mut [Pixel<T>],
    ) {
        let parts = self.order.split(to, self.job.taps.len());
        for (group, to) in self.order.groups.iter().zip(parts) {
            self.add(set, group, &[self.sums(group, planes, rows)], to);
        }
    }
}

impl Weights {
    /// Adds some images, one after the other.
    pub(super) fn slice<T: Float>(
        &self,
        set: InstructionSet,
        (x, dy): (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        to: &mut [Pixel<T>],
    ) {
        each_image(set, (&self.planes, x), (&self.rows, dy), images, |planes, rows| {
            self.image(set, planes, (rows, self.rows.plane()), to);
        });
    }

    /// Input planes.
    pub(super) fn planes(&self) -> &Planes {
        &self.planes
    }
}

impl Weights {
    /// Pixels of the sums.
    pub(super) fn len(&self) -> usize {
        self.order.len(self.job.taps.len())
    }

    /// Whether the sums are small enough for several copies of them, and for leaving the registers after each image.
    pub(super) fn by_slices<T: Float>(&self) -> bool {
        self.g.output[0] * self.g.output[1] >= SMALL && self.len() * size_of::<Pixel<T>>() <= RESIDENT
    }

    /// Adds all images, group by group.
    pub(super) fn all<T: Float>(
        &self,
        set: InstructionSet,
        (x, dy): (Source<'_, T>, Source<'_, T>),
        to: &mut [Pixel<T>],
    ) {
        let (planes, x_len) = fill_all(set, &self.planes, x);
        let (rows, dy_len) = fill_all(set, &self.rows, dy);
        let parts = self.order.split(to, self.job.taps.len());
        parts.into_par_iter().zip(&self.order.groups).for_each(|(to, group)| {
            let images: Vec<_> = planes
                .chunks_exact(x_len)
                .zip(rows.chunks_exact(dy_len))
                .map(|(planes, rows)| self.sums(group, planes, (rows, self.rows.plane())))
                .collect();
            self.add(set, group, &images, to);
        });
    }

    /// From the sums to `[O, I / groups, kh, kw]`.
    pub(super) fn unpack<T: Float>(&self, sums: &[Pixel<T>]) -> Vec<T> {
        self.order.unpack(self.job.taps.len(), sums)
    }
}
