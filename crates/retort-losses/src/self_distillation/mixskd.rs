//! Mixed images and interpolations of the unmixed ones agree.

use super::pairs::halves;
use crate::config::check;
use crate::online::scale_gradient;
use crate::online::terms::{Heads, check_all, check_like, imitate, narrow, sum_of, wide};
use crate::{Error, Result, Term, reduce};
use candle_core::{Device, Tensor};
use retort_kernels::softmax_cross_entropy;
use serde::{Deserialize, Serialize};

const METHOD: &str = "mixskd";

/// What the discriminators of [`mixskd`] do to the maps that they look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discriminators {
    /// Maps and discriminators minimise the same loss, as in the published code: both kinds become easy to tell apart.
    #[default]
    Cooperative,
    /// The gradient that enters the maps is reversed: they become hard to tell apart.
    Adversarial,
    /// There are none.
    Off,
}

/// Hyper-parameters of [`mixskd`]. The defaults mend what is broken in the published CIFAR script, which
/// [`MixSkdSettings::reference_cifar`] brings back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixSkdSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Whether the cross-entropies of mixed images are optimised; the CIFAR script computes them and leaves them out.
    pub mix_cross_entropy: bool,
    /// What the discriminators do.
    pub discriminators: Discriminators,
    /// Whether the discriminators are trained, which is the trainer's business; the published code forgets to hand them
    /// to the optimiser.
    pub train_discriminators: bool,
}

impl Default for MixSkdSettings {
    fn default() -> Self {
        Self {
            temperature: 3.0,
            mix_cross_entropy: true,
            discriminators: Discriminators::Cooperative,
            train_discriminators: true,
        }
    }
}

impl MixSkdSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(METHOD, self.temperature)
    }

    /// What the published script for CIFAR-100 does: no cross-entropy of mixed images, random discriminators.
    #[must_use]
    pub fn reference_cifar() -> Self {
        Self { mix_cross_entropy: false, train_discriminators: false, ..Self::default() }
    }
}

/// One batch of [`mixskd`]: B images, and behind them the same mixed with their partners, in one forward pass.
#[derive(Clone, Copy)]
pub struct MixSkdBatch<'a> {
    /// Logits of the K branches, the backbone last, `[2B, C]`.
    pub logits: &'a [Tensor],
    /// Their last maps, `[2B, D, H, W]`.
    pub maps: &'a [Tensor],
    /// The self-teacher's logits `[B, C]` on the interpolated maps of unmixed images, and on the maps of mixed ones.
    pub self_teacher: [&'a Tensor; 2],
    /// What the discriminators say of [`mixskd_discriminator_input`], `[2B, 2]` for each branch; empty without them.
    pub scores: &'a [Tensor],
    /// The partner of each image, B rows of the batch.
    pub partners: &'a [u32],
    /// Share of an image in its mixture, in `0 ..= 1`.
    pub lambda: f64,
    /// Class indices (u32 or i64) `[B]`.
    pub labels: &'a Tensor,
}

/// `[lambda x + (1 - lambda) x[partners], x']` of the rows `x` of unmixed images and `x'` of mixed ones.
///
/// # Shapes
///
/// `rows`: `[2B, ..]`, unmixed images first; `partners`: B numbers below B; `lambda` in `0 ..= 1`. Returns twice `[B,
/// ..]`.
///
/// # Gradients
///
/// Into both halves.
///
/// # Errors
///
/// An odd number of rows, partners that do not fit, `lambda` out of range.
pub fn mixskd_interpolate(rows: &Tensor, partners: &[u32], lambda: f64) -> Result<[Tensor; 2]> {
    check::unit(METHOD, "lambda", lambda)?;
    let (plain, mixed) = halves(METHOD, "rows", rows)?;
    let b = plain.dims()[0];
    if partners.len() != b {
        let message = format!("expected the partner of each of {b} images, found {}", partners.len());
        return Err(Error::Undefined { method: METHOD, message });
    }
    if let Some(&row) = partners.iter().find(|&&row| row as usize >= b) {
        return Err(Error::Index { method: METHOD, what: "partner", index: row.into(), size: b });
    }
    let other = plain.contiguous()?.index_select(&Tensor::new(partners, rows.device())?, 0)?;
    Ok([((plain * lambda)? + (other * (1.0 - lambda))?)?, mixed])
}

