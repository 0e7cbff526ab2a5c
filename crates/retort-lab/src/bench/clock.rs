//! Medians of times: a median does not move when another program takes the processor for a moment.

use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps before the clock counts: the allocator has its blocks then, the caches their contents.
pub(super) const WARM_UP: usize = 3;

/// Cuts a stretch of time into laps.
pub(super) struct Stopwatch {
    last: Instant,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { last: Instant::now() }
    }

    /// Time since the last lap.
    pub(super) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }
}

/// Milliseconds of steps with N parts each.
pub(super) struct Samples<const N: usize> {
    whole: Vec<f64>,
    parts: [Vec<f64>; N],
}

/// Medians in milliseconds.
pub(super) struct Medians<const N: usize> {
    /// Of the step from its start until all of its tensors are freed, so at least about the sum of its parts.
    pub(super) whole: f64,
    /// Of each part on its own.
    pub(super) parts: [f64; N],
}

impl<const N: usize> Samples<N> {
    fn new() -> Self {
        Self { whole: Vec::new(), parts: std::array::from_fn(|_| Vec::new()) }
    }

    fn push(&mut self, whole: Duration, parts: [Duration; N]) {
        let ms = |time: Duration| 1e3 * time.as_secs_f64();
        self.whole.push(ms(whole));
        self.parts.iter_mut().zip(parts).for_each(|(samples, part)| samples.push(ms(part)));
    }

    fn medians(self) -> Medians<N> {
        Medians { whole: median(self.whole), parts: self.parts.map(median) }
    }
}

/// The middle value, or the mean of the middle two; NaN where there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => 0.5 * (low + high),
        _ => f64::NAN,
    }
}

/// Takes `steps` steps after the warm-up; `step` is given its number and returns its laps.
pub(super) fn measure<const N: usize>(
    steps: usize,
    stop: &AtomicBool,
    mut step: impl FnMut(usize) -> Result<[Duration; N]>,
) -> Result<Medians<N>> {
    let mut samples = Samples::new();
    for number in 0..WARM_UP.saturating_add(steps) {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let mut whole = Stopwatch::start();
        let parts = step(number)?;
        if number >= WARM_UP {
            samples.push(whole.lap(), parts);
        }
    }
    Ok(samples.medians())
}

/// Medians of the times between the calls that `work` makes; `enough` is raised after `steps` of them behind the warm-up,
/// and on Ctrl-C.
pub(super) fn measure_between(
    steps: usize,
    stop: &AtomicBool,
    enough: &AtomicBool,
    work: impl FnOnce(&mut (dyn FnMut() + Send)) -> Result<()>,
) -> Result<Medians<0>> {
    let (mut samples, mut watch, mut calls) = (Samples::new(), Stopwatch::start(), 0);
    work(&mut || {
        let lap = watch.lap();
        // The first call ends the first step, whose start was not seen.
        if (WARM_UP..WARM_UP.saturating_add(steps)).contains(&calls) {
            samples.push(lap, []);
        }
        calls += 1;
        let done = calls >= WARM_UP.saturating_add(steps);
        enough.fetch_or(done || stop.load(Ordering::Relaxed), Ordering::Relaxed);
    })?;
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Stopped);
    }
    Ok(samples.medians())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(vec![5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(vec![7.0]), 7.0);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn the_warm_up_is_not_counted() {
        let go = AtomicBool::new(false);
        let mut numbers = Vec::new();
        let medians = measure(3, &go, |number| {
            numbers.push(number);
            // Long laps in the warm-up: they would be the median if they counted.
            let long = if number < WARM_UP { 1000 } else { number as u64 };
            Ok([Duration::from_millis(long), Duration::from_millis(2 * long)])
        })
        .unwrap();
        assert_eq!(numbers, (0..WARM_UP + 3).collect::<Vec<_>>());
        assert_eq!(medians.parts, [(WARM_UP + 1) as f64, 2.0 * (WARM_UP + 1) as f64]);
        assert!(medians.whole >= 0.0);
    }

    #[test]
    fn laps_follow_each_other() {
        let mut watch = Stopwatch::start();
        let start = watch.last;
        let laps = [watch.lap(), watch.lap()];
        assert_eq!(laps[0] + laps[1], watch.last - start);
    }

    #[test]
    fn times_between_calls_end_when_there_are_enough() {
        let (go, enough) = (AtomicBool::new(false), AtomicBool::new(false));
        let medians = measure_between(2, &go, &enough, |call| {
            for number in 0..WARM_UP + 2 {
                assert!(!enough.load(Ordering::Relaxed), "after {number} calls");
                call();
            }
            assert!(enough.load(Ordering::Relaxed));
            Ok(())
        })
        .unwrap();
        assert!(medians.whole >= 0.0);
        let stop = AtomicBool::new(true);
        let result = measure_between(2, &stop, &AtomicBool::new(false), |_| Ok(()));
        assert_eq!(result.err().map(|e| e.exit_code()), Some(130));
    }

    #[test]
    fn ctrl_c_ends_it() {
        let stop = AtomicBool::new(false);
        let result = measure(10, &stop, |number| {
            assert!(number < 2);
            stop.store(number == 1, Ordering::Relaxed);
            Ok([])
        });
        assert_eq!(result.err().map(|e| e.exit_code()), Some(130));
    }
}
