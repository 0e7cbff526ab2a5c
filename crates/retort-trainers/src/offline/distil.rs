//! A student, any number of frozen teachers, any weighted sum of losses.

use super::{Ensemble, TeacherTable};
use crate::engine::{Evaluated, Objective, Phase, Step, StepOutput};
use crate::state::{named, part, under};
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo, Teachers};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_datasets::Batch;
use retort_losses::{BuildContext, Context, EnsembleDistiller, EnsembleRule, InitPhase, LossConfig, Needs, Side};
use retort_models::ModelConfig;
use retort_nn::{Decay, Mode, Network, Outputs, ParamGroup, Params, ScheduleConfig, Seed, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A student that learns by a list of losses, from any number of frozen teachers; without one it is plain training.
///
/// In a manifest it is what a row is where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistilConfig {
    /// How the softened class probabilities of several teachers become one; every other loss is a mean over the teachers,
    /// see [`EnsembleDistiller`].
    #[serde(skip_serializing_if = "is_default")]
    pub ensemble: EnsembleRule,
    /// Whether what the teachers say about the training rows is computed once and looked up afterwards, see
    /// [`TeacherTable`]: for images that are not augmented and losses that read no maps.
    #[serde(skip_serializing_if = "is_default")]
    pub teacher_table: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl System for DistilConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "distil",
        title: "A student of frozen teachers by a list of losses",
        kind: Kind::Offline,
        paper: None,
        year: None,
        arxiv: None,
        views: 1,
        losses: true,
        trainable: &["whatever the losses bring"],
        state: &["whatever the losses keep"],
        code_bases: &[],
    };

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn teachers(&self) -> Teachers {
        Teachers::Any
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let teachers = ctx.teachers.iter().map(|teacher| teacher.network(&ctx.device)).collect::<Result<Vec<_>>>()?;
        if let Some(loss) = ctx.losses.iter().find(|loss| loss.needs().labels && !ctx.train.is_labelled()) {
            let message = format!("`{}` reads labels, but the training rows have none", loss.id());
            return Err(Error::Config { what: "losses".into(), message });
        }
        // Losses that count rows need a class for each; where there are no labels nobody looks at it.
        let blank = vec![0; if ctx.train.is_labelled() { 0 } else { ctx.train.len() }];
        let mut objective = Offline::new(&OfflineConfig {
            student: ctx.student,
            model: ctx.model,
            losses: ctx.losses,
            teachers,
            ensemble: self.ensemble,
            train_labels: if ctx.train.is_labelled() { ctx.train.labels() } else { &blank },
            seed: ctx.seed,
            device: ctx.device.clone(),
        })?;
        objective.labelled = ctx.train.is_labelled();
        if !ctx.teachers.iter().all(|teacher| teacher.classifies) {
            objective.judge = None;
        }
        if self.teacher_table {
            objective.table = Some(Arc::new(TeacherTable::of(&objective, ctx)?));
        }
        let constant = |lr: Option<f64>| ScheduleConfig {
            lr: lr.unwrap_or(ctx.recipe.schedule.lr),
            warmup_epochs: 0,
            decay: Decay::Constant,
        };
        let init = objective.init_phases()?.into_iter().map(|(name, init, objective)| Phase {
            epochs: init.epochs,
            schedule: constant(init.lr),
            ..ctx.recipe.phase(&name, Box::new(objective))
        });
        let mut phases: Vec<Phase> = init.collect();
        phases.push(ctx.recipe.phase(MAIN, Box::new(objective)));
        Ok(phases)
    }
}

/// What an [`Offline`] objective is made of.
pub struct OfflineConfig<'a> {
    /// Architecture of the student, a name of the model registry.
    pub student: &'a str,
    /// Images and classes.
    pub model: ModelConfig,
    /// The terms; `crd+kd` is a list of three: `ce`, `crd`, `kd`.
    pub losses: &'a [LossConfig],
    /// The frozen teachers; none for plain training.
    pub teachers: Vec<Arc<dyn Network>>,
    /// How the softened class probabilities of several teachers become one.
    pub ensemble: EnsembleRule,
    /// Labels of the training set, by row.
    pub train_labels: &'a [u32],
    /// Initial weights and samplers derive from it. The student starts the same for every list of losses.
    pub seed: Seed,
    /// Where parameters live.
    pub device: Device,
}

/// `L = sum_i w_i L_i(student, teachers, labels)`; plain supervised training is the case without a teacher.
///
/// Teachers see the second view of a batch, where there is one, and the student's otherwise. A student whose logits no loss
/// reads keeps its classifier as it starts, and is not evaluated by it; neither is one that learns without labels.
///
/// A method with a phase before the training (`ab`, `ft`, `fsp`) has an objective of its own for it,
/// [`Offline::init_phases`]; all objectives that come from one [`Offline::new`] share student, parts and state.
pub struct Offline {
    student: Arc<dyn Network>,
    teachers: Vec<Arc<dyn Network>>,
    /// Whom fidelity is measured against: the teacher, or all of them as one.
    judge: Option<Arc<dyn Network>>,
    /// What the teachers say about every training row, where that is looked up.
    table: Option<Arc<TeacherTable>>,
    /// Whether training rows have labels.
    labelled: bool,
    shared: Arc<Mutex<Shared>>,
    part: Part,
}

