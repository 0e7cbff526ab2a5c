//! What a method is to a trainer: a [`Distiller`] that turns one batch into one [`Term`].

use crate::config::{MethodInfo, Side};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_nn::{NetworkSpec, Outputs, Scope, Seed, StageNorm, Taps, Tensors};

/// What a method wants to be given; the trainer skips the rest and fails early where it cannot deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Outputs of a teacher.
    pub teacher: bool,
    /// What both networks show besides logits and embedding.
    pub taps: Taps,
    /// Class labels, in the batch or (for samplers) at construction.
    pub labels: bool,
    /// Rows of the samples in the training set.
    pub index: bool,
    /// A teacher that normalises with the statistics of the batch instead of its running ones; all terms of a list see
    /// the same teacher.
    pub batch_statistics: bool,
}

impl Needs {
    /// The union of two wishes.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            teacher: self.teacher || other.teacher,
            taps: self.taps.or(other.taps),
            labels: self.labels || other.labels,
            index: self.index || other.index,
            batch_statistics: self.batch_statistics || other.batch_statistics,
        }
    }

    /// A teacher and nothing else.
    pub(crate) const TEACHER: Self = Self {
        teacher: true,
        taps: Taps { maps: false, pre_activations: false },
        labels: false,
        index: false,
        batch_statistics: false,
    };

    /// A teacher and the feature maps of both networks.
    pub(crate) const MAPS: Self = Self { taps: Taps { maps: true, pre_activations: false }, ..Self::TEACHER };
}

/// A phase before the training, with an optimiser of its own; [`Distiller::init_term`] is its objective.
///
/// It trains what the term depends on: the parts in [`BuildContext::init_scope`], and of the student those parameters
/// that the term reaches (all but the classifier, where the term looks at feature maps).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InitPhase {
    /// Passes over the training set, at least 1.
    pub epochs: usize,
    /// Learning rate, constant; `None`: the run's initial one.
    pub lr: Option<f64>,
    /// Whether the term looks at the student; if not, the student is not run and [`Context::student`] is the teacher.
    pub student: bool,
}

/// What is known before the first batch.
#[derive(Clone)]
pub struct BuildContext<'a> {
    /// The student.
    pub student: &'a NetworkSpec,
    /// The teacher, if there is one.
    pub teacher: Option<&'a NetworkSpec>,
    /// Class of every row of the training set.
    pub train_labels: &'a [u32],
    /// Where this loss draws its random numbers from (banks, negatives).
    pub seed: Seed,
    /// Where the trainable parts of this loss are declared, for example `embed_s.weight`.
    pub scope: Scope,
    /// Where the parts are declared that only the phase before the training changes.
    pub init_scope: Scope,
    /// The teacher's batch norms before the last activations of its stages, where it shows them.
    pub teacher_norms: Option<&'a [StageNorm]>,
}

impl<'a> BuildContext<'a> {
    /// The teacher's description, or an error that names `method`.
    pub(crate) fn teacher(&self, method: &'static str) -> Result<&'a NetworkSpec> {
        self.teacher.ok_or(Error::Missing { method, what: "a teacher network" })
    }

    /// Refuses a network without feature maps for a method that reads them; not every method counts them itself.
    pub(crate) fn shows_maps(&self, info: &MethodInfo) -> Result<()> {
        let reads =
            |whose| [info.inputs.maps, info.inputs.pre_activations].iter().any(|of| [whose, Side::Both].contains(of));
        let networks = [("student", Some(self.student), Side::Student), ("teacher", self.teacher, Side::Teacher)];
        match networks
            .into_iter()
            .find(|(_, spec, whose)| spec.is_some_and(|spec| spec.maps.is_empty()) && reads(*whose))
        {
            Some((who, Some(spec), _)) => {
                let message = format!("reads feature maps, but the {who} `{}` shows none", spec.name);
                Err(Error::Undefined { method: info.id, message })
            }
            _ => Ok(()),
        }
    }

    /// Checks that both networks know the same number of classes.
    pub(crate) fn same_classes(&self, method: &'static str) -> Result<()> {
        let (student, teacher) = (self.student.classes, self.teacher(method)?.classes);
        if student == teacher {
            return Ok(());
        }
        let message = format!("student and teacher must have the same classes, found {student} and {teacher}");
        Err(Error::Undefined { method, message })
    }
}

/// One batch.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The student's outputs.
    pub student: &'a Outputs,
    /// The teacher's outputs; every loss detaches them.
    pub teacher: Option<&'a Outputs>,
    /// Class labels, u32 `[B]`.
    pub labels: &'a Tensor,
    /// The same labels on the host.
    pub label_ids: &'a [u32],
    /// Rows of the samples in the training set.
    pub index: &'a [u32],
    /// Epoch, counted from 0.
    pub epoch: usize,
}

impl<'a> Context<'a> {
    /// The teacher's outputs, or an error that names `method`.
    pub(crate) fn teacher(&self, method: &'static str) -> Result<&'a Outputs> {
        self.teacher.ok_or(Error::Missing { method, what: "the teacher's outputs" })
    }

    /// Factor of a weight that rises linearly over so many epochs: `min((epoch + 1) / epochs, 1)`; 1 for no epochs.
    pub(crate) fn ramp(&self, epochs: usize) -> f64 {
        if epochs == 0 { 1.0 } else { ((self.epoch + 1) as f64 / epochs as f64).min(1.0) }
    }
}

/// One summand of the objective, logged under its own name.
#[derive(Clone, Debug)]
pub struct Term {
    /// Method id.
    pub name: &'static str,
    /// Factor of `value` in the objective, ramps included.
    pub weight: f64,
    /// The bare loss, a scalar.
    pub value: Tensor,
    /// Named scalars that `value` is made of, for the log: `stage0`, `distance`, `tckd` ...
    pub parts: Vec<(String, Tensor)>,
}

impl Term {
    /// Whether this is the task's own loss (`ce`, `label-smoothing`, the `hsakd.ce` of a system) rather than a method's.
    #[must_use]
    pub fn is_task(&self) -> bool {
        self.name.ends_with(".ce")
            || crate::registry().iter().any(|info| info.id == self.name && info.ce_weight.is_none())
    }

    /// `weight * value`, the summand itself.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn weighted(&self) -> Result<Tensor> {
        Ok(self.value.affine(self.weight, 0.0)?)
    }
}

/// A method with its trainable parts and its state.
///
/// The trainable parts live in the [`Scope`] that [`BuildContext`] handed over; the trainer gives them to its optimiser.
pub trait Distiller: Send {
    /// The loss of one batch.
    ///
    /// # Errors
    ///
    /// An input that the method needs is missing, or shapes do not fit.
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term>;

    /// The loss of one batch in the phase before the training, of methods that have an [`InitPhase`].
    ///
    /// # Errors
    ///
    /// As for [`Distiller::term`]; a method without such a phase.
    fn init_term(&mut self, _ctx: &Context<'_>) -> Result<Term> {
        Err(Error::Undefined { method: "loss", message: "has no phase before the training".into() })
    }

    /// Called once after the optimiser's step that followed [`Distiller::term`]: memory banks are updated here.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    fn after_step(&mut self) -> Result<()> {
        Ok(())
    }

    /// What a checkpoint must hold besides the trainable parts: copies that later steps do not change.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    fn state(&self) -> Result<Tensors> {
        Ok(Tensors::new())
    }

    /// Takes the state of a checkpoint; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, unexpected or of another shape.
    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        match state.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::State {
                method: "loss",
                name: name.clone(),
                message: "this loss has no state, but the checkpoint holds some".into(),
            }),
        }
    }
}
