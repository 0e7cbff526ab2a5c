//! What every family checks in the same way.

use crate::{Error, ModelConfig, Result};
use candle_core::Tensor;
use retort_nn::{MapShape, Mode, NetworkSpec};

/// Channels beyond which a number is a slip that would only exhaust the memory.
pub(crate) const MOST_CHANNELS: usize = 1 << 16;
/// The same for blocks in a row.
pub(crate) const MOST_BLOCKS: usize = 1 << 8;
/// The same for rows and columns of an image; the kernels' own bound.
pub(crate) const MOST_PIXELS: usize = 1 << 20;
/// The same for classes.
pub(crate) const MOST_CLASSES: usize = 1 << 20;
/// The same for layers of one kind, and for maps that a part takes at once.
pub(crate) const MOST_PARTS: usize = 64;
/// The same for the weights of one layer; what the parameter store takes.
pub(crate) const MOST_WEIGHTS: usize = 1 << 28;
/// The same for all weights of a network.
pub(crate) const MOST_PARAMETERS: usize = 1 << 30;

/// An [`Error::Config`].
pub(crate) fn config_error(model: &str, message: impl Into<String>) -> Error {
    Error::Config { model: model.to_string(), message: message.into() }
}

/// The store knows the shape of a weight that is too large, but not whose it is.
pub(crate) fn named<T>(model: &str, built: Result<T>) -> Result<T> {
    built.map_err(|error| match error {
        Error::Nn(retort_nn::Error::Invalid { what, message }) if what == "weight" => config_error(model, message),
        other => other,
    })
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

/// Refuses images and classes of zero and absurd ones, by the names that `config.json` has for them.
pub(crate) fn check_sizes(model: &str, config: &ModelConfig) -> Result<()> {
    let ModelConfig { in_channels, image: [height, width], classes } = *config;
    check_size(model, "in_channels", in_channels, MOST_CHANNELS)?;
    check_size(model, "image height", height, MOST_PIXELS)?;
    check_size(model, "image width", width, MOST_PIXELS)?;
    check_size(model, "classes", classes, MOST_CLASSES)
}

/// Refuses a size of zero and one beyond `most`.
pub(crate) fn check_size(model: &str, what: &str, size: usize, most: usize) -> Result<()> {
    match (1..=most).contains(&size) {
        true => Ok(()),
        false => Err(config_error(model, format!("{what} must be positive and at most {most}, found {size}"))),
    }
}

/// Refuses the shape of a map that no network has.
pub(crate) fn check_shape(model: &str, map: &MapShape) -> Result<()> {
    check_size(model, "channels of a map", map.channels, MOST_CHANNELS)?;
    check_size(model, "height of a map", map.height, MOST_PIXELS)?;
    check_size(model, "width of a map", map.width, MOST_PIXELS)
}

/// Refuses a layer without inputs or outputs, or with absurdly many weights.
pub(crate) fn check_layer(model: &str, inputs: usize, outputs: usize) -> Result<()> {
    check_positive(model, [("inputs", inputs), ("outputs", outputs)])?;
    check_weights(model, inputs, outputs)
}

/// Refuses a layer with absurdly many weights, by its numbers of inputs and outputs, kernels included.
pub(crate) fn check_weights(model: &str, inputs: usize, outputs: usize) -> Result<()> {
    match inputs.checked_mul(outputs) {
        Some(weights) if weights <= MOST_WEIGHTS => Ok(()),
        _ => {
            let message = format!("a layer must have at most {MOST_WEIGHTS} weights, found {inputs} x {outputs}");
            Err(config_error(model, message))
        }
    }
}

/// Refuses a batch of another shape than the network was built for.
pub(crate) fn check_images(spec: &NetworkSpec, images: &Tensor) -> retort_nn::Result<()> {
    let [height, width] = spec.image;
    check_batch(&spec.name, "images", [spec.in_channels, height, width], images)
}

/// Refuses a batch of other maps than `[B, C, H, W]` with `expected` behind the first.
pub(crate) fn check_batch(model: &str, what: &str, expected: [usize; 3], batch: &Tensor) -> retort_nn::Result<()> {
    if batch.rank() == 4 && batch.dims()[1..] == expected {
        return Ok(());
    }
    let [channels, height, width] = expected;
    Err(refused(model, format!("expected {what} [B, {channels}, {height}, {width}], found {:?}", batch.dims())))
}

/// A refusal of values given to `model` in a forward pass.
pub(crate) fn refused(model: &str, message: impl Into<String>) -> retort_nn::Error {
    retort_nn::Error::invalid(format!("model `{model}`"), message)
}

/// Refuses training of a network without batch norms that is frozen; a batch norm refuses it by itself.
pub(crate) fn check_mode(model: &str, frozen: bool, mode: Mode) -> retort_nn::Result<()> {
    match frozen && mode == Mode::Train {
        true => Err(refused(model, "a frozen network has no training mode")),
        false => Ok(()),
    }
}

/// A sum that stays at the largest number, as the counts of absurd sizes do.
pub(crate) fn saturating_sum(counts: impl IntoIterator<Item = usize>) -> usize {
    counts.into_iter().fold(0, usize::saturating_add)
}
