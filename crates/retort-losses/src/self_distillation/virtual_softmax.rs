//! A softmax with one more class, which nobody belongs to.

use crate::{Error, Result, ops};
use candle_core::{D, Tensor};

const METHOD: &str = "virtual-softmax";

/// The logits of the virtual softmax: `[e w_1, .. e w_C, ||w_y|| ||e||]`.
///
/// The last one is as large as the label's own could be if the embedding pointed along `w_y`. For training only.
///
/// # Shapes
///
/// `embedding`: `[B, D]`, `weight`: the classifier's `[C, D]`, without bias; `labels`: class indices (u32 or i64)
/// `[B]`. Returns `[B, C + 1]`.
///
/// # Gradients
///
/// Into embedding and weight; the norms are `sqrt(sum x^2 + 1e-24)`, so that a row of zeros has a finite gradient.
///
/// # Errors
///
/// Other shapes, two types, an empty batch, labels that are no class indices or not below C.
pub fn virtual_logits(embedding: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (b, d) = ops::logits(METHOD, "embedding", embedding)?;
    let (c, width) = ops::logits(METHOD, "weight of the classifier", weight)?;
    if d != width || embedding.dtype() != weight.dtype() {
        let message = format!(
            "expected a weight [C, {d}] of type {:?}, found {:?} of type {:?}",
            embedding.dtype(),
            weight.dims(),
            weight.dtype()
        );
        return Err(Error::Undefined { method: METHOD, message });
    }
    let ids = Tensor::new(ops::class_ids(METHOD, labels, b, c)?, embedding.device())?;
    let length = |x: &Tensor| -> Result<Tensor> { Ok((x.sqr()?.sum_keepdim(D::Minus1)? + 1e-24)?.sqrt()?) };
    // One length for each class, not for each sample: the backward pass adds up what samples of a class send.
    let own = length(weight)?.index_select(&ids, 0)?;
    let virtual_logit = (own * length(embedding)?)?;
    Ok(Tensor::cat(&[retort_kernels::inner_products(embedding, weight)?, virtual_logit], 1)?)
}

/// Virtual softmax (Chen, Deng and Shen 2018, "Virtual Class Enhanced Discriminative Embedding Learning", NeurIPS): the
/// cross-entropy over C + 1 classes, see [`virtual_logits`].
///
/// # Shapes
///
/// As for [`virtual_logits`]; returns a scalar.
///
/// # Gradients
///
/// As for [`virtual_logits`].
///
/// # Errors
///
/// As for [`virtual_logits`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::virtual_softmax;
/// let (e, w) = (Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?, Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?);
/// // The embedding points along the weight: label and virtual class are equally likely.
/// let loss = virtual_softmax(&e, &w, &Tensor::new(&[0u32], &Device::Cpu)?)?;
/// assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn virtual_softmax(embedding: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let logits = virtual_logits(embedding, weight, labels)?;
    let (b, c) = logits.dims2()?;
    Ok(retort_kernels::softmax_cross_entropy(&logits, &ops::class_ids(METHOD, labels, b, c - 1)?, 0.0)?)
}
