//! The closed set of methods: [`LossConfig`], one variant each, and what is known about them.

use crate::distiller::{BuildContext, Distiller, InitPhase, Needs};
use crate::{Error, Result, contrastive, distribution, feature, output, relational, self_distillation};
use retort_nn::NetworkSpec;
use serde::{Deserialize, Serialize};

/// What kind of knowledge a method transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Class scores.
    Output,
    /// Feature maps.
    Feature,
    /// Relations between the samples of a batch.
    Relational,
    /// Samples against many others.
    Contrastive,
    /// Laws of features against each other.
    Distribution,
}

/// Whose values of one kind a method reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Nobody's.
    #[default]
    None,
    /// The student's.
    Student,
    /// The teacher's.
    Teacher,
    /// Both networks'.
    Both,
}

/// Which of a network's maps a method reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapChoice {
    /// None.
    #[default]
    None,
    /// One for each stage.
    Stages,
    /// That of the stem and one for each stage.
    StemAndStages,
    /// The last one.
    Last,
    /// One of the list, 0 being the stem's; here the default.
    Entry(usize),
}

/// What a method does besides adding a term of constant weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtraPhase {
    /// A phase before the training, by default of so many epochs, that trains the student too; the term is 0 afterwards.
    InitStudent(usize),
    /// A phase before the training, by default of so many epochs, that trains parts of the method only.
    InitParts(usize),
    /// A weight that rises over the first epochs, by default so many.
    Ramp(usize),
}

/// What a method reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// Class scores `[B, C]`.
    pub logits: Side,
    /// Pooled embeddings `[B, D]`.
    pub embedding: Side,
    /// Feature maps after the activation.
    pub maps: Side,
    /// Feature maps before the activation.
    pub pre_activations: Side,
    /// Which maps of either kind.
    pub which: MapChoice,
    /// Weight and bias of the teacher's batch norms.
    pub teacher_norms: bool,
    /// Class labels, in the loss or in its sampler.
    pub labels: bool,
    /// Rows of the samples in the training set.
    pub index: bool,
}

impl Inputs {
    /// Nothing; methods name what they read on top of it.
    pub(crate) const NONE: Self = Self {
        logits: Side::None,
        embedding: Side::None,
        maps: Side::None,
        pre_activations: Side::None,
        which: MapChoice::None,
        teacher_norms: false,
        labels: false,
        index: false,
    };
}

/// What is known about a method, for lists and tables.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MethodInfo {
    /// The name in manifests, golden files and tables.
    pub id: &'static str,
    /// A readable name.
    pub title: &'static str,
    /// Kind of knowledge.
    pub family: Family,
    /// Title of the paper; `None` for plain cross-entropy.
    pub paper: Option<&'static str>,
    /// Year of the paper.
    pub year: Option<u16>,
    /// arXiv number, where there is one.
    pub arxiv: Option<&'static str>,
    /// What the method reads.
    pub inputs: Inputs,
    /// Trainable parts, in words.
    pub trainable: &'static [&'static str],
    /// A phase of its own before the training, or a ramp of the weight.
    pub phase: Option<ExtraPhase>,
    /// What a checkpoint must hold besides them, in words.
    pub state: &'static [&'static str],
    /// What is saved with its trainable parts without being trained by the loss, in words.
    pub buffers: &'static [&'static str],
    /// Published weight of the cross-entropy beside this method; `None` for the task losses themselves.
    pub ce_weight: Option<f64>,
    /// Default weight of the term.
    pub weight: f64,
    /// Public code bases whose behaviour is reproduced.
    pub code_bases: &'static [&'static str],
}

/// RepDistiller, commit b84f547.
pub(crate) const REP_DISTILLER: &str = "HobbitLong/RepDistiller";
/// mdistiller, commit a08d46f.
pub(crate) const MDISTILLER: &str = "megvii-research/mdistiller";
/// Self-KD-Lib, commit ede3062.
pub(crate) const SELF_KD_LIB: &str = "winycg/Self-KD-Lib";
/// RepDistiller and mdistiller.
pub(crate) const BOTH: &[&str] = &[REP_DISTILLER, MDISTILLER];

