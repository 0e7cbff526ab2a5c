//! Reading manifests, and everything about them that can be found wrong before data are read.

use super::{Collection, DataConfig, Manifest, MethodConfig, Profile, TEACHER, TeacherConfig, Tuning};
use crate::plan::MAX_SEEDS;
use crate::published::Published;
use crate::source::{Source, suggestion};
use crate::{Error, Result};
use retort_datasets::{CustomConfig, Dataset, ImageShape, Modality, Sampling, Split, TransformConfig, ViewConfig};
use retort_losses::LossConfig;
use retort_nn::{OptimizerConfig, ScheduleConfig};
use retort_trainers::{SystemConfig, Teachers};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// More teachers of one student than anybody has; a larger number is a slip.
const MAX_TEACHERS: usize = 64;

/// A manifest that was read and checked, with the text that messages point into.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Name of the table: the file's stem.
    pub name: String,
    /// The manifest.
    pub manifest: Manifest,
    pub(crate) published: Option<Published>,
    pub(crate) source: Source,
}

impl Loaded {
    /// Reads the table `name` from the folder of manifests.
    ///
    /// # Errors
    ///
    /// An unknown table with the nearest name, or whatever [`Loaded::read`] finds.
    pub fn table(folder: &Path, name: &str) -> Result<Self> {
        Self::read(&path(folder, name)?)
    }

    /// Reads all tables of the folder, those that are parts of a report among them.
    ///
    /// # Errors
    ///
    /// The first mistake in any of them.
    pub fn all(folder: &Path) -> Result<Vec<Self>> {
        let names = tables(folder)?.into_iter();
        let parts =
            names.map(|name| Ok((parts(&path(folder, &name)?)?.is_some(), name))).collect::<Result<Vec<_>>>()?;
        parts.iter().filter(|(report, _)| !report).map(|(_, name)| Self::table(folder, name)).collect()
    }

    /// Reads and checks one manifest.
    ///
    /// # Errors
    ///
    /// File, line and column of the first mistake, with the nearest valid name.
    pub fn read(path: &Path) -> Result<Self> {
        let source = Source::read(path)?;
        let manifest: Manifest = source.parse()?;
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let mut loaded = Self { name, manifest, published: None, source };
        loaded.check()?;
        loaded.published = loaded.read_published()?;
        Ok(loaded)
    }

    /// The profile called `name`, or the default one.
    ///
    /// # Errors
    ///
    /// An unknown profile with the nearest name.
    pub fn profile(&self, name: Option<&str>) -> Result<(&str, &Profile)> {
        let profiles = &self.manifest.profiles;
        let name = name.unwrap_or(self.manifest.default_profile.as_ref());
        let (name, profile) = profiles.get_key_value(name).ok_or_else(|| {
            let hint = suggestion(name, profiles.keys().map(String::as_str));
            Error::file(&self.source.path, format!("unknown profile `{name}`{hint}"))
        })?;
        self.check_models(profile)?;
        Ok((name, profile))
    }

    /// A profile may name networks that this version does not have, as long as nobody asks for it.
    fn check_models(&self, profile: &Profile) -> Result<()> {
        for model in profile.pairs.as_ref().iter().flat_map(|pair| pair.teacher.iter().chain([&pair.student])) {
            retort_models::info(model.as_ref()).map_err(|e| self.source.error(model.span(), e))?;
        }
        Ok(())
    }

    /// Method ids in the order of the rows.
    pub fn method_ids(&self) -> impl Iterator<Item = &str> + Clone {
        self.manifest.methods.iter().map(|method| method.id.as_ref().as_str())
    }

    fn check(&self) -> Result<()> {
        let manifest = &self.manifest;
        self.check_teachers()?;
        let mut seen = Vec::new();
        for method in &manifest.methods {
            let id = method.id.as_ref();
            if seen.contains(&id) {
                return Err(self.source.error(method.id.span(), format!("method `{id}` occurs twice")));
            }
            seen.push(id);
            if id == TEACHER {
                return Err(self.source.error(method.id.span(), format!("`{id}` is the teacher's own row")));
            }
            self.check_row(method)?;
        }
        self.check_method(&manifest.baseline)?;
        if !manifest.profiles.contains_key(manifest.default_profile.as_ref()) {
            let name = manifest.default_profile.as_ref();
            let hint = suggestion(name, manifest.profiles.keys().map(String::as_str));
            return Err(self.source.error(manifest.default_profile.span(), format!("unknown profile `{name}`{hint}")));
        }
        manifest.profiles.values().try_for_each(|profile| self.check_profile(profile))?;
        self.profile(None).map(drop)
    }

