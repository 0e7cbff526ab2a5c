//! What frozen teachers say about training images that never change.

use super::Offline;
use crate::system::SystemContext;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use retort_datasets::{Dataset, Loader, LoaderConfig, Sampling, ViewConfig};
use retort_nn::{Checkpoint, Mode, Network, Outputs, Taps, Tensors, no_grad};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Images in a batch; it changes no number.
const ROWS: usize = 250;

/// Numbers that a table may hold at most: 256 million, a gigabyte.
const MOST: usize = 1 << 28;

/// Logits and embeddings of frozen teachers for every row of a training set, computed once.
///
/// It is for teachers whose images are not augmented, and losses that read neither their maps nor their batch statistics.
/// The rows are computed in batches of 250, so their last digits are not those of a batch of another size (matrix products
/// round differently); for the same reason a run says whether it uses a table. With a folder, tables are kept there as
/// safetensors under a name that is a hash of teacher, rows and view, and are read by later runs.
///
/// Nothing is computed before the first row is asked for.
pub struct TeacherTable {
    teachers: Vec<Teacher>,
    train: Dataset,
    view: ViewConfig,
}

/// A teacher, and what it says once somebody has asked.
struct Teacher {
    network: Arc<dyn Network>,
    path: Option<PathBuf>,
    said: OnceLock<Said>,
}

/// What a teacher says, row by row.
struct Said {
    /// `[N, K]`.
    logits: Tensor,
    /// `[N, D]`.
    embedding: Tensor,
}

impl TeacherTable {
    /// The table for an objective.
    ///
    /// # Errors
    ///
    /// Augmented images, a loss that reads maps or batch statistics, more numbers than a table may hold, a file that cannot
    /// be written.
    pub(super) fn of(objective: &Offline, ctx: &SystemContext<'_>) -> Result<Self> {
        let needs = objective.needs();
        let views = &ctx.recipe.plan.views;
        let plain = |view: &&ViewConfig| view.transforms.is_empty();
        let numbers = |network: &dyn Network| network.spec().classes.saturating_add(network.spec().embedding);
        let size = objective.teachers().iter().map(|teacher| numbers(teacher.as_ref())).fold(0, usize::saturating_add);
        let size = size.saturating_mul(ctx.train.len());
        let refused = |message: String| Err(Error::Config { what: "teacher_table".into(), message });
        let Some(view) = views.get(1).or(views.first()).filter(plain) else {
            return refused("the teachers' images are augmented; `teacher_augmentation = []` shows them plain".into());
        };
        if needs.taps != Taps::default() || needs.batch_statistics {
            return refused(
                "holds logits and embeddings, but a loss reads the teachers' maps or batch statistics".into(),
            );
        }
        if !needs.teacher {
            return refused("no loss of the row reads a teacher".into());
        }
        if size > MOST {
            return refused(format!("may hold at most {MOST} numbers, these teachers and rows make {size}"));
        }
        let teachers = objective.teachers().iter().zip(ctx.teachers).map(|(network, trained)| {
            let name = name(&trained.model, &trained.weights, ctx.train, view)?;
            let path = ctx.teacher_outputs.as_ref().map(|folder| folder.join(format!("{name}.safetensors")));
            Ok(Teacher { network: Arc::clone(network), path, said: OnceLock::new() })
        });
        Ok(Self { teachers: teachers.collect::<Result<_>>()?, train: ctx.train.clone(), view: view.clone() })
    }

    /// What the teachers say about these rows.
    ///
    /// # Errors
    ///
    /// A row that the training set does not have; in the first call whatever the networks refuse, and a file that cannot be
    /// written.
    pub fn rows(&self, index: &[u32], device: &Device) -> Result<Vec<Outputs>> {
        let index = Tensor::from_slice(index, index.len(), &Device::Cpu)?;
        let of = |table: &Tensor| table.index_select(&index, 0)?.to_device(device);
        let outputs = self.teachers.iter().map(|teacher| {
            let said = teacher.said(&self.train, &self.view, device)?;
            let (logits, embedding) = (of(&said.logits)?, of(&said.embedding)?);
            Ok(Outputs { logits, embedding, maps: Vec::new(), pre_activations: Vec::new() })
        });
        outputs.collect()
    }
}

