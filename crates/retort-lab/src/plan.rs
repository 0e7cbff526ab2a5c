//! From a manifest to runs: every run has an id that is a hash of what it does.

use crate::fit::Fit;
use crate::manifest::{Loaded, MethodConfig, Pair, Profile, Recipe};
use crate::source::suggestion;
use crate::tune::Weights;
use crate::{Error, Result};
use retort_datasets::{CustomConfig, Dataset, Sampling, Sources, Split, SubsetConfig, TransformConfig};
use retort_losses::LossConfig;
use retort_models::ModelConfig;
use retort_nn::{OptimizerConfig, ScheduleConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use toml::Spanned;

/// Raised when kernels, losses or the loop start to give other numbers for the same specification,
/// so that finished runs of an older state are not taken for new ones.
pub const NUMERICS: u32 = 3;

/// More seeds than any table has; a larger number is a slip.
pub(crate) const MAX_SEEDS: u64 = 10_000;

/// Everything that decides the numbers of a run, its teacher included: enough to run it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Revision of the numerics, see [`NUMERICS`].
    pub numerics: u32,
    /// Architecture that is trained.
    pub model: String,
    /// Weighted terms.
    pub losses: Vec<LossConfig>,
    /// The run that trains the teacher.
    pub teacher: Option<Box<RunSpec>>,
    /// Which images.
    pub data: DataSpec,
    /// Augmentation of training images.
    pub augmentation: Vec<TransformConfig>,
    /// Images in a training batch.
    pub batch_size: usize,
    /// Which images form a training batch; left out where they are shuffled, so that the ids of such runs stay as they are.
    #[serde(default, skip_serializing_if = "Sampling::is_default")]
    pub batches: Sampling,
    /// Passes over the training images.
    pub epochs: usize,
    /// Evaluate every so many epochs.
    pub evaluate_every: usize,
    /// Compute what bounds the student's risk in every evaluation; left out where not, so that the ids of such runs stay as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bounds: bool,
    /// Which optimiser.
    pub optimizer: OptimizerConfig,
    /// Its rate over time.
    pub schedule: ScheduleConfig,
    /// Root of all randomness.
    pub seed: u64,
}

/// The rows of a data set that a run uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Name in the registry.
    pub name: String,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// SHA-256 over shape, pixels and labels of the training rows.
    pub train_digest: String,
    /// The same of the test rows.
    pub test_digest: String,
    /// Whether the test images are training images that were held out, see [`Splits::validation`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
    /// How a data set is read that the registry does not have; left out for registered sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomConfig>,
    /// How the training rows were chosen; left out where they are the first ones of every class, with their own labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<SubsetConfig>,
}

