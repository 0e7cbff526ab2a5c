//! Trained networks as folders, in the layout of the Hugging Face hub.

use crate::import::{exact_weights, unfoldable};
use crate::{Error, ModelConfig, Result, hub, info};
use candle_core::{DType, Device, Tensor};
use retort_nn::{Checkpoint, Network, Params, Tensors, WeightFile, shown, write_atomically};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::Path;

/// What the network is and what its images look like.
pub(crate) const CONFIG: &str = "config.json";
/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The card, for people.
pub(crate) const CARD: &str = "README.md";

/// The revision of `config.json` that this version writes and reads.
const FORMAT: u32 = 1;

/// More than any configuration has.
const MAX_CONFIG: u64 = 64 << 10;

/// `config.json`: everything that is needed to build the network and to feed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainedConfig {
    /// Revision of this format, 1.
    format: u32,
    /// Name in the registry.
    pub architecture: String,
    /// Channels of the images.
    pub in_channels: usize,
    /// Height and width of the images.
    pub image: [usize; 2],
    /// Number of classes.
    pub classes: usize,
    /// Data set that the network was trained on, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What is done to the images, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
}

/// The network sees `(pixel - mean) / std`, channel by channel, with pixels in `[0, 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// One number a channel.
    pub mean: Vec<f32>,
    /// One number a channel, positive.
    pub std: Vec<f32>,
}

impl PretrainedConfig {
    /// For a network of the registry; data and normalisation are unknown.
    #[must_use]
    pub fn new(architecture: &str, config: &ModelConfig) -> Self {
        Self {
            format: FORMAT,
            architecture: architecture.to_string(),
            in_channels: config.in_channels,
            image: config.image,
            classes: config.classes,
            data: None,
            normalisation: None,
        }
    }

    /// What the network is built for.
    #[must_use]
    pub fn model(&self) -> ModelConfig {
        ModelConfig { in_channels: self.in_channels, image: self.image, classes: self.classes }
    }

    /// Reads `config.json` of a folder, and nothing else of it.
    ///
    /// # Errors
    ///
    /// Names the file, the line and what is wrong: no JSON, an unknown field, another revision, an unknown
    /// architecture, numbers that no network has.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let refuse = |message: String| Error::File { path: path.display().to_string(), message };
        let about = std::fs::metadata(&path).map_err(|e| refuse(format!("cannot read: {e}")))?;
        if !about.is_file() || about.len() > MAX_CONFIG {
            return Err(refuse(format!("expected a file of at most {MAX_CONFIG} bytes")));
        }
        let text = std::fs::read(&path).map_err(|e| refuse(format!("cannot read: {e}")))?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| refuse(field_error(&text, &e)))?;
        config.check().map_err(refuse)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("`format` is {}, this version reads {FORMAT}", self.format));
        }
        // Builds the network without weights, so that numbers out of range are found here.
        info(&self.architecture).and_then(|info| info.spec(&self.model())).map_err(|e| e.to_string())?;
        let Some(Normalisation { mean, std }) = &self.normalisation else { return Ok(()) };
        if mean.len() != self.in_channels || std.len() != self.in_channels {
            let (means, stds) = (mean.len(), std.len());
            return Err(format!("`normalisation` has {means} means and {stds} stds for {} channels", self.in_channels));
        }
        if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(format!("`normalisation` must have finite means and positive stds, found {mean:?}, {std:?}"));
        }
        Ok(())
    }
}

/// What serde says, behind the names of the fields whose values are refused: by itself it says line and column only.
fn field_error(text: &[u8], error: &serde_json::Error) -> String {
    let said = one_line(&error.to_string());
    let fields: Map<String, Value> = serde_json::from_slice(text).unwrap_or_default();
    let wrong: Vec<String> = fields.iter().filter_map(|(name, value)| wrong_field(name, value)).collect();
    if wrong.is_empty() { said } else { format!("{}: {said}", wrong.join(", ")) }
}

/// The name of a field of [`PretrainedConfig`] whose value is of another kind.
fn wrong_field(name: &str, value: &Value) -> Option<String> {
    fn fits<T: DeserializeOwned>(value: &Value) -> bool {
        serde_json::from_value::<T>(value.clone()).is_ok()
    }
    let fits = match (name, value) {
        ("format", _) => fits::<u32>(value),
        ("architecture", _) => fits::<String>(value),
        ("in_channels" | "classes", _) => fits::<usize>(value),
        ("image", _) => fits::<[usize; 2]>(value),
        ("data", _) => fits::<Option<String>>(value),
        ("normalisation", Value::Object(rows)) => {
            let mut rows = ["mean", "std"].into_iter().filter_map(|key| Some((key, rows.get(key)?)));
            return rows.find(|(_, row)| !fits::<Vec<f32>>(row)).map(|(key, _)| format!("`normalisation.{key}`"));
        }
        ("normalisation", _) => value.is_null(),
        _ => true,
    };
    (!fits).then(|| format!("`{name}`"))
}

