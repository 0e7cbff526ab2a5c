//! Fetching into the cache, through the crate `hf-hub`.

use std::path::Path;

use hf_hub::{HFClient, HFClientSync, HFError};

use crate::Kind;
use crate::cache::{Place, verify};

/// Fetches those files that the cache lacks.
///
/// All come from the commit that the cache knows for the revision, else from that of the first file fetched, so that two
/// commits are never mixed.
pub(crate) fn fetch(place: &Place<'_>, revision: &str, files: &[&str]) -> Result<(), String> {
    let cache = place.folder.parent().unwrap_or(&place.folder);
    let client = HFClient::builder().cache_dir(cache).build_sync().map_err(refuse)?;
    for file in files {
        if place.snapshot(revision).is_some_and(|snapshot| snapshot.join(file).is_file()) {
            continue;
        }
        let at = place.commit(revision).unwrap_or_else(|| revision.to_owned());
        download(&client, place, &at, file)?;
        if let Some(snapshot) = place.snapshot(revision) {
            check(&snapshot.join(file))?;
        }
    }
    Ok(())
}

/// Names of all files of a revision.
pub(crate) fn list(place: &Place<'_>, revision: &str) -> Result<Vec<String>, String> {
    let client = HFClient::builder().build_sync().map_err(refuse)?;
    let (owner, name) = (place.repository.owner(), place.repository.name());
    let siblings = match place.repository.kind() {
        Kind::Model => client.model(owner, name).info().revision(revision).send().map_err(refuse)?.siblings,
        Kind::Dataset => client.dataset(owner, name).info().revision(revision).send().map_err(refuse)?.siblings,
    };
    let mut files: Vec<String> = siblings.unwrap_or_default().into_iter().map(|file| file.rfilename).collect();
    files.sort();
    Ok(files)
}

fn download(client: &HFClientSync, place: &Place<'_>, revision: &str, file: &str) -> Result<(), String> {
    let (owner, name) = (place.repository.owner(), place.repository.name());
    match place.repository.kind() {
        Kind::Model => client.model(owner, name).download_file().filename(file).revision(revision).send(),
        Kind::Dataset => client.dataset(owner, name).download_file().filename(file).revision(revision).send(),
    }
    .map(|_| ())
    .map_err(refuse)
}

fn refuse(e: HFError) -> String {
    format!("it cannot be fetched from the hub: {e}")
}

/// Removes a file that is not what its name says, with its blob, so that nobody takes it for whole.
fn check(path: &Path) -> Result<(), String> {
    let Err(error) = verify(path) else { return Ok(()) };
    // Each may be gone already; what counts is that the next look finds nothing.
    if let Ok(blob) = std::fs::canonicalize(path) {
        let _ = std::fs::remove_file(blob);
    }
    let _ = std::fs::remove_file(path);
    Err(format!("what came from the hub was damaged and has been removed: {error}"))
}
