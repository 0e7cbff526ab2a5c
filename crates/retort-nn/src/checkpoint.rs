//! Files: safetensors with one JSON entry of metadata, written atomically.

use crate::params::Tensors;
use crate::safetensors_file::SafetensorsFile;
use crate::weight_file::read;
use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The single metadata key: with several, safetensors writes them in a random order.
const META_KEY: &str = "retort";

/// Tensors by name with a JSON value about them.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use retort_nn::{Checkpoint, Tensors};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("weights.safetensors");
/// let tensors = Tensors::from([("w".to_string(), Tensor::new(&[1f32, 2.0], &Device::Cpu)?)]);
/// Checkpoint { tensors, meta: serde_json::json!({"epoch": 3}) }.save(&path)?;
/// let back = Checkpoint::load(&path)?;
/// assert_eq!(back.meta["epoch"], 3);
/// assert_eq!(back.tensors["w"].to_vec1::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), retort_nn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Weights, buffers, optimiser state, whatever the writer chose.
    pub tensors: Tensors,
    /// Anything small: epoch, step, configuration.
    pub meta: serde_json::Value,
}

impl Checkpoint {
    /// Writes the file under a temporary name, syncs and renames it; the same content gives the same bytes.
    ///
    /// # Errors
    ///
    /// Names the file and what the system said.
    pub fn save(&self, path: &Path) -> Result<()> {
        let meta = HashMap::from([(META_KEY.to_string(), self.meta.to_string())]);
        let contiguous: Vec<(&String, candle_core::Tensor)> =
            self.tensors.iter().map(|(name, t)| Ok((name, t.contiguous()?))).collect::<Result<_>>()?;
        let bytes = safetensors::serialize(contiguous, Some(meta)).map_err(|e| Error::file(path, e))?;
        write_atomically(path, &bytes)
    }

    /// Reads a whole file to the CPU. The metadata is `null` where the writer was another program.
    ///
    /// Values are taken as they are, also those that are not finite: a checkpoint is the state of a run, whatever it is.
    /// [`crate::WeightFile`] is for the files of others.
    ///
    /// # Errors
    ///
    /// A file that is missing, no regular file, truncated or not in safetensors format, a tensor of a type that candle
    /// does not compute with.
    pub fn load(path: &Path) -> Result<Self> {
        let refuse = |message: String| Error::file(path, message);
        let file = SafetensorsFile::parse(read(path)?).map_err(refuse)?;
        let meta = file.note(META_KEY).map_or(Ok(serde_json::Value::Null), |text| serde_json::from_str(text));
        let meta = meta.map_err(|e| refuse(format!("metadata `{META_KEY}`: {e}")))?;
        let tensor = |(name, _): (String, _)| file.tensor(&name).map(|tensor| (name, tensor)).map_err(refuse);
        Ok(Self { tensors: file.infos().into_iter().map(tensor).collect::<Result<_>>()?, meta })
    }

    /// The tensors under `prefix.`, without the prefix.
    #[must_use]
    pub fn part(&self, prefix: &str) -> Tensors {
        let dotted = format!("{prefix}.");
        let strip = |(name, tensor): (&String, &candle_core::Tensor)| {
            Some((name.strip_prefix(&dotted)?.to_string(), tensor.clone()))
        };
        self.tensors.iter().filter_map(strip).collect()
    }
}

/// Writes `bytes` to a temporary neighbour of `path`, syncs it and renames it, so that no reader ever sees half a file.
///
/// # Errors
///
/// Names the file and what the system said.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| Error::file(path, "not a file name"))?;
    // Two processes, or two threads of one, that write the same file keep out of each other's way.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id()));
    let attempt = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // Without this the rename itself may be lost in a power failure; not every system can sync a folder.
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        Ok(())
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::file(path, format!("cannot write: {e}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn sample() -> Checkpoint {
        let a = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let tensors = Tensors::from([
            ("net.a".to_string(), a.t().unwrap()),
            ("opt.n".to_string(), Tensor::new(&[7i64], &Device::Cpu).unwrap()),
        ]);
        Checkpoint { tensors, meta: serde_json::json!({"step": 12}) }
    }

    #[test]
    fn round_trip_is_exact_and_stable() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("deep/one.safetensors"), folder.path().join("two.safetensors"));
        sample().save(&one).unwrap();
        let back = Checkpoint::load(&one).unwrap();
        assert_eq!(back.tensors["net.a"].to_vec2::<f32>().unwrap(), [[1.0, 3.0], [2.0, 4.0]]);
        assert_eq!(back.part("opt").keys().collect::<Vec<_>>(), ["n"]);
        back.save(&two).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "no temporary file may stay");
    }

    #[test]
    fn broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("weights.safetensors"));
        sample().save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        for length in [0, 4, 20, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("weights.safetensors"), "{length}");
        }
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, huge).unwrap();
        assert!(Checkpoint::load(&path).is_err());
    }
}
