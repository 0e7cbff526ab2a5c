//! Bilinear and nearest resizing.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{LIMIT, dims4, float, parameter};
use crate::raw::{by_dtype, dtype, slice, tensor, with_slice};
use crate::simd::Float;
use crate::{Result, fallback};

/// The two source positions of an output position and their weights.
#[derive(Clone, Copy)]
struct Tap {
    at: [usize; 2],
    weight: [f64; 2],
}

fn nearest_taps(input: usize, output: usize) -> Vec<Tap> {
    (0..output).map(|i| Tap { at: [i * input / output; 2], weight: [1.0, 0.0] }).collect()
}

fn bilinear_taps(input: usize, output: usize) -> Vec<Tap> {
    let scale = input as f64 / output as f64;
    (0..output)
        .map(|i| {
            let source = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
            let low = (source.floor() as usize).min(input - 1);
            let share = source - low as f64;
            Tap { at: [low, (low + 1).min(input - 1)], weight: [1.0 - share, share] }
        })
        .collect()
}

struct Resize {
    name: &'static str,
    rows: Vec<Tap>,
    cols: Vec<Tap>,
}

impl Resize {
    fn forward_plane<T: Float>(&self, width: usize, x: &[T], out: &mut [T]) {
        for (row, out) in self.rows.iter().zip(out.chunks_mut(self.cols.len())) {
            let [top, bottom] = row.at.map(|r| &x[r * width..(r + 1) * width]);
            let [wt, wb] = row.weight.map(T::of);
            for (out, col) in out.iter_mut().zip(&self.cols) {
                let [l, r] = col.at;
                let [wl, wr] = col.weight.map(T::of);
                *out = wt * (wl * top[l] + wr * top[r]) + wb * (wl * bottom[l] + wr * bottom[r]);
            }
        }
    }

    fn backward_plane<T: Float>(&self, width: usize, g: &[T], out: &mut [T]) {
        for (row, g) in self.rows.iter().zip(g.chunks(self.cols.len())) {
            for (&g, col) in g.iter().zip(&self.cols) {
                for (r, wr) in row.at.into_iter().zip(row.weight) {
                    for (c, wc) in col.at.into_iter().zip(col.weight) {
                        out[r * width + c] += g * T::of(wr) * T::of(wc);
                    }
                }
            }
        }
    }

    fn cells(&self) -> usize {
        self.rows.len() * self.cols.len()
    }
}

/// Maps each plane of `from` elements to one of `to` elements.
fn planes<T: Float>(x: &[T], from: usize, to: usize, f: impl Fn(&[T], &mut [T]) + Sync) -> Vec<T> {
    let mut out = vec![T::default(); x.len() / from * to];
    out.par_chunks_mut(to).zip(x.par_chunks(from)).with_min_len(8).for_each(|(out, x)| f(x, out));
    out
}

impl CustomOp1 for Resize {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l.shape().dims4()?;
        by_dtype!(self.name, dtype(s), T => {
            let x = slice::<T>(s, l)?;
            let out = planes(x, h * w, self.cells(), |x, out| self.forward_plane(w, x, out));
            let shape = (b, c, self.rows.len(), self.cols.len());
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), shape.into()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let g = g.contiguous()?;
        by_dtype!(self.name, x.dtype(), T => {
            let out = with_slice::<T, _>(&g, |g| {
                planes(g, self.cells(), h * w, |g, out| self.backward_plane(w, g, out))
            })?;
            tensor(out, x.shape()).map(Some)
        })
    }
}

/// Resizes maps by bilinear interpolation: `[B, C, H, W]` to `[B, C, size[0], size[1]]`.
///
/// Half-pixel centres and no antialiasing, PyTorch's `align_corners=False`: an output position `i` reads the source
/// position `max((i + 0.5) * in / out - 0.5, 0)`, with the right and lower neighbour clamped to the border.
///
/// # Errors
///
/// A rank other than 4, an empty input, a size of 0.
pub fn resize_bilinear2d(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    resize("resize_bilinear2d", bilinear_taps, x, size)
}

/// Resizes maps by the nearest position: `[B, C, H, W]` to `[B, C, size[0], size[1]]`, up or down, by any factor.
///
/// The rule of PyTorch's `mode="nearest"`, exactly: the output position `i` reads the source position `floor(i * in / out)`
/// (PyTorch rounds the ratio first, which moves a pixel for a few odd pairs of sizes, 14 to 46 for example).
///
/// # Errors
///
/// A rank other than 4, an empty input, a size of 0.
pub fn resize_nearest2d(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    resize("resize_nearest2d", nearest_taps, x, size)
}

fn resize(name: &'static str, taps: fn(usize, usize) -> Vec<Tap>, x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    float(name, x)?;
    let [_, _, h, w] = dims4(name, "input", x)?;
    if size.iter().any(|s| !(1..=LIMIT).contains(s)) {
        return Err(parameter(name, "size", "from 1 to 2^20 in both directions", size));
    }
    if !x.device().is_cpu() {
        return fallback::on_host(x, |x| resize(name, taps, x, size));
    }
    Ok(x.contiguous()?.apply_op1(Resize { name, rows: taps(h, size[0]), cols: taps(w, size[1]) })?)
}
