//! `bench costs`: every method beside plain training, each in a process of its own.

use super::method_step::{Networks, named};
use super::report::Report;
use super::{Options, Run};
use crate::costs::{Cost, Costs};
use crate::methods::rows;
use crate::{Error, Result};
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;

/// What the others are measured against.
const PLAIN: &str = "ce";

/// Rows of `list methods` that are no step of their own: an optimiser, and the first phase of `ft`.
const NO_STEP: [&str; 2] = ["dot", "ft-paraphraser"];

#[derive(Debug, Args)]
pub(super) struct CostsArgs {
    /// Only these; all where absent.
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    only: Vec<String>,
    /// Write what was found to this file, beside what it says of other methods under the same circumstances.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    pub(super) options: Options,
}

/// What a process said.
struct Measured {
    ms: f64,
    mebibytes: f64,
    parameters: i64,
}

impl CostsArgs {
    pub(super) fn run(&self, run: &Run<'_>) -> Result<Report> {
        let mut report = Report::new();
        let (mut found, mut failed) = (BTreeMap::new(), Vec::new());
        self.wanted().iter().try_for_each(|id| named(id).map(drop))?;
        // Alternating, so that a slower stretch of the machine meets both sides.
        let mut before = self.child(PLAIN, run)?;
        for id in self.wanted() {
            if run.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let own = match self.child(&id, run) {
                Ok(own) => own,
                // The others are worth having.
                Err(error) => {
                    drop(writeln!(std::io::stderr(), "{error}"));
                    failed.push(error.to_string());
                    continue;
                }
            };
            let after = self.child(PLAIN, run)?;
            let cost = Cost {
                time: round(2.0 * own.ms / (before.ms + after.ms)),
                memory: round(2.0 * own.mebibytes / (before.mebibytes + after.mebibytes)),
                parameters: own.parameters - after.parameters,
            };
            drop(writeln!(std::io::stderr(), "{id}: {cost}, {:+} parameters", cost.parameters));
            report = report.with(id.clone(), format!("{cost}, {:+} parameters", cost.parameters));
            found.insert(id, cost);
            before = after;
        }
        if let Some(path) = &self.save {
            let mut costs = Costs { about: self.about(run), methods: BTreeMap::new() };
            // Figures of other networks or kernels do not belong beside these.
            if let Some(known) = Costs::read(path)?.filter(|known| known.about == costs.about) {
                costs.methods = known.methods;
            }
            costs.methods.extend(found);
            let text = serde_json::to_string_pretty(&costs).map_err(|e| Error::Failed(e.to_string()))?;
            retort_nn::write_atomically(path, format!("{text}\n").as_bytes())?;
        }
        if failed.is_empty() { Ok(report) } else { Err(Error::Failed(failed.join("\n"))) }
    }

    fn wanted(&self) -> Vec<String> {
        let all = rows().into_iter().map(|row| row.id).filter(|id| !NO_STEP.contains(&id.as_str()) && id != PLAIN);
        if self.only.is_empty() { all.collect() } else { self.only.clone() }
    }

    fn about(&self, run: &Run<'_>) -> String {
        let (networks, options) = (&self.networks, &self.options);
        format!(
            "{} on synthetic {} images of {} classes, batches of {}; teachers {}, peers {}; medians of {} steps, {} thread(s), {:?}",
            networks.student,
            networks.image,
            options.classes,
            options.batch,
            networks.teacher,
            networks.student,
            options.steps,
            run.threads,
            retort_kernels::instruction_set()
        )
    }

    /// `bench method-step` of this very program: only a process of its own has a peak of memory of its own.
    fn child(&self, id: &str, run: &Run<'_>) -> Result<Measured> {
        let failed = |what: String| Error::Failed(format!("the process that measures `{id}`: {what}"));
        let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
        let (networks, options) = (&self.networks, &self.options);
        let image = networks.image.to_string();
        let numbers = [options.batch, options.classes, options.steps, run.threads].map(|n| n.to_string());
        let output = Command::new(program)
            .args(["bench", "method-step", "--json", "--method", id])
            .args(["--student", &networks.student, "--teacher", &networks.teacher, "--image", &image])
            .args(["--batch", &numbers[0], "--classes", &numbers[1], "--steps", &numbers[2], "--threads", &numbers[3]])
            .output()
            .map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string()));
        }
        let said: Value = serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))?;
        let number = |key: &str| said[key].as_f64().ok_or_else(|| failed(format!("it did not say `{key}`")));
        let parameters = said["parameters"].as_i64().ok_or_else(|| failed("it did not say `parameters`".into()))?;
        Ok(Measured { ms: number("step_ms")?, mebibytes: number("peak_rss_mb")?, parameters })
    }
}

/// More digits would be noise.
fn round(ratio: f64) -> f64 {
    (100.0 * ratio).round() / 100.0
}
