//! The weight gradient over flat planes, and the bias gradient.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use rayon::prelude::*;

use super::geometry::Geometry;
use super::plan::{Job, Planes, forward};
use crate::InstructionSet;
use crate::raw::copy_run;
use crate::simd::{Float, Kernel, Simd};

/// Slices of the batch whose partial sums are added in order; fixed, so that threads change no bit.
const SLICES: usize = 8;

/// Bytes of output gradient that one block of channels may take in the first-level cache.
const BLOCK_BYTES: usize = 24 << 10;

/// Sums the weight gradient over some images.
struct Slice<'a, T> {
    g: &'a Geometry,
    planes: &'a Planes,
    job: &'a Job,
    x: &'a [T],
    dy: &'a [T],
    /// The gradient by blocks of output channels, each `[I / groups * taps][channel]`; zero at first.
    to: &'a mut [T],
}

impl<T: Float> Kernel<T> for Slice<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let g = self.g;
        let run = self.job.run(self.planes.width).next_multiple_of(V::LANES);
        let (x_image, dy_image) = (g.c_in * self.planes.map(), g.c_out * g.output[0] * g.output[1]);
        let batch = self.x.len() / x_image;
        let fits = BLOCK_BYTES / (V::ROWS * run * size_of::<T>());
        let images = fits.clamp(1, batch);
        let plane = self.planes.buffer(g.c_in);
        let (mut scratch, offset) = T::take_scratch(images * (plane + g.c_out * run));
        let (planes, flat) = scratch[offset..].split_at_mut(images * plane);
        for first in (0..batch).step_by(images) {
            let now = images.min(batch - first);
            for i in 0..now {
                let x = &self.x[(first + i) * x_image..(first + i + 1) * x_image];
                self.planes.fill(x, &mut planes[i * plane..(i + 1) * plane]);
                let dy = &self.dy[(first + i) * dy_image..(first + i + 1) * dy_image];
                flatten(dy, g.output, self.planes.width, run, &mut flat[i * g.c_out * run..]);
            }
            let sums =
                Sums { images: now, x_image: plane, dy_image: g.c_out * run, dy_channel: run, vectors: run / V::LANES };
            accumulate::<V>(g, (self.planes, self.job), sums, planes, flat, self.to);
        }
        T::keep_scratch(scratch);
    }
}

/// Copies maps to runs with rows of `width`, zeros in between and up to `run` elements.
#[inline(always)]
fn flatten<T: Float>(maps: &[T], size: [usize; 2], width: usize, run: usize, to: &mut [T]) {
    for (map, to) in maps.chunks_exact(size[0] * size[1]).zip(to.chunks_exact_mut(run)) {
        if width == size[1] {
            to[..map.len()].copy_from_slice(map);
            to[map.len()..].fill(T::default());
            continue;
        }
        to.fill(T::default());
        for (i, row) in map.chunks_exact(size[1]).enumerate() {
            copy_run(row, &mut to[i * width..i * width + size[1]]);
        }
    }
}

/// Adds the sums over the images in the buffers to the gradient.
#[inline(always)]
fn accumulate<V: Simd>(
    g: &Geometry,
    (planes, job): (&Planes, &Job),
    sums: Sums,
    x: &[V::Elem],
    dy: &[V::Elem],
    to: &mut [V::Elem],
) {
    let columns = g.group_in() * g.taps();
    for group in 0..g.spec.groups {
        let mut row = 0;
        while row < g.group_out() {
            let used = (g.group_out() - row).min(V::ROWS);
            let rows = block_rows(used);
            let channel = group * g.group_out() + row;
            let dy = &dy[channel * sums.dy_channel..];
            let to = &mut to[channel * columns..(channel + rows) * columns];
            let x = &x[group * g.group_in() * planes.channel()..];
            // SAFETY: `x` and `dy` are buffers of `images` images with all rows of this block; reads beyond the run stay
            // in the slack of the planes, as in the forward pass.
            unsafe {
                match rows {
                    8 => block::<V, 8>(planes.channel(), job, sums, x, dy, to),
                    4 => block::<V, 4>(planes.channel(), job, sums, x, dy, to),
                    2 => block::<V, 2>(planes.channel(), job, sums, x, dy, to),
                    _ => block::<V, 1>(planes.channel(), job, sums, x, dy, to),
                }
            }
            row += rows;
        }
    }
}

/// Rows of the next block: 8 and 4 as long as they fit, 7 rows are 4, 2 and 1.
fn block_rows(left: usize) -> usize {
    1 << left.ilog2()
}

