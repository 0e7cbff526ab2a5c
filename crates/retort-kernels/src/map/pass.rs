//! Single passes over a block of channels: reading a map's values, masking and summing its gradient, its moments.

use super::buffer::{BLOCK, Pixel, Pixels, elements, elements_mut};
use super::node::{Dims, Node, Normal, Slope};
use crate::Activation;
use crate::simd::{Float, Simd};

/// Pixels that are added in the element type before the sum goes on in `f64`.
const CHUNK: usize = 64;

/// Numbers of one block of one image that a sum over images is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partial<T> {
    /// What was subtracted from every value (moments only).
    pub(crate) shift: Pixel<T>,
    pub(crate) sums: [f64; BLOCK],
    /// Of squares (moments), or of products of gradient and value.
    pub(crate) products: [f64; BLOCK],
}

/// Blocks of a map that is being computed, and their sums.
pub(crate) type Part<'a, T> = (&'a mut [Pixel<T>], &'a mut [Partial<T>]);

/// Parts of so many images each.
pub(crate) fn by_images<T>(
    dims: Dims,
    (values, partials): Part<'_, T>,
    images: usize,
) -> impl Iterator<Item = Part<'_, T>> {
    values.chunks_mut(images * dims.image()).zip(partials.chunks_mut(images * dims.blocks()))
}

impl<T: Float> Partial<T> {
    pub(crate) fn zero() -> Self {
        Self { shift: Pixel::zero(), sums: [0.0; BLOCK], products: [0.0; BLOCK] }
    }

    /// # Safety
    ///
    /// `V`'s instruction set must be there.
    #[inline(always)]
    unsafe fn add<V: Simd<Elem = T>>(&mut self, sums: V, products: V, part: usize) {
        let (mut s, mut p) = ([T::default(); BLOCK], [T::default(); BLOCK]);
        // SAFETY: a vector is no longer than a block.
        unsafe {
            sums.store(s.as_mut_ptr());
            products.store(p.as_mut_ptr());
        }
        for lane in 0..V::LANES {
            self.sums[part + lane] += s[lane].wide();
            self.products[part + lane] += p[lane].wide();
        }
    }
}

/// Reads a part (as many channels as a vector has lanes) of the pixels of a block.
pub(crate) trait Read<V: Simd>: Copy {
    /// # Safety
    ///
    /// The pixel must lie in what the reader was made of.
    unsafe fn at(self, pixel: usize) -> V;

    /// Asks for a pixel that will be read soon; it need not exist.
    unsafe fn ask(self, pixel: usize);

    /// Writes all pixels of a target of the same length.
    ///
    /// # Safety
    ///
    /// The reader must have at least as many pixels as `to`, and `part + LANES` be at most [`BLOCK`].
    #[inline(always)]
    unsafe fn write(self, to: &mut [Pixel<V::Elem>], part: usize) {
        let target = elements_mut(to);
        for i in 0..to.len() {
            // SAFETY: the caller's promise.
            unsafe { self.at(i).store(target.add(i * BLOCK + part)) };
        }
    }
}

/// The numbers as they are.
#[derive(Clone, Copy)]
pub(crate) struct Copied<V: Simd>(*const V::Elem);

impl<V: Simd> Copied<V> {
    /// # Safety
    ///
    /// `part + LANES` must be at most [`BLOCK`].
    #[inline(always)]
    pub(crate) unsafe fn new(x: &[Pixel<V::Elem>], part: usize) -> Self {
        // SAFETY: inside of the first pixel; no pixel is read of an empty slice.
        Self(unsafe { elements(x).add(part) })
    }
}

impl<V: Simd> Read<V> for Copied<V> {
    #[inline(always)]
    unsafe fn at(self, pixel: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(self.0.add(pixel * BLOCK)) }
    }
    #[inline(always)]
    unsafe fn ask(self, pixel: usize) {
        // SAFETY: no memory is read.
        unsafe { V::prefetch(self.0.wrapping_add(pixel * BLOCK)) }
    }
}

/// A part of the numbers of a block.
#[inline(always)]
unsafe fn lanes<V: Simd>(numbers: &[Pixel<V::Elem>], block: usize, part: usize) -> V {
    debug_assert!(part + V::LANES <= BLOCK);
    // SAFETY: `part` is a part of a pixel.
    unsafe { V::load(numbers[block].0.as_ptr().add(part)) }
}

