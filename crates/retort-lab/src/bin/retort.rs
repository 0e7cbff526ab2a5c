//! The program `retort`.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Training allocates and frees large buffers all the time; this allocator keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let cli = retort_lab::cli::Cli::parse();
    // The first Ctrl-C lets every run save itself, the second one ends the process at once; nothing is lost either way.
    let handler = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        drop(writeln!(std::io::stderr(), "warning: Ctrl-C ends the process without a last save: {error}"));
    }
    match cli.execute(&mut std::io::stdout().lock(), &STOP) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