/// A message that may repeat text of the file: without control characters, and cut in the middle, because its end says
/// where.
fn one_line(message: &str) -> String {
    const MOST: usize = 200;
    let plain: Vec<char> = message.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match plain.len() > 2 * MOST {
        true => plain[..MOST].iter().chain(&['.'; 3]).chain(&plain[plain.len() - MOST..]).collect(),
        false => plain.into_iter().collect(),
    }
}

/// What the card says beside the facts that follow from the network: where the weights come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    /// How the network was trained or where it was taken from, a sentence or two.
    pub recipe: String,
    /// Seed of the training.
    pub seed: Option<u64>,
    /// Test accuracy in `[0, 1]`.
    pub accuracy: Option<f64>,
    /// The command that made the folder.
    pub command: String,
}

/// A trained network.
#[derive(Clone, Debug)]
pub struct Pretrained {
    /// What it is.
    pub config: PretrainedConfig,
    /// All weights and buffers, float32 on the CPU.
    pub tensors: Tensors,
}

impl Pretrained {
    /// The files of a folder, in the order in which they are written.
    pub const FILES: [&'static str; 3] = [WEIGHTS, CARD, CONFIG];

    /// Reads a folder: `config.json` and `model.safetensors`.
    ///
    /// # Errors
    ///
    /// As for [`PretrainedConfig::load`] and [`WeightFile::open`]; [`Error::Weights`] if the weights are not exactly
    /// those of the network.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = PretrainedConfig::load(folder)?;
        let path = folder.join(WEIGHTS);
        let file = WeightFile::open(&path)?;
        if !file.is_safetensors() {
            let message = "is no safetensors file; `cargo xtask import-weights` turns PyTorch files into such a folder";
            return Err(Error::File { path: path.display().to_string(), message: message.into() });
        }
        let tensors = exact_weights(&file, &config.architecture, &config.model())?;
        Ok(Self { config, tensors })
    }

    /// Writes the folder: the card, `model.safetensors`, and `config.json` last, so that a folder with one is whole.
    /// Files of these names ([`Pretrained::FILES`]) are replaced.
    ///
    /// # Errors
    ///
    /// A configuration that no network has, weights that are not those of the network or not finite, by themselves or
    /// folded (all before anything is written), or a file that cannot be written.
    pub fn save(&self, folder: &Path, card: &Card) -> Result<()> {
        let path = folder.join(CONFIG);
        let refuse = |message: String| Error::File { path: path.display().to_string(), message };
        self.config.check().map_err(refuse)?;
        self.frozen(&Device::Cpu)?;
        if let Some((name, _)) = self.tensors.iter().find(|(_, tensor)| !is_finite(tensor).unwrap_or(false)) {
            return Err(refuse(format!("nothing was written: `{}` holds values that are not finite", shown(name))));
        }
        if let Some(message) = unfoldable(&self.tensors)? {
            return Err(refuse(format!("nothing was written: {message}")));
        }
        let meta = serde_json::json!({ "architecture": self.config.architecture });
        let weights = folder.join(WEIGHTS);
        Checkpoint { tensors: self.tensors.clone(), meta }.save(&weights)?;
        let bytes = std::fs::read(&weights).map_err(|e| refuse(format!("cannot read back the weights: {e}")))?;
        write_atomically(&folder.join(CARD), card.text(&self.config, &hex(&Sha256::digest(&bytes)))?.as_bytes())?;
        let mut text = serde_json::to_string_pretty(&self.config).map_err(|e| refuse(e.to_string()))?;
        text.push('\n');
        Ok(write_atomically(&path, text.as_bytes())?)
    }

    /// The network with nothing trainable: it builds no graph and folds its batch norms.
    ///
    /// # Errors
    ///
    /// Weights that are not those of the network.
    pub fn frozen(&self, device: &Device) -> Result<Box<dyn Network>> {
        self.network(&Params::frozen(self.tensors.clone(), DType::F32, device))
    }

