//! How a run reports while it goes on.

use super::EpochRecord;
use std::time::Duration;

/// One step, as a progress bar wants it.
#[derive(Clone, Copy, Debug)]
pub struct StepReport<'a> {
    /// Phase name.
    pub phase: &'a str,
    /// Epoch, counted from 1.
    pub epoch: usize,
    /// Epochs of the phase.
    pub epochs: usize,
    /// Steps of the phase done so far.
    pub done: usize,
    /// Steps of the phase in all.
    pub total: usize,
    /// Mean loss of the epoch so far.
    pub loss: f64,
    /// Training accuracy of the epoch so far, in `[0, 1]`.
    pub accuracy: Option<f64>,
    /// Estimated time to the end of the phase, from the steps of this process.
    pub left: Duration,
}

/// Listens to a run. All methods do nothing by default.
pub trait Observer: Send {
    /// After every optimiser step.
    fn on_step(&mut self, _report: &StepReport<'_>) {}
    /// After every epoch, with its evaluation where one was due.
    fn on_epoch(&mut self, _record: &EpochRecord, _epochs: usize) {}
}

/// Hears nothing.
pub struct Silent;

impl Observer for Silent {}
