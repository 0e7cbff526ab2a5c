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
            "cifar_resnet" | "mcl_resnet" => {
                let options = self.options::<CifarResNetOptions>(case)?;
                let classifier = if self.model == "mcl_resnet" { "classifier" } else { "fc" };
                options.stem().family(Family::ResNet(ResNetConfig { classifier, ..options.config()? }))
            }
            "vgg" => Family::Vgg(self.options::<VggOptions>(case)?.config()),
            "MobileNetV2" => Family::MobileNetV2(self.options::<MobileNetV2Options>(case)?.config(case)?),
            "ShuffleV1" => Family::ShuffleNetV1(self.options::<ShuffleV1Options>(case)?.config()),
            "ShuffleV2" => Family::ShuffleNetV2(self.options::<ShuffleV2Options>(case)?.config()?),
            name => match registered(name) {
                Some(family @ (Family::ResNet(_) | Family::PreActivation(_))) => {
                    self.options::<StemOptions>(case).map_err(|_| self.unsupported())?.family(family)
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
    stem_kernel: Option<usize>,
    stem_stride: Option<usize>,
}

fn thin() -> [usize; 4] {
    [16, 16, 32, 64]
}

/// `basic`, `basicblock` or `bottleneck`, in any case.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct BlockName(Branch);

impl Default for BlockName {
    fn default() -> Self {
        Self(Branch::Basic)
    }
}

impl TryFrom<String> for BlockName {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "basic" | "basicblock" => Ok(Self(Branch::Basic)),
            "bottleneck" => Ok(Self(Branch::Bottleneck)),
            _ => Err(format!("unknown block `{name}`, expected `basic`, `basicblock` or `bottleneck`")),
        }
    }
}

impl CifarResNetOptions {
    fn config(&self) -> Result<ResNetConfig> {
        Ok(ResNetConfig::cifar(self.depth, self.block.0, self.channels)?)
    }

    fn stem(&self) -> StemOptions {
        StemOptions { stem_kernel: self.stem_kernel, stem_stride: self.stem_stride }
    }
}

/// Options of every residual network: another stem.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StemOptions {
    stem_kernel: Option<usize>,
    stem_stride: Option<usize>,
}

impl StemOptions {
    fn family(&self, mut family: Family) -> Family {
        let stem = match &mut family {
            Family::ResNet(config) => Some((&mut config.stem.kernel, &mut config.stem.stride)),
            Family::PreActivation(config) => Some((&mut config.stem_kernel, &mut config.stem_stride)),
            _ => None,
        };
        if let Some((kernel, stride)) = stem {
            *kernel = self.stem_kernel.unwrap_or(*kernel);
            *stride = self.stem_stride.unwrap_or(*stride);
        }
        family
    }
}

/// Options of `vgg`: the channels of each convolution, block by block.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VggOptions {
    stages: [Vec<usize>; 5],
}

impl VggOptions {
    fn config(self) -> VggConfig {
        VggConfig { blocks: self.stages, normalised: true }
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
        // RepDistiller's classifier is the only layer of a row of layers, HSAKD's stands alone. The shapes of a state
        // that is stored beside the case need not be listed.
        let mut names: Vec<String> = case.with_prefix("in.param.").into_keys().collect();
        if case.has_field("state_shapes") {
            names.extend(case.field::<BTreeMap<String, Vec<usize>>>("state_shapes")?.into_keys());
        }
        let alone = names.iter().any(|key| key.ends_with("classifier.weight"));
        Ok(MobileNetV2Config { classifier: if alone { "classifier" } else { "classifier.0" }, ..config })
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
    /// Channels of the three stages, and of the last convolution where there is a fourth number.
    out_planes: Option<Vec<usize>>,
    blocks: Option<[usize; 3]>,
}

impl ShuffleV2Options {
    fn config(&self) -> Result<ShuffleNetV2Config> {
        let mut config = ShuffleNetV2Config::of_size(self.net_size.unwrap_or(1.0), self.stem_kernel.unwrap_or(1))?;
        match self.out_planes.as_deref() {
            None => {}
            Some(&[first, second, third]) => config.out_planes = [first, second, third],
            Some(&[first, second, third, last]) => {
                (config.out_planes, config.last) = ([first, second, third], last);
            }
            Some(other) => {
                return Err(Error::Unsupported(format!("`ShuffleV2` with out_planes {other:?}, expected 3 or 4")));
            }
        }
        config.blocks = self.blocks.unwrap_or(config.blocks);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use retort_nn::Params;

    fn read<T: DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }

