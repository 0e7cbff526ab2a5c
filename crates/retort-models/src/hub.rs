//! Where a trained network called `owner/name` lies on this machine: the cache of the Hugging Face hub.
//!
//! The layout is that of Python's `huggingface_hub`: `models--OWNER--NAME/refs/main` holds a commit, and
//! `models--OWNER--NAME/snapshots/COMMIT` its files. Looking it up needs no network and no other crate.

use crate::pretrained::{CONFIG, WEIGHTS};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A repository of the hub, by a name that can do no harm as a part of a path.
struct Repository<'a> {
    owner: &'a str,
    name: &'a str,
}

impl<'a> Repository<'a> {
    /// `owner/name`, each of letters, digits, `-`, `_` and `.`, as the hub allows them.
    fn parse(source: &'a str) -> Option<Self> {
        let (owner, name) = source.split_once('/')?;
        (is_plain(owner) && is_plain(name)).then_some(Self { owner, name })
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}--{}", self.owner, self.name))
    }

    /// The files of the branch `main`, if both are there.
    fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let folder = self.folder(cache);
        let commit = std::fs::read_to_string(folder.join("refs/main")).ok()?;
        let commit = Some(commit.trim()).filter(|commit| is_plain(commit))?;
        let snapshot = folder.join("snapshots").join(commit);
        [CONFIG, WEIGHTS].iter().all(|name| snapshot.join(name).is_file()).then_some(snapshot)
    }
}

/// Neither empty nor hidden nor a way out of the folder: a name, and no path.
fn is_plain(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.len() <= 96
        && !part.starts_with(['.', '-'])
        && part.chars().all(allowed)
        && !part.contains("..")
}

/// The cache, by the variables that Python's `huggingface_hub` reads, in its order.
fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".cache"));
    let hugging_face = || set("HF_HOME").or_else(|| Some(set("XDG_CACHE_HOME").or_else(home)?.join("huggingface")));
    set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(hugging_face()?.join("hub")))
}

/// The folder of `owner/name`.
pub(crate) fn find(source: &str) -> Result<PathBuf> {
    let refuse = |message: String| Error::File { path: source.to_string(), message };
    let repository = Repository::parse(source)
        .ok_or_else(|| refuse("no such folder, and no name of the Hugging Face hub either (owner/name)".into()))?;
    let cache =
        cache().ok_or_else(|| refuse("no such folder, and no cache: none of HF_HOME and HOME is set".into()))?;
    if let Some(snapshot) = repository.snapshot(&cache) {
        return Ok(snapshot);
    }
    let looked = format!("neither a folder nor in the cache ({})", repository.folder(&cache).display());
    fetch(&repository, &cache).map_err(|reason| {
        refuse(format!(
            "{looked}; {reason}; fetch it elsewhere with `hf download {source}` and set HF_HOME to a cache that has it, or \
             name a folder with {CONFIG} and {WEIGHTS}"
        ))
    })
}

#[cfg(not(feature = "hub"))]
fn fetch(_repository: &Repository<'_>, _cache: &Path) -> std::result::Result<PathBuf, String> {
    Err("built without the feature `hub`, this program does not use the network".into())
}

/// Fetches the newest `main` into the cache.
#[cfg(feature = "hub")]
fn fetch(repository: &Repository<'_>, cache: &Path) -> std::result::Result<PathBuf, String> {
    // hf-hub does not read this variable.
    if std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
    {
        return Err("HF_HUB_OFFLINE is set".into());
    }
    let refuse = |e: hf_hub::HFError| format!("cannot be fetched from the hub: {e}");
    let client = hf_hub::HFClient::builder().cache_dir(cache).build_sync().map_err(refuse)?;
    let model = client.model(repository.owner, repository.name);
    for name in [WEIGHTS, CONFIG] {
        model.download_file().filename(name).send().map_err(refuse)?;
    }
    repository.snapshot(cache).ok_or_else(|| "was fetched, but is not in the cache".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths() {
        for source in ["owner/name", "o-w_n.er/resnet20", "a/b"] {
            assert!(Repository::parse(source).is_some(), "{source}");
        }
        let hostile = [
            "",
            "/",
            "name",
            "../x",
            "x/..",
            "a/b/c",
            "/etc/passwd",
            "a/.b",
            ".a/b",
            "a/b..c",
            "a\\b/c",
            "a/b\0",
            "-a/b",
        ];
        for source in hostile {
            assert!(Repository::parse(source).is_none(), "{source}");
        }
    }

    #[test]
    fn a_cache_is_read_as_python_writes_it() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--owner--name");
        let repository = Repository::parse("owner/name").unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(repository.snapshot(cache.path()).is_none());
        write("refs/main", "0123abcd");
        write("snapshots/0123abcd/config.json", "{}");
        assert!(repository.snapshot(cache.path()).is_none(), "the weights are missing");
        write("snapshots/0123abcd/model.safetensors", "");
        assert_eq!(repository.snapshot(cache.path()).unwrap(), folder.join("snapshots/0123abcd"));
        // A commit that leads elsewhere.
        write("refs/main", "../../models--owner--name/snapshots/0123abcd");
        assert!(repository.snapshot(cache.path()).is_none());
    }
}
