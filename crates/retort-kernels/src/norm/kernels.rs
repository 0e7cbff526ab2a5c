//! Statistics, normalisation and gradient, channel by channel.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::BatchStats;
use crate::pointwise::relu_of;
use crate::raw::filled;
use crate::simd::{Float, Kernel, Simd};
use crate::{Activation, InstructionSet};

/// Partial sums that run side by side; fixed, so that every instruction set adds in the same order.
const LANES: usize = 16;

/// The input as `images` times `channels` runs of `run` elements.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    images: usize,
    channels: usize,
    run: usize,
}

impl Maps {
    /// From the sizes of a checked `[B, C, ..]` tensor.
    pub(super) fn of(dims: &[usize]) -> Self {
        Self { images: dims[0], channels: dims[1], run: dims[2..].iter().product() }
    }

    /// Where the run of a channel in an image starts.
    #[inline(always)]
    fn at(self, image: usize, channel: usize) -> usize {
        (image * self.channels + channel) * self.run
    }

    fn count(self) -> f64 {
        (self.images * self.run) as f64
    }

    /// The numbers that each channel is normalised with.
    pub(super) fn channels<T: Float>(
        self,
        stats: &BatchStats,
        (weight, bias): (&[T], &[T]),
        eps: f64,
    ) -> Vec<Channel<T>> {
        (0..self.channels)
            .map(|c| {
                let inverse = 1.0 / (stats.var[c] + eps).sqrt();
                let centre = T::of(stats.mean[c]);
                let scale = inverse * weight[c].wide();
                // The part of the mean that `T` cannot hold, so that a large mean costs no digits.
                let rest = stats.mean[c] - centre.wide();
                Channel {
                    centre,
                    scale: T::of(scale),
                    shift: T::of(bias[c].wide() - rest * scale),
                    inverse,
                    mean: stats.mean[c],
                }
            })
            .collect()
    }
}

/// `y = (x - centre) * scale + shift`.
#[derive(Clone, Copy)]
pub(super) struct Channel<T> {
    centre: T,
    scale: T,
    shift: T,
    /// `1 / sqrt(var + eps)`.
    inverse: f64,
    mean: f64,
}

impl<T: Float> Channel<T> {
    #[inline(always)]
    fn apply(&self, x: T) -> T {
        (x - self.centre) * self.scale + self.shift
    }

    /// The gradient behind the activation: forward and backward evaluate the same expression, hence the same mask.
    #[inline(always)]
    fn masked(&self, x: T, g: T, act: Activation) -> T {
        if act == Activation::Relu && self.apply(x) <= T::default() { T::default() } else { g }
    }
}

/// Sums over a channel of `x - shift` and its square.
struct Moments<'a, T> {
    maps: Maps,
    channel: usize,
    x: &'a [T],
}

impl<T: Float> Kernel<T> for Moments<'_, T> {
    /// Mean and biased variance.
    type Output = (f64, f64);

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> (f64, f64) {
        let maps = self.maps;
        // Any value near the data will do: it keeps the square of a large mean out of the sums.
        let shift = self.x[maps.at(0, self.channel)].wide();
        let (mut sums, mut squares) = ([0f64; LANES], [0f64; LANES]);
        // Apart from the arrays: an index that is not a constant would keep those in memory.
        let (mut sum, mut square) = (0f64, 0f64);
        for image in 0..maps.images {
            let from = maps.at(image, self.channel);
            let run = &self.x[from..from + maps.run];
            let (chunks, rest) = run.as_chunks::<LANES>();
            for chunk in chunks {
                for i in 0..LANES {
                    let d = chunk[i].wide() - shift;
                    sums[i] += d;
                    squares[i] += d * d;
                }
            }
            for x in rest {
                let d = x.wide() - shift;
                sum += d;
                square += d * d;
            }
        }
        sum += sums.iter().sum::<f64>();
        square += squares.iter().sum::<f64>();
        let offset = sum / maps.count();
        // `f64::max` would turn a NaN into 0.
        let var = square / maps.count() - offset * offset;
        (shift + offset, if var < 0.0 { 0.0 } else { var })
    }
}

pub(super) fn statistics<T: Float>(set: InstructionSet, maps: Maps, x: &[T]) -> BatchStats {
    let (mean, var) =
        (0..maps.channels).into_par_iter().map(|channel| T::dispatch(set, Moments { maps, channel, x })).unzip();
    BatchStats { mean, var, count: maps.images * maps.run }
}

/// Normalises the runs of one image.
struct Normalise<'a, T> {
    maps: Maps,
    x: &'a [T],
    channels: &'a [Channel<T>],
    act: Activation,
    to: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Kernel<T> for Normalise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let run = self.maps.run;
        let planes = self.x.chunks_exact(run).zip(self.to.chunks_exact_mut(run));
        for ((x, to), channel) in planes.zip(self.channels) {
            match self.act {
                Activation::None => {
                    for (to, &x) in to.iter_mut().zip(x) {
                        to.write(channel.apply(x));
                    }
                }
                Activation::Relu => {
                    for (to, &x) in to.iter_mut().zip(x) {
                        to.write(relu_of(channel.apply(x)));
                    }
                }
            }
        }
    }
}