    /// Shapes of the network's tensors.
    fn shapes(family: &Family) -> BTreeMap<String, Vec<usize>> {
        let config = ModelConfig { in_channels: 3, image: [32, 32], classes: 10 };
        let params = Params::declared(DType::F32, &Device::Cpu);
        family.build("case", &config, &params.root()).unwrap();
        params.shapes()
    }

    #[test]
    fn convolutions_of_a_block_have_their_own_widths() {
        let options: VggOptions = read(r#"{"stages": [[4, 8], [8], [8, 16], [16], [16, 32, 8]]}"#);
        let shapes = shapes(&Family::Vgg(options.config()));
        assert_eq!(shapes["block2.3.weight"], [16, 8, 3, 3]);
        assert_eq!(shapes["block4.6.weight"], [8, 32, 3, 3]);
        assert_eq!(shapes["classifier.weight"], [10, 8]);
    }

    #[test]
    fn blocks_are_named_in_any_case() {
        for (name, convolutions) in [("Bottleneck", 3), ("BOTTLENECK", 3), ("BasicBlock", 2), ("basic", 2)] {
            let options: CifarResNetOptions = read(&format!(r#"{{"depth": 20, "block": "{name}"}}"#));
            let shapes = shapes(&Family::ResNet(options.config().unwrap()));
            assert_eq!(shapes.contains_key("layer1.0.conv3.weight"), convolutions == 3, "{name}");
        }
        assert!(serde_json::from_str::<CifarResNetOptions>(r#"{"depth": 20, "block": "wide"}"#).is_err());
    }

    #[test]
    fn every_residual_network_has_another_stem() {
        let options: StemOptions = read(r#"{"stem_kernel": 5, "stem_stride": 2}"#);
        for name in ["resnet8", "ResNet18", "imagenet_resnet18", "wrn_16_1", "preact_resnet18", "preresnet20"] {
            let family = options.family(registered(name).unwrap());
            assert_eq!(shapes(&family)["conv1.weight"][2..], [5, 5], "{name}");
            let config = ModelConfig { in_channels: 3, image: [32, 32], classes: 10 };
            let params = Params::declared(DType::F32, &Device::Cpu);
            let network = family.build(name, &config, &params.root()).unwrap();
            assert_eq!(network.spec().maps[0].height, 16, "{name}");
        }
        let options: CifarResNetOptions = read(r#"{"depth": 8, "stem_stride": 2}"#);
        let family = options.stem().family(Family::ResNet(options.config().unwrap()));
        assert!(matches!(family, Family::ResNet(config) if (config.stem.kernel, config.stem.stride) == (3, 2)));
    }

    #[test]
    fn stages_of_the_second_shufflenet_are_options() {
        let options: ShuffleV2Options = read(r#"{"net_size": 0.5, "out_planes": [8, 16, 24], "blocks": [1, 2, 1]}"#);
        let found = shapes(&Family::ShuffleNetV2(options.config().unwrap()));
        assert_eq!(found["linear.weight"], [10, 1024]);
        assert_eq!(found["conv2.weight"], [1024, 24, 1, 1]);
        assert!(found.contains_key("layer2.2.conv1.weight") && !found.contains_key("layer2.3.conv1.weight"));
        let options: ShuffleV2Options = read(r#"{"out_planes": [8, 16, 24, 40]}"#);
        assert_eq!(shapes(&Family::ShuffleNetV2(options.config().unwrap()))["linear.weight"], [10, 40]);
        assert!(read::<ShuffleV2Options>(r#"{"out_planes": [8, 16]}"#).config().is_err());
    }
}
