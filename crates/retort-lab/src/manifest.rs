//! What an experiment is: the typed form of `experiments/*.toml`.

mod loaded;

use crate::splits::Wanted;
use crate::table::Measure;
use retort_datasets::{CustomConfig, LabelNoise, Modality, Normalization, Sampling, SubsetConfig, TransformConfig};
use retort_losses::LossConfig;
use retort_nn::{OptimizerConfig, ScheduleConfig};
use retort_trainers::SystemConfig;
use retort_trainers::probe::ProbeConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::Spanned;

pub use loaded::{Loaded, collection, collection_at, tables};

/// The id of the teacher's row in every table.
pub(crate) const TEACHER: &str = "teacher";

/// Several tables in one report.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// Heading of the report.
    pub title: String,
    /// Names of the tables, in order.
    pub parts: Vec<Spanned<String>>,
}

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
    /// Kinds of teachers beside the plain one, which is called `teacher`.
    #[serde(default)]
    pub teachers: Vec<TeacherConfig>,
    /// The teacher of the rows that name none.
    #[serde(default = "plain_teacher")]
    pub default_teacher: Spanned<String>,
    /// Columns beside the usual ones, see [`Measure`].
    #[serde(default)]
    pub measures: Vec<Spanned<Measure>>,
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

fn plain_teacher() -> Spanned<String> {
    Spanned::new(0..0, TEACHER.to_string())
}

/// A kind of teacher.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Name by which rows call it.
    pub id: Spanned<String>,
    /// Name in the table.
    pub label: String,
    /// How it is trained.
    pub system: Spanned<SystemConfig>,
    /// The teacher that it starts from, where the system starts from one: `teacher` or an earlier one of the list.
    pub from: Option<Spanned<String>>,
    /// Augmentation of its training images, in place of the profile's.
    pub augmentation: Option<Vec<Spanned<TransformConfig>>>,
}

impl TeacherConfig {
    /// The teacher that it starts from, where its system starts from one.
    pub(crate) fn origin(&self) -> Spanned<String> {
        self.from.clone().unwrap_or_else(plain_teacher)
    }
}

/// Which rows of a profile something is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rows {
    /// Those of the profile's `data`.
    #[default]
    Students,
    /// Those of the profile's probe.
    Probe,
}

/// One row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// Name on the command line and in the CSV file, for example `crd+kd`.
    pub id: Spanned<String>,
    /// Name in the table.
    pub label: String,
    /// Weighted terms, for systems that read a list.
    #[serde(default)]
    pub losses: Vec<Spanned<LossConfig>>,
    /// What kind of training it is; a student that learns by the `losses` where absent.
    pub system: Option<Spanned<SystemConfig>>,
    /// Which teacher, by its id; the manifest's `default_teacher` where absent.
    pub teacher: Option<Spanned<String>>,
    /// Number of teachers, which differ in their seeds; 1 where absent.
    pub ensemble: Option<Spanned<usize>>,
    /// Which training rows.
    #[serde(default)]
    pub data: Rows,
    /// Whether the labels of the training rows are taken away before anything sees them.
    #[serde(default)]
    pub unlabelled: bool,
    /// Passes over the training images in place of the profile's; 0 for a network as it starts, where it is probed.
    pub epochs: Option<Spanned<usize>>,
    /// Augmentation of the student's images in place of the profile's.
    pub augmentation: Option<Vec<Spanned<TransformConfig>>>,
    /// What comes before and behind that augmentation, or the profile's.
    #[serde(default)]
    pub augmentation_before: Vec<Spanned<TransformConfig>>,
    /// See `augmentation_before`.
    #[serde(default)]
    pub augmentation_behind: Vec<Spanned<TransformConfig>>,
    /// Augmentation of the teacher's images; the student's, with the same random numbers, where absent.
    pub teacher_augmentation: Option<Vec<Spanned<TransformConfig>>>,
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
    /// Which images teachers are trained on, where not on the students'.
    pub teacher_data: Option<DataConfig>,
    /// What of an image networks see.
    #[serde(default)]
    pub modality: Modality,
    /// What of an image teachers see, where that is something else.
    pub teacher_modality: Option<Modality>,
    /// How finished networks are judged besides.
    pub probe: Option<ProbeSettings>,
    /// Teacher and student architectures.
    pub pairs: Spanned<Vec<Pair>>,
    /// Number of seeds, counted from 1.
    pub seeds: Spanned<u64>,
    /// Seed of the teacher, or of the first one of an ensemble; 1 where absent. Initial values depend on seed and name alone:
    /// a student of its teacher's seed starts with the same values in every layer that both have in the same shape.
    pub teacher_seed: Option<u64>,
    /// Images in a training batch.
    pub batch_size: Spanned<usize>,
    /// Which images form a training batch, of the teacher and of every student; shuffled where absent.
    pub batches: Option<Spanned<Sampling>>,
    /// Augmentation of training images.
    pub augmentation: Vec<Spanned<TransformConfig>>,
    /// How the teacher is trained; only tables of pairs without one leave it out.
    pub teacher: Option<Recipe>,
    /// How teachers of other kinds are trained, by id; as the plain one where absent.
    #[serde(default)]
    pub teachers: BTreeMap<Spanned<String>, Recipe>,
    /// How every student is trained.
    pub student: Recipe,
    /// Which epoch's accuracy the table shows.
    #[serde(default)]
    pub rule: Rule,
    /// Passes over the training images of single rows, in place of the recipe's, by method.
    #[serde(default)]
    pub epochs: BTreeMap<Spanned<String>, usize>,
    /// Losses of a method in this profile, in place of the manifest's.
    #[serde(default)]
    pub overrides: BTreeMap<Spanned<String>, Vec<Spanned<LossConfig>>>,
    /// Kind and settings of a row's training in this profile, in place of the manifest's, by method.
    #[serde(default)]
    pub systems: BTreeMap<Spanned<String>, Spanned<SystemConfig>>,
    /// How the weights of the rows with `tune` are chosen.
    pub tuning: Option<Spanned<Tuning>>,
    /// Whether the distances between the features of teacher and student on the test images are reported, with the
    /// bounds that they give.
    #[serde(default)]
    pub features: bool,
}

