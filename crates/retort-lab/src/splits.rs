//! Training and test rows: of a profile, of a record, of the parts that teachers, students and probes see.

use crate::manifest::{DataConfig, Profile};
use crate::plan::RunSpec;
use crate::{Error, Result};
use retort_datasets::{CustomConfig, Dataset, Modality, Normalization, Sources, Split, SubsetConfig};
use retort_models::ModelConfig;
use serde::{Deserialize, Serialize};

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
    /// Channel statistics in place of the data set's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalization: Option<Normalization>,
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
    normalization: Option<Normalization>,
}

/// Which rows of which data set, and how their pixels are scaled.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// Name in the registry, or of a set that it does not have.
    pub name: &'a str,
    /// How a set is read that the registry does not have.
    pub custom: Option<&'a CustomConfig>,
    /// Which training rows; only their classes are tested.
    pub train: SubsetConfig,
    /// Class-balanced number of test rows; all where absent.
    pub test: Option<usize>,
    /// Channel statistics in place of the data set's own.
    pub normalization: Option<&'a Normalization>,
}

impl Splits {
    /// Loads the training and test rows of a data set.
    ///
    /// # Errors
    ///
    /// A missing or broken file, fewer rows than asked for, a set without labels or without a test split, statistics for
    /// another number of channels.
    pub fn load(wanted: &Wanted<'_>, sources: &Sources) -> Result<Self> {
        let [all_train, all_test] = whole_splits(wanted.name, wanted.custom, sources).map_err(Error::request)?;
        let part = |whole: &Dataset, config: &SubsetConfig| -> Result<Dataset> {
            // All rows are all rows, also of a set with classes of unequal size: a record names them by their number.
            let of_classes = SubsetConfig { classes: config.classes.clone(), ..SubsetConfig::default() };
            let whole = whole.subset(&of_classes).map_err(Error::request)?;
            let all = config.seed.is_none() && config.skip.is_none() && config.count == Some(whole.len());
            let count = config.count.filter(|_| !all);
            let part = whole.subset(&SubsetConfig { classes: None, count, ..config.clone() });
            let scaled = part.and_then(|part| match wanted.normalization {
                Some(normalization) => part.with_normalization(normalization.clone()),
                None => Ok(part),
            });
            scaled.map_err(Error::request)
        };
        let of_test =
            SubsetConfig { classes: wanted.train.classes.clone(), count: wanted.test, ..SubsetConfig::default() };
        let (train, test) = (part(&all_train, &wanted.train)?, part(&all_test, &of_test)?);
        if !train.is_labelled() || train.class_names() != test.class_names() || train.shape() != test.shape() {
            let about = |part: &Dataset| format!("{} classes, images {}", part.classes(), part.shape());
            let message = format!(
                "`{}`: training ({}) and test ({}) must have the same classes and images",
                wanted.name,
                about(&train),
                about(&test)
            );
            return Err(Error::Request(message));
        }
        let (custom, normalization) = (wanted.custom.cloned(), wanted.normalization.cloned());
        Ok(Self { train, test, held_out: false, custom, subset: wanted.train.clone(), normalization })
    }

    /// Loads the rows that `data` speaks of, for example those of a record; their digests are for the caller to compare.
    ///
    /// # Errors
    ///
    /// As [`Splits::load`] and [`Splits::validation`].
    pub fn of(data: &DataSpec, sources: &Sources) -> Result<Self> {
        let held_out = if data.held_out { data.test } else { 0 };
        let count = Some(data.train.saturating_add(held_out));
        let wanted = Wanted {
            name: &data.name,
            custom: data.custom.as_ref(),
            train: data.subset.clone().unwrap_or(SubsetConfig { count, ..SubsetConfig::default() }),
            test: (!data.held_out).then_some(data.test),
            normalization: data.normalization.as_ref(),
        };
        let splits = Self::load(&wanted, sources)?;
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

    /// What a network for this side of the images is built with.
    ///
    /// # Errors
    ///
    /// A modality that the images do not have.
    pub fn model(&self, modality: Modality) -> Result<ModelConfig> {
        let shape = modality.check(self.train.shape()).map_err(Error::request)?;
        Ok(ModelConfig {
            in_channels: shape.channels,
            image: [shape.height, shape.width],
            classes: self.train.classes(),
        })
    }

    /// Whether the test rows are training rows that were held out.
    #[must_use]
    pub fn held_out(&self) -> bool {
        self.held_out
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
            normalization: self.normalization.clone(),
        }
    }

