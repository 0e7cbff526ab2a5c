//! Networks: `model-forward` and `model-train-step`.

mod build;
mod parts;

use crate::golden::{Case, Run, formula};
use crate::{Error, Result};
use build::Build;
use candle_core::{DType, Device, Tensor};
use parts::Part;
use retort_nn::{Mode, Network, Optimizer, OptimizerConfig, ParamGroup, Params, Scope, Taps, Tensors};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a case is about.
enum Subject {
    Network(Box<dyn Network>),
    Part(Part),
}

impl Subject {
    fn new(case: &Case, scope: &Scope) -> Result<Self> {
        let build: Build = case.field("build")?;
        Ok(match parts::part(case, &build, scope)? {
            Some(part) => Self::Part(part),
            None => Self::Network(network(case, &build, scope)?),
        })
    }

    /// Outputs under the case's names.
    fn outputs(&self, inputs: &[Tensor], mode: Mode, taps: Taps) -> Result<BTreeMap<String, Tensor>> {
        let network = match self {
            Self::Network(network) => network,
            Self::Part(part) => return Ok(part(inputs, mode)?.into_iter().collect()),
        };
        let outputs = network.forward(&inputs[0], mode, taps)?;
        let single = [("logits", &outputs.logits), ("pooled", &outputs.embedding), ("embedding", &outputs.embedding)];
        let single = single.map(|(name, tensor)| (name.to_string(), tensor.clone()));
        let lists = [("f", outputs.maps), ("pre", outputs.pre_activations)]
            .into_iter()
            .flat_map(|(prefix, maps)| maps.into_iter().enumerate().map(move |(i, map)| (format!("{prefix}{i}"), map)));
        Ok(single.into_iter().chain(lists).collect())
    }
}

fn network(case: &Case, build: &Build, scope: &Scope) -> Result<Box<dyn Network>> {
    Ok(build.family(case)?.build(&build.model, &build.config(case)?, scope)?)
}

/// `{"kind": "formula", "salt": .., "bn_weight_gain": ..}`.
#[derive(Deserialize)]
struct Formula {
    salt: String,
    bn_weight_gain: f64,
}

/// Inputs and state of a forward case, stored or made by the formula.
fn inputs_and_state(run: &mut Run<'_>) -> Result<(Vec<Tensor>, Tensors)> {
    let case = run.case();
    let formula = case.has_field("state") && !case.field::<Value>("state")?.is_string();
    if !formula {
        let inputs = if case.has("in.x") { vec![run.input("x")?] } else { run.numbered("x")? };
        return Ok((inputs, case.with_prefix("in.param.")));
    }
    let state: Formula = case.field("state")?;
    let shapes: BTreeMap<String, Vec<usize>> = case.field("state_shapes")?;
    let inputs = match case.param::<Vec<usize>>("input") {
        Ok(images) => vec![formula::input(&state.salt, "input", &images)?],
        Err(_) => {
            let several: SeveralInputs = case.field("inputs")?;
            let input = |(i, shape): (usize, &Vec<usize>)| formula::input(&state.salt, &format!("input{i}"), shape);
            several.shapes.iter().enumerate().map(input).collect::<Result<_>>()?
        }
    };
    Ok((inputs, formula::state(&state.salt, state.bn_weight_gain, &shapes)?))
}

/// The field `inputs` of a case with several.
#[derive(Deserialize)]
struct SeveralInputs {
    shapes: Vec<Vec<usize>>,
}

/// `model-forward`: all outputs of one pass, by a trainable network and, in evaluation, by a frozen one.
///
/// The trainable network shows everything; the frozen one (folded normalisation, fused residual addition)
/// is run as a teacher is, without pre-activations.
pub(super) fn forward(run: &mut Run<'_>) -> Result<()> {
    let case = run.case();
    let mode = mode(case)?;
    // An unknown network is unsupported, whatever else the case holds.
    Subject::new(case, &Params::declared(DType::F32, &Device::Cpu).root())?;
    let (inputs, state) = inputs_and_state(run)?;
    let params = Params::from_tensors(state.clone(), DType::F32, &Device::Cpu);
    let subject = Subject::new(case, &params.root())?;
    check_parameters(case, &params)?;
    produce(run, &subject.outputs(&inputs, mode, Taps::ALL)?, "")?;
    if mode == Mode::Eval {
        let frozen = Params::frozen(state, DType::F32, &Device::Cpu);
        let subject = Subject::new(case, &frozen.root())?;
        produce(run, &subject.outputs(&inputs, mode, Taps { maps: true, pre_activations: false })?, "frozen")?;
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

/// Hands over every expected output that there is, maps as statistics where the case asks for them.
fn produce(run: &mut Run<'_>, outputs: &BTreeMap<String, Tensor>, variant: &'static str) -> Result<()> {
    let names: Vec<String> = run.case().with_prefix("out.").into_keys().collect();
    for name in names {
        let (stem, statistic) = match name.rsplit_once('.') {
            Some((stem, statistic @ ("mean" | "std" | "chan_mean"))) => (stem, statistic),
            _ => (name.as_str(), ""),
        };
        if let Some(tensor) = outputs.get(stem) {
            run.produce_variant(&name, variant, summarise(tensor, statistic)?);
        }
    }
    Ok(())
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
    let build: Build = case.field("build")?;
    let (x, labels) = (run.input("x")?, run.labels("y")?);
    let params = run.params([]);
    let network = network(case, &build, &params.root())?;
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
    steps(run, &build, "plain", (&x, &labels))?;
    steps(run, &build, "nesterov", (&x, &labels))
}

fn train_forward(network: &dyn Network, x: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let logits = network.forward(x, Mode::Train, Taps::default())?.logits;
    let loss = super::output::cross_entropy(&logits, labels)?;
    Ok((logits, loss))
}

/// As many steps as the case has expectations for, from the stored state and an empty momentum buffer.
fn steps(run: &mut Run<'_>, build: &Build, kind: &str, (x, labels): (&Tensor, &Tensor)) -> Result<()> {
    let case = run.case();
    let sgd: Sgd = case.param("optimizer")?;
    if sgd.kind != "sgd" {
        return Err(Error::Unsupported(format!("optimizer `{}`", sgd.kind)));
    }
    let params = Params::from_tensors(case.with_prefix("in.param."), DType::F32, &Device::Cpu);
    let network = network(case, build, &params.root())?;
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
