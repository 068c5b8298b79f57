//! `events`: what a container has used, again and again, and what happens to it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{Count, Global, Verb, only_id, print};
use crate::container::{self, Happened, Stats};

#[derive(Debug, clap::Args)]
pub(super) struct Events {
    /// How often statistics are told, such as 5s or 100ms
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5s",
        value_parser = |text: &str| duration(text).ok_or("no duration"),
        allow_hyphen_values = true
    )]
    interval: Duration,

    /// Tell the statistics once and end
    #[arg(long)]
    stats: bool,

    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

/// One line of the output.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

impl Line<'_> {
    fn print(&self) -> Result<u8> {
        print(&(serde_json::to_string(self).context("write event")? + "\n"))
    }
}

impl Verb for Events {
    const NAME: &'static str = "events";
    const ABOUT: &'static str =
        "display container events such as OOM notifications, cpu, memory, and IO usage statistics";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        let id = only_id(&self.arguments)?;
        if self.interval.is_zero() {
            bail!("duration interval must be greater than 0");
        }
        let events = container::events(&global.root, &id)?;
        let line = |kind, data| Line {
            kind,
            id: id.as_str(),
            data,
        };
        if self.stats {
            return line("stats", Some(events.stats()?)).print();
        }
        let mut watch = events.watch()?;
        let mut next = Instant::now() + self.interval;
        loop {
            match watch.next(next)? {
                Happened::Oom => line("oom", None).print()?,
                Happened::Ended => return Ok(0),
                Happened::Nothing => {
                    // A slow reader is not caught up with.
                    next = (next + self.interval).max(Instant::now());
                    line("stats", Some(events.stats()?)).print()?
                }
            };
        }
    }
}

/// A duration as Go writes it: `1h2m3.5s`, `100ms`, with a sign or without; zero where it is below that.
fn duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanoseconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, more) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let end = more
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(more.len());
        let (unit, more) = more.split_at(end);
        nanoseconds += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = more;
    }
    // What Go can count: 2^63 nanoseconds, some 292 years.
    if nanoseconds >= 9.2e18 {
        return None;
    }
    Some(match negative {
        true => Duration::ZERO,
        false => Duration::from_secs_f64(nanoseconds / 1e9),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("100ms", 100),
            ("1h2m3.5s", 3_723_500),
            ("1.5m", 90_000),
            ("+2s", 2000),
            ("0", 0),
            ("0s", 0),
            ("1000us", 1),
            ("1000µs", 1),
        ] {
            let meant = Duration::from_millis(milliseconds);
            assert_eq!(duration(text), Some(meant), "{text}");
        }
        assert_eq!(duration("-5s"), Some(Duration::ZERO));
        for text in ["", "5", "s", "5x", "5s3", "1.2.3s", "-", "9999999h", "5 s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
