//! What a feature map is made of: numbers, how they are to be read, and the gradient that gathers for them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use super::buffer::{BLOCK, Buffer, Pixel};
use super::pass::{Copied, Normalised, Partial, Read, Sloped, reduce, settle, total};
use crate::norm::BatchStats;
use crate::simd::{Float, Kernel, Simd};
use crate::{Activation, InstructionSet};

/// Sizes of a map: `[batch][blocks][pixels]` of sixteen channels each; channels that do not exist hold zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) size: [usize; 2],
}

impl Dims {
    pub(crate) fn blocks(self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    /// Positions of a channel.
    pub(crate) fn area(self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Pixels of an image.
    pub(crate) fn image(self) -> usize {
        self.blocks() * self.area()
    }

    /// Pixels of all images.
    pub(crate) fn len(self) -> usize {
        self.batch * self.image()
    }

    /// Values of a channel in all images.
    pub(crate) fn count(self) -> usize {
        self.batch * self.area()
    }
}

/// Numbers of each channel, a pixel for each block.
pub(crate) fn by_block<T: Float>(values: impl Iterator<Item = f64>) -> Vec<Pixel<T>> {
    let values: Vec<f64> = values.collect();
    let pixel = |chunk: &[f64]| {
        let mut pixel = Pixel::zero();
        for (to, &value) in pixel.0.iter_mut().zip(chunk) {
            *to = T::of(value);
        }
        pixel
    };
    values.chunks(BLOCK).map(pixel).collect()
}

/// A normalisation that is applied when the map is read: `(x - centre) * scale + shift`.
#[derive(Debug)]
pub(crate) struct Normal<T> {
    pub(crate) centre: Vec<Pixel<T>>,
    pub(crate) scale: Vec<Pixel<T>>,
    pub(crate) shift: Vec<Pixel<T>>,
}

/// A gradient that is still to be computed from another one and the stored numbers:
/// `by_gradient * g + by_value * (x - centre) + constant`.
#[derive(Clone, Debug)]
pub(crate) struct Slope<T> {
    pub(crate) centre: Vec<Pixel<T>>,
    pub(crate) by_gradient: Vec<Pixel<T>>,
    pub(crate) by_value: Vec<Pixel<T>>,
    pub(crate) constant: Vec<Pixel<T>>,
}

/// Two sums of each channel.
type Sums = Arc<Vec<[f64; 2]>>;

/// The gradient of a map, as far as it has gathered.
#[derive(Clone, Debug)]
pub(crate) struct Gradient<T: Float> {
    pub(crate) values: Arc<Buffer<T>>,
    /// How the gradient is made of `values`; `None`: it is `values`.
    pub(crate) slope: Option<Arc<Slope<T>>>,
    /// Whether it is 0 already where the map's activation cut the value off.
    masked: bool,
    /// Of each channel the sums of the gradient and of its product with `x - centre`.
    sums: Option<Sums>,
}

/// A map: stored numbers and what is to be done to them when they are read.
#[derive(Debug)]
pub(crate) struct Node<T: Float> {
    pub(crate) dims: Dims,
    pub(crate) stored: Arc<Buffer<T>>,
    pub(crate) normal: Option<Normal<T>>,
    pub(crate) act: Activation,
    /// Mean and variance of the stored numbers, where they were gathered on the way.
    pub(crate) stats: OnceLock<BatchStats>,
    gradient: Mutex<Option<Gradient<T>>>,
}

impl<T: Float> Node<T> {
    pub(crate) fn new(dims: Dims, stored: Arc<Buffer<T>>, normal: Option<Normal<T>>, act: Activation) -> Self {
        Self { dims, stored, normal, act, stats: OnceLock::new(), gradient: Mutex::new(None) }
    }

    /// The stored numbers of a block of an image.
    pub(crate) fn block(&self, image: usize, block: usize) -> &[Pixel<T>] {
        let area = self.dims.area();
        let from = image * self.dims.image() + block * area;
        &self.stored[from..from + area]
    }

    /// Whether the stored numbers are the values.
    pub(crate) fn is_plain(&self) -> bool {
        self.normal.is_none()
    }

    fn cell(&self) -> std::sync::MutexGuard<'_, Option<Gradient<T>>> {
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a gradient that is there as a whole.
    pub(crate) fn give(&self, set: InstructionSet, values: Arc<Buffer<T>>, slope: Option<Slope<T>>) {
        let new = Gradient { values, slope: slope.map(Arc::new), masked: self.act == Activation::None, sums: None };
        let old = self.cell().take();
        let total = match old {
            None => new,
            Some(old) => self.total(set, &new, Some(old)),
        };
        *self.cell() = Some(total);
    }

    /// Adds a gradient that `write` computes for each block of each image (arguments: image, block, target).
    pub(crate) fn contribute(&self, set: InstructionSet, write: impl Fn(usize, usize, &mut [Pixel<T>]) + Sync) {
        let old = self.open(set);
        let (image, area, blocks) = (self.dims.image(), self.dims.area(), self.dims.blocks());
        let mut values = Buffer::stale(self.dims.len());
        let mut partials = vec![Partial::zero(); self.dims.batch * blocks];
        values.par_chunks_mut(image).zip(partials.par_chunks_mut(blocks)).enumerate().for_each(
            |(i, (image, partials))| {
                for (b, (to, partial)) in image.chunks_exact_mut(area).zip(partials).enumerate() {
                    write(i, b, to);
                    *partial = T::dispatch(set, Settle { node: self, old: old.as_ref(), at: (i, b), to });
                }
            },
        );
        self.close(values, &partials);
    }

    /// What has gathered so far, as plain numbers; the caller adds it to its own part and calls [`Node::close`].
    pub(crate) fn open(&self, set: InstructionSet) -> Option<Arc<Buffer<T>>> {
        let old = self.cell().take()?;
        match &old.slope {
            None => Some(old.values),
            Some(_) => Some(self.total(set, &old, None).values),
        }
    }

    /// Stores the gradient that consists of all parts so far, each block of which went through [`settle`].
    pub(crate) fn close(&self, values: Buffer<T>, partials: &[Partial<T>]) {
        let sums = self.normal.is_some().then(|| Arc::new(self.sums(partials)));
        *self.cell() = Some(Gradient { values: Arc::new(values), slope: None, masked: true, sums });
    }

    /// The sums of each channel, image after image.
    fn sums(&self, partials: &[Partial<T>]) -> Vec<[f64; 2]> {
        let blocks = self.dims.blocks();
        (0..self.dims.channels)
            .map(|c| {
                let (block, lane) = (c / BLOCK, c % BLOCK);
                partials
                    .iter()
                    .skip(block)
                    .step_by(blocks)
                    .fold([0.0; 2], |[s, p], partial| [s + partial.sums[lane], p + partial.products[lane]])
            })
            .collect()
    }

    /// The sum of two gradients as plain numbers, masked and with its sums.
    fn total(&self, set: InstructionSet, new: &Gradient<T>, old: Option<Gradient<T>>) -> Gradient<T> {
        *self.cell() = old;
        self.contribute(set, |image, block, to| {
            T::dispatch(set, Resolve { node: self, gradient: new, at: (image, block), to });
        });
        self.cell().take().expect("a contribution leaves a gradient")
    }

    /// The gradient that has gathered, cut off by the activation; `None` if there is none.
    pub(crate) fn take(&self, set: InstructionSet) -> Option<Gradient<T>> {
        let gradient = self.cell().take()?;
        if gradient.masked {
            return Some(gradient);
        }
        Some(self.total(set, &gradient, None))
    }

    /// The same as plain numbers.
    pub(crate) fn take_plain(&self, set: InstructionSet) -> Option<Arc<Buffer<T>>> {
        let gradient = self.take(set)?;
        Some(self.plain(set, gradient).values)
    }

    /// A gradient as plain numbers.
    pub(crate) fn plain(&self, set: InstructionSet, gradient: Gradient<T>) -> Gradient<T> {
        match gradient.slope {
            None => gradient,
            Some(_) => self.total(set, &gradient, None),
        }
    }

    /// The same as plain numbers with the sums of each channel.
    pub(crate) fn take_with_sums(&self, set: InstructionSet) -> Option<(Arc<Buffer<T>>, Sums)> {
        let gradient = self.take(set)?;
        let gradient = self.plain(set, gradient);
        let sums = match gradient.sums {
            Some(sums) => sums,
            None => Arc::new(self.sums(&self.reduced(set, &gradient.values))),
        };
        Some((gradient.values, sums))
    }

    /// Reads a gradient that needs no masking for its sums.
    fn reduced(&self, set: InstructionSet, gradient: &Buffer<T>) -> Vec<Partial<T>> {
        let (area, blocks) = (self.dims.area(), self.dims.blocks());
        gradient
            .par_chunks(area)
            .enumerate()
            .map(|(i, g)| T::dispatch(set, Reduce { node: self, at: (i / blocks, i % blocks), g }))
            .collect()
    }
}

struct Reduce<'a, T: Float> {
    node: &'a Node<T>,
    at: (usize, usize),
    g: &'a [Pixel<T>],
}

impl<T: Float> Kernel<T> for Reduce<'_, T> {
    type Output = Partial<T>;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Partial<T> {
        reduce::<T, V>(self.node, self.at, self.g)
    }
}

