//! Pooling: maximum, average, adaptive and global.
//!
//! All of them reduce windows that are products of a row range and a column range, so one list of ranges for each
//! axis describes every variant.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{LIMIT, dims4, float, parameter, shape};
use crate::raw::{by_dtype, dtype, slice, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{Result, fallback, isa};

/// Window, step and border of a pooling, `[vertical, horizontal]` each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Pool2dSpec {
    /// Window.
    pub kernel: [usize; 2],
    /// Step from window to window.
    pub stride: [usize; 2],
    /// Border on each side; at most half of the window.
    pub padding: [usize; 2],
}

impl Pool2dSpec {
    /// The same numbers in both directions.
    #[must_use]
    pub fn new(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2] }
    }
}

/// What each output cell covers.
pub(crate) struct Windows {
    pub(crate) rows: Vec<Range<usize>>,
    pub(crate) cols: Vec<Range<usize>>,
    /// Divisor of an average when padding counts; 0: the number of covered elements.
    fixed_count: usize,
    /// Windows of one size at one distance.
    regular: Option<Pool2dSpec>,
}

impl Windows {
    pub(crate) fn sliding(op: &'static str, input: [usize; 2], spec: &Pool2dSpec, count_pad: bool) -> Result<Self> {
        let Pool2dSpec { kernel, stride, padding } = *spec;
        let axis = |i: usize| -> Result<Vec<Range<usize>>> {
            let (n, k, s, p) = (input[i], kernel[i], stride[i], padding[i]);
            if !(1..=LIMIT).contains(&k) || !(1..=LIMIT).contains(&s) {
                return Err(parameter(op, "kernel and stride", "from 1 to 2^20", spec));
            }
            if p > k / 2 {
                return Err(parameter(op, "padding", format!("at most half of the kernel {k}"), p));
            }
            if n + 2 * p < k {
                return Err(shape(op, format!("padded input of at least {kernel:?}"), input));
            }
            let cells = (n + 2 * p - k) / s + 1;
            Ok((0..cells).map(|c| (c * s).saturating_sub(p)..(c * s + k - p).min(n)).collect())
        };
        let (rows, cols) = (axis(0)?, axis(1)?);
        let fixed_count = if count_pad { kernel[0] * kernel[1] } else { 0 };
        Ok(Self { rows, cols, fixed_count, regular: Some(*spec) })
    }

    pub(crate) fn adaptive(op: &'static str, input: [usize; 2], size: [usize; 2]) -> Result<Self> {
        if size.iter().any(|s| !(1..=LIMIT).contains(s)) {
            return Err(parameter(op, "size", "from 1 to 2^20 in both directions", size));
        }
        let axis = |n: usize, cells: usize| -> Vec<Range<usize>> {
            (0..cells).map(|c| c * n / cells..((c + 1) * n).div_ceil(cells)).collect()
        };
        Ok(Self { rows: axis(input[0], size[0]), cols: axis(input[1], size[1]), fixed_count: 0, regular: None })
    }

    fn cells(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    pub(crate) fn count(&self, rows: &Range<usize>, cols: &Range<usize>) -> usize {
        if self.fixed_count > 0 { self.fixed_count } else { rows.len() * cols.len() }
    }
}

/// Channel planes a task works on.
fn planes_per_task(cells: usize) -> usize {
    (4096 / cells.max(1)).max(1)
}

/// The maxima of planes of `size` elements and their places.
struct Maxima<'a, T> {
    windows: &'a Windows,
    size: [usize; 2],
    x: &'a [T],
    values: &'a mut [T],
    places: &'a mut [u32],
}

impl<T: Float> Kernel<T> for Maxima<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let cells = self.windows.cells();
        let out = self.values.chunks_mut(cells).zip(self.places.chunks_mut(cells));
        for ((values, places), x) in out.zip(self.x.chunks(self.size[0] * self.size[1])) {
            match &self.windows.regular {
                Some(spec) => regular_plane(self.windows, spec, self.size[1], x, values, places),
                None => plane(self.windows, self.size[1], x, values, places),
            }
        }
    }
}