/// Which epoch's accuracy a table shows, the same for all of its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The last one.
    #[default]
    Last,
    /// Each network's best evaluated one, as many papers have it: a choice that looks at the test images.
    BestEpoch,
}

/// Classifiers on finished networks that stay as they are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSettings {
    /// Rows that the classifiers learn from; the students' where absent.
    pub data: Option<DataConfig>,
    /// Which classifiers.
    pub config: Spanned<ProbeConfig>,
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
    /// Class-balanced number of training images that are passed over, for parts that share none.
    pub skip: Option<Spanned<usize>>,
    /// Share of the training images of every class, in place of `train`.
    pub fraction: Option<Spanned<f64>>,
    /// Seed that training images are drawn with; without one they are the first of every class.
    pub seed: Option<Spanned<u64>>,
    /// Wrong labels of training images.
    pub noise: Option<Spanned<LabelNoise>>,
    /// How a data set is read that the registry does not have.
    pub custom: Option<Spanned<CustomConfig>>,
    /// Channel statistics by which pixels are scaled, in place of the data set's own; mean and std 0.5 give -1 to 1.
    pub normalization: Option<Spanned<Normalization>>,
    /// Class-balanced number of training images to hold out where settings are chosen, see
    /// [`Splits::validation`](crate::splits::Splits::validation); the table itself trains on all.
    pub validation: Option<Spanned<usize>>,
}

impl DataConfig {
    /// Which training images.
    #[must_use]
    pub fn subset(&self) -> SubsetConfig {
        SubsetConfig {
            classes: self.classes.as_ref().map(|classes| classes.as_ref().clone()),
            skip: self.skip.as_ref().map(|count| *count.as_ref()),
            fraction: self.fraction.as_ref().map(|fraction| *fraction.as_ref()),
            count: self.train.as_ref().map(|count| *count.as_ref()),
            seed: self.seed.as_ref().map(|seed| *seed.as_ref()),
            noise: self.noise.as_ref().map(|noise| *noise.as_ref()),
        }
    }

    /// The same for a loader.
    pub(crate) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            name: self.name.as_ref(),
            custom: self.custom.as_ref().map(Spanned::as_ref),
            train: self.subset(),
            test: self.test.as_ref().map(|n| *n.as_ref()),
            normalization: self.normalization.as_ref().map(Spanned::as_ref),
        }
    }

    /// Where the subset stands that a check refuses: the field that the message names.
    fn subset_span(&self, message: &str) -> std::ops::Range<usize> {
        let named = |field: &str| message.contains(&format!("`{field}`"));
        let spans = [
            ("classes", self.classes.as_ref().map(Spanned::span)),
            ("fraction", self.fraction.as_ref().map(Spanned::span)),
            ("skip", self.skip.as_ref().map(Spanned::span)),
            ("seed", self.seed.as_ref().map(Spanned::span)),
            ("noise", self.noise.as_ref().map(Spanned::span)),
            ("rate", self.noise.as_ref().map(Spanned::span)),
        ];
        let span = spans.into_iter().find_map(|(field, span)| span.filter(|_| named(field)));
        span.unwrap_or_else(|| self.name.span())
    }
}

/// Teacher and student, or a student alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Architecture of the teacher; none in tables of methods without one.
    pub teacher: Option<Spanned<String>>,
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

impl Profile {
    /// The augmentation of a row's images.
    pub(crate) fn augmentation(&self, method: &MethodConfig) -> Vec<Spanned<TransformConfig>> {
        let own = method.augmentation.as_ref().unwrap_or(&self.augmentation);
        [&method.augmentation_before, own, &method.augmentation_behind].into_iter().flatten().cloned().collect()
    }

    /// The kind of training of a row, where it is not the usual one.
    pub(crate) fn system<'a>(&'a self, method: &'a MethodConfig) -> Option<&'a Spanned<SystemConfig>> {
        self.systems.get(method.id.as_ref().as_str()).or(method.system.as_ref())
    }
}

impl Pair {
    /// `resnet56 -> resnet20`, or the student alone.
    pub(crate) fn heading(&self) -> String {
        match &self.teacher {
            Some(teacher) => format!("{} -> {}", teacher.as_ref(), self.student.as_ref()),
            None => self.student.as_ref().clone(),
        }
    }
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
