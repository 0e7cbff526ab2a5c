//! Weights from a file of any program.

use crate::safetensors_file::{self, SafetensorsFile};
use crate::torch_file::{TorchFile, shown};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file of trained weights by whatever program: what is in it, and one tensor after the other.
///
/// Read are safetensors and what `torch.save` writes for a state dict (the zip format of PyTorch 1.6 and newer, and the
/// row of pickles that PyTorch 0.1.11 to 1.5 wrote, from Python 2 too), told apart by their content. All are read as
/// data: nothing of a file is ever run, whatever it asks for, and nothing is allocated by a size that a file claims.
///
/// In a PyTorch file the state dict may be the whole or stand under `model`, `state_dict` or `net`, beside numbers
/// (NumPy's too), texts, lists, an optimiser's state and command line options (`argparse.Namespace`), which are read
/// over. Every other object (a whole module, an array) is refused by its name, because it can only be restored by
/// running code.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use retort_nn::{Checkpoint, Tensors, WeightFile};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("weights.safetensors");
/// let tensors = Tensors::from([("fc.bias".to_string(), Tensor::new(&[1f32, 2.0], &Device::Cpu)?)]);
/// Checkpoint { tensors, meta: serde_json::Value::Null }.save(&path)?;
/// let file = WeightFile::open(&path)?;
/// assert_eq!(file.entries()["fc.bias"].shape, [2]);
/// assert_eq!(file.tensor("fc.bias")?.to_vec1::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), retort_nn::Error>(())
/// ```
pub struct WeightFile {
    path: PathBuf,
    content: Content,
    entries: BTreeMap<String, WeightInfo>,
}

enum Content {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

/// One tensor of a [`WeightFile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// Type of its elements, by PyTorch's name (`float32`, `int64` ..).
    pub dtype: String,
    /// Whether the elements are floating-point numbers that can be read: float16, bfloat16, float32, float64.
    pub is_float: bool,
}

/// More than the weights of any network here; a larger file is a slip that would only exhaust the memory.
const MAX_FILE: u64 = 4 << 30;

impl WeightFile {
    /// Reads the file and checks its structure; values are looked at by [`WeightFile::tensor`].
    ///
    /// # Errors
    ///
    /// Names the file and what is wrong with it: not a regular file, cut off, damaged, another format, a pickle that asks
    /// for anything else than tensors and plain values.
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |message| Error::file(path, message);
        let bytes = read(path)?;
        let content = if TorchFile::is_one(&bytes) {
            Content::Torch(TorchFile::parse(bytes).map_err(refuse)?)
        } else if let Some(reason) = foreign(&bytes) {
            return Err(refuse(reason));
        } else {
            Content::Safetensors(SafetensorsFile::parse(bytes).map_err(refuse)?)
        };
        Ok(Self { path: path.to_path_buf(), entries: content.entries(), content })
    }

    /// All tensors by name.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, WeightInfo> {
        &self.entries
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is, for people: its format, and the key under which the weights were.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.content {
            Content::Safetensors(_) => "safetensors".into(),
            Content::Torch(file) => {
                let format = if file.legacy { "PyTorch (format before 1.6)" } else { "PyTorch" };
                match file.container {
                    Some(key) => format!("{format}, state dict under `{key}`"),
                    None => format!("{format}, a bare state dict"),
                }
            }
        }
    }

    /// Whether the file is in safetensors format.
    #[must_use]
    pub fn is_safetensors(&self) -> bool {
        matches!(self.content, Content::Safetensors(_))
    }

    /// Keys beside the tensors that hold something else.
    #[must_use]
    pub fn others(&self) -> Vec<&str> {
        match &self.content {
            Content::Safetensors(_) => vec![],
            Content::Torch(file) => file.others.iter().map(String::as_str).collect(),
        }
    }

    /// One tensor as float32 on the CPU, row-major, with its own memory.
    ///
    /// A value that is not finite is refused: a network with one NaN weight answers NaN to everything, so such a file is
    /// damaged, or was saved by a training that had failed.
    ///
    /// # Errors
    ///
    /// Names the file and the tensor: it is missing, is not of floating-point numbers, or holds NaN or infinity (also a
    /// float64 that float32 cannot hold).
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let refuse = |message: String| Error::file(&self.path, message);
        let info = self.entries.get(name).ok_or_else(|| refuse(format!("`{}` is missing", shown(name))))?;
        if !info.is_float {
            return Err(refuse(format!("`{}` is {}, not a floating-point number", shown(name), info.dtype)));
        }
        let tensor = match &self.content {
            Content::Safetensors(file) => file.tensor(name),
            Content::Torch(file) => file.tensor(name),
        };
        let tensor = tensor.map_err(refuse)?.to_dtype(DType::F32)?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        if let Some(first) = values.iter().position(|value| !value.is_finite()) {
            let bad = values.iter().filter(|value| !value.is_finite()).count();
            let message = format!(
                "`{}`: {bad} of {} values are not finite in float32, the first at {first}",
                shown(name),
                values.len()
            );
            return Err(refuse(message));
        }
        Ok(tensor)
    }
}

