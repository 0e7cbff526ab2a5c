//! From a manifest to runs: every run has an id that is a hash of what it does.

use crate::fit::Check;
use crate::manifest::{Loaded, MethodConfig, Pair, Profile, Recipe, Rows, TEACHER};
use crate::source::suggestion;
use crate::splits::{DataSpec, ProfileData, Splits};
use crate::tune::Weights;
use crate::{Error, Result};
use retort_datasets::{Modality, Sampling, TransformConfig};
use retort_losses::{LossConfig, Side};
use retort_nn::{OptimizerConfig, ScheduleConfig};
use retort_trainers::probe::ProbeConfig;
use retort_trainers::{Kind, SystemConfig, Teachers};
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
    /// What kind of training it is. This and every field below that has a default is left out where it has it, so that the
    /// ids of runs without it stay as they are.
    #[serde(default, skip_serializing_if = "SystemConfig::is_default")]
    pub system: SystemConfig,
    /// Weighted terms, for systems that read a list.
    pub losses: Vec<LossConfig>,
    /// The run that trains the teacher.
    pub teacher: Option<Box<RunSpec>>,
    /// The runs that train the other teachers of an ensemble.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_teachers: Vec<RunSpec>,
    /// Which images.
    pub data: DataSpec,
    /// Whether the labels of the training rows are taken away before anything sees them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlabelled: bool,
    /// Augmentation of training images.
    pub augmentation: Vec<TransformConfig>,
    /// What of an image the network sees.
    #[serde(default, skip_serializing_if = "is_stored")]
    pub modality: Modality,
    /// Augmentation of what the teachers see; the student's, with the same random numbers, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_augmentation: Option<Vec<TransformConfig>>,
    /// Images in a training batch.
    pub batch_size: usize,
    /// Which images form a training batch; shuffled by default.
    #[serde(default, skip_serializing_if = "Sampling::is_default")]
    pub batches: Sampling,
    /// Passes over the training images.
    pub epochs: usize,
    /// Evaluate every so many epochs.
    pub evaluate_every: usize,
    /// Compute what bounds the student's risk in every evaluation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bounds: bool,
    /// Which optimiser.
    pub optimizer: OptimizerConfig,
    /// Its rate over time.
    pub schedule: ScheduleConfig,
    /// How the finished network is judged besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeSpec>,
    /// Root of all randomness.
    pub seed: u64,
}

/// Classifiers on a finished network that stays as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSpec {
    /// Rows that the classifiers learn from, and are tested on.
    pub data: DataSpec,
    /// Which classifiers.
    pub config: ProbeConfig,
}

fn is_stored(modality: &Modality) -> bool {
    *modality == Modality::Stored
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

    /// The runs that must be finished before this one.
    pub fn teachers(&self) -> impl Iterator<Item = &RunSpec> {
        self.teacher.as_deref().into_iter().chain(&self.other_teachers)
    }

    /// Whether the run trains the network's own classifier on labels or on logits.
    #[must_use]
    pub fn classifies(&self) -> bool {
        let reads = |loss: &LossConfig| matches!(loss.info().inputs.logits, Side::Student | Side::Both);
        match self.system.info().kind {
            Kind::SelfSupervised => false,
            // A teacher with something beside a network that stays as it is.
            Kind::Teacher if self.teacher.is_some() => self.teachers().all(RunSpec::classifies),
            _ => self.epochs > 0 && (!self.system.info().losses || self.losses.iter().any(reads)),
        }
    }

    /// How many runs there are in a row before this one.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.teachers().map(|teacher| 1 + teacher.depth()).max().unwrap_or(0)
    }

    /// This run and all that must be finished before it, those first.
    #[must_use]
    pub fn with_teachers(&self) -> Vec<&RunSpec> {
        self.teachers().flat_map(RunSpec::with_teachers).chain([self]).collect()
    }

    /// All rows that this run and the runs before it need.
    #[must_use]
    pub fn data_specs(&self) -> Vec<&DataSpec> {
        let mut found = Vec::new();
        for spec in self.with_teachers() {
            found.push(&spec.data);
            found.extend(spec.probe.as_ref().map(|probe| &probe.data));
        }
        found
    }
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
    /// Teachers that the students need, pair by pair; those that others start from come first.
    pub teachers: Vec<PlannedRun>,
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
    /// An unknown method in the selection, a broken file of chosen weights, no seed, batches that cannot be formed from the
    /// training rows, or a row whose losses or system the networks of a pair do not allow.
    pub fn new(loaded: &Loaded, profile: &str, data: &ProfileData, selection: &Selection) -> Result<Self> {
        Self::with_weights(loaded, profile, data, selection, &Weights::read(loaded, profile)?)
    }

    /// The same with these weights for the rows that say `tune`.
    ///
    /// # Errors
    ///
    /// As [`Plan::new`].
    pub(crate) fn with_weights(
        loaded: &Loaded,
        profile: &str,
        data: &ProfileData,
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
        let specs = Specs { loaded, profile, data };
        let mut check = Check::new(loaded, profile, data)?;
        for (index, pair) in profile.pairs.as_ref().iter().enumerate() {
            let rows = rows(loaded, pair, selection);
            for seed in 1..=seeds {
                for method in &rows {
                    let mut spec = specs.student(pair, method, seed)?;
                    if seed == 1 {
                        check.row(pair, method, &spec)?;
                    }
                    spec.losses = weights.applied(method, spec.losses)?;
                    plan.runs.push(PlannedRun { method: method.id.as_ref().clone(), pair: index, seed, spec });
                }
            }
            for (method, seed, spec) in specs.teachers_of(pair, &rows)? {
                plan.teachers.push(PlannedRun { method, pair: index, seed, spec });
            }
        }
        Ok(plan)
    }

    /// Architecture of the teachers of a pair, for headings; that of the students where there is no teacher.
    pub(crate) fn teacher_model(&self, pair: usize) -> &str {
        let found = self.teachers.iter().chain(&self.runs).find(|run| run.pair == pair);
        found.map(|run| run.spec.model.as_str()).unwrap_or_default()
    }

    /// Number of pairs.
    pub(crate) fn pairs(&self) -> usize {
        self.runs.iter().map(|run| run.pair + 1).max().unwrap_or(0)
    }

    /// All runs by id, teachers included.
    #[must_use]
    pub fn by_id(&self) -> BTreeMap<String, &RunSpec> {
        self.teachers.iter().chain(&self.runs).map(|run| (run.spec.id(), &run.spec)).collect()
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
pub(crate) fn losses<'a>(method: &'a MethodConfig, profile: &'a Profile, pair: &'a Pair) -> &'a [Spanned<LossConfig>] {
    let of = |(key, losses): (&Spanned<String>, &'a Vec<Spanned<LossConfig>>)| {
        (key.as_ref() == method.id.as_ref()).then_some(losses)
    };
    pair.overrides.iter().find_map(of).or_else(|| profile.overrides.iter().find_map(of)).unwrap_or(&method.losses)
}

