//! The training loop, written once, with five extension points.
//!
//! 1. [`BatchPlan`]: which samples form a batch, and how they are augmented.
//! 2. [`BatchTransform`]: a pure function of a batch and a generator.
//! 3. [`retort_nn::Outputs`]: what a network shows of itself.
//! 4. [`Objective`]: what a method is: trainable parts, one step's loss terms, state.
//! 5. [`Phase`]: objectives in a row, each with its own schedule.
//!
//! Optimiser maths, evaluation, logging and checkpoints are deliberately not among them.

mod evaluate;
mod objective;
mod observer;
mod phase;
mod progress;
mod run;

pub use evaluate::{Evaluation, RiskBounds};
pub use objective::{Evaluated, Objective, Step, StepOutput};
pub use observer::{Observer, Silent, StepReport};
pub use phase::{BatchPlan, BatchTransform, Identity, Phase};
pub use progress::{EpochRecord, Summary};
pub use run::{CheckpointPolicy, Trainer};
