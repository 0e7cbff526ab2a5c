//! Rows of layers on vectors, and the published heads that are no more than that.

use crate::{BatchNorm, Error, Init, Linear, Mode, Result, Scope, Seed};
use candle_core::{D, Tensor};
use retort_kernels::{Activation, relu};
use serde::{Deserialize, Serialize};

/// Layers of a head beyond which a number is a slip.
const MOST_LAYERS: usize = 64;
/// The same for the weights of one layer; what the parameter store takes.
const MOST_WEIGHTS: usize = 1 << 28;

/// One layer of a [`Head`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadLayer {
    /// Fully connected, to this many outputs.
    Linear(usize),
    /// The same without bias.
    LinearWithoutBias(usize),
    /// Batch norm.
    BatchNorm,
    /// `max(x, 0)`.
    Relu,
    /// In training sets this share of the numbers to 0 and scales the others so that the mean stays; from 0 to below 1.
    Dropout(f64),
    /// `x / sqrt(sum x^2 + 1e-24)`: a row of zeros stays zero, with finite gradients.
    Normalise,
}

/// A row of layers on vectors `[B, D]`, with the keys of a PyTorch `Sequential`: layer i is `{i}.*`, and layers without
/// weights count, too. Linear layers start with PyTorch's default.
///
/// The functions that return a head are the published ones.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use retort_nn::{Head, HeadLayer, Mode, Params, Seed};
/// let params = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
/// let layers = [HeadLayer::Linear(4), HeadLayer::BatchNorm, HeadLayer::Relu, HeadLayer::Linear(2)];
/// let head = Head::new("head", 3, &layers, &params.root())?;
/// assert_eq!(head.forward(&Tensor::zeros((5, 3), DType::F32, &Device::Cpu)?, Mode::Eval)?.dims(), [5, 2]);
/// assert!(params.trainable().iter().any(|(name, _)| name == "3.weight"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Head {
    name: String,
    inputs: usize,
    outputs: usize,
    multiply_adds: usize,
    layers: Vec<Layer>,
}

enum Layer {
    Linear(Linear),
    BatchNorm(BatchNorm),
    Relu,
    Dropout(f64),
    Normalise,
}

impl Head {
    /// Declares the layers in `scope` for vectors of `inputs` numbers; `name` appears in errors.
    ///
    /// # Errors
    ///
    /// Sizes of zero or with absurdly many weights, a dropout out of range, or weights that do not fit (see
    /// [`Scope::weight`]).
    pub fn new(name: &str, inputs: usize, layers: &[HeadLayer], scope: &Scope) -> Result<Self> {
        Self::with_keys(name, inputs, layers, |layer| layer.to_string(), scope)
    }