    /// Kinds of teachers: each once, started from one before it, of a system that starts from such a network.
    fn check_teachers(&self) -> Result<()> {
        let teachers = &self.manifest.teachers;
        for (place, teacher) in teachers.iter().enumerate() {
            let id = teacher.id.as_ref();
            let before = &teachers[..place];
            if id == TEACHER || before.iter().any(|other| other.id.as_ref() == id) {
                let message = format!("teacher `{id}` occurs twice (`{TEACHER}` is the plain one)");
                return Err(self.source.error(teacher.id.span(), message));
            }
            teacher.system.as_ref().validate().map_err(|e| self.point(teacher.system.span(), &e))?;
            if let (Some(from), Teachers::None) = (&teacher.from, teacher.system.as_ref().teachers()) {
                let message = format!("`{id}` is trained from scratch and starts from no teacher; found `from`");
                return Err(self.source.error(from.span(), message));
            }
            let origin = teacher.origin();
            let from = origin.as_ref().as_str();
            if from != TEACHER && !before.iter().any(|other| other.id.as_ref() == from) {
                let known = [TEACHER].into_iter().chain(before.iter().map(|other| other.id.as_ref().as_str()));
                let span = teacher.from.as_ref().map_or(teacher.id.span(), Spanned::span);
                let message = format!("no teacher before `{id}` is called `{from}`{}", suggestion(from, known));
                return Err(self.source.error(span, message));
            }
            self.check_losses_of(&teacher.id, teacher.system.as_ref(), &[])?;
        }
        self.teacher(&self.manifest.default_teacher).map(drop)
    }

    /// The kind of teacher that is called `id`; none for the plain one.
    pub(crate) fn teacher(&self, id: &Spanned<String>) -> Result<Option<&TeacherConfig>> {
        if id.as_ref() == TEACHER {
            return Ok(None);
        }
        let known = self.manifest.teachers.iter().map(|teacher| teacher.id.as_ref().as_str());
        let found = self.manifest.teachers.iter().find(|teacher| teacher.id == *id);
        found.map(Some).ok_or_else(|| {
            let hint = suggestion(id.as_ref(), [TEACHER].into_iter().chain(known));
            self.source.error(id.span(), format!("unknown teacher `{}`{hint}", id.as_ref()))
        })
    }

    fn check_row(&self, method: &MethodConfig) -> Result<()> {
        let default = SystemConfig::default();
        let system = method.system.as_ref().map_or(&default, Spanned::as_ref);
        if let Some(system) = &method.system {
            system.as_ref().validate().map_err(|e| self.point(system.span(), &e))?;
        }
        self.check_losses(&method.losses)?;
        let losses: Vec<LossConfig> = method.losses.iter().map(|loss| loss.as_ref().clone()).collect();
        self.check_losses_of(&method.id, system, &losses)?;
        let teacher = self.teacher(method.teacher.as_ref().unwrap_or(&self.manifest.default_teacher))?;
        let span = method.teacher.as_ref().map_or(method.id.span(), Spanned::span);
        if let (Some(named), Teachers::None) = (&method.teacher, system.teachers()) {
            let message = format!("`{}` starts from no teacher, found `teacher = \"{}\"`", system.id(), named.as_ref());
            return Err(self.source.error(span, message));
        }
        if let Teachers::Of(wanted) = system.teachers()
            && teacher.is_none_or(|teacher| teacher.system.as_ref().id() != wanted)
        {
            let of = |t: &TeacherConfig| t.system.as_ref().id() == wanted;
            let fitting: Vec<&str> =
                self.manifest.teachers.iter().filter(|t| of(t)).map(|t| t.id.as_ref().as_str()).collect();
            let message = format!(
                "`{}` starts from a teacher of the system `{wanted}`; of those there are in `teachers`: {fitting:?}",
                system.id()
            );
            return Err(self.source.error(span, message));
        }
        if let Some(count) = &method.ensemble {
            let n = *count.as_ref();
            if !(1..=MAX_TEACHERS).contains(&n) || (n > 1 && system.teachers() != Teachers::Any) {
                let message = format!(
                    "`ensemble` must be in 1 ..= {MAX_TEACHERS}, and 1 for systems that start from one teacher, found {n} for `{}`",
                    system.id()
                );
                return Err(self.source.error(count.span(), message));
            }
        }
        if let Some(optimizer) = &method.optimizer {
            optimizer.as_ref().validate().map_err(|e| self.point(optimizer.span(), &e))?;
            if system.info().losses {
                self.check_split(optimizer, &method.losses)?;
            }
        }
        Ok(())
    }

