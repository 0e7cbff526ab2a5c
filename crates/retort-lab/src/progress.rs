//! What the user sees while runs go on: bars on a terminal, plain lines otherwise.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use retort_trainers::engine::{EpochRecord, Observer, StepReport};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// All runs of one command.
pub(crate) struct Ui {
    bars: Option<Bars>,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
}

impl Ui {
    pub(crate) fn new(runs: usize) -> Self {
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4));
            let total =
                all.add(ProgressBar::new(runs as u64).with_style(style("{bar:30} {pos}/{len} runs, {elapsed} gone")));
            total.enable_steady_tick(Duration::from_secs(1));
            Bars { all, total }
        });
        Self { bars }
    }

    /// A message above the bars, or a plain line.
    pub(crate) fn say(&self, message: &str) {
        match &self.bars {
            // Nothing can be done about a terminal that went away.
            Some(bars) => drop(bars.all.println(message)),
            None => drop(writeln!(std::io::stderr(), "{message}")),
        }
    }

    /// A listener for one run.
    pub(crate) fn run(&self, label: &str) -> RunProgress {
        let bar = self.bars.as_ref().map(|bars| {
            let template = "{prefix:28!} {bar:20} {msg}";
            bars.all.insert_before(
                &bars.total,
                ProgressBar::new(0).with_style(style(template)).with_prefix(label.to_string()),
            )
        });
        RunProgress { label: label.to_string(), bar, left: Duration::ZERO }
    }

    /// One more run is done, or was found done.
    pub(crate) fn finished(&self) {
        if let Some(bars) = &self.bars {
            bars.total.inc(1);
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bars) = &self.bars {
            drop(bars.all.clear());
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well formed")
}

/// Reports one run.
pub(crate) struct RunProgress {
    label: String,
    bar: Option<ProgressBar>,
    left: Duration,
}

impl Observer for RunProgress {
    fn on_step(&mut self, report: &StepReport<'_>) {
        self.left = report.left;
        if let Some(bar) = &self.bar {
            bar.set_length(report.total as u64);
            bar.set_position(report.done as u64);
            let accuracy = report.accuracy.map(|a| format!(" acc {:.1} %", 100.0 * a)).unwrap_or_default();
            bar.set_message(format!(
                "epoch {}/{} loss {:.4}{accuracy} {} left",
                report.epoch,
                report.epochs,
                report.loss,
                minutes(report.left)
            ));
        }
    }

    fn on_epoch(&mut self, record: &EpochRecord, epochs: usize) {
        if self.bar.is_some() {
            return;
        }
        let percent =
            |name: &str, x: Option<f64>| x.map(|x| format!(", {name} {:.2} %", 100.0 * x)).unwrap_or_default();
        let test = record.evaluations.get("student");
        let line = format!(
            "{}: epoch {}/{epochs}, loss {:.4}{}{}{}, {} left",
            self.label,
            record.epoch,
            record.loss,
            percent("train", record.train_accuracy),
            percent("test", test.map(|t| t.accuracy)),
            percent("agreement", test.and_then(|t| t.agreement)),
            minutes(self.left),
        );
        drop(writeln!(std::io::stderr(), "{line}"));
    }
}

impl Drop for RunProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds % 3600 / 60),
    }
}
