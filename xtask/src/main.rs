//! `cargo xtask WORD`: starts the release build of `retort`, or a check. It never trains itself.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod tidy;

const USAGE: &str = "\
usage: cargo xtask WORD [ARGS]

  reproduce TABLE [--profile P] [--only METHOD,..] [--seeds N] [--out DIR] [--data DIR]
                      plan a table, run what is missing, print it
  tune TABLE [--profile P]
                      choose the weights of a table's rows on held-out training images
  train MANIFEST --run ID
                      one run of a plan
  rerun RECORD        run a record again and compare it bit by bit
  list methods|models|datasets|tables [--json]
                      what exists
  import-weights FILE --model NAME [--classes N --channels C --image HxW] [--prefix P] [--out DIR]
                      weights of PyTorch or safetensors become models/NAME
  export-weights RUN --name NAME
                      weights of a finished run become models/NAME
  data list|verify|show [NAME] [--data DIR]
                      data sets: where they are, whether the files are right, what the images look like
  bench train-step|kd-step|loss|loader [OPTIONS] [--json]
                      how long a step takes on this machine, and how much memory
  docs [--check]      write the generated parts of docs/methods, or check them
  golden DIR.. [--json FILE] [--allow-unsupported]
                      compare with reference numbers
  tidy                check the arrows between the crates and the rules for their sources
  paths [DIR..]       the tests of everything that computes, and the reference numbers in DIR, on every
                      instruction-set path that this processor has
  ci                  format, tidy, clippy, tests, documentation, in this order

The options of the first ten: cargo xtask WORD --help";

const RETORT_WORDS: [&str; 10] =
    ["reproduce", "tune", "train", "rerun", "list", "import-weights", "export-weights", "data", "bench", "docs"];
const OTHER_WORDS: [&str; 5] = ["golden", "tidy", "paths", "ci", "help"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (word, rest) = match args.split_first() {
        Some((word, rest)) => (word.as_str(), rest),
        None => ("help", &[][..]),
    };
    match word {
        word if RETORT_WORDS.contains(&word) => run_release("retort-lab", "retort", &args),
        "golden" => run_release("retort-testkit", "golden", rest),
        "tidy" => tidy::run(&root()),
        "paths" => paths(rest),
        "ci" => ci(),
        "help" | "--help" | "-h" => say(USAGE, ExitCode::SUCCESS),
        unknown => {
            let known: Vec<&str> = RETORT_WORDS.into_iter().chain(OTHER_WORDS).collect();
            say(&format!("unknown word `{unknown}`, known: {}\n\n{USAGE}", known.join(", ")), ExitCode::from(2))
        }
    }
}

fn say(text: &str, code: ExitCode) -> ExitCode {
    eprintln!("{text}");
    code
}

/// The workspace: the folder above this package.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Builds the program in release mode and becomes it, in the caller's folder.
fn run_release(package: &str, program: &str, args: &[String]) -> ExitCode {
    let output = cargo(&[
        "build",
        "--release",
        "--package",
        package,
        "--bin",
        program,
        "--message-format=json-render-diagnostics",
    ])
    .stderr(std::process::Stdio::inherit())
    .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(_) => return ExitCode::FAILURE,
        Err(error) => return say(&format!("cannot start cargo: {error}"), ExitCode::FAILURE),
    };
    // cargo says where it put the program, so a target folder elsewhere is no special case.
    let text = String::from_utf8_lossy(&output.stdout);
    let executable = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == program)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    let Some(executable) = executable else {
        return say(&format!("cargo built no program `{program}`"), ExitCode::FAILURE);
    };
    let mut command = Command::new(executable);
    command.args(args);
    let folders = [
        ("RETORT_EXPERIMENTS", "experiments"),
        ("RETORT_RUNS", "runs"),
        ("RETORT_MODELS", "models"),
        ("RETORT_METHOD_PAGES", "docs/methods"),
    ];
    for (name, folder) in folders {
        if std::env::var_os(name).is_none() {
            command.env(name, root().join(folder));
        }
    }
    // candle's own pool waits in a busy loop; a profile of two runs side by side had a sixth of its time there. It changes no number.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        command.env("CANDLE_NUM_THREADS", "1");
    }
    if let Some(threads) = bench_threads(args, std::env::var_os("RAYON_NUM_THREADS").is_some()) {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    become_program(command)
}

