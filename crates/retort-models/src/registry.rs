//! Which architectures there are.

use crate::cifar_resnet::{Block, CifarResNet, CifarResNetConfig};
use crate::mlp::{Mlp, MlpConfig};
use crate::vgg::{Vgg, VggConfig};
use crate::wide_resnet::{WideResNet, WideResNetConfig};
use crate::{Error, Result};
use retort_nn::{Network, Scope, nearest};

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
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo {
    /// Name in manifests, as in the reference code bases.
    pub name: &'static str,
    /// Paper of the family.
    pub source: &'static str,
    family: Family,
}

/// One description per family; a depth or width is a row of numbers.
#[derive(Clone, Copy, Debug)]
enum Family {
    CifarResNet(CifarResNetConfig),
    WideResNet(WideResNetConfig),
    Vgg(VggConfig),
    Mlp(MlpConfig<'static>),
}

const RESNET: &str = "He et al. 2016, arXiv 1512.03385, section 4.2";
const WRN: &str = "Zagoruyko and Komodakis 2016, arXiv 1605.07146";
const VGG: &str = "Simonyan and Zisserman 2015, arXiv 1409.1556, with batch norm and one linear layer";
const MLP: &str = "Fernandes Montesuma 2025 (KD2M), arXiv 2504.01757, the networks for MNIST of its code";

const fn resnet(name: &'static str, depth: usize, channels: [usize; 4]) -> ModelInfo {
    ModelInfo {
        name,
        source: RESNET,
        family: Family::CifarResNet(CifarResNetConfig { depth, block: Block::Basic, channels }),
    }
}

const fn wrn(name: &'static str, depth: usize, widen: usize) -> ModelInfo {
    ModelInfo { name, source: WRN, family: Family::WideResNet(WideResNetConfig { depth, widen }) }
}

const fn vgg(name: &'static str, convolutions: [usize; 5]) -> ModelInfo {
    let channels = [64, 128, 256, 512, 512];
    ModelInfo { name, source: VGG, family: Family::Vgg(VggConfig { channels, convolutions }) }
}

const fn mlp(name: &'static str, hidden: &'static [usize]) -> ModelInfo {
    ModelInfo { name, source: MLP, family: Family::Mlp(MlpConfig { hidden }) }
}

const THIN: [usize; 4] = [16, 16, 32, 64];
const X4: [usize; 4] = [32, 64, 128, 256];

const MODELS: &[ModelInfo] = &[
    resnet("resnet8", 8, THIN),
    resnet("resnet14", 14, THIN),
    resnet("resnet20", 20, THIN),
    resnet("resnet32", 32, THIN),
    resnet("resnet44", 44, THIN),
    resnet("resnet56", 56, THIN),
    resnet("resnet110", 110, THIN),
    resnet("resnet8x4", 8, X4),
    resnet("resnet32x4", 32, X4),
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
    mlp("mlp-512-256-128", &[512, 256, 128]),
    mlp("mlp-512-256-128-128-128", &[512, 256, 128, 128, 128]),
];

impl ModelInfo {
    /// Multiply-adds of convolutions and linear layers for one image.
    ///
    /// # Errors
    ///
    /// A configuration for which the network cannot be built.
    pub fn multiply_adds(&self, config: &ModelConfig) -> Result<usize> {
        match &self.family {
            Family::CifarResNet(family) => family.multiply_adds(self.name, config),
            Family::WideResNet(family) => family.multiply_adds(self.name, config),
            Family::Vgg(family) => family.multiply_adds(self.name, config),
            Family::Mlp(family) => family.multiply_adds(self.name, config),
        }
    }
}

/// All architectures, in the order in which tables list them.
#[must_use]
pub fn registry() -> &'static [ModelInfo] {
    MODELS
}

/// The entry called `name`.
///
/// # Errors
///
/// [`Error::UnknownModel`] with the nearest valid name.
pub fn info(name: &str) -> Result<&'static ModelInfo> {
    let names = || MODELS.iter().map(|model| model.name);
    MODELS.iter().find(|model| model.name == name).ok_or_else(|| Error::UnknownModel {
        name: name.to_string(),
        hint: nearest(name, names()).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default(),
        known: names().collect::<Vec<_>>().join(", "),
    })
}

/// Builds the network `name`; its tensors are declared in `scope` under PyTorch's key names.
///
/// # Errors
///
/// An unknown name, sizes of zero, an image too small for the network's poolings or too large for its layers, or weights that do not fit (see
/// [`Scope::weight`]).
pub fn build(name: &str, config: &ModelConfig, scope: &Scope) -> Result<Box<dyn Network>> {
    Ok(match &info(name)?.family {
        Family::CifarResNet(family) => Box::new(CifarResNet::new(name, family, config, scope)?),
        Family::WideResNet(family) => Box::new(WideResNet::new(name, family, config, scope)?),
        Family::Vgg(family) => Box::new(Vgg::new(name, family, config, scope)?),
        Family::Mlp(family) => Box::new(Mlp::new(name, family, config, scope)?),
    })
}
