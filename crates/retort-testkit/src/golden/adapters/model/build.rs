//! The field `build` of a case: which network it is about, with which constructor options.

use crate::golden::Case;
use crate::{Error, Result};
use retort_models::{
    Branch, Family, MobileNetV2Config, ModelConfig, PreActivationConfig, ResNetConfig, ShuffleNetV1Config,
    ShuffleNetV2Config, VggConfig,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A name and the options of its constructor.
#[derive(Deserialize)]
pub(super) struct Build {
    pub(super) model: String,
    num_classes: Option<usize>,
    #[serde(flatten)]
    options: Map<String, Value>,
}

impl Build {
    /// The options as `T`, which should refuse unknown ones.
    pub(super) fn options<T: DeserializeOwned>(&self, case: &Case) -> Result<T> {
        let options = Value::Object(self.options.clone());
        serde_json::from_value(options).map_err(|error| Error::field(case.path(), "build", error))
    }

    pub(super) fn unsupported(&self) -> Error {
        let options: Vec<&str> = self.options.keys().map(String::as_str).collect();
        let with = if options.is_empty() { String::new() } else { format!(" with {}", options.join(", ")) };
        Error::Unsupported(format!("no architecture `{}`{with}", self.model))
    }

    /// Classes of the case, and shape of its images.
    pub(super) fn config(&self, case: &Case) -> Result<ModelConfig> {
        let Some(classes) = self.num_classes else { return Err(self.unsupported()) };
        let [_, in_channels, height, width] = match case.has("in.x") {
            true => <[usize; 4]>::from(case.tensor("in.x")?.dims4()?),
            false => case.param("input")?,
        };
        Ok(ModelConfig { in_channels, image: [height, width], classes })
    }

    /// The network: an arm for every family with options of its own, otherwise the registry's entry as it is.
    pub(super) fn family(&self, case: &Case) -> Result<Family> {
        Ok(match self.model.as_str() {
            "cifar_resnet" => Family::ResNet(self.options::<CifarResNetOptions>(case)?.config()?),
            "mcl_resnet" => {
                let config = self.options::<CifarResNetOptions>(case)?.config()?;
                Family::ResNet(ResNetConfig { classifier: "classifier", ..config })
            }
            "vgg" => Family::Vgg(self.options::<VggOptions>(case)?.config()?),
            "MobileNetV2" => Family::MobileNetV2(self.options::<MobileNetV2Options>(case)?.config(case)?),
            "ShuffleV1" => Family::ShuffleNetV1(self.options::<ShuffleV1Options>(case)?.config()),
            "ShuffleV2" => Family::ShuffleNetV2(self.options::<ShuffleV2Options>(case)?.config()?),
            name => match registered(name) {
                Some(Family::ResNet(config)) => {
                    let options = self.options::<StemOptions>(case).map_err(|_| self.unsupported())?;
                    Family::ResNet(options.config(config))
                }
                Some(family) if self.options.is_empty() => family,
                _ => return Err(self.unsupported()),
            },
        })
    }
}

/// A row of the registry, or `wrn_D_W` of any depth and width.
fn registered(name: &str) -> Option<Family> {
    if let Ok(info) = retort_models::info(name) {
        return Some(info.family.clone());
    }
    let (depth, widen) = name.strip_prefix("wrn_")?.split_once('_')?;
    PreActivationConfig::wide(depth.parse().ok()?, widen.parse().ok()?).ok().map(Family::PreActivation)
}

/// Options of `cifar_resnet` and `mcl_resnet`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CifarResNetOptions {
    depth: usize,
    #[serde(default)]
    block: BlockName,
    #[serde(default = "thin")]
    channels: [usize; 4],
}

fn thin() -> [usize; 4] {
    [16, 16, 32, 64]
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BlockName {
    #[default]
    #[serde(alias = "basicblock")]
    Basic,
    Bottleneck,
}

impl CifarResNetOptions {
    fn config(&self) -> Result<ResNetConfig> {
        let branch = match self.block {
            BlockName::Basic => Branch::Basic,
            BlockName::Bottleneck => Branch::Bottleneck,
        };
        Ok(ResNetConfig::cifar(self.depth, branch, self.channels)?)
    }
}

/// Options of every residual network of the registry: another stem.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StemOptions {
    stem_kernel: Option<usize>,
    stem_stride: Option<usize>,
}

impl StemOptions {
    fn config(&self, mut config: ResNetConfig) -> ResNetConfig {
        config.stem.kernel = self.stem_kernel.unwrap_or(config.stem.kernel);
        config.stem.stride = self.stem_stride.unwrap_or(config.stem.stride);
        config
    }
}

/// Options of `vgg`: the channels of each convolution, block by block.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VggOptions {
    stages: [Vec<usize>; 5],
}

impl VggOptions {
    fn config(&self) -> Result<VggConfig> {
        let stages = &self.stages;
        let convolutions = stages.each_ref().map(Vec::len);
        let channels = stages.each_ref().map(|stage| stage.first().copied().unwrap_or(0));
        if stages.iter().zip(channels).any(|(stage, width)| stage.iter().any(|other| *other != width)) {
            return Err(Error::Unsupported(format!("`vgg` with several widths in a block: {stages:?}")));
        }
        Ok(VggConfig { channels, convolutions })
    }
}

/// Options of `MobileNetV2`; what is left out is that of the half-width network.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MobileNetV2Options {
    #[serde(rename = "T")]
    expansion: Option<usize>,
    width: Option<f64>,
    stem_stride: Option<usize>,
}

impl MobileNetV2Options {
    fn config(&self, case: &Case) -> Result<MobileNetV2Config> {
        let (expansion, width) = (self.expansion.unwrap_or(6), self.width.unwrap_or(0.5));
        let config = MobileNetV2Config::cifar(expansion, width, self.stem_stride.unwrap_or(2))?;
        // RepDistiller's classifier is the only layer of a row of layers, HSAKD's stands alone.
        let shapes: BTreeMap<String, Vec<usize>> = case.field("state_shapes")?;
        let in_row = shapes.keys().any(|key| key.ends_with("classifier.0.weight"));
        Ok(MobileNetV2Config { classifier: if in_row { "classifier.0" } else { "classifier" }, ..config })
    }
}

/// Options of `ShuffleV1`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShuffleV1Options {
    out_planes: Option<[usize; 3]>,
    blocks: Option<[usize; 3]>,
    groups: Option<usize>,
}

impl ShuffleV1Options {
    fn config(&self) -> ShuffleNetV1Config {
        let named = ShuffleNetV1Config::cifar();
        ShuffleNetV1Config {
            out_planes: self.out_planes.unwrap_or(named.out_planes),
            blocks: self.blocks.unwrap_or(named.blocks),
            groups: self.groups.unwrap_or(named.groups),
        }
    }
}

/// Options of `ShuffleV2`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShuffleV2Options {
    net_size: Option<f64>,
    stem_kernel: Option<usize>,
}

impl ShuffleV2Options {
    fn config(&self) -> Result<ShuffleNetV2Config> {
        Ok(ShuffleNetV2Config::of_size(self.net_size.unwrap_or(1.0), self.stem_kernel.unwrap_or(1))?)
    }
}
