//! From a specification to phases: what the networks of a run are built for, and what they see.

use crate::plan::RunSpec;
use crate::splits::{DataSets, Splits};
use crate::{Error, Result};
use candle_core::Device;
use retort_datasets::{Dataset, Modality, ViewConfig};
use retort_models::ModelConfig;
use retort_nn::{Seed, Tensors};
use retort_trainers::engine::{BatchPlan, Phase};
use retort_trainers::{Recipe, SystemContext, Teachers, Trained};
use std::path::PathBuf;

/// The rows of a run, and what its network is built for.
pub(crate) struct RunData {
    /// Training rows, without labels where the run may not see them.
    pub(crate) train: Dataset,
    /// Test rows.
    pub(crate) test: Dataset,
    /// Class of every training row; 0 throughout where labels are taken away, for losses that only count rows.
    pub(crate) labels: Vec<u32>,
    pub(crate) model: ModelConfig,
}

impl RunData {
    pub(crate) fn of(spec: &RunSpec, rows: &DataSets) -> Result<Self> {
        let splits: &Splits = rows.find(&spec.data)?;
        let mut model = splits.model(spec.modality)?;
        let (train, test) = (splits.train.clone(), splits.test.clone());
        if !spec.unlabelled {
            return Ok(Self { labels: train.labels().to_vec(), train, test, model });
        }
        // Without labels of its own a student can only speak of the teacher's classes.
        if let Some(teacher) = &spec.teacher {
            model.classes = rows.find(&teacher.data)?.train.classes();
        }
        let train = train.without_labels().map_err(Error::request)?;
        Ok(Self { labels: vec![0; train.len()], train, test, model })
    }
}

/// What the networks of a run see of training images.
fn views(spec: &RunSpec) -> Vec<ViewConfig> {
    let own = ViewConfig { transforms: spec.augmentation.clone(), modality: spec.modality, same_as: None };
    if spec.system.views() > 1 {
        return vec![own; spec.system.views()];
    }
    let modality = teacher_modality(spec);
    match (&spec.teacher_augmentation, modality) {
        (None, None) => vec![own],
        (None, Some(modality)) => vec![own.clone(), ViewConfig { modality, same_as: Some(0), ..own }],
        (Some(transforms), modality) => {
            let modality = modality.unwrap_or(spec.modality);
            vec![own, ViewConfig { transforms: transforms.clone(), modality, same_as: None }]
        }
    }
}

/// What of an image the teachers see, where it is not what the student sees.
fn teacher_modality(spec: &RunSpec) -> Option<Modality> {
    spec.teacher.as_ref().map(|teacher| teacher.modality).filter(|modality| *modality != spec.modality)
}

/// What the networks of a run see of test images.
pub(crate) fn test_views(spec: &RunSpec) -> Vec<ViewConfig> {
    let view = |modality| ViewConfig { modality, ..ViewConfig::default() };
    [Some(spec.modality), teacher_modality(spec)].into_iter().flatten().map(view).collect()
}

/// The phases of a run whose teachers are finished.
pub(crate) fn phases(
    spec: &RunSpec,
    data: &RunData,
    teachers: &[Trained],
    teacher_outputs: Option<PathBuf>,
) -> Result<Vec<Phase>> {
    let recipe = Recipe {
        epochs: spec.epochs,
        plan: BatchPlan { batch_size: spec.batch_size, sampling: spec.batches, views: views(spec) },
        optimizer: spec.optimizer.clone(),
        schedule: spec.schedule.clone(),
    };
    let teachers = if spec.system.teachers() == Teachers::None { &[] } else { teachers };
    let context = SystemContext {
        student: &spec.model,
        model: data.model,
        losses: &spec.losses,
        teachers,
        train: &data.train,
        recipe: &recipe,
        teacher_outputs,
        seed: Seed::root(spec.seed),
        device: Device::Cpu,
    };
    Ok(spec.system.phases(&context)?)
}

/// The network of a run with these weights.
pub(crate) fn trained(spec: &RunSpec, data: &RunData, weights: Tensors) -> Trained {
    Trained { model: spec.model.clone(), config: data.model, weights, classifies: spec.classifies() }
}
