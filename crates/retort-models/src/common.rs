//! What every family checks in the same way.

use crate::{Error, ModelConfig, Result};
use candle_core::Tensor;
use retort_nn::NetworkSpec;

/// Channels beyond which a number is a slip that would only exhaust the memory.
pub(crate) const MOST_CHANNELS: usize = 1 << 16;
/// The same for blocks in a row.
pub(crate) const MOST_BLOCKS: usize = 1 << 8;
/// The same for rows and columns of an image; the kernels' own bound.
pub(crate) const MOST_PIXELS: usize = 1 << 20;

/// An [`Error::Config`].
pub(crate) fn config_error(model: &str, message: impl Into<String>) -> Error {
    Error::Config { model: model.to_string(), message: message.into() }
}

/// Refuses numbers of zero, by name.
pub(crate) fn check_positive(model: &str, sizes: impl IntoIterator<Item = (&'static str, usize)>) -> Result<()> {
    match sizes.into_iter().find(|(_, size)| *size == 0) {
        Some((what, _)) => Err(config_error(model, format!("{what} must be positive, found 0"))),
        None => Ok(()),
    }
}

/// Refuses numbers outside of 1 to `most`, by name.
pub(crate) fn check_range(
    model: &str,
    most: usize,
    sizes: impl IntoIterator<Item = (&'static str, usize)>,
) -> Result<()> {
    match sizes.into_iter().find(|(_, size)| !(1..=most).contains(size)) {
        Some((what, size)) => Err(config_error(model, format!("{what} must be from 1 to {most}, found {size}"))),
        None => Ok(()),
    }
}

/// Refuses images and classes of zero.
pub(crate) fn check_sizes(model: &str, config: &ModelConfig) -> Result<()> {
    let [height, width] = config.image;
    if [config.in_channels, height, width, config.classes].contains(&0) {
        return Err(config_error(model, format!("channels, image and classes must be positive, found {config:?}")));
    }
    Ok(())
}

/// Refuses a batch of another shape than the network was built for.
pub(crate) fn check_images(spec: &NetworkSpec, images: &Tensor) -> retort_nn::Result<()> {
    let [height, width] = spec.image;
    let expected = [spec.in_channels, height, width];
    if images.rank() == 4 && images.dims()[1..] == expected {
        return Ok(());
    }
    let message = format!("expected images [B, {}, {height}, {width}], found {:?}", expected[0], images.dims());
    Err(retort_nn::Error::invalid(format!("model `{}`", spec.name), message))
}
