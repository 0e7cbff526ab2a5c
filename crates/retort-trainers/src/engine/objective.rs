//! What a method is to the loop.

use crate::Result;
use candle_core::Tensor;
use retort_datasets::Batch;
use retort_losses::Term;
use retort_nn::{Network, ParamGroup, Tensors};

/// Where the loop is, and the batch that is due.
pub struct Step<'a> {
    /// The batch after [`super::BatchTransform`].
    pub batch: &'a Batch,
    /// Epoch of the phase, counted from 0.
    pub epoch: usize,
    /// Step of the phase, counted from 0 over all its epochs.
    pub step: usize,
    /// Rate of this step before the groups' own factors.
    pub lr: f64,
    /// Which of the [`Objective::turns`] of this batch, counted from 0.
    pub turn: usize,
}

/// What one step gives back.
pub struct StepOutput {
    /// Named, weighted terms; the loop sums, checks, logs and differentiates them.
    pub terms: Vec<Term>,
    /// Student logits `[n, K]` of the first n rows of the batch, for the training accuracy; none where there are none.
    pub logits: Option<Tensor>,
}

/// A network that is measured on the test set after an epoch.
pub struct Evaluated<'a> {
    /// `student` for what the run is for; others are heads or peers of it, for example `head1`.
    pub name: String,
    /// The network.
    pub network: &'a dyn Network,
    /// The network that fidelity is measured against; it sees the second view of the test set, where there is one.
    pub teacher: Option<&'a dyn Network>,
}

impl<'a> Evaluated<'a> {
    /// What the run is for.
    #[must_use]
    pub fn student(network: &'a dyn Network, teacher: Option<&'a dyn Network>) -> Self {
        Self { name: "student".into(), network, teacher }
    }
}

/// A method: what it trains, how a batch becomes loss terms, what it keeps between steps.
///
/// An objective only wires networks and losses; the losses themselves are pure functions of `retort-losses`.
pub trait Objective: Send {
    /// What the optimiser may touch, in a fixed order.
    fn groups(&self) -> Vec<ParamGroup>;

    /// Updates for every batch; 1 for most. With more, each has an [`Objective::step`] of its own after the one before, and
    /// moves only the group with its number: networks that are updated one after the other. There are as many groups.
    fn turns(&self) -> usize {
        1
    }

    /// Forward passes and loss terms of one batch; changes no parameter.
    ///
    /// # Errors
    ///
    /// Whatever networks and losses refuse.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput>;

    /// After the optimiser's step, that of the last turn: memory banks, moving averages, on detached values.
    ///
    /// # Errors
    ///
    /// Whatever the update refuses.
    fn after_step(&mut self) -> Result<()> {
        Ok(())
    }

    /// After the last step of an epoch.
    ///
    /// # Errors
    ///
    /// Whatever the update refuses.
    fn after_epoch(&mut self, _epoch: usize) -> Result<()> {
        Ok(())
    }

    /// Networks to evaluate; none where no classifier has been trained.
    fn evaluated(&self) -> Vec<Evaluated<'_>>;

    /// What a finished run keeps: weights and running statistics, as copies.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    fn weights(&self) -> Result<Tensors>;

    /// Everything that training changes besides the optimiser: weights, running statistics, memory banks.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    fn state(&self) -> Result<Tensors>;

    /// Takes over what [`Objective::state`] returned.
    ///
    /// # Errors
    ///
    /// Names or shapes that do not agree.
    fn load_state(&mut self, state: &Tensors) -> Result<()>;
}
