//! Names that can do no harm as parts of a path.

use std::fmt;

use crate::{Error, Result};

/// What a repository of the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Trained networks.
    Model,
    /// Data.
    Dataset,
}

impl Kind {
    /// Start of the folder's name in the cache.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }
}

/// A repository of the hub, `owner/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    kind: Kind,
    owner: String,
    name: String,
}

impl Repository {
    /// From `owner/name`, each of at most 96 letters, digits, `-`, `_` and `.`, as the hub allows them.
    ///
    /// # Errors
    ///
    /// Anything else, above all what would lead out of a folder.
    pub fn parse(kind: Kind, text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some((owner, name)) if is_plain(owner) && is_plain(name) => {
                Ok(Self { kind, owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(Error::Name {
                what: "repository",
                name: text.to_owned(),
                expected: "owner/name of letters, digits, `-`, `_` and `.`",
            }),
        }
    }

    /// Models or data.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The user or organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The name without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("{}--{}--{}", self.kind.plural(), self.owner, self.name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// Neither empty nor hidden nor a way out of the folder: a name, and no path.
pub(crate) fn is_plain(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.len() <= 96
        && !part.starts_with(['.', '-'])
        && part.chars().all(allowed)
        && !part.contains("..")
}

/// 40 hexadecimal digits: a commit, and no branch.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A branch, tag or commit; branches of the hub have slashes, for example `refs/convert/parquet`.
pub(crate) fn check_revision(revision: &str) -> Result<()> {
    if revision.split('/').all(is_plain) && revision.len() <= 256 {
        return Ok(());
    }
    let expected = "a branch, tag or commit such as `main` or `refs/convert/parquet`";
    Err(Error::Name { what: "revision", name: revision.to_owned(), expected })
}

/// A path relative to the repository that stays inside it, on every system.
pub(crate) fn check_file(file: &str) -> Result<()> {
    let allowed = |c: char| !c.is_control() && !matches!(c, '\\' | ':');
    let inside = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(allowed);
    if file.split('/').all(inside) && file.len() <= 1024 {
        return Ok(());
    }
    let expected = "a path inside the repository such as `data/train.parquet`, without `..`, `\\` and `:`";
    Err(Error::Name { what: "file", name: file.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_no_paths() {
        for text in ["owner/name", "o-w_n.er/resnet20", "a/b"] {
            assert_eq!(Repository::parse(Kind::Model, text).unwrap().to_string(), text);
        }
        let hostile = ["", "/", "name", "../x", "x/..", "a/b/c", "/etc/passwd", "a/.b", ".a/b", "a/b..c"];
        for text in hostile.into_iter().chain(["a\\b/c", "a/b\0", "-a/b", "a/c:", "\u{e4}/b"]) {
            let error = Repository::parse(Kind::Dataset, text).unwrap_err().to_string();
            assert!(error.contains(&format!("repository `{text}`")), "{error}");
        }
    }

    #[test]
    fn revisions_stay_in_refs() {
        for revision in
            ["main", "refs/convert/parquet", "refs/pr/1", "v1.0", "694783b7ed418beb0c756021b382e8ce8e540efe"]
        {
            check_revision(revision).unwrap();
        }
        for revision in
            ["", "/", "/main", "main/", "..", "refs/../../x", "refs//x", "a\\b", "C:", ".hidden", "a/.b", "a b"]
        {
            let error = check_revision(revision).unwrap_err().to_string();
            assert!(error.contains(&format!("revision `{revision}`")), "{error}");
        }
    }

    #[test]
    fn files_stay_in_the_repository() {
        for file in ["config.json", ".gitattributes", "a/b c/0000.parquet", "a..b", "d\u{e4}ta.bin"] {
            check_file(file).unwrap();
        }
        for file in ["", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a/", "a\\..\\x", "C:x", "a\nb", "a\0b"] {
            let error = check_file(file).unwrap_err().to_string();
            assert!(error.contains(&format!("file `{file}`")), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever passes a check is made of plain components only.
        #[test]
        fn nothing_that_passes_leads_out(text in "[a./\\\\:]{0,12}") {
            let climbs = |text: &str| std::path::Path::new(text)
                .components()
                .any(|part| !matches!(part, std::path::Component::Normal(_)));
            prop_assert!(check_file(&text).is_err() || !climbs(&text));
            prop_assert!(check_revision(&text).is_err() || !climbs(&text));
            prop_assert!(Repository::parse(Kind::Model, &text).is_err() || !climbs(&text));
        }
    }
}
