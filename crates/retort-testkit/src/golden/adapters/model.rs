//! Networks: `model-forward` and `model-train-step`.

use crate::golden::{Case, Run, formula};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_models::{Block, CifarResNet, CifarResNetConfig, ModelConfig, Vgg, VggConfig, WideResNet, WideResNetConfig};
use retort_nn::{Mode, Network, Optimizer, OptimizerConfig, Outputs, ParamGroup, Params, Scope, Taps, Tensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The field `build`: which network to construct.
#[derive(Deserialize)]
struct Build {
    model: String,
    num_classes: Option<usize>,
    /// Constructor options.
    #[serde(flatten)]
    options: Map<String, Value>,
}

/// Constructor options of `cifar_resnet` and `mcl_resnet`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResNetOptions {
    depth: usize,
    block: BlockName,
    channels: [usize; 4],
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum BlockName {
    #[serde(alias = "basicblock")]
    Basic,
    Bottleneck,
}

/// Constructor options of `vgg`: the channels of each convolution, block by block.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VggOptions {
    stages: [Vec<usize>; 5],
}

/// How to construct a network.
enum Family {
    Registered,
    Residual(CifarResNetConfig),
    Wide(WideResNetConfig),
    Vgg(VggConfig),
}

/// A network that this project can construct.
struct Architecture {
    name: String,
    family: Family,
    config: ModelConfig,
    /// Prefix of keys in the case that our network calls by the second name.
    rename: Option<(&'static str, &'static str)>,
}

impl Architecture {
    fn of(case: &Case) -> Result<Self> {
        let build: Build = case.field("build")?;
        let Some(classes) = build.num_classes else { return Err(unsupported(&build)) };
        let rename = (build.model == "mcl_resnet").then_some(("classifier.", "fc."));
        let family = family(case, &build)?;
        let [_, in_channels, height, width] = match case.has("in.x") {
            true => <[usize; 4]>::from(case.tensor("in.x")?.dims4()?),
            false => case.param("input")?,
        };
        let config = ModelConfig { in_channels, image: [height, width], classes };
        Ok(Self { name: build.model, family, config, rename })
    }

    fn build(&self, scope: &Scope) -> Result<Box<dyn Network>> {
        Ok(match &self.family {
            Family::Registered => retort_models::build(&self.name, &self.config, scope)?,
            Family::Residual(family) => Box::new(CifarResNet::new(&self.name, family, &self.config, scope)?),
            Family::Wide(family) => Box::new(WideResNet::new(&self.name, family, &self.config, scope)?),
            Family::Vgg(family) => Box::new(Vgg::new(&self.name, family, &self.config, scope)?),
        })
    }

    /// The state under our network's keys.
    fn renamed(&self, state: Tensors) -> Tensors {
        let Some((from, to)) = self.rename else { return state };
        let key = |key: String| key.strip_prefix(from).map_or(key.clone(), |rest| format!("{to}{rest}"));
        state.into_iter().map(|(name, tensor)| (key(name), tensor)).collect()
    }
}

fn unsupported(build: &Build) -> Error {
    let options: Vec<&str> = build.options.keys().map(String::as_str).collect();
    let with = if options.is_empty() { String::new() } else { format!(" with {}", options.join(", ")) };
    Error::Unsupported(format!("no architecture `{}`{with}", build.model))
}

fn family(case: &Case, build: &Build) -> Result<Family> {
    match build.model.as_str() {
        "cifar_resnet" | "mcl_resnet" => {
            let ResNetOptions { depth, block, channels } = options(case, build)?;
            let block = match block {
                BlockName::Basic => Block::Basic,
                BlockName::Bottleneck => Block::Bottleneck,
            };
            Ok(Family::Residual(CifarResNetConfig { depth, block, channels }))
        }
        "vgg" => {
            let VggOptions { stages } = options(case, build)?;
            let convolutions = stages.each_ref().map(Vec::len);
            let channels = stages.each_ref().map(|stage| stage.first().copied().unwrap_or(0));
            if stages.iter().zip(channels).any(|(stage, width)| stage.iter().any(|other| *other != width)) {
                return Err(Error::Unsupported(format!("`vgg` with several widths in a block: {stages:?}")));
            }
            Ok(Family::Vgg(VggConfig { channels, convolutions }))
        }
        _ if !build.options.is_empty() => Err(unsupported(build)),
        name if retort_models::info(name).is_ok() => Ok(Family::Registered),
        name => Ok(Family::Wide(wide_config(name).ok_or_else(|| unsupported(build))?)),
    }
}

