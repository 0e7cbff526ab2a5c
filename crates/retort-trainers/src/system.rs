//! What kind of training a run is: the closed set of [`SystemConfig`], one variant each, and what is known about them.

use crate::engine::{BatchPlan, Identity, Objective, Phase};
use crate::offline::{DistilConfig, HsakdConfig, HsakdTeacherConfig, SskdConfig, SskdTeacherConfig};
use crate::online::{
    ClIlrConfig, DmlConfig, FflConfig, HssakdOnlineConfig, KdclConfig, LmclConfig, MclConfig, MclMemoryConfig,
    MclMocoConfig, MfefConfig, OkddipConfig, OneConfig,
};
use crate::self_distillation::{
    BakeConfig, ByotSettings, CsKdSettings, DdgsdSettings, DksConfig, DlbSettings, FrskdConfig, MixSkdConfig,
    MixedImagesConfig, PsKdConfig, SadSettings, SfrConfig, TfKdSelfSettings, VirtualSoftmaxConfig, ZipfLsConfig,
};
use crate::self_supervised::SelfSupervisedConfig;
use crate::trained::Trained;
use crate::{Error, Result};
use candle_core::{DType, Device};
use retort_datasets::{Dataset, Sampling};
use retort_losses::LossConfig;
use retort_models::ModelConfig;
use retort_nn::{Network, OptimizerConfig, Params, ScheduleConfig, Seed};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Who learns from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A student from frozen teachers.
    Offline,
    /// Several networks from each other.
    Online,
    /// A network from itself.
    SelfDistillation,
    /// A network from images without labels.
    SelfSupervised,
    /// A teacher in preparation of another system.
    Teacher,
}

/// Which trained networks a system starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teachers {
    /// None.
    None,
    /// Any number; which of them are looked at is the losses' choice.
    Any,
    /// One network of any origin.
    One,
    /// One that this system trained.
    Of(&'static str),
}

/// What is known about a system, for lists and tables.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SystemInfo {
    /// The name in manifests.
    pub id: &'static str,
    /// A readable name.
    pub title: &'static str,
    /// Who learns from whom.
    pub kind: Kind,
    /// Title of the paper.
    pub paper: Option<&'static str>,
    /// Year of the paper.
    pub year: Option<u16>,
    /// arXiv number, where there is one.
    pub arxiv: Option<&'static str>,
    /// Independent augmentations of an image in a batch with the published settings; 1 for most.
    pub views: usize,
    /// Whether the terms come from a list of losses.
    pub losses: bool,
    /// Trainable parts beside the student, in words.
    pub trainable: &'static [&'static str],
    /// What a checkpoint must hold besides them, in words.
    pub state: &'static [&'static str],
    /// Public code bases whose behaviour is reproduced.
    pub code_bases: &'static [&'static str],
}

/// Epochs, batches, optimiser and schedule of the main phase.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Passes over the training set.
    pub epochs: usize,
    /// How batches are formed.
    pub plan: BatchPlan,
    /// Which optimiser.
    pub optimizer: OptimizerConfig,
    /// Its rate over time.
    pub schedule: ScheduleConfig,
}

/// The name of the phase that makes a student what it is. Batches, crops and flips are drawn by seed and phase, so
/// systems whose phase has this name see the same ones, those of plain training.
pub(crate) const MAIN: &str = "train";

impl Recipe {
    /// A phase of this recipe that sees the batches as they are.
    #[must_use]
    pub fn phase(&self, name: &str, objective: Box<dyn Objective>) -> Phase {
        Phase {
            name: name.to_string(),
            epochs: self.epochs,
            plan: self.plan.clone(),
            transform: Box::new(Identity),
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            objective,
        }
    }
}

