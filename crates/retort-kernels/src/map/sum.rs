//! Adds two maps, with the normalisations and activations that they still have before them.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffer::{BLOCK, Buffer, Pixel, elements_mut};
use super::node::{Node, Values};
use super::pass::{Copied, Normalised, Partial, Read, moments};
use super::tape::Backward;
use crate::simd::{Float, Kernel, Simd};
use crate::{Activation, InstructionSet, isa};

/// One block of `act(a + b)`; returns its moments.
struct Sum<'a, T: Float> {
    a: &'a Node<T>,
    b: Option<&'a Node<T>>,
    act: Activation,
    at: (usize, usize),
    to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Sum<'_, T> {
    type Output = Partial<T>;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Partial<T> {
        Values { node: self.a, at: self.at, to: self.to }.run::<V>();
        let (image, block) = self.at;
        for part in (0..BLOCK).step_by(V::LANES) {
            // SAFETY: both maps have the same sizes, and `part` is a part of a pixel.
            unsafe {
                match self.b {
                    Some(b) => {
                        let x = b.block(image, block);
                        match &b.normal {
                            None => add(Copied::<V>::new(x, part), self.act, self.to, part),
                            Some(normal) => {
                                add(Normalised::<V>::new(x, normal, block, b.act, part), self.act, self.to, part);
                            }
                        }
                    }
                    None if self.act == Activation::Relu => {
                        let target = elements_mut(self.to);
                        for i in 0..self.to.len() {
                            let at = target.add(i * BLOCK + part);
                            V::load(at).positive().store(at);
                        }
                    }
                    None => {}
                }
            }
        }
        if gathers(self.act) { moments::<T, V>(self.to) } else { Partial::zero() }
    }
}

/// Whether the moments of a sum are gathered on the way: networks normalise a sum before its activation or not at all;
/// where one does otherwise, its normalisation makes a pass of its own.
fn gathers(act: Activation) -> bool {
    act == Activation::None
}

/// # Safety
///
/// The reader must have as many pixels as the target, and `part` be a part of a pixel.
#[inline(always)]
unsafe fn add<V: Simd, R: Read<V>>(b: R, act: Activation, to: &mut [Pixel<V::Elem>], part: usize) {
    let target = elements_mut(to);
    for i in 0..to.len() {
        // SAFETY: the caller's promise.
        unsafe {
            let at = target.add(i * BLOCK + part);
            let y = V::load(at).add(b.at(i));
            if act == Activation::Relu { y.positive() } else { y }.store(at);
        }
    }
}

/// `act(a + b)` as a map with plain numbers; without `b`, `act(a)`.
pub(super) fn sum<T: Float>(set: InstructionSet, a: &Node<T>, b: Option<&Node<T>>, act: Activation) -> Node<T> {
    let (dims, blocks) = (a.dims, a.dims.blocks());
    let mut values = Buffer::stale(dims.len());
    let mut partials = vec![Partial::zero(); dims.batch * blocks];
    values.par_chunks_mut(dims.area()).zip(&mut partials).enumerate().for_each(|(i, (to, partial))| {
        *partial = T::dispatch(set, Sum { a, b, act, at: (i / blocks, i % blocks), to });
    });
    let node = Node::new(dims, Arc::new(values), None, act);
    if gathers(act) {
        let stats = node.merge(&partials);
        node.stats.get_or_init(|| stats);
    }
    node
}

/// From a sum back to its parts.
pub(super) struct Parts<T: Float> {
    pub(super) to: Arc<Node<T>>,
    /// The maps that want a gradient.
    pub(super) from: Vec<Arc<Node<T>>>,
}

impl<T: Float> Backward for Parts<T> {
    fn backward(&self, _: [&Tensor; 2]) -> candle_core::Result<[Option<Tensor>; 2]> {
        let set = isa::current();
        if let Some(gradient) = self.to.take_plain(set) {
            for part in &self.from {
                part.give(set, Arc::clone(&gradient), None);
            }
        }
        Ok([None, None])
    }
}
