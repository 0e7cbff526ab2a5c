//! Offline distillation: a frozen teacher, one student, any weighted sum of losses.

use crate::engine::{Evaluated, Objective, Step, StepOutput};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::{BuildContext, Context, Distiller, InitPhase, LossConfig, Needs};
use retort_models::ModelConfig;
use retort_nn::{Mode, Network, Outputs, ParamGroup, Params, Seed, Tensors};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
///
/// A method with a phase before the training (`ab`, `ft`, `fsp`) has an objective of its own for it,
/// [`Offline::init_phases`]; all objectives that come from one [`Offline::new`] share student, parts and state.
pub struct Offline {
    student: Arc<dyn Network>,
    teacher: Option<Arc<dyn Network>>,
    shared: Arc<Mutex<Shared>>,
    part: Part,
}

/// What an objective trains.
enum Part {
    /// The student by all terms.
    All,
    /// The phase before the training of one term, and the student's parameters that it trains; `None`: it does not look
    /// at the student.
    Init { term: usize, reached: Option<Vec<String>> },
}

/// What all phases of a run have in common.
struct Shared {
    student_params: Params,
    terms: Vec<NamedDistiller>,
    method_params: Params,
    /// Parts that only the phases before the training change.
    init_params: Params,
}

impl Shared {
    /// What the networks have to show to an objective: a term that only says 0 after its phase needs nothing then.
    fn needs(&self, part: &Part) -> Needs {
        match part {
            Part::Init { term, .. } => self.terms[*term].needs,
            Part::All => {
                let idle = |term: &&NamedDistiller| term.init.is_some_and(|phase| phase.student);
                let seen = self.terms.iter().filter(|term| !idle(term));
                seen.fold(Needs::default(), |needs, term| needs.or(term.needs))
            }
        }
    }
}