    /// The network with trainable copies of the weights.
    ///
    /// # Errors
    ///
    /// Weights that are not those of the network.
    pub fn trainable(&self, device: &Device) -> Result<(Params, Box<dyn Network>)> {
        let params = Params::from_tensors(self.tensors.clone(), DType::F32, device);
        let network = self.network(&params)?;
        Ok((params, network))
    }

    fn network(&self, params: &Params) -> Result<Box<dyn Network>> {
        let network = crate::build(&self.config.architecture, &self.config.model(), &params.root())?;
        match params.unused().first() {
            None => Ok(network),
            Some(name) => Err(Error::Config {
                model: self.config.architecture.clone(),
                message: format!("the weights hold `{}`, which the network does not have", shown(name)),
            }),
        }
    }
}

/// Loads a trained network: from a folder, else from the cache of the Hugging Face hub as `owner/name`.
///
/// The cache is looked up without any network. With the feature `hub` a repository that is not there is fetched into
/// it, unless `HF_HUB_OFFLINE` is set.
///
/// ```no_run
/// let teacher = retort_models::load_pretrained("models/resnet20-fashion-mnist")?;
/// let network = teacher.frozen(&candle_core::Device::Cpu)?;
/// # Ok::<(), retort_models::Error>(())
/// ```
///
/// # Errors
///
/// As for [`Pretrained::load`]; a name that is neither a folder nor `owner/name`, or that is not in the cache: the
/// message says where it was looked for and what to do.
pub fn load_pretrained(source: &str) -> Result<Pretrained> {
    let folder = Path::new(source);
    if folder.is_dir() {
        return Pretrained::load(folder);
    }
    Pretrained::load(&hub::find(source)?)
}

impl Card {
    /// The card: a YAML header for programs, then the facts for people.
    fn text(&self, config: &PretrainedConfig, sha256: &str) -> Result<String> {
        // A JSON value in one line is a YAML value too, quoting included.
        let quoted = |value: &str| serde_json::Value::from(value).to_string();
        let mut text =
            String::from("---\nlibrary_name: retort\ntags: [image-classification, knowledge-distillation]\n");
        let mut line = |key: &str, value: String| text.push_str(&format!("{key}: {value}\n"));
        line("architecture", quoted(&config.architecture));
        if let Some(data) = &config.data {
            line("datasets", format!("[{}]", quoted(data)));
        }
        line("recipe", quoted(&self.recipe));
        if let Some(seed) = self.seed {
            line("seed", seed.to_string());
        }
        if let Some(accuracy) = self.accuracy {
            line("accuracy", accuracy.to_string());
        }
        line("command", quoted(&self.command));
        line("sha256", quoted(sha256));
        text.push_str("---\n");
        text.push_str(&self.body(config)?);
        Ok(text)
    }

    fn body(&self, config: &PretrainedConfig) -> Result<String> {
        let mut text = format!("\n# {}\n\n{}\n\n{}\n", config.architecture, self.recipe.trim(), facts(config)?);
        if let Some(accuracy) = self.accuracy {
            text.push_str(&format!("Test accuracy: {:.2} %.\n\n", 100.0 * accuracy));
        }
        text.push_str(&format!("Made by:\n\n```\n{}\n```\n\n", self.command.trim()));
        text.push_str("Load it by `retort_models::load_pretrained(\"PATH OF THIS FOLDER\")`.\n");
        Ok(text)
    }
}

/// What a card says about the network itself, as a table; it follows from `config.json`, so a stale card can be told.
///
/// # Errors
///
/// As for [`crate::ModelInfo::spec`].
pub fn facts(config: &PretrainedConfig) -> Result<String> {
    let info = info(&config.architecture)?;
    let (spec, parameters) = (info.spec(&config.model())?, info.parameter_count(&config.model())?);
    let [height, width] = config.image;
    let maps = spec.maps.iter().map(|map| format!("{}x{}x{}", map.channels, map.height, map.width));
    let mut text = String::from("| | |\n|---|---|\n");
    let mut row = |what: &str, value: String| text.push_str(&format!("| {what} | {value} |\n"));
    row("images", format!("{}x{height}x{width}", config.in_channels));
    row("classes", config.classes.to_string());
    row("parameters", parameters.to_string());
    row("multiply-adds", spec.multiply_adds.to_string());
    row("feature maps", maps.collect::<Vec<_>>().join(" "));
    row("embedding", spec.embedding.to_string());
    row("source of the architecture", info.source.to_string());
    if let Some(Normalisation { mean, std }) = &config.normalisation {
        row("normalisation", format!("mean {mean:?}, std {std:?}, of pixels in [0, 1]"));
    }
    Ok(text)
}

fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
