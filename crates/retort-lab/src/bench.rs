//! `bench`: how long a step takes on this machine, and how much memory.

mod batch;
mod clock;
mod costs;
mod kd_step;
mod loader;
mod loss;
mod method_step;
mod report;
mod train_step;
mod training;

use crate::cli::MAX_THREADS;
use crate::runner::Resources;
use crate::{Error, Result};
use clap::{Args, Subcommand};
use rayon::ThreadPoolBuilder;
use report::Report;
use retort_models::ModelConfig;
use retort_nn::Seed;
use std::io::Write;
use std::sync::atomic::AtomicBool;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    word: Word,
}

#[derive(Debug, Subcommand)]
enum Word {
    /// A step of plain training: cross-entropy, SGD.
    TrainStep(train_step::TrainStepArgs),
    /// A step of distillation: frozen teacher, student, one method, SGD.
    KdStep(kd_step::KdStepArgs),
    /// Value and gradient of one loss on outputs of the shapes of resnet8x4 and resnet32x4.
    Loss(loss::LossArgs),
    /// Making batches of augmented images, alone or between steps of a training.
    Loader(loader::LoaderArgs),
    /// A step of any method or system as the trainer runs it, on synthetic images.
    MethodStep(method_step::MethodStepArgs),
    /// The same for every method, relative to plain training: time, memory, parameters.
    Costs(costs::CostsArgs),
}

/// What all words know.
#[derive(Debug, Args)]
struct Options {
    /// Images in a batch.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Number of classes.
    #[arg(long, default_value_t = 100)]
    classes: usize,
    /// Steps that are timed, after 3 that are not.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Threads [default: RAYON_NUM_THREADS or the number of cores].
    #[arg(long)]
    threads: Option<usize>,
    /// One JSON object in one line instead of a table.
    #[arg(long)]
    json: bool,
}

/// Channels, height and width, written `3x32x32`.
#[derive(Clone, Copy, Debug)]
struct ImageShape([usize; 3]);

/// What a word is run with.
struct Run<'a> {
    options: &'a Options,
    threads: usize,
    stop: &'a AtomicBool,
}

/// All numbers of a bench come from here, so that two benches compute the same.
fn seed() -> Seed {
    Seed::root(1).child("bench")
}

/// More entries than any tensor that a bench is meant for; a larger request is a slip that would only exhaust the memory.
const MAX_ENTRIES: usize = 1 << 28;

impl BenchArgs {
    /// Runs the bench and returns what goes to standard output.
    pub(crate) fn execute(&self, stop: &AtomicBool) -> Result<String> {
        let options = self.word.options();
        let threads = options.check()?;
        warn_about_candle(threads);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(16 << 20) // candle walks its graph recursively
            .build()
            .map_err(|e| Error::Failed(format!("cannot start {threads} threads: {e}")))?;
        let report = pool.install(|| self.word.run(&Run { options, threads, stop }))?;
        Ok(if options.json { report.json() } else { report.plain() })
    }
}

impl Word {
    fn options(&self) -> &Options {
        match self {
            Self::TrainStep(args) => &args.options,
            Self::KdStep(args) => &args.options,
            Self::Loss(args) => &args.options,
            Self::Loader(args) => &args.options,
            Self::MethodStep(args) => &args.options,
            Self::Costs(args) => &args.options,
        }
    }

    fn run(&self, run: &Run<'_>) -> Result<Report> {
        match self {
            Self::TrainStep(args) => args.run(run),
            Self::KdStep(args) => args.run(run),
            Self::Loss(args) => args.run(run),
            Self::Loader(args) => args.run(run),
            Self::MethodStep(args) => args.run(run),
            Self::Costs(args) => args.run(run),
        }
    }
}

impl Options {
    /// Refuses counts that mean nothing; returns the number of threads.
    fn check(&self) -> Result<usize> {
        for (name, value) in [("--batch", self.batch), ("--classes", self.classes), ("--steps", self.steps)] {
            positive(name, value)?;
        }
        let threads = self.threads.unwrap_or_else(|| Resources::default().threads);
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::Request(format!("`--threads` must be in 1 ..= {MAX_THREADS}, found {threads}")));
        }
        Ok(threads)
    }

    fn model(&self, ImageShape([in_channels, height, width]): ImageShape) -> ModelConfig {
        ModelConfig { in_channels, image: [height, width], classes: self.classes }
    }
}

fn positive(name: &str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::Request(format!("`{name}` must be at least 1, found 0")))
}

/// Refuses a tensor that no bench is meant for.
fn check_entries(what: &str, shape: &[usize]) -> Result<()> {
    let entries = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    if entries.is_some_and(|n| n <= MAX_ENTRIES) {
        return Ok(());
    }
    Err(Error::Request(format!("{what} of shape {shape:?} would have more than {MAX_ENTRIES} entries")))
}

/// An error of a loss: its settings and shapes are the request's, the rest happened while running.
fn loss_error(error: retort_losses::Error) -> Error {
    use retort_losses::Error as E;
    match error {
        E::Candle(_) | E::Kernel(_) => Error::Failed(error.to_string()),
        other => Error::request(other),
    }
}

fn candle_error(error: candle_core::Error) -> Error {
    Error::Failed(error.to_string())
}

/// candle takes its numbers of threads from the environment, which `cargo xtask bench` sets before this program starts;
/// where somebody starts it in another way, the figures would be of other threads than they say.
fn warn_about_candle(threads: usize) {
    let products = candle_core::utils::get_num_threads();
    let variable = std::env::var("CANDLE_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let elementwise = variable.unwrap_or(products);
    if products < threads || elementwise > threads {
        let message = format!(
            "warning: candle uses {products} thread(s) for products of matrices and {elementwise} for elementwise \
             operations, not {threads}; start with `cargo xtask bench`, or set RAYON_NUM_THREADS={threads} and \
             CANDLE_NUM_THREADS=1"
        );
        drop(writeln!(std::io::stderr(), "{message}"));
    }
}

impl std::str::FromStr for ImageShape {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let sizes: Option<Vec<usize>> = text.split('x').map(|n| n.parse().ok().filter(|n| *n > 0)).collect();
        let sizes = sizes.and_then(|sizes| <[usize; 3]>::try_from(sizes).ok());
        sizes.map(Self).ok_or_else(|| "expected channels, height and width as CxHxW, for example 3x32x32".to_string())
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [channels, height, width] = self.0;
        write!(f, "{channels}x{height}x{width}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_shapes() {
        let shape: ImageShape = "3x32x16".parse().unwrap();
        assert_eq!((shape.0, shape.to_string()), ([3, 32, 16], "3x32x16".to_string()));
        for text in ["3x32", "3x32x32x1", "0x8x8", "3x-1x8", "3,32,32", "", "99999999999999999999x1x1"] {
            assert!(text.parse::<ImageShape>().unwrap_err().contains("CxHxW"), "{text}");
        }
    }

    #[test]
    fn absurd_tensors_are_refused_before_they_are_allocated() {
        assert!(check_entries("images", &[1024, 3, 224, 224]).is_ok());
        for shape in [&[1 << 20, 3, 224, 224][..], &[usize::MAX, 2]] {
            let text = check_entries("images", shape).unwrap_err();
            assert!(text.to_string().starts_with("images of shape") && text.exit_code() == 2, "{text}");
        }
    }
}
