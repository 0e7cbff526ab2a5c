//! Messages that point into a manifest: file, line, column, nearest valid name.

use crate::Error;
use retort_nn::nearest;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A manifest's text, kept so that later checks can point into it.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn read(path: &Path) -> crate::Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot read: {e}")))?;
        Ok(Self { path: path.to_path_buf(), text })
    }

    pub(crate) fn parse<T: serde::de::DeserializeOwned>(&self) -> crate::Result<T> {
        toml::from_str(&self.text).map_err(|error| {
            let message = error.message().trim();
            let wrong = quoted(message).into_iter().next();
            let hint = wrong.and_then(|wrong| {
                if let Some(place) = no_loss(wrong).filter(|_| message.starts_with("unknown variant")) {
                    return Some(format!("; {place}"));
                }
                let candidates = quoted(message).into_iter().skip(1);
                nearest(wrong, candidates).map(|near| format!(", did you mean `{near}`?"))
            });
            let span = self.narrow(error.span().unwrap_or(0..0), wrong.unwrap_or_default());
            self.error(span, format!("{message}{}", hint.unwrap_or_default()))
        })
    }

    /// An error at the first place of `span` where `word` stands, or at its start.
    pub(crate) fn error_at(&self, span: Range<usize>, word: &str, message: impl std::fmt::Display) -> Error {
        self.error(self.narrow(span, word), message)
    }

    pub(crate) fn error(&self, span: Range<usize>, message: impl std::fmt::Display) -> Error {
        let (line, column) = self.position(span.start);
        Error::Request(format!("{}:{line}:{column}: {message}", self.path.display()))
    }

    /// Nested tables report the span of the whole table; the offending word inside it is where the reader wants to look.
    fn narrow(&self, span: Range<usize>, word: &str) -> Range<usize> {
        let inside = self.text.get(span.clone()).unwrap_or_default();
        let found = inside.match_indices(word).find(|(at, _)| {
            let boundary = |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '-'));
            boundary(inside[..*at].chars().next_back()) && boundary(inside[at + word.len()..].chars().next())
        });
        match found {
            Some((at, _)) if !word.is_empty() => span.start + at..span.start + at + word.len(),
            _ => span,
        }
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Where names of the literature are to be found that stand beside the methods but are no losses.
pub(crate) fn no_loss(name: &str) -> Option<&'static str> {
    match name {
        "dot" => Some("`dot` is an optimiser: give the row `optimizer = { kind = \"dot\" }`"),
        "ft-paraphraser" => Some("the paraphraser is trained by `ft` itself, in its phase before the training"),
        _ => None,
    }
}

/// The words between backticks.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

/// `, did you mean X?` for an unknown name, with all names behind it.
pub(crate) fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let hint = nearest(name, known.clone()).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
    format!("{hint} (known: {})", known.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        losses: Vec<retort_losses::LossConfig>,
    }

    fn message(text: &str) -> String {
        Source { path: "m.toml".into(), text: text.into() }.parse::<Sample>().unwrap_err().to_string()
    }

    #[test]
    fn positions_and_hints() {
        let text = message("\nlosses = [\n  { method = \"kd\", temprature = 4.0 },\n]\n");
        assert!(text.starts_with("m.toml:3:20: ") && text.contains("did you mean `temperature`"), "{text}");
        let text = message("losses = [{ method = \"kdd\" }]\n");
        assert!(text.starts_with("m.toml:1:23: ") && text.contains("did you mean `kd`"), "{text}");
        let text = message("losses = [{ method = \"dot\" }]\n");
        assert!(
            text.starts_with("m.toml:1:23: ") && text.contains("kind = \"dot\"") && !text.contains("dkd`?"),
            "{text}"
        );
        let text = message("losses = []\nlosess = []\n");
        assert!(text.starts_with("m.toml:2:1: ") && text.contains("did you mean `losses`"), "{text}");
        let text = message("losses = [\n");
        assert!(text.starts_with("m.toml:"), "{text}");
    }
}
