//! What a user sees while the run goes on, on standard error.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::recorder::{Live, Window};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A bar on a terminal; elsewhere a line at the beginning, and from time to time.
pub struct Progress {
    window: Window,
    bar: Option<ProgressBar>,
    next_line: Instant,
    events_before: u64,
    shown: Instant,
    events_per_s: f64,
}

impl Progress {
    /// Of a run that begins now.
    pub fn new(window: Window) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let length = (window.end - window.begin).as_millis() as u64;
            let style = ProgressStyle::with_template("[{bar:16}] {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            ProgressBar::new(length).with_style(style)
        });
        let (next_line, shown) = (window.begin, window.begin);
        Self { window, bar, next_line, events_before: 0, shown, events_per_s: 0.0 }
    }

    /// Shows how far the run is.
    pub fn show(&mut self, live: &Live) {
        let now = Instant::now();
        self.measure_rate(live, now);
        if let Some(bar) = &self.bar {
            bar.set_position((now - self.window.begin).as_millis() as u64);
            bar.set_message(self.line(live, now));
        } else if now >= self.next_line {
            self.next_line += LINE_INTERVAL;
            // A closed standard error is no reason to stop.
            let _closed = writeln!(std::io::stderr(), "loadtest: {}", self.line(live, now));
        }
    }

    /// Leaves nothing behind on a terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Smoothed, so that the number can be read.
    fn measure_rate(&mut self, live: &Live, now: Instant) {
        const WEIGHT: f64 = 0.3;
        let events = live.events.load(Relaxed);
        let elapsed_s = (now - self.shown).as_secs_f64();
        if elapsed_s > 0.0 {
            let rate = (events - self.events_before) as f64 / elapsed_s;
            self.events_per_s += WEIGHT * (rate - self.events_per_s);
            (self.events_before, self.shown) = (events, now);
        }
    }

    fn line(&self, live: &Live, now: Instant) -> String {
        let total_s = (self.window.end - self.window.begin).as_secs_f64();
        let elapsed_s = (now - self.window.begin).as_secs_f64();
        let phase = match now {
            _ if now < self.window.measured_from => ", warming up",
            _ if now >= self.window.end => ", waiting for the running",
            _ => "",
        };
        let (ok, ended) = (live.ok.load(Relaxed), live.ended.load(Relaxed));
        let (running, bad) = (live.running(), ended.saturating_sub(ok));
        let rate = self.events_per_s;
        format!(
            "{elapsed_s:.0} of {total_s:.0} s, {running} running, {ok} ok, {bad} not ok, \
             {rate:.0} events/s{phase}"
        )
    }
}
