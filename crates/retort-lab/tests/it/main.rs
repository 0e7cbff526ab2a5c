//! The program from outside: bad requests, records, resume.

mod bad_requests;
mod batches;
mod bench;
mod cohorts;
mod committed;
mod data;
mod docs;
mod runs;
mod systems;
mod tuning;
mod validation;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with one manifest, `tiny.toml`, on the embedded digits.
struct Lab {
    folder: tempfile::TempDir,
}

const TINY: &str = r#"
title = "A tiny table"
paper = "none"
baseline = "ce"
default_profile = "quick"

[[methods]]
id = "ce"
label = "cross-entropy"
losses = [{ method = "ce" }]

[[methods]]
id = "crd+kd"
label = "CRD + KD"
losses = [
  { method = "ce" },
  { method = "crd", negatives = 8, dim = 16 },
  { method = "kd", temperature = 4.0 },
]

[profiles.quick]
about = "For tests."
data = { name = "digits-8x8", train = 60, test = 40 }
pairs = [{ teacher = "resnet14", student = "resnet8" }]
seeds = 2
batch_size = 20
augmentation = [{ kind = "random-crop", padding = 1 }]

[profiles.quick.teacher]
epochs = 2
optimizer = { kind = "sgd", momentum = 0.9, weight_decay = 5e-4 }
schedule = { lr = 0.05, decay = { kind = "cosine" } }

[profiles.quick.student]
epochs = 3
evaluate_every = 2
optimizer = { kind = "sgd", momentum = 0.9, nesterov = true, weight_decay = 5e-4 }
schedule = { lr = 0.05, decay = { kind = "multi-step", milestones = [2], gamma = 0.1 } }

[profiles.full]
about = "Needs files."
data = { name = "fashion-mnist" }
pairs = [{ teacher = "resnet14", student = "resnet8" }]
seeds = 1
batch_size = 20
augmentation = []

[profiles.full.teacher]
epochs = 1
optimizer = { kind = "adamw" }
schedule = { lr = 0.001 }

[profiles.full.student]
epochs = 1
optimizer = { kind = "adamw" }
schedule = { lr = 0.001 }
"#;

/// A published table under the protocol of the profile `even`; append both to [`TINY`].
const PUBLISHED: &str = r#"
[published]
file = "published.json"
data = "digits-8x8"
train = 60
test = 40
batch_size = 20
augmentation = []
epochs = 1
optimizer = { kind = "sgd", momentum = 0.9 }
schedule = { lr = 0.05 }
"#;

const EVEN: &str = r#"
[profiles.even]
about = "As published."
data = { name = "digits-8x8", train = 60, test = 40 }
pairs = [{ teacher = "resnet14", student = "resnet8" }]
seeds = 1
batch_size = 20
augmentation = []
teacher = { epochs = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }
student = { epochs = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }
"#;

/// Variables of the machine that must not matter.
const CLEARED: [&str; 10] = [
    "RETORT_EXPERIMENTS",
    "RETORT_RUNS",
    "RETORT_DATA",
    "RETORT_MODELS",
    "RETORT_METHOD_PAGES",
    "RETORT_DATASET_PAGES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
];

impl Lab {
    fn new() -> Self {
        Self::with(TINY)
    }

    fn with(manifest: &str) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(lab.path("experiments")).unwrap();
        fs::write(lab.path("experiments/tiny.toml"), manifest).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retort"));
        command.current_dir(self.folder.path()).args(args).env("CANDLE_NUM_THREADS", "1");
        for name in CLEARED {
            command.env_remove(name);
        }
        // Nobody's cache of the hub.
        command.env("HF_HOME", self.path("no-cache"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that must be refused with exit code 2.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        text
    }
}

/// The lines that must agree, file by file: all but the last one, which holds times.
fn reproducible(folder: &Path) -> Vec<(String, Vec<String>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let last = lines.pop().unwrap();
        assert!(last.starts_with(r#"{"event":"machine""#), "{last}");
        (path.file_name().unwrap().to_string_lossy().into_owned(), lines)
    };
    files.iter().map(read).collect()
}
