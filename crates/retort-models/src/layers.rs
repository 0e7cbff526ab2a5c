//! Layers that only some families need; frozen, they fold and fuse what they can.

use candle_core::{DType, Tensor};
use retort_kernels::{Activation, Conv2dSpec, conv2d, conv2d_frozen, relu};
use retort_nn::{BatchNorm, Conv2d, Init, Mode, Scope};

/// `eps` of [`BatchNorm`].
const EPS: f64 = 1e-5;

/// A convolution *with bias* followed by batch norm: the unit of VGG.
///
/// Batch statistics cancel the bias, so that its gradient in training is rounding noise around zero; it is kept
/// because the reference has it: it counts as a parameter and moves the running mean.
pub(crate) enum BiasedConvBatchNorm {
    Trainable { conv: Conv2d, norm: BatchNorm },
    Folded { weight: Tensor, bias: Tensor, spec: Conv2dSpec },
}

impl BiasedConvBatchNorm {
    /// The convolution lives under `conv_name`, the normalisation under `norm_name` of `scope`; biases start at 0.
    pub(crate) fn new(
        scope: &Scope,
        [conv_name, norm_name]: [String; 2],
        shape: [usize; 4],
        spec: Conv2dSpec,
        init: Init,
    ) -> retort_nn::Result<Self> {
        let (conv, norm, zero) = (scope.child(conv_name), scope.child(norm_name), Init::Constant(0.0));
        if !scope.is_frozen() {
            let conv = Conv2d::with_bias(&conv, shape, spec, init, zero)?;
            return Ok(Self::Trainable { conv, norm: BatchNorm::new(&norm, shape[0])? });
        }
        let channels = [shape[0]];
        let wide = |tensor: Tensor| tensor.to_dtype(DType::F64);
        let gain = wide(norm.weight("weight", &channels, Init::Constant(1.0))?)?;
        let shift = wide(norm.weight("bias", &channels, zero)?)?;
        let mean = wide(norm.buffer("running_mean", &channels, 0.0)?.get())?;
        let var = wide(norm.buffer("running_var", &channels, 1.0)?.get())?;
        let scale = (gain / (var + EPS)?.sqrt()?)?;
        let weight = wide(conv.weight("weight", &shape, init)?)?;
        let weight = weight.broadcast_mul(&scale.reshape((shape[0], 1, 1, 1))?)?.to_dtype(scope.dtype())?;
        let bias = wide(conv.weight("bias", &channels, zero)?)?;
        let bias = (((bias - mean)? * scale)? + shift)?.to_dtype(scope.dtype())?;
        Ok(Self::Folded { weight, bias, spec })
    }

    /// `act(bn(conv(x)))`.
    pub(crate) fn forward(&self, x: &Tensor, mode: Mode, activation: Activation) -> retort_nn::Result<Tensor> {
        match self {
            Self::Trainable { conv, norm } => norm.forward(&conv.forward(x)?, mode, activation),
            Self::Folded { .. } if mode == Mode::Train => {
                Err(retort_nn::Error::invalid("batch norm", "a frozen network has no training mode"))
            }
            // Gradients with respect to the images need the differentiable path.
            Self::Folded { weight, bias, spec } if x.track_op() => {
                let y = conv2d(x, weight, Some(bias), spec)?;
                Ok(if activation == Activation::Relu { relu(&y)? } else { y })
            }
            Self::Folded { weight, bias, spec } => Ok(conv2d_frozen(x, weight, Some(bias), None, activation, spec)?),
        }
    }
}

/// A convolution without bias whose result is added to another map: the end of a pre-activation block.
pub(crate) struct ConvAdd {
    weight: Tensor,
    spec: Conv2dSpec,
}

impl ConvAdd {
    /// Weight of `shape` under `weight`.
    pub(crate) fn new(scope: &Scope, shape: [usize; 4], spec: Conv2dSpec, init: Init) -> retort_nn::Result<Self> {
        Ok(Self { weight: scope.weight("weight", &shape, init)?, spec })
    }

