//! Feature maps: the activations inside of a network, in a layout and with a bookkeeping of their own.

mod buffer;
mod conv;
mod convert;
mod node;
mod norm;
mod pass;
mod pool;
mod sum;
mod tape;

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::conv::geometry::Geometry;
use crate::conv::{checked_adjoint, checked_geometry};
use crate::error::{dims4, float, like, parameter, shape};
use crate::norm::{BatchStats, along, train_elsewhere};
use crate::pool::Windows;
use crate::raw::{to_f64, with_slice};
use crate::simd::Float;
use crate::{Activation, Conv2dSpec, ConvTranspose2dSpec, Error, Pool2dSpec, Result, fallback, isa};
pub(crate) use buffer::Store;
pub use buffer::release_memory;
use conv::{Convolution, Direction, Epilogue, convolve};
use convert::{FromTensor, GlobalMean, ToTensor, pixels};
use node::{Dims, Node};
use norm::{Affine, Normalisation};
use pool::{Pooled, Reduction, pool};
use sum::{Parts, sum};
pub use tape::no_grad;

/// The activations of one place of a network, `[B, C, H, W]`.
///
/// A chain of tensors costs a pass over memory for every small step: normalise, activate, add, and the same again for
/// the gradients, to which candle's tape adds a zero-filled tensor and an addition each.
/// A chain of feature maps does not.
/// Sixteen channels of a position lie together; a normalisation with its activation is only noted down and happens
/// while the next convolution reads the map; gradients gather in place, and memory is used again from step to step.
///
/// Maps take part in candle's backward pass: what goes in by [`FeatureMap::from_tensor`] and out by
/// [`FeatureMap::to_tensor`] or [`FeatureMap::global_avg_pool2d`] has the gradients of the corresponding chain of
/// tensors, and so have the weights on the way.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
///
/// let images = Tensor::ones((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let kernel = Var::ones((4, 3, 3, 3), DType::F32, &Device::Cpu)?;
/// let (gain, shift) = (Var::ones(4, DType::F32, &Device::Cpu)?, Var::zeros(4, DType::F32, &Device::Cpu)?);
///
/// let x = FeatureMap::from_tensor(&images)?;
/// let y = x.conv2d(&kernel, None, None, Activation::None, &Conv2dSpec::new(1, 1))?;
/// let (y, stats) = y.batch_norm_train([&gain, &shift], 1e-5, Activation::Relu)?;
/// assert_eq!(stats.count, 2 * 8 * 8);
/// let gradients = y.global_avg_pool2d()?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&kernel).expect("the kernel is a variable").dims(), &[4, 3, 3, 3]);
/// # Ok::<(), retort_kernels::Error>(())
/// ```
///
/// Gradients gather in the maps while candle's `backward` runs, so one graph takes one backward pass at a time
/// (two threads must not call it on losses that share maps), and after a backward pass that has failed the graph must
/// be built anew.
///
/// On a device other than the CPU a map is a tensor, and its methods are the functions of this crate.
#[derive(Clone, Debug)]
pub struct FeatureMap {
    /// What candle's tape knows of the map.
    token: Tensor,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    F32(Arc<Node<f32>>),
    F64(Arc<Node<f64>>),
    Tensor(Tensor),
}

/// An element type that maps exist for.
trait Element: Float {
    fn form(node: Arc<Node<Self>>) -> Form;
    fn node(map: &FeatureMap) -> Option<&Arc<Node<Self>>>;
}

macro_rules! element {
    ($t:ty, $form:ident) => {
        impl Element for $t {
            fn form(node: Arc<Node<Self>>) -> Form {
                Form::$form(node)
            }
            fn node(map: &FeatureMap) -> Option<&Arc<Node<Self>>> {
                match &map.form {
                    Form::$form(node) => Some(node),
                    _ => None,
                }
            }
        }
    };
}
element!(f32, F32);
element!(f64, F64);

/// Runs an expression with the node of a map on the CPU, or another one with its tensor.
macro_rules! by_form {
    ($map:expr, $node:ident => $body:expr, $tensor:ident => $elsewhere:expr) => {
        match &$map.form {
            Form::F32($node) => $body,
            Form::F64($node) => $body,
            Form::Tensor($tensor) => $elsewhere,
        }
    };
}

