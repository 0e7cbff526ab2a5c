//! Offline distillation: a frozen teacher, one student, any weighted sum of losses.

use crate::engine::{Evaluated, Objective, Step, StepOutput};
use crate::{Error, Result};
use candle_core::{DType, Device};
use retort_losses::{BuildContext, Context, Distiller, LossConfig, Needs};
use retort_models::ModelConfig;
use retort_nn::{Mode, Network, ParamGroup, Params, Seed, Tensors};
use std::sync::Arc;

/// What an [`Offline`] objective is made of.
pub struct OfflineConfig<'a> {
    /// Architecture of the student, a name of the model registry.
    pub student: &'a str,
    /// Images and classes.
    pub model: ModelConfig,
    /// The terms; `crd+kd` is a list of three: `ce`, `crd`, `kd`.
    pub losses: &'a [LossConfig],
    /// The frozen teacher; none for plain training.
    pub teacher: Option<Arc<dyn Network>>,
    /// Labels of the training set, by row.
    pub train_labels: &'a [u32],
    /// Initial weights and samplers derive from it. The student starts the same for every list of losses.
    pub seed: Seed,
    /// Where parameters live.
    pub device: Device,
}

/// `L = sum_i w_i L_i(student, teacher, labels)`; plain supervised training is the case without a teacher.
pub struct Offline {
    student: Box<dyn Network>,
    student_params: Params,
    teacher: Option<Arc<dyn Network>>,
    terms: Vec<NamedDistiller>,
    method_params: Params,
    needs: Needs,
}

struct NamedDistiller {
    /// The method id, with a number where it occurs twice.
    name: String,
    distiller: Box<dyn Distiller>,
}

impl Offline {
    /// Builds student and losses.
    ///
    /// # Errors
    ///
    /// An unknown model, a loss setting out of range, a loss that needs a teacher where there is none, an empty list.
    pub fn new(config: &OfflineConfig<'_>) -> Result<Self> {
        if config.losses.is_empty() {
            return Err(Error::Config {
                what: "losses".into(),
                message: "at least one loss is needed, found none".into(),
            });
        }
        let params = |name: &str| Params::new(config.seed.child(name), DType::F32, &config.device);
        let (student_params, method_params) = (params("student"), params("method"));
        let student = retort_models::build(config.student, &config.model, &student_params.root())?;
        let mut terms: Vec<NamedDistiller> = Vec::new();
        let mut needs = Needs::default();
        for loss in config.losses {
            let name = unique(loss.id(), &terms);
            let context = BuildContext {
                student: student.spec(),
                teacher: config.teacher.as_deref().map(Network::spec),
                train_labels: config.train_labels,
                seed: config.seed.child("sampler").child(&name),
                scope: method_params.root().child(&name),
            };
            terms.push(NamedDistiller { distiller: loss.build(&context)?, name });
            needs = needs.or(loss.needs());
        }
        Ok(Self { student, student_params, teacher: config.teacher.clone(), terms, method_params, needs })
    }
}

/// `kd`, `kd#2`, ...: a loss keeps its name, and so its initial weights, when others join the list.
fn unique(id: &str, taken: &[NamedDistiller]) -> String {
    match taken.iter().filter(|t| t.name.split('#').next() == Some(id)).count() {
        0 => id.to_string(),
        count => format!("{id}#{}", count + 1),
    }
}

impl Objective for Offline {
    fn groups(&self) -> Vec<ParamGroup> {
        let named = |prefix: &str, params: &Params| {
            params.trainable().into_iter().map(|(name, var)| (format!("{prefix}.{name}"), var)).collect::<Vec<_>>()
        };
        let mut all = named("student", &self.student_params);
        all.extend(named("method", &self.method_params));
        vec![ParamGroup::new(all)]
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let teacher = match &self.teacher {
            Some(teacher) if self.needs.teacher => Some(teacher.forward(&batch.images, Mode::Eval, self.needs.taps)?),
            _ => None,
        };
        let student = self.student.forward(&batch.images, Mode::Train, self.needs.taps)?;
        let context = Context {
            student: &student,
            teacher: teacher.as_ref(),
            labels: &batch.labels,
            label_ids: &batch.label_ids,
            index: &batch.index,
            epoch: step.epoch,
        };
        let terms = self.terms.iter_mut().map(|t| Ok(t.distiller.term(&context)?)).collect::<Result<_>>()?;
        Ok(StepOutput { terms, logits: Some(student.logits) })
    }

    fn after_step(&mut self) -> Result<()> {
        for term in &mut self.terms {
            term.distiller.after_step()?;
        }
        Ok(())
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated { name: "student", network: self.student.as_ref(), teacher: self.teacher.as_deref() }]
    }

    fn state(&self) -> Result<Tensors> {
        let mut state = Tensors::new();
        let mut add =
            |prefix: String, part: Tensors| state.extend(part.into_iter().map(|(k, v)| (format!("{prefix}.{k}"), v)));
        add("student".into(), self.student_params.snapshot()?);
        add("method".into(), self.method_params.snapshot()?);
        for term in &self.terms {
            add(format!("loss.{}", term.name), term.distiller.state()?);
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.student_params.load(&part(state, "student."))?;
        self.method_params.load(&part(state, "method."))?;
        for term in &mut self.terms {
            term.distiller.load_state(&part(state, &format!("loss.{}.", term.name)))?;
        }
        Ok(())
    }
}

fn part(state: &Tensors, prefix: &str) -> Tensors {
    state.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone()))).collect()
}

/// Weights and running statistics of the student that an [`Offline`] objective trains, as copies.
///
/// # Errors
///
/// Fails if a copy cannot be allocated.
pub fn student_weights(objective: &dyn Objective) -> Result<Tensors> {
    Ok(part(&objective.state()?, "student."))
}

/// Rebuilds a trained network in its frozen form: nothing trainable, batch norms folded, no graph.
///
/// # Errors
///
/// An unknown model, or weights that lack a tensor, hold one too many or one of another shape.
pub fn frozen(model: &str, config: &ModelConfig, weights: Tensors, device: &Device) -> Result<Box<dyn Network>> {
    let params = Params::frozen(weights, DType::F32, device);
    let network = retort_models::build(model, config, &params.root())?;
    if let Some(name) = params.unused().first() {
        let message = format!("the weights hold `{name}`, which `{model}` does not have");
        return Err(Error::Config { what: "weights".into(), message });
    }
    Ok(network)
}