/// Writes a gradient that may have a slope as plain numbers.
struct Resolve<'a, T: Float> {
    node: &'a Node<T>,
    gradient: &'a Gradient<T>,
    at: (usize, usize),
    to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Resolve<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let (image, block) = self.at;
        let area = self.node.dims.area();
        let from = image * self.node.dims.image() + block * area;
        let g = &self.gradient.values[from..from + area];
        match &self.gradient.slope {
            None => self.to.copy_from_slice(g),
            Some(slope) => {
                let x = self.node.block(image, block);
                for part in (0..BLOCK).step_by(V::LANES) {
                    // SAFETY: all three slices hold `area` pixels, and `part` is a part of a pixel.
                    unsafe { Sloped::<V>::new((g, x), slope, block, part).write(self.to, part) };
                }
            }
        }
    }
}

/// The sum of a block of a gradient that may have a slope.
pub(crate) struct GradientSum<'a, T: Float> {
    pub(crate) node: &'a Node<T>,
    pub(crate) gradient: &'a Gradient<T>,
    pub(crate) at: (usize, usize),
}

impl<T: Float> Kernel<T> for GradientSum<'_, T> {
    type Output = [f64; BLOCK];
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> [f64; BLOCK] {
        let (image, block) = self.at;
        let x = self.node.block(image, block);
        let from = image * self.node.dims.image() + block * x.len();
        let g = &self.gradient.values[from..from + x.len()];
        let mut to = [0.0; BLOCK];
        for part in (0..BLOCK).step_by(V::LANES) {
            // SAFETY: both slices hold a block, and `part` is a part of a pixel.
            unsafe {
                match &self.gradient.slope {
                    None => total(Copied::<V>::new(g, part), x.len(), part, &mut to),
                    Some(slope) => total(Sloped::<V>::new((g, x), slope, block, part), x.len(), part, &mut to),
                }
            }
        }
        to
    }
}

/// Adds what gathered before to a block, applies the mask and sums.
struct Settle<'a, T: Float> {
    node: &'a Node<T>,
    old: Option<&'a Arc<Buffer<T>>>,
    at: (usize, usize),
    to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Settle<'_, T> {
    type Output = Partial<T>;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Partial<T> {
        settle::<T, V>(self.node, self.old.map(|old| &***old), self.at, self.to)
    }
}

/// Writes the values of a block of a map: normalised and activated.
pub(crate) struct Values<'a, T: Float> {
    pub(crate) node: &'a Node<T>,
    pub(crate) at: (usize, usize),
    pub(crate) to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Values<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let (image, block) = self.at;
        let x = self.node.block(image, block);
        for part in (0..BLOCK).step_by(V::LANES) {
            // SAFETY: both slices hold a block, and `part` is a part of a pixel.
            unsafe {
                match &self.node.normal {
                    None => Copied::<V>::new(x, part).write(self.to, part),
                    Some(normal) => Normalised::<V>::new(x, normal, block, self.node.act, part).write(self.to, part),
                }
            }
        }
    }
}