    /// The same with another key for each layer than its number; layers without weights are asked for one, too.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn with_keys(
        name: &str,
        inputs: usize,
        layers: &[HeadLayer],
        key: impl Fn(usize) -> String,
        scope: &Scope,
    ) -> Result<Self> {
        check_width(name, "inputs", inputs)?;
        let mut head = Self { name: name.to_string(), inputs, outputs: inputs, multiply_adds: 0, layers: vec![] };
        for (i, layer) in layers.iter().enumerate() {
            head.push(*layer, &scope.child(key(i)))?;
        }
        Ok(head)
    }

    fn push(&mut self, layer: HeadLayer, scope: &Scope) -> Result<()> {
        let from = self.outputs;
        let layer = match layer {
            HeadLayer::Linear(to) | HeadLayer::LinearWithoutBias(to) => {
                check_layer(&self.name, from, to)?;
                self.multiply_adds = self.multiply_adds.saturating_add(from * to);
                self.outputs = to;
                Layer::Linear(match layer {
                    HeadLayer::Linear(_) => Linear::new(scope, from, to)?,
                    _ => Linear::with_init(scope, from, to, Init::PyTorch, None)?,
                })
            }
            HeadLayer::BatchNorm => Layer::BatchNorm(BatchNorm::new(scope, from)?),
            HeadLayer::Relu => Layer::Relu,
            HeadLayer::Dropout(share) if (0.0..1.0).contains(&share) => Layer::Dropout(share),
            HeadLayer::Dropout(share) => {
                let message = format!("dropout must be from 0 to below 1, found {share}");
                return Err(Error::invalid(&self.name, message));
            }
            HeadLayer::Normalise => Layer::Normalise,
        };
        self.layers.push(layer);
        Ok(())
    }

    /// Width of the vectors that go in.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the vectors that come out.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Multiply-adds of the linear layers for one vector.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.multiply_adds
    }

    /// `[B, inputs]` to `[B, outputs]`.
    ///
    /// # Errors
    ///
    /// Another width; in training a single row in front of a batch norm (its variance is undefined), or a head with
    /// dropout, which needs [`Head::forward_seeded`].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.run(x, mode, None)
    }

    /// The same for a head with dropout: what is dropped in training depends on `seed` alone, so every step needs its
    /// own.
    ///
    /// # Errors
    ///
    /// As for [`Head::forward`].
    pub fn forward_seeded(&self, x: &Tensor, mode: Mode, seed: Seed) -> Result<Tensor> {
        self.run(x, mode, Some(seed))
    }

    fn run(&self, x: &Tensor, mode: Mode, seed: Option<Seed>) -> Result<Tensor> {
        if x.rank() != 2 || x.dims()[1] != self.inputs {
            return Err(self.refuse(format!("expected vectors [B, {}], found {:?}", self.inputs, x.dims())));
        }
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            // A batch norm takes the ReLU behind it along.
            let activates = matches!(self.layers.get(i + 1), Some(Layer::Relu));
            x = match layer {
                Layer::Linear(linear) => linear.forward(&x)?,
                Layer::BatchNorm(norm) if activates => norm.forward_vectors(&x, mode, Activation::Relu)?,
                Layer::BatchNorm(norm) => norm.forward_vectors(&x, mode, Activation::None)?,
                Layer::Relu if i > 0 && matches!(self.layers[i - 1], Layer::BatchNorm(_)) => x,
                Layer::Relu => relu(&x)?,
                Layer::Dropout(_) if mode != Mode::Train => x,
                Layer::Dropout(share) => match seed {
                    Some(seed) => dropout(&x, *share, seed.child(&i.to_string()))?,
                    None => return Err(self.refuse("dropout in training needs a seed".to_string())),
                },
                Layer::Normalise => normalise_rows(&x)?,
            };
        }
        Ok(x)
    }

    fn refuse(&self, message: String) -> Error {
        Error::invalid(self.name.clone(), message)
    }
}

/// Refuses a width of zero.
fn check_width(name: &str, what: &str, width: usize) -> Result<()> {
    match width {
        0 => Err(Error::invalid(name, format!("{what} must be positive, found 0"))),
        _ => Ok(()),
    }
}

/// Refuses a layer without inputs or outputs, or with absurdly many weights.
fn check_layer(name: &str, inputs: usize, outputs: usize) -> Result<()> {
    check_width(name, "inputs", inputs)?;
    check_width(name, "outputs", outputs)?;
    match inputs.checked_mul(outputs) {
        Some(weights) if weights <= MOST_WEIGHTS => Ok(()),
        _ => {
            let message = format!("a layer must have at most {MOST_WEIGHTS} weights, found {inputs} x {outputs}");
            Err(Error::invalid(name, message))
        }
    }
}

/// Rows of length 1: `x / sqrt(sum x^2 + 1e-24)` over the last dimension; a row of zeros stays zero, with finite
/// gradients.
///
/// # Errors
///
/// Fails if candle does.
pub fn normalise_rows(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-24)?.sqrt()?;
    Ok(x.broadcast_div(&length)?)
}