/// What every method's configuration can do; the enum below forwards to it.
pub(crate) trait Method {
    /// What is known about the method.
    const INFO: MethodInfo;
    /// Weight of the term, ramps excluded.
    fn weight(&self) -> f64;
    /// Range checks of every field but the weight.
    fn validate(&self) -> Result<()>;
    /// What the method wants to be given.
    fn needs(&self) -> Needs;
    /// Rows that a batch must have at least.
    fn least_rows(&self) -> usize {
        1
    }
    /// Rows of each class that a batch must have at least, of those that are in it.
    fn least_rows_of_class(&self) -> usize {
        1
    }
    /// The phase before the training of this student, for methods that have one.
    fn init_phase(&self, _student: &NetworkSpec) -> Option<InitPhase> {
        None
    }
    /// The temperature that softens the teacher's logits, for a method that reads nothing else of the teacher.
    fn teacher_temperature(&self) -> Option<f64> {
        None
    }
    /// Declares trainable parts and sets up state; the configuration has been validated.
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>>;
}

macro_rules! methods {
    ($($variant:ident($config:ty),)*) => {
        /// One method with its hyper-parameters: what a manifest names.
        ///
        /// ```
        /// use retort_losses::LossConfig;
        /// let config: LossConfig = serde_json::from_str(r#"{"method": "kd", "temperature": 2.0}"#)?;
        /// assert_eq!((config.id(), config.weight()), ("kd", 0.9));
        /// assert!(serde_json::from_str::<LossConfig>(r#"{"method": "kd", "temprature": 2.0}"#).is_err());
        /// # Ok::<(), serde_json::Error>(())
        /// ```
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "method", rename_all = "kebab-case")]
        pub enum LossConfig {
            $(
                #[doc = concat!("See [`", stringify!($config), "`].")]
                $variant($config),
            )*
        }

        impl LossConfig {
            /// The method's name in manifests, golden files and tables.
            #[must_use]
            pub fn id(&self) -> &'static str {
                self.info().id
            }

            /// What is known about the method.
            #[must_use]
            pub fn info(&self) -> &'static MethodInfo {
                match self { $(Self::$variant(_) => &<$config as Method>::INFO,)* }
            }

            /// Weight of the term in the objective, ramps excluded.
            #[must_use]
            pub fn weight(&self) -> f64 {
                match self { $(Self::$variant(c) => c.weight(),)* }
            }

            /// Checks the ranges of all fields.
            ///
            /// # Errors
            ///
            /// The first field that is out of range: method, field, found value, expected range.
            pub fn validate(&self) -> Result<()> {
                check::positive(self.id(), "weight", self.weight())?;
                match self { $(Self::$variant(c) => c.validate(),)* }
            }

            /// What the method wants to be given.
            #[must_use]
            pub fn needs(&self) -> Needs {
                match self { $(Self::$variant(c) => c.needs(),)* }
            }

            /// Rows that a batch must have at least: 2 for a method that needs a variance.
            #[must_use]
            pub fn least_rows(&self) -> usize {
                match self { $(Self::$variant(c) => c.least_rows(),)* }
            }

            /// Rows of each class that a batch must have at least, of those classes that are in it.
            #[must_use]
            pub fn least_rows_of_class(&self) -> usize {
                match self { $(Self::$variant(c) => c.least_rows_of_class(),)* }
            }

            /// The phase before the training of this student, for methods that have one.
            #[must_use]
            pub fn init_phase(&self, student: &NetworkSpec) -> Option<InitPhase> {
                match self { $(Self::$variant(c) => c.init_phase(student),)* }
            }

            /// The one temperature that softens the teacher's logits, where the method reads nothing else of the teacher:
            /// it depends on the softened class probabilities alone, so those of several teachers can be merged.
            #[must_use]
            pub fn teacher_temperature(&self) -> Option<f64> {
                match self { $(Self::$variant(c) => c.teacher_temperature(),)* }
            }

            /// Validates, declares trainable parts in `ctx.scope` and sets up state.
            ///
            /// # Errors
            ///
            /// A field out of range, a missing teacher, or two networks that the method cannot pair.
            pub fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
                self.validate()?;
                ctx.shows_maps(self.info())?;
                match self { $(Self::$variant(c) => c.build(ctx),)* }
            }

            /// Every method with its published hyper-parameters, in the order of [`registry`].
            #[must_use]
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default()),)*]
            }
        }

        /// What is known about every method.
        #[must_use]
        pub fn registry() -> &'static [MethodInfo] {
            static REGISTRY: &[MethodInfo] = &[$(<$config as Method>::INFO,)*];
            REGISTRY
        }
    };
}

