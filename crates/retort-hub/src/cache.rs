//! The cache in the layout of Python's `huggingface_hub`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::repository::{check_file, check_revision, is_commit, is_plain};
use crate::{Error, Kind, Repository, Result};

/// Folders inside each other that a listing follows; repositories have a few.
const MAX_DEPTH: usize = 32;

/// Bytes of a file in `refs`; a commit has 40.
const MAX_REF: u64 = 256;

/// Where files of the hub come from. The default is the machine's cache, and the network where the feature `fetch` is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hub {
    /// The cache; `None` is the one that the environment names.
    pub cache: Option<PathBuf>,
    /// Whether the network must not be used, as with the variable `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl Hub {
    /// The paths of these files at a branch, tag or commit, in their order.
    ///
    /// # Errors
    ///
    /// A revision or a file that is no name, no cache, a file that is neither in the cache nor could be fetched: the
    /// message says where it was looked for and how to get it.
    pub fn find(&self, repository: &Repository, revision: &str, files: &[&str]) -> Result<Vec<PathBuf>> {
        check_revision(revision)?;
        files.iter().try_for_each(|file| check_file(file))?;
        let place = self.place(repository)?;
        if let Some(snapshot) = place.snapshot(revision)
            && let Some(paths) = paths(&snapshot, files)
        {
            return Ok(paths);
        }
        let reason = match self.fetch(&place, revision, files) {
            Err(reason) => reason,
            Ok(()) => match place.snapshot(revision).and_then(|snapshot| paths(&snapshot, files)) {
                Some(paths) => return Ok(paths),
                None => "it was fetched, but is not there".to_owned(),
            },
        };
        let there = |file: &&&str| place.snapshot(revision).is_none_or(|snapshot| !snapshot.join(file).is_file());
        let missing: Vec<String> = files.iter().filter(there).map(|file| format!("`{file}`")).collect();
        Err(place.missing(revision, missing.join(", "), files, reason))
    }

    /// All files of a revision that are in the cache, as sorted paths with `/`. Never uses the network.
    ///
    /// # Errors
    ///
    /// A revision that is no name, no cache, a revision that is not in it, a folder that cannot be read.
    pub fn list(&self, repository: &Repository, revision: &str) -> Result<Vec<String>> {
        check_revision(revision)?;
        let place = self.place(repository)?;
        let Some(snapshot) = place.snapshot(revision).filter(|snapshot| snapshot.is_dir()) else {
            return Err(place.missing(revision, "all files".to_owned(), &[], "a listing uses no network".to_owned()));
        };
        let mut files = Vec::new();
        walk(&snapshot, "", MAX_DEPTH, &mut files)?;
        files.sort();
        Ok(files)
    }

    /// All files of a revision, as sorted paths with `/`: from the hub where the feature `fetch` is on, the network may be used
    /// and the hub answers, else those that are in the cache.
    ///
    /// # Errors
    ///
    /// As for [`Hub::list`].
    pub fn files(&self, repository: &Repository, revision: &str) -> Result<Vec<String>> {
        check_revision(revision)?;
        #[cfg(feature = "fetch")]
        if self.offline_reason().is_none() {
            let place = self.place(repository)?;
            if let Ok(files) = crate::fetch::list(&place, revision) {
                return Ok(files);
            }
        }
        self.list(repository, revision)
    }

    fn place<'a>(&self, repository: &'a Repository) -> Result<Place<'a>> {
        let cache = self.cache.clone().or_else(from_environment).ok_or(Error::NoCache)?;
        Ok(Place { folder: cache.join(repository.folder()), repository })
    }

    #[cfg(feature = "fetch")]
    fn fetch(&self, place: &Place<'_>, revision: &str, files: &[&str]) -> std::result::Result<(), String> {
        match self.offline_reason() {
            Some(reason) => Err(reason.to_owned()),
            None => crate::fetch::fetch(place, revision, files),
        }
    }

    #[cfg(not(feature = "fetch"))]
    fn fetch(&self, _place: &Place<'_>, _revision: &str, _files: &[&str]) -> std::result::Result<(), String> {
        let without = "built without the feature `hub`, this program does not use the network";
        Err(self.offline_reason().unwrap_or(without).to_owned())
    }

    fn offline_reason(&self) -> Option<&'static str> {
        // hf-hub does not read this variable.
        let variable = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        if self.offline {
            Some("the network is switched off (offline)")
        } else if matches!(variable.as_str(), "1" | "ON" | "YES" | "TRUE") {
            Some("HF_HUB_OFFLINE is set")
        } else {
            None
        }
    }
}

/// One repository in one cache.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// Its folder in the cache.
    pub(crate) folder: PathBuf,
    pub(crate) repository: &'a Repository,
}