/// `act((x - centre) * scale + shift)`.
#[derive(Clone, Copy)]
pub(crate) struct Normalised<V: Simd> {
    x: Copied<V>,
    centre: V,
    scale: V,
    shift: V,
    relu: bool,
}

impl<V: Simd> Normalised<V> {
    /// # Safety
    ///
    /// `part + LANES` must be at most [`BLOCK`].
    #[inline(always)]
    pub(crate) unsafe fn new(
        x: &[Pixel<V::Elem>],
        normal: &Normal<V::Elem>,
        block: usize,
        act: Activation,
        part: usize,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                x: Copied::new(x, part),
                centre: lanes(&normal.centre, block, part),
                scale: lanes(&normal.scale, block, part),
                shift: lanes(&normal.shift, block, part),
                relu: act == Activation::Relu,
            }
        }
    }
}

impl<V: Simd> Read<V> for Normalised<V> {
    #[inline(always)]
    unsafe fn at(self, pixel: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let y = self.x.at(pixel).sub(self.centre).mul_add(self.scale, self.shift);
            if self.relu { y.positive() } else { y }
        }
    }
    #[inline(always)]
    unsafe fn ask(self, pixel: usize) {
        // SAFETY: no memory is read.
        unsafe { self.x.ask(pixel) }
    }
}

/// `by_gradient * g + by_value * (x - centre) + constant`.
#[derive(Clone, Copy)]
pub(crate) struct Sloped<V: Simd> {
    g: Copied<V>,
    x: Copied<V>,
    centre: V,
    by_gradient: V,
    by_value: V,
    constant: V,
}

impl<V: Simd> Sloped<V> {
    /// # Safety
    ///
    /// `part + LANES` must be at most [`BLOCK`].
    #[inline(always)]
    pub(crate) unsafe fn new(
        (g, x): (&Pixels<V::Elem>, &Pixels<V::Elem>),
        slope: &Slope<V::Elem>,
        block: usize,
        part: usize,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                g: Copied::new(g, part),
                x: Copied::new(x, part),
                centre: lanes(&slope.centre, block, part),
                by_gradient: lanes(&slope.by_gradient, block, part),
                by_value: lanes(&slope.by_value, block, part),
                constant: lanes(&slope.constant, block, part),
            }
        }
    }
}

impl<V: Simd> Read<V> for Sloped<V> {
    #[inline(always)]
    unsafe fn at(self, pixel: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let rest = self.x.at(pixel).sub(self.centre).mul_add(self.by_value, self.constant);
            self.g.at(pixel).mul_add(self.by_gradient, rest)
        }
    }
    #[inline(always)]
    unsafe fn ask(self, pixel: usize) {
        // SAFETY: no memory is read.
        unsafe {
            self.g.ask(pixel);
            self.x.ask(pixel);
        }
    }
}

/// Brings a new part of a map's gradient to its final form, in place: `mask(new + old)`; returns its sums if the map
/// is normalised.
#[inline(always)]
pub(crate) fn settle<T: Float, V: Simd<Elem = T>>(
    node: &Node<T>,
    old: Option<&[Pixel<T>]>,
    (image, block): (usize, usize),
    to: &mut [Pixel<T>],
) -> Partial<T> {
    let mut partial = Partial::zero();
    let x = node.block(image, block);
    let old = old.map(|old| {
        let from = image * node.dims.image() + block * node.dims.area();
        &old[from..from + to.len()]
    });
    debug_assert_eq!(to.len(), x.len());
    if old.is_none() && node.act == Activation::None && node.normal.is_none() {
        return partial;
    }
    for part in (0..BLOCK).step_by(V::LANES) {
        // SAFETY: all slices have the length of a block, and `part` is a part of a pixel.
        unsafe {
            let old = old.map(|old| Copied::<V>::new(old, part));
            let relu = node.act == Activation::Relu;
            match &node.normal {
                Some(normal) => {
                    let value = Normalised::<V>::new(x, normal, block, node.act, part);
                    masked_sums(value, (relu, old), to, part, &mut partial);
                }
                None => {
                    let (value, target) = (Copied::<V>::new(x, part), elements_mut(to));
                    for i in 0..to.len() {
                        let at = target.add(i * BLOCK + part);
                        let g = match old {
                            Some(old) => V::load(at).add(old.at(i)),
                            None => V::load(at),
                        };
                        if relu { g.where_positive(value.at(i)) } else { g }.store(at);
                    }
                }
            }
        }
    }
    partial
}

