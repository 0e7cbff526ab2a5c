//! Small conditional generative adversarial networks and the networks around them, for distillation through generated
//! samples (cGAN-KD; Ding et al. 2023, arXiv 2104.03164).
//!
//! * [`Generator`] and [`Discriminator`]: images of any size that halvings reach, in the plain style of DCGAN (Radford
//!   et al. 2016, arXiv 1511.06434) or in the residual one of SNGAN (Miyato et al. 2018, arXiv 1802.05957), for classes
//!   (Miyato and Koyama 2018, arXiv 1802.05637), continuous labels (CcGAN; Ding et al. 2021, arXiv 2011.07529), or
//!   without labels.
//! * [`SpectralWeight`], [`SpectralConv2d`], [`SpectralLinear`]: spectral normalisation as PyTorch computes it.
//! * [`ConditionalBatchNorm`]: batch norm whose scale and shift depend on the condition.
//! * [`LabelEmbedding`], [`LabelReader`]: a continuous label to a vector, features to that vector and back to the
//!   label.
//! * [`RatioNet`]: the density ratio of real and generated samples; [`Autoencoder`]: features for it where there are no
//!   classes.
//!
//! The authors' code uses BigGAN and self-attention generators on accelerators; the specification asks for small
//! networks instead and leaves their details open. Those here are the standard forms of the papers above: no
//! self-attention, and no moving average of weights, which belongs to a training loop. The keys of generator and
//! discriminator are this project's own.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use retort_models::generative::{Condition, Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
//! use retort_nn::{Init, Mode, Params, Seed};
//!
//! let (cpu, condition) = (Device::Cpu, Condition::Classes(10));
//! let params = Params::new(Seed::root(1), DType::F32, &cpu);
//! let generator = GeneratorConfig { condition, ..GeneratorConfig::small(1, [28, 28]) };
//! let generator = Generator::new(&generator, &params.root().child("generator"))?;
//! let discriminator = DiscriminatorConfig { condition, ..DiscriminatorConfig::small(1, [28, 28]) };
//! let discriminator = Discriminator::new(&discriminator, &params.root().child("discriminator"))?;
//!
//! let noise = Init::Normal { std: 1.0 }.draw(&[2, 64], Seed::root(2), DType::F32, &cpu)?;
//! let labels = Tensor::new(&[3u32, 7], &cpu)?;
//! let images = generator.forward(&noise, Some(&labels), Mode::Train)?.images;
//! assert_eq!(images.dims(), [2, 1, 28, 28]);
//! let scores = discriminator.forward(&images, Some(&labels), Mode::Train)?.scores;
//! assert_eq!(scores.dims(), [2, 1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod autoencoder;
mod condition;
mod discriminator;
mod generator;
mod label;
mod ratio;
mod spectral;

use retort_kernels::FeatureMap;
use retort_nn::Init;

pub use autoencoder::{Autoencoder, AutoencoderConfig, Encoded};
pub use condition::{Condition, ConditionalBatchNorm};
pub use discriminator::{Discriminator, DiscriminatorConfig, Judgement};
pub use generator::{Entrance, Generated, Generator, GeneratorConfig};
pub use label::{GroupNorm, LabelEmbedding, LabelReader};
pub use ratio::{RatioConfig, RatioNet};
pub use spectral::{SpectralConv2d, SpectralLinear, SpectralWeight};

/// What the blocks of a generator or discriminator are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One convolution of 4x4 (DCGAN). Weights start as N(0, 0.02^2).
    Plain,
    /// Two 3x3 convolutions and a shortcut (SNGAN). Weights start by Glorot's uniform rule (2010), those of the
    /// residual branches with gain sqrt(2).
    Residual,
}

impl Style {
    /// The rule for a weight of `shape` in a residual branch.
    fn branch(self, shape: &[usize]) -> Init {
        self.init(shape, 2f64.sqrt())
    }

    /// The rule for a weight of `shape` elsewhere.
    fn outer(self, shape: &[usize]) -> Init {
        self.init(shape, 1.0)
    }

    fn init(self, shape: &[usize], gain: f64) -> Init {
        if self == Self::Plain {
            return Init::Normal { std: 0.02 };
        }
        let size = |dims: &[usize]| dims.iter().map(|&n| n as f64).product::<f64>();
        let fans = (shape[0] + shape[1]) as f64 * size(&shape[2..]);
        Init::Uniform { bound: gain * (6.0 / fans.max(1.0)).sqrt() }
    }
}

/// How often both sides of an image can be halved, exactly or rounded down, without falling below `least`.
fn halvings([height, width]: [usize; 2], least: usize, exact: bool) -> usize {
    let size = |n: usize| 1usize.checked_shl(n as u32).filter(|&size| size > 0).unwrap_or(usize::MAX);
    let fits = |n: usize| {
        let whole = height.is_multiple_of(size(n)) && width.is_multiple_of(size(n));
        (whole || !exact) && height.min(width) / size(n) >= least
    };
    (1..usize::BITS as usize).take_while(|&n| fits(n)).last().unwrap_or(0)
}

/// `x` with every position doubled in both directions.
fn doubled(x: &FeatureMap) -> retort_nn::Result<FeatureMap> {
    let [.., height, width] = x.dims();
    Ok(x.through_tensor(|x| retort_kernels::resize_nearest2d(x, [2 * height, 2 * width]))?)
}