/// The largest element of each window and its place: the first one of equals, the last NaN if there is one.
#[inline(always)]
fn plane<T: Float>(windows: &Windows, width: usize, x: &[T], values: &mut [T], places: &mut [u32]) {
    let mut cell = 0;
    for rows in &windows.rows {
        for cols in &windows.cols {
            let mut best = T::NEG_INFINITY;
            let mut place = rows.start * width + cols.start;
            for row in rows.clone() {
                let line = &x[row * width..(row + 1) * width];
                for col in cols.clone() {
                    let v = line[col];
                    if v > best || v.nan() {
                        best = v;
                        place = row * width + col;
                    }
                }
            }
            values[cell] = best;
            places[cell] = place as u32;
            cell += 1;
        }
    }
}

/// The same for windows of one size: one pass over a row of outputs for each element of the window, in its order.
#[inline(always)]
fn regular_plane<T: Float>(
    windows: &Windows,
    spec: &Pool2dSpec,
    width: usize,
    x: &[T],
    values: &mut [T],
    places: &mut [u32],
) {
    let (step, pad, cells) = (spec.stride[1], spec.padding[1], windows.cols.len());
    let out = values.chunks_mut(cells).zip(places.chunks_mut(cells));
    for (rows, (values, places)) in windows.rows.iter().zip(out) {
        values.fill(T::NEG_INFINITY);
        for (place, cols) in places.iter_mut().zip(&windows.cols) {
            *place = (rows.start * width + cols.start) as u32;
        }
        for row in rows.clone() {
            for v in 0..spec.kernel[1] {
                // Outputs whose element `v` lies inside of the input.
                let first = pad.saturating_sub(v).div_ceil(step).min(cells);
                let from = (first * step + v).saturating_sub(pad);
                let count = width.saturating_sub(from).div_ceil(step).min(cells - first);
                if count == 0 {
                    continue;
                }
                let line = &x[row * width + from..(row + 1) * width];
                let start = (row * width + from) as u32;
                let values = &mut values[first..first + count];
                let places = &mut places[first..first + count];
                match step {
                    1 => best_of::<T, 1>(line, start, values, places),
                    2 => best_of::<T, 2>(line, start, values, places),
                    3 => best_of::<T, 3>(line, start, values, places),
                    _ => {
                        for (i, (best, place)) in values.iter_mut().zip(places).enumerate() {
                            better(line[i * step], start + (i * step) as u32, best, place);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn best_of<T: Float, const STEP: usize>(line: &[T], start: u32, values: &mut [T], places: &mut [u32]) {
    let (groups, rest) = line.as_chunks::<STEP>();
    for (i, ((best, place), group)) in values.iter_mut().zip(places.iter_mut()).zip(groups).enumerate() {
        better(group[0], start + (i * STEP) as u32, best, place);
    }
    if let (Some(x), true) = (rest.first(), values.len() > groups.len()) {
        let i = groups.len();
        better(*x, start + (i * STEP) as u32, &mut values[i], &mut places[i]);
    }
}

/// Without a branch, so that it vectorises.
#[inline(always)]
fn better<T: Float>(x: T, at: u32, best: &mut T, place: &mut u32) {
    // One comparison for "larger or NaN".
    let keep = x <= *best;
    // A NaN that is already there stays, unless another one comes: `x <= NaN` is false, so ask.
    let keep = keep | ((*best).nan() & !x.nan());
    *best = if keep { *best } else { x };
    *place = if keep { *place } else { at };
}

struct MaxPool {
    windows: Windows,
    /// Where each maximum was, as an offset in its plane; filled when a gradient will be asked for.
    argmax: Option<OnceLock<Vec<u32>>>,
}

impl MaxPool {
    fn forward<T: Float>(&self, x: &[T], [h, w]: [usize; 2]) -> Vec<T> {
        let cells = self.windows.cells();
        let planes = x.len() / (h * w);
        let step = planes_per_task(cells);
        let set = isa::current();
        let mut values = vec![T::default(); planes * cells];
        let mut places = vec![0u32; planes * cells];
        values
            .par_chunks_mut(step * cells)
            .zip(places.par_chunks_mut(step * cells))
            .zip(x.par_chunks(step * h * w))
            .for_each(|((values, places), x)| {
                T::dispatch(set, Maxima { windows: &self.windows, size: [h, w], x, values, places });
            });
        if let Some(slot) = &self.argmax {
            // An operation is applied once; a second forward of the same graph node does not exist.
            let _ = slot.set(places);
        }
        values
    }
}

fn backward_max<T: Float>(places: &[u32], g: &[T], plane: usize, cells: usize) -> Vec<T> {
    let mut out = vec![T::default(); g.len() / cells * plane];
    let step = planes_per_task(cells);
    out.par_chunks_mut(step * plane).zip(g.par_chunks(step * cells).zip(places.par_chunks(step * cells))).for_each(
        |(out, (g, places))| {
            let grads = g.chunks(cells).zip(places.chunks(cells));
            for (out, (g, places)) in out.chunks_mut(plane).zip(grads) {
                for (&g, &place) in g.iter().zip(places) {
                    out[place as usize] += g;
                }
            }
        },
    );
    out
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l.shape().dims4()?;
        let out = (b, c, self.windows.rows.len(), self.windows.cols.len());
        by_dtype!("max_pool2d", dtype(s), T => {
            let values = self.forward(slice::<T>(s, l)?, [h, w]);
            Ok((candle_core::WithDType::to_cpu_storage_owned(values), out.into()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Some(places) = self.argmax.as_ref().and_then(OnceLock::get) else {
            return Ok(None);
        };
        let (_, _, h, w) = x.dims4()?;
        let (g, cells) = (g.contiguous()?, self.windows.cells());
        by_dtype!("max_pool2d", x.dtype(), T => {
            let out = with_slice::<T, _>(&g, |g| backward_max(places, g, h * w, cells))?;
            tensor(out, x.shape()).map(Some)
        })
    }
}

struct AvgPool {
    windows: Windows,
}

impl AvgPool {
    fn forward<T: Float>(&self, x: &[T], [h, w]: [usize; 2]) -> Vec<T> {
        let cells = self.windows.cells();
        let planes = x.len() / (h * w);
        let step = planes_per_task(cells.max(h * w));
        let mut out = vec![T::default(); planes * cells];
        out.par_chunks_mut(step * cells).zip(x.par_chunks(step * h * w)).for_each(|(out, x)| {
            for (out, x) in out.chunks_mut(cells).zip(x.chunks(h * w)) {
                self.forward_plane(w, x, out);
            }
        });
        out
    }

    fn forward_plane<T: Float>(&self, width: usize, x: &[T], out: &mut [T]) {
        let mut cell = 0;
        for rows in &self.windows.rows {
            for cols in &self.windows.cols {
                let mut sum = T::default();
                for row in rows.clone() {
                    for &v in &x[row * width + cols.start..row * width + cols.end] {
                        sum += v;
                    }
                }
                out[cell] = sum / T::of(self.windows.count(rows, cols) as f64);
                cell += 1;
            }
        }
    }

    fn backward<T: Float>(&self, g: &[T], [h, w]: [usize; 2]) -> Vec<T> {
        let cells = self.windows.cells();
        let mut out = vec![T::default(); g.len() / cells * h * w];
        let step = planes_per_task(cells.max(h * w));
        out.par_chunks_mut(step * h * w).zip(g.par_chunks(step * cells)).for_each(|(out, g)| {
            for (out, g) in out.chunks_mut(h * w).zip(g.chunks(cells)) {
                self.backward_plane(w, g, out);
            }
        });
        out
    }

    fn backward_plane<T: Float>(&self, width: usize, g: &[T], out: &mut [T]) {
        let mut cell = 0;
        for rows in &self.windows.rows {
            for cols in &self.windows.cols {
                let share = g[cell] / T::of(self.windows.count(rows, cols) as f64);
                for row in rows.clone() {
                    for v in &mut out[row * width + cols.start..row * width + cols.end] {
                        *v += share;
                    }
                }
                cell += 1;
            }
        }
    }
}

impl CustomOp1 for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l.shape().dims4()?;
        let out = (b, c, self.windows.rows.len(), self.windows.cols.len());
        by_dtype!("avg_pool2d", dtype(s), T => {
            let values = self.forward(slice::<T>(s, l)?, [h, w]);
            Ok((candle_core::WithDType::to_cpu_storage_owned(values), out.into()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let g = g.contiguous()?;
        by_dtype!("avg_pool2d", x.dtype(), T => {
            let out = with_slice::<T, _>(&g, |g| self.backward(g, [h, w]))?;
            tensor(out, x.shape()).map(Some)
        })
    }
}

fn max_pool(op: &'static str, x: &Tensor, windows: Windows) -> Result<Tensor> {
    let plane = x.dims()[2] * x.dims()[3];
    if u32::try_from(plane).is_err() {
        return Err(shape(op, "maps of fewer than 2^32 elements", x.dims()));
    }
    let argmax = x.track_op().then(OnceLock::new);
    Ok(x.contiguous()?.apply_op1(MaxPool { windows, argmax })?)
}

fn checked(op: &'static str, x: &Tensor) -> Result<[usize; 2]> {
    float(op, x)?;
    let [_, _, h, w] = dims4(op, "input", x)?;
    Ok([h, w])
}

/// The maximum of each window; `[B, C, H, W]` to `[B, C, H', W']` with `H' = floor((H + 2p - k) / s) + 1`.
///
/// Padding counts as minus infinity.
/// The gradient goes to the first maximum of a window in row-major order; a NaN in a window is its result
/// (both as in PyTorch; candle's own gradient is divided by the size of the window).
///
/// # Errors
///
/// A rank other than 4, an empty input, a window larger than the padded input, a kernel or stride of 0, padding above
/// half of the kernel.
pub fn max_pool2d(x: &Tensor, spec: &Pool2dSpec) -> Result<Tensor> {
    let size = checked("max_pool2d", x)?;
    let windows = Windows::sliding("max_pool2d", size, spec, false)?;
    if !x.device().is_cpu() {
        return fallback::on_host(x, |x| max_pool2d(x, spec));
    }
    max_pool("max_pool2d", x, windows)
}

/// The mean of each window; shapes as in [`max_pool2d`].
///
/// With `count_include_pad` the divisor is the size of the window, otherwise the number of elements that lie inside
/// of the input.
///
/// # Errors
///
/// As for [`max_pool2d`].
pub fn avg_pool2d(x: &Tensor, spec: &Pool2dSpec, count_include_pad: bool) -> Result<Tensor> {
    let size = checked("avg_pool2d", x)?;
    let windows = Windows::sliding("avg_pool2d", size, spec, count_include_pad)?;
    if !x.device().is_cpu() {
        return fallback::on_host(x, |x| avg_pool2d(x, spec, count_include_pad));
    }
    Ok(x.contiguous()?.apply_op1(AvgPool { windows })?)
}

/// The mean over a grid of `size` cells: cell `i` covers the rows `floor(i H / h)` to `ceil((i + 1) H / h) - 1`.
///
/// Cells overlap where `H` is no multiple of `h`; `size` may exceed the input.
///
/// # Errors
///
/// A rank other than 4, an empty input, a size of 0.
pub fn adaptive_avg_pool2d(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    let windows = Windows::adaptive("adaptive_avg_pool2d", checked("adaptive_avg_pool2d", x)?, size)?;
    if !x.device().is_cpu() {
        return fallback::on_host(x, |x| adaptive_avg_pool2d(x, size));
    }
    Ok(x.contiguous()?.apply_op1(AvgPool { windows })?)
}

/// The maximum over the cells of [`adaptive_avg_pool2d`], with the rules of [`max_pool2d`] for ties and NaN.
///
/// # Errors
///
/// As for [`adaptive_avg_pool2d`].
pub fn adaptive_max_pool2d(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    let windows = Windows::adaptive("adaptive_max_pool2d", checked("adaptive_max_pool2d", x)?, size)?;
    if !x.device().is_cpu() {
        return fallback::on_host(x, |x| adaptive_max_pool2d(x, size));
    }
    max_pool("adaptive_max_pool2d", x, windows)
}

/// The mean of each map: `[B, C, H, W]` to `[B, C]`.
///
/// # Errors
///
/// A rank other than 4, an empty input.
pub fn global_avg_pool2d(x: &Tensor) -> Result<Tensor> {
    checked("global_avg_pool2d", x)?;
    if !x.device().is_cpu() {
        return Ok(x.mean((2, 3))?);
    }
    Ok(adaptive_avg_pool2d(x, [1, 1])?.flatten_from(1)?)
}