impl FeatureMap {
    /// A map of the values of a tensor `[B, C, H, W]`.
    ///
    /// # Errors
    ///
    /// Another rank, a size of zero, elements other than `f32` and `f64`.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        const OP: &str = "feature_map";
        let [batch, channels, h, w] = dims4(OP, "tensor", tensor)?;
        float(OP, tensor)?;
        if !tensor.device().is_cpu() {
            return Self::elsewhere(tensor.clone());
        }
        let dims = Dims { batch, channels, size: [h, w] };
        let tensor = tensor.contiguous()?;
        match tensor.dtype() {
            DType::F64 => Self::import::<f64>(&tensor, dims),
            _ => Self::import::<f32>(&tensor, dims),
        }
    }

    fn import<T: Element>(tensor: &Tensor, dims: Dims) -> Result<Self> {
        let values = with_slice::<T, _>(tensor, |x| pixels(isa::current(), dims, x))?;
        let node = Arc::new(Node::new(dims, Arc::new(values), None, Activation::None));
        let op = FromTensor { node: Arc::clone(&node), shape: tensor.shape().clone() };
        Ok(Self { token: tape::import(tensor, op)?, form: T::form(node) })
    }

    fn elsewhere(tensor: Tensor) -> Result<Self> {
        Ok(Self { token: tape::plain()?, form: Form::Tensor(tensor) })
    }

    /// The values as a tensor `[B, C, H, W]`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn to_tensor(&self) -> Result<Tensor> {
        const OP: &str = "feature_map";
        Ok(by_form!(self,
            node => tape::export(OP, &self.token, ToTensor(Arc::clone(node)))?,
            tensor => tensor.clone()))
    }

    /// `[B, C, H, W]`.
    #[must_use]
    pub fn dims(&self) -> [usize; 4] {
        let of = |dims: Dims| [dims.batch, dims.channels, dims.size[0], dims.size[1]];
        by_form!(self, node => of(node.dims), tensor => match *tensor.dims() {
            [b, c, h, w] => [b, c, h, w],
            _ => unreachable!("a map is made of a tensor with four dimensions"),
        })
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.form {
            Form::F32(_) => DType::F32,
            Form::F64(_) => DType::F64,
            Form::Tensor(tensor) => tensor.dtype(),
        }
    }

    /// Whether gradients flow to or through this map.
    #[must_use]
    pub fn track_op(&self) -> bool {
        match &self.form {
            Form::Tensor(tensor) => tensor.track_op(),
            _ => self.token.track_op(),
        }
    }

    /// The same values without history.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn detach(&self) -> Result<Self> {
        let form = match &self.form {
            Form::Tensor(tensor) => Form::Tensor(tensor.detach()),
            form => form.clone(),
        };
        Ok(Self { token: tape::plain()?, form })
    }

    /// `act(conv2d(self, weight) + bias + residual)`, see [`conv2d`](crate::conv2d).
    ///
    /// Bias, residual addition and activation happen where the convolution writes its results.
    ///
    /// # Shapes
    ///
    /// `weight`: `[O, C / groups, kh, kw]`, `bias`: `[O]`, `residual`: that of the result.
    ///
    /// # Errors
    ///
    /// As for [`conv2d`](crate::conv2d), and a residual of another shape or element type.
    pub fn conv2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Self>,
        act: Activation,
        spec: &Conv2dSpec,
    ) -> Result<Self> {
        const OP: &str = "conv2d";
        let geometry = checked_geometry(OP, (self.dims(), self.dtype()), weight, spec)?;
        if let Some(bias) = bias {
            like(OP, "bias", bias, self.dtype(), &[geometry.c_out])?;
        }
        if let Some(residual) = residual {
            let expected = [geometry.batch, geometry.c_out, geometry.output[0], geometry.output[1]];
            self.same(OP, "residual", residual, expected)?;
        }
        let direction = (geometry, Direction::Forward);
        match &self.form {
            Form::F32(x) => self.convolve(x, weight, bias, residual, act, direction),
            Form::F64(x) => self.convolve(x, weight, bias, residual, act, direction),
            Form::Tensor(x) => {
                let y = fallback::conv2d(x, weight, bias, spec)?;
                let y = residual.map_or(Ok(y.clone()), |r| r.to_tensor().and_then(|r| Ok((&y + r)?)))?;
                Self::elsewhere(fallback::activate(y, act)?)
            }
        }
    }

    /// Transposed convolution, see [`conv_transpose2d`](crate::conv_transpose2d).
    ///
    /// # Errors
    ///
    /// As for [`conv_transpose2d`](crate::conv_transpose2d).
    pub fn conv_transpose2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        act: Activation,
        spec: &ConvTranspose2dSpec,
    ) -> Result<Self> {
        let geometry = checked_adjoint((self.dims(), self.dtype()), weight, bias, spec)?;
        let direction = (geometry, Direction::Backward);
        match &self.form {
            Form::F32(x) => self.convolve(x, weight, bias, None, act, direction),
            Form::F64(x) => self.convolve(x, weight, bias, None, act, direction),
            Form::Tensor(x) => {
                Self::elsewhere(fallback::activate(fallback::conv_transpose2d(x, weight, bias, spec)?, act)?)
            }
        }
    }

    fn convolve<T: Element>(
        &self,
        x: &Arc<Node<T>>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Self>,
        act: Activation,
        (geometry, direction): (Geometry, Direction),
    ) -> Result<Self> {
        let weight = weight.contiguous()?;
        let bias = bias.map(Tensor::contiguous).transpose()?;
        let added = residual.and_then(T::node);
        let token = residual.map_or(Ok(self.token.clone()), |r| tape::join(&self.token, &r.token))?;
        let moments = tape::is_recording() && (token.track_op() || weight.track_op());
        let node = with_slice::<T, _>(&weight, |w| {
            let run = |bias: Option<&[T]>| {
                let epilogue = Epilogue { bias, residual: added.map(Arc::as_ref), act, moments };
                convolve(isa::current(), (&geometry, direction), x, w, &epilogue)
            };
            match &bias {
                Some(bias) => with_slice::<T, _>(bias, |bias| run(Some(bias))),
                None => Ok(run(None)),
            }
        })??;
        let to = Arc::new(node);
        let op = Convolution {
            geometry,
            direction,
            from: Arc::clone(x),
            tracked: self.token.track_op(),
            residual: added.filter(|_| residual.is_some_and(Self::track_op)).cloned(),
            to: Arc::clone(&to),
        };
        let token = tape::record("conv2d", &token, [Some(&weight), bias.as_ref()], op)?;
        Ok(Self { token, form: T::form(to) })
    }

    /// Checks that another map fits.
    fn same(&self, op: &'static str, argument: &str, other: &Self, expected: [usize; 4]) -> Result<()> {
        if other.dtype() != self.dtype() {
            return Err(Error::DType {
                op,
                expected: format!("{:?} ({argument})", self.dtype()),
                found: other.dtype(),
            });
        }
        if other.dims() != expected {
            return Err(shape(op, format!("{argument} of shape {expected:?}"), other.dims()));
        }
        let on_cpu = |map: &Self| !matches!(map.form, Form::Tensor(_));
        if on_cpu(self) != on_cpu(other) {
            return Err(parameter(op, "device", "the same for both maps", argument));
        }
        Ok(())
    }

    /// Batch normalisation with the statistics of this batch, see [`batch_norm_train`](crate::batch_norm_train).
    ///
    /// The statistics come from the operation before, where it has gathered them; the map itself is normalised when
    /// the next operation reads it.
    ///
    /// # Errors
    ///
    /// As for [`batch_norm_train`](crate::batch_norm_train).
    pub fn batch_norm_train(
        &self,
        [weight, bias]: [&Tensor; 2],
        eps: f64,
        act: Activation,
    ) -> Result<(Self, BatchStats)> {
        const OP: &str = "batch_norm_train";
        let [batch, _, h, w] = self.dims();
        self.check_norm(OP, &[("weight", weight), ("bias", bias)], eps)?;
        if batch * h * w < 2 {
            return Err(shape(OP, "more than one value per channel", self.dims()));
        }
        let plain = self.plain()?;
        let stats = by_form!(plain,
        node => node.batch_stats(isa::current()).clone(),
        x => {
            let (y, stats) = train_elsewhere(x, weight, bias, eps, act, batch * h * w)?;
            return Ok((Self::elsewhere(y)?, stats));
        });
        Ok((plain.normalise(weight, bias, stats.clone(), (eps, true), act)?, stats))
    }

    /// Batch normalisation with given statistics, see [`batch_norm_eval`](crate::batch_norm_eval).
    ///
    /// # Errors
    ///
    /// As for [`batch_norm_eval`](crate::batch_norm_eval).
    pub fn batch_norm_eval(
        &self,
        [weight, bias]: [&Tensor; 2],
        [running_mean, running_var]: [&Tensor; 2],
        eps: f64,
        act: Activation,
    ) -> Result<Self> {
        const OP: &str = "batch_norm_eval";
        let running = [("running mean", running_mean), ("running variance", running_var)];
        self.check_norm(OP, &[("weight", weight), ("bias", bias), running[0], running[1]], eps)?;
        for (argument, vector) in running {
            // A buffer may be kept as a variable; only a history is a mistake.
            if vector.track_op() && !vector.is_variable() {
                return Err(Error::Tracked { op: OP, argument });
            }
        }
        if let Form::Tensor(x) = &self.form {
            let (mean, var) = (along(&running_mean.detach(), x)?, along(&running_var.detach(), x)?);
            let y = fallback::normalise(x, [&mean, &var, &along(weight, x)?, &along(bias, x)?], eps, act)?;
            return Self::elsewhere(y);
        }
        let [batch, _, h, w] = self.dims();
        let stats = BatchStats { mean: to_f64(running_mean)?, var: to_f64(running_var)?, count: batch * h * w };
        self.plain()?.normalise(weight, bias, stats, (eps, false), act)
    }

    fn check_norm(&self, op: &'static str, vectors: &[(&str, &Tensor)], eps: f64) -> Result<()> {
        for (name, vector) in vectors {
            like(op, name, vector, self.dtype(), &[self.dims()[1]])?;
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(parameter(op, "eps", "finite and not negative", eps));
        }
        Ok(())
    }

    /// This map, with what is noted down carried out.
    fn plain(&self) -> Result<Self> {
        match &self.form {
            Form::F32(node) if !node.is_plain() => self.carried_out(node),
            Form::F64(node) if !node.is_plain() => self.carried_out(node),
            _ => Ok(self.clone()),
        }
    }

    fn carried_out<T: Element>(&self, node: &Arc<Node<T>>) -> Result<Self> {
        let to = Arc::new(sum(isa::current(), node, None, Activation::None));
        let from = if self.track_op() { vec![Arc::clone(node)] } else { vec![] };
        let op = Parts { to: Arc::clone(&to), from };
        Ok(Self { token: tape::record("batch_norm", &self.token, [None; 2], op)?, form: T::form(to) })
    }

    fn normalise(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        stats: BatchStats,
        (eps, train): (f64, bool),
        act: Activation,
    ) -> Result<Self> {
        let affine = Affine { stats, weight: to_f64(weight)?, bias: to_f64(bias)?, eps, train };
        match &self.form {
            Form::F32(node) => self.normalise_node(node, [weight, bias], affine, act),
            Form::F64(node) => self.normalise_node(node, [weight, bias], affine, act),
            Form::Tensor(_) => unreachable!("other devices are handled before"),
        }
    }

    fn normalise_node<T: Element>(
        &self,
        from: &Arc<Node<T>>,
        [weight, bias]: [&Tensor; 2],
        affine: Affine,
        act: Activation,
    ) -> Result<Self> {
        let to = Node::new(from.dims, Arc::clone(&from.stored), Some(affine.normal()), act);
        let to = Arc::new(to);
        let op = Normalisation { from: Arc::clone(from), to: Arc::clone(&to), affine, tracked: self.token.track_op() };
        let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
        let token = tape::record("batch_norm", &self.token, [Some(&weight), Some(&bias)], op)?;
        Ok(Self { token, form: T::form(to) })
    }

    /// `act(self + other)`, in one pass with the normalisations that both may still have before them.
    ///
    /// # Errors
    ///
    /// Another shape, element type or device.
    pub fn add(&self, other: &Self, act: Activation) -> Result<Self> {
        self.same("add", "other map", other, self.dims())?;
        match (&self.form, &other.form) {
            (Form::F32(a), Form::F32(b)) => self.add_nodes(a, b, other, act),
            (Form::F64(a), Form::F64(b)) => self.add_nodes(a, b, other, act),
            _ => Self::elsewhere(fallback::activate((self.to_tensor()? + other.to_tensor()?)?, act)?),
        }
    }

    fn add_nodes<T: Element>(&self, a: &Arc<Node<T>>, b: &Arc<Node<T>>, other: &Self, act: Activation) -> Result<Self> {
        let to = Arc::new(sum(isa::current(), a, Some(b), act));
        let parts = [(self, a), (other, b)];
        let from = parts.into_iter().filter(|(map, _)| map.track_op()).map(|(_, node)| Arc::clone(node)).collect();
        let op = Parts { to: Arc::clone(&to), from };
        let token = tape::join(&self.token, &other.token)?;
        Ok(Self { token: tape::record("add", &token, [None; 2], op)?, form: T::form(to) })
    }

    /// `max(self, 0)`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn relu(&self) -> Result<Self> {
        match &self.form {
            Form::F32(node) => self.relu_node(node),
            Form::F64(node) => self.relu_node(node),
            Form::Tensor(x) => Self::elsewhere(crate::relu(x)?),
        }
    }

    fn relu_node<T: Element>(&self, node: &Arc<Node<T>>) -> Result<Self> {
        let to = Arc::new(sum(isa::current(), node, None, Activation::Relu));
        let from = if self.track_op() { vec![Arc::clone(node)] } else { vec![] };
        let op = Parts { to: Arc::clone(&to), from };
        Ok(Self { token: tape::record("relu", &self.token, [None; 2], op)?, form: T::form(to) })
    }

    /// The largest value of each window, see [`max_pool2d`](crate::max_pool2d).
    ///
    /// # Errors
    ///
    /// As for [`max_pool2d`](crate::max_pool2d).
    pub fn max_pool2d(&self, spec: &Pool2dSpec) -> Result<Self> {
        let [.., h, w] = self.dims();
        if let Form::Tensor(x) = &self.form {
            return Self::elsewhere(crate::max_pool2d(x, spec)?);
        }
        self.pool("max_pool2d", Windows::sliding("max_pool2d", [h, w], spec, false)?, Reduction::Max)
    }

    /// The mean of each window, see [`avg_pool2d`](crate::avg_pool2d).
    ///
    /// # Errors
    ///
    /// As for [`avg_pool2d`](crate::avg_pool2d).
    pub fn avg_pool2d(&self, spec: &Pool2dSpec, count_pad: bool) -> Result<Self> {
        let [.., h, w] = self.dims();
        if let Form::Tensor(x) = &self.form {
            return Self::elsewhere(crate::avg_pool2d(x, spec, count_pad)?);
        }
        self.pool("avg_pool2d", Windows::sliding("avg_pool2d", [h, w], spec, count_pad)?, Reduction::Mean)
    }

    fn pool(&self, op: &'static str, windows: Windows, reduction: Reduction) -> Result<Self> {
        match &self.form {
            Form::F32(node) => self.pool_node(op, node, windows, reduction),
            Form::F64(node) => self.pool_node(op, node, windows, reduction),
            Form::Tensor(_) => unreachable!("other devices are handled before"),
        }
    }

    fn pool_node<T: Element>(
        &self,
        op: &'static str,
        from: &Arc<Node<T>>,
        windows: Windows,
        reduction: Reduction,
    ) -> Result<Self> {
        let to = Arc::new(pool(isa::current(), from, &windows, reduction));
        let op_back = Pooled { windows, reduction, from: Arc::clone(from), to: Arc::clone(&to) };
        Ok(Self { token: tape::record(op, &self.token, [None; 2], op_back)?, form: T::form(to) })
    }

    /// The mean over all positions, `[B, C]`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn global_avg_pool2d(&self) -> Result<Tensor> {
        const OP: &str = "global_avg_pool2d";
        Ok(by_form!(self,
            node => tape::export(OP, &self.token, GlobalMean(Arc::clone(node)))?,
            x => crate::global_avg_pool2d(x)?))
    }

    /// An operation that exists for tensors only.
    ///
    /// # Errors
    ///
    /// Those of `f`, and a result that is no map.
    pub fn through_tensor(&self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Self::from_tensor(&f(&self.to_tensor()?)?)
    }
}
