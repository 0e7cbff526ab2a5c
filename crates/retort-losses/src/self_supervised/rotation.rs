//! Batches of which every image comes under 0, 1, 2 and 3 quarter turns, one after the other.

use crate::distiller::Term;
use crate::{Error, Result, ops};
use candle_core::Tensor;

/// Views of an image.
pub(super) const TURNS: usize = 4;

/// Number of images B of `[4B, ..]`.
pub(super) fn images(method: &'static str, what: &str, x: &Tensor) -> Result<usize> {
    let rows = ops::samples(method, what, x)?;
    if rows.is_multiple_of(TURNS) {
        return Ok(rows / TURNS);
    }
    let expected = "[4B, ..], four rows for each image".into();
    Err(Error::Shape { method, what: what.into(), expected, found: x.dims().to_vec() })
}

/// `(B, C)` of logits `[4B, C]` with a label for each image.
pub(super) fn labelled(method: &'static str, logits: &Tensor, labels: &[u32]) -> Result<(usize, usize)> {
    let (_, classes) = ops::logits(method, "logits", logits)?;
    let images = images(method, "logits", logits)?;
    if labels.len() != images {
        let message = format!("expected a label for each of {images} images, found {}", labels.len());
        return Err(Error::Undefined { method, message });
    }
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(&label) => Err(Error::Index { method, what: "label", index: u64::from(label), size: classes }),
        None => Ok((images, classes)),
    }
}

/// The rows without a turn: `[4B, D]` to `[B, D]`.
pub(super) fn unturned(x: &Tensor) -> Result<Tensor> {
    turns(x, 0, 1)
}

/// The other rows: `[4B, D]` to `[3B, D]`, row `3i + k - 1` being image i under k turns.
pub(super) fn turned(x: &Tensor) -> Result<Tensor> {
    turns(x, 1, TURNS - 1)
}

fn turns(x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let views = x.reshape((rows / TURNS, TURNS, width))?.narrow(1, first, count)?;
    Ok(views.contiguous()?.reshape((rows / TURNS * count, width))?)
}

/// A term with parts of these names.
pub(super) fn term(name: &'static str, weight: f64, value: &Tensor, parts: Vec<(String, Tensor)>) -> Term {
    Term { name, weight, value: value.clone(), parts }
}
