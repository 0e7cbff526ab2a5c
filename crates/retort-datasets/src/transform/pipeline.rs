//! From stored pixels to what a network sees: transforms, modality, normalisation.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::modality::Viewer;
use super::{Image, Modality, TransformConfig};
use crate::{Dataset, Error, ImageShape, Result};

/// How a batch shows its images once: augmentation, and what of the image a network sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewConfig {
    /// Augmentation, in order; empty for none. Those after normalisation (cutout, random erasing) come last.
    pub transforms: Vec<TransformConfig>,
    /// What of the augmented image a network sees.
    pub modality: Modality,
    /// The view whose random numbers this one uses, by its place in the list; its own where absent.
    ///
    /// With the same transforms that gives the same crop, for a teacher and a student that see one image.
    pub same_as: Option<usize>,
}

impl ViewConfig {
    /// A view with these transforms.
    pub fn new(transforms: Vec<TransformConfig>) -> Self {
        Self { transforms, ..Self::default() }
    }

    /// Whether it takes a few microseconds an image: nothing but crops and flips.
    #[must_use]
    pub fn is_quick(&self) -> bool {
        use TransformConfig as T;
        let quick = |t: &T| matches!(t, T::RandomCrop { .. } | T::HorizontalFlip { .. } | T::VerticalFlip { .. });
        self.transforms.iter().all(quick) && self.modality == Modality::Stored
    }

    /// Checks the settings for the images of a data set: the shape that a network sees.
    ///
    /// # Errors
    ///
    /// A setting out of range for the shape that the image has there, a transform on pixels behind one on normalised values,
    /// operations on colours or values of pixels whose white is not 255, a modality that the images do not have.
    pub fn check(&self, dataset: &Dataset) -> Result<ImageShape> {
        Ok(Pipeline::new(self, dataset)?.shape())
    }

    /// Every `same_as` names a view before it.
    pub(crate) fn check_all(views: &[Self]) -> Result<()> {
        let wrong = |(place, view): (usize, &Self)| view.same_as.filter(|&other| other >= place).map(|o| (place, o));
        match views.iter().enumerate().find_map(wrong) {
            None => Ok(()),
            Some((place, other)) => {
                let expected = format!("a view before it, less than {place}");
                Err(Error::invalid("loader", format!("`same_as` of view {place}"), expected, other))
            }
        }
    }
}

/// Buffers of a worker, reused from row to row.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    image: Image,
    spare: Vec<u8>,
    plane: Vec<f32>,
}

/// A view of one data set, checked.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// Those on pixels.
    transforms: Vec<TransformConfig>,
    /// Those after normalisation.
    erasures: Vec<TransformConfig>,
    viewer: Viewer,
    /// Of the images in the data set.
    stored: ImageShape,
    /// Of the result.
    shape: ImageShape,
    /// Of the channels of the result; empty where the modality has none.
    means: Vec<f32>,
}

impl Pipeline {
    /// # Errors
    ///
    /// A setting out of range for the shape that the image has there, a transform on pixels after one on normalised
    /// values, operations on colours or values of pixels whose white is not 255, a modality that the images do not
    /// have.
    pub(crate) fn new(view: &ViewConfig, dataset: &Dataset) -> Result<Self> {
        let transforms = &view.transforms;
        let first = transforms.iter().position(TransformConfig::is_after_normalisation).unwrap_or(transforms.len());
        let (transforms, erasures) = transforms.split_at(first);
        let mut shape = dataset.shape();
        for transform in transforms {
            shape = transform.check(shape)?;
            check_white(transform, dataset)?;
        }
        let viewer = Viewer::new(view.modality, shape, dataset)?;
        let seen = view.modality.check(shape)?;
        let means = if view.modality.is_normalised() { dataset.normalization().mean.clone() } else { Vec::new() };
        for (place, erasure) in (first..).zip(erasures) {
            if !erasure.is_after_normalisation() {
                let what = format!("transform {place}, `{}`", erasure.kind());
                let expected = "the transforms on pixels before those on normalised values";
                return Err(Error::invalid("view", what, expected, format!("`{}` before it", erasures[0].kind())));
            }
            erasure.check(seen)?;
            erasure.check_means(seen, &means)?;
        }
        let (transforms, erasures) = (transforms.to_vec(), erasures.to_vec());
        Ok(Self { transforms, erasures, viewer, stored: dataset.shape(), shape: seen, means })
    }

    /// Shape of the result.
    pub(crate) fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Writes what the network sees of a stored image.
    pub(crate) fn run(&self, stored: &[u8], target: &mut [f32], scratch: &mut Scratch, rng: &mut ChaCha8Rng) {
        let Scratch { image, spare, plane } = scratch;
        if self.transforms.is_empty() {
            self.viewer.write(stored, target, plane);
        } else {
            image.assign(self.stored, stored);
            self.transforms.iter().for_each(|transform| transform.run(image, spare, rng));
            self.viewer.write(image.pixels(), target, plane);
        }
        self.erasures.iter().for_each(|erasure| erasure.erase(target, self.shape, &self.means, rng));
    }
}

/// What changes values takes 255 for white.
fn check_white(transform: &TransformConfig, dataset: &Dataset) -> Result<()> {
    let max = dataset.max_value();
    if max == 255.0 || !transform.changes_values() {
        return Ok(());
    }
    let what = format!("largest pixel value of `{}` for `{}`", dataset.name(), transform.kind());
    Err(Error::invalid("view", what, "255", max))
}

#[cfg(test)]
pub(super) fn view(view: &ViewConfig, dataset: &Dataset, row: usize, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
    let pipeline = Pipeline::new(view, dataset)?;
    let mut target = vec![f32::NAN; pipeline.shape().bytes().unwrap_or(0)];
    pipeline.run(&dataset.image(row)?, &mut target, &mut Scratch::default(), rng);
    Ok(target)
}
