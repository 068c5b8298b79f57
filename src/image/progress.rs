//! Progress bars on a terminal, and nothing in a pipe.

use std::io::{IsTerminal as _, stderr};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// The bars of one command. They are drawn on stderr when that is a terminal.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

/// One bar. It may be moved from any thread, and goes when it is dropped.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let drawn = !quiet && stderr().is_terminal();
        Self {
            bars: drawn
                .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10))),
        }
    }

    /// A bar for `total` bytes of `label`.
    pub(crate) fn bar(&self, label: &str, total: u64) -> Bar {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template(
                "{prefix:24!} {bar:30} {bytes:>10} / {total_bytes:10} {bytes_per_sec}",
            );
            let bar = ProgressBar::new(total).with_prefix(output::visible(label).into_owned());
            bars.add(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            })
        });
        Bar { bar }
    }
}

impl Bar {
    /// `count` more bytes are done.
    pub(crate) fn add(&self, count: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(count);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
