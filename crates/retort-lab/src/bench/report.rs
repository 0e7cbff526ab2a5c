//! What a bench found: keys in a fixed order.

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Keys and values in the order in which scripts and readers expect them (a JSON map of serde_json sorts its keys).
#[derive(Default)]
pub(super) struct Report(Vec<(String, Value)>);

impl Report {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds an entry at the end.
    pub(super) fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.push((key.into(), value.into()));
        self
    }

    /// Adds the entry where there is something to say.
    pub(super) fn with_some(self, key: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Adds `instruction_set`, the one that the kernels use.
    pub(super) fn with_instruction_set(self) -> Self {
        self.with("instruction_set", format!("{:?}", retort_kernels::instruction_set()))
    }

    /// Adds `peak_rss_mb`; to be called when all the work is done.
    pub(super) fn with_peak_memory(self) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").ok();
        self.with("peak_rss_mb", status.as_deref().and_then(peak_mebibytes))
    }

    /// One line.
    pub(super) fn json(&self) -> String {
        let line = serde_json::to_string(self).expect("keys are strings, and values are JSON already");
        format!("{line}\n")
    }

    /// A line for each entry.
    pub(super) fn plain(&self) -> String {
        let width = self.0.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Number(number) if number.is_f64() => format!("{:.3}", number.as_f64().unwrap_or(f64::NAN)),
            Value::Null => "unknown".to_string(),
            other => other.to_string(),
        };
        self.0.iter().map(|(key, value)| format!("{key:<width$}  {}\n", text(value))).collect()
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// `VmHWM`, the largest resident set that this process has had; Linux counts it in kB of 1024 bytes.
fn peak_mebibytes(status: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_of_a_status_file() {
        assert_eq!(peak_mebibytes("Name:\tretort\nVmHWM:\t    3072 kB\nVmRSS:\t 1 kB\n"), Some(3.0));
        assert_eq!(peak_mebibytes("Name:\tretort\n"), None);
        assert_eq!(peak_mebibytes("VmHWM:\tmany kB\n"), None);
    }

    #[test]
    fn entries_keep_their_order() {
        let report = Report::new()
            .with("model", "resnet8")
            .with("batch", 2)
            .with("forward_ms", 1.25)
            .with_some("absent", None::<usize>)
            .with_some("rows", Some(7))
            .with("peak_rss_mb", None::<f64>);
        assert_eq!(
            report.json(),
            "{\"model\":\"resnet8\",\"batch\":2,\"forward_ms\":1.25,\"rows\":7,\"peak_rss_mb\":null}\n"
        );
        let plain = report.plain();
        assert_eq!(plain.lines().next(), Some("model        resnet8"));
        assert!(plain.contains("forward_ms   1.250\n") && plain.ends_with("peak_rss_mb  unknown\n"), "{plain}");
    }
}
