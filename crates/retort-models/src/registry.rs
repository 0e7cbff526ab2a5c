//! Which architectures there are.

use crate::common::named;
use crate::hcgnet::HcgNetConfig;
use crate::lenet::{LeNet, LeNetConfig};
use crate::mlp::{Mlp, MlpConfig};
use crate::mobilenet::{MobileNetV1Config, MobileNetV2Config};
use crate::pre_activation::PreActivationConfig;
use crate::resnet::{Branch, ResNetConfig};
use crate::shufflenet::{ShuffleNetV1Config, ShuffleNetV2Config};
use crate::staged::{Architecture, Staged};
use crate::vgg::VggConfig;
use crate::{Error, Result};
use candle_core::{DType, Device};
use retort_nn::{Network, NetworkSpec, Params, Scope, nearest, shown};
use std::sync::LazyLock;

/// What a network is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Channels of the images, usually 1 or 3.
    pub in_channels: usize,
    /// Height and width of the images.
    pub image: [usize; 2],
    /// Number of classes.
    pub classes: usize,
}

impl ModelConfig {
    /// CIFAR-100: 3x32x32, 100 classes, the setting in which the literature counts parameters.
    pub const CIFAR100: Self = Self { in_channels: 3, image: [32, 32], classes: 100 };
}

/// One entry of the registry.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name in manifests, as in the reference code bases.
    pub name: &'static str,
    /// Paper of the family.
    pub source: &'static str,
    /// What the network is made of.
    pub family: Family,
}

/// A network as numbers: one description per family.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Residual, activation behind the addition.
    ResNet(ResNetConfig),
    /// Residual, activation before the convolutions; wide ones among them.
    PreActivation(PreActivationConfig),
    /// Plain convolutions and poolings.
    Vgg(VggConfig),
    /// Gated, of dense connections.
    HcgNet(HcgNetConfig),
    /// Depthwise separable convolutions.
    MobileNetV1(MobileNetV1Config),
    /// Inverted residual blocks.
    MobileNetV2(MobileNetV2Config),
    /// Grouped convolutions with channel shuffle.
    ShuffleNetV1(ShuffleNetV1Config),
    /// Split channels with channel shuffle.
    ShuffleNetV2(ShuffleNetV2Config),
    /// Two convolutions and three linear layers.
    LeNet(LeNetConfig),
    /// Fully connected.
    Mlp(MlpConfig),
}

impl Family {
    /// Builds the network; its tensors are declared in `scope` under PyTorch's key names, `name` appears in its spec
    /// and in errors.
    ///
    /// # Errors
    ///
    /// Numbers that no network can be built from, sizes of zero, an image too small for the network's poolings or too
    /// large for its layers, or weights that do not fit (see [`Scope::weight`]).
    pub fn build(&self, name: &str, config: &ModelConfig, scope: &Scope) -> Result<Box<dyn Network>> {
        let network = || -> Result<Box<dyn Network>> {
            Ok(match (self, self.architecture()) {
                (Self::Mlp(family), _) => Box::new(Mlp::new(name, family, config, scope)?),
                (Self::LeNet(family), _) => Box::new(LeNet::new(name, family, config, scope)?),
                (_, Some(architecture)) => Box::new(Staged::new(name, architecture, config, scope)?),
                (_, None) => unreachable!("every family but those with several linear layers is staged"),
            })
        };
        named(name, network())
    }

    /// Number of trainable parameters, found without drawing a weight.
    pub(crate) fn parameter_count(&self, name: &str, config: &ModelConfig) -> Result<usize> {
        let params = Params::declared(DType::F32, &Device::Cpu);
        self.build(name, config, &params.root())?;
        Ok(params.parameter_count())
    }

    /// The same with another key of a residual network's classifier, where that is `fc`.
    pub(crate) fn with_classifier(&self, key: &'static str) -> Self {
        let mut family = self.clone();
        match &mut family {
            Self::ResNet(config) if config.classifier == "fc" => config.classifier = key,
            Self::PreActivation(config) if config.classifier == "fc" => config.classifier = key,
            _ => {}
        }
        family
    }

    /// The family's groups of blocks, where it has any.
    pub(crate) fn architecture(&self) -> Option<&dyn Architecture> {
        match self {
            Self::ResNet(family) => Some(family),
            Self::PreActivation(family) => Some(family),
            Self::Vgg(family) => Some(family),
            Self::HcgNet(family) => Some(family),
            Self::MobileNetV1(family) => Some(family),
            Self::MobileNetV2(family) => Some(family),
            Self::ShuffleNetV1(family) => Some(family),
            Self::ShuffleNetV2(family) => Some(family),
            Self::LeNet(_) | Self::Mlp(_) => None,
        }
    }
}