fn options<T: DeserializeOwned>(case: &Case, build: &Build) -> Result<T> {
    let options = Value::Object(build.options.clone());
    serde_json::from_value(options).map_err(|error| Error::field(case.path(), "build", error))
}

/// `wrn_D_W`.
fn wide_config(name: &str) -> Option<WideResNetConfig> {
    let (depth, widen) = name.strip_prefix("wrn_")?.split_once('_')?;
    Some(WideResNetConfig { depth: depth.parse().ok()?, widen: widen.parse().ok()? })
}

/// `{"kind": "formula", "salt": .., "bn_weight_gain": ..}`.
#[derive(Deserialize)]
struct Formula {
    salt: String,
    bn_weight_gain: f64,
}

/// Input and state of a forward case, stored or made by the formula.
fn input_and_state(run: &mut Run<'_>) -> Result<(Tensor, Tensors)> {
    let case = run.case();
    let formula = case.has_field("state") && !case.field::<Value>("state")?.is_string();
    if !formula {
        return Ok((run.input("x")?, case.with_prefix("in.param.")));
    }
    let state: Formula = case.field("state")?;
    let shapes: BTreeMap<String, Vec<usize>> = case.field("state_shapes")?;
    let images: Vec<usize> = case.param("input")?;
    let x = formula::input(&state.salt, "input", &images)?;
    Ok((x, formula::state(&state.salt, state.bn_weight_gain, &shapes)?))
}

/// `model-forward`: all outputs of one pass, by a trainable network and, in evaluation, by a frozen one.
///
/// The trainable network shows everything; the frozen one (folded normalisation, fused residual addition)
/// is run as a teacher is, without pre-activations.
pub(super) fn forward(run: &mut Run<'_>) -> Result<()> {
    let case = run.case();
    let architecture = Architecture::of(case)?;
    let (x, state) = input_and_state(run)?;
    let state = architecture.renamed(state);
    let mode = mode(case)?;

    let params = Params::from_tensors(state.clone(), DType::F32, &Device::Cpu);
    let network = architecture.build(&params.root())?;
    check_parameters(case, &params)?;
    let outputs = network.forward(&x, mode, Taps::ALL)?;
    produce(run, &outputs, "")?;
    if mode == Mode::Eval {
        let frozen = Params::frozen(state, DType::F32, &Device::Cpu);
        let network = architecture.build(&frozen.root())?;
        let outputs = network.forward(&x, mode, Taps { maps: true, pre_activations: false })?;
        produce(run, &outputs, "frozen")?;
    }
    Ok(())
}

fn mode(case: &Case) -> Result<Mode> {
    match case.param_or("mode", "eval".to_string())?.as_str() {
        "eval" => Ok(Mode::Eval),
        "train" => Ok(Mode::Train),
        other => Err(Error::field(case.path(), "params.mode", format!("expected `eval` or `train`, found `{other}`"))),
    }
}

/// The network must have exactly the weights of the case.
fn check_parameters(case: &Case, params: &Params) -> Result<()> {
    if let Some(name) = params.unused().first() {
        return Err(Error::invalid(
            "network",
            format!("the case holds the weight `{name}`, which the network does not have"),
        ));
    }
    let expected: usize = case.field("param_count")?;
    let found = params.parameter_count();
    if found != expected {
        return Err(Error::invalid("network", format!("expected {expected} parameters, found {found}")));
    }
    Ok(())
}

/// Hands over every expected output that `outputs` holds, maps as statistics where the case asks for them.
fn produce(run: &mut Run<'_>, outputs: &Outputs, variant: &'static str) -> Result<()> {
    let names: Vec<String> = run.case().with_prefix("out.").into_keys().collect();
    for name in names {
        let (stem, statistic) = match name.rsplit_once('.') {
            Some((stem, statistic @ ("mean" | "std" | "chan_mean"))) => (stem, statistic),
            _ => (name.as_str(), ""),
        };
        if let Some(tensor) = find(outputs, stem) {
            run.produce_variant(&name, variant, summarise(tensor, statistic)?);
        }
    }
    Ok(())
}

