//! `export-weights`: a finished run becomes a folder in Hugging Face layout.

use crate::cli::from_here;
use crate::data::DataArgs;
use crate::plan::RunSpec;
use crate::record::{Record, weights_digest};
use crate::runner::Layout;
use crate::splits::Splits;
use crate::{Error, Result};
use clap::Args;
use retort_datasets::Normalization;
use retort_models::{Card, Normalisation, Pretrained, PretrainedConfig};
use retort_nn::Checkpoint;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Id of a finished run, as `reproduce --plan` prints it.
    run: String,
    /// Name of the folder to write.
    #[arg(long)]
    name: String,
    /// Folder with the records and weights of the runs.
    #[arg(long, env = "RETORT_RUNS", default_value = "runs", hide_env_values = true)]
    out: PathBuf,
    /// Folder of models.
    #[arg(long, env = "RETORT_MODELS", default_value = "models", hide_env_values = true)]
    models: PathBuf,
    #[command(flatten)]
    data: DataArgs,
}

impl ExportArgs {
    /// Writes the folder, the run's record beside the weights, so that the run can be made again from it.
    pub(crate) fn execute(&self) -> Result<String> {
        let folder = self.models.join(&self.name);
        if self.name.is_empty() || self.name.contains(['/', '\\']) || self.name.starts_with('.') {
            return Err(Error::Request(format!("`--name` must be the name of a folder, found `{}`", self.name)));
        }
        if let Some(name) = Pretrained::FILES.into_iter().find(|name| folder.join(name).exists()) {
            let message = format!("holds a trained network already, or another `{name}`; choose another --name");
            return Err(Error::file(&folder, message));
        }
        let layout = Layout::new(&self.out);
        let path = Record::path(&layout.records(), &self.run);
        let record = Record::load(&path)?;
        let tensors = Checkpoint::load(&layout.weights(&self.run))?.tensors;
        if weights_digest(&tensors)? != record.result.weights_sha256 {
            return Err(Error::file(&layout.weights(&self.run), "these are not the weights that the record speaks of"));
        }
        let spec = &record.spec;
        let splits = Splits::of(&spec.data, &self.data.sources()?)?;
        if splits.spec() != spec.data {
            return Err(Error::file(&path, "the data here are not those of the record"));
        }
        let Normalization { mean, std } = splits.train.normalization().clone();
        let mut config = PretrainedConfig::new(&spec.model, &splits.model(spec.modality)?);
        config.data = Some(spec.data.name.clone());
        config.normalisation = Some(Normalisation { mean, std });
        let command = format!("cargo xtask rerun models/{}/{}.jsonl", self.name, record.id);
        let card =
            Card { recipe: recipe(spec)?, seed: Some(spec.seed), accuracy: Some(record.result.accuracy), command };
        record.save(&folder)?;
        Pretrained { config, tensors }.save(&folder, &card).map_err(Error::request)?;
        let accuracy = 100.0 * record.result.accuracy;
        Ok(format!("{}: test accuracy {accuracy:.2} %\nwritten to {}\n", record.id, from_here(&folder).display()))
    }
}

/// The recipe in words, with the typed parts as the manifest has them.
fn recipe(spec: &RunSpec) -> Result<String> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| Error::Failed(format!("recipe: {e}")));
    let RunSpec { data, epochs, batch_size, .. } = spec;
    Ok(format!(
        "{epochs} epochs on {} training images of `{}` in batches of {batch_size}. Losses `{}`, optimiser `{}`, schedule `{}`, \
         augmentation `{}`. The accuracy is that of the last epoch on {} test images.",
        data.train,
        data.name,
        json(serde_json::to_string(&spec.losses))?,
        json(serde_json::to_string(&spec.optimizer))?,
        json(serde_json::to_string(&spec.schedule))?,
        json(serde_json::to_string(&spec.augmentation))?,
        data.test,
    ))
}