const RESNET: &str = "He et al. 2016, arXiv 1512.03385";
const WRN: &str = "Zagoruyko and Komodakis 2016, arXiv 1605.07146";
const PREACT: &str = "He et al. 2016, arXiv 1603.05027";
const VGG: &str = "Simonyan and Zisserman 2015, arXiv 1409.1556, with batch norm and one linear layer";
const GNOSIS_VGG: &str =
    "Simonyan and Zisserman 2015, arXiv 1409.1556, without batch norm, as in Stanton et al. 2021, arXiv 2106.05945";
const HCGNET: &str = "Yang et al. 2020, arXiv 1908.09699";
const MOBILENET: &str = "Howard et al. 2017, arXiv 1704.04861";
const MOBILENET_V2: &str = "Sandler et al. 2018, arXiv 1801.04381";
const SHUFFLENET: &str = "Zhang et al. 2018, arXiv 1707.01083";
const SHUFFLENET_V2: &str = "Ma et al. 2018, arXiv 1807.11164";
const LENET: &str = "LeCun et al. 1998, as in Stanton et al. 2021, arXiv 2106.05945";
const MLP: &str = "Fernandes Montesuma 2025 (KD2M), arXiv 2504.01757, the networks for MNIST of its code";

const THIN: [usize; 4] = [16, 16, 32, 64];
const X4: [usize; 4] = [32, 64, 128, 256];

/// All entries; a depth or width is a row of numbers.
fn models() -> Vec<ModelInfo> {
    let entry = |source| move |name, family| ModelInfo { name, source, family };
    let cifar = |name, depth, channels| {
        let family = ResNetConfig::cifar(depth, Branch::Basic, channels).expect("the depth is 6n + 2");
        entry(RESNET)(name, Family::ResNet(family))
    };
    let wrn = |name, depth, widen| {
        let family = PreActivationConfig::wide(depth, widen).expect("the depth is 6n + 4");
        entry(WRN)(name, Family::PreActivation(family))
    };
    let vgg = |name, convolutions| entry(VGG)(name, Family::Vgg(VggConfig::of(convolutions)));
    let mlp = |name, hidden: &[usize]| entry(MLP)(name, Family::Mlp(MlpConfig { hidden: hidden.to_vec() }));
    let resnet = |name, family| entry(RESNET)(name, Family::ResNet(family));
    let preact = |name, family| entry(PREACT)(name, Family::PreActivation(family));
    let fidelity = |depth| PreActivationConfig::fidelity(depth).expect("the depth is 6n + 2 or 9n + 2");
    let mobile = |name, family| entry(MOBILENET_V2)(name, Family::MobileNetV2(family));
    let shuffle = |name, net_size, stem_kernel| {
        let family = ShuffleNetV2Config::of_size(net_size, stem_kernel).expect("the net size is known");
        entry(SHUFFLENET_V2)(name, Family::ShuffleNetV2(family))
    };
    vec![
        cifar("resnet8", 8, THIN),
        cifar("resnet14", 14, THIN),
        cifar("resnet20", 20, THIN),
        cifar("resnet32", 32, THIN),
        cifar("resnet44", 44, THIN),
        cifar("resnet56", 56, THIN),
        cifar("resnet110", 110, THIN),
        cifar("resnet8x4", 8, X4),
        cifar("resnet32x4", 32, X4),
        cifar("resnet8x4_double", 8, X4.map(|channels| 2 * channels)),
        wrn("wrn_16_1", 16, 1),
        wrn("wrn_16_2", 16, 2),
        wrn("wrn_28_2", 28, 2),
        wrn("wrn_28_4", 28, 4),
        wrn("wrn_40_1", 40, 1),
        wrn("wrn_40_2", 40, 2),
        vgg("vgg8", [1, 1, 1, 1, 1]),
        vgg("vgg11", [1, 1, 2, 2, 2]),
        vgg("vgg13", [2, 2, 2, 2, 2]),
        vgg("vgg16", [2, 2, 3, 3, 3]),
        vgg("vgg19", [2, 2, 4, 4, 4]),
        entry(GNOSIS_VGG)(
            "gnosis_vgg16",
            Family::Vgg(VggConfig { normalised: false, ..VggConfig::of([2, 2, 3, 3, 3]) }),
        ),
        resnet("ResNet18", ResNetConfig::wide_cifar(Branch::Basic, [2, 2, 2, 2])),
        resnet("ResNet34", ResNetConfig::wide_cifar(Branch::Basic, [3, 4, 6, 3])),
        resnet("ResNet50", ResNetConfig::wide_cifar(Branch::Bottleneck, [3, 4, 6, 3])),
        resnet("imagenet_resnet18", ResNetConfig::imagenet(Branch::Basic, [2, 2, 2, 2])),
        resnet("imagenet_resnet34", ResNetConfig::imagenet(Branch::Basic, [3, 4, 6, 3])),
        resnet("imagenet_resnet50", ResNetConfig::imagenet(Branch::Bottleneck, [3, 4, 6, 3])),
        resnet("mcl_resnet110", ResNetConfig::mutual_contrastive_resnet110()),
        resnet("selfkd_resnet50", ResNetConfig::self_distillation_resnet50()),
        resnet("mixskd_backbone", ResNetConfig::mixskd_backbone()),
        resnet("sns_resnet18", ResNetConfig::squeeze_and_span()),
        preact("preact_resnet18", PreActivationConfig::resnet18()),
        preact("preresnet20", fidelity(20)),
        preact("preresnet56", fidelity(56)),
        entry(HCGNET)("hcgnet_A1", Family::HcgNet(HcgNetConfig::A1)),
        entry(HCGNET)("hcgnet_A2", Family::HcgNet(HcgNetConfig::A2)),
        mobile("MobileNetV2", MobileNetV2Config::cifar(6, 0.5, 2).expect("the width is in range")),
        mobile("MobileNetV2_stem1", MobileNetV2Config::hsakd()),
        mobile("tinyimagenet_MobileNetV2", MobileNetV2Config::tiny_imagenet()),
        entry(MOBILENET)("MobileNetV1", Family::MobileNetV1(MobileNetV1Config::imagenet())),
        entry(SHUFFLENET)("ShuffleV1", Family::ShuffleNetV1(ShuffleNetV1Config::cifar())),
        shuffle("ShuffleV2", 1.0, 1),
        shuffle("ShuffleNetV2_05x_cifar", 0.5, 3),
        shuffle("ShuffleNetV2_1x_cifar", 1.0, 3),
        entry(LENET)("lenet5", Family::LeNet(LeNetConfig::lenet5())),
        mlp("mlp-512-256-128", &[512, 256, 128]),
        mlp("mlp-512-256-128-128-128", &[512, 256, 128, 128, 128]),
    ]
}

