//! What systems have in common whose trained parts are all there from the start.

use crate::Result;
use crate::engine::{Evaluated, Objective, Step, StepOutput};
use crate::state::{Parts, part, under};
use retort_nn::{ParamGroup, Seed, Tensors};

/// What a method makes of a batch; [`Learner`] makes an [`Objective`] of it.
pub(crate) trait Method: Send {
    /// As for [`Objective::step`].
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput>;

    /// As for [`Objective::turns`].
    fn turns(&self) -> usize {
        1
    }

    /// As for [`Objective::after_step`].
    fn after_step(&mut self) -> Result<()> {
        Ok(())
    }

    /// As for [`Objective::after_epoch`].
    fn after_epoch(&mut self, _epoch: usize) -> Result<()> {
        Ok(())
    }

    /// As for [`Objective::evaluated`].
    fn evaluated(&self) -> Vec<Evaluated<'_>>;

    /// What lives from step to step besides parameters: banks, queues, earlier predictions.
    fn memory(&self) -> Result<Tensors> {
        Ok(Tensors::new())
    }

    /// Takes over what [`Method::memory`] returned.
    fn load_memory(&mut self, _memory: &Tensors) -> Result<()> {
        Ok(())
    }

    /// The weights that are kept, under the keys of the network alone, from those of the part `student`.
    fn deployed(&self, student: Tensors) -> Result<Tensors> {
        Ok(student)
    }
}

/// A method and the parameters that it trains; those of the part `student` are what the run is for.
pub(crate) struct Learner<M> {
    parts: Parts,
    method: M,
}

const MEMORY: &str = "memory";

impl<M: Method> Learner<M> {
    pub(crate) fn new(parts: Parts, method: M) -> Self {
        Self { parts, method }
    }
}

impl<M: Method> Objective for Learner<M> {
    fn groups(&self) -> Vec<ParamGroup> {
        self.parts.groups()
    }

    fn turns(&self) -> usize {
        self.method.turns()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        self.method.step(step)
    }

    fn after_step(&mut self) -> Result<()> {
        self.method.after_step()
    }

    fn after_epoch(&mut self, epoch: usize) -> Result<()> {
        self.method.after_epoch(epoch)
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.method.evaluated()
    }

    fn weights(&self) -> Result<Tensors> {
        self.method.deployed(part(&self.parts.state()?, "student."))
    }

    fn state(&self) -> Result<Tensors> {
        let mut state = self.parts.state()?;
        state.extend(under(MEMORY, self.method.memory()?));
        Ok(state)
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.parts.load(state)?;
        self.method.load_memory(&part(state, &format!("{MEMORY}.")))
    }
}

/// Random numbers of a method: a stream for each step, so that a step can be repeated and resumed.
pub(crate) fn stream(seed: Seed, step: &Step<'_>) -> rand_chacha::ChaCha8Rng {
    seed.child(&step.step.to_string()).rng()
}