pub(super) fn forward<T: Float>(
    set: InstructionSet,
    maps: Maps,
    x: &[T],
    channels: &[Channel<T>],
    act: Activation,
) -> Vec<T> {
    let image = maps.channels * maps.run;
    // SAFETY: every element of every image is written.
    unsafe {
        filled(x.len(), |y| {
            y.par_chunks_mut(image)
                .zip(x.par_chunks(image))
                .for_each(|(to, x)| T::dispatch(set, Normalise { maps, x, channels, act, to }));
        })
    }
}

/// Sums over a channel of the gradient and of its product with the normalised input.
struct Reduce<'a, T> {
    maps: Maps,
    channel: usize,
    x: &'a [T],
    g: &'a [T],
    numbers: &'a Channel<T>,
    act: Activation,
}

impl<T: Float> Kernel<T> for Reduce<'_, T> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> (f64, f64) {
        let maps = self.maps;
        let numbers = *self.numbers;
        let (mut sums, mut products) = ([0f64; LANES], [0f64; LANES]);
        let (mut sum, mut product) = (0f64, 0f64);
        for image in 0..maps.images {
            let from = maps.at(image, self.channel);
            let x = &self.x[from..from + maps.run];
            let g = &self.g[from..from + maps.run];
            let (x, x_rest) = x.as_chunks::<LANES>();
            let (g, g_rest) = g.as_chunks::<LANES>();
            for (x, g) in x.iter().zip(g) {
                for i in 0..LANES {
                    let g = numbers.masked(x[i], g[i], self.act).wide();
                    sums[i] += g;
                    products[i] += g * (x[i].wide() - numbers.mean);
                }
            }
            for (&x, &g) in x_rest.iter().zip(g_rest) {
                let g = numbers.masked(x, g, self.act).wide();
                sum += g;
                product += g * (x.wide() - numbers.mean);
            }
        }
        sum += sums.iter().sum::<f64>();
        product += products.iter().sum::<f64>();
        (sum, product * numbers.inverse)
    }
}

/// `dx = a * g + b * (x - centre) + c` for one image.
struct InputGradient<'a, T> {
    maps: Maps,
    x: &'a [T],
    g: &'a [T],
    channels: &'a [Channel<T>],
    factors: &'a [[T; 3]],
    act: Activation,
    to: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Kernel<T> for InputGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let run = self.maps.run;
        let planes = self.x.chunks_exact(run).zip(self.g.chunks_exact(run));
        let planes = planes.zip(self.to.chunks_exact_mut(run));
        for (((x, g), to), (channel, &[a, b, c])) in planes.zip(self.channels.iter().zip(self.factors)) {
            for ((to, &x), &g) in to.iter_mut().zip(x).zip(g) {
                to.write(a * channel.masked(x, g, self.act) + (b * (x - channel.centre) + c));
            }
        }
    }
}

/// The gradients of the three arguments.
pub(super) struct Gradients<T> {
    pub(super) input: Option<Vec<T>>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Vec<T>,
}

/// With `h = (x - mean) / s`: `dbias = sum g`, `dweight = sum g h`, and
/// `dx = weight / s * (g - (dbias + h * dweight) / count)`, without the last two terms for given statistics.
pub(super) fn backward<T: Float>(
    set: InstructionSet,
    maps: Maps,
    (x, g): (&[T], &[T]),
    channels: &[Channel<T>],
    (train, wanted, act): (bool, bool, Activation),
) -> Gradients<T> {
    assert_eq!(x.len(), g.len(), "an input and its gradient");
    let sums: Vec<(f64, f64)> = channels
        .par_iter()
        .enumerate()
        .map(|(channel, numbers)| T::dispatch(set, Reduce { maps, channel, x, g, numbers, act }))
        .collect();
    let input = wanted.then(|| {
        let factors: Vec<[T; 3]> = channels
            .iter()
            .zip(&sums)
            .map(|(channel, &(db, dw))| {
                let a = channel.scale.wide();
                if !train {
                    return [channel.scale, T::default(), T::default()];
                }
                let b = -a * dw * channel.inverse / maps.count();
                let rest = channel.centre.wide() - channel.mean;
                [channel.scale, T::of(b), T::of(b * rest - a * db / maps.count())]
            })
            .collect();
        let image = maps.channels * maps.run;
        let factors = &factors;
        // SAFETY: every element of every image is written.
        unsafe {
            filled(x.len(), |dx| {
                dx.par_chunks_mut(image).zip(x.par_chunks(image).zip(g.par_chunks(image))).for_each(|(to, (x, g))| {
                    T::dispatch(set, InputGradient { maps, x, g, channels, factors, act, to });
                });
            })
        }
    });
    Gradients {
        input,
        weight: sums.iter().map(|s| T::of(s.1)).collect(),
        bias: sums.iter().map(|s| T::of(s.0)).collect(),
    }
}
