//! Whether rows fit their networks and their batches, found out before anything is trained.

use crate::manifest::{Loaded, MethodConfig, Pair, Profile};
use crate::plan::{RunSpec, losses};
use crate::run::{RunData, phases, trained};
use crate::splits::{DataSets, ProfileData};
use crate::{Error, Result};
use candle_core::{DType, Device};
use retort_datasets::Sampling;
use retort_losses::{BuildContext, LossConfig, Side};
use retort_models::ModelConfig;
use retort_nn::{NetworkSpec, Params, Seed, StageNorm};
use retort_trainers::{Kind, Trained};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use toml::Spanned;

/// What a network declares about itself.
pub(crate) struct Declared {
    pub(crate) spec: NetworkSpec,
    /// The batch norms before the last activations of its stages, where it shows them.
    pub(crate) norms: Option<Vec<StageNorm>>,
}

impl Declared {
    /// Builds the network and gives it back.
    pub(crate) fn of(name: &str, config: &ModelConfig) -> Result<Self> {
        let network = retort_models::build(name, config, &params().root()).map_err(Error::request)?;
        Ok(Self { spec: network.spec().clone(), norms: network.stage_norms()? })
    }
}

/// Checks the rows of a profile; every network, loss and system of a pair once.
pub(crate) struct Check<'a> {
    loaded: &'a Loaded,
    profile: &'a Profile,
    data: &'a ProfileData,
    rows: DataSets,
    networks: BTreeMap<String, Declared>,
    checked: Vec<String>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(loaded: &'a Loaded, profile: &'a Profile, data: &'a ProfileData) -> Result<Self> {
        let modality = profile.modality;
        loaded.check_batches(profile, profile.batches.as_ref(), &data.students.train.class_counts())?;
        loaded.check_view(&profile.augmentation, modality, &data.students.train)?;
        let (teacher, of_teacher) = (&data.teachers().train, profile.teacher_modality.unwrap_or(modality));
        if data.teachers.is_some() || profile.teacher_modality.is_some() {
            loaded.check_view(&profile.augmentation, of_teacher, teacher)?;
        }
        for config in &loaded.manifest.teachers {
            loaded.check_view(config.augmentation.as_deref().unwrap_or(&[]), of_teacher, teacher)?;
        }
        let rows = data.all();
        Ok(Self { loaded, profile, data, rows, networks: BTreeMap::new(), checked: vec![] })
    }

    /// Refuses a row that the networks of a pair or the batches do not allow.
    pub(crate) fn row(&mut self, pair: &Pair, method: &MethodConfig, spec: &RunSpec) -> Result<()> {
        self.judged(method, spec)?;
        self.probed(spec)?;
        let splits = self.rows.find(&spec.data)?;
        self.loaded.check_batches(self.profile, method.batches.as_ref(), &splits.train.class_counts())?;
        let of_teacher = self.profile.teacher_modality.unwrap_or(self.profile.modality);
        let (student, teacher) = (self.profile.augmentation(method), method.teacher_augmentation.as_deref());
        for (augmentation, modality) in
            [(student.as_slice(), self.profile.modality), (teacher.unwrap_or_default(), of_teacher)]
        {
            self.loaded.check_view(augmentation, modality, &self.data.students.train)?;
        }
        let losses = losses(method, self.profile, pair);
        if spec.system.info().losses {
            losses.iter().try_for_each(|loss| self.loss(pair, spec, loss))?;
            self.batches(method, spec, losses)?;
        }
        self.rest(method, spec)?;
        match self.profile.system(method).is_some() {
            true => self.system(pair, method, spec),
            false => Ok(()),
        }
    }

    /// Refuses runs that nothing could judge, and systems without the labels or the classifier that they need.
    fn judged(&self, method: &MethodConfig, spec: &RunSpec) -> Result<()> {
        let refused = |message: String| Err(self.loaded.point(method.id.span(), &message));
        let row = method.id.as_ref();
        if let Some(run) = spec.with_teachers().into_iter().find(|run| run.probe.is_none() && !run.classifies()) {
            let system = run.system.id();
            return refused(format!(
                "`{row}`: `{system}` trains no classifier here; a profile with a `probe` judges it"
            ));
        }
        let own_terms = !spec.system.info().losses && spec.system.info().kind != Kind::SelfSupervised;
        if own_terms && spec.unlabelled {
            return refused(format!(
                "`{row}`: `{}` reads labels, but the row says `unlabelled = true`",
                spec.system.id()
            ));
        }
        match spec.teachers().find(|teacher| own_terms && !teacher.classifies()) {
            Some(_) => refused(format!(
                "`{row}`: `{}` reads logits of a teacher without a trained classifier",
                spec.system.id()
            )),
            None => Ok(()),
        }
    }

    /// Refuses a probe that the networks of a row, or the rows of the probe, do not allow.
    fn probed(&self, spec: &RunSpec) -> Result<()> {
        let Some(settings) = &self.profile.probe else { return Ok(()) };
        let refused = |message: String| Err(self.loaded.point(settings.config.span(), &message));
        for run in spec.with_teachers() {
            let Some(probe) = &run.probe else { continue };
            let rows = self.rows.find(&probe.data)?;
            let (own, seen) = (RunData::of(run, &self.rows)?.model, rows.model(run.modality)?);
            if (own.in_channels, own.image) != (seen.in_channels, seen.image) {
                let shape = |m: &ModelConfig| format!("{}x{}x{}", m.in_channels, m.image[0], m.image[1]);
                let (expected, found) = (shape(&own), shape(&seen));
                return refused(format!(
                    "the `data` of the probe must be images of {expected}, as `{}` sees them, found {found}",
                    run.model
                ));
            }
            if let Some(k) = probe.config.knn.iter().find(|&&k| k > rows.train.len()) {
                return refused(format!("`knn` must be at most the {} rows of the probe, found {k}", rows.train.len()));
            }
            let network = retort_models::info(&run.model).and_then(|info| info.spec(&own)).map_err(Error::request)?;
            if probe.config.stages && network.stages().is_empty() {
                return refused(format!("`stages` needs networks with stages, `{}` has none", run.model));
            }
        }
        Ok(())
    }

    /// Refuses a loss whose shapes the networks do not allow, or that reads labels which are taken away.
    fn loss(&mut self, pair: &Pair, spec: &RunSpec, loss: &Spanned<LossConfig>) -> Result<()> {
        let refused = |e: &dyn std::fmt::Display| {
            let message = format!("{e} (`{}`; the pair's `without` leaves a row out)", pair.heading());
            self.loaded.point(loss.span(), &message)
        };
        if spec.unlabelled && loss.as_ref().needs().labels {
            let id = loss.as_ref().id();
            return Err(refused(&format!("`{id}` reads labels, but the row says `unlabelled = true`")));
        }
        let reads = loss.as_ref().info().inputs.logits;
        if let Some(silent) = spec.teachers().find(|teacher| !teacher.classifies())
            && matches!(reads, Side::Teacher | Side::Both)
        {
            let (id, system) = (loss.as_ref().id(), silent.system.id());
            return Err(refused(&format!("`{id}` reads the teacher's logits, but `{system}` trains no classifier")));
        }
        let run = RunData::of(spec, &self.rows)?;
        let teachers = spec.teachers().map(|t| Ok((t.model.clone(), RunData::of(t, &self.rows)?.model)));
        let teachers = teachers.collect::<Result<Vec<_>>>()?;
        let key = format!("{:?} {:?} {:?} {:?}", teachers, spec.model, run.model, loss.as_ref());
        if self.checked.contains(&key) {
            return Ok(());
        }
        for (name, config) in teachers.iter().chain([&(spec.model.clone(), run.model)]) {
            let key = declared(name, config);
            if let Entry::Vacant(place) = self.networks.entry(key) {
                place.insert(Declared::of(name, config)?);
            }
        }
        let student = &self.networks[&declared(&spec.model, &run.model)];
        let teacher = teachers.first().map(|(name, config)| &self.networks[&declared(name, config)]);
        let (parts, init_parts) = (params(), params());
        let context = BuildContext {
            student: &student.spec,
            teacher: teacher.map(|teacher| &teacher.spec),
            train_labels: &run.labels,
            seed: Seed::root(1),
            scope: parts.root(),
            init_scope: init_parts.root(),
            teacher_norms: teacher.and_then(|teacher| teacher.norms.as_deref()),
        };
        let built = loss.as_ref().build(&context).map(drop);
        built.map_err(|e| refused(&e))?;
        self.checked.push(key);
        Ok(())
    }

    /// Refuses a system that the networks of the pair do not allow, by setting it up with untrained ones.
    fn system(&mut self, pair: &Pair, method: &MethodConfig, spec: &RunSpec) -> Result<()> {
        let tried = untrained(spec, &self.rows).map(drop);
        tried.map_err(|e| {
            let span = self.profile.system(method).map_or(method.id.span(), Spanned::span);
            self.loaded.point(span, &format!("{e} (`{}`)", pair.heading()))
        })
    }

    /// Refuses a system of which the last batch of an epoch has too few rows, teachers of the row included.
    fn rest(&self, method: &MethodConfig, spec: &RunSpec) -> Result<()> {
        for run in spec.with_teachers() {
            let (size, rows, least) = (run.batch_size, run.data.train, run.system.least_rows());
            let last = self.last_batch(method, size, rows);
            if last < least {
                let message = format!(
                    "`{}` needs batches of at least {least} rows, but {rows} training images in batches of {size} leave {last} \
                     for the last one; change `batch_size` or the number of training images",
                    run.system.id()
                );
                return Err(self.loaded.point(method.id.span(), &message));
            }
        }
        Ok(())
    }

    /// Rows of the last batch of an epoch.
    fn last_batch(&self, method: &MethodConfig, size: usize, rows: usize) -> usize {
        let batches = method.batches.as_ref().or(self.profile.batches.as_ref());
        // Batches by class are all full.
        let full = batches.is_some_and(|batches| matches!(batches.as_ref(), Sampling::ClassBalanced { .. }));
        if full || rows.is_multiple_of(size) { size } else { rows % size }
    }

    /// Refuses a loss that some batch of an epoch, the last one at least, has too few rows for.
    fn batches(&self, method: &MethodConfig, spec: &RunSpec, losses: &[Spanned<LossConfig>]) -> Result<()> {
        let batches = method.batches.as_ref().or(self.profile.batches.as_ref());
        let (size, rows) = (spec.batch_size, spec.data.train);
        let last = self.last_batch(method, size, rows);
        let each = match batches.map(Spanned::as_ref) {
            Some(Sampling::ClassBalanced { classes }) => size / classes,
            _ => 1,
        };
        if let Some(loss) = losses.iter().find(|loss| loss.as_ref().least_rows_of_class() > each) {
            let (id, least) = (loss.as_ref().id(), loss.as_ref().least_rows_of_class());
            let message = format!(
                "`{id}` needs at least {least} rows of every class in a batch; `batches = {{ kind = \"class-balanced\", classes = N }}` \
                 with a `batch_size` of at least {least} N gives them"
            );
            return Err(self.loaded.point(loss.span(), &message));
        }
        let Some(loss) = losses.iter().find(|loss| loss.as_ref().least_rows() > last) else { return Ok(()) };
        let (id, least) = (loss.as_ref().id(), loss.as_ref().least_rows());
        let message = format!(
            "`{id}` needs batches of at least {least} rows, but {rows} training images in batches of {size} leave {last} for the \
             last one; change `batch_size` or the number of training images"
        );
        Err(self.loaded.point(loss.span(), &message))
    }
}

/// What the runs of `spec` would leave if they ended before their first step.
fn untrained(spec: &RunSpec, rows: &DataSets) -> Result<Trained> {
    let teachers = spec.teachers().map(|teacher| untrained(teacher, rows)).collect::<Result<Vec<_>>>()?;
    let data = RunData::of(spec, rows)?;
    let phases = phases(spec, &data, &teachers, None)?;
    let last = phases.last().ok_or_else(|| Error::Failed("a system without a phase".into()))?;
    Ok(trained(spec, &data, last.objective.weights()?))
}

fn declared(name: &str, config: &ModelConfig) -> String {
    format!("{name} {config:?}")
}

fn params() -> Params {
    Params::new(Seed::root(1), DType::F32, &Device::Cpu)
}