impl RunSpec {
    /// The first 12 hexadecimal digits of SHA-256 over the specification as JSON with sorted keys.
    #[must_use]
    pub fn id(&self) -> String {
        // `Value` sorts the keys of objects; floats are printed in the shortest form that reads back to the same bits.
        let canonical =
            serde_json::to_value(self).expect("a specification holds no map with other keys than strings").to_string();
        let digest = Sha256::digest(canonical.as_bytes());
        digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Training and test rows of one [`DataSpec`].
#[derive(Clone, Debug)]
pub struct Splits {
    /// Training rows.
    pub train: Dataset,
    /// Test rows.
    pub test: Dataset,
    /// Whether the test rows were cut off the training split.
    held_out: bool,
    custom: Option<CustomConfig>,
    /// How the training rows were chosen.
    subset: SubsetConfig,
}

impl Splits {
    /// Loads a data set: the training rows that `train` describes, and as many test rows of every class as make `test`, all
    /// where absent. Only the classes of `train` are tested. `custom` says how a set is read
    /// that the registry does not have.
    ///
    /// # Errors
    ///
    /// A missing or broken file, fewer rows than asked for, a set without labels or without a test split.
    pub fn load(
        name: &str,
        custom: Option<&CustomConfig>,
        train: &SubsetConfig,
        test: Option<usize>,
        sources: &Sources,
    ) -> Result<Self> {
        let [all_train, all_test] = whole_splits(name, custom, sources).map_err(Error::request)?;
        let part = |whole: &Dataset, config: &SubsetConfig| -> Result<Dataset> {
            // All rows are all rows, also of a set with classes of unequal size: a record names them by their number.
            let of_classes = SubsetConfig { classes: config.classes.clone(), ..SubsetConfig::default() };
            let whole = whole.subset(&of_classes).map_err(Error::request)?;
            let all = config.seed.is_none() && config.count == Some(whole.len());
            let count = config.count.filter(|_| !all);
            whole.subset(&SubsetConfig { classes: None, count, ..config.clone() }).map_err(Error::request)
        };
        let of_test = SubsetConfig { classes: train.classes.clone(), count: test, ..SubsetConfig::default() };
        let (custom, subset) = (custom.cloned(), train.clone());
        let (train, test) = (part(&all_train, train)?, part(&all_test, &of_test)?);
        if !train.is_labelled() || train.class_names() != test.class_names() || train.shape() != test.shape() {
            let about = |part: &Dataset| format!("{} classes, images {}", part.classes(), part.shape());
            let message = format!(
                "`{name}`: training ({}) and test ({}) must have the same classes and images",
                about(&train),
                about(&test)
            );
            return Err(Error::Request(message));
        }
        Ok(Self { train, test, held_out: false, custom, subset })
    }

    /// Loads the rows that `data` speaks of, for example those of a record; their digests are for the caller to compare.
    ///
    /// # Errors
    ///
    /// As [`Splits::load`] and [`Splits::validation`].
    pub fn of(data: &DataSpec, sources: &Sources) -> Result<Self> {
        let held_out = if data.held_out { data.test } else { 0 };
        let count = Some(data.train.saturating_add(held_out));
        let subset = data.subset.clone().unwrap_or(SubsetConfig { count, ..SubsetConfig::default() });
        let test = (!data.held_out).then_some(data.test);
        let splits = Self::load(&data.name, data.custom.as_ref(), &subset, test, sources)?;
        if data.held_out { splits.validation(data.test) } else { Ok(splits) }
    }

    /// Holds out `n` training rows for choosing settings by: the last `n / classes` of every class in stored order, the
    /// same for every seed, see [`Dataset::split_validation`]. They become the test rows, and the test rows are not looked at.
    ///
    /// # Errors
    ///
    /// `n` is not a positive multiple of the number of classes, or would leave no row of a class to learn from; rows that
    /// are held out already.
    pub fn validation(&self, n: usize) -> Result<Self> {
        if self.held_out {
            return Err(Error::Request("a validation set is held out of the training images already".into()));
        }
        let classes = self.train.classes();
        if !n.is_multiple_of(classes) {
            let message = format!("`validation` must be a positive multiple of the {classes} classes, found {n}");
            return Err(Error::Request(message));
        }
        let (train, test) = self.train.split_validation(n / classes).map_err(Error::request)?;
        Ok(Self { train, test, held_out: true, ..self.clone() })
    }

    /// What a network for these images is built with.
    #[must_use]
    pub fn model(&self) -> ModelConfig {
        let shape = self.train.shape();
        ModelConfig { in_channels: shape.channels, image: [shape.height, shape.width], classes: self.train.classes() }
    }

    /// What these rows are.
    #[must_use]
    pub fn spec(&self) -> DataSpec {
        DataSpec {
            name: self.train.name().to_string(),
            train: self.train.len(),
            test: self.test.len(),
            train_digest: self.train.digest().to_string(),
            test_digest: self.test.digest().to_string(),
            held_out: self.held_out,
            custom: self.custom.clone(),
            subset: self.named_subset(),
        }
    }

    /// The choice of the training rows, where their number alone does not say it.
    fn named_subset(&self) -> Option<SubsetConfig> {
        let SubsetConfig { classes, fraction, count: _, seed, noise } = &self.subset;
        let named = classes.is_some() || fraction.is_some() || seed.is_some() || noise.is_some();
        named.then(|| self.subset.clone())
    }
}

/// All training and all test rows; a set that the registry does not have is decoded once for both.
fn whole_splits(name: &str, custom: Option<&CustomConfig>, sources: &Sources) -> retort_datasets::Result<[Dataset; 2]> {
    if custom.is_none() && !CustomConfig::is_custom(name) {
        return Ok([sources.load(name, Split::Train)?, sources.load(name, Split::Test)?]);
    }
    let custom = custom.cloned().unwrap_or_default();
    let train = sources.load_custom(name, &custom, Split::Train)?;
    let test = sources.load_custom_beside(&train, &custom, Split::Test)?;
    Ok([train, test])
}

/// A cell of the table before averaging: one method, one pair, one seed.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Row.
    pub method: String,
    /// Index of the pair.
    pub pair: usize,
    /// Seed.
    pub seed: u64,
    /// What to run.
    pub spec: RunSpec,
}

/// All runs of one profile.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the table.
    pub table: String,
    /// Name of the profile.
    pub profile: String,
    /// Teacher of each pair.
    pub teachers: Vec<RunSpec>,
    /// Student runs, pair by pair, seed by seed, method by method.
    pub runs: Vec<PlannedRun>,
}