/// Without their places in the file.
fn bare(transforms: &[Spanned<TransformConfig>]) -> Vec<TransformConfig> {
    transforms.iter().map(|transform| transform.as_ref().clone()).collect()
}

/// Makes the specifications of a profile's runs.
struct Specs<'a> {
    loaded: &'a Loaded,
    profile: &'a Profile,
    data: &'a ProfileData,
}

/// Teachers are trained once, with this seed unless the profile says another; an ensemble has the seeds from it on.
const TEACHER_SEED: u64 = 1;

impl Specs<'_> {
    /// The run of a row.
    fn student(&self, pair: &Pair, method: &MethodConfig, seed: u64) -> Result<RunSpec> {
        let profile = self.profile;
        let recipe = &profile.student;
        let splits = if method.data == Rows::Probe { self.data.probes() } else { &self.data.students };
        let mut spec = self.spec(recipe, pair.student.as_ref(), splits, seed);
        spec.losses = losses(method, profile, pair).iter().map(|loss| loss.as_ref().clone()).collect();
        spec.system = profile.system(method).map(|system| system.as_ref().clone()).unwrap_or_default();
        spec.modality = profile.modality;
        spec.unlabelled = method.unlabelled;
        spec.augmentation = bare(&profile.augmentation(method));
        spec.teacher_augmentation = method.teacher_augmentation.as_deref().map(bare);
        if let Some(optimizer) = &method.optimizer {
            spec.optimizer = optimizer.as_ref().clone();
        }
        if let Some(batches) = &method.batches {
            spec.batches = *batches.as_ref();
        }
        if let Some(lr) = &pair.lr {
            spec.schedule.lr = *lr.as_ref();
        }
        let of_row = profile.epochs.get(method.id.as_ref().as_str()).or(method.epochs.as_ref().map(Spanned::as_ref));
        if let Some(epochs) = of_row {
            spec.epochs = *epochs;
            spec.evaluate_every = spec.evaluate_every.min(spec.epochs.max(1));
        }
        // A method that uses no teacher still names one: its fidelity is measured too.
        if spec.system.teachers() != Teachers::None {
            let mut teachers = self.teachers(pair, method)?.into_iter().map(|(_, _, spec)| spec);
            spec.teacher = teachers.next().map(Box::new);
            spec.other_teachers = teachers.collect();
        }
        // Runs on held-out images choose weights by their accuracy; nobody looks at their features.
        spec.bounds = profile.features && spec.teacher.is_some() && !splits.held_out();
        Ok(spec)
    }

    /// The teachers of a row: id, seed, run. None of a pair without one, where the row allows it.
    fn teachers(&self, pair: &Pair, method: &MethodConfig) -> Result<Vec<(String, u64, RunSpec)>> {
        let Some(model) = &pair.teacher else { return self.without_teacher(pair, method) };
        let id = method.teacher.as_ref().unwrap_or(&self.loaded.manifest.default_teacher);
        let count = method.ensemble.as_ref().map_or(1, |n| *n.as_ref() as u64);
        let first = self.profile.teacher_seed.unwrap_or(TEACHER_SEED);
        let seeds = (0..count).map(|i| first.saturating_add(i));
        seeds.map(|seed| Ok((id.as_ref().clone(), seed, self.teacher(model.as_ref(), id, seed)?))).collect()
    }

    fn without_teacher(&self, pair: &Pair, method: &MethodConfig) -> Result<Vec<(String, u64, RunSpec)>> {
        let system = self.profile.system(method).map(Spanned::as_ref);
        let reads = losses(method, self.profile, pair).iter().any(|loss| loss.as_ref().needs().teacher);
        let starts = system.is_some_and(|system| matches!(system.teachers(), Teachers::One | Teachers::Of(_)));
        let asks = method.teacher.is_some() || method.ensemble.is_some();
        if !(reads || starts || asks) {
            return Ok(Vec::new());
        }
        let message = format!(
            "`{}` needs a teacher, which the pair of `{}` does not have",
            method.id.as_ref(),
            pair.student.as_ref()
        );
        Err(self.loaded.point(method.id.span(), &message))
    }

    /// The run of the teacher `id` of this architecture; `teacher` is the plain one.
    fn teacher(&self, model: &str, id: &Spanned<String>, seed: u64) -> Result<RunSpec> {
        let config = self.loaded.teacher(id)?;
        let recipes = self.profile.teachers.get(id.as_ref().as_str()).or(self.profile.teacher.as_ref());
        let recipe = recipes
            .ok_or_else(|| self.loaded.point(id.span(), &format!("nothing says how `{}` is trained", id.as_ref())))?;
        let mut spec = self.spec(recipe, model, self.data.teachers(), seed);
        spec.modality = self.profile.teacher_modality.unwrap_or(self.profile.modality);
        match config {
            None => spec.losses = vec![LossConfig::Ce(retort_losses::output::CeConfig::default())],
            Some(config) => {
                spec.system = config.system.as_ref().clone();
                if let Some(augmentation) = &config.augmentation {
                    spec.augmentation = bare(augmentation);
                }
                if spec.system.teachers() != Teachers::None {
                    spec.teacher = Some(Box::new(self.teacher(model, &config.origin(), seed)?));
                }
            }
        }
        Ok(spec)
    }

    /// All teachers that these rows need, each once: id, seed, run.
    fn teachers_of(&self, pair: &Pair, rows: &[&MethodConfig]) -> Result<Vec<(String, u64, RunSpec)>> {
        let mut found: Vec<(String, u64, RunSpec)> = Vec::new();
        let mut add = |id: &str, seed: u64, spec: &RunSpec| {
            if !found.iter().any(|(_, _, known)| known == spec) {
                found.push((id.to_string(), seed, spec.clone()));
            }
        };
        for method in rows {
            if self.student(pair, method, 1)?.teacher.is_none() {
                continue;
            }
            for (id, seed, spec) in self.teachers(pair, method)? {
                // Those that it starts from come before it.
                let mut chain = vec![(id.clone(), &spec)];
                while let (id, Some(start)) =
                    (chain[chain.len() - 1].0.clone(), chain[chain.len() - 1].1.teacher.as_deref())
                {
                    let config = self.loaded.manifest.teachers.iter().find(|config| config.id.as_ref() == &id);
                    let origin = config.map_or(TEACHER.to_string(), |config| config.origin().into_inner());
                    chain.push((origin, start));
                }
                chain.iter().rev().for_each(|(id, spec)| add(id, seed, spec));
            }
        }
        Ok(found)
    }

    /// What student and teacher have in common.
    fn spec(&self, recipe: &Recipe, model: &str, splits: &Splits, seed: u64) -> RunSpec {
        let profile = self.profile;
        let epochs = *recipe.epochs.as_ref();
        let probe = profile.probe.as_ref();
        RunSpec {
            numerics: NUMERICS,
            model: model.to_string(),
            system: SystemConfig::default(),
            losses: Vec::new(),
            teacher: None,
            other_teachers: Vec::new(),
            data: splits.spec(),
            unlabelled: false,
            augmentation: bare(&profile.augmentation),
            modality: Modality::Stored,
            teacher_augmentation: None,
            batch_size: *profile.batch_size.as_ref(),
            batches: profile.batches.as_ref().map(|batches| *batches.as_ref()).unwrap_or_default(),
            epochs,
            evaluate_every: recipe.evaluate_every.unwrap_or(epochs),
            bounds: false,
            optimizer: recipe.optimizer.as_ref().clone(),
            schedule: recipe.schedule.as_ref().clone(),
            probe: probe
                .map(|probe| ProbeSpec { data: self.data.probes().spec(), config: probe.config.as_ref().clone() }),
            seed,
        }
    }
}