impl Place<'_> {
    /// The commit of a revision, where the cache knows it.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        let mut text = String::new();
        let known = File::open(self.folder.join("refs").join(revision))
            .and_then(|file| file.take(MAX_REF).read_to_string(&mut text));
        match known {
            Ok(_) => Some(text.trim()).filter(|commit| is_plain(commit)).map(str::to_owned),
            Err(_) => is_commit(revision).then(|| revision.to_owned()),
        }
    }

    /// The folder of a revision's files, whether or not it exists.
    pub(crate) fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        Some(self.folder.join("snapshots").join(self.commit(revision)?))
    }

    fn missing(&self, revision: &str, file: String, files: &[&str], reason: String) -> Error {
        let kind = match self.repository.kind() {
            Kind::Model => "",
            Kind::Dataset => " --repo-type dataset",
        };
        let at = if revision == "main" { String::new() } else { format!(" --revision {revision}") };
        // Blanks in a name would end the argument.
        let quoted = |file: &&str| if file.contains(' ') { format!(" '{file}'") } else { format!(" {file}") };
        let files: String = files.iter().map(quoted).collect();
        Error::Missing {
            file,
            repository: format!("{} `{}`, revision `{revision}`", self.repository.kind().words(), self.repository),
            message: format!(
                "not in the cache ({}); {reason}; fetch it where there is a network with \
                 `hf download {}{kind}{at}{files}` and set HF_HOME to the folder that holds that machine's `hub`",
                self.folder.display(),
                self.repository
            ),
        }
    }
}

fn paths(snapshot: &Path, files: &[&str]) -> Option<Vec<PathBuf>> {
    files.iter().map(|file| Some(snapshot.join(file)).filter(|path| path.is_file())).collect()
}

/// Folders that are links are left out: the cache has none, and they may lead in circles.
fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) -> Result<()> {
    let io =
        |e: std::io::Error| Error::File { file: folder.display().to_string(), message: format!("cannot list: {e}") };
    if depth == 0 {
        let message = format!("expected at most {MAX_DEPTH} folders inside each other");
        return Err(Error::File { file: folder.display().to_string(), message });
    }
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        // A name that is no text cannot be asked for either.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type().map_err(io)?.is_dir() {
            walk(&entry.path(), &name, depth - 1, files)?;
        } else if entry.path().is_file() {
            files.push(name);
        }
    }
    Ok(())
}

/// The cache, by the variables that Python's `huggingface_hub` reads, in its order.
fn from_environment() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".cache"));
    let hugging_face = || set("HF_HOME").or_else(|| Some(set("XDG_CACHE_HOME").or_else(home)?.join("huggingface")));
    set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(hugging_face()?.join("hub")))
}