/// What an objective trains.
enum Part {
    /// The student by all terms; of its parameters only these, where its logits are nobody's matter.
    All { reached: Option<Vec<String>> },
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
            Part::All { .. } => {
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
    distiller: EnsembleDistiller,
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
        let norms = config.teachers.iter().map(|teacher| Ok(teacher.stage_norms()?)).collect::<Result<Vec<_>>>()?;
        let mut terms: Vec<NamedDistiller> = Vec::new();
        for loss in config.losses {
            let name = unique(loss.id(), &terms);
            let context = |teacher: Option<usize>| BuildContext {
                student: student.spec(),
                teacher: teacher.map(|i| config.teachers[i].spec()),
                train_labels: config.train_labels,
                seed: config.seed.child("sampler").child(&name),
                scope: method_params.root().child(&name),
                init_scope: init_params.root().child(&name),
                teacher_norms: teacher.and_then(|i| norms[i].as_deref()),
            };
            let contexts: Vec<BuildContext<'_>> = match config.teachers.len() {
                0 => vec![context(None)],
                n => (0..n).map(|i| context(Some(i))).collect(),
            };
            let distiller = EnsembleDistiller::build(loss, &contexts, config.ensemble)?;
            let init = loss.init_phase(student.spec());
            drop(contexts);
            terms.push(NamedDistiller { name, distiller, init, needs: loss.needs() });
        }
        let judge = match config.teachers.as_slice() {
            [] => None,
            [teacher] => Some(Arc::clone(teacher)),
            all => Some(Arc::new(Ensemble::new(all.to_vec(), config.ensemble)?) as Arc<dyn Network>),
        };
        let shared = Shared { student_params, terms, method_params, init_params };
        let mut objective = Self {
            student: Arc::from(student),
            teachers: config.teachers.clone(),
            judge,
            table: None,
            labelled: true,
            shared: Arc::new(Mutex::new(shared)),
            part: Part::All { reached: None },
        };
        let reads = |loss: &LossConfig| matches!(loss.info().inputs.logits, Side::Student | Side::Both);
        if !config.losses.iter().any(reads) {
            objective.part = Part::All { reached: Some(objective.reached(None)?) };
        }
        Ok(objective)
    }

    /// What the losses want to be given in the training itself.
    pub(super) fn needs(&self) -> Needs {
        self.lock().needs(&self.part)
    }

    /// The frozen teachers.
    pub(super) fn teachers(&self) -> &[Arc<dyn Network>] {
        &self.teachers
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
            let reached = if phase.student { Some(self.reached(Some(term))?) } else { None };
            Ok(Self {
                student: Arc::clone(&self.student),
                teachers: self.teachers.clone(),
                judge: self.judge.clone(),
                // A phase before the training may look at maps.
                table: None,
                labelled: self.labelled,
                shared: Arc::clone(&self.shared),
                part: Part::Init { term, reached },
            })
        };
        phases.into_iter().map(|(term, name, phase)| Ok((name, phase, objective(term, phase)?))).collect()
    }

    /// The student's parameters that the term of a phase before the training depends on, or all terms of the training
    /// itself, found by a pass over two blank images: which layers lie behind the last map that a term looks at differs
    /// from network to network.
    fn reached(&self, init: Option<usize>) -> Result<Vec<String>> {
        let spec = self.student.spec();
        let mut shared = self.lock();
        let device = shared.student_params.root().device().clone();
        let blank = |spec: &retort_nn::NetworkSpec| {
            let [height, width] = spec.image;
            Tensor::zeros((2, spec.in_channels, height, width), DType::F32, &device)
        };
        let images = blank(spec)?;
        let before = (shared.init_params.snapshot()?, shared.method_params.snapshot()?);
        let terms: Vec<usize> = init.map_or((0..shared.terms.len()).collect(), |term| vec![term]);
        let needs = terms.iter().fold(Needs::default(), |needs, &term| needs.or(shared.terms[term].needs));
        let teachers = self.teachers.iter().map(|teacher| seen(teacher.as_ref(), &needs, &blank(teacher.spec())?));
        let teachers = if needs.teacher { teachers.collect::<Result<Vec<_>>>()? } else { vec![] };
        let student = self.student.forward(&images, Mode::Eval, needs.taps)?;
        let context = Context {
            student: &student,
            teacher: None,
            labels: &Tensor::zeros(2, DType::U32, &device)?,
            label_ids: &[0; 2],
            index: &[0; 2],
            epoch: 0,
        };
        let mut reached = std::collections::BTreeSet::new();
        for term in terms {
            let distiller = &mut shared.terms[term].distiller;
            let state = distiller.state()?;
            let term = match init {
                Some(_) => distiller.init_term(&context, &teachers)?,
                None => distiller.term(&context, &teachers)?,
            };
            distiller.load_state(&state)?;
            let grads = term.weighted()?.backward()?;
            let found = shared.student_params.trainable().into_iter().filter(|(_, var)| grads.get(var).is_some());
            reached.extend(found.map(|(name, _)| name));
        }
        // The pass has moved the running statistics of the parts.
        shared.init_params.load(&before.0)?;
        shared.method_params.load(&before.1)?;
        let all = shared.student_params.trainable().into_iter().map(|(name, _)| name);
        Ok(all.filter(|name| reached.contains(name)).collect())
    }

    /// What the teachers say about a batch.
    fn teacher_outputs(&self, needs: &Needs, batch: &Batch) -> Result<Vec<Outputs>> {
        if !needs.teacher {
            return Ok(Vec::new());
        }
        if let Some(table) = &self.table {
            return table.rows(&batch.index, batch.images.device());
        }
        let images = batch.more_views.first().unwrap_or(&batch.images);
        self.teachers.iter().map(|teacher| seen(teacher.as_ref(), needs, images)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a teacher shows of itself.
fn seen(teacher: &dyn Network, needs: &Needs, images: &Tensor) -> Result<Outputs> {
    let mode = if needs.batch_statistics { Mode::BatchStatistics } else { Mode::Eval };
    Ok(teacher.forward(images, mode, needs.taps)?)
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
        let only = |params: Vec<(String, candle_core::Var)>, wanted: &[String]| -> Vec<_> {
            params
                .into_iter()
                .filter(|(name, _)| wanted.iter().any(|w| name.strip_prefix("student.") == Some(w)))
                .collect()
        };
        let student = named("student", &shared.student_params);
        let all: Vec<_> = match &self.part {
            Part::All { reached } => {
                let student = match reached {
                    Some(reached) => only(student, reached),
                    None => student,
                };
                student.into_iter().chain(named("method", &shared.method_params)).collect()
            }
            Part::Init { term, reached } => {
                let of_term = format!("init.{}.", shared.terms[*term].name);
                let init =
                    named("init", &shared.init_params).into_iter().filter(|(name, _)| name.starts_with(&of_term));
                only(student, reached.as_deref().unwrap_or_default()).into_iter().chain(init).collect()
            }
        };
        vec![ParamGroup::new(all)]
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let mut shared = self.lock();
        let needs = shared.needs(&self.part);
        let teachers = self.teacher_outputs(&needs, batch)?;
        let student = match &self.part {
            Part::Init { reached: None, .. } => None,
            _ => Some(self.student.forward(&batch.images, Mode::Train, needs.taps)?),
        };
        let seen = student.as_ref().or(teachers.first()).ok_or_else(|| Error::Config {
            what: "losses".into(),
            message: "a phase before the training needs a teacher, but there is none".into(),
        })?;
        let blank = Tensor::zeros(batch.len(), DType::U32, batch.images.device())?;
        let context = Context {
            student: seen,
            teacher: None,
            labels: if self.labelled { batch.labels()? } else { &blank },
            label_ids: &batch.label_ids,
            index: &batch.index,
            epoch: step.epoch,
        };
        match &self.part {
            Part::All { reached } => {
                let terms = shared.terms.iter_mut().map(|t| Ok(t.distiller.term(&context, &teachers)?));
                let terms = terms.collect::<Result<_>>()?;
                let speaks = self.labelled && reached.is_none();
                Ok(StepOutput { terms, logits: student.filter(|_| speaks).map(|s| s.logits) })
            }
            Part::Init { term, .. } => {
                let terms = vec![shared.terms[*term].distiller.init_term(&context, &teachers)?];
                Ok(StepOutput { terms, logits: None })
            }
        }
    }

    fn after_step(&mut self) -> Result<()> {
        if matches!(self.part, Part::All { .. }) {
            for term in &mut self.lock().terms {
                term.distiller.after_step()?;
            }
        }
        Ok(())
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        match &self.part {
            Part::All { reached: None } if self.labelled => {
                let judge = self.judge.as_deref();
                let student = Evaluated::student(self.student.as_ref(), judge);
                // A single teacher has a run and a row of its own.
                let ensemble = judge.filter(|_| self.teachers.len() > 1);
                let ensemble = ensemble.map(|network| Evaluated { name: "ensemble".into(), network, teacher: None });
                [Some(student), ensemble].into_iter().flatten().collect()
            }
            // The classifier has not been trained.
            _ => Vec::new(),
        }
    }

    /// The student alone.
    fn weights(&self) -> Result<Tensors> {
        Ok(self.lock().student_params.snapshot()?)
    }

    fn state(&self) -> Result<Tensors> {
        let shared = self.lock();
        let mut state = under("student", shared.student_params.snapshot()?);
        state.extend(under("method", shared.method_params.snapshot()?));
        state.extend(under("init", shared.init_params.snapshot()?));
        for term in &shared.terms {
            state.extend(under(&format!("loss.{}", term.name), term.distiller.state()?));
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

/// Weights and running statistics of the student that an [`Offline`] objective trains, as copies.
///
/// # Errors
///
/// Fails if a copy cannot be allocated.
pub fn student_weights(objective: &dyn Objective) -> Result<Tensors> {
    Ok(part(&objective.state()?, "student."))
}