/// All columns (input channels times taps) of `R` output channels.
#[inline(always)]
unsafe fn block<V: Simd, const R: usize>(
    channel: usize,
    job: &Job,
    sums: Sums,
    x: &[V::Elem],
    dy: &[V::Elem],
    to: &mut [V::Elem],
) {
    let columns = to.len() / R;
    #[inline(always)]
    fn offset(column: usize, channel: usize, offsets: &[usize]) -> usize {
        column / offsets.len() * channel + offsets[column % offsets.len()]
    }
    let mut column = 0;
    while column < columns {
        // SAFETY: the caller's promise.
        let now = unsafe {
            if columns - column >= 3 {
                let offsets = [
                    offset(column, channel, &job.offsets),
                    offset(column + 1, channel, &job.offsets),
                    offset(column + 2, channel, &job.offsets),
                ];
                sums.add::<V, R, 3>(x.as_ptr(), dy.as_ptr(), offsets, &mut to[column * R..]);
                3
            } else {
                sums.add::<V, R, 1>(
                    x.as_ptr(),
                    dy.as_ptr(),
                    [offset(column, channel, &job.offsets)],
                    &mut to[column * R..],
                );
                1
            }
        };
        column += now;
    }
}

/// Where the images lie.
#[derive(Clone, Copy)]
struct Sums {
    images: usize,
    x_image: usize,
    dy_image: usize,
    dy_channel: usize,
    vectors: usize,
}

impl Sums {
    /// Adds the products of `R` rows with `N` shifted runs to `to[n * R + row]`.
    #[inline(always)]
    unsafe fn add<V: Simd, const R: usize, const N: usize>(
        self,
        x: *const V::Elem,
        dy: *const V::Elem,
        offsets: [usize; N],
        to: &mut [V::Elem],
    ) {
        // SAFETY: see `accumulate`.
        unsafe {
            let mut sums = [[V::splat(V::Elem::default()); N]; R];
            for image in 0..self.images {
                let (x, dy) = (x.add(image * self.x_image), dy.add(image * self.dy_image));
                for v in 0..self.vectors {
                    let at = v * V::LANES;
                    let mut shifted = [V::splat(V::Elem::default()); N];
                    for n in 0..N {
                        shifted[n] = V::load(x.add(offsets[n] + at));
                    }
                    for r in 0..R {
                        let g = V::load(dy.add(r * self.dy_channel + at));
                        for n in 0..N {
                            sums[r][n] = g.mul_add(shifted[n], sums[r][n]);
                        }
                    }
                }
            }
            for n in 0..N {
                let mut column = [V::splat(V::Elem::default()); R];
                for r in 0..R {
                    column[r] = sums[r][n];
                }
                for (to, sum) in to[n * R..(n + 1) * R].iter_mut().zip(V::sums(column)) {
                    *to += sum;
                }
            }
        }
    }
}

/// The weight gradient, `[O, I / groups, kh, kw]`.
pub(super) fn weight_gradient<T: Float>(set: InstructionSet, g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let (planes, job) = forward(g);
    let len = g.weight_len();
    let per_slice = g.batch.div_ceil(SLICES);
    let slices = g.batch.div_ceil(per_slice);
    let mut parts = vec![T::default(); slices * len];
    parts
        .par_chunks_mut(len)
        .zip(x.par_chunks(per_slice * x.len() / g.batch))
        .zip(dy.par_chunks(per_slice * dy.len() / g.batch))
        .for_each(|((to, x), dy)| {
            T::dispatch(set, Slice { g, planes: &planes, job: &job, x, dy, to });
        });
    let (total, rest) = parts.split_at_mut(len);
    for part in rest.chunks_exact(len) {
        for (total, &part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    T::dispatch(set, Unpack { g, blocks: total })
}

/// From blocks of output channels to `[O, I / groups, kh, kw]`.
struct Unpack<'a, T> {
    g: &'a Geometry,
    blocks: &'a [T],
}

impl<T: Float> Kernel<T> for Unpack<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Vec<T> {
        let columns = self.g.group_in() * self.g.taps();
        let mut to = vec![T::default(); self.blocks.len()];
        let mut channel = 0;
        while channel < self.g.c_out {
            let left = self.g.group_out() - channel % self.g.group_out();
            let rows = block_rows(left.min(V::ROWS));
            let range = channel * columns..(channel + rows) * columns;
            let to = &mut to[range.clone()];
            for (column, values) in self.blocks[range].chunks_exact(rows).enumerate() {
                for (row, &value) in values.iter().enumerate() {
                    to[row * columns + column] = value;
                }
            }
            channel += rows;
        }
        to
    }
}

/// Sums of the output gradient over images and positions: `dy` is `[batch, channels, map]`.
pub(super) fn bias_gradient<T: Float>(channels: usize, map: usize, dy: &[T]) -> Vec<T> {
    (0..channels)
        .into_par_iter()
        .map(|c| {
            let mut sum = 0.0;
            for image in dy.chunks_exact(channels * map) {
                let run = &image[c * map..(c + 1) * map];
                let (chunks, rest) = run.as_chunks::<8>();
                let mut sums = [0f64; 8];
                for chunk in chunks {
                    for i in 0..8 {
                        sums[i] += chunk[i].wide();
                    }
                }
                sum += sums.iter().sum::<f64>() + rest.iter().map(|x| x.wide()).sum::<f64>();
            }
            T::of(sum)
        })
        .collect()
}