/// Compares a file of a cache with the digest in the name of its blob, and says whether it has one.
///
/// The hub keeps large files by their SHA-256, and the cache has them as `blobs/SHA256` with a link in `snapshots`. Small
/// files (named by a git object) and plain files without a link have nothing to compare with: `false`.
///
/// # Errors
///
/// A file that cannot be read, or whose digest differs.
pub fn verify(path: &Path) -> Result<bool> {
    let refuse = |message: String| Error::File { file: path.display().to_string(), message };
    let blob = std::fs::canonicalize(path).map_err(|e| refuse(format!("cannot read: {e}")))?;
    let Some(expected) = blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name)) else {
        return Ok(false);
    };
    let mut file = File::open(&blob).map_err(|e| refuse(format!("cannot read: {e}")))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut buffer).map_err(|e| refuse(format!("cannot read: {e}")))?;
        if read == 0 {
            break;
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(expected) {
        return Ok(true);
    }
    Err(refuse(format!("expected the SHA-256 {expected}, found {found}")))
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const COMMIT: &str = "694783b7ed418beb0c756021b382e8ce8e540efe";

    /// A cache of one data set, by `(path in its folder, content)`.
    fn cache(files: &[(&str, &str)]) -> (TempDir, Hub, Repository) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join("datasets--owner--name").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let hub = Hub { cache: Some(root.path().to_owned()), offline: true };
        (root, hub, Repository::parse(Kind::Dataset, "owner/name").unwrap())
    }

    #[test]
    fn a_cache_is_read_as_python_writes_it() {
        let train = format!("snapshots/{COMMIT}/c/train/0000.parquet");
        let (root, hub, repository) =
            cache(&[("refs/main", &format!("{COMMIT}\n")), ("refs/refs/convert/parquet", COMMIT), (&train, "x")]);
        let path = root.path().join("datasets--owner--name").join(&train);
        for revision in ["main", "refs/convert/parquet", COMMIT] {
            assert_eq!(
                hub.find(&repository, revision, &["c/train/0000.parquet"]).unwrap(),
                std::slice::from_ref(&path)
            );
            assert_eq!(hub.list(&repository, revision).unwrap(), ["c/train/0000.parquet"]);
        }
        // The same names as a model are another repository.
        let model = Repository::parse(Kind::Model, "owner/name").unwrap();
        assert!(hub.find(&model, "main", &["c/train/0000.parquet"]).is_err());
    }

    #[test]
    fn what_is_missing_is_named_with_the_command() {
        let (_root, hub, repository) = cache(&[("refs/v2", COMMIT), (&format!("snapshots/{COMMIT}/here"), "")]);
        let error = hub.find(&repository, "v2", &["here", "not here", "nor/here"]).unwrap_err().to_string();
        assert!(error.starts_with("`not here`, `nor/here` of data set `owner/name`, revision `v2`"), "{error}");
        let command = "hf download owner/name --repo-type dataset --revision v2 here 'not here' nor/here";
        assert!(error.contains(command) && error.contains("datasets--owner--name"), "{error}");
        assert!(error.contains("offline"), "{error}");
        // Nothing of the revision, and nothing of the repository.
        assert!(hub.find(&repository, "main", &["here"]).is_err());
        assert!(hub.list(&repository, "main").is_err());
        let other = Repository::parse(Kind::Dataset, "owner/other").unwrap();
        assert!(matches!(hub.find(&other, "main", &["here"]), Err(Error::Missing { .. })));
    }

    #[test]
    fn no_name_leads_out_of_the_snapshot() {
        let outside = "snapshots/other/secret";
        let (_root, hub, repository) =
            cache(&[("refs/main", COMMIT), (&format!("snapshots/{COMMIT}/a"), ""), (outside, ""), ("secret", "")]);
        for file in ["../other/secret", "/etc/passwd", "a/../../other/secret"] {
            assert!(matches!(hub.find(&repository, "main", &[file]), Err(Error::Name { what: "file", .. })), "{file}");
        }
        for revision in ["../main", "refs/../main", "/main"] {
            let error = hub.find(&repository, revision, &["a"]).unwrap_err();
            assert!(matches!(error, Error::Name { what: "revision", .. }), "{error}");
            assert!(hub.list(&repository, revision).is_err());
        }
        // A commit that leads elsewhere, one that is empty, one that is no text.
        for commit in ["../..", "../snapshots/other", "", "/", "other/../other", "a b"] {
            let (_root, hub, repository) = cache(&[("refs/main", commit), (outside, ""), ("secret", "")]);
            assert!(matches!(hub.find(&repository, "main", &["secret"]), Err(Error::Missing { .. })), "{commit}");
            assert!(hub.list(&repository, "main").is_err(), "{commit}");
        }
    }

    #[test]
    fn half_a_download_is_no_file() {
        let (_root, hub, repository) =
            cache(&[("refs/main", COMMIT), ("blobs/abc.incomplete", "hal"), (&format!("snapshots/{COMMIT}/b"), "")]);
        assert!(hub.find(&repository, "main", &["a"]).is_err());
        assert_eq!(hub.list(&repository, "main").unwrap(), ["b"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_blobs_are_followed_and_circles_are_not() {
        use std::os::unix::fs::symlink;
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let (root, hub, repository) = cache(&[
            ("refs/main", COMMIT),
            (&format!("blobs/{digest}"), "abc"),
            (&format!("snapshots/{COMMIT}/x/y"), ""),
        ]);
        let folder = root.path().join("datasets--owner--name");
        let snapshot = folder.join("snapshots").join(COMMIT);
        symlink(format!("../../blobs/{digest}"), snapshot.join("a.bin")).unwrap();
        symlink("../../blobs/gone", snapshot.join("gone.bin")).unwrap();
        symlink("..", snapshot.join("x/circle")).unwrap();
        let found = hub.find(&repository, "main", &["a.bin"]).unwrap();
        assert_eq!(std::fs::read(&found[0]).unwrap(), b"abc");
        assert!(hub.find(&repository, "main", &["gone.bin"]).is_err(), "a link to nothing");
        assert_eq!(hub.list(&repository, "main").unwrap(), ["a.bin", "x/y"]);

        assert!(verify(&found[0]).unwrap());
        assert!(!verify(&snapshot.join("x/y")).unwrap(), "nothing to compare with");
        std::fs::write(folder.join("blobs").join(digest), "abd").unwrap();
        let error = verify(&found[0]).unwrap_err().to_string();
        assert!(error.contains(digest) && error.contains("found a52d159f"), "{error}");
    }

    #[test]
    fn a_folder_too_deep_ends() {
        let deep = format!("snapshots/{COMMIT}/{}", "d/".repeat(40));
        let (_root, hub, repository) = cache(&[("refs/main", COMMIT), (&format!("{deep}x"), "")]);
        assert!(hub.list(&repository, "main").unwrap_err().to_string().contains("at most 32"));
    }
}