/// Zeros in a `share` of the places, the others divided by what is left, so that the mean stays; which ones depends on
/// `seed` alone.
///
/// # Errors
///
/// A share that is not from 0 to below 1.
pub fn dropout(x: &Tensor, share: f64, seed: Seed) -> Result<Tensor> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::invalid("dropout", format!("the share must be from 0 to below 1, found {share}")));
    }
    let noise = Init::Uniform { bound: 1.0 }.draw(x.dims(), seed, x.dtype(), x.device())?;
    let kept = noise.ge(2.0 * share - 1.0)?.to_dtype(x.dtype())?;
    Ok((x * (kept / (1.0 - share))?)?)
}

impl HeadLayer {
    /// The layers of a projector: linear without bias, batch norm and ReLU, all of one `width`, `layers - 1` times, then
    /// `last`; `name` appears in errors.
    ///
    /// # Errors
    ///
    /// A number of layers that is not from 1 to 64.
    pub fn perceptron(name: &str, width: usize, last: Self, layers: usize) -> Result<Vec<Self>> {
        if !(1..=MOST_LAYERS).contains(&layers) {
            return Err(Error::invalid(name, format!("layers must be from 1 to {MOST_LAYERS}, found {layers}")));
        }
        let unit = [Self::LinearWithoutBias(width), Self::BatchNorm, Self::Relu];
        Ok(unit.into_iter().cycle().take(3 * (layers - 1)).chain([last]).collect())
    }
}

/// The heads that SimReg compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SimRegHead {
    /// Batch norm and one linear layer.
    Linear,
    /// Two linear layers with nothing between them, as the released code builds it.
    Two,
    /// Two linear layers with batch norm and ReLU between them, as its comment says.
    TwoActivated,
    /// Four linear layers; batch norm and ReLU behind the first and the third, nothing behind the second.
    #[default]
    Four,
}

impl SimRegHead {
    /// Whether it normalises by the statistics of the batch, which takes two rows.
    #[must_use]
    pub fn has_batch_norm(self) -> bool {
        self != Self::Two
    }
}