/// All architectures, in the order in which tables list them.
#[must_use]
pub fn registry() -> &'static [ModelInfo] {
    static MODELS: LazyLock<Vec<ModelInfo>> = LazyLock::new(models);
    &MODELS
}

impl ModelInfo {
    /// What the network is, found without drawing a weight.
    ///
    /// # Errors
    ///
    /// As for [`Family::build`].
    pub fn spec(&self, config: &ModelConfig) -> Result<NetworkSpec> {
        let params = Params::declared(DType::F32, &Device::Cpu);
        Ok(self.family.build(self.name, config, &params.root())?.spec().clone())
    }

    /// Number of trainable parameters, found without drawing a weight.
    ///
    /// # Errors
    ///
    /// As for [`Family::build`].
    pub fn parameter_count(&self, config: &ModelConfig) -> Result<usize> {
        self.family.parameter_count(self.name, config)
    }
}

/// The entry called `name`.
///
/// # Errors
///
/// [`Error::UnknownModel`] with the nearest valid name.
pub fn info(name: &str) -> Result<&'static ModelInfo> {
    let names = || registry().iter().map(|model| model.name);
    registry().iter().find(|model| model.name == name).ok_or_else(|| Error::UnknownModel {
        name: shown(name),
        hint: nearest(name, names()).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default(),
        known: names().collect::<Vec<_>>().join(", "),
    })
}

/// Builds the network `name`; its tensors are declared in `scope` under PyTorch's key names.
///
/// # Errors
///
/// An unknown name, sizes of zero, an image too small for the network's poolings or too large for its layers, or
/// weights that do not fit (see [`Scope::weight`]).
pub fn build(name: &str, config: &ModelConfig, scope: &Scope) -> Result<Box<dyn Network>> {
    info(name)?.family.build(name, config, scope)
}
