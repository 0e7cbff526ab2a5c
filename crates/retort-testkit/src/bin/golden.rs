//! Runs golden cases: `golden DIR... [--json FILE] [--allow-unsupported]`.
//!
//! Exit code 0: everything passed; 1: something failed, is unsupported, or there was nothing to run; 2: wrong request.
#![allow(clippy::print_stdout)] // A program's report goes to the standard output.

use clap::Parser;
use retort_testkit::golden;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs every golden case below the given directories and compares with the stored numbers.
#[derive(Parser)]
#[command(name = "golden")]
struct Arguments {
    /// Directories to walk (or single JSON files).
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Also write the result to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Unsupported cases are no failure, as long as each known method has a case that passed.
    #[arg(long)]
    allow_unsupported: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse(); // ends with exit code 2 on a wrong request
    let report = match golden::run(&arguments.directories) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("golden: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(path) = &arguments.json {
        let text = format!("{:#}\n", report.to_json());
        if let Err(error) = retort_nn::write_atomically(path, text.as_bytes()) {
            eprintln!("golden: {error}");
            return ExitCode::from(2);
        }
    }
    let mut lines = report.text();
    if arguments.allow_unsupported {
        for id in report.ids_without_a_pass() {
            lines.insert_str(0, &format!("NOT ONE PASSED {id}: the method has an adapter, but no case of it passed\n"));
        }
    }
    // A closed pipe (`golden | head`) is no reason to panic.
    let _ = writeln!(std::io::stdout(), "{lines}");
    if report.is_success(arguments.allow_unsupported) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