/// What a discriminator is shown of a branch's maps: the interpolated ones, and behind them those of mixed images,
/// `[2B, D, H, W]`, with the reversed gradient for [`Discriminators::Adversarial`].
///
/// # Errors
///
/// As for [`mixskd_interpolate`].
pub fn mixskd_discriminator_input(
    map: &Tensor,
    partners: &[u32],
    lambda: f64,
    discriminators: Discriminators,
) -> Result<Tensor> {
    let both = Tensor::cat(&mixskd_interpolate(map, partners, lambda)?, 0)?;
    match discriminators {
        Discriminators::Adversarial => scale_gradient(&both, -1.0),
        _ => Ok(both),
    }
}

/// Self-distillation from mixup, MixSKD (Yang et al. 2022, arXiv 2208.05768).
///
/// With `zl_k`, `fl_k` the interpolated logits and maps of unmixed images, `zm_k`, `fm_k` those of mixed images
/// ([`mixskd_interpolate`]), and `hc`, `hm` the self-teacher's logits on the `fl` and the `fm`, the terms are
///
/// * `ce`: `sum_k CE(z_k, y)` of the unmixed images;
/// * `mix-ce`: `sum_k mixCE(zm_k) + mixCE(hc) + mixCE(hm)` with `mixCE(z) = lambda CE(z, y) + (1 - lambda) CE(z,
///   y[partners])`;
/// * `mixskd`: `KD_T(zl_K <- hm) + KD_T(zm_K <- hc) + sum_{k < K} KD_T(zl_k <- zm_k) + KD_T(zm_k <- zl_k)`: the
///   backbone's interpolations learn from the self-teacher on mixed images, and the other way round;
/// * `mixskd-feature`: `sum_k mean((fl_k - fm_k)^2)`;
/// * `mixskd-discriminator`, where there are any: `sum_k` of the binary cross-entropies of the discriminators' logits
///   with the target `[1, 0]` for `fl_k` and `[0, 1]` for `fm_k`, a mean over `2B x 2` entries.
///
/// All have the weight 1, but `mix-ce` where it is left out has 0. The sign that the paper wants for the discriminators
/// was not verified; see [`Discriminators`].
///
/// # Shapes
///
/// Those of [`MixSkdBatch`].
///
/// # Gradients
///
/// Into everything; targets of `KD` are constants, in the terms of maps and discriminators nothing is.
///
/// # Errors
///
/// Numbers of logits, maps or scores that do not agree, shapes, labels or partners that do not fit, a setting out of
/// range.
pub fn mixskd(batch: &MixSkdBatch<'_>, settings: &MixSkdSettings) -> Result<Vec<Term>> {
    settings.validate()?;
    let split = |rows: &Tensor| mixskd_interpolate(rows, batch.partners, batch.lambda);
    check_batch(batch, settings)?;
    let mut plain = Vec::new();
    let mut pairs = Vec::new();
    for z in batch.logits {
        plain.push(halves(METHOD, "logits", z)?.0);
        pairs.push(split(z)?);
    }
    let heads = Heads::new(METHOD, "head", &plain, batch.labels)?;
    for (what, z) in ["logits of the self-teacher, interpolated", "logits of the self-teacher, mixed"]
        .into_iter()
        .zip(batch.self_teacher)
    {
        check_like(METHOD, what, z, &plain[0])?;
    }
    let mut features = Vec::new();
    for (k, map) in batch.maps.iter().enumerate() {
        let [interpolated, mixed] = split(map)?;
        features.push((heads.name(k), reduce::mean_squared_error(&interpolated, &mixed)?));
    }
    let mix_weight = if settings.mix_cross_entropy { 1.0 } else { 0.0 };
    let like = &plain[0];
    let mut terms = vec![
        heads.task(1.0, &[])?,
        sum_of("mix-ce", mix_weight, mixed_task(batch, &heads, &pairs)?, like)?,
        sum_of(METHOD, 1.0, agreement(batch, &heads, &pairs, settings.temperature)?, like)?,
        sum_of("mixskd-feature", 1.0, features, like)?,
    ];
    if settings.discriminators != Discriminators::Off {
        let told = batch.scores.iter().enumerate().map(|(k, scores)| Ok((heads.name(k), told_apart(scores)?)));
        terms.push(sum_of("mixskd-discriminator", 1.0, told.collect::<Result<_>>()?, like)?);
    }
    Ok(terms)
}

