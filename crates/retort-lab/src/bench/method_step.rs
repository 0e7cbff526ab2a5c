//! `bench method-step`: a step of any method or system as the trainer runs it.

use super::clock::{Medians, measure_between};
use super::report::Report;
use super::{ImageShape, Options, Run, seed};
use crate::source::{no_loss, suggestion};
use crate::{Error, Result};
use candle_core::{DType, Device};
use clap::Args;
use retort_datasets::{Dataset, Sampling, Split, ViewConfig, synthetic};
use retort_losses::LossConfig;
use retort_losses::output::CeConfig;
use retort_models::ModelConfig;
use retort_nn::{Decay, OptimizerConfig, Params, ScheduleConfig, Seed};
use retort_trainers::engine::{BatchPlan, Observer, Phase, StepReport, Trainer};
use retort_trainers::{Recipe, SystemConfig, SystemContext, Teachers, Trained};
use std::sync::atomic::AtomicBool;

#[derive(Debug, Args)]
pub(super) struct MethodStepArgs {
    /// Method or system as `list methods` names it; `ce` is plain training.
    #[arg(long, value_name = "ID")]
    method: String,
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    pub(super) options: Options,
}

/// What is trained, and by whom.
#[derive(Clone, Debug, Args)]
pub(super) struct Networks {
    /// Architecture of the student, and of its peers.
    #[arg(long, default_value = "resnet20")]
    pub(super) student: String,
    /// Architecture of the teacher, for methods that have one.
    #[arg(long, default_value = "resnet56")]
    pub(super) teacher: String,
    /// Channels, height and width of an image.
    #[arg(long, value_name = "CxHxW", default_value = "3x32x32")]
    pub(super) image: ImageShape,
}

impl MethodStepArgs {
    pub(super) fn run(&self, run: &Run<'_>) -> Result<Report> {
        let work = Work::new(&self.method, &self.networks, run)?;
        let mut phases = work.phases()?;
        // Phases before it are another kind of work.
        let last = phases.len().saturating_sub(1);
        let phase = phases.get_mut(last..).unwrap_or_default();
        let parameters: usize =
            phase.iter().flat_map(|p| p.objective.groups()).flat_map(|g| g.params).map(|(_, v)| v.elem_count()).sum();
        let medians = work.time(phase)?;
        Ok(Report::new()
            .with("method", self.method.as_str())
            .with("student", self.networks.student.as_str())
            .with("teacher", work.teacher.as_deref())
            .with("batch", self.options.batch)
            .with("threads", run.threads)
            .with("steps", self.options.steps)
            .with("step_ms", medians.whole)
            .with("parameters", parameters)
            .with_peak_memory()
            .with_instruction_set()
            .with("image", self.networks.image.to_string())
            .with("classes", self.options.classes))
    }
}

/// A method with everything that it starts from, on synthetic images.
struct Work<'a> {
    run: &'a Run<'a>,
    networks: &'a Networks,
    model: ModelConfig,
    system: SystemConfig,
    losses: Vec<LossConfig>,
    /// Architecture of the teacher, where there is one.
    teacher: Option<String>,
    train: Dataset,
    test: Dataset,
}

impl<'a> Work<'a> {
    fn new(id: &str, networks: &'a Networks, run: &'a Run<'a>) -> Result<Self> {
        let options = run.options;
        let model = options.model(networks.image);
        let (system, losses) = named(id)?;
        let ImageShape([channels, height, width]) = networks.image;
        super::check_entries("a batch", &[options.batch, channels, height, width])?;
        let images = |rows, split| {
            let shape = retort_datasets::ImageShape { channels, height, width };
            synthetic(shape, options.classes, rows, split, 1).map_err(Error::request)
        };
        let rows = options.batch.saturating_mul(options.steps.saturating_add(super::clock::WARM_UP));
        // A class needs a second image for methods that compare two, and the batches of some methods are larger.
        let train = images(rows.max(4 * options.classes), Split::Train)?;
        let test = images(options.batch.min(64), Split::Test)?;
        let wants = match system.teachers() {
            Teachers::None => false,
            Teachers::Any => losses.iter().any(|loss| loss.needs().teacher),
            Teachers::One | Teachers::Of(_) => true,
        };
        // Some teachers are parts on top of the network that they prepare.
        let own = matches!(system.teachers(), Teachers::One);
        let teacher = wants.then(|| if own { networks.student.clone() } else { networks.teacher.clone() });
        Ok(Self { run, networks, model, system, losses, teacher, train, test })
    }