fn find<'a>(outputs: &'a Outputs, stem: &str) -> Option<&'a Tensor> {
    let indexed = |prefix: &str, maps: &'a [Tensor]| maps.get(stem.strip_prefix(prefix)?.parse::<usize>().ok()?);
    match stem {
        "logits" => Some(&outputs.logits),
        "pooled" | "embedding" => Some(&outputs.embedding),
        _ => indexed("pre", &outputs.pre_activations).or_else(|| indexed("f", &outputs.maps)),
    }
}

/// Mean or population deviation over all entries, or the mean per channel; in f64.
fn summarise(tensor: &Tensor, statistic: &str) -> Result<Tensor> {
    let wide = tensor.detach().to_dtype(DType::F64)?;
    Ok(match statistic {
        "" => tensor.clone(),
        "mean" => wide.mean_all()?,
        "std" => {
            let mean = wide.mean_all()?.to_scalar::<f64>()?;
            (wide - mean)?.sqr()?.mean_all()?.sqrt()?
        }
        _ if wide.rank() > 2 => {
            let (batch, channels) = (wide.dim(0)?, wide.dim(1)?);
            wide.reshape((batch, channels, ()))?.mean((0, 2))?
        }
        _ => return Err(Error::invalid("chan_mean", format!("expected a map [B, C, ..], found {:?}", tensor.dims()))),
    })
}

/// The field `params.optimizer` of a step case.
#[derive(Deserialize)]
struct Sgd {
    kind: String,
    lr: f64,
    #[serde(default)]
    momentum: f64,
    #[serde(default)]
    dampening: f64,
    #[serde(default)]
    weight_decay: f64,
}

/// `model-train-step`: loss, gradients and running statistics of one batch, then SGD steps with plain and Nesterov momentum.
pub(super) fn train_step(run: &mut Run<'_>) -> Result<()> {
    let case = run.case();
    let architecture = Architecture::of(case)?;
    if architecture.rename.is_some() {
        return Err(Error::Unsupported(format!("training steps of `{}`", architecture.name)));
    }
    let (x, labels) = (run.input("x")?, run.labels("y")?);
    let params = run.params([]);
    let network = architecture.build(&params.root())?;
    check_parameters(case, &params)?;
    let (logits, loss) = train_forward(network.as_ref(), &x, &labels)?;
    for (name, tensor) in params.snapshot()? {
        run.produce(format!("after.{name}"), tensor);
    }
    let gradients = run.loss(&loss)?;
    let mut squares = 0.0;
    for (_, var) in params.trainable() {
        if let Some(gradient) = gradients.get(&var) {
            squares += gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
    }
    run.produce("grad_norm", Tensor::new(&[squares.sqrt()], &Device::Cpu)?);
    run.produce("logits", logits);
    steps(run, &architecture, "plain", (&x, &labels))?;
    steps(run, &architecture, "nesterov", (&x, &labels))
}

fn train_forward(network: &dyn Network, x: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let logits = network.forward(x, Mode::Train, Taps::default())?.logits;
    let loss = super::output::cross_entropy(&logits, labels)?;
    Ok((logits, loss))
}

/// As many steps as the case has expectations for, from the stored state and an empty momentum buffer.
fn steps(run: &mut Run<'_>, architecture: &Architecture, kind: &str, (x, labels): (&Tensor, &Tensor)) -> Result<()> {
    let case = run.case();
    let sgd: Sgd = case.param("optimizer")?;
    if sgd.kind != "sgd" {
        return Err(Error::Unsupported(format!("optimizer `{}`", sgd.kind)));
    }
    let params = Params::from_tensors(case.with_prefix("in.param."), DType::F32, &Device::Cpu);
    let network = architecture.build(&params.root())?;
    let (momentum, dampening, weight_decay) = (sgd.momentum, sgd.dampening, sgd.weight_decay);
    let config = OptimizerConfig::Sgd { momentum, nesterov: kind == "nesterov", dampening, weight_decay };
    let mut optimizer = Optimizer::new(config, vec![ParamGroup::new(params.trainable())])?;
    for step in 1.. {
        let prefix = format!("{kind}.step{step}.");
        let expected = case.with_prefix(&format!("out.{prefix}"));
        if expected.is_empty() {
            break;
        }
        let (_, loss) = train_forward(network.as_ref(), x, labels)?;
        optimizer.step(&loss.backward()?, sgd.lr)?;
        run.produce(format!("{prefix}loss"), loss);
        let weights = params.snapshot()?;
        for name in expected.keys() {
            if let Some(tensor) = weights.get(name) {
                run.produce(format!("{prefix}{name}"), tensor.clone());
            }
        }
    }
    Ok(())
}
