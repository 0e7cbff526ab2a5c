//! `bench loader`: making batches, alone and between steps of a training.

use super::batch::ROWS;
use super::clock::{Stopwatch, measure};
use super::report::Report;
use super::training::{Setup, Training};
use super::{ImageShape, Options, Run, check_entries, seed};
use crate::{Error, Result};
use clap::Args;
use rand::Rng;
use retort_datasets::{
    Dataset, EpochIter, Loader, LoaderConfig, Normalization, Sampling, Split, TransformConfig, ViewConfig,
};
use retort_losses::LossConfig;
use retort_losses::output::CeConfig;

/// What the CIFAR recipes do.
const CIFAR: &str = r#"[{"kind": "random-crop", "padding": 4}, {"kind": "horizontal-flip", "probability": 0.5}]"#;

#[derive(Debug, Args)]
pub(super) struct LoaderArgs {
    /// Transforms as a manifest has them, in JSON.
    #[arg(long, value_name = "JSON", default_value = CIFAR)]
    transforms: String,
    /// Channels, height and width of an image.
    #[arg(long, value_name = "CxHxW", default_value = "3x32x32")]
    image: ImageShape,
    /// Rows of the data set, random bytes.
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// Batches made ahead of time by threads of the loader's own; 0 makes them when they are asked for.
    #[arg(long, default_value_t = 0)]
    prefetch: usize,
    /// Train this architecture between the batches, and say how long it waits for them.
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    pub(super) options: Options,
}

impl LoaderArgs {
    pub(super) fn run(&self, run: &Run<'_>) -> Result<Report> {
        let Options { batch, steps, .. } = self.options;
        let mut batches = Batches::new(self.loader(run.threads)?);
        let mut training = self.model.as_ref().map(|model| self.training(model, run)).transpose()?;
        let times = measure(steps, run.stop, |number| {
            let mut clock = Stopwatch::start();
            batches.next()?;
            let wait = clock.lap();
            if let Some(training) = &mut training {
                training.step(number)?;
            }
            Ok([wait, clock.lap()])
        })?;
        let [wait, step] = times.parts;
        let trained = self.model.as_deref();
        Ok(Report::new()
            .with("transforms", self.transforms.as_str())
            .with("batch", batch)
            .with("threads", run.threads)
            .with("prefetch", self.prefetch)
            .with("steps", steps)
            .with("images_per_second", 1e3 * batch as f64 / times.whole)
            .with("wait_ms", wait)
            .with_some("model", trained)
            .with_some("step_ms", trained.map(|_| step))
            .with_some("wait_percent_of_step", trained.map(|_| 100.0 * wait / step))
            .with_peak_memory()
            .with("image", self.image.to_string())
            .with("rows", self.rows))
    }

    fn training(&self, model: &str, run: &Run<'_>) -> Result<Training> {
        let losses = vec![LossConfig::Ce(CeConfig::default())];
        let config = self.options.model(self.image);
        Training::new(&Setup { student: model, teacher: None, losses, model: config }, run, ROWS)
    }

    fn loader(&self, threads: usize) -> Result<Loader> {
        let transforms: Vec<TransformConfig> = serde_json::from_str(&self.transforms)
            .map_err(|e| Error::Request(format!("`--transforms`: {e}, in {}", self.transforms)))?;
        let config = LoaderConfig {
            batch_size: self.options.batch,
            sampling: Sampling::Shuffled,
            drop_last: true,
            views: vec![ViewConfig::new(transforms)],
            seed: seed().value(),
        };
        let loader = Loader::new(self.dataset()?, config).map_err(Error::request)?;
        if self.prefetch == 0 { Ok(loader) } else { loader.prefetch(threads, self.prefetch).map_err(Error::request) }
    }

    fn dataset(&self) -> Result<Dataset> {
        let ImageShape([channels, height, width]) = self.image;
        check_entries("images", &[self.rows, channels, height, width])?;
        let shape = retort_datasets::ImageShape { channels, height, width };
        let mut pixels = vec![0; self.rows * channels * height * width];
        seed().child("pixels").rng().fill_bytes(&mut pixels);
        let classes = self.options.classes as u32;
        let labels = (0..self.rows).map(|row| row as u32 % classes).collect();
        let normalization = Normalization::identity(channels);
        Dataset::from_parts("random", Split::Train, shape, self.options.classes, pixels, labels, normalization)
            .map_err(Error::request)
    }
}

/// Epoch after epoch.
struct Batches {
    loader: Loader,
    epoch: u64,
    iter: EpochIter,
}

impl Batches {
    fn new(loader: Loader) -> Self {
        let iter = loader.epoch(0);
        Self { loader, epoch: 0, iter }
    }

    fn next(&mut self) -> Result<()> {
        let batch = match self.iter.next() {
            Some(batch) => batch,
            None => {
                self.epoch += 1;
                self.iter = self.loader.epoch(self.epoch);
                self.iter.next().ok_or_else(|| Error::Failed("an epoch has no batch".into()))?
            }
        };
        batch.map(drop).map_err(Error::request)
    }
}