impl Teacher {
    fn said(&self, train: &Dataset, view: &ViewConfig, device: &Device) -> Result<&Said> {
        if let Some(said) = self.said.get() {
            return Ok(said);
        }
        let network = self.network.as_ref();
        let said = match &self.path {
            Some(path) => Said::kept(network, train, view, device, path)?,
            None => Said::compute(network, train, view, device)?,
        };
        Ok(self.said.get_or_init(|| said))
    }
}

impl Said {
    /// From the file if it is there and says what was written; computed and kept otherwise.
    fn kept(network: &dyn Network, train: &Dataset, view: &ViewConfig, device: &Device, path: &Path) -> Result<Self> {
        let spec = network.spec();
        if let Ok(Checkpoint { mut tensors, meta }) = Checkpoint::load(path)
            && let (Some(logits), Some(embedding)) = (tensors.remove("logits"), tensors.remove("embedding"))
            && logits.dims() == [train.len(), spec.classes]
            && embedding.dims() == [train.len(), spec.embedding]
        {
            let said = Self { logits, embedding };
            if said.digest().is_ok_and(|found| meta["sha256"].as_str() == Some(found.as_str())) {
                return Ok(said);
            }
        }
        let said = Self::compute(network, train, view, device)?;
        let tensors = [("logits", &said.logits), ("embedding", &said.embedding)];
        let tensors = tensors.map(|(name, tensor)| (name.to_string(), tensor.clone()));
        let meta = serde_json::json!({ "model": spec.name, "sha256": said.digest()? });
        Checkpoint { tensors: Tensors::from(tensors), meta }.save(path)?;
        Ok(said)
    }

    /// A hash of all values: a disk may lose bits without losing the shape.
    fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        values(&mut hash, &self.logits)?;
        values(&mut hash, &self.embedding)?;
        Ok(hex(&hash.finalize()))
    }

    fn compute(network: &dyn Network, train: &Dataset, view: &ViewConfig, device: &Device) -> Result<Self> {
        let views = vec![ViewConfig { same_as: None, ..view.clone() }];
        let sampling = Sampling::Sequential;
        let config = LoaderConfig { batch_size: ROWS, sampling, drop_last: false, views, seed: 0 };
        let (mut logits, mut embedding) = (Vec::new(), Vec::new());
        for batch in Loader::new(train.clone(), config)?.epoch(0) {
            let images = batch?.images.to_device(device)?;
            let outputs = no_grad(|| network.forward(&images, Mode::Eval, Taps::default()))?;
            // Looked up on the host, so that a table is no burden to the device.
            logits.push(outputs.logits.detach().to_device(&Device::Cpu)?);
            embedding.push(outputs.embedding.detach().to_device(&Device::Cpu)?);
        }
        Ok(Self { logits: Tensor::cat(&logits, 0)?, embedding: Tensor::cat(&embedding, 0)? })
    }
}

/// A hash of what decides every number of a table.
fn name(model: &str, weights: &Tensors, train: &Dataset, view: &ViewConfig) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{} {model}\n", env!("CARGO_PKG_VERSION")));
    for (name, tensor) in weights {
        hash.update(format!("{name} {:?}\n", tensor.dims()));
        values(&mut hash, tensor)?;
    }
    let (rows, scale) = (train.digest(), train.normalization());
    hash.update(format!("{rows} {scale:?} {} {:?}", train.max_value(), view.modality));
    Ok(hex(&hash.finalize()[..12]))
}

fn values(hash: &mut Sha256, tensor: &Tensor) -> Result<()> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    hash.update(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