/// What `RAYON_NUM_THREADS` must be for a bench: candle divides products of matrices by this variable, not by the pool
/// that it runs in, and without it by the number of physical cores. A bench must not compute with other threads than it says.
fn bench_threads(args: &[String], set: bool) -> Option<usize> {
    if args.first().map(String::as_str) != Some("bench") {
        return None;
    }
    let next = args.iter().skip_while(|arg| *arg != "--threads").nth(1).map(String::as_str);
    match args.iter().find_map(|arg| arg.strip_prefix("--threads=")).or(next) {
        // A number that the program will refuse is left to its message.
        Some(threads) => threads.parse().ok().filter(|n| *n > 0),
        None if set => None,
        None => std::thread::available_parallelism().ok().map(usize::from),
    }
}

/// Replaces this process, so that Ctrl-C and the exit code are the program's own business.
#[cfg(unix)]
fn become_program(mut command: Command) -> ExitCode {
    use std::os::unix::process::CommandExt;
    say(&format!("cannot start: {}", command.exec()), ExitCode::FAILURE)
}

#[cfg(not(unix))]
fn become_program(mut command: Command) -> ExitCode {
    match command.status() {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => say(&format!("cannot start: {error}"), ExitCode::FAILURE),
    }
}

/// Runs cargo with some variables set; a failure is named by the step.
fn step_passes(name: &str, args: &[&str], variables: &[(&str, &str)]) -> Result<(), ExitCode> {
    eprintln!("== {name}: cargo {}", args.join(" "));
    match cargo(args).envs(variables.iter().copied()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(say(&format!("== {name} failed"), ExitCode::FAILURE)),
        Err(error) => Err(say(&format!("cannot start cargo: {error}"), ExitCode::FAILURE)),
    }
}

/// Values of `RETORT_ISA`, and whether the processor has the instructions: the kernels would silently take lesser ones.
fn instruction_sets() -> [(&'static str, bool); 3] {
    #[cfg(target_arch = "x86_64")]
    let (avx2, avx512) = (
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"),
    );
    #[cfg(not(target_arch = "x86_64"))]
    let (avx2, avx512) = (false, false);
    [("portable", true), ("avx2", avx2), ("avx512", avx512)]
}

/// Tests and reference numbers on every path; a path that this processor lacks is named, not counted as passed.
fn paths(golden: &[String]) -> ExitCode {
    const TESTS: &[&str] = &[
        "test",
        "--package",
        "retort-kernels",
        "--package",
        "retort-nn",
        "--package",
        "retort-losses",
        "--package",
        "retort-models",
        "--package",
        "retort-testkit",
    ];
    // cargo starts it in the workspace, but folders are named from where the caller is.
    let absolute = |arg: &String| match Path::new(arg).canonicalize() {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(_) => arg.clone(),
    };
    let golden: Vec<String> = golden.iter().map(absolute).collect();
    let mut reference = vec!["run", "--release", "--package", "retort-testkit", "--bin", "golden", "--"];
    reference.extend(golden.iter().map(String::as_str));
    let mut steps = vec![TESTS];
    if !golden.is_empty() {
        steps.push(&reference);
    }
    for (name, supported) in instruction_sets() {
        if !supported {
            eprintln!("== {name}: not run, this processor does not have it");
            continue;
        }
        for step in &steps {
            if let Err(code) = step_passes(name, step, &[("RETORT_ISA", name)]) {
                return code;
            }
        }
    }
    say("== all paths of this processor passed", ExitCode::SUCCESS)
}

/// Everything that CI runs and that needs nothing but this checkout, the cheap steps first.
fn ci() -> ExitCode {
    let steps: [(&str, &[&str]); 5] = [
        ("format", &["fmt", "--all", "--check"]),
        ("tidy", &["run", "--quiet", "--package", "xtask", "--", "tidy"]),
        ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("tests", &["test", "--workspace"]),
        ("documentation", &["doc", "--workspace", "--no-deps"]),
    ];
    for (name, args) in steps {
        let strict = [("RUSTDOCFLAGS", "-D warnings")];
        let variables = if name == "documentation" { &strict[..] } else { &[] };
        if let Err(code) = step_passes(name, args, variables) {
            return code;
        }
    }
    say("== all steps passed", ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(line: &str, set: bool) -> Option<usize> {
        bench_threads(&line.split_whitespace().map(String::from).collect::<Vec<_>>(), set)
    }

    #[test]
    fn threads_of_a_bench() {
        assert_eq!(threads("bench loss --loss ce --threads 3 --json", false), Some(3));
        assert_eq!(threads("bench loss --threads=5", true), Some(5));
        assert_eq!(threads("bench loss --threads 0", false), None);
        assert_eq!(threads("bench loss --threads many", true), None);
        assert_eq!(threads("bench loss --threads", true), None);
        assert_eq!(threads("bench loss", true), None);
        assert_eq!(threads("bench loss", false), std::thread::available_parallelism().ok().map(usize::from));
        assert_eq!(threads("reproduce table1 --threads 3", false), None);
        assert_eq!(threads("", false), None);
    }
}