/// What a system makes its phases from.
pub struct SystemContext<'a> {
    /// Architecture that is trained, a name of the model registry.
    pub student: &'a str,
    /// Images and classes of the student.
    pub model: ModelConfig,
    /// The terms, for systems that read a list.
    pub losses: &'a [LossConfig],
    /// Trained networks to start from.
    pub teachers: &'a [Trained],
    /// Training set.
    pub train: &'a Dataset,
    /// How the main phase is trained.
    pub recipe: &'a Recipe,
    /// Folder in which the teachers' outputs on the training set are kept between runs, see
    /// [`TeacherTable`](crate::offline::TeacherTable).
    pub teacher_outputs: Option<PathBuf>,
    /// Root of all randomness.
    pub seed: Seed,
    /// Where parameters live.
    pub device: Device,
}

impl SystemContext<'_> {
    /// An empty store of parameters whose initial values depend on seed and `name` alone. The student's is `student` in
    /// every system, so that students of one seed start alike.
    pub(crate) fn params(&self, name: &str) -> Params {
        Params::new(self.seed.child(name), DType::F32, &self.device)
    }

    /// The network `model` with fresh values in a store called `name`, and the store.
    pub(crate) fn network(&self, model: &str, name: &str) -> Result<(Arc<dyn Network>, Params)> {
        let params = self.params(name);
        Ok((Arc::from(retort_models::build(model, &self.model, &params.root())?), params))
    }

    /// The recipe with another way to form batches, where the manifest left the choice to the system; refused where the
    /// training set does not allow it.
    pub(crate) fn sampled(&self, system: &'static str, sampling: Sampling) -> Result<Recipe> {
        let mut recipe = self.recipe.clone();
        if ![Sampling::Shuffled, sampling].contains(&recipe.plan.sampling) {
            let message = format!("`{system}` forms its batches as {sampling:?}, found {:?}", recipe.plan.sampling);
            return Err(Error::Config { what: "batches".into(), message });
        }
        sampling.check(recipe.plan.batch_size, &self.train.class_counts())?;
        recipe.plan.sampling = sampling;
        Ok(recipe)
    }

    /// The only teacher.
    pub(crate) fn teacher(&self, system: &'static str) -> Result<&Trained> {
        match self.teachers {
            [teacher] => Ok(teacher),
            other => {
                let message = format!("`{system}` needs one trained teacher, found {}", other.len());
                Err(Error::Config { what: "teachers".into(), message })
            }
        }
    }
}

/// What every system's configuration can do; the enum below forwards to it.
pub(crate) trait System {
    /// What is known about the system.
    const INFO: SystemInfo;
    /// Range checks.
    fn check(&self) -> Result<()>;
    /// Which trained networks it starts from.
    fn teachers(&self) -> Teachers {
        Teachers::None
    }
    /// Independent augmentations of an image in a batch, where they depend on the settings.
    fn views(&self) -> usize {
        Self::INFO.views
    }
    /// Rows that a batch must have at least: 2 where a batch norm sees a row as one value.
    fn least_rows(&self) -> usize {
        1
    }
    /// The phases of a run; the last one's objective holds what the run is for.
    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>>;
}

macro_rules! systems {
    ($($variant:ident($config:ty),)*) => {
        /// One kind of training with its settings: what a manifest names as `system`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        pub enum SystemConfig {
            $(
                #[doc = concat!("See [`", stringify!($config), "`].")]
                $variant($config),
            )*
        }

        impl SystemConfig {
            /// What is known about the system.
            #[must_use]
            pub fn info(&self) -> &'static SystemInfo {
                match self { $(Self::$variant(_) => &<$config as System>::INFO,)* }
            }

            /// Which trained networks it starts from.
            #[must_use]
            pub fn teachers(&self) -> Teachers {
                match self { $(Self::$variant(c) => c.teachers(),)* }
            }

            /// Independent augmentations of an image in a batch.
            #[must_use]
            pub fn views(&self) -> usize {
                match self { $(Self::$variant(c) => c.views(),)* }
            }

            /// Rows that a batch must have at least; lists of losses have needs of their own.
            #[must_use]
            pub fn least_rows(&self) -> usize {
                match self { $(Self::$variant(c) => c.least_rows(),)* }
            }

            /// Checks the ranges of all fields.
            ///
            /// # Errors
            ///
            /// The first field that is out of range.
            pub fn validate(&self) -> Result<()> {
                match self { $(Self::$variant(c) => c.check(),)* }
            }

            /// The phases of a run, in order; the last one's objective holds what the run is for.
            ///
            /// # Errors
            ///
            /// A field out of range, an unknown model, a teacher that is missing or does not fit, losses that the system
            /// does not read.
            pub fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
                self.validate()?;
                self.check_losses(ctx.losses)?;
                self.check_views(ctx)?;
                match self { $(Self::$variant(c) => c.phases(ctx),)* }
            }

            /// Every system with its published settings, in the order of [`systems`].
            #[must_use]
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default()),)*]
            }
        }

        /// What is known about every system.
        #[must_use]
        pub fn systems() -> &'static [SystemInfo] {
            static SYSTEMS: &[SystemInfo] = &[$(<$config as System>::INFO,)*];
            SYSTEMS
        }
    };
}

