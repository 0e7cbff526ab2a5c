//! Memory of feature maps: pixels of sixteen channels in buffers that are used again.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::simd::Float;

/// Channels that lie together.
pub(crate) const BLOCK: usize = 16;

/// One position of a block of channels: a cache line of `f32`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Pixel<T>(pub(crate) [T; BLOCK]);

impl<T: Float> Pixel<T> {
    pub(crate) fn zero() -> Self {
        Self([T::default(); BLOCK])
    }
}

/// Some pixels.
pub(crate) type Pixels<T> = [Pixel<T>];

/// The elements of pixels.
pub(crate) fn elements<T>(pixels: &[Pixel<T>]) -> *const T {
    pixels.as_ptr().cast()
}

/// The elements of pixels, to be written.
pub(crate) fn elements_mut<T>(pixels: &mut [Pixel<T>]) -> *mut T {
    pixels.as_mut_ptr().cast()
}

/// Pixels whose memory goes back to a store of this crate when they are dropped.
///
/// A training step asks for the same sizes again and again; fresh memory of the system costs several times the
/// arithmetic that is done on it.
#[derive(Debug)]
pub(crate) struct Buffer<T: Float> {
    pixels: Vec<Pixel<T>>,
    len: usize,
}

impl<T: Float> Buffer<T> {
    /// A buffer with values left over from earlier use: the caller overwrites all of them.
    pub(crate) fn stale(len: usize) -> Self {
        let capacity = class(len);
        let pixels = T::store().take(capacity).unwrap_or_else(|| vec![Pixel::zero(); capacity]);
        let mut buffer = Self { pixels, len };
        if cfg!(debug_assertions) {
            // A pixel that is forgotten shows in the tests.
            buffer.fill(Pixel([T::of(f64::NAN); BLOCK]));
        }
        buffer
    }
}

impl<T: Float> Buffer<T> {
    /// A buffer of zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::stale(len);
        buffer.fill(Pixel::zero());
        buffer
    }
}

impl<T: Float> Deref for Buffer<T> {
    type Target = [Pixel<T>];
    fn deref(&self) -> &[Pixel<T>] {
        &self.pixels[..self.len]
    }
}

impl<T: Float> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [Pixel<T>] {
        &mut self.pixels[..self.len]
    }
}

impl<T: Float> Drop for Buffer<T> {
    fn drop(&mut self) {
        T::store().give(std::mem::take(&mut self.pixels));
    }
}

/// Lengths in steps of an eighth of their power of two, so that similar sizes share memory.
fn class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.next_multiple_of(step)
}

/// Buffers that nobody uses at the moment.
#[derive(Debug)]
pub(crate) struct Store<T>(Mutex<Idle<T>>);

/// Idle buffers by length; all sizes in pixels.
///
/// Together with what is in use it is at most twice what was ever in use at one time, so that a change of sizes (another
/// batch size, another network) at most doubles the memory; what has waited longest goes first.
/// A tighter bound would cost memory that the next step needs: the sizes differ from phase to phase of a step.
#[derive(Debug)]
struct Idle<T> {
    classes: BTreeMap<usize, Class<T>>,
    idle: usize,
    live: usize,
    most: usize,
    clock: u64,
}

#[derive(Debug)]
struct Class<T> {
    buffers: Vec<Vec<Pixel<T>>>,
    used: u64,
}

impl<T> Idle<T> {
    const EMPTY: Self = Self { classes: BTreeMap::new(), idle: 0, live: 0, most: 0, clock: 0 };

    fn take(&mut self, capacity: usize) -> Option<Vec<Pixel<T>>> {
        self.live += capacity;
        self.most = self.most.max(self.live);
        self.clock += 1;
        let class = self.classes.get_mut(&capacity)?;
        class.used = self.clock;
        let buffer = class.buffers.pop()?;
        self.idle -= capacity;
        Some(buffer)
    }

    fn give(&mut self, pixels: Vec<Pixel<T>>) {
        let capacity = pixels.len();
        self.clock += 1;
        let class = self.classes.entry(capacity).or_insert(Class { buffers: Vec::new(), used: 0 });
        class.used = self.clock;
        class.buffers.push(pixels);
        self.live = self.live.saturating_sub(capacity);
        self.idle += capacity;
        while self.idle + self.live > 2 * self.most && self.forget_one() {}
    }

    /// Drops a buffer of the class that has waited longest.
    fn forget_one(&mut self) -> bool {
        let waiting = self.classes.iter_mut().filter(|(_, class)| !class.buffers.is_empty());
        let Some((capacity, class)) = waiting.min_by_key(|(_, class)| class.used) else { return false };
        class.buffers.pop();
        self.idle -= capacity;
        true
    }

    /// Drops everything that is idle.
    fn clear(&mut self) {
        self.classes.clear();
        self.idle = 0;
        self.most = self.live;
    }
}

impl<T> Store<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Idle::EMPTY))
    }

    /// A thread that panics between two lines of the store leaves it usable.
    fn lock(&self) -> MutexGuard<'_, Idle<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, capacity: usize) -> Option<Vec<Pixel<T>>> {
        self.lock().take(capacity)
    }

    fn give(&self, pixels: Vec<Pixel<T>>) {
        if !pixels.is_empty() {
            self.lock().give(pixels);
        }
    }
}

/// Returns the memory that feature maps have used and no longer use to the allocator.
///
/// It is kept otherwise, because the next training step asks for the same sizes: with what is in use, at most twice as
/// much as was ever in use at one time.
pub fn release_memory() {
    f32::store().lock().clear();
    f64::store().lock().clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again() {
        // A size of its own: other tests run beside this one.
        let len = 12_345;
        let first = Buffer::<f64>::stale(len);
        let address = first.as_ptr();
        drop(first);
        let again = Buffer::<f64>::stale(len - 1);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again.len(), len - 1);
    }

    #[test]
    fn idle_memory_is_bounded() {
        let mut idle = Idle::<f32>::EMPTY;
        let buffer = |len| vec![Pixel([0.0; BLOCK]); len];
        for len in [8, 16, 32, 64, 40] {
            assert!(idle.take(len).is_none());
            idle.give(buffer(len));
            assert!(idle.idle <= 2 * idle.most);
        }
        // The three small ones have waited longest.
        assert!(idle.take(32).is_none());
        idle.give(buffer(32));
        assert!(idle.take(32).is_some());
        idle.clear();
        assert_eq!((idle.idle, idle.classes.len()), (0, 0));
    }

    #[test]
    fn classes_waste_little() {
        for len in 1..5000 {
            let class = class(len);
            assert!(class >= len && class <= len + len / 8, "{len} became {class}");
        }
    }

    #[test]
    fn pixels_fill_cache_lines() {
        assert_eq!(size_of::<Pixel<f32>>(), 64);
        assert_eq!(Buffer::<f32>::stale(3).as_ptr().align_offset(64), 0);
    }
}
