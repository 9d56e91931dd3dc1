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
        let template = match total {
            Some(_) => "{msg:<18} {wide_bar} {human_pos}/{human_len} ({per_sec}, {eta} left)",
            None => "{msg:<18} {spinner} {human_pos} ({per_sec})",
        };
        Self::with(step, total, template)
    }

    /// Begins to watch a step that others do, see [`Progress::told`].
    pub(super) fn watched(step: &'static str, total: u64) -> Self {
        Self::with(step, Some(total), "{msg:<34} {wide_bar} {human_pos}/{human_len}")
    }

    fn with(step: &'static str, total: Option<u64>, template: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
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
        let per_second = (done as f64 / self.begun.elapsed().as_secs_f64()) as u64;
        self.line(done, self.total, Some(per_second));
    }

    /// So many parts of so many are done, by somebody else, who says how fast.
    pub(super) fn told(&self, done: u64, total: u64, per_second: Option<f64>) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!(
                "{} {}",
                self.step,
                pace(total - done.min(total), per_second)
            ));
            return;
        }
        self.line(done, Some(total), per_second.map(|per_second| per_second as u64));
    }

    fn line(&self, done: u64, total: Option<u64>, per_second: Option<u64>) {
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            tracing::info!(step = self.step, done, total, per_second, "in progress");
        }
    }
}

/// How fast it goes, and how long it takes at that pace.
fn pace(left: u64, per_second: Option<f64>) -> String {
    match per_second {
        Some(per_second) if per_second >= 1.0 => {
            let seconds = (left as f64 / per_second).ceil();
            format!("({per_second:.0}/s, {seconds:.0} s left)")
        }
        _ => String::new(),
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_reckoned_from_the_pace_that_is_told() {
        assert_eq!(pace(1_000, Some(300.0)), "(300/s, 4 s left)");
        assert_eq!((pace(7, None), pace(7, Some(0.0))), Default::default());
    }
}