/// Adds what gathered before to a block of the gradient of a normalised map, masks and sums it.
///
/// # Safety
///
/// `value` and `old` must have as many pixels as `to`, and `part` be a part of a pixel.
#[inline(always)]
unsafe fn masked_sums<V: Simd>(
    value: Normalised<V>,
    (relu, old): (bool, Option<Copied<V>>),
    to: &mut [Pixel<V::Elem>],
    part: usize,
    partial: &mut Partial<V::Elem>,
) {
    let (target, len) = (elements_mut(to), to.len());
    for from in (0..len).step_by(CHUNK) {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = V::splat(V::Elem::default());
            let (mut sums, mut products) = (zero, zero);
            for i in from..len.min(from + CHUNK) {
                let at = target.add(i * BLOCK + part);
                let mut g = V::load(at);
                if let Some(old) = old {
                    g = g.add(old.at(i));
                }
                if relu {
                    g = g.where_positive(value.at(i));
                }
                g.store(at);
                sums = sums.add(g);
                products = g.mul_add(value.x.at(i).sub(value.centre), products);
            }
            partial.add(sums, products, part);
        }
    }
}

/// Sums of a block of a gradient that is masked already.
#[inline(always)]
pub(crate) fn reduce<T: Float, V: Simd<Elem = T>>(
    node: &Node<T>,
    (image, block): (usize, usize),
    g: &[Pixel<T>],
) -> Partial<T> {
    let mut partial = Partial::zero();
    let Some(normal) = &node.normal else { return partial };
    let x = node.block(image, block);
    for part in (0..BLOCK).step_by(V::LANES) {
        for from in (0..g.len()).step_by(CHUNK) {
            // SAFETY: both slices hold a block, and `part` is a part of a pixel.
            unsafe {
                let (g_at, x_at) = (Copied::<V>::new(g, part), Copied::<V>::new(x, part));
                let centre: V = lanes(&normal.centre, block, part);
                let zero = V::splat(T::default());
                let (mut sums, mut products) = (zero, zero);
                for i in from..g.len().min(from + CHUNK) {
                    let g = g_at.at(i);
                    sums = sums.add(g);
                    products = g.mul_add(x_at.at(i).sub(centre), products);
                }
                partial.add(sums, products, part);
            }
        }
    }
    partial
}

/// Adds the sums of a part of the channels to `to`, in `f64`: they often nearly cancel.
///
/// # Safety
///
/// The reader must have `len` pixels, and `part` be a part of a pixel.
#[inline(always)]
pub(crate) unsafe fn total<V: Simd, R: Read<V>>(reader: R, len: usize, part: usize, to: &mut [f64; BLOCK]) {
    for i in 0..len {
        let mut lanes = [V::Elem::default(); BLOCK];
        // SAFETY: the caller's promise; a vector is no longer than a block.
        unsafe { reader.at(i).store(lanes.as_mut_ptr()) };
        for (to, &lane) in to[part..part + V::LANES].iter_mut().zip(&lanes) {
            *to += lane.wide();
        }
    }
}

/// Sums of `x - shift` and its square over a block; the shift is the first pixel, which keeps a large mean out.
#[inline(always)]
pub(crate) fn moments<T: Float, V: Simd<Elem = T>>(x: &[Pixel<T>]) -> Partial<T> {
    let mut partial = Partial { shift: x[0], ..Partial::zero() };
    for part in (0..BLOCK).step_by(V::LANES) {
        for from in (0..x.len()).step_by(CHUNK) {
            // SAFETY: `part` is a part of a pixel.
            unsafe {
                let value = Copied::<V>::new(x, part);
                let shift = value.at(0);
                let zero = V::splat(T::default());
                let (mut sums, mut squares) = (zero, zero);
                for i in from..x.len().min(from + CHUNK) {
                    let d = value.at(i).sub(shift);
                    sums = sums.add(d);
                    squares = d.mul_add(d, squares);
                }
                partial.add(sums, squares, part);
            }
        }
    }
    partial
}
