//! Times one kind of work on clouds from files and prints a line of JSON; `docs/performance/transport.py` starts it.
//!
//! `speed FOLDER --work exact|sinkhorn|sliced --n N [--m M] [--d D] [--steps S] [--eps E]`
//!
//! FOLDER holds `x.f64` (N rows), `y.f64` (M rows) and, for sliced, `directions.f64`: raw little-endian f64, row after
//! row, D to a row. E is the strength of the entropic term in units of the mean cost.
#![allow(clippy::print_stdout)]

use retort_transport::{Cost, Points, Regularisation, SinkhornOptions, sinkhorn, sliced_w2, w2};
use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

const WARM_UPS: usize = 2;
const TOLERANCE: f64 = 1e-6;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let Arguments { folder, work, n, m, d, steps, eps } = Arguments::parse()?;
    let (x, y) = (read(&folder, "x.f64")?, read(&folder, "y.f64")?);
    let (x, y) = (points("x", &x, n, d)?, points("y", &y, m.unwrap_or(n), d)?);
    let (ms, result) = match work.as_str() {
        "exact" => {
            let (ms, found) = median(steps, || Ok(w2(x, y)?))?;
            (ms, format!(r#""value": {:?}, "converged": {}"#, found.distance.value, found.transport.converged))
        }
        "sinkhorn" => {
            let (a, b) = (uniform(x.len()), uniform(y.len()));
            let eps = Regularisation::RelativeToMean(eps);
            let options = SinkhornOptions { eps, tolerance: TOLERANCE, ..SinkhornOptions::default() };
            let (ms, found) = median(steps, || Ok(sinkhorn(&Cost::squared_euclidean(x, y)?, &a, &b, &options)?))?;
            let end = found.convergence;
            let result = format!(r#""value": {:?}, "eps": {:?}"#, found.transport, found.eps);
            let error = format!(r#""marginal_error": {:?}, "converged": {}"#, end.marginal_error, end.converged);
            let effort = format!(r#""sweeps": {}, "newton_steps": {}"#, end.iterations, end.newton_steps);
            (ms, [result, error, effort].join(", "))
        }
        "sliced" => {
            let directions = read(&folder, "directions.f64")?;
            let directions = Points::new("directions", &directions, d)?;
            let (ms, found) = median(steps, || Ok(sliced_w2(x, y, directions)?))?;
            (ms, format!(r#""value": {:?}, "directions": {}"#, found.distance.value, directions.len()))
        }
        other => return Err(format!("--work: expected exact, sinkhorn or sliced, found {other:?}").into()),
    };
    let (m, threads, version) = (y.len(), rayon::current_num_threads(), env!("CARGO_PKG_VERSION"));
    let given = format!(r#""work": "{work}", "n": {n}, "m": {m}, "d": {d}, "steps": {steps}"#);
    println!(r#"{{{given}, "ms": {ms:?}, {result}, "threads": {threads}, "version": "{version}"}}"#);
    Ok(())
}

struct Arguments {
    folder: PathBuf,
    work: String,
    n: usize,
    m: Option<usize>,
    d: usize,
    steps: usize,
    eps: f64,
}

impl Arguments {
    fn parse() -> Fallible<Self> {
        let mut words = std::env::args().skip(1);
        let folder = words.next().ok_or("expected the folder with the clouds")?.into();
        let mut all = Self { folder, work: String::new(), n: 0, m: None, d: 64, steps: 10, eps: 0.05 };
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name}: expected a value"))?;
            match name.as_str() {
                "--work" => all.work = value,
                "--n" => all.n = parsed(&name, &value)?,
                "--m" => all.m = Some(parsed(&name, &value)?),
                "--d" => all.d = parsed(&name, &value)?,
                "--steps" => all.steps = parsed(&name, &value)?,
                "--eps" => all.eps = parsed(&name, &value)?,
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        match all.steps {
            0 => Err("--steps: expected at least 1, found 0".into()),
            _ => Ok(all),
        }
    }
}

fn parsed<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}: expected a number, found {value:?}"))
}

fn read(folder: &Path, name: &str) -> Fallible<Vec<f64>> {
    let bytes = std::fs::read(folder.join(name)).map_err(|e| format!("{name}: {e}"))?;
    let (numbers, rest) = bytes.as_chunks::<8>();
    match rest {
        [] => Ok(numbers.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        _ => Err(format!("{name}: expected a multiple of 8 bytes, found {}", bytes.len()).into()),
    }
}

fn points<'a>(name: &'static str, values: &'a [f64], rows: usize, width: usize) -> Fallible<Points<'a>> {
    let points = Points::new(name, values, width)?;
    match points.len() == rows {
        true => Ok(points),
        false => Err(format!("{name}: expected {rows} rows of {width}, found {}", points.len()).into()),
    }
}

fn uniform(len: usize) -> Vec<f64> {
    vec![(len as f64).recip(); len]
}

/// The median time of `steps` runs in milliseconds, and the last result.
fn median<T>(steps: usize, run: impl Fn() -> Fallible<T>) -> Fallible<(f64, T)> {
    for _ in 0..WARM_UPS {
        black_box(run()?);
    }
    let timed = || {
        let start = Instant::now();
        let result = black_box(run()?);
        Ok::<_, Box<dyn Error>>((start.elapsed().as_secs_f64() * 1e3, result))
    };
    let (first, mut last) = timed()?;
    let mut times = vec![first];
    for _ in 1..steps {
        let (time, result) = timed()?;
        times.push(time);
        last = result;
    }
    times.sort_by(f64::total_cmp);
    Ok(((times[(steps - 1) / 2] + times[steps / 2]) / 2.0, last))
}
