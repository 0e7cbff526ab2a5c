//! What an experiment is: the typed form of `experiments/*.toml`.

use crate::plan::MAX_SEEDS;
use crate::published::Published;
use crate::source::{Source, suggestion};
use crate::{Error, Result};
use retort_datasets::{
    CustomConfig, Dataset, ImageShape, LabelNoise, Sampling, Split, SubsetConfig, TransformConfig, ViewConfig,
};
use retort_losses::LossConfig;
use retort_nn::{OptimizerConfig, ScheduleConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The id of the teacher's row in every table.
pub(crate) const TEACHER: &str = "teacher";

/// One benchmark table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Heading of the table.
    pub title: String,
    /// Which published table this is.
    pub paper: String,
    /// Method that differences are measured against.
    pub baseline: Spanned<String>,
    /// Profile that runs where none is named.
    pub default_profile: Spanned<String>,
    /// Published numbers and the protocol under which they hold.
    pub published: Option<PublishedConfig>,
    /// The rows, in order.
    pub methods: Vec<MethodConfig>,
    /// Scales at which the table can be run.
    pub profiles: BTreeMap<String, Profile>,
}

/// Where published numbers are, and what a profile must agree with for them to be comparable.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedConfig {
    /// JSON file, relative to the manifest.
    pub file: Spanned<PathBuf>,
    /// Name of the data set.
    pub data: Spanned<String>,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Batch size.
    pub batch_size: usize,
    /// Augmentation of training images.
    pub augmentation: Vec<TransformConfig>,
    /// Epochs of teacher and student.
    pub epochs: usize,
    /// Optimiser of teacher and student.
    pub optimizer: OptimizerConfig,
    /// Schedule of teacher and student.
    pub schedule: ScheduleConfig,
    /// Learning rates of the students that do not start at the schedule's, by network.
    #[serde(default)]
    pub lr: BTreeMap<String, f64>,
}

/// One row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// Name on the command line and in the CSV file, for example `crd+kd`.
    pub id: Spanned<String>,
    /// Name in the table.
    pub label: String,
    /// Weighted terms.
    pub losses: Vec<Spanned<LossConfig>>,
    /// The optimiser of this row, in place of the profile's.
    pub optimizer: Option<Spanned<OptimizerConfig>>,
    /// Whether the weight of the last loss is chosen on held-out images, see [`Tuning`].
    #[serde(default)]
    pub tune: bool,
    /// Which images form a training batch of this row, in place of the profile's.
    pub batches: Option<Spanned<Sampling>>,
    /// Name of the row in the published file.
    pub published: Option<Spanned<String>>,
}

/// A scale: data, pairs, recipe.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// One sentence for readers of the table.
    pub about: String,
    /// Which images.
    pub data: DataConfig,
    /// Teacher and student architectures.
    pub pairs: Spanned<Vec<Pair>>,
    /// Number of seeds, counted from 1.
    pub seeds: Spanned<u64>,
    /// Images in a training batch.
    pub batch_size: Spanned<usize>,
    /// Which images form a training batch, of the teacher and of every student; shuffled where absent.
    pub batches: Option<Spanned<Sampling>>,
    /// Augmentation of training images.
    pub augmentation: Vec<Spanned<TransformConfig>>,
    /// How the teacher is trained.
    pub teacher: Recipe,
    /// How every student is trained.
    pub student: Recipe,
    /// Losses of a method in this profile, in place of the manifest's.
    #[serde(default)]
    pub overrides: BTreeMap<Spanned<String>, Vec<Spanned<LossConfig>>>,
    /// How the weights of the rows with `tune` are chosen.
    pub tuning: Option<Spanned<Tuning>>,
    /// Whether the distances between the features of teacher and student on the test images are reported, with the
    /// bounds that they give.
    #[serde(default)]
    pub features: bool,
}

/// Candidates for the weights of the rows that say `tune`: the one with the highest accuracy on the held-out images wins.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Weights of a row's last loss that are tried.
    pub weights: Vec<f64>,
    /// Seeds of each, counted from 1.
    #[serde(default = "one_seed")]
    pub seeds: u64,
}

fn one_seed() -> u64 {
    1
}

/// A data set and how much of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Name in the registry.
    pub name: Spanned<String>,
    /// Class-balanced number of training images; all where absent.
    pub train: Option<Spanned<usize>>,
    /// Class-balanced number of test images; all where absent.
    pub test: Option<Spanned<usize>>,
    /// Only images of these classes, numbered anew in this order, in training and test; all where absent.
    pub classes: Option<Spanned<Vec<u32>>>,
    /// Share of the training images of every class, in place of `train`.
    pub fraction: Option<Spanned<f64>>,
    /// Seed that training images are drawn with; without one they are the first of every class.
    pub seed: Option<Spanned<u64>>,
    /// Wrong labels of training images.
    pub noise: Option<Spanned<LabelNoise>>,
    /// How a data set is read that the registry does not have.
    pub custom: Option<Spanned<CustomConfig>>,
    /// Class-balanced number of training images to hold out where settings are chosen, see
    /// [`Splits::validation`](crate::plan::Splits::validation); the table itself trains on all.
    pub validation: Option<Spanned<usize>>,
}

impl DataConfig {
    /// Which training images.
    #[must_use]
    pub fn subset(&self) -> SubsetConfig {
        SubsetConfig {
            classes: self.classes.as_ref().map(|classes| classes.as_ref().clone()),
            fraction: self.fraction.as_ref().map(|fraction| *fraction.as_ref()),
            count: self.train.as_ref().map(|count| *count.as_ref()),
            seed: self.seed.as_ref().map(|seed| *seed.as_ref()),
            noise: self.noise.as_ref().map(|noise| *noise.as_ref()),
        }
    }

