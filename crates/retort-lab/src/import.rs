//! `import-weights`: the weights of another code base become a folder in Hugging Face layout.

use crate::cli::from_here;
use crate::{Error, Result};
use clap::Args;
use retort_models::{Card, Imported, ModelConfig, Pretrained, PretrainedConfig, import_weights, info};
use retort_nn::{WeightFile, shown};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A state dict of PyTorch (.pth, .pt) or a safetensors file. It is read as data, nothing of it is run.
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
        // A link that leads nowhere is a stranger's, too.
        let taken = |name: &&str| folder.join(name).symlink_metadata().is_ok();
        if let Some(name) = Pretrained::FILES.into_iter().find(taken) {
            let message = format!(
                "holds a trained network already, or another `{name}`; remove it or choose another folder with --out"
            );
            return Err(Error::file(&folder, message));
        }
        let config = ModelConfig { in_channels: self.channels, image: self.image.0, classes: self.classes };
        let file = WeightFile::open(&self.file)?;
        let imported = import_weights(&file, &self.model, &config, self.prefix.as_deref()).map_err(Error::request)?;
        let (naming, left_out) = (imported.naming, left_out(&imported));
        let pretrained = Pretrained { config: PretrainedConfig::new(&self.model, &config), tensors: imported.tensors };
        if let Err(error) = pretrained.save(&folder, &self.card()) {
            // None of them was there before; what is half a folder would only be in the way.
            for name in Pretrained::FILES {
                let _ = std::fs::remove_file(folder.join(name));
            }
            return Err(Error::request(error));
        }
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
        let prefix = self.prefix.as_ref().map(|prefix| format!(" --prefix {}", quoted(prefix))).unwrap_or_default();
        let (model, classes, channels) = (quoted(&self.model), self.classes, self.channels);
        Card {
            recipe: format!("Weights of `{}`, imported; how they were trained is not part of that file.", shown(&file)),
            command: format!(
                "cargo xtask import-weights {} --model {model} --classes {classes} --channels {channels} --image \
                 {height}x{width}{prefix}",
                quoted(&file)
            ),
            ..Card::default()
        }
    }
}

/// A word as a shell takes it: as it is, or in single quotes.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/-+=:,@%".contains(c);
    // A card has one line for the command, whatever the name of a file holds.
    let word: String = word.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match !word.is_empty() && word.chars().all(plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// What was not needed, by the last part of its name: a network has one counter a batch norm.
fn left_out(imported: &Imported) -> String {
    const MOST: usize = 8;
    let mut counts = BTreeMap::new();
    for name in &imported.left_out {
        let start = name.split('.').next().unwrap_or_default();
        let counter = name.ends_with("num_batches_tracked");
        let group = if counter { "num_batches_tracked".into() } else { format!("{}.*", shown(start)) };
        *counts.entry(group).or_insert(0) += 1;
    }
    let mut lines: Vec<String> = counts.iter().take(MOST).map(|(name, count)| format!("{count} of {name}")).collect();
    if counts.len() > MOST {
        lines.push(format!("{} more kinds", counts.len() - MOST));
    }
    if lines.is_empty() { "nothing".into() } else { lines.join(", ") }
}

/// What lies in a folder of models.
#[derive(Default)]
pub(crate) struct Trained {
    /// Folders with a trained network, by architecture.
    folders: BTreeMap<String, Vec<String>>,
    /// Folders with a part of one, each with what is wrong.
    pub(crate) broken: Vec<String>,
}

impl Trained {
    /// Looks through the folders in `models` that hold a file of a trained network. Weights are not read.
    pub(crate) fn find(models: &Path) -> Self {
        let mut found = Self::default();
        let Ok(folders) = std::fs::read_dir(models) else { return found };
        let mut folders: Vec<PathBuf> = folders.filter_map(|folder| Some(folder.ok()?.path())).collect();
        folders.sort();
        let [weights, _, config] = Pretrained::FILES;
        for folder in folders.iter().filter(|folder| folder.join(config).exists() || folder.join(weights).exists()) {
            let name = folder.file_name().map(|name| shown(&name.to_string_lossy())).unwrap_or_default();
            match PretrainedConfig::load(folder) {
                Ok(_) if !folder.join(weights).is_file() => found.broken.push(format!("{name}: {weights} is missing")),
                Ok(config) => found.folders.entry(config.architecture).or_default().push(name),
                Err(error) => found.broken.push(format!("{name}: {error}")),
            }
        }
        found
    }

    /// Folders with a network of this architecture.
    pub(crate) fn of(&self, architecture: &str) -> &[String] {
        self.folders.get(architecture).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_of_a_shell() {
        for (word, expected) in [
            ("resnet20.pth", "resnet20.pth"),
            ("a b.pth", "'a b.pth'"),
            ("it's $(rm -rf ~).pth", "'it'\\''s $(rm -rf ~).pth'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert!(!quoted("two\nlines").contains('\n'));
    }
}