fn check_batch(batch: &MixSkdBatch<'_>, settings: &MixSkdSettings) -> Result<()> {
    let rows = check_all(METHOD, "logits of head", batch.logits)?;
    let map_rows = check_all(METHOD, "map of head", batch.maps)?;
    let (heads, wanted) = match settings.discriminators {
        Discriminators::Off => (batch.logits.len(), 0),
        _ => (batch.logits.len(), batch.logits.len()),
    };
    if batch.maps.len() != heads || batch.scores.len() != wanted || map_rows != rows {
        let message = format!(
            "expected {heads} maps of {rows} rows and {wanted} scores, found {} maps of {map_rows} rows and {} scores",
            batch.maps.len(),
            batch.scores.len()
        );
        return Err(Error::Undefined { method: METHOD, message });
    }
    match batch.scores.iter().find(|scores| scores.dims() != [rows, 2]) {
        Some(scores) => {
            let (what, expected) = ("scores of a discriminator".to_string(), format!("[{rows}, 2]"));
            Err(Error::Shape { method: METHOD, what, expected, found: scores.dims().to_vec() })
        }
        None => Ok(()),
    }
}

/// Cross-entropies of mixed images.
fn mixed_task(batch: &MixSkdBatch<'_>, heads: &Heads<'_>, pairs: &[[Tensor; 2]]) -> Result<Vec<(String, Tensor)>> {
    let ids = heads.ids();
    let others: Vec<u32> = batch.partners.iter().map(|&row| ids[row as usize]).collect();
    let mix = |z: &Tensor| -> Result<Tensor> {
        let (own, other) = (softmax_cross_entropy(z, ids, 0.0)?, softmax_cross_entropy(z, &others, 0.0)?);
        Ok(((own * batch.lambda)? + (other * (1.0 - batch.lambda))?)?)
    };
    let mut parts = Vec::new();
    for (k, [_, mixed]) in pairs.iter().enumerate() {
        parts.push((heads.name(k), mix(mixed)?));
    }
    for (name, z) in ["self-teacher-interpolated", "self-teacher-mixed"].into_iter().zip(batch.self_teacher) {
        parts.push((name.to_string(), mix(z)?));
    }
    Ok(parts)
}

/// What interpolations and mixed images learn from each other.
fn agreement(
    batch: &MixSkdBatch<'_>,
    heads: &Heads<'_>,
    pairs: &[[Tensor; 2]],
    temperature: f64,
) -> Result<Vec<(String, Tensor)>> {
    let last = pairs.len() - 1;
    let mut parts = Vec::new();
    for (k, [interpolated, mixed]) in pairs.iter().enumerate() {
        let [for_interpolated, for_mixed] = match k == last {
            true => [batch.self_teacher[1], batch.self_teacher[0]],
            false => [mixed, interpolated],
        };
        let there = imitate(interpolated, for_interpolated, temperature)?;
        parts.push((heads.name(k), (there + imitate(mixed, for_mixed, temperature)?)?));
    }
    Ok(parts)
}

/// The mean binary cross-entropy of logits `[2B, 2]` with `[1, 0]` in the first half and `[0, 1]` in the second:
/// `softplus` of the logits, with the other sign where the target is 1.
fn told_apart(scores: &Tensor) -> Result<Tensor> {
    let rows = scores.dims()[0];
    let sign = |i: usize| if (i < rows) == i.is_multiple_of(2) { -1.0 } else { 1.0 };
    let signs = Tensor::from_vec((0..2 * rows).map(sign).collect::<Vec<f64>>(), (rows, 2), &Device::Cpu)?;
    let signed = (wide(scores)? * signs.to_device(scores.device())?)?;
    narrow(&reduce::mean_all(&reduce::softplus(&signed)?)?, scores)
}
