//! Where a trained network called `owner/name` lies on this machine: the cache of the Hugging Face hub.

use std::path::PathBuf;

use retort_hub::{Hub, Kind, Repository};

use crate::pretrained::{CONFIG, WEIGHTS};
use crate::{Error, Result};

/// The folder of `owner/name`.
pub(crate) fn find(source: &str) -> Result<PathBuf> {
    find_in(&Hub::default(), source)
}

fn find_in(hub: &Hub, source: &str) -> Result<PathBuf> {
    let refuse = |message: String| Error::File { path: source.to_string(), message };
    let repository = Repository::parse(Kind::Model, source)
        .map_err(|_| refuse("no such folder, and no name of the Hugging Face hub either (owner/name)".into()))?;
    let found = hub.find(&repository, "main", &[WEIGHTS, CONFIG]).map_err(|e| {
        refuse(format!("neither a folder nor in the cache: {e}, or name a folder with {CONFIG} and {WEIGHTS}"))
    })?;
    let folder = found.first().and_then(|path| path.parent());
    folder.map(PathBuf::from).ok_or_else(|| refuse("the cache has no folder for it".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_read_as_python_writes_it() {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub { cache: Some(cache.path().to_owned()), offline: true };
        let folder = cache.path().join("models--owner--name");
        let write = |path: &str, text: &str| {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(find_in(&hub, "owner/name").is_err());
        write("refs/main", "0123abcd");
        write("snapshots/0123abcd/config.json", "{}");
        let error = find_in(&hub, "owner/name").unwrap_err().to_string();
        assert!(error.contains("`model.safetensors` of model") && error.contains("hf download owner/name"), "{error}");
        write("snapshots/0123abcd/model.safetensors", "");
        assert_eq!(find_in(&hub, "owner/name").unwrap(), folder.join("snapshots/0123abcd"));
        // A commit that leads elsewhere.
        write("refs/main", "../../models--owner--name/snapshots/0123abcd");
        assert!(find_in(&hub, "owner/name").is_err());
        assert!(find_in(&hub, "../name").unwrap_err().to_string().contains("owner/name"));
    }
}
