//! LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition") in its modern form: ReLU,
//! plain average pooling and a linear classifier, as in the fidelity study of Stanton et al. 2021 (arXiv 2106.05945).

use crate::block::Trace;
use crate::common::{MOST_CHANNELS, check_images, check_layer, check_mode, check_range, check_sizes};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec, relu};
use retort_nn::{Conv2d, Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, Taps};

/// `lenet5`: a 5x5 convolution with padding 2, one without, each followed by ReLU and 2x2 average pooling; two linear
/// layers with ReLU; linear classifier. No batch norm.
///
/// f0 and f1 are the convolutions after their ReLU, before the pooling; a pre-activation is the convolution's result
/// (entry 0 is f0 itself). The embedding is the last hidden layer after its ReLU. Images of 12x12 and more fit, of
/// 32x32 for instance; the first linear layer is as wide as the last map.
///
/// Keys: `conv1`, `conv2`, `fc1`, `fc2` and the classifier `fc3`, each with `weight` and `bias`. All layers start with
/// PyTorch's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeNetConfig {
    /// Channels of the convolutions.
    pub convolutions: [usize; 2],
    /// Widths of the hidden linear layers.
    pub hidden: [usize; 2],
}

impl LeNetConfig {
    /// 6 and 16 channels, 120 and 84 units.
    #[must_use]
    pub fn lenet5() -> Self {
        Self { convolutions: [6, 16], hidden: [120, 84] }
    }
}

/// Behind each convolution.
const POOLING: Pool2dSpec = Pool2dSpec { kernel: [2; 2], stride: [2; 2], padding: [0; 2] };

/// A network of a [`LeNetConfig`].
pub(crate) struct LeNet {
    spec: NetworkSpec,
    convolutions: [Conv2d; 2],
    hidden: [Linear; 2],
    classifier: Linear,
    frozen: bool,
}

impl LeNet {
    /// Declares all parameters in `scope`; `name` appears in the spec and in errors.
    pub(crate) fn new(name: &str, family: &LeNetConfig, config: &ModelConfig, scope: &Scope) -> Result<Self> {
        check_sizes(name, config)?;
        let LeNetConfig { convolutions: [c1, c2], hidden: [h1, h2] } = *family;
        check_range(name, MOST_CHANNELS, [("convolutions", c1), ("convolutions", c2), ("hidden", h1), ("hidden", h2)])?;
        let [height, width] = config.image;
        let mut trace = Trace::new(name, MapShape { channels: config.in_channels, height, width });
        let mut maps = Vec::new();
        let mut convolution = |key: &str, [to, from]: [usize; 2], padding: usize| -> Result<Conv2d> {
            let (scope, shape) = (scope.child(key), [to, from, 5, 5]);
            let (init, bias) = (Init::PyTorch, Init::pytorch_bias(&shape));
            let conv = Conv2d::with_bias(&scope, shape, Conv2dSpec::new(1, padding), init, bias)?;
            trace.conv(&conv)?;
            maps.push(trace.shape);
            trace.pool(&POOLING)?;
            Ok(conv)
        };
        let convolutions = [convolution("conv1", [c1, config.in_channels], 2)?, convolution("conv2", [c2, c1], 0)?];
        let MapShape { channels, height, width } = trace.shape;
        let flat = channels.saturating_mul(height).saturating_mul(width);
        [(flat, h1), (h1, h2), (h2, config.classes)].into_iter().try_for_each(|(i, o)| check_layer(name, i, o))?;
        let hidden = [Linear::new(&scope.child("fc1"), flat, h1)?, Linear::new(&scope.child("fc2"), h1, h2)?];
        let classifier = Linear::new(&scope.child("fc3"), h2, config.classes)?;
        hidden.iter().chain([&classifier]).for_each(|layer| trace.linear(layer));
        let spec = NetworkSpec {
            name: name.to_string(),
            in_channels: config.in_channels,
            image: config.image,
            classes: config.classes,
            maps,
            embedding: h2,
            pre_activations: true,
            multiply_adds: trace.multiply_adds,
        };
        Ok(Self { spec, convolutions, hidden, classifier, frozen: scope.is_frozen() })
    }
}

impl Network for LeNet {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn classifier(&self) -> Option<&Linear> {
        Some(&self.classifier)
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        check_mode(&self.spec.name, self.frozen, mode)?;
        let (mut maps, mut pre_activations) = (vec![], vec![]);
        let mut x = FeatureMap::from_tensor(images)?;
        for (i, conv) in self.convolutions.iter().enumerate() {
            x = if taps.pre_activations && i > 0 {
                let value = conv.forward(&x)?;
                pre_activations.push(value.to_tensor()?);
                value.relu()?
            } else {
                conv.forward_with(&x, None, Activation::Relu)?
            };
            if taps.maps {
                maps.push(x.to_tensor()?);
            }
            if taps.pre_activations && i == 0 {
                pre_activations.push(x.to_tensor()?);
            }
            x = x.avg_pool2d(&POOLING, false)?;
        }
        let mut embedding = x.to_tensor()?.flatten_from(1)?;
        for layer in &self.hidden {
            embedding = relu(&layer.forward(&embedding)?)?;
        }
        let logits = self.classifier.forward(&embedding)?;
        Ok(Outputs { logits, embedding, maps, pre_activations })
    }
}