impl Head {
    /// SimReg's regression of a teacher's feature (Navaneet et al. 2021, BMVC; code UCDvision/simreg), before the
    /// normalisation that its loss does; d is `inputs`, the hidden widths are 2d, d and 2d.
    ///
    /// Keys, straight in `scope`: `0`, `1` (batch norm), `3`, `4`, `5` (batch norm), `7`; with two layers `0`, `1`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn simreg(head: SimRegHead, inputs: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        use HeadLayer::{BatchNorm, Linear, Relu};
        let wide = inputs.saturating_mul(2);
        let layers = match head {
            SimRegHead::Linear => vec![BatchNorm, Linear(outputs)],
            SimRegHead::Two => vec![Linear(wide), Linear(outputs)],
            SimRegHead::TwoActivated => vec![Linear(wide), BatchNorm, Relu, Linear(outputs)],
            SimRegHead::Four => {
                vec![Linear(wide), BatchNorm, Relu, Linear(inputs), Linear(wide), BatchNorm, Relu, Linear(outputs)]
            }
        };
        Self::new("simreg head", inputs, &layers, scope)
    }

    /// SSKD's projection of an embedding for its similarities (Xu et al. 2020, arXiv 2006.07114): linear, ReLU, linear,
    /// all of the embedding's width.
    ///
    /// Keys: `proj_head.{0,2}`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn sskd(inputs: usize, scope: &Scope) -> Result<Self> {
        let layers = [HeadLayer::Linear(inputs), HeadLayer::Relu, HeadLayer::Linear(inputs)];
        Self::new("sskd head", inputs, &layers, &scope.child("proj_head"))
    }

    /// MCL's embedding (Yang et al. 2022, arXiv 2104.12565): linear, ReLU, linear, rows of length 1; 128 hidden and 128
    /// outputs in the paper. L-MCL has one for each stage.
    ///
    /// Keys: `proj_head.{0,2}`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn mcl(inputs: usize, hidden: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        let layers = [HeadLayer::Linear(hidden), HeadLayer::Relu, HeadLayer::Linear(outputs), HeadLayer::Normalise];
        Self::new("mcl head", inputs, &layers, &scope.child("proj_head"))
    }

    /// CRD's `Embed`: linear, rows of length 1.
    ///
    /// Keys: `linear`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn embed(inputs: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        let layers = [HeadLayer::Linear(outputs), HeadLayer::Normalise];
        Self::with_keys("embed", inputs, &layers, |layer| ["linear", ""][layer].to_string(), scope)
    }

    /// CC's `LinearEmbed`: a linear layer.
    ///
    /// Keys: `linear`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn linear_embed(inputs: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        Self::with_keys("linear embed", inputs, &[HeadLayer::Linear(outputs)], |_| "linear".to_string(), scope)
    }

    /// `MLPEmbed`: linear to twice the outputs, ReLU, linear, rows of length 1.
    ///
    /// Keys: `linear1`, `linear2`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn mlp_embed(inputs: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        let hidden = outputs.saturating_mul(2);
        let layers = [HeadLayer::Linear(hidden), HeadLayer::Relu, HeadLayer::Linear(outputs), HeadLayer::Normalise];
        Self::with_keys("mlp embed", inputs, &layers, |layer| ["linear1", "", "linear2", ""][layer].to_string(), scope)
    }

    /// A linear probe.
    ///
    /// Keys: `0`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn linear_probe(inputs: usize, classes: usize, scope: &Scope) -> Result<Self> {
        Self::new("linear probe", inputs, &[HeadLayer::Linear(classes)], scope)
    }

    /// A probe with a hidden layer: linear to 200, dropout 0.1, batch norm, ReLU, linear. Train it by
    /// [`Head::forward_seeded`].
    ///
    /// Keys: `0`, `2` (batch norm), `4`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn nonlinear_probe(inputs: usize, classes: usize, scope: &Scope) -> Result<Self> {
        use HeadLayer::{BatchNorm, Dropout, Linear, Relu};
        let layers = [Linear(200), Dropout(0.1), BatchNorm, Relu, Linear(classes)];
        Self::new("nonlinear probe", inputs, &layers, scope)
    }

    /// The regressor of one number in [0, 1] and above that cGAN-KD puts in place of a classifier (Ding et al. 2023,
    /// arXiv 2104.03164): linear, batch norm, ReLU, twice to 512, then linear to 1 and ReLU.
    ///
    /// Keys: `0`, `1` (batch norm), `3`, `4` (batch norm), `6`.
    ///
    /// # Errors
    ///
    /// As for [`Head::new`].
    pub fn label_regression(inputs: usize, scope: &Scope) -> Result<Self> {
        use HeadLayer::{BatchNorm, Linear, Relu};
        let layers = [Linear(512), BatchNorm, Relu, Linear(512), BatchNorm, Relu, Linear(1), Relu];
        Self::new("label regression", inputs, &layers, scope)
    }

    /// The projector behind Squeeze-and-Span's encoder (Yang et al. 2022, NeurIPS; code yangyu12/squeeze-and-span):
    /// `layers` linear layers without bias, all but the last to the encoder's own width and followed by batch norm and
    /// ReLU; 5 layers to 2048 outputs in the paper.
    ///
    /// Keys: `0`, `1` (batch norm), `3`, `4`, ...
    ///
    /// # Errors
    ///
    /// As for [`Head::new`], or a number of layers that is not from 1 to 64.
    pub fn span_projector(inputs: usize, outputs: usize, layers: usize, scope: &Scope) -> Result<Self> {
        let rows = HeadLayer::perceptron("span projector", inputs, HeadLayer::LinearWithoutBias(outputs), layers)?;
        Self::new("span projector", inputs, &rows, scope)
    }
}