    /// The choice of the training rows, where their number alone does not say it.
    fn named_subset(&self) -> Option<SubsetConfig> {
        let SubsetConfig { classes, skip, fraction, count: _, seed, noise } = &self.subset;
        let named = classes.is_some() || skip.is_some() || fraction.is_some() || seed.is_some() || noise.is_some();
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

/// The rows of a profile.
#[derive(Clone, Debug)]
pub struct ProfileData {
    /// What students are trained on.
    pub students: Splits,
    /// What teachers are trained on, where that is something else.
    pub teachers: Option<Splits>,
    /// What probes are trained on, where that is something else.
    pub probes: Option<Splits>,
}

impl ProfileData {
    /// Loads the rows.
    ///
    /// # Errors
    ///
    /// As [`Splits::load`].
    pub fn load(profile: &Profile, sources: &Sources) -> Result<Self> {
        let load = |data: &DataConfig| Splits::load(&data.wanted(), sources);
        let probes = profile.probe.as_ref().and_then(|probe| probe.data.as_ref());
        Ok(Self {
            students: load(&profile.data)?,
            teachers: profile.teacher_data.as_ref().map(load).transpose()?,
            probes: probes.map(load).transpose()?,
        })
    }

    /// What teachers are trained on.
    #[must_use]
    pub fn teachers(&self) -> &Splits {
        self.teachers.as_ref().unwrap_or(&self.students)
    }

    /// What probes are trained on.
    #[must_use]
    pub fn probes(&self) -> &Splits {
        self.probes.as_ref().unwrap_or(&self.students)
    }

    /// Training rows of everybody are held out for choosing settings by, see [`Splits::validation`].
    ///
    /// # Errors
    ///
    /// As [`Splits::validation`]; teachers or probes with rows of their own.
    pub fn validation(&self, n: usize) -> Result<Self> {
        if self.teachers.is_some() || self.probes.is_some() {
            let message = "settings can be chosen only where teachers, students and probes share their data";
            return Err(Error::Request(message.into()));
        }
        Ok(Self { students: self.students.validation(n)?, teachers: None, probes: None })
    }

    /// All rows that are there, for a runner.
    #[must_use]
    pub fn all(&self) -> DataSets {
        DataSets(
            [Some(&self.students), self.teachers.as_ref(), self.probes.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        )
    }
}

/// Rows by what they are.
#[derive(Clone, Debug)]
pub struct DataSets(Vec<Splits>);

impl DataSets {
    /// The rows of a run, of its teachers and of its probe.
    ///
    /// # Errors
    ///
    /// As [`Splits::of`].
    pub fn of(spec: &RunSpec, sources: &Sources) -> Result<Self> {
        let mut found: Vec<Splits> = Vec::new();
        for data in spec.data_specs() {
            if !found.iter().any(|splits| &splits.spec() == data) {
                let splits = Splits::of(data, sources)?;
                if &splits.spec() != data {
                    let message = format!("the data differ: the record has {data:?}, here is {:?}", splits.spec());
                    return Err(Error::Request(message));
                }
                found.push(splits);
            }
        }
        Ok(Self(found))
    }

    /// The rows that are these.
    ///
    /// # Errors
    ///
    /// They were not loaded.
    pub fn find(&self, data: &DataSpec) -> Result<&Splits> {
        let missing = || Error::Failed(format!("the rows of `{}` were not loaded", data.name));
        self.0.iter().find(|splits| &splits.spec() == data).ok_or_else(missing)
    }
}
