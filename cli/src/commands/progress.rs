//! Progress of long work: a bar on a terminal, plain lines elsewhere, always on standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Share of the work between two plain lines.
const LINE_EVERY: f64 = 0.25;

/// Progress of one thing at a time.
pub struct Progress {
    bar: Option<ProgressBar>,
    task: String,
    said: f64,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000);
            let style = ProgressStyle::with_template("{msg:<50} [{bar:30}] {percent:>3} %");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar
        });
        Self { bar, task: String::new(), said: 0.0 }
    }

    /// Tells how far a task is (0 to 1), with a word on how it goes.
    pub fn set(&mut self, task: &str, share: f64, detail: &str) {
        let share = share.clamp(0.0, 1.0);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{task} {detail}"));
            // At most 1000 by the clamp.
            bar.set_position((share * 1000.0) as u64);
            return;
        }
        let new = self.task != task;
        if new || share >= 1.0 && self.said < 1.0 || share - self.said >= LINE_EVERY {
            eprintln!("{task}: {:.0} % {detail}", share * 100.0);
            self.said = share;
            if new {
                task.clone_into(&mut self.task);
            }
        }
    }

    /// Says one line beside the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
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