struct NamedDistiller {
    /// The method id, with a number where it occurs twice.
    name: String,
    distiller: Box<dyn Distiller>,
    init: Option<InitPhase>,
    needs: Needs,
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
        let (student_params, method_params, init_params) = (params("student"), params("method"), params("init"));
        let student = retort_models::build(config.student, &config.model, &student_params.root())?;
        let teacher_norms = match &config.teacher {
            Some(teacher) => teacher.stage_norms()?,
            None => None,
        };
        let mut terms: Vec<NamedDistiller> = Vec::new();
        for loss in config.losses {
            let name = unique(loss.id(), &terms);
            let context = BuildContext {
                student: student.spec(),
                teacher: config.teacher.as_deref().map(Network::spec),
                train_labels: config.train_labels,
                seed: config.seed.child("sampler").child(&name),
                scope: method_params.root().child(&name),
                init_scope: init_params.root().child(&name),
                teacher_norms: teacher_norms.as_deref(),
            };
            let (distiller, init) = (loss.build(&context)?, loss.init_phase(student.spec()));
            terms.push(NamedDistiller { name, distiller, init, needs: loss.needs() });
        }
        let shared = Shared { student_params, terms, method_params, init_params };
        let (student, teacher) = (Arc::from(student), config.teacher.clone());
        Ok(Self { student, teacher, shared: Arc::new(Mutex::new(shared)), part: Part::All })
    }

    /// The phases that come before this objective, in order: name, settings, objective.
    ///
    /// # Errors
    ///
    /// Whatever networks and losses refuse.
    pub fn init_phases(&self) -> Result<Vec<(String, InitPhase, Self)>> {
        let phases: Vec<_> = {
            let shared = self.lock();
            let named = shared.terms.iter().enumerate();
            named.filter_map(|(term, t)| Some((term, format!("init-{}", t.name), t.init?))).collect()
        };
        let objective = |term: usize, phase: InitPhase| -> Result<Self> {
            let reached = if phase.student { Some(self.reached(term)?) } else { None };
            let (student, teacher) = (Arc::clone(&self.student), self.teacher.clone());
            Ok(Self { student, teacher, shared: Arc::clone(&self.shared), part: Part::Init { term, reached } })
        };
        phases.into_iter().map(|(term, name, phase)| Ok((name, phase, objective(term, phase)?))).collect()
    }

    /// The student's parameters that the term of a phase before the training depends on, found by a pass over two blank
    /// images: which layers lie behind the last map that it looks at differs from network to network.
    fn reached(&self, term: usize) -> Result<Vec<String>> {
        let spec = self.student.spec();
        let mut shared = self.lock();
        let device = shared.student_params.root().device().clone();
        let [height, width] = spec.image;
        let images = Tensor::zeros((2, spec.in_channels, height, width), DType::F32, &device)?;
        let before = shared.init_params.snapshot()?;
        let needs = shared.terms[term].needs;
        let teacher = self.teacher_outputs(&needs, &images)?;
        let student = self.student.forward(&images, Mode::Eval, needs.taps)?;
        let context = Context {
            student: &student,
            teacher: teacher.as_ref(),
            labels: &Tensor::zeros(2, DType::U32, &device)?,
            label_ids: &[0; 2],
            index: &[0; 2],
            epoch: 0,
        };
        let grads = shared.terms[term].distiller.init_term(&context)?.weighted()?.backward()?;
        // The pass has moved the running statistics of the parts.
        shared.init_params.load(&before)?;
        let reached = shared.student_params.trainable().into_iter().filter(|(_, var)| grads.get(var).is_some());
        Ok(reached.map(|(name, _)| name).collect())
    }

    fn teacher_outputs(&self, needs: &Needs, images: &Tensor) -> Result<Option<Outputs>> {
        let mode = if needs.batch_statistics { Mode::BatchStatistics } else { Mode::Eval };
        match &self.teacher {
            Some(teacher) if needs.teacher => Ok(Some(teacher.forward(images, mode, needs.taps)?)),
            _ => Ok(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
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
        let shared = self.lock();
        let named = |prefix: &str, params: &Params, wanted: &dyn Fn(&str) -> bool| {
            let params = params.trainable().into_iter().filter(|(name, _)| wanted(name));
            params.map(|(name, var)| (format!("{prefix}.{name}"), var)).collect::<Vec<_>>()
        };
        let all = match &self.part {
            Part::All => {
                let mut all = named("student", &shared.student_params, &|_| true);
                all.extend(named("method", &shared.method_params, &|_| true));
                all
            }
            Part::Init { term, reached } => {
                let of_term = format!("{}.", shared.terms[*term].name);
                let reached = reached.as_deref().unwrap_or_default();
                let mut all = named("student", &shared.student_params, &|name| reached.iter().any(|r| r == name));
                all.extend(named("init", &shared.init_params, &|name| name.starts_with(&of_term)));
                all
            }
        };
        vec![ParamGroup::new(all)]
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let mut shared = self.lock();
        let needs = shared.needs(&self.part);
        let teacher = self.teacher_outputs(&needs, &batch.images)?;
        let student = match &self.part {
            Part::Init { reached: None, .. } => None,
            _ => Some(self.student.forward(&batch.images, Mode::Train, needs.taps)?),
        };
        let seen = student.as_ref().or(teacher.as_ref()).ok_or_else(|| Error::Config {
            what: "losses".into(),
            message: "a phase before the training needs a teacher, but there is none".into(),
        })?;
        let context = Context {
            student: seen,
            teacher: teacher.as_ref(),
            labels: batch.labels()?,
            label_ids: &batch.label_ids,
            index: &batch.index,
            epoch: step.epoch,
        };
        match &self.part {
            Part::All => {
                let terms = shared.terms.iter_mut().map(|t| Ok(t.distiller.term(&context)?)).collect::<Result<_>>()?;
                Ok(StepOutput { terms, logits: student.map(|s| s.logits) })
            }
            Part::Init { term, .. } => {
                let terms = vec![shared.terms[*term].distiller.init_term(&context)?];
                Ok(StepOutput { terms, logits: None })
            }
        }
    }

    fn after_step(&mut self) -> Result<()> {
        if matches!(self.part, Part::All) {
            for term in &mut self.lock().terms {
                term.distiller.after_step()?;
            }
        }
        Ok(())
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        match self.part {
            Part::All => {
                vec![Evaluated { name: "student", network: self.student.as_ref(), teacher: self.teacher.as_deref() }]
            }
            // The classifier has not been trained yet.
            Part::Init { .. } => Vec::new(),
        }
    }

    fn state(&self) -> Result<Tensors> {
        let shared = self.lock();
        let mut state = Tensors::new();
        let mut add =
            |prefix: String, part: Tensors| state.extend(part.into_iter().map(|(k, v)| (format!("{prefix}.{k}"), v)));
        add("student".into(), shared.student_params.snapshot()?);
        add("method".into(), shared.method_params.snapshot()?);
        add("init".into(), shared.init_params.snapshot()?);
        for term in &shared.terms {
            add(format!("loss.{}", term.name), term.distiller.state()?);
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let mut shared = self.lock();
        shared.student_params.load(&part(state, "student."))?;
        shared.method_params.load(&part(state, "method."))?;
        shared.init_params.load(&part(state, "init."))?;
        for term in &mut shared.terms {
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