    fn check_losses_of(&self, id: &Spanned<String>, system: &SystemConfig, losses: &[LossConfig]) -> Result<()> {
        system.check_losses(losses).map_err(|e| self.source.error(id.span(), e))
    }

    /// The published table, with every row that the manifest names.
    fn read_published(&self) -> Result<Option<Published>> {
        let Some(config) = &self.manifest.published else { return Ok(None) };
        retort_datasets::info(config.data.as_ref()).map_err(|e| self.source.error(config.data.span(), e))?;
        let folder = self.source.path.parent().unwrap_or(Path::new(""));
        let read = Published::read(&folder.join(config.file.as_ref()));
        let published = read.map_err(|e| self.source.error(config.file.span(), e))?;
        for name in self.manifest.methods.iter().filter_map(|method| method.published.as_ref()) {
            let known = published.methods();
            if !known.contains(&name.as_ref().as_str()) {
                let hint = suggestion(name.as_ref(), known.iter().copied());
                let message = format!("no published row is called `{}`{hint}", name.as_ref());
                return Err(self.source.error(name.span(), message));
            }
        }
        Ok(Some(published))
    }

    fn check_profile(&self, profile: &Profile) -> Result<()> {
        self.check_data(profile)?;
        let probe = profile.probe.as_ref();
        for data in profile.teacher_data.iter().chain(probe.and_then(|probe| probe.data.as_ref())) {
            self.check_rows(data)?;
        }
        if let Some(probe) = probe {
            probe.config.as_ref().validate().map_err(|e| self.point(probe.config.span(), &e))?;
        }
        for id in profile.teachers.keys() {
            self.teacher(id)?;
        }
        profile.epochs.keys().try_for_each(|id| self.check_method(id))?;
        let plain = profile.modality == Modality::Stored && profile.teacher_modality.is_none();
        if profile.features && (!plain || profile.probe.is_some() || profile.teacher_data.is_some()) {
            let message = "`features = true` compares networks that see the same whole images, without a probe";
            return Err(self.source.error(profile.seeds.span(), message));
        }
        let seeds = *profile.seeds.as_ref();
        if !(1..=MAX_SEEDS).contains(&seeds) {
            let message = format!("`seeds` must be in 1 ..= {MAX_SEEDS}, found {seeds}");
            return Err(self.source.error(profile.seeds.span(), message));
        }
        if *profile.batch_size.as_ref() == 0 {
            return Err(self.source.error(profile.batch_size.span(), "`batch_size` must be at least 1, found 0"));
        }
        if profile.pairs.as_ref().is_empty() {
            return Err(self.source.error(profile.pairs.span(), "`pairs` needs at least one pair, found none"));
        }
        for recipe in profile.teacher.iter().chain([&profile.student]).chain(profile.teachers.values()) {
            if *recipe.epochs.as_ref() == 0 || recipe.evaluate_every == Some(0) {
                return Err(self
                    .source
                    .error(recipe.epochs.span(), "`epochs` and `evaluate_every` must be at least 1, found 0"));
            }
            recipe.optimizer.as_ref().validate().map_err(|e| self.point(recipe.optimizer.span(), &e))?;
            recipe.schedule.as_ref().validate().map_err(|e| self.point(recipe.schedule.span(), &e))?;
        }
        if let Some(tuning) = &profile.tuning {
            self.check_tuning(profile, tuning)?;
        }
        for method in &self.manifest.methods {
            self.check_epochs(profile, method)?;
        }
        for pair in profile.pairs.as_ref() {
            if let (Some(teacher), None) = (&pair.teacher, &profile.teacher) {
                let message =
                    format!("the profile does not say how `{}` is trained: `teacher` is missing", teacher.as_ref());
                return Err(self.source.error(teacher.span(), message));
            }
            for id in &pair.without {
                self.check_method(id)?;
                if id.as_ref() == self.manifest.baseline.as_ref() {
                    return Err(self.source.error(id.span(), "the baseline belongs to every pair"));
                }
            }
            if let Some(lr) = &pair.lr {
                let schedule = ScheduleConfig { lr: *lr.as_ref(), ..profile.student.schedule.as_ref().clone() };
                schedule.validate().map_err(|e| self.point(lr.span(), &e))?;
            }
        }
        for (method, system) in &profile.systems {
            self.check_method(method)?;
            system.as_ref().validate().map_err(|e| self.point(system.span(), &e))?;
            let row = self.manifest.methods.iter().find(|row| row.id.as_ref() == method.as_ref());
            let expected =
                row.and_then(|row| row.system.as_ref()).map_or(SystemConfig::default().id(), |s| s.as_ref().id());
            if system.as_ref().id() != expected {
                let (name, found) = (method.as_ref(), system.as_ref().id());
                let message =
                    format!("`systems` changes settings, not the kind: `{name}` is `{expected}`, found `{found}`");
                return Err(self.source.error(system.span(), message));
            }
        }
        let overrides = profile.overrides.iter().chain(profile.pairs.as_ref().iter().flat_map(|pair| &pair.overrides));
        for (method, losses) in overrides {
            self.check_method(method)?;
            if losses.is_empty() {
                let message = format!("method `{}` needs at least one loss", method.as_ref());
                return Err(self.source.error(method.span(), message));
            }
            self.check_losses(losses)?;
            let row = self.manifest.methods.iter().find(|row| row.id.as_ref() == method.as_ref());
            if let Some(optimizer) = row.and_then(|row| row.optimizer.as_ref()) {
                self.check_split(optimizer, losses)?;
            }
        }
        Ok(())
    }

