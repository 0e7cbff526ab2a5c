//! `import-weights`: the weights of another code base become a folder in Hugging Face layout.

use crate::cli::from_here;
use crate::{Error, Result};
use clap::Args;
use retort_models::{Card, Imported, ModelConfig, Pretrained, PretrainedConfig, import_weights, info};
use retort_nn::WeightFile;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A state dict of PyTorch (.pth, .pt; the zip format) or a safetensors file. It is read as data, nothing of it is run.
    file: PathBuf,
    /// Architecture, see `list models`.
    #[arg(long)]
    model: String,
    /// Number of classes.
    #[arg(long, default_value_t = ModelConfig::CIFAR100.classes)]
    classes: usize,
    /// Channels of the images.
    #[arg(long, default_value_t = ModelConfig::CIFAR100.in_channels)]
    channels: usize,
    /// Height and width of the images.
    #[arg(long, value_name = "HxW", default_value = "32x32")]
    image: Sides,
    /// Only names behind this one, for example `module_list.0`.
    #[arg(long)]
    prefix: Option<String>,
    /// Folder to write [default: the architecture's in the folder of models].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of models.
    #[arg(long, env = "RETORT_MODELS", default_value = "models", hide_env_values = true)]
    models: PathBuf,
}

/// Height and width, written `32x32`.
#[derive(Clone, Copy, Debug)]
struct Sides([usize; 2]);

impl FromStr for Sides {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let sides: Vec<usize> = text.split('x').filter_map(|side| side.parse().ok()).collect();
        match sides[..] {
            [height, width] if text.matches('x').count() == 1 => Ok(Self([height, width])),
            _ => Err("expected HxW, for example 32x32".into()),
        }
    }
}

impl ImportArgs {
    /// Writes the folder and says what was found; nothing is written unless everything fits.
    pub(crate) fn execute(&self) -> Result<String> {
        let folder = match &self.out {
            Some(folder) => folder.clone(),
            None => self.models.join(info(&self.model).map_err(Error::request)?.name),
        };
        if folder.join("config.json").exists() {
            let message = "holds a trained network already; remove it or choose another folder with --out";
            return Err(Error::file(&folder, message));
        }
        let config = ModelConfig { in_channels: self.channels, image: self.image.0, classes: self.classes };
        let file = WeightFile::open(&self.file)?;
        let imported = import_weights(&file, &self.model, &config, self.prefix.as_deref()).map_err(Error::request)?;
        let (naming, left_out) = (imported.naming, left_out(&imported));
        let pretrained = Pretrained { config: PretrainedConfig::new(&self.model, &config), tensors: imported.tensors };
        pretrained.save(&folder, &self.card()).map_err(Error::request)?;
        Ok(format!(
            "{}: {}, {} tensors\nnames: {naming}\nleft out: {left_out}\nwritten to {}\n",
            self.file.display(),
            file.describe(),
            pretrained.tensors.len(),
            from_here(&folder).display()
        ))
    }

    fn card(&self) -> Card {
        // The name without its folder: a card is published, and a path of this machine says nothing elsewhere.
        let file = self.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let [height, width] = self.image.0;
        let prefix = self.prefix.as_ref().map(|prefix| format!(" --prefix {prefix}")).unwrap_or_default();
        let (model, classes, channels) = (&self.model, self.classes, self.channels);
        Card {
            recipe: format!("Weights of `{file}`, imported; how they were trained is not part of that file."),
            command: format!(
                "cargo xtask import-weights {file} --model {model} --classes {classes} --channels {channels} --image \
                 {height}x{width}{prefix}"
            ),
            ..Card::default()
        }
    }
}

/// What was not needed, by the last part of its name: a network has one counter a batch norm.
fn left_out(imported: &Imported) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for name in &imported.left_out {
        let start = name.split('.').next().unwrap_or_default();
        let counter = name.ends_with("num_batches_tracked");
        let shown = if counter { "num_batches_tracked".into() } else { format!("{}.*", start.escape_debug()) };
        *counts.entry(shown).or_insert(0) += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} of {name}")).collect();
    if counts.is_empty() { "nothing".into() } else { counts.join(", ") }
}

/// Folders with a trained network, by architecture. A folder that is broken says so in its place.
pub(crate) fn trained(models: &Path, architecture: &str) -> Vec<String> {
    let Ok(folders) = std::fs::read_dir(models) else { return vec![] };
    let mut folders: Vec<PathBuf> = folders.filter_map(|folder| Some(folder.ok()?.path())).collect();
    folders.sort();
    let named =
        |folder: &PathBuf| folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let found = folders.iter().filter(|folder| folder.join("config.json").exists()).filter_map(|folder| {
        let name = named(folder);
        match PretrainedConfig::load(folder) {
            Ok(config) => (config.architecture == architecture).then_some(name),
            // Which architecture it would be is unknown, but for folders that are called like one.
            Err(error) => (name == architecture).then(|| format!("broken: {error}")),
        }
    });
    found.collect()
}