/// What the command line narrows.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Methods to run; all where empty. The baseline is always among them.
    pub only: Vec<String>,
    /// Number of seeds in place of the profile's.
    pub seeds: Option<u64>,
}

impl Plan {
    /// Expands a profile over its pairs, methods and seeds.
    ///
    /// # Errors
    ///
    /// An unknown method in the selection, a broken file of chosen weights, no seed, batches that cannot be formed from the training rows, or a row whose
    /// losses the shapes of a pair do not allow.
    pub fn new(loaded: &Loaded, profile: &str, splits: &Splits, selection: &Selection) -> Result<Self> {
        Self::with_weights(loaded, profile, splits, selection, &Weights::read(loaded, profile)?)
    }

    /// The same with these weights for the rows that say `tune`.
    ///
    /// # Errors
    ///
    /// As [`Plan::new`].
    pub(crate) fn with_weights(
        loaded: &Loaded,
        profile: &str,
        splits: &Splits,
        selection: &Selection,
        weights: &Weights,
    ) -> Result<Self> {
        let (name, profile) = loaded.profile(Some(profile))?;
        for id in &selection.only {
            if !loaded.method_ids().any(|known| known == id) {
                return Err(Error::Request(format!("unknown method `{id}`{}", suggestion(id, loaded.method_ids()))));
            }
        }
        let seeds = selection.seeds.unwrap_or(*profile.seeds.as_ref());
        if !(1..=MAX_SEEDS).contains(&seeds) {
            return Err(Error::Request(format!("`--seeds` must be in 1 ..= {MAX_SEEDS}, found {seeds}")));
        }
        let mut plan = Self { table: loaded.name.clone(), profile: name.to_string(), teachers: vec![], runs: vec![] };
        let class_counts = splits.train.class_counts();
        loaded.check_batches(profile, profile.batches.as_ref(), &class_counts)?;
        loaded.check_view(profile, &splits.train)?;
        let mut fit = Fit::new(splits.model(), splits.train.labels());
        for (index, pair) in profile.pairs.as_ref().iter().enumerate() {
            let rows = rows(loaded, pair, selection);
            for method in &rows {
                loaded.check_batches(profile, method.batches.as_ref(), &class_counts)?;
                let (losses, batches) =
                    (losses(method, profile, pair), method.batches.as_ref().or(profile.batches.as_ref()));
                check_fit(loaded, &mut fit, pair, losses)?;
                check_batches(loaded, profile, batches, splits.train.len(), losses)?;
            }
            let teacher = teacher_spec(profile, pair, splits);
            for seed in 1..=seeds {
                for method in &rows {
                    let losses = losses(method, profile, pair).iter().map(|loss| loss.as_ref().clone()).collect();
                    let losses = weights.applied(method, losses)?;
                    // A method that uses no teacher still names one: its fidelity is measured too.
                    let (recipe, student) = (&profile.student, pair.student.as_ref());
                    let mut spec = spec(profile, recipe, student, losses, Some(teacher.clone()), splits, seed);
                    if let Some(optimizer) = &method.optimizer {
                        spec.optimizer = optimizer.as_ref().clone();
                    }
                    if let Some(batches) = &method.batches {
                        spec.batches = *batches.as_ref();
                    }
                    if let Some(lr) = &pair.lr {
                        spec.schedule.lr = *lr.as_ref();
                    }
                    plan.runs.push(PlannedRun { method: method.id.as_ref().clone(), pair: index, seed, spec });
                }
            }
            plan.teachers.push(teacher);
        }
        Ok(plan)
    }

    /// All runs by id, teachers included.
    #[must_use]
    pub fn by_id(&self) -> BTreeMap<String, &RunSpec> {
        self.teachers.iter().chain(self.runs.iter().map(|run| &run.spec)).map(|spec| (spec.id(), spec)).collect()
    }
}