    fn phases(&self) -> Result<Vec<Phase>> {
        let teachers = self.teacher.as_deref().map(|name| self.trained(name, &self.system)).transpose()?;
        self.phases_of(&self.system, &self.networks.student, &self.losses, teachers.as_slice())
    }

    /// A network as training might have left it; how it got there costs nothing here.
    fn trained(&self, name: &str, starts: &SystemConfig) -> Result<Trained> {
        let params = Params::new(seed().child("teacher"), DType::F32, &Device::Cpu);
        retort_models::build(name, &self.model, &params.root()).map_err(Error::request)?;
        let plain = Trained { model: name.into(), config: self.model, weights: params.snapshot()?, classifies: true };
        let Teachers::Of(id) = starts.teachers() else { return Ok(plain) };
        let (system, _) = named(id)?;
        let phases = self.phases_of(&system, name, &[], std::slice::from_ref(&plain))?;
        let last = phases.last().ok_or_else(|| Error::Failed(format!("`{id}` has no phase")))?;
        Ok(Trained { weights: last.objective.weights()?, ..plain })
    }

    fn phases_of(
        &self,
        system: &SystemConfig,
        model: &str,
        losses: &[LossConfig],
        teachers: &[Trained],
    ) -> Result<Vec<Phase>> {
        let options = self.run.options;
        let views = vec![ViewConfig::default(); system.views()];
        let recipe = Recipe {
            epochs: 1,
            plan: BatchPlan { batch_size: options.batch, sampling: Sampling::Shuffled, views },
            optimizer: OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, dampening: 0.0, weight_decay: 5e-4 },
            // What a step costs does not depend on its length, and beside a teacher that knows nothing, whose embedding is
            // far from 0, the gradients of some methods are so large that any other step would diverge.
            schedule: ScheduleConfig { lr: 1e-20, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.0 } },
        };
        Ok(system.phases(&SystemContext {
            student: model,
            model: self.model,
            losses,
            teachers,
            train: &self.train,
            recipe: &recipe,
            teacher_outputs: None,
            seed: Seed::root(1),
            device: Device::Cpu,
        })?)
    }

    /// Times between the ends of steps, so that loading is a part of them.
    fn time(&self, phases: &mut [Phase]) -> Result<Medians<0>> {
        let enough = AtomicBool::new(false);
        let trainer = Trainer {
            train: &self.train,
            test: &self.test,
            seed: seed(),
            device: Device::Cpu,
            test_views: vec![ViewConfig::default(); phases.first().map_or(1, |phase| phase.plan.views.len()).min(2)],
            eval_batch_size: 64,
            evaluate_every: 1,
            bounds: false,
            checkpoint: None,
            stop: &enough,
        };
        measure_between(self.run.options.steps, self.run.stop, &enough, |lap| {
            let run = trainer.run(phases, &mut Laps(lap));
            match run {
                Err(retort_trainers::Error::Interrupted) | Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// Calls at the end of every step.
struct Laps<'a>(&'a mut (dyn FnMut() + Send));

impl Observer for Laps<'_> {
    fn on_step(&mut self, _: &StepReport<'_>) {
        (self.0)();
    }
}

/// What `list methods` names: a system with its published settings, or a loss beside the cross-entropy with its own.
pub(super) fn named(id: &str) -> Result<(SystemConfig, Vec<LossConfig>)> {
    if let Some(system) = SystemConfig::defaults().into_iter().find(|system| system.id() == id && !system.info().losses)
    {
        return Ok((system, Vec::new()));
    }
    if let Some(loss) = LossConfig::defaults().into_iter().find(|loss| loss.id() == id) {
        let ce = loss.info().ce_weight.map(|weight| LossConfig::Ce(CeConfig { weight }));
        return Ok((SystemConfig::default(), ce.into_iter().chain([loss]).collect()));
    }
    let losses = retort_losses::registry().iter().map(|info| info.id);
    let systems = retort_trainers::systems().iter().filter(|info| !info.losses).map(|info| info.id);
    let hint = no_loss(id).map_or_else(|| suggestion(id, losses.chain(systems)), |place| format!("; {place}"));
    Err(Error::Request(format!("unknown method `{id}`{hint}")))
}
