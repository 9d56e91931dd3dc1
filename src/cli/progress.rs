//! How far a long command has come: a bar on a terminal, else a line in the log every few seconds.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines in a log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress of one step.
#[derive(Debug)]
pub(super) struct Progress {
    step: &'static str,
    total: Option<u64>,
    begun: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Begins a step, of so many parts where that is known.
    pub(super) fn new(step: &'static str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = match total {
                Some(_) => "{msg:<18} {wide_bar} {human_pos}/{human_len} ({per_sec}, {eta} left)",
                None => "{msg:<18} {spinner} {human_pos} ({per_sec})",
            };
            let style = ProgressStyle::with_template(template);
            ProgressBar::new(total.unwrap_or(0))
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(step)
        });
        Self {
            step,
            total,
            begun: Instant::now(),
            bar,
            last_line: Mutex::new(Instant::now()),
        }
    }

    /// So many parts are done.
    pub(super) fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let per_second = (done as f64 / self.begun.elapsed().as_secs_f64()) as u64;
            tracing::info!(
                step = self.step,
                done,
                total = self.total,
                per_second,
                "in progress"
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