impl Content {
    fn entries(&self) -> BTreeMap<String, WeightInfo> {
        match self {
            Self::Safetensors(file) => {
                let info = |info: &safetensors::tensor::TensorInfo| WeightInfo {
                    shape: info.shape.clone(),
                    dtype: safetensors_file::type_name(info.dtype),
                    is_float: safetensors_file::float(info.dtype).is_some(),
                };
                file.infos().into_iter().map(|(name, found)| (name, info(found))).collect()
            }
            Self::Torch(file) => {
                let info = |view: &crate::torch_file::View| WeightInfo {
                    shape: view.shape.clone(),
                    dtype: view.element.name.to_string(),
                    is_float: view.element.float.is_some(),
                };
                file.views.iter().map(|(name, view)| (name.clone(), info(view))).collect()
            }
        }
    }
}

/// The whole of a regular file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let refuse = |message: String| Error::file(path, message);
    let cannot = |e: std::io::Error| refuse(format!("cannot read: {e}"));
    // Asked before opening: a pipe would wait for its writer.
    let about = std::fs::metadata(path).map_err(cannot)?;
    if !about.is_file() {
        return Err(refuse(if about.is_dir() { "is a folder, not a file" } else { "is not a regular file" }.into()));
    }
    if about.len() > MAX_FILE {
        return Err(refuse(format!("has {} bytes, expected at most {MAX_FILE}", about.len())));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file that grows is noticed.
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    Ok(bytes)
}

/// Why a file is neither PyTorch's nor safetensors, as far as its first bytes tell.
fn foreign(bytes: &[u8]) -> Option<String> {
    const LFS: &[u8] = b"version https://git-lfs";
    /// Where a tar file says that it is one.
    const TAR_AT: usize = 257;
    match bytes {
        [] => Some("is empty".into()),
        // Such a beginning may also be the length of a header of safetensors, which has `{` in this place.
        [0x80, 2..=5, ..] if bytes.get(8) != Some(&b'{') => Some(
            "a pickle that does not begin as those of torch.save do: of another protocol than 2, cut off, damaged, or \
             written by something else; save the weights by torch.save(model.state_dict(), ..)"
                .into(),
        ),
        _ if bytes.get(TAR_AT..).is_some_and(|rest| rest.starts_with(b"ustar")) => Some(
            "a tar file: the format of torch.save before PyTorch 0.1.11, which is not read; if you trust the file, load \
             and save it once more: torch.save(torch.load(\"OLD.pth\", weights_only=False), \"NEW.pth\")"
                .into(),
        ),
        _ if bytes.starts_with(LFS) => Some("a pointer of Git LFS, not the weights; fetch them by `git lfs pull`".into()),
        [b'<', ..] => Some("a web page, not weights".into()),
        // A header is JSON; a file that has none is named here, because it is no safetensors file at all.
        [_, _, _, _, _, _, _, _, first, ..] if *first != b'{' => {
            let start: String = bytes[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("neither safetensors nor a file of torch.save: it begins with {start}"))
        }
        _ => None,
    }
}