    /// A network as it starts has nothing but a probe to be judged by.
    fn check_epochs(&self, profile: &Profile, method: &MethodConfig) -> Result<()> {
        match &method.epochs {
            Some(epochs) if *epochs.as_ref() == 0 && profile.probe.is_none() => {
                let message = "`epochs = 0` needs profiles with a `probe`: nothing else judges a network as it starts";
                Err(self.source.error(epochs.span(), message))
            }
            _ => Ok(()),
        }
    }

    fn check_tuning(&self, profile: &Profile, tuning: &Spanned<Tuning>) -> Result<()> {
        let Tuning { weights, seeds } = tuning.as_ref();
        let message = if profile.data.validation.is_none() {
            "`tuning` needs `validation` in `data`: the number of training images to hold out".to_string()
        } else if weights.is_empty() || weights.iter().any(|w| !(w.is_finite() && *w > 0.0)) {
            format!("`weights` must be finite numbers > 0, at least one, found {weights:?}")
        } else if !(1..=MAX_SEEDS).contains(seeds) {
            format!("`seeds` must be in 1 ..= {MAX_SEEDS}, found {seeds}")
        } else {
            return Ok(());
        };
        Err(self.point(tuning.span(), &message))
    }

    /// The students' data, the batches, and the augmentation for images of its size.
    ///
    /// Of a set that the registry does not have nothing is known before it is read; then the plan finds what is wrong.
    fn check_data(&self, profile: &Profile) -> Result<()> {
        let data = &profile.data;
        let Some(info) = self.check_rows(data)? else { return Ok(()) };
        let classes = data.subset().classes.as_ref().map_or(info.classes, Vec::len);
        let there = info.rows(Split::Train).unwrap_or(0);
        // Without `train` the numbers of the single classes are known when the data are read; here at most all.
        let each = data.train.as_ref().map_or(there, |n| *n.as_ref() / classes);
        self.check_batches(profile, profile.batches.as_ref(), &vec![each; classes])?;
        self.check_augmentation(profile, info.shape)
    }