    /// `conv(x) + residual`, in one pass where nothing tracks gradients.
    pub(crate) fn forward(&self, x: &Tensor, residual: &Tensor) -> retort_nn::Result<Tensor> {
        if [&self.weight, x, residual].iter().any(|tensor| tensor.track_op()) {
            return Ok((conv2d(x, &self.weight, None, &self.spec)? + residual)?);
        }
        Ok(conv2d_frozen(x, &self.weight, None, Some(residual), Activation::None, &self.spec)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use retort_nn::{Params, Seed, Tensors};

    fn draw(shape: &[usize], label: &str) -> Tensor {
        Init::Normal { std: 1.0 }.draw(shape, Seed::root(3).child(label), DType::F64, &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        values(a).iter().zip(values(b)).fold(0.0, |worst, (a, b)| f64::max(worst, (a - b).abs()))
    }

    /// A unit with 3 inputs and 4 outputs; the variance is so small that `eps` matters.
    fn unit(params: &Params) -> retort_nn::Result<BiasedConvBatchNorm> {
        let names = ["0".to_string(), "1".to_string()];
        BiasedConvBatchNorm::new(&params.root(), names, [4, 3, 3, 3], Conv2dSpec::new(1, 1), Init::PyTorch)
    }

    fn state() -> Tensors {
        let vectors =
            ["0.bias", "1.weight", "1.bias", "1.running_mean"].map(|name| (name.to_string(), draw(&[4], name)));
        let mut tensors = Tensors::from(vectors);
        tensors.insert("0.weight".to_string(), draw(&[4, 3, 3, 3], "0.weight"));
        tensors.insert("1.running_var".to_string(), (draw(&[4], "1.running_var").sqr().unwrap() * 1e-4).unwrap());
        tensors
    }

    #[test]
    fn the_folded_unit_agrees_with_the_trainable_one() {
        let x = draw(&[2, 3, 5, 6], "x");
        let open = unit(&Params::from_tensors(state(), DType::F64, &Device::Cpu)).unwrap();
        let store = Params::frozen(state(), DType::F64, &Device::Cpu);
        let folded = unit(&store).unwrap();
        assert!(store.unused().is_empty());
        for activation in [Activation::None, Activation::Relu] {
            let expected = open.forward(&x, Mode::Eval, activation).unwrap();
            let scale = values(&expected).iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let plain = folded.forward(&x, Mode::Eval, activation).unwrap();
            assert!(distance(&plain, &expected) < 1e-12 * scale);
            assert!(!plain.track_op());
            let tracked = folded.forward(&Var::from_tensor(&x).unwrap(), Mode::Eval, activation).unwrap();
            assert!(distance(&tracked, &expected) < 1e-12 * scale);
            assert!(tracked.track_op());
        }
        assert!(folded.forward(&x, Mode::Train, Activation::Relu).is_err());
        assert!(open.forward(&x, Mode::Train, Activation::Relu).is_ok());
    }

    #[test]
    fn both_paths_of_the_addition_agree() {
        let (x, residual) = (draw(&[2, 3, 6, 5], "x"), draw(&[2, 4, 6, 5], "residual"));
        let weight = Tensors::from([("weight".to_string(), draw(&[4, 3, 3, 3], "w"))]);
        let build =
            |params: &Params| ConvAdd::new(&params.root(), [4, 3, 3, 3], Conv2dSpec::new(1, 1), Init::PyTorch).unwrap();
        let open =
            build(&Params::from_tensors(weight.clone(), DType::F64, &Device::Cpu)).forward(&x, &residual).unwrap();
        let frozen = build(&Params::frozen(weight, DType::F64, &Device::Cpu));
        let plain = frozen.forward(&x, &residual).unwrap();
        assert!(open.track_op() && !plain.track_op());
        assert!(distance(&open, &plain) < 1e-12);
        assert!(frozen.forward(&Var::from_tensor(&x).unwrap(), &residual).unwrap().track_op());
    }
}