    /// Where the subset stands that a check refuses: the field that the message names.
    fn subset_span(&self, message: &str) -> std::ops::Range<usize> {
        let named = |field: &str| message.contains(&format!("`{field}`"));
        let spans = [
            ("classes", self.classes.as_ref().map(Spanned::span)),
            ("fraction", self.fraction.as_ref().map(Spanned::span)),
            ("seed", self.seed.as_ref().map(Spanned::span)),
            ("noise", self.noise.as_ref().map(Spanned::span)),
            ("rate", self.noise.as_ref().map(Spanned::span)),
        ];
        let span = spans.into_iter().find_map(|(field, span)| span.filter(|_| named(field)));
        span.unwrap_or_else(|| self.name.span())
    }
}

/// Teacher and student.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Architecture of the teacher.
    pub teacher: Spanned<String>,
    /// Architecture of the student.
    pub student: Spanned<String>,
    /// Losses of a method for this pair, in place of the profile's.
    #[serde(default)]
    pub overrides: BTreeMap<Spanned<String>, Vec<Spanned<LossConfig>>>,
    /// Methods that are not defined for this pair.
    #[serde(default)]
    pub without: Vec<Spanned<String>>,
    /// Rate of the students of this pair at the start, in place of the profile's.
    pub lr: Option<Spanned<f64>>,
}

/// Epochs, optimiser and schedule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Passes over the training images, at least 1.
    pub epochs: Spanned<usize>,
    /// Evaluate every so many epochs; only after the last where absent.
    pub evaluate_every: Option<usize>,
    /// Which optimiser.
    pub optimizer: Spanned<OptimizerConfig>,
    /// Its rate over time.
    pub schedule: Spanned<ScheduleConfig>,
}

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
        let known = tables(folder)?;
        if !known.iter().any(|table| table == name) {
            let hint = suggestion(name, known.iter().map(String::as_str));
            return Err(Error::Request(format!("unknown table `{name}` in {}{hint}", folder.display())));
        }
        Self::read(&folder.join(format!("{name}.toml")))
    }

    /// Reads and checks one manifest.
    ///
    /// # Errors
    ///
    /// File, line and column of the first mistake, with the nearest valid name.
    pub fn read(path: &Path) -> Result<Self> {
        let source = Source::read(path)?;
        let manifest = source.parse()?;
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
        for model in profile.pairs.as_ref().iter().flat_map(|pair| [&pair.teacher, &pair.student]) {
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
            self.check_losses(&method.id, &method.losses)?;
            if let Some(optimizer) = &method.optimizer {
                optimizer.as_ref().validate().map_err(|e| self.point(optimizer.span(), &e))?;
                self.check_split(optimizer, &method.losses)?;
            }
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
        for recipe in [&profile.teacher, &profile.student] {
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
        for pair in profile.pairs.as_ref() {
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
        let overrides = profile.overrides.iter().chain(profile.pairs.as_ref().iter().flat_map(|pair| &pair.overrides));
        for (method, losses) in overrides {
            self.check_method(method)?;
            self.check_losses(method, losses)?;
            let row = self.manifest.methods.iter().find(|row| row.id.as_ref() == method.as_ref());
            if let Some(optimizer) = row.and_then(|row| row.optimizer.as_ref()) {
                self.check_split(optimizer, losses)?;
            }
        }
        Ok(())
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

    /// The data set's name, the numbers of images, the batches, and the augmentation for images of its size.
    ///
    /// Of a set that the registry does not have nothing is known before it is read; then the plan finds what is wrong.
    fn check_data(&self, profile: &Profile) -> Result<()> {
        let data = &profile.data;
        let name = data.name.as_ref();
        if CustomConfig::is_custom(name) {
            return Ok(());
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
        let classes = subset.classes.as_ref().map_or(info.classes, Vec::len);
        let there = info.rows(Split::Train).unwrap_or(0);
        // Without `train` the numbers of the single classes are known when the data are read; here at most all.
        let each = data.train.as_ref().map_or(there, |n| *n.as_ref() / classes);
        self.check_batches(profile, profile.batches.as_ref(), &vec![each; classes])?;
        self.check_augmentation(profile, info.shape)
    }

    /// The numbers of images of a registered data set.
    fn check_counts(&self, data: &DataConfig, info: &retort_datasets::DatasetInfo) -> Result<()> {
        let classes = data.classes.as_ref().map_or(info.classes, |classes| classes.as_ref().len());
        let rows = |split| info.rows(split).unwrap_or(0);
        let train = data.train.as_ref().map_or(rows(Split::Train), |n| *n.as_ref());
        let counts = [
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
    pub(crate) fn check_view(&self, profile: &Profile, images: &Dataset) -> Result<()> {
        let mut view = ViewConfig::default();
        let mut seen = images.shape();
        for transform in &profile.augmentation {
            view.transforms.push(transform.as_ref().clone());
            seen = view.check(images).map_err(|e| self.source.error(transform.span(), e))?;
        }
        match profile.augmentation.last() {
            Some(last) if seen != images.shape() => {
                let message = format!("training images end as {seen}, but test images are {}", images.shape());
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

    fn check_losses(&self, method: &Spanned<String>, losses: &[Spanned<LossConfig>]) -> Result<()> {
        if losses.is_empty() {
            let message = format!("method `{}` needs at least one loss", method.as_ref());
            return Err(self.source.error(method.span(), message));
        }
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