systems! {
    Distil(DistilConfig),
    HsakdTeacher(HsakdTeacherConfig),
    Hsakd(HsakdConfig),
    HssakdOnline(HssakdOnlineConfig),
    SskdTeacher(SskdTeacherConfig),
    Sskd(SskdConfig),
    SelfSupervised(SelfSupervisedConfig),
    Dml(DmlConfig),
    Kdcl(KdclConfig),
    One(OneConfig),
    ClIlr(ClIlrConfig),
    Okddip(OkddipConfig),
    Ffl(FflConfig),
    Mfef(MfefConfig),
    Mcl(MclConfig),
    MclMemory(MclMemoryConfig),
    MclMoco(MclMocoConfig),
    Lmcl(LmclConfig),
    CsKd(CsKdSettings),
    PsKd(PsKdConfig),
    Bake(BakeConfig),
    Dlb(DlbSettings),
    Ddgsd(DdgsdSettings),
    Dks(DksConfig),
    Byot(ByotSettings),
    Sad(SadSettings),
    Frskd(FrskdConfig),
    Mixskd(MixSkdConfig),
    ZipfLs(ZipfLsConfig),
    VirtualSoftmax(VirtualSoftmaxConfig),
    TfKdSelf(TfKdSelfSettings),
    Sfr(SfrConfig),
    MixedImages(MixedImagesConfig),
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self::Distil(DistilConfig::default())
    }
}

impl SystemInfo {
    /// Whether it is our own reading of a paper whose formulas are not published; whatever shows it must say so.
    #[must_use]
    pub fn is_reconstruction(&self) -> bool {
        self.title.contains("(reconstruction")
    }
}

impl SystemConfig {
    /// The name in manifests.
    #[must_use]
    pub fn id(&self) -> &'static str {
        self.info().id
    }

    /// Whether it is what a run is where nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses views that nobody would look at: teachers with views of their own are for lists of losses.
    fn check_views(&self, ctx: &SystemContext<'_>) -> Result<()> {
        let (expected, found) = (self.views(), ctx.recipe.plan.views.len());
        if self.info().losses || expected == found {
            return Ok(());
        }
        let message = format!(
            "`{}` shows {expected} view(s) of an image to all its networks, found {found}: teachers cannot have another \
             augmentation or modality than the student",
            self.id()
        );
        Err(Error::Config { what: "views".into(), message })
    }

    /// Refuses a list of losses where the system does not read one, and an empty list where it does.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn check_losses(&self, losses: &[LossConfig]) -> Result<()> {
        let message = match (self.info().losses, losses.first()) {
            (true, None) => format!("`{}` needs at least one loss, found none", self.id()),
            (false, Some(loss)) => {
                format!("`{}` has terms of its own and reads no `losses`, found `{}`", self.id(), loss.id())
            }
            _ => return Ok(()),
        };
        Err(Error::Config { what: "losses".into(), message })
    }
}