/// The rows that run for a pair.
fn rows<'a>(loaded: &'a Loaded, pair: &Pair, selection: &Selection) -> Vec<&'a MethodConfig> {
    let wanted = |id: &String| {
        let selected = selection.only.is_empty() || selection.only.contains(id);
        (selected || id == loaded.manifest.baseline.as_ref()) && pair.without.iter().all(|other| other.as_ref() != id)
    };
    loaded.manifest.methods.iter().filter(|method| wanted(method.id.as_ref())).collect()
}

/// The terms of a row: the pair's own, else the profile's own, else the manifest's.
fn losses<'a>(method: &'a MethodConfig, profile: &'a Profile, pair: &'a Pair) -> &'a [Spanned<LossConfig>] {
    let of = |(key, losses): (&Spanned<String>, &'a Vec<Spanned<LossConfig>>)| {
        (key.as_ref() == method.id.as_ref()).then_some(losses)
    };
    pair.overrides.iter().find_map(of).or_else(|| profile.overrides.iter().find_map(of)).unwrap_or(&method.losses)
}

/// Refuses a row whose losses the shapes of the pair do not allow, before a teacher is trained for it.
fn check_fit(loaded: &Loaded, fit: &mut Fit<'_>, pair: &Pair, losses: &[Spanned<LossConfig>]) -> Result<()> {
    let (teacher, student) = (pair.teacher.as_ref(), pair.student.as_ref());
    losses.iter().try_for_each(|loss| {
        let refused = |e| {
            let message =
                format!("{e} (teacher `{teacher}`, student `{student}`; the pair's `without` leaves a row out)");
            loaded.point(loss.span(), &message)
        };
        fit.check(teacher, student, loss.as_ref()).map_err(refused)
    })
}

/// Refuses a loss that some batch of an epoch, the last one at least, has too few rows for.
fn check_batches(
    loaded: &Loaded,
    profile: &Profile,
    batches: Option<&Spanned<Sampling>>,
    rows: usize,
    losses: &[Spanned<LossConfig>],
) -> Result<()> {
    let size = *profile.batch_size.as_ref();
    // Batches by class are all full.
    let full = batches.is_some_and(|batches| matches!(batches.as_ref(), Sampling::ClassBalanced { .. }));
    let last = if full || rows.is_multiple_of(size) { size } else { rows % size };
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
        return Err(loaded.point(loss.span(), &message));
    }
    let Some(loss) = losses.iter().find(|loss| loss.as_ref().least_rows() > last) else { return Ok(()) };
    let (id, least) = (loss.as_ref().id(), loss.as_ref().least_rows());
    let message = format!(
        "`{id}` needs batches of at least {least} rows, but {rows} training images in batches of {size} leave {last} for the \
         last one; change `batch_size` or the number of training images"
    );
    Err(loaded.point(loss.span(), &message))
}

/// Teachers are trained once, with seed 1, by plain cross-entropy.
fn teacher_spec(profile: &Profile, pair: &Pair, splits: &Splits) -> RunSpec {
    let losses = vec![LossConfig::Ce(retort_losses::output::CeConfig::default())];
    spec(profile, &profile.teacher, pair.teacher.as_ref(), losses, None, splits, 1)
}

fn spec(
    profile: &Profile,
    recipe: &Recipe,
    model: &str,
    losses: Vec<LossConfig>,
    teacher: Option<RunSpec>,
    splits: &Splits,
    seed: u64,
) -> RunSpec {
    let epochs = *recipe.epochs.as_ref();
    // Runs on held-out images choose weights by their accuracy; nobody looks at their features.
    let bounds = profile.features && teacher.is_some() && !splits.held_out;
    RunSpec {
        numerics: NUMERICS,
        model: model.to_string(),
        losses,
        teacher: teacher.map(Box::new),
        data: splits.spec(),
        augmentation: profile.augmentation.iter().map(|t| t.as_ref().clone()).collect(),
        batch_size: *profile.batch_size.as_ref(),
        batches: profile.batches.as_ref().map(|batches| *batches.as_ref()).unwrap_or_default(),
        epochs,
        evaluate_every: recipe.evaluate_every.unwrap_or(epochs),
        bounds,
        optimizer: recipe.optimizer.as_ref().clone(),
        schedule: recipe.schedule.as_ref().clone(),
        seed,
    }
}