    /// A data set's name and the numbers of its images; none for a set that the registry does not have.
    fn check_rows(&self, data: &DataConfig) -> Result<Option<&'static retort_datasets::DatasetInfo>> {
        let name = data.name.as_ref();
        if CustomConfig::is_custom(name) {
            return Ok(None);
        }
        let info = retort_datasets::info(name).map_err(|e| self.source.error(data.name.span(), e))?;
        if let Some(custom) = &data.custom {
            let message =
                format!("`custom` is for `owner/name` and `image-folder`; the registry knows how to read `{name}`");
            return Err(self.source.error(custom.span(), message));
        }
        let subset = data.subset();
        subset.check(info.classes).map_err(|e| self.source.error(data.subset_span(&e.to_string()), e))?;
        self.check_counts(data, info)?;
        Ok(Some(info))
    }

    /// The numbers of images of a registered data set.
    fn check_counts(&self, data: &DataConfig, info: &retort_datasets::DatasetInfo) -> Result<()> {
        let classes = data.classes.as_ref().map_or(info.classes, |classes| classes.as_ref().len());
        let rows = |split| info.rows(split).unwrap_or(0);
        let train = data.train.as_ref().map_or(rows(Split::Train), |n| *n.as_ref());
        let counts = [
            ("skip", &data.skip, rows(Split::Train).saturating_sub(1)),
            ("train", &data.train, rows(Split::Train)),
            ("test", &data.test, rows(Split::Test)),
            ("validation", &data.validation, train.saturating_sub(1)),
        ];
        for (name, wanted, there) in counts {
            let Some(wanted) = wanted else { continue };
            let n = *wanted.as_ref();
            if n == 0 || n > there || !n.is_multiple_of(classes) {
                let message =
                    format!("`{name}` must be a multiple of the {classes} classes in 1 ..= {there}, found {n}");
                return Err(self.source.error(wanted.span(), message));
            }
        }
        Ok(())
    }

    /// The transforms one by one for images of this shape, as far as that goes before the images are read.
    fn check_augmentation(&self, profile: &Profile, stored: ImageShape) -> Result<()> {
        let mut shape = stored;
        for transform in &profile.augmentation {
            shape = transform.as_ref().check(shape).map_err(|e| self.point(transform.span(), &e))?;
        }
        Ok(())
    }

    /// The transforms together, for the images themselves; training images must end as test images are.
    pub(crate) fn check_view(
        &self,
        augmentation: &[Spanned<TransformConfig>],
        modality: Modality,
        images: &Dataset,
    ) -> Result<()> {
        let mut view = ViewConfig { modality, ..ViewConfig::default() };
        let tested = view.check(images).map_err(Error::request)?;
        let mut seen = tested;
        for transform in augmentation {
            view.transforms.push(transform.as_ref().clone());
            seen = view.check(images).map_err(|e| self.source.error(transform.span(), e))?;
        }
        match augmentation.last() {
            Some(last) if seen != tested => {
                let message = format!("training images end as {seen}, but test images are {tested}");
                Err(self.source.error(last.span(), message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses batches that a profile cannot form from so many training images of every class.
    pub(crate) fn check_batches(
        &self,
        profile: &Profile,
        batches: Option<&Spanned<Sampling>>,
        class_counts: &[usize],
    ) -> Result<()> {
        let Some(batches) = batches else { return Ok(()) };
        let checked = batches.as_ref().check(*profile.batch_size.as_ref(), class_counts);
        checked.map_err(|e| self.point(batches.span(), &e))
    }

    fn check_losses(&self, losses: &[Spanned<LossConfig>]) -> Result<()> {
        losses.iter().try_for_each(|loss| loss.as_ref().validate().map_err(|e| self.point(loss.span(), &e)))
    }

    /// DOT treats the gradients of task and method apart, so a row that asks for it needs both.
    fn check_split(&self, optimizer: &Spanned<OptimizerConfig>, losses: &[Spanned<LossConfig>]) -> Result<()> {
        let task = |loss: &Spanned<LossConfig>| loss.as_ref().info().ce_weight.is_none();
        let (some, all) = (losses.iter().any(task), losses.iter().all(task));
        if !matches!(optimizer.as_ref(), OptimizerConfig::Dot { .. }) || (some && !all) {
            return Ok(());
        }
        let message =
            "`dot` needs a task loss (`ce`, `label-smoothing`) and a method beside it: it is SGD with momentum else";
        Err(self.source.error(optimizer.span(), message))
    }

    fn check_method(&self, id: &Spanned<String>) -> Result<()> {
        if self.method_ids().any(|known| known == id.as_ref()) {
            return Ok(());
        }
        let hint = suggestion(id.as_ref(), self.method_ids());
        Err(self.source.error(id.span(), format!("unknown method `{}`{hint}", id.as_ref())))
    }

    /// Points at the field that a range check names between backticks.
    pub(crate) fn point(&self, span: std::ops::Range<usize>, error: &dyn std::fmt::Display) -> Error {
        let message = error.to_string();
        let field = message.split('`').nth(1).unwrap_or_default().to_string();
        self.source.error_at(span, &field, message)
    }
}

/// Names of the tables in a folder of manifests, sorted.
///
/// # Errors
///
/// The folder cannot be read.
pub fn tables(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)
        .map_err(|e| Error::file(folder, format!("cannot read the folder of manifests: {e}")))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            (path.extension()? == "toml").then(|| path.file_stem().map(|s| s.to_string_lossy().into_owned()))?
        })
        .collect();
    names.sort();
    Ok(names)
}

/// The tables of a report: several, in order, for a manifest that names `parts`; otherwise the table itself.
///
/// # Errors
///
/// An unknown table or part with the nearest name; a part with parts of its own.
pub fn collection(folder: &Path, name: &str) -> Result<(Option<String>, Vec<Loaded>)> {
    collection_at(&path(folder, name)?)
}

/// The same for a manifest file; its parts lie beside it.
///
/// # Errors
///
/// An unknown part with the nearest name; a part with parts of its own.
pub fn collection_at(path: &Path) -> Result<(Option<String>, Vec<Loaded>)> {
    let Some((source, report)) = parts(path)? else {
        return Ok((None, vec![Loaded::read(path)?]));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    if report.parts.is_empty() {
        return Err(Error::file(path, "`parts` needs at least one table, found none"));
    }
    for (place, part) in report.parts.iter().enumerate() {
        if report.parts[..place].iter().any(|before| before.as_ref() == part.as_ref()) {
            return Err(source.error(part.span(), format!("part `{}` occurs twice", part.as_ref())));
        }
    }
    let loaded = report.parts.iter().map(|part| {
        let path = self::path(folder, part.as_ref()).map_err(|e| source.error(part.span(), e))?;
        match parts(&path)? {
            Some(_) => Err(source.error(part.span(), format!("`{}` has parts of its own", part.as_ref()))),
            None => Loaded::read(&path),
        }
    });
    Ok((Some(report.title.clone()), loaded.collect::<Result<_>>()?))
}

/// The manifest called `name`.
fn path(folder: &Path, name: &str) -> Result<PathBuf> {
    let known = tables(folder)?;
    if known.iter().any(|table| table == name) {
        return Ok(folder.join(format!("{name}.toml")));
    }
    let hint = suggestion(name, known.iter().map(String::as_str));
    Err(Error::Request(format!("unknown table `{name}` in {}{hint}", folder.display())))
}

fn parts(path: &Path) -> Result<Option<(Source, Collection)>> {
    let source = Source::read(path)?;
    // A file that is no table at all gets its message where it is read as a manifest.
    let table = source.text.parse::<toml::Table>().ok();
    match table.is_some_and(|table| table.contains_key("parts")) {
        true => Ok(Some((source.clone(), source.parse()?))),
        false => Ok(None),
    }
}