methods! {
    Ce(output::CeConfig),
    LabelSmoothing(output::LabelSmoothingConfig),
    Focal(self_distillation::FocalConfig),
    MaxEntropy(self_distillation::MaxEntropyConfig),
    TfKdReg(self_distillation::TfKdRegConfig),
    TfKdRegLib(self_distillation::TfKdRegLibConfig),
    ZipfLsLogits(self_distillation::ZipfLsLogitsConfig),
    Kd(output::KdConfig),
    Dkd(output::DkdConfig),
    Ctkd(output::CtkdConfig),
    CtkdInstance(output::CtkdInstanceConfig),
    Fitnet(feature::FitnetConfig),
    At(feature::AtConfig),
    Ab(feature::AbConfig),
    Ft(feature::FtConfig),
    Fsp(feature::FspConfig),
    Nst(feature::NstConfig),
    Kdsvd(feature::KdsvdConfig),
    Vid(feature::VidConfig),
    Ofd(feature::OfdConfig),
    Reviewkd(feature::ReviewkdConfig),
    Pkd(feature::PkdConfig),
    Simreg(feature::SimregConfig),
    Sp(relational::SpConfig),
    Rkd(relational::RkdConfig),
    Pkt(relational::PktConfig),
    Cc(relational::CcConfig),
    Crd(contrastive::CrdConfig),
    PairedL2(distribution::PairedL2Config),
    W2Empirical(distribution::W2EmpiricalConfig),
    W1Empirical(distribution::W1EmpiricalConfig),
    W2Conditional(distribution::W2ConditionalConfig),
    W2Joint(distribution::W2JointConfig),
    Sinkhorn(distribution::SinkhornConfig),
    SinkhornDivergence(distribution::SinkhornDivergenceConfig),
    SinkhornLogits(distribution::SinkhornLogitsConfig),
    SlicedW2(distribution::SlicedW2Config),
    MaxSlicedW2(distribution::MaxSlicedW2Config),
    SlicedCramer(distribution::SlicedCramerConfig),
    GaussianW2(distribution::GaussianW2Config),
    GaussianW2Diag(distribution::GaussianW2DiagConfig),
    GaussianKl(distribution::GaussianKlConfig),
    Coral(distribution::CoralConfig),
    Mmd(distribution::MmdConfig),
    MmdConditional(distribution::MmdConditionalConfig),
    EnergyDistance(distribution::EnergyDistanceConfig),
    GromovWasserstein(distribution::GromovWassersteinConfig),
}

/// Range checks.
pub(crate) mod check {
    use super::{Error, Result};

    fn range(ok: bool, method: &'static str, field: &'static str, expected: &str, found: impl ToString) -> Result<()> {
        if ok {
            return Ok(());
        }
        Err(Error::Config { method, field, expected: expected.to_string(), found: found.to_string() })
    }

    pub(crate) fn positive(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range(x.is_finite() && x > 0.0, method, field, "a finite number > 0", x)
    }

    pub(crate) fn non_negative(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range(x.is_finite() && x >= 0.0, method, field, "a finite number >= 0", x)
    }

    pub(crate) fn unit(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range((0.0..=1.0).contains(&x), method, field, "a number in 0 ..= 1", x)
    }

    /// Beyond this range the squared temperature eats the digits of f32.
    pub(crate) fn temperature(method: &'static str, x: f64) -> Result<()> {
        temperature_field(method, "temperature", x)
    }

    /// The same for a temperature of another name.
    pub(crate) fn temperature_field(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range((1e-3..=1e3).contains(&x), method, field, "a number in 0.001 ..= 1000", x)
    }

    /// A factor of either sign.
    pub(crate) fn coefficient(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range((-1e3..=1e3).contains(&x), method, field, "a number in -1000 ..= 1000", x)
    }

    /// The argument of a sigmoid; beyond this range it has no slope.
    pub(crate) fn logit(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range((-30.0..=30.0).contains(&x), method, field, "a number in -30 ..= 30", x)
    }

    /// An exponent of activations; larger ones overflow f32 at once.
    pub(crate) fn exponent(method: &'static str, field: &'static str, x: f64) -> Result<()> {
        range((1.0..=16.0).contains(&x), method, field, "a number in 1 ..= 16", x)
    }

    /// A number of things that are allocated one by one.
    pub(crate) fn count(method: &'static str, field: &'static str, x: usize) -> Result<()> {
        range((1..=1 << 20).contains(&x), method, field, "a whole number in 1 ..= 1048576", x)
    }

    /// A width of an embedding.
    pub(crate) fn width(method: &'static str, field: &'static str, x: usize) -> Result<()> {
        range((1..=1 << 16).contains(&x), method, field, "a whole number in 1 ..= 65536", x)
    }
}
