//! `bench train-step`.

use super::batch::ROWS;
use super::clock::measure;
use super::report::Report;
use super::training::{Setup, Training};
use super::{ImageShape, Options, Run};
use crate::Result;
use clap::Args;
use retort_losses::LossConfig;
use retort_losses::output::CeConfig;

#[derive(Debug, Args)]
pub(super) struct TrainStepArgs {
    /// Architecture, as `list models` names it.
    #[arg(long)]
    model: String,
    /// Channels, height and width of an image.
    #[arg(long, value_name = "CxHxW", default_value = "3x32x32")]
    image: ImageShape,
    #[command(flatten)]
    pub(super) options: Options,
}

impl TrainStepArgs {
    pub(super) fn run(&self, run: &Run<'_>) -> Result<Report> {
        let Options { batch, classes, steps, .. } = self.options;
        let losses = vec![LossConfig::Ce(CeConfig::default())];
        let model = self.options.model(self.image);
        let mut training = Training::new(&Setup { student: &self.model, teacher: None, losses, model }, run, ROWS)?;
        let train = measure(steps, run.stop, |number| {
            let laps = training.step(number)?;
            Ok([laps.forward + laps.loss, laps.backward, laps.optimizer])
        })?;
        let eval = measure(steps, run.stop, |_| Ok([training.eval_forward()?]))?;
        let [forward, backward, optimizer] = train.parts;
        Ok(Report::new()
            .with("model", self.model.as_str())
            .with("batch", batch)
            .with("threads", run.threads)
            .with("steps", steps)
            .with("images_per_second", 1e3 * batch as f64 / train.whole)
            .with("forward_ms", forward)
            .with("backward_ms", backward)
            .with("optimizer_ms", optimizer)
            .with("eval_forward_ms", eval.parts[0])
            .with_peak_memory()
            .with_instruction_set()
            .with("image", self.image.to_string())
            .with("classes", classes))
    }
}
