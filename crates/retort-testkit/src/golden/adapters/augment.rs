//! Augmentation: mixing of batches, rotations, erasing.

use crate::Result;
use crate::golden::Run;
use candle_core::{Device, Tensor};
use retort_datasets::batch::{self, CutmixBox};
use retort_datasets::{ErasePatch, ImageShape};
use retort_losses::output;

/// The label of each row's partner.
fn partner_labels(run: &Run<'_>, partners: &[u32]) -> Result<Tensor> {
    let index = Tensor::new(partners, &Device::Cpu)?;
    Ok(run.labels("labels")?.index_select(&index, 0)?)
}

pub(super) fn mixup(run: &mut Run<'_>) -> Result<()> {
    let (partners, lambda): (_, f64) = (run.indices("perm")?, run.param("lambda")?);
    let mixed = batch::mixup(&run.constant("x")?, &partners, lambda)?;
    run.produce("mixed", mixed);
    mixed_loss(run, &partners, lambda)
}

pub(super) fn cutmix(run: &mut Run<'_>) -> Result<()> {
    let (images, partners) = (run.constant("x")?, run.indices("perm")?);
    let (_, _, height, width) = images.dims4()?;
    let centre = (run.param("c2")?, run.param("c3")?);
    let patch = CutmixBox::from_centre(height, width, run.param("lambda")?, centre)?;
    let (rows, columns, lambda) = (patch.rows(), patch.columns(), patch.lambda_adjusted());
    run.produce("mixed", batch::cutmix(&images, &partners, &patch)?);
    let corners = [rows.start, columns.start, rows.end, columns.end].map(|place| place as i64);
    run.produce("box", Tensor::new(&corners, &Device::Cpu)?);
    run.produce("lambda_adjusted", Tensor::new(&[lambda], &Device::Cpu)?);
    mixed_loss(run, &partners, lambda)
}

fn mixed_loss(run: &mut Run<'_>, partners: &[u32], lambda: f64) -> Result<()> {
    let (labels, others) = (run.labels("labels")?, partner_labels(run, partners)?);
    let loss = output::mix_cross_entropy(&run.input("logits")?, &labels, &others, lambda)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn cutout(run: &mut Run<'_>) -> Result<()> {
    let centre = (run.param("y")?, run.param("x")?);
    let length = run.param("length")?;
    erase(run, &[0.0], |shape| Ok(Some(ErasePatch::square(shape, centre, length))))
}

pub(super) fn random_erase(run: &mut Run<'_>) -> Result<()> {
    let (fraction, aspect): (f64, f64) = (run.param("area_fraction")?, run.param("aspect")?);
    let (corner, mean): (_, Vec<f32>) = ((run.param("row")?, run.param("col")?), run.param("mean")?);
    erase(run, &mean, |shape| Ok(ErasePatch::of_area(shape, fraction, aspect, corner)?))
}

/// Fills a rectangle, where there is one, with a value per channel or with one for all.
fn erase(run: &mut Run<'_>, fill: &[f32], patch: impl Fn(ImageShape) -> Result<Option<ErasePatch>>) -> Result<()> {
    let image = run.constant("x")?;
    let (channels, height, width) = image.dims3()?;
    let mut values: Vec<f32> = image.flatten_all()?.to_vec1()?;
    if let Some(patch) = patch(ImageShape { channels, height, width })? {
        let all = vec![fill.first().copied().unwrap_or(0.0); channels];
        patch.fill(&mut values, if fill.len() == 1 { &all } else { fill })?;
    }
    run.produce("image", Tensor::from_vec(values, image.shape(), &Device::Cpu)?);
    Ok(())
}

pub(super) fn rotate4(run: &mut Run<'_>) -> Result<()> {
    run.produce("rotated", batch::rotate4(&run.constant("x")?)?);
    let labels = batch::rotate4_labels(&run.indices("labels")?)?;
    run.produce("joint_labels", Tensor::new(labels.as_slice(), &Device::Cpu)?);
    Ok(())
}
